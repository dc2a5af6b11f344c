"""`prompt_logprobs` in vLLM's form: on every choice of completions, on the answer of chat."""

from __future__ import annotations

from typing import Any

import pytest

from langport.errors import ApiError
from langport.testing import TURN


async def test_each_place_names_its_own_token_and_the_likeliest(serve, says):
    fake = serve(says("x"))
    reply = (await fake.complete(prompt=[97, 98, 195], prompt_logprobs=2, max_tokens=4)).json
    first, *places = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    assert fake.engine.requests[0].sampling.ranks_prompt
    for token_id, place in zip((98, 195), places, strict=True):
        own = place[str(token_id)]
        others = [entry for key, entry in place.items() if key != str(token_id)]
        assert next(iter(place)) == str(token_id)
        assert {entry["rank"] for entry in place.values()} == {own["rank"], 1, 2}
        assert all((entry["logprob"] > own["logprob"]) == (entry["rank"] < own["rank"]) for entry in others)
    assert places[0]["98"]["decoded_token"] == "b"
    assert places[1]["195"]["decoded_token"] == "bytes:\\xc3"
    assert reply["choices"][0]["logprobs"] is None


async def test_zero_gives_the_prompt_alone_and_no_tokens_score_it_only(serve):
    fake = serve()
    reply = (await fake.complete(prompt=["ab", "cde"], prompt_logprobs=0, max_tokens=0, n=2)).json
    assert [choice["text"] for choice in reply["choices"]] == [""] * 4
    assert [len(choice["prompt_logprobs"]) for choice in reply["choices"]] == [2, 2, 3, 3]
    assert [len(place) for place in reply["choices"][2]["prompt_logprobs"][1:]] == [1, 1]
    assert [request.n for request in fake.engine.requests] == [1, 1]


async def test_echo_has_its_own_number_of_alternatives(serve, says):
    fake = serve(says("x"))
    fields: dict[str, Any] = {"prompt": "abc", "echo": True, "max_tokens": 1}
    choice = (await fake.complete(logprobs=3, prompt_logprobs=1, **fields)).json["choices"][0]
    assert all(3 <= len(top) <= 4 for top in choice["logprobs"]["top_logprobs"][1:3])
    assert all(len(place) <= 2 for place in choice["prompt_logprobs"][1:])
    choice = (await fake.complete(prompt_logprobs=1, **fields)).json["choices"][0]
    assert choice["text"] == "abcx"
    assert choice["logprobs"] is None
    plain = (await fake.complete(logprobs=3, **fields)).json["choices"][0]
    assert "prompt_logprobs" not in plain
    assert not fake.engine.requests[-1].sampling.ranks_prompt


async def test_chat_has_them_beside_its_choices(serve, says):
    fake = serve(says("x"))
    reply = (await fake.chat(prompt_logprobs=1, n=2)).json
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    second = str(fake.engine.requests[0].prompt_token_ids[1])
    assert reply["prompt_logprobs"][1][second]["decoded_token"] == "u"
    assert fake.engine.requests[0].prompt_token_ids[0] == TURN
    assert "prompt_logprobs" not in reply["choices"][0]


async def test_an_encoder_decoder_refuses_them(serve):
    with pytest.raises(ApiError) as error:
        await serve(kind="encoder-decoder").complete(prompt_logprobs=1)
    assert (error.value.status, error.value.param) == (400, "prompt_logprobs")


async def test_with_an_echo_the_tokens_without_text_are_listed_too(serve, says):
    fake = serve(says("x<y"))
    fields: dict[str, Any] = {"prompt": [256, 97], "logprobs": 0, "max_tokens": 9}
    echoed = (await fake.complete(echo=True, **fields)).json["choices"][0]
    assert echoed["text"] == "ax<y"
    assert echoed["logprobs"]["tokens"] == ["<s>", "a", "x", "<", "y", "<|im_end|>"]
    assert echoed["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert (await fake.complete(**fields)).json["choices"][0]["logprobs"]["tokens"] == ["x", "<", "y"]
    special = serve(lambda request, index: [120, TURN, 121])
    echoed = (await special.complete(echo=True, **{**fields, "max_tokens": 3})).json["choices"][0]
    assert echoed["text"] == "axy"
    assert echoed["logprobs"]["tokens"][2:] == ["x", "<|im_start|>", "y"]
