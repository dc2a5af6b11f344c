"""Milliseconds that drawing the next tokens takes, without a model, by what the batch asks for.

    python benchmarks/sampler.py                      # batches of 1, 32 and 256, 150,000 tokens of vocabulary
    python benchmarks/sampler.py --only top_p --batch 32 --dtype bfloat16

Every case is timed in turns with the others, and the median is given; on a CPU with the native kernels each is drawn by
them and by torch's operators. `argmax` is the floor: what finding each row's largest logit costs torch on this machine,
so that a plain greedy batch shows what the features cost that nobody uses. `one in 32` has the feature in every 32nd
sequence and the others greedy.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from langport.engine.rules import GenerationRules
from langport.engine.sampler import Sampler
from langport.engine.sequence import Sequence
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams

PROMPT_TOKENS = 500
OUTPUT_TOKENS = 100
EOS = 2

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_p 0.9, flat": {"temperature": 100.0, "top_p": 0.9},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "typical_p 0.9": {"temperature": 0.8, "typical_p": 0.9},
    "top_p, top_k, min_p": {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.05},
    "presence, frequency": {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.2},
    "logit_bias of 100": {"temperature": 0.0, "logit_bias": {7 * i: 1.0 for i in range(100)}},
    "bad_words": {"temperature": 0.0, "bad_words": tuple((5, i) for i in range(20))},
    "allowed_token_ids": {"temperature": 0.0, "allowed_token_ids": tuple(range(100))},
    "min_tokens": {"temperature": 0.0, "min_tokens": 1000},
    "logprobs 0": {"temperature": 0.0, "logprobs": 0},
    "logprobs 20": {"temperature": 0.0, "logprobs": 20},
    "beam of 4": {"temperature": 0.0, "logprobs": 8, "is_beam": True},
}


def sequences(batch: int, share: int, sampling: dict[str, Any]) -> list[Sequence]:
    """Sequences in the middle of their answers; every `share`-th asks for `sampling`, the others are greedy."""
    draw = random.Random(0)
    found = []
    for number in range(batch):
        asked = sampling if number % share == 0 else CASES["greedy"]
        request = GenerateRequest(str(number), [1], SamplingParams(max_tokens=2000, **asked))
        prompt = [draw.randrange(3, 100_000) for _ in range(PROMPT_TOKENS)]
        sequence = Sequence(request, 0, number, tokens=prompt)
        for _ in range(OUTPUT_TOKENS):
            sequence.append(draw.randrange(3, 100_000))
        found.append(sequence)
    return found


def measure(run: Callable[[torch.Tensor], Any], logits: torch.Tensor, seconds: float) -> list[float]:
    """Durations in milliseconds; every run has logits of its own, since they may be changed in place."""
    durations: list[float] = []
    while not durations or (sum(durations) < 1e3 * seconds and len(durations) < 50):
        own = logits.clone()
        begin = time.perf_counter()
        run(own)
        if own.is_cuda:
            torch.cuda.synchronize()
        durations.append(1e3 * (time.perf_counter() - begin))
    return durations


def likely(batch: int, vocabulary: int, device: str) -> torch.Tensor:
    """Logits whose likeliest tokens stand out about as much as a language model's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, vocabulary, generator=generator) * 2
    places = torch.randint(vocabulary, (batch, 200), generator=generator)
    logits.scatter_(1, places, torch.rand(batch, 200, generator=generator) * 10 + 8)
    return logits.to(device)


@torch.inference_mode()
def compare(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    kernels = native.kernels() if arguments.device == "cpu" else None
    samplers = {"torch": Sampler((EOS,), GenerationRules())}
    if kernels is not None:
        kernels.set_threads(arguments.threads)
        samplers["native"] = Sampler((EOS,), GenerationRules(), kernels=kernels)
    for batch in arguments.batch:
        logits = likely(batch, arguments.vocabulary, arguments.device).to(getattr(torch, arguments.dtype))
        runs: dict[tuple[str, str], Callable[[torch.Tensor], Any]] = {
            ("argmax", "torch"): lambda own: own.argmax(-1).tolist()
        }
        for name, sampling in CASES.items():
            for share, suffix in ((1, ""), (32, ", one in 32")):
                if arguments.only in name and batch >= share:
                    members = sequences(batch, share, sampling)
                    for by, sampler in samplers.items():
                        runs[name + suffix, by] = partial(draw, sampler, members)
        durations: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
        for _ in range(arguments.turns):
            for key, run in runs.items():
                durations[key] += measure(run, logits, arguments.seconds)
        by_case: dict[str, dict[str, float]] = {}
        for (name, by), found in durations.items():
            by_case.setdefault(name, {})[f"{by} ms"] = round(statistics.median(found), 3)
        for name, times in by_case.items():
            print(json.dumps({"batch": batch, "case": name, **times}), flush=True)


def draw(sampler: Sampler, members: list[Sequence], logits: torch.Tensor) -> None:
    sampler.sample(logits, members)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the logits: that of the model's weights")
    parser.add_argument("--threads", type=int, default=1, help="more are only steady on a machine with nothing to do")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="per case and turn, at least one run")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
