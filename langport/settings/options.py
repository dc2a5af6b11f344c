"""The options: the fields of the settings that carry a `Flag`, each with its names in the three places."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec

from langport.settings.fields import Flag
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
from langport.settings.upstreams import UpstreamSettings


@dataclass(frozen=True)
class Option:
    """One field that a user can set, and how."""

    name: str
    """As in the file: api_key. --api-key and LANGPORT_API_KEY are made from it."""
    section: type[msgspec.Struct]
    field: str
    type: Any
    flag: Flag

    @property
    def switch(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return self.flag.environment or f"LANGPORT_{self.name.upper()}"


_SECTIONS = (
    Settings, GatewaySettings, EngineSettings, ModelSettings, LimitSettings, OverloadSettings, StoreSettings,
    TelemetrySettings, UpstreamSettings,
)  # fmt: skip


def _options() -> Iterator[Option]:
    for section in _SECTIONS:
        for field, hint in get_type_hints(section, include_extras=True).items():
            for flag in getattr(hint, "__metadata__", ()):
                if isinstance(flag, Flag):
                    yield Option(flag.name or field, section, field, hint, flag)


OPTIONS = tuple(_options())
"""Every option, in the order of the help."""
MODEL_OPTIONS = tuple(option for option in OPTIONS if option.section in (EngineSettings, ModelSettings))
"""Those that an entry under `models:` may set for its model alone; there they win over the general ones."""
GATEWAY_OPTIONS = tuple(
    option
    for option in OPTIONS
    if option not in MODEL_OPTIONS and option.section is not LimitSettings and option.name != "max_loaded_models"
)
"""Those that mean something where there are no local models."""
_LOCAL_OPTIONS = tuple(option for option in OPTIONS if option not in GATEWAY_OPTIONS)
LOCAL_NAMES = frozenset(("models", *(option.name for option in _LOCAL_OPTIONS)))
LOCAL_VARIABLES = frozenset(("LANGPORT_MODELS", *(option.variable for option in _LOCAL_OPTIONS)))
"""The others, as they are called in the file and in the environment."""


def field_docs() -> dict[Option, str]:
    """The string under each option's field. Reads the settings' source, so only --help asks for it."""
    docs: dict[tuple[str, str], str] = {}
    sources = [inspect.getsource(sys.modules[name]) for name in {section.__module__ for section in _SECTIONS}]
    for node in (node for source in sources for node in ast.parse(source).body):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(doc))),
                    ):
                        docs[node.name, name] = doc
    return {option: docs[option.section.__name__, option.field] for option in OPTIONS}


def option_named(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def fields_of(section: type[msgspec.Struct], values: Mapping[Option, Any]) -> dict[str, Any]:
    return {option.field: value for option, value in values.items() if option.section is section}
