"""Keyword by keyword: what a schema accepts and refuses, and whether any walk through its masks follows it.

In the manner of the JSON-Schema-Test-Suite, with documents written as our grammars write them; jsonschema is the judge.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from langport.models.vocabulary import GrammarError, Vocabulary
from langport.testing import EOS, byte_tokenizer
from langport.text.grammar import json_schema_grammar
from langport.text.json_schema import with_exclusive_choices

NUM_WALKS = 12
MAX_WALK = 400
HARD_TO_END = {"pattern unanchored alternation"}
"""Characters drawn evenly hardly ever come to an end."""
VOCABULARY = Vocabulary(byte_tokenizer(), byte_tokenizer().vocab_size, (EOS,))
FORMATS = jsonschema.FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])
"""Those that it checks without further packages, and as the RFCs have them."""

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}


def closed(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """An object of these properties and no others, all required unless said otherwise."""
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": False, **more}


CASES: list[tuple[str, Schema, list[str], list[str]]] = [
    # name, schema, documents that follow it, documents that do not
    ("type string", TEXT, ['"a"', '""', '"\\n"'], ["1", "null"]),
    ("type integer", WHOLE, ["0", "-5"], ["1.5", '"1"']),
    ("type number", {"type": "number"}, ["0", "-1.5", "1e5"], ['"1"', "01"]),
    ("type boolean", {"type": "boolean"}, ["true"], ["1"]),
    ("type null", {"type": "null"}, ["null"], ["0"]),
    ("type array", {"type": "array"}, ["[]", '[1, "a"]'], ["{}"]),
    ("type object", {"type": "object"}, ["{}", '{"a": 1}'], ["[]"]),
    ("type list", {"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    ("true schema", {}, ["1", "[null]"], []),
    ("enum mixed", {"enum": [1, "a", None, [1], {"b": 2}]}, ["1", '"a"', "null", "[1]"], ["2"]),
    ("enum strings escape", {"enum": ['a"b', "c\\d", "é"]}, ['"a\\"b"', '"é"'], ['"a"']),
    ("const object", {"const": {"a": 1, "b": [2]}}, ['{"a": 1, "b": [2]}'], ['{"a": 1}']),
    ("const float", {"const": 1.5}, ["1.5"], ["1"]),
    ("properties required", closed({"a": TEXT, "b": WHOLE}), ['{"a": "x", "b": 1}'], ['{"a": "x"}']),
    ("properties optional", closed({"a": TEXT, "b": WHOLE}, ["b"]), ['{"b": 1}', '{"a": "", "b": 2}'], ['{"a": ""}']),
    (
        "additional open",
        {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
        ['{"a": 1}', '{"a": 1, "z": "q"}'],
        ['{"a": "x"}'],
    ),
    ("additional schema", {"type": "object", "additionalProperties": WHOLE}, ["{}", '{"x": 1}'], ['{"x": "y"}']),
    (
        "patternProperties",
        {"type": "object", "patternProperties": {"^s_": TEXT}, "additionalProperties": False},
        ["{}", '{"s_a": "b"}'],
        ['{"t": "b"}', '{"s_a": 1}'],
    ),
    ("minProperties", {"type": "object", "additionalProperties": WHOLE, "minProperties": 1}, ['{"a": 1}'], ["{}"]),
    (
        "maxProperties",
        {"type": "object", "additionalProperties": WHOLE, "maxProperties": 1},
        ["{}", '{"a": 1}'],
        ['{"a": 1, "b": 2}'],
    ),
    ("items", {"type": "array", "items": WHOLE}, ["[]", "[1, 2]"], ['["a"]']),
    (
        "prefixItems",
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False},
        ['["a", 1]', "[]"],
        ['["a", 1, 2]', "[1]"],
    ),
    ("minItems", {"type": "array", "items": WHOLE, "minItems": 2}, ["[1, 2]"], ["[1]"]),
    ("maxItems", {"type": "array", "items": WHOLE, "maxItems": 2}, ["[1, 2]", "[]"], ["[1, 2, 3]"]),
    (
        "min max items",
        {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        ['["a"]'],
        ["[]"],
    ),
    ("minLength", {"type": "string", "minLength": 2}, ['"ab"', '"é€"'], ['"a"', '""']),
    ("maxLength", {"type": "string", "maxLength": 3}, ['"abc"', '"éé€"', '"\\n\\n\\n"'], ['"abcd"']),
    ("length range", {"type": "string", "minLength": 1, "maxLength": 2}, ['"😀"'], ['"😀😀😀"', '""']),
    ("pattern anchored", {"type": "string", "pattern": "^[a-z]{2,3}$"}, ['"ab"'], ['"a"', '"abcd"']),
    ("pattern open", {"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
    ("pattern digit class", {"type": "string", "pattern": "^\\d{3}$"}, ['"123"'], ['"12"']),
    ("pattern alternation", {"type": "string", "pattern": "^(a|b)$"}, ['"a"'], ['"c"', '"ab"']),
    ("pattern unanchored alternation", {"type": "string", "pattern": "^a|b$"}, ['"ax"', '"xb"'], ['"xa"']),
    ("pattern and length", {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ['"abc"'], ['"abcd"']),
    ("format date", {"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"']),
    ("format date-time", {"type": "string", "format": "date-time"}, ['"2024-01-02T03:04:05Z"'], ['"2024-01-02"']),
    ("format time", {"type": "string", "format": "time"}, ['"03:04:05Z"'], ['"25:00:00Z"']),
    ("format duration", {"type": "string", "format": "duration"}, ['"P1D"'], ['"1D"']),
    ("format email", {"type": "string", "format": "email"}, ['"a@b.co"'], ['"ab"']),
    ("format ipv4", {"type": "string", "format": "ipv4"}, ['"1.2.3.4"'], ['"1.2.3.444"']),
    ("format ipv6", {"type": "string", "format": "ipv6"}, ['"::1"'], ['"x"']),
    ("format uuid", {"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123"']),
    ("format hostname", {"type": "string", "format": "hostname"}, ['"a.example"'], ['"-a"']),
    ("format uri", {"type": "string", "format": "uri"}, ['"http://a.b/c"'], []),
    ("minimum", {"type": "integer", "minimum": 5}, ["5", "123"], ["4", "-7"]),
    ("maximum", {"type": "integer", "maximum": 10}, ["10", "-99"], ["11"]),
    ("integer range", {"type": "integer", "minimum": -3, "maximum": 117}, ["-3", "117", "0"], ["-4", "118"]),
    ("exclusive", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, ["1", "2"], ["0", "3"]),
    ("number range", {"type": "number", "minimum": 0.5, "maximum": 2}, ["0.5", "2", "1.25"], ["0.4", "2.1"]),
    ("number exclusive", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5"], ["0", "1", "0.0"]),
    ("multipleOf int", {"type": "integer", "multipleOf": 3}, ["0", "9", "-3"], ["4"]),
    ("multipleOf decimal", {"type": "number", "multipleOf": 0.5}, ["1.5", "2"], ["1.3"]),
    ("anyOf", {"anyOf": [TEXT, WHOLE]}, ['"a"', "1"], ["null"]),
    (
        "anyOf objects",
        {"anyOf": [closed({"a": WHOLE}), closed({"b": TEXT})]},
        ['{"a": 1}', '{"b": "x"}'],
        ['{"a": "x"}', '{"b": 1}'],
    ),
    (
        "anyOf sibling",
        {
            "type": "object",
            "properties": {"a": WHOLE},
            "required": ["a"],
            "anyOf": [{"properties": {"b": WHOLE}, "required": ["b"]}, {"properties": {"c": WHOLE}, "required": ["c"]}],
        },
        ['{"a": 1, "b": 2}'],
        ['{"a": 1}'],
    ),
    ("oneOf types", {"oneOf": [TEXT, WHOLE]}, ['"a"', "1"], ["null"]),
    (
        "oneOf tagged",
        {"oneOf": [closed({"k": {"const": "a"}, "x": WHOLE}), closed({"k": {"const": "b"}, "y": TEXT})]},
        ['{"k": "a", "x": 1}'],
        ['{"k": "b", "x": 1}'],
    ),
    (
        "allOf",
        {
            "allOf": [
                {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
                {"properties": {"b": TEXT}, "required": ["b"]},
            ]
        },
        ['{"a": 1, "b": "x"}'],
        ['{"a": 1}'],
    ),
    ("allOf ranges", {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, ["3"], ["1", "5"]),
    (
        "$ref $defs",
        {"$defs": {"p": closed({"x": WHOLE})}, **closed({"l": {"$ref": "#/$defs/p"}})},
        ['{"l": {"x": 1}}'],
        ['{"l": {}}'],
    ),
    (
        "$ref definitions",
        {"definitions": {"p": WHOLE}, "type": "array", "items": {"$ref": "#/definitions/p"}},
        ["[1]"],
        ['["a"]'],
    ),
    ("$ref sibling", {"$defs": {"p": {"type": "integer"}}, "$ref": "#/$defs/p", "minimum": 3}, ["3"], ["2"]),
    (
        "recursive list",
        {
            "$defs": {"n": closed({"v": WHOLE, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}})},
            "$ref": "#/$defs/n",
        },
        ['{"v": 1, "next": {"v": 2, "next": null}}'],
        ['{"v": 1}'],
    ),
    (
        "recursive root",
        closed({"k": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}}),
        ['{"k": [{"k": []}]}'],
        ['{"k": [1]}'],
    ),
    (
        "nested escape keys",
        closed({'a"b': WHOLE, "c\\": WHOLE, "é": WHOLE}),
        ['{"a\\"b": 1, "c\\\\": 2, "é": 3}'],
        ['{"a": 1}'],
    ),
    (
        "annotations",
        {
            "title": "t",
            "description": "d",
            "default": 1,
            "examples": [1],
            "$comment": "c",
            "deprecated": True,
            "type": "integer",
        },
        ["1"],
        ['"a"'],
    ),
    ("enum with type", {"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ("required not listed", {"type": "object", "required": ["z"]}, ['{"z": 1}'], ["{}"]),
    (
        "draft-4 exclusiveMinimum",
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "integer",
            "minimum": 3,
            "exclusiveMinimum": True,
        },
        ["4"],
        ["3"],
    ),
]

REFUSED: list[tuple[Schema, str]] = [
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, "propertyNames"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "contains"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    ({"oneOf": [{"type": "integer", "multipleOf": 2}, {"type": "integer", "multipleOf": 3}]}, "oneOf"),
    ({"type": "string", "pattern": "^(?!a)[a-z]$"}, "look-around"),
    ({"type": "string", "format": "iri"}, "iri"),
    ({"$dynamicRef": "#node"}, "$dynamicRef"),
    ({"$ref": "https://example.com/schema.json"}, "https://example.com/schema.json"),
    ({"patternProperties": {"^a": {}, "b$": {}}}, "disjoint"),
    ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
]


def compiled(schema: Schema) -> Any:
    return VOCABULARY.compile(json_schema_grammar(with_exclusive_choices(schema)))


def accepts(compiled: Any, document: str) -> bool:
    matcher = compiled.deep_copy()
    tokens = list(document.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


def walk(compiled: Any, rng: random.Random) -> str | None:
    """A document drawn from the masks, with a liking for its end; None when it grows too long."""
    matcher = compiled.deep_copy()
    document = bytearray()
    while len(document) < MAX_WALK:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        assert not matcher.is_error(), (bytes(document), matcher.get_error())
        choices = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
        if EOS in choices and (len(choices) == 1 or rng.random() < 0.5):
            return document.decode()
        text = [byte for byte in choices if byte != EOS]
        closing = [byte for byte in text if byte in b'"}]'] if rng.random() < 0.4 else []
        byte = rng.choice(closing or text)
        assert matcher.consume_token(byte)
        document.append(byte)
    return None


@pytest.mark.parametrize(("name", "schema", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_a_keyword(name: str, schema: Schema, good: list[str], bad: list[str]) -> None:
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(
        schema, format_checker=FORMATS
    )
    made = compiled(schema)
    assert [document for document in good if not accepts(made, document)] == []
    assert [document for document in bad if accepts(made, document)] == []
    rng = random.Random(name)
    walks = [walk(made, rng) for _ in range(NUM_WALKS)]
    for document in walks:
        if document is not None:
            validator.validate(json.loads(document))
    assert any(walks) or name in HARD_TO_END


@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_what_a_grammar_cannot_say_is_named(schema: Schema, words: str) -> None:
    with pytest.raises(GrammarError) as error:
        compiled(schema)
    assert words in str(error.value)
