"""Every decoder family over HTTP says what transformers says with the same tiny random checkpoint, alone and batched.

One server serves them all. Prompts are token ids, some longer than the sliding windows and than one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from langport.text.tokenizer import Tokenizer
from langport.wire.generation import token_name
from tests.checkpoints import config_of
from tests.engine import families_a, families_b, test_fallback
from tests.engine.parity import BUDGET, MAX_TOKENS, PROMPTS, save_random, scores_of
from tests.server.process import Server, running

FROM_CHECKPOINTS = ("llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2")
FROM_FAMILIES_A = (
    *("llama-linear", "llama-dynamic", "llama-yarn", "phi3-longrope-short", "mixtral", "mixtral-window", "qwen3-moe"),
    *("gemma", "gemma2", "gemma3", "phi", "phi3", "starcoder2-window", "stablelm", "olmo2", "cohere", "granite"),
    "smollm3-window",
)
FROM_FAMILIES_B = ("gpt_bigcode", "gpt_neox", "gptj", "opt", "bloom", "falcon-7b", "falcon-rw")
THROUGH_TRANSFORMERS = ("olmo3-sliding-window", "gpt_oss-sinks")

CONFIGS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: config_of(name) for name in FROM_CHECKPOINTS},
    **{name: families_a.CONFIGS[name] for name in FROM_FAMILIES_A},
    **{name: families_b.CONFIGS[name] for name in FROM_FAMILIES_B},
    **{name: test_fallback.CONFIGS[name] for name in THROUGH_TRANSFORMERS},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every family, in a folder of the family's name."""
    path = tmp_path_factory.mktemp("families")
    for name, make_config in CONFIGS.items():
        save_random(make_config(), path / name)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    options = ("--max-num-seqs", "8", "--max-num-batched-tokens", str(BUDGET), "--num-threads", "1")
    with running(*(str(folder / name) for name in CONFIGS), *options) as server:
        yield server


@pytest.fixture(scope="module")
def ids_of_names(folder: Path) -> dict[str, int]:
    """Token ids by the names that the API gives them; the same for all families."""
    tokenizer = Tokenizer.from_directory(folder / "llama")
    names = {token_name(tokenizer.token_bytes(number)): number for number in range(tokenizer.vocab_size)}
    assert len(names) == tokenizer.vocab_size
    return names


def echoed(server: Server, model: str, prompt: list[int], max_tokens: int) -> Any:
    """Prompt and greedy answer as log-probabilities, tokens without text included."""
    fields = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "echo": True, "logprobs": 0}
    return server.post("/v1/completions", model=model, **fields)["choices"][0]["logprobs"]


def scored(server: Server, model: str, prompt: list[int]) -> Any:
    """The prompt's log-probabilities in vLLM's form."""
    fields = {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 0}
    return server.post("/v1/completions", model=model, **fields)["choices"][0]["prompt_logprobs"]


@torch.inference_mode()
def generated(model: Any, prompt: list[int]) -> list[int]:
    """transformers' own greedy answer."""
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False)
    answer: list[int] = found[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_and_logprobs_equal_transformers(
    name: str, server: Server, folder: Path, ids_of_names: dict[str, int]
) -> None:
    calls = [
        *(lambda p=prompt: ("answer", p, echoed(server, name, p, MAX_TOKENS)) for prompt in PROMPTS),
        *(lambda p=prompt: ("echo", p, echoed(server, name, p, 0)) for prompt in PROMPTS),
        *(lambda p=prompt: ("places", p, scored(server, name, p)) for prompt in PROMPTS),
    ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(len(calls)) as threads:
        together = list(threads.map(lambda call: call(), calls))
    model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
    answers = {tuple(prompt): generated(model, prompt) for prompt in PROMPTS}
    for kind, prompt, reply in (*alone, *together):
        text = prompt + (answers[tuple(prompt)] if kind == "answer" else [])
        expected = [row[token].item() for row, token in zip(scores_of(model, text), text[1:], strict=False)]
        if kind == "places":
            first, *found = [place and place[str(token)]["logprob"] for place, token in zip(reply, text, strict=True)]
        else:
            assert [ids_of_names[token] for token in reply["tokens"]] == text
            first, *found = reply["token_logprobs"]
        assert first is None
        np.testing.assert_allclose(found, expected, atol=1e-3)
