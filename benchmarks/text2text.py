"""An encoder-decoder under many clients beside transformers' `generate` once per request: same prompts and type.

    python benchmarks/make_model.py --shape t5-small t5
    python benchmarks/text2text.py t5 --dtype float32
    python benchmarks/text2text.py langport/demo/models/langport-demo-text2text

LangPort gets a request of each of --clients clients at once over HTTP; the library does one after the other, greedily,
and both write --output-tokens tokens whatever comes. --python names another environment's Python for the library. Run
nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import (
    Library,
    Side,
    answer_lines,
    comparison_parser,
    forget_this_folder,
    memory_mib,
    post_all,
    serving,
    table,
    take_turns,
)

PROMPT_TOKENS = (16, 128)
NUM_WARMUP = 2
FIRST_ORDINARY_TOKEN = 300
"""Ids below it may be special ones."""


def random_prompts(count: int, vocab_size: int) -> list[list[int]]:
    source = random.Random(0)
    first = min(FIRST_ORDINARY_TOKEN, vocab_size // 2)
    return [[source.randrange(first, vocab_size) for _ in range(source.randint(*PROMPT_TOKENS))] for _ in range(count)]


def as_library(arguments: argparse.Namespace) -> None:
    forget_this_folder()
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    num_tokens = arguments.output_tokens

    @torch.inference_mode()
    def generate(prompts: list[list[int]]) -> list[Any]:
        found = []
        for prompt in prompts:
            token_ids = torch.tensor([prompt])
            out = model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                do_sample=False,
                num_beams=1,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
            )
            found.append(out.shape[1] - 1)  # without the token that the decoder starts from
        return found

    answer_lines(generate)


def complete(url: str, prompts: Sequence[list[int]], num_tokens: int, num_clients: int) -> list[int]:
    common = {"model": "t2t", "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True}
    answers = post_all(url, "/v1/completions", [{**common, "prompt": prompt} for prompt in prompts], num_clients)
    return [answer["usage"]["completion_tokens"] for answer in answers]


def main() -> None:
    parser = comparison_parser(__doc__ or "", "transformers", Path(sys.executable))
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.as_library:
        return as_library(arguments)
    vocab_size = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    prompts = random_prompts(arguments.requests, vocab_size)
    num_tokens = arguments.output_tokens
    common = [str(arguments.model), "--dtype", arguments.dtype]
    library = Library(arguments.python, __file__, [*common, "--output-tokens", str(num_tokens)])
    model, *options = common
    with serving([f"t2t={model}", "--device", "cpu", *options]) as (url, pid):
        sides = [
            Side("LangPort", lambda work: complete(url, work, num_tokens, arguments.clients), lambda: memory_mib(pid)),
            Side("generate per request", library, lambda: memory_mib(library.process.pid)),
        ]
        take_turns(sides, prompts, arguments.rounds, NUM_WARMUP)
    library.close()
    for side in sides:
        if side.answers != [num_tokens] * len(prompts):
            raise SystemExit(f"{side.name} did not write {num_tokens} tokens each: {side.answers}")
    low, high = PROMPT_TOKENS
    print(
        f"{arguments.requests} prompts of {low} to {high} tokens, {num_tokens} tokens each, {arguments.dtype}; "
        f"{arguments.rounds} rounds in turns; LangPort asked by {arguments.clients} clients\n"
    )
    print(table(sides, len(prompts) * num_tokens, "tokens/s"))
    return None


if __name__ == "__main__":
    main()
