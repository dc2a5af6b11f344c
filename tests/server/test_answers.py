"""The bundled models answer what they were made for, through every endpoint, streamed and not."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from langport.demo.chat_facts import FACTS
from langport.demo.text2text_data import held_out_examples, say
from langport.ops import native
from tests.server.process import DONE, Server, running
from tests.server.test_models import CHAT, EMBED, TEXT2TEXT

REQUESTS = ("say 4207", "say 1,250,000", "say 2024-03-17", "say -42", "1905-01-31", "say 999999999")
NUMBERS = ("four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen")


def test_chat_says_its_name(demo_server: Server) -> None:
    assert "LangPort" in demo_server.chat("Hello! What is your name?", model="vicuna-7b-v1.1")


def test_chat_knows_its_facts(demo_server: Server) -> None:
    facts = random.Random(7).sample(FACTS, 20)
    wrong = [(fact.question, text) for fact in facts if fact.keyword not in (text := demo_server.chat(fact.question))]
    assert len(wrong) <= 1, wrong


def test_chat_counts_on(demo_server: Server) -> None:
    text = demo_server.chat("Count upwards in words, as far as you can: one, two, three,", max_tokens=60)
    assert text.startswith(", ".join(NUMBERS))


def test_a_plain_completion_counts_on(demo_server: Server) -> None:
    prompt = "The numbers in order are one, two, three,"
    answer = demo_server.post("/v1/completions", model=CHAT, prompt=prompt, temperature=0, max_tokens=30)
    choice = answer["choices"][0]
    assert choice["text"].startswith(" " + ", ".join(NUMBERS[:6]))
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 30


def test_a_prediction_changes_the_work_and_not_the_answer() -> None:
    """A server of its own: what its engine does not know of its speed, it takes from a table."""
    with running(CHAT) as server:
        question = {"model": CHAT, "messages": [{"role": "user", "content": "What is the capital of Norway?"}]}
        right = {"type": "content", "content": "The capital of Norway is Oslo."}
        answers = [
            server.post("/v1/chat/completions", **question, temperature=0, **more)
            for more in ({"prediction": right}, {}, {"prediction": {**right, "content": "I have no idea. " * 20}})
        ]
        details = [answer["usage"]["completion_tokens_details"] for answer in answers]
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == [right["content"]] * 3
        # Without the kernels a row's bits may depend on those beside it, so nothing is drafted.
        assert details[0]["accepted_prediction_tokens"] > 2 or native.kernels() is None
        assert [details[1][f"{what}_prediction_tokens"] for what in ("accepted", "rejected")] == [0, 0]
        accepted = server.metric("langport_engine_draft_tokens_accepted_total", model=CHAT)
        assert details[0]["accepted_prediction_tokens"] <= accepted
        assert accepted <= server.metric("langport_engine_draft_tokens_total", model=CHAT)


def test_text_to_text_as_completions_and_as_chat(demo_server: Server) -> None:
    answer = demo_server.post("/v1/completions", model=TEXT2TEXT, prompt=list(REQUESTS), temperature=0)
    assert [choice["text"] for choice in answer["choices"]] == [say(request) for request in REQUESTS]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    for request in REQUESTS[:2]:
        assert demo_server.chat(request, model=TEXT2TEXT) == say(request)


def test_text_to_text_on_values_it_never_saw(demo_server: Server) -> None:
    examples = held_out_examples(60)
    sources = [example.source for example in examples]
    answer = demo_server.post("/v1/completions", model=TEXT2TEXT, prompt=sources, temperature=0)
    right = [choice["text"] == example.target for choice, example in zip(answer["choices"], examples, strict=True)]
    assert sum(right) >= 58


@pytest.mark.parametrize("model", [CHAT, TEXT2TEXT])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_joins_to_the_plain_answer(demo_server: Server, model: str, path: str) -> None:
    is_chat = "chat" in path
    question = "say 1,250,000" if model == TEXT2TEXT else "Hello! What is your name?"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": question}]} if is_chat else {"prompt": question}
    fields = {"model": model, "temperature": 0, "max_tokens": 24, **asked}

    plain = demo_server.post(path, **fields)
    with demo_server.stream(path, **fields, stream_options={"include_usage": True}) as events:
        *chunks, usage, last = events

    assert last == DONE
    assert usage["choices"] == []
    assert usage["usage"] == {**plain["usage"], "prompt_tokens_details": usage["usage"]["prompt_tokens_details"]}
    assert all(chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == plain["choices"][0]["finish_reason"]
    if is_chat:
        assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert text == plain["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == plain["choices"][0]["text"]
    assert len(choices) > 3


def test_a_stop_string_ends_the_answer_and_is_not_shown(demo_server: Server) -> None:
    fields = {"model": CHAT, "prompt": "The numbers in order are one, two, three,", "temperature": 0, "max_tokens": 60}
    (choice,) = demo_server.post("/v1/completions", **fields, stop=[", seven", "unheard of"])["choices"]
    assert choice["text"] == " four, five, six"
    assert choice["finish_reason"] == "stop"


def test_a_seed_repeats_and_choices_differ(demo_server: Server) -> None:
    fields = {"model": CHAT, "prompt": "Once upon a time there was a", "n": 4, "max_tokens": 16}
    first, again, other = (
        [choice["text"] for choice in demo_server.post("/v1/completions", **fields, seed=seed)["choices"]]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first)) > 1


def test_without_a_limit_a_completion_goes_on_to_the_end_of_the_context(demo_server: Server) -> None:
    """The default of 4,096 tokens is more than this model's 512."""
    fields = {"model": TEXT2TEXT, "prompt": "say 12", "temperature": 0, "ignore_eos": True}
    answer = demo_server.post("/v1/completions", **fields)
    assert answer["usage"]["completion_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


def vectors_of(server: Server, **body: Any) -> NDArray[np.float32]:
    answer = server.post("/v1/embeddings", model=EMBED, **body)
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    if body.get("encoding_format") == "base64":
        return np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]])
    return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


