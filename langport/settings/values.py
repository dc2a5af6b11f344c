"""The value of an option from what the user wrote, wherever that was, and what to write instead of a wrong one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from langport.settings.fields import Key, Text, hide_password
from langport.settings.options import Option
from langport.settings.tree import SECRETS, Price
from langport.settings.upstreams import parse_upstreams

SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
SIZE_UNITS |= {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Given:
    """A value as the user wrote it, and where."""

    value: object
    source: str


def parse_value(option: Option, given: Given, problems: list[str]) -> Any:
    """The field's value; a wrong one is noted among the problems and gives None."""
    try:
        if option.name == "redirect":
            return _parse_redirects(given.value)
        if option.name == "lora":
            return _parse_adapters(given.value)
        if option.name == "price":
            return _parse_prices(given.value)
        if option.name == "upstream":
            return parse_upstreams(_parse_list(given.value), given.source, problems)
        if option.name == "upstream_key":
            return msgspec.convert(given.value if isinstance(given.value, list) else [given.value], list[Key])
        if option.flag.form == "list":
            is_whole = option.name == "api_key" and not isinstance(given.value, str)  # a key may hold a comma
            return msgspec.convert(given.value if is_whole else _parse_list(given.value), option.type)
        if option.flag.form == "switch":
            return SWITCH_WORDS[str(given.value).strip().lower()]
        value = _parse_size(given.value) if option.flag.form == "size" else given.value
        if isinstance(value, bool):
            raise ValueError("True is no number and no text")
        return msgspec.convert(value, option.type, strict=False)
    except (ValueError, KeyError):  # msgspec.ValidationError is a ValueError
        shown = "the value" if option.name in SECRETS else hide_password(repr(given.value))
        problems.append(f"{given.source}: {shown} is not {_expectation(option)}.")
        return None


def _parse_list(value: object) -> list[object]:
    """The items of a YAML list or a repeated flag, or of text; commas separate further ones in each."""
    items = value if isinstance(value, list | tuple) else [value]
    parts = [item.split(",") if isinstance(item, str) else [item] for item in items]
    return [part.strip() if isinstance(part, str) else part for group in parts for part in group]


def _parse_redirects(value: object) -> list[str | tuple[str, str]]:
    """Texts as they are, since only the models' names say where to split; a YAML mapping's pairs as pairs."""
    if isinstance(value, dict):
        return [(str(alias), str(target)) for alias, target in value.items()]
    return list(msgspec.convert(_parse_list(value), list[Text]))


def _parse_adapters(value: object) -> dict[str, str]:
    """What is left and right of each `=`, or a YAML mapping."""
    if isinstance(value, dict):
        return msgspec.convert(value, dict[Text, Text])
    pairs = [text.partition("=") for text in msgspec.convert(_parse_list(value), list[Text])]
    return msgspec.convert({name: directory for name, _, directory in pairs}, dict[Text, Text])


def _parse_prices(value: object) -> dict[str, Price]:
    """MODEL=INPUT:OUTPUT, or a YAML mapping to prices."""
    if isinstance(value, dict):
        return msgspec.convert(value, dict[Text, Price])
    prices = {}
    for text in msgspec.convert(_parse_list(value), list[Text]):
        model, _, price = text.rpartition("=")
        given, _, made = price.partition(":")
        prices[model] = {"input": float(given), "output": float(made)}
    return msgspec.convert(prices, dict[Text, Price])


def _parse_size(value: object) -> object:
    """Bytes: a number, or text such as 512MB, 2GiB or 2G (GB is 1000**3, GiB 1024**3)."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?i?)b?", value.strip().lower())
    if not match or match[2] not in SIZE_UNITS:
        raise ValueError(value)
    return int(float(match[1]) * SIZE_UNITS[match[2]])


def _expectation(option: Option) -> str:
    """What a valid value is, in words."""
    if option.flag.expects:
        return option.flag.expects
    if option.name == "redirect":
        return "FROM:TO"
    if option.flag.form == "list":
        return "a list of texts, none of them empty (numbers in quotes)"
    if option.flag.form == "switch":
        return "true or false"
    if option.flag.form == "size":
        return "a size such as 512MB or 2GiB"
    match msgspec.inspect.type_info(option.type):
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case msgspec.inspect.IntType(ge=low, le=high) if high is not None:
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.IntType(ge=low) | msgspec.inspect.UnionType(types=(msgspec.inspect.IntType(ge=low), *_)):
            return f"a whole number, {low} or more"
    return "a text that is not empty (a number in quotes)"
