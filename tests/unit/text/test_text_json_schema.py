"""Which `oneOf` may be read as `anyOf`."""

from __future__ import annotations

import pytest

from langport.text.json_schema import with_exclusive_choices


def tagged(tag: str, value: object, **more: object) -> dict[str, object]:
    return {"type": "object", "properties": {tag: {"const": value}, **more}, "required": [tag]}


CAT, DOG = tagged("kind", "cat", lives={"type": "integer"}), tagged("kind", "dog")


@pytest.mark.parametrize(
    "branches",
    [
        [{"const": 1}, {"const": 2}],
        [{"enum": ["a", "b"]}, {"enum": ["c"]}, {"const": "d"}],
        [{"const": 1}, {"const": "1"}, {"const": True}, {"const": None}],
        [CAT, DOG],
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        [CAT, {"$ref": "#/$defs/dog"}],
    ],
)
def test_branches_told_apart_by_a_constant(branches):
    schema = {"$defs": {"cat": CAT, "dog": DOG}, "properties": {"pet": {"oneOf": branches}}}
    assert with_exclusive_choices(schema)["properties"]["pet"] == {"anyOf": branches}


@pytest.mark.parametrize(
    "branches",
    [
        [{"const": 1}, {"const": 1.0}],
        [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}],
        [{"const": 1}, {"type": "integer"}],
        [CAT, tagged("kind", "cat")],
        [CAT, tagged("type", "dog")],
        [CAT, {"type": "object", "properties": {"kind": {"const": "dog"}}}],
        [CAT, {**DOG, "type": ["object", "null"]}],
        [CAT, {"properties": DOG["properties"], "required": ["kind"]}],
        [{"$ref": "#/$defs/none"}, DOG],
        [{"$ref": "#/$defs/loop"}, DOG],
        [{"$ref": "https://example.com/schema"}, DOG],
        [True, CAT],
        [],
        "nonsense",
    ],
)
def test_what_may_be_both_stays_as_it_is(branches):
    schema = {"$defs": {"loop": {"$ref": "#/$defs/loop"}}, "items": {"oneOf": branches}}
    assert with_exclusive_choices(schema) == schema


def test_a_schema_with_both_keywords_stays_as_it_is():
    schema = {"oneOf": [{"const": 1}, {"const": 2}], "anyOf": [{"minimum": 0}]}
    assert with_exclusive_choices(schema) == schema


def test_the_order_of_keywords_stays():
    schema = {"title": "x", "oneOf": [CAT, DOG], "properties": {"z": True}}
    assert list(with_exclusive_choices(schema)) == ["title", "anyOf", "properties"]


def test_data_is_not_taken_for_schemas():
    data = {"oneOf": [{"const": 1}, {"const": 2}]}
    schema = {"const": data, "enum": [data]}
    assert with_exclusive_choices(schema) == schema