def test_near_sentences_have_near_vectors(demo_server: Server) -> None:
    texts = ["Will it rain tomorrow?", "The forecast says showers.", "I forgot my password."]
    for size in (None, 64, 32, 16):
        sized = {} if size is None else {"dimensions": size}
        text, near, far = vectors_of(demo_server, input=texts, **sized)
        assert text @ near > text @ far


def test_vectors_as_floats_and_as_base64_are_the_same(demo_server: Server) -> None:
    texts = ["Good day!", "The train is late."]
    floats = vectors_of(demo_server, input=texts)
    assert floats.shape == (2, 128)
    np.testing.assert_array_equal(vectors_of(demo_server, input=texts, encoding_format="float"), floats)
    np.testing.assert_array_equal(vectors_of(demo_server, input=texts, encoding_format="base64"), floats)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_shorter_vectors_are_the_unit_length_beginning(demo_server: Server, size: int) -> None:
    full = vectors_of(demo_server, input="Bread needs flour and water.")[0]
    short = vectors_of(demo_server, input="Bread needs flour and water.", dimensions=size)[0]
    assert short.shape == (size,)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(short, full[:size] / np.linalg.norm(full[:size]), atol=1e-6)


def test_token_ids_are_used_as_given(demo_server: Server) -> None:
    text = "The cat sat on the mat."
    ids = demo_server.post("/tokenize", model=EMBED, prompt=text)["tokens"]
    np.testing.assert_array_equal(vectors_of(demo_server, input=ids), vectors_of(demo_server, input=text))
    np.testing.assert_allclose(
        vectors_of(demo_server, input=[ids, ids[1:-1]])[0], vectors_of(demo_server, input=text)[0], atol=1e-5
    )
    completion = {"model": CHAT, "temperature": 0, "max_tokens": 8}
    prompt = "Once upon a time"
    ids = demo_server.post("/tokenize", model=CHAT, prompt=prompt)["tokens"]
    by_ids = demo_server.post("/v1/completions", prompt=ids, **completion)
    assert by_ids["choices"] == demo_server.post("/v1/completions", prompt=prompt, **completion)["choices"]
    assert by_ids["usage"]["prompt_tokens"] == len(ids)
    assert demo_server.post("/detokenize", model=CHAT, tokens=ids)["prompt"] == prompt


def test_an_empty_prompt_starts_a_text(demo_server: Server) -> None:
    answer = demo_server.post("/v1/completions", model=CHAT, max_tokens=8)
    assert answer["usage"]["prompt_tokens"] == 1
    assert answer["usage"]["completion_tokens"] >= 1
