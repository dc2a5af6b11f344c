"""Settings as they may be shown: without keys and passwords."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from langport.settings.fields import HIDDEN
from langport.settings.options import OPTIONS
from langport.settings.tree import (
    EngineSettings,
    GatewaySettings,
    LimitSettings,
    ModelSettings,
    OverloadSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
)
from langport.settings.upstreams import shown_upstream


def as_yaml(settings: Settings) -> str:
    """The settings as a file that --config reads, with the keys hidden."""
    content = _plain(settings, Settings)
    content |= _plain(settings.gateway, GatewaySettings) | _plain(settings.limits, LimitSettings)
    content |= _plain(settings.overload, OverloadSettings) | _plain(settings.store, StoreSettings)
    content |= _plain(settings.telemetry, TelemetrySettings)
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
        {"name": model.name, "model": model.reference}
        | _plain(model, ModelSettings)
        | _plain(model.engine, EngineSettings)
        for model in settings.models
    ]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def hide_password(text: str) -> str:
    """A text with a URL in it as it may be shown."""
    text = re.sub(r"(?<=://)([^:/@]*):.*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?<=password=)[^&'\"]*", HIDDEN, text)


def _plain(struct: msgspec.Struct, section: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        option.name: msgspec.to_builtins(getattr(struct, option.field))
        for option in OPTIONS
        if option.section is section
    }
