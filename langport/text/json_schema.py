"""JSON Schemas before they become grammars: `oneOf` where it means the same as `anyOf`.

A grammar can say that one of several branches is followed, not that the others are not. Where a constant tells the
branches apart, as in the tagged unions that data classes are written as, no value follows two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MAX_REFS = 20
"""`$ref`s followed one after the other."""


def with_exclusive_choices(schema: Any) -> Any:
    """The schema with each `oneOf` whose branches exclude each other written as `anyOf`; the others as they are."""
    return _rewrite(schema, schema)


def _rewrite(value: Any, root: Any) -> Any:
    if isinstance(value, list):
        return [_rewrite(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    rewritten = {key: item if key in ("const", "enum") else _rewrite(item, root) for key, item in value.items()}
    branches = value.get("oneOf")
    if isinstance(branches, list) and "anyOf" not in value and _exclude_each_other(branches, root):
        # In its place, since the order of keywords decides the order of properties.
        return {"anyOf" if key == "oneOf" else key: item for key, item in rewritten.items()}
    return rewritten


def _exclude_each_other(branches: list[Any], root: Any) -> bool:
    resolved = [_resolve(branch, root) for branch in branches]
    if not resolved or any(branch is None for branch in resolved):
        return False
    found = [branch for branch in resolved if branch is not None]
    if _are_disjoint([_constants(branch) for branch in found]):
        return True
    tags = set.intersection(*(_required(branch) for branch in found))
    is_tagged = all(branch.get("type") == "object" for branch in found)
    return is_tagged and any(
        _are_disjoint([_constants(_resolve(branch["properties"].get(tag), root)) for branch in found]) for tag in tags
    )


def _required(branch: Mapping[str, Any]) -> set[str]:
    """Properties that an object of this branch has and whose schema is given."""
    required, properties = branch.get("required"), branch.get("properties")
    if not isinstance(required, list) or not isinstance(properties, dict):
        return set()
    return {name for name in required if isinstance(name, str) and name in properties}


def _constants(schema: Mapping[str, Any] | None) -> set[bytes] | None:
    """The only values that may follow the schema, as JSON; None when they are not listed."""
    if schema is None:
        return None
    if "const" in schema:
        return {_canonical(schema["const"])}
    values = schema.get("enum")
    return {_canonical(value) for value in values} if isinstance(values, list) else None


def _canonical(value: Any) -> bytes:
    """1 and 1.0 are the same JSON value."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return msgspec.json.encode(value, order="deterministic")


def _are_disjoint(sets: list[set[bytes] | None]) -> bool:
    known = [found for found in sets if found is not None]
    return len(known) == len(sets) and sum(map(len, known)) == len(set().union(*known))


def _resolve(schema: Any, root: Any) -> Mapping[str, Any] | None:
    """The schema that a local `$ref` leads to; None when there is none."""
    for _ in range(MAX_REFS):
        if not isinstance(schema, dict):
            return None
        reference = schema.get("$ref")
        if reference is None:
            return schema
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return None
        schema = root
        for name in reference[2:].split("/"):
            key = name.replace("~1", "/").replace("~0", "~")
            schema = schema.get(key) if isinstance(schema, dict) else None
    return None
