"""Embeddings and the tokenizer's endpoints over the fake engine."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from langport.errors import ApiError, ContextLengthExceeded, EngineFailed
from langport.testing import BOS


async def test_vectors_come_in_order_and_every_token_counts(serve):
    fake = serve(kind="encoder")
    answer = (await fake.embed(input=["ab", "c"])).json
    assert answer["object"] == "list"
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert all(len(entry["embedding"]) == 8 for entry in answer["data"])
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    alone = (await fake.embed(input="c")).json["data"][0]["embedding"]
    assert answer["data"][1]["embedding"] == alone


@pytest.mark.parametrize(
    ("given", "expected"),
    [("ab", [[97, 98]]), (["a", "b"], [[97], [98]]), ([97, 98], [[97, 98]]), ([[97], [BOS, 98]], [[97], [BOS, 98]])],
)
async def test_the_four_shapes_of_input(serve, given, expected):
    fake = serve(kind="encoder")
    await fake.embed(input=given)
    assert fake.engine.embed_requests[0].inputs == expected


async def test_base64_is_the_same_vector(serve):
    fake = serve(kind="encoder")
    floats = (await fake.embed(input="ab")).json["data"][0]["embedding"]
    coded = (await fake.embed(input="ab", encoding_format="base64")).json["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == np.array(floats, "<f4").tolist()


async def test_dimensions_give_the_unit_length_beginning(serve):
    fake = serve(kind="encoder")
    full = np.array((await fake.embed(input="ab")).json["data"][0]["embedding"])
    short = np.array((await fake.embed(input="ab", dimensions=4)).json["data"][0]["embedding"])
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
    assert short == pytest.approx(full[:4] / np.linalg.norm(full[:4]), abs=1e-6)
    assert (await fake.embed(input="ab", dimensions=8)).json["data"][0]["embedding"] == full.tolist()


async def test_an_embedder_without_such_training_refuses_dimensions(serve):
    fake = serve(kind="encoder", is_matryoshka=False)
    assert (await fake.embed(input="ab", dimensions=8)).status == 200
    with pytest.raises(ApiError) as error:
        await fake.embed(input="ab", dimensions=4)
    assert (error.value.status, error.value.param) == (400, "dimensions")


async def test_a_failing_engine_fails_the_request(serve):
    with pytest.raises(EngineFailed):
        await serve(kind="encoder", error=EngineFailed("broken")).embed(input="a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": 5}, "input"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [259]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields: dict[str, Any], param: str):
    fake = serve(kind="encoder")
    with pytest.raises(ApiError) as error:
        await fake.embed(**fields)
    assert (error.value.status, error.value.param) == (400, param)


async def test_an_input_may_fill_the_context(serve):
    fake = serve(kind="encoder")
    assert (await fake.embed(input="a" * 600)).status == 200
    with pytest.raises(ContextLengthExceeded) as error:
        await fake.embed(input=["a", "a" * 601])
    assert error.value.param == "input"


async def test_a_generator_does_not_embed(serve):
    with pytest.raises(ApiError, match="chat completions") as error:
        await serve().embed(input="a")
    assert error.value.param == "model"
