"""Settings as they may be shown: without keys and passwords."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from langport.settings.fields import HIDDEN, hide_password
from langport.settings.options import OPTIONS
from langport.settings.tree import Settings
from langport.settings.upstreams import shown_upstream


def as_yaml(settings: Settings) -> str:
    """The settings as a file that --config reads, with the keys hidden."""
    content = _plain(settings)
    for section in (settings.gateway, settings.limits, settings.overload, settings.store, settings.telemetry):
        content |= _plain(section)
    content["api_key"] = [HIDDEN for _ in settings.gateway.api_keys]
    content["admin_key"] = HIDDEN if settings.gateway.admin_key else None
    if settings.store.place is not None:
        content["store"] = hide_password(settings.store.place)
    if settings.overload.limits_store:
        content["limits_store"] = hide_password(settings.overload.limits_store)
    if settings.gateway.response_cache_store:
        content["response_cache_store"] = hide_password(settings.gateway.response_cache_store)
    if settings.gateway.routes:
        content["routes"] = msgspec.to_builtins(settings.gateway.routes)
    del content["upstream"]
    content["upstreams"] = [shown_upstream(upstream) for upstream in settings.upstreams]
    content["models"] = [
        {"name": model.name, "model": model.reference} | _plain(model) | _plain(model.engine)
        for model in settings.models
    ]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _plain(section: msgspec.Struct) -> dict[str, Any]:
    return {
        option.name: msgspec.to_builtins(getattr(section, option.field))
        for option in OPTIONS
        if option.section is type(section)
    }
