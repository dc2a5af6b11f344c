"""The models of this machine, their adapters and further names, from the values of the options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from langport.settings.fields import nearest
from langport.settings.options import MODEL_OPTIONS, Option, fields_of
from langport.settings.tree import BUNDLED_MODELS, BUNDLED_MODELS_PATH, LORA, EngineSettings, ModelSettings
from langport.settings.values import Given, parse_value


def read_models(given: Given | None, values: Mapping[Option, Any], problems: list[str]) -> tuple[ModelSettings, ...]:
    source = given.source if given else "the bundled models"
    entries = _model_entries(given.value) if given else [*BUNDLED_MODELS]
    models = [model for entry in entries if (model := _model(entry, source, values, problems))]
    if not entries:
        problems.append(f"{source}: the list is empty. Leave it out to serve the bundled demo models.")
    return tuple(models)


def with_adapters(
    models: tuple[ModelSettings, ...], adapters: Mapping[str, str], problems: list[str]
) -> tuple[ModelSettings, ...]:
    """Give each model the adapters that name it, the first one the others; all names must differ."""
    given: dict[str, dict[str, str]] = {model.name: {} for model in models}
    for text, directory in adapters.items():
        colons = [match.start() for match in re.finditer(":", text)]
        base = next((text[:colon] for colon in colons if text[:colon] in given), None)
        name = text if base is None else text[len(base) + 1 :]
        if not name:
            problems.append(f"--lora {text}={directory}: the adapter has no name. Write {LORA}.")
        elif given:
            given[base or models[0].name][name] = directory
    models = tuple(msgspec.structs.replace(model, lora={**given[model.name], **model.lora}) for model in models)
    names = [name for model in models for name in (model.name, *model.lora)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(
                f"{names.count(name)} models are named {name!r}. Give each its own name: NAME=MODEL on the command "
                "line, `name:` in the file; an adapter's is left of its directory."
            )
    return models


def check_pinned(models: Sequence[ModelSettings], max_loaded: int | None, problems: list[str]) -> None:
    """Pinned models must leave a place for the others."""
    pinned = [model.name for model in models if model.pinned]
    others = len(models) - len(pinned)
    if max_loaded is not None and len(pinned) + (others > 0) > max_loaded:
        rest = f", and {others} others need a place, too" if others else ""
        problems.append(
            f"--max-loaded-models {max_loaded} is too few: {len(pinned)} models are pinned "
            f"({', '.join(pinned)}){rest}. Allow more, or pin fewer."
        )


def _model_entries(value: object) -> list[object]:
    """Texts or mappings; text from the environment is comma separated."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def _model(entry: object, source: str, values: Mapping[Option, Any], problems: list[str]) -> ModelSettings | None:
    """One model from `[NAME=]REFERENCE` or from a mapping with `model:` and its own options."""
    own: dict[Option, Any] = {}
    name = ""
    reference = entry
    if isinstance(entry, dict):
        fields = {str(key).replace("-", "_"): value for key, value in entry.items()}
        name = str(fields.pop("name", ""))
        reference = fields.pop("model", "")
        own = _own_options(fields, f"{source}: {name or reference}", problems)
    elif isinstance(entry, str) and "=" in entry and not Path(entry).expanduser().exists():
        name, _, reference = entry.partition("=")
        if not name:
            problems.append(f"{source}: {entry!r} has nothing before the =. Write NAME=DIRECTORY or NAME=ID.")
            return None
    if not isinstance(reference, str) or not reference:
        problems.append(f"{source}: {entry!r} names no model. Give a directory or a hub id.")
        return None
    merged = {**values, **own}
    return ModelSettings(
        name=name or _name_of(reference),
        reference=str(BUNDLED_MODELS_PATH / reference) if reference in BUNDLED_MODELS else reference,
        engine=EngineSettings(**fields_of(EngineSettings, merged)),
        **fields_of(ModelSettings, merged),
    )


def _own_options(fields: Mapping[str, object], source: str, problems: list[str]) -> dict[Option, Any]:
    options = {option.name: option for option in MODEL_OPTIONS}
    own = {}
    for name, value in fields.items():
        if name not in options:
            problems.append(f"{source}: a model has no setting {name!r}{nearest(name, [*options, 'name', 'model'])}")
        elif value is not None:
            own[options[name]] = parse_value(options[name], Given(value, f"{source}: {name}"), problems)
    return own


def _name_of(reference: str) -> str:
    """A directory is named by its last part, a hub id is its own name."""
    path = Path(reference).expanduser()
    if reference.startswith((".", "/", "~")) or path.is_dir():
        return path.resolve().name
    return reference


def read_aliases(
    redirects: Iterable[str | tuple[str, str]] | None, names: list[str], problems: list[str], *, is_open: bool
) -> dict[str, str]:
    """Public name -> model name. A text is split at the first colon behind which a model is named.

    Open: further models are found later, so one that is not known yet may be meant.
    """
    aliases: dict[str, str] = {}
    for redirect in redirects or ():
        alias, target = redirect if isinstance(redirect, tuple) else _split_redirect(redirect, names)
        shown = redirect if isinstance(redirect, str) else f"{alias}:{target}"
        if not alias or not target or (target not in names and not is_open):
            problems.append(
                f"--redirect {shown}: write FROM:TO, where TO is a served model "
                f"({', '.join(names)}){nearest(target, names)}"
            )
        elif alias in names:
            problems.append(f"--redirect {shown}: {alias!r} is already the name of a served model.")
        elif aliases.setdefault(alias, target) != target:
            problems.append(f"--redirect {shown}: {alias!r} already leads to {aliases[alias]!r}.")
    return aliases


def _split_redirect(text: str, names: list[str]) -> tuple[str, str]:
    for colon in (match.start() for match in re.finditer(":", text)):
        if text[colon + 1 :] in names:
            return text[:colon], text[colon + 1 :]
    alias, _, target = text.partition(":")
    return alias, target
