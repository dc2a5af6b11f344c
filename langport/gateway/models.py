"""The served names: models and their aliases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from langport.errors import ConfigError, ModelNotFound
from langport.gateway.upstream import Upstream

_MAX_NAMES_IN_MESSAGE = 10


class Served:
    """Every public name and the upstream behind it, in the order of /v1/models."""

    def __init__(self, upstreams: Sequence[Upstream], aliases: Mapping[str, str]) -> None:
        """Raises: ConfigError with every name that is taken twice and every alias that leads nowhere."""
        self.upstreams = tuple(upstreams)
        self._by_name: dict[str, Upstream] = {}
        self._created = int(time.time())
        problems: list[str] = []
        for upstream in upstreams:
            if upstream.name in self._by_name:
                problems.append(f"Two models are named {upstream.name!r}; give one another name with NAME=MODEL.")
            self._by_name[upstream.name] = upstream
        models = dict(self._by_name)
        for alias, target in aliases.items():
            if alias in models:
                problems.append(f"The alias {alias!r} is already the name of a model; choose another.")
            elif target not in models:
                served = ", ".join(models) or "none"
                problems.append(f"The alias {alias!r} leads to {target!r}, which is not served. Served: {served}.")
            else:
                self._by_name[alias] = models[target]
        if problems:
            raise ConfigError(*problems)

    def find(self, name: str) -> Upstream:
        """The upstream behind a model or an alias. Raises: ModelNotFound."""
        upstream = self._by_name.get(name)
        if upstream is None:
            names = list(self._by_name)
            more = ", ..." if len(names) > _MAX_NAMES_IN_MESSAGE else ""
            served = ", ".join(names[:_MAX_NAMES_IN_MESSAGE]) + more
            raise ModelNotFound(
                f"The model '{name[:200]}' is not served here. Served: {served or 'none'} (GET /v1/models lists them).",
                param="model",
            )
        return upstream

    def entry(self, name: str) -> dict[str, Any]:
        """The /v1/models entry of a model, or of an alias with its model's fields. Raises: ModelNotFound."""
        upstream = self.find(name)
        defaults = {"id": name, "object": "model", "created": self._created, "owned_by": "langport"}
        return {**defaults, **upstream.card(), "id": name, "root": upstream.name}

    def entries(self) -> list[dict[str, Any]]:
        """All of /v1/models."""
        return [self.entry(name) for name in self._by_name]
