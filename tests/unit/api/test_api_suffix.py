"""Completions with a suffix: the gap reaches the model as tokens, the answer is what fills it."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers

from langport.errors import ContextLengthExceeded, InvalidRequest
from langport.testing import EOS, byte_tokenizer
from langport.text.tokenizer import Tokenizer

PRE, SUF, MID, PAD = 259, 260, 261, 262
TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")


def code_tokenizer() -> Tokenizer:
    """Qwen's way: its markers are added tokens, and not special."""
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in TOKENS])
    return Tokenizer(tokenizer.backend, tokenizer.named_tokens, {})


@pytest.fixture
def coder(serve, says):
    """A fake model that fills gaps with these texts."""

    def make(*texts: str, **options: Any) -> Any:
        return serve(says(*(texts or ("MM",))), tokenizer=code_tokenizer(), **options)

    return make


def prompts(fake: Any) -> list[list[int]]:
    return [request.prompt_token_ids for request in fake.engine.requests]


async def test_the_gap_is_filled(coder):
    fake = coder("a, b")
    reply = await fake.complete(prompt="def f(", suffix="): pass", max_tokens=20)
    assert reply.json["choices"][0]["text"] == "a, b"
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    assert prompts(fake) == [[PRE, *b"def f(", SUF, *b"): pass", MID]]
    assert reply.json["usage"]["prompt_tokens"] == len(prompts(fake)[0])
    assert set(fake.engine.requests[0].sampling.stop_token_ids) == {PRE, SUF, MID, PAD}


@pytest.mark.parametrize("end", [PAD, PRE, EOS])
async def test_it_ends_at_a_marker(serve, end):
    fake = serve(lambda request, index: [*b"ab", end, *b"cd"], tokenizer=code_tokenizer())
    choice = (await fake.complete(suffix="x", max_tokens=20)).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")


async def test_ignore_eos_goes_on_after_markers(serve):
    fake = serve(lambda request, index: [*b"ab", PAD, *b"cd"], tokenizer=code_tokenizer())
    await fake.complete(suffix="x", max_tokens=5, ignore_eos=True, stop_token_ids=[98])
    assert fake.engine.requests[0].sampling.stop_token_ids == (98,)


async def test_text_that_spells_a_token_does_not_become_one(coder):
    fake = coder()
    await fake.complete(prompt="a<|fim_suffix|>b<|im_end|>", suffix="<|fim_middle|><s>")
    (prompt,) = prompts(fake)
    assert [token for token in prompt if token > 255] == [PRE, SUF, MID]
    assert bytes(token for token in prompt if token < 256) == b"a<|fim_suffix|>b<|im_end|><|fim_middle|><s>"


async def test_several_prompts_and_choices(coder):
    fake = coder("x", "yy")
    reply = await fake.complete(prompt=["A", ""], suffix="S", n=2)
    assert [choice["text"] for choice in reply.json["choices"]] == ["x", "yy", "x", "yy"]
    assert prompts(fake) == [[PRE, *b"A", SUF, *b"S", MID], [PRE, SUF, *b"S", MID]]
    assert (await fake.client.post("/v1/completions", {"suffix": "S"})).json["choices"][0]["text"] == "x"


async def test_token_ids_are_used_as_given(coder):
    fake = coder("x")
    reply = await fake.complete(prompt=[65, EOS, 66], suffix="S", echo=True)
    assert prompts(fake) == [[PRE, 65, EOS, 66, SUF, *b"S", MID]]
    assert reply.json["choices"][0]["text"] == "ABx"
    with pytest.raises(InvalidRequest, match="999"):
        await fake.complete(prompt=[999], suffix="S")


async def test_echo_repeats_the_prompt_alone_and_scores_its_tokens(coder):
    fake = coder("MM")
    choice = (await fake.complete(prompt="PPP", suffix="SS", echo=True, logprobs=1, max_tokens=9)).json["choices"][0]
    assert choice["text"] == "PPPMM"
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"][:5]) == "PPPMM"
    assert logprobs["text_offset"][:5] == [0, 1, 2, 3, 4]
    assert None not in logprobs["token_logprobs"]  # a marker stands before the first
    plain = (await fake.complete(prompt="PPP", suffix="SS", logprobs=1, max_tokens=9)).json["choices"][0]["logprobs"]
    assert "".join(plain["tokens"]) == "MM"
    scored = (await fake.complete(prompt="PPP", suffix="SS", echo=True, logprobs=0, max_tokens=0)).json["choices"][0]
    assert (scored["text"], scored["logprobs"]["tokens"]) == ("PPP", ["P"] * 3)


async def test_a_stream_is_the_same(coder):
    fake = coder("a, b")
    fields = {"prompt": "def f(", "suffix": ")", "echo": True, "logprobs": 0}
    whole = (await fake.complete(**fields)).json["choices"][0]
    chunks = [event for event in (await fake.complete(**fields, stream=True)).events if event != "[DONE]"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"] == "def f(a, b"
    tokens = [token for chunk in chunks if (found := chunk["choices"][0]["logprobs"]) for token in found["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


async def test_an_empty_suffix_is_none(coder):
    fake = coder()
    await fake.complete(prompt="abc", suffix="")
    assert prompts(fake) == [[*b"abc"]]


async def test_models_that_cannot_say_why(serve, coder):
    for fake in (serve(), coder(kind="encoder-decoder")):
        with pytest.raises(InvalidRequest, match="no tokens that mark one") as error:
            await fake.complete(suffix="x")
        assert error.value.param == "suffix"
        assert not fake.engine.requests


async def test_what_does_not_fit(coder):
    with pytest.raises(ContextLengthExceeded):
        await coder().complete(prompt="x", suffix="y" * 600)
    with pytest.raises(InvalidRequest) as error:
        await coder().complete(suffix="x", truncate_prompt_tokens=5)
    assert error.value.param == "truncate_prompt_tokens"
