"""Settings read again while the server runs: what changes at once, and what only a restart changes.

Nothing is put into effect unless everything can be: with any problem the running settings stay, whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from langport.errors import ConfigError
from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.remote_models import RemoteModels
from langport.settings.options import OPTIONS
from langport.settings.tree import GatewaySettings, OverloadSettings, Settings

logger = logging.getLogger("langport")

FIXED: Mapping[type[msgspec.Struct], frozenset[str]] = {
    Settings: frozenset(("host", "port", "workers", "models", "max_loaded_models", "limits", "store", "telemetry")),
    GatewaySettings: frozenset(
        ("response_cache_bytes", "response_cache_ttl_s", "response_cache_store", "prices", "record_usage")
    ),
    OverloadSettings: frozenset(("limits_store", "limits_on_failure", "max_connections", "client_timeout_s")),
}
"""By section, the fields that only a restart changes; a section that is not here is one field of `Settings`."""
_NAMES = {(option.section, option.field): option.name for option in OPTIONS}


@dataclass(frozen=True)
class Reloaded:
    """What came of reading the settings again."""

    settings: Settings
    """What holds now: the new ones, but for what stays until a restart."""
    changed: tuple[str, ...]
    """Names of settings that others hold for now, in the order of the help."""
    need_restart: tuple[str, ...]
    """Those that were changed and still have their old values."""

    def describe(self) -> str:
        """For a person."""
        changed = f"settings changed: {', '.join(self.changed)}" if self.changed else "no setting changed"
        if not self.need_restart:
            return f"{changed}."
        return f"{changed}. Only a restart changes {', '.join(self.need_restart)}."


def merge(running: Settings, wanted: Settings) -> Reloaded:
    """The settings to run with from now on."""
    changed: list[str] = []
    kept: list[str] = []
    return Reloaded(_merge(running, wanted, changed, kept), tuple(changed), tuple(kept))


def _merge(running: Any, wanted: Any, changed: list[str], kept: list[str]) -> Any:
    section = type(running)
    fields: dict[str, Any] = {}
    for name in section.__struct_fields__:
        old, new = getattr(running, name), getattr(wanted, name)
        if type(old) in FIXED:
            fields[name] = _merge(old, new, changed, kept)
            continue
        is_fixed = name in FIXED[section]
        fields[name] = old if is_fixed else new
        if old != new:
            (kept if is_fixed else changed).append(_NAMES.get((section, name), name))
    return section(**fields)


class Reloader:
    """Reads the settings again when it is asked to, one time after the other."""

    def __init__(
        self, running: Settings, read: Callable[[], Settings], apply: Callable[[Settings], Awaitable[None] | None]
    ) -> None:
        """`read` gives the settings as they are written now; `apply` is given those that hold from now on.

        Both raise ConfigError with all problems; `apply` has changed nothing then.
        """
        self._running = running
        self._read = read
        self._apply = apply
        self._reading = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Put into effect what can be. Raises: ConfigError with all problems; nothing has changed then."""
        async with self._reading:
            try:
                found = merge(self._running, await asyncio.to_thread(self._read))
                applying = self._apply(found.settings)
                if applying is not None:
                    await applying
            except ConfigError as error:
                for problem in error.problems:
                    logger.error("Settings not reloaded, the running ones stay: %s", problem)
                raise
            self._running = found.settings
            logger.info("Reloaded: %s", found.describe())
            return found

    async def reload_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The same for who wants names only: what changed, and what a restart would change."""
        found = await self.reload()
        return found.changed, found.need_restart


def apply_settings(gateway: Gateway, admission: Admission, remote: RemoteModels, settings: Settings) -> None:
    """Put settings into effect that need no restart. Raises: ConfigError; nothing has changed then."""
    plan = remote.plan(settings.upstreams)
    local = [model for model in gateway.models if not remote.has(model)]
    taken = {model.name for model in local} | settings.gateway.routes.keys() | settings.gateway.aliases.keys()
    gateway.reload(settings.gateway, [*local, *plan.models(taken)], may_grow=plan.may_grow)
    remote.adopt(plan)
    admission.update(settings.overload)
    logger.setLevel(settings.log_level.upper())
