"""Over HTTP, the bundled models say what transformers says with the same folders: alone and eight at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from langport.settings.tree import BUNDLED_MODELS_PATH
from tests.engine.inprocess import Reference, mean_pooled
from tests.server.process import Server
from tests.server.test_answers import vectors_of
from tests.server.test_models import CHAT, EMBED, TEXT2TEXT

FAMILIES = {CHAT: "llama", TEXT2TEXT: "t5"}
PROMPTS = {
    CHAT: (
        *("The numbers in order are one, two, three,", "Once upon a time", "def add(a, b):", "Red, green,"),
        *("日本語のテキスト 🦊", "x", "The capital of France is", "zebra 7 quartz, " * 40),
    ),
    TEXT2TEXT: (
        *("say 4207", "say 1,250,000", "say 2024-03-17", "-42"),
        *("say 0", "999999999", "something else", "1905-01-31"),
    ),
}
SENTENCES = (
    *("Hi there!", "The cat sat on the mat.", "naïvely", "日本語", "Will it rain tomorrow?", "a", "!?"),
    "She sings in a choir. " * 12,
)
NUM_TOKENS = 16


@cache
def reference(model: str) -> Reference:
    return Reference(FAMILIES[model], BUNDLED_MODELS_PATH / model)


@cache
def tokenizer(model: str) -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED_MODELS_PATH / model)


def expected(model: str, prompt: str) -> tuple[str, list[float]]:
    """The greedy text and the log-probabilities of its visible tokens."""
    special = set(tokenizer(model).all_special_ids)
    tokens, logprobs = reference(model).greedy(tokenizer(model)(prompt).input_ids, NUM_TOKENS)
    text = tokenizer(model).decode(tokens, skip_special_tokens=True)
    return text, [logprob for token, logprob in zip(tokens, logprobs, strict=True) if token not in special]


def complete(server: Server, model: str, prompt: str) -> Any:
    fields = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": NUM_TOKENS, "logprobs": 1}
    return server.post("/v1/completions", **fields)["choices"][0]


@pytest.mark.parametrize("model", FAMILIES)
def test_greedy_text_and_logprobs(demo_server: Server, model: str) -> None:
    prompts = PROMPTS[model]
    alone = [complete(demo_server, model, prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as threads:
        together = list(threads.map(lambda prompt: complete(demo_server, model, prompt), prompts))

    for prompt, *choices in zip(prompts, alone, together, strict=True):
        text, logprobs = expected(model, prompt)
        for choice in choices:
            assert choice["text"].lstrip(" ") == text.lstrip(" ")
            np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], logprobs, atol=1e-3)


def test_log_probabilities_of_the_prompt(demo_server: Server) -> None:
    for prompt in PROMPTS[CHAT]:
        fields = {"model": CHAT, "prompt": prompt, "max_tokens": 0, "logprobs": 0, "echo": True}
        choice = demo_server.post("/v1/completions", **fields)["choices"][0]
        assert choice["text"] == prompt
        ids = tokenizer(CHAT)(prompt).input_ids
        first, *others = choice["logprobs"]["token_logprobs"]
        assert first is None
        np.testing.assert_allclose(others, reference(CHAT).prompt_logprobs(ids), atol=1e-3)


def test_greedy_chat_goes_through_the_same_template(demo_server: Server) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 3 + 4?"},
    ]
    text = tokenizer(CHAT).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(CHAT).encode(text, add_special_tokens=False)
    tokens, _ = reference(CHAT).greedy(ids, NUM_TOKENS)

    answer = demo_server.post(
        "/v1/chat/completions", model=CHAT, messages=messages, temperature=0, max_tokens=NUM_TOKENS
    )

    assert answer["choices"][0]["message"]["content"] == tokenizer(CHAT).decode(tokens, skip_special_tokens=True)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["usage"]["completion_tokens"] == len(tokens)


def test_mean_pooled_vectors(demo_server: Server) -> None:
    batch = vectors_of(demo_server, input=list(SENTENCES))
    with ThreadPoolExecutor(len(SENTENCES)) as threads:
        single = list(threads.map(lambda text: vectors_of(demo_server, input=text)[0], SENTENCES))

    for text, *vectors in zip(SENTENCES, batch, single, strict=True):
        wanted = mean_pooled(BUNDLED_MODELS_PATH / EMBED, tokenizer(EMBED)(text).input_ids)
        for vector in vectors:
            cosine = vector @ wanted / np.linalg.norm(vector) / np.linalg.norm(wanted)
            assert cosine > 0.9999
