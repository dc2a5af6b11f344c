"""The OpenAPI document agrees with what is served and with what is decoded."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest

from langport.config import GatewaySettings
from langport.gateway.app import UPSTREAM_PATHS, Gateway
from langport.openapi import _MEANINGS, openapi_document
from langport.wire import chat, completions, embeddings, tokens

DECODERS = {
    "/v1/chat/completions": chat.DECODER,
    "/v1/completions": completions.DECODER,
    "/v1/embeddings": embeddings.DECODER,
    "/tokenize": tokens.TOKENIZE_DECODER,
    "/detokenize": tokens.DETOKENIZE_DECODER,
}


@pytest.fixture(scope="module")
def document():
    return openapi_document()


def request_body(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]


def validator(document, path):
    return jsonschema.Draft202012Validator({**request_body(document, path)["schema"], **document})


def test_it_is_json_of_version_3_1(document):
    assert json.loads(msgspec.json.encode(document))["openapi"] == "3.1.0"


def test_every_path_for_upstreams_is_there(document):
    assert {path for path, item in document["paths"].items() if "post" in item} == set(UPSTREAM_PATHS)
    assert set(DECODERS) == set(UPSTREAM_PATHS)


async def test_every_get_is_served(document):
    gateway = Gateway([], GatewaySettings())
    for path, item in document["paths"].items():
        if "get" in item and "{" not in path:
            sent = []

            async def send(message, sent=sent):
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
            await gateway(scope, None, send)
            assert sent[0]["status"] == 200, path


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]
    found = json.dumps(document).split('"#/components/schemas/')[1:]
    assert found
    assert {name.partition('"')[0] for name in found} <= set(schemas)


def test_every_schema_is_valid(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", UPSTREAM_PATHS)
def test_examples_pass_the_schema_and_the_decoder(document, path):
    example = request_body(document, path)["example"]
    validator(document, path).validate(example)
    assert DECODERS[path].decode(msgspec.json.encode(example)).model == example["model"]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/v1/chat/completions", {"temperature": 3}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": {"a": 1}}),
        ("/v1/completions", {"n": 0}),
        ("/v1/embeddings", {"input": 5}),
        ("/v1/embeddings", {"dimensions": 0}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_wrong_values_do_not(document, path, wrong):
    example = request_body(document, path)["example"]
    assert not validator(document, path).is_valid({**example, **wrong})


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_shape_of_text_input(document, prompt):
    assert validator(document, "/v1/completions").is_valid({"model": "m", "prompt": prompt})
    assert validator(document, "/v1/embeddings").is_valid({"model": "m", "input": prompt})


def test_no_meaning_is_left_of_a_field_that_is_gone(document):
    fields = {name for path in UPSTREAM_PATHS for name in properties(document, path)}
    assert set(_MEANINGS) <= fields


def properties(document, path):
    name = request_body(document, path)["schema"]["$ref"].rpartition("/")[2]
    return document["components"]["schemas"][name]["properties"]
