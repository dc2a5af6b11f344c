"""The served names: models and their aliases, which may change while requests run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langport.errors import ConfigError, ModelNotFound
from langport.gateway.upstream import Upstream

_MAX_NAMES_IN_MESSAGE = 10


class Served:
    """Every public name and the upstream behind it, in the order of /v1/models.

    A request looks its upstream up once and keeps it, so a change concerns only those that come after it.
    """

    def __init__(self, upstreams: Sequence[Upstream], aliases: Mapping[str, str], *, may_grow: bool = False) -> None:
        """With `may_grow` an alias may lead to a model that comes later. Raises: ConfigError as `update` does."""
        self.may_grow = may_grow
        self.upstreams: tuple[Upstream, ...] = ()
        self._aliases: dict[str, str] = {}
        self._by_name: dict[str, Upstream] = {}
        """Models, then those aliases whose model is served."""
        self._created: dict[str, int] = {}
        self.update(upstreams, aliases)

    def update(
        self, upstreams: Sequence[Upstream], aliases: Mapping[str, str], *, may_grow: bool | None = None
    ) -> None:
        """Serve these from now on; `may_grow` stays where it is not given.

        Raises: ConfigError with every name that is taken twice and every alias that leads nowhere; nothing has changed
        then.
        """
        may_grow = self.may_grow if may_grow is None else may_grow
        problems = self.problems([upstream.name for upstream in upstreams], aliases, may_grow=may_grow)
        if problems:
            raise ConfigError(*problems)
        self.may_grow = may_grow
        self._aliases = dict(aliases)
        self._serve(upstreams)

    def problems(self, names: Sequence[str], aliases: Mapping[str, str], *, may_grow: bool) -> list[str]:
        """What would be wrong with serving these."""
        problems = [
            f"Two models are named {name!r}; give one another name with NAME=MODEL."
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        for alias, target in aliases.items():
            if alias in names:
                problems.append(f"The alias {alias!r} is already the name of a model; choose another.")
            elif target not in names and not may_grow:
                served = ", ".join(names) or "none"
                problems.append(f"The alias {alias!r} leads to {target!r}, which is not served. Served: {served}.")
        return problems

    def put(self, upstream: Upstream) -> None:
        """Serve one more, or another one in place of the one of its name, which must not be an alias."""
        assert not self.is_alias(upstream.name), "an alias hides the model: our bug, please report it"
        others = {other.name: other for other in self.upstreams}
        self._serve({**others, upstream.name: upstream}.values())

    def remove(self, name: str) -> None:
        """Serve a model no longer. Its aliases are not served either, until a model has its name again."""
        self._serve(upstream for upstream in self.upstreams if upstream.name != name)

    def _serve(self, upstreams: Iterable[Upstream]) -> None:
        self.upstreams = tuple(upstreams)
        models = {upstream.name: upstream for upstream in self.upstreams}
        aliased = {alias: models[target] for alias, target in self._aliases.items() if target in models}
        self._by_name = {**models, **aliased}
        now = int(time.time())
        self._created = {name: self._created.get(name, now) for name in self._by_name}

    def model(self, name: str) -> Upstream | None:
        """The upstream of that name; None for an alias or a name nobody has."""
        upstream = self._by_name.get(name)
        return upstream if upstream is not None and upstream.name == name else None

    def is_alias(self, name: str) -> bool:
        """Whether the name is an alias, even one whose model is not served now."""
        return name in self._aliases

    def find(self, name: str, *, param: str = "model") -> Upstream:
        """The upstream behind a model or an alias. Raises: ModelNotFound (`param`)."""
        upstream = self._by_name.get(name)
        if upstream is None:
            names = list(self._by_name)
            more = ", ..." if len(names) > _MAX_NAMES_IN_MESSAGE else ""
            served = ", ".join(names[:_MAX_NAMES_IN_MESSAGE]) + more
            raise ModelNotFound(
                f"The model '{name[:200]}' is not served here. Served: {served or 'none'} (GET /v1/models lists them).",
                param=param,
            )
        return upstream

    def entry(self, name: str) -> dict[str, Any]:
        """The /v1/models entry of a model, or of an alias with its model's fields. Raises: ModelNotFound."""
        upstream = self.find(name)
        defaults = {"id": name, "object": "model", "created": self._created[name], "owned_by": "langport"}
        return {**defaults, "root": upstream.name, **upstream.card(), "id": name}

    def entries(self) -> list[dict[str, Any]]:
        """All of /v1/models."""
        return [self.entry(name) for name in self._by_name]
