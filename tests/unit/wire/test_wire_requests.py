"""The request structs know every parameter that OpenAI documents, with its limits; null always means default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from langport.wire import chat, completions, embeddings
from langport.wire.error import decode_body

BUNDLE = json.loads((Path(__file__).parents[2] / "conformance" / "schemas.json").read_text())

REQUESTS: list[tuple[str, type[msgspec.Struct], msgspec.json.Decoder[Any], int]] = [
    ("chat.request", chat.ChatRequest, chat.DECODER, 37),
    ("completion.request", completions.CompletionRequest, completions.DECODER, 18),
    ("embedding.request", embeddings.EmbeddingRequest, embeddings.DECODER, 5),
]


def documented(schema: dict[str, Any]) -> set[str]:
    """The property names of a schema, of those that it refers to as well."""
    if "$ref" in schema:
        return documented(BUNDLE["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    names = set(schema.get("properties", {}))
    for part in schema.get("allOf", []):
        names |= documented(part)
    return names


@pytest.mark.parametrize(("role", "struct", "decoder", "count"), REQUESTS)
def test_every_documented_parameter_is_known(role, struct, decoder, count):
    names = documented({"$ref": BUNDLE["x-roots"][role]})
    assert len(names) == count
    assert names <= {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(("role", "struct", "decoder", "count"), REQUESTS)
def test_null_is_accepted_everywhere(role, struct, decoder, count):
    names = [field.encode_name for field in msgspec.structs.fields(struct)]
    decoded = decode_body(decoder, msgspec.json.encode(dict.fromkeys(names)))
    read = [name for name in names if not isinstance(getattr(decoded, name), msgspec.Raw)]
    assert all(getattr(decoded, name) is None for name in read)


def test_limits_are_inclusive():
    body = {
        "temperature": 2,
        "top_p": 0,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "top_logprobs": 20,
        "logit_bias": {"1": 100, "2": -100},
        "stop": ["a", "b", "c", "d"],
        "top_k": -1,
    }
    request = decode_body(chat.DECODER, msgspec.json.encode(body))
    assert request.logit_bias == {1: 100, 2: -100}
    assert decode_body(chat.DECODER, b'{"seed": -9223372036854775808}').seed == -(2**63)
    assert decode_body(completions.DECODER, b'{"seed": -1000000000000000000000000000000}').seed == -(10**30)
