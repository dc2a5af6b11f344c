"""Reading the settings: defaults < YAML file < environment < command line, all problems told together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from langport.errors import ConfigError
from langport.settings.fields import nearest
from langport.settings.models import check_pinned, read_aliases, read_models, with_adapters
from langport.settings.options import LOCAL_NAMES, LOCAL_VARIABLES, OPTIONS, fields_of, option_named
from langport.settings.routes import read_routes
from langport.settings.tree import (
    GatewaySettings,
    LimitSettings,
    ModelSettings,
    OverloadSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
)
from langport.settings.upstreams import with_keys, with_upstreams
from langport.settings.values import Given, parse_value


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
    *,
    with_models: bool = True,
) -> Settings:
    """Merge defaults < `file` < `environment` < `flags` into one tree; a list replaces the list below it.

    Without models only upstreams are served, and what concerns local models is refused.

    `flags` maps option names, and `models`, to what was given on the command line. An entry under `models:`
    in the file may override engine and model options for its model; there it wins over the general value.
    Raises: ConfigError with all problems at once.
    """
    problems: list[str] = []
    content = _read_file(file, problems) if file else {}
    if not with_models:
        problems.extend(
            f"{file}: {name!r} concerns models of this machine, and `langport gateway` serves none; "
            "take it out, or use `langport serve`."
            for name in content
            if name in LOCAL_NAMES
        )
        environment = {name: value for name, value in environment.items() if name not in LOCAL_VARIABLES}
    given = {
        **_from_file(content, file, problems),
        **_from_environment(environment),
        **{name: Given(value, _flag_source(name)) for name, value in flags.items()},
    }
    values = {option: parse_value(option, given[option.name], problems) for option in OPTIONS if option.name in given}
    adapters = values.pop(option_named("lora"), None) or {}
    models: tuple[ModelSettings, ...] = ()
    if with_models:
        models = with_adapters(read_models(given.get("models"), values, problems), adapters, problems)
    check_pinned(models, values.get(option_named("max_loaded_models")), problems)
    keys = values.pop(option_named("upstream_key"), ())
    upstreams = with_keys(values.pop(option_named("upstream"), ()) or (), keys, problems)
    served = [name for model in models for name in (model.name, *model.lora)]
    served = with_upstreams(served, upstreams, problems)
    lists_models = any(upstream.name is None for upstream in upstreams)
    routes = read_routes(content.get("routes"), f"{file}: routes", served, problems, is_open=lists_models)
    redirects = values.pop(option_named("redirect"), ())
    aliases = read_aliases(redirects, [*served, *routes], problems, is_open=lists_models)
    if problems:
        raise ConfigError(*problems)
    return Settings(
        **fields_of(Settings, values),
        models=models,
        upstreams=upstreams,
        gateway=GatewaySettings(**fields_of(GatewaySettings, values), aliases=aliases, routes=routes),
        limits=LimitSettings(**fields_of(LimitSettings, values)),
        overload=OverloadSettings(**fields_of(OverloadSettings, values)),
        store=StoreSettings(**fields_of(StoreSettings, values)),
        telemetry=TelemetrySettings(**fields_of(TelemetrySettings, values)),
    )


def _read_file(file: Path, problems: list[str]) -> dict[str, object]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        problems.append(f"{file} cannot be read: {error.strerror}. Check what --config names.")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{file} is not valid YAML: {' '.join(str(error).split())}.")
        return {}
    if content is not None and not isinstance(content, dict):
        problems.append(f"{file} must hold `name: value` lines, such as `port: 8000`.")
        return {}
    return {str(key).replace("-", "_"): value for key, value in (content or {}).items()}


def _from_file(content: Mapping[str, object], file: Path | None, problems: list[str]) -> dict[str, Given]:
    content = dict(content)
    if "upstreams" in content:
        content.setdefault("upstream", content.pop("upstreams"))
    options = [option.name for option in OPTIONS] + ["models"]
    known = [*options, "upstreams", "routes"]
    problems.extend(
        f"{file}: there is no setting {name!r}{nearest(name, known)}" for name in content if name not in known
    )
    return {
        name: Given(value, f"{file}: {name}")
        for name, value in content.items()
        if name in options and value is not None
    }


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    """An empty variable is one that is not set."""
    variables = {option.name: option.variable for option in OPTIONS} | {"models": "LANGPORT_MODELS"}
    return {
        name: Given(environment[variable], variable)
        for name, variable in variables.items()
        if environment.get(variable)
    }


def _flag_source(name: str) -> str:
    return "the models on the command line" if name == "models" else option_named(name).switch
