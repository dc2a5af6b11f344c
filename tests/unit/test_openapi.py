"""The OpenAPI document agrees with what is served and with what is decoded."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from langport.api.stored import StoredApi
from langport.api.stored_endpoints import ENDPOINTS
from langport.errors import Unavailable
from langport.gateway.app import ADAPTER_PATHS, UPSTREAM_PATHS, Gateway
from langport.gateway.key_admin import ROUTES as KEY_ROUTES
from langport.gateway.model_admin import ROUTES as MODEL_ROUTES
from langport.gateway.service import Endpoint, Service
from langport.openapi import _MEANINGS, openapi_document
from langport.settings.tree import GatewaySettings, StoreSettings
from langport.wire import (
    adapters,
    anthropic,
    batches,
    chat,
    classify,
    completions,
    decisions,
    embeddings,
    keys,
    responses,
    scores,
    tokens,
)
from langport.wire.anthropic import ANTHROPIC
from langport.wire.dialect import OPENAI
from langport.wire.stored import UPDATE_DECODER

DECODERS = {
    "/v1/chat/completions": chat.DECODER,
    "/v1/completions": completions.DECODER,
    "/v1/embeddings": embeddings.DECODER,
    "/v1/responses": responses.DECODER,
    "/v1/responses/input_tokens": responses.INPUT_TOKENS_DECODER,
    "/v1/decisions": decisions.DECODER,
    "/v1/rerank": scores.RERANK_DECODER,
    "/v1/score": scores.SCORE_DECODER,
    "/v1/classify": classify.DECODER,
    "/v1/messages": anthropic.DECODER,
    "/v1/messages/count_tokens": anthropic.COUNT_DECODER,
    "/tokenize": tokens.TOKENIZE_DECODER,
    "/detokenize": tokens.DETOKENIZE_DECODER,
    "/v1/load_lora_adapter": adapters.LOAD_DECODER,
    "/v1/unload_lora_adapter": adapters.UNLOAD_DECODER,
}
ADMIN_ROUTES = (*KEY_ROUTES, *MODEL_ROUTES, ("POST", "/admin/reload"))
POST_PATHS = (*UPSTREAM_PATHS, *ADAPTER_PATHS)


@pytest.fixture(scope="module")
def document():
    return openapi_document()


def request_body(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]


def validator(document, path):
    return jsonschema.Draft202012Validator({**request_body(document, path)["schema"], **document})


def test_it_is_json_of_version_3_1(document):
    assert json.loads(msgspec.json.encode(document))["openapi"] == "3.1.0"


def test_every_path_to_post_to_is_there(document):
    stored = {path for method, path in ENDPOINTS if method == "POST"}
    admin = {path for method, path in ADMIN_ROUTES if method == "POST"}
    assert {path for path, item in document["paths"].items() if "post" in item} == set(POST_PATHS) | stored | admin
    assert set(DECODERS) == set(POST_PATHS)


def test_every_endpoint_of_the_store_is_there(document):
    served = {(method.lower(), path) for method, path in ENDPOINTS}
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert served <= described
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_every_route_of_the_admin_api_is_there_and_needs_a_key(document):
    described = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if path.startswith("/admin/")
    }
    assert described.keys() == set(ADMIN_ROUTES)
    assert all({} not in operation["security"] for operation in described.values())


@pytest.mark.parametrize(
    ("path", "decoder"),
    [
        ("/admin/keys", keys.CREATE_DECODER),
        ("/admin/keys/{key_id}", keys.CHANGE_DECODER),
        ("/admin/keys/{key_id}/rotate", keys.ROTATE_DECODER),
    ],
)
def test_examples_for_the_admin_api(document, path, decoder):
    example = request_body(document, path)["example"]
    validator(document, path).validate(example)
    decoder.decode(msgspec.json.encode(example))


async def test_every_get_is_served(document):
    stored = StoredApi(StoreSettings(place="memory"), Path("/nowhere"), max_line_bytes=1)
    service = Service(stored, [Endpoint(*endpoint) for endpoint in ENDPOINTS], {})
    gateway = Gateway([], GatewaySettings(), service=service)
    for path, item in document["paths"].items():
        if "get" in item and "{" not in path and not path.startswith("/admin/"):
            sent = []

            async def send(message, sent=sent):
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
            await gateway(scope, receive, send)
            assert sent[0]["status"] == 200, path
    await stored.close()


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    ("path", "decoder"),
    [("/v1/chat/completions/{completion_id}", UPDATE_DECODER), ("/v1/batches", batches.DECODER)],
)
def test_examples_for_the_store(document, path, decoder):
    example = request_body(document, path)["example"]
    validator(document, path).validate(example)
    decoder.decode(msgspec.json.encode(example))


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]
    found = json.dumps(document).split('"#/components/schemas/')[1:]
    assert found
    assert {name.partition('"')[0] for name in found} <= set(schemas)


def test_errors_are_described_in_the_form_that_they_have(document):
    error = Unavailable("Down.")
    bodies = {"Error": OPENAI.error_body(error, "r"), "AnthropicError": ANTHROPIC.error_body(error, "r")}
    for name, body in bodies.items():
        schema = {**document["components"]["schemas"][name], "additionalProperties": False}
        jsonschema.validate(json.loads(body), schema)
    response = document["paths"]["/v1/messages"]["post"]["responses"]["default"]
    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/AnthropicError")


def test_every_schema_is_valid(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", POST_PATHS)
def test_examples_pass_the_schema_and_the_decoder(document, path):
    example = request_body(document, path)["example"]
    validator(document, path).validate(example)
    decoded = DECODERS[path].decode(msgspec.json.encode(example))
    name = "model" if path in UPSTREAM_PATHS else "lora_name"
    assert getattr(decoded, name) == example[name]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/v1/chat/completions", {"temperature": 3}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": {"a": 1}}),
        ("/v1/completions", {"n": 0}),
        ("/v1/embeddings", {"input": 5}),
        ("/v1/embeddings", {"dimensions": 0}),
        ("/v1/responses", {"input": 5}),
        ("/v1/responses", {"max_output_tokens": 15}),
        ("/v1/decisions", {"questions": []}),
        ("/v1/rerank", {"documents": 5}),
        ("/v1/rerank", {"top_n": -1}),
        ("/v1/score", {"text_1": [5]}),
        ("/v1/classify", {"truncate_prompt_tokens": -2}),
        ("/v1/messages", {"max_tokens": 0}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "wizard", "content": "x"}]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/v1/load_lora_adapter", {"lora_name": ""}),
        ("/v1/unload_lora_adapter", {"lora_name": 5}),
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
    fields = {name for path in POST_PATHS for name in properties(document, path)}
    assert set(_MEANINGS) <= fields


def properties(document, path):
    name = request_body(document, path)["schema"]["$ref"].rpartition("/")[2]
    return document["components"]["schemas"][name]["properties"]
