"""What following a schema costs: tokens per second of the engine with it and without it, in turns.

Both kinds of turns run the same prompts to the same lengths, in batches of `--batch` sequences, in this process and
without HTTP. Every batch has seeds of its own, so that no answer comes twice. The grammar is compiled before the first
turn, as it is for all but the first request of a server. Speculation is on as it is by default; `--no-forced` leaves
out the drafts of what the grammar forces, `--speculation off` all of them, on both sides.

    python benchmarks/structured.py                      # the bundled chat model
    python benchmarks/structured.py --model DIR --batch 1 8 32 --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

import langport
from langport.engine.engine import EngineCore, GenerationEngine
from langport.engine.load import load_engine
from langport.engine.messages import Load, RequestFailed, Step
from langport.models.checkpoint import read_checkpoint
from langport.settings.tree import EngineSettings
from langport.text.grammar import json_schema_grammar
from langport.text.tokenizer import Tokenizer
from langport.types import GenerateRequest, Grammar, SamplingParams

DEMO = Path(langport.__file__).parent / "demo" / "models" / "langport-demo-chat"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 60}, "city": {"type": "string", "maxLength": 40}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 2, "maxItems": 5},
        "status": {"enum": ["new", "active", "closed"]},
        "score": {"type": "number"},
    },
    "required": ["name", "age", "address", "tags", "status", "score"],
    "additionalProperties": False,
}
PROMPT = "Describe a customer of a small shop as JSON with name, age, address, tags, status and score."
MAX_TOKENS = 160


def requests(
    prompt: list[int], batch: int, seed: int, lengths: list[int] | None, grammar: Grammar | None
) -> list[GenerateRequest]:
    """Without a grammar each goes on to the length that it had with one."""
    return [
        GenerateRequest(
            str(number),
            prompt,
            SamplingParams(
                max_tokens=MAX_TOKENS if lengths is None else lengths[number],
                seed=seed + number,
                ignore_eos=grammar is None,
                grammar=grammar,
            ),
        )
        for number in range(batch)
    ]


def run(core: EngineCore, batch: list[GenerateRequest], clock: Callable[[], float]) -> tuple[float, list[int]]:
    """Seconds by the clock, and the number of tokens of each request."""
    lengths = [0] * len(batch)
    begin = clock()
    for request in batch:
        assert core.add(request) is None
    while core.has_work:
        for message in core.step():
            assert not isinstance(message, RequestFailed), message
            if isinstance(message, Step):
                for delta in message.deltas:
                    lengths[int(delta.request_id)] += len(delta.token_ids)
    return clock() - begin, lengths


def compare(arguments: argparse.Namespace) -> None:
    settings = EngineSettings(
        num_threads=arguments.threads,
        device=arguments.device,
        dtype=arguments.dtype,
        speculation=arguments.speculation,
    )
    checkpoint = read_checkpoint(arguments.model)
    core, _ = load_engine(checkpoint, Load("bench", str(arguments.model), settings, 0.5), lambda share: None)
    assert isinstance(core, GenerationEngine), "an encoder generates nothing"
    if arguments.no_forced:
        core.runner.grammars.has_guides = False
    prompt = Tokenizer.from_directory(arguments.model).encode(PROMPT)
    grammar = json_schema_grammar(SCHEMA)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    for batch in arguments.batch:
        run(core, requests(prompt, batch, 0, None, grammar), clock)
        run(core, requests(prompt, batch, 0, [MAX_TOKENS // 2] * batch, None), clock)
        without, following = [], []
        seeds = count(batch, batch)
        for _ in range(arguments.turns):
            with_s = without_s = 0.0
            tokens = 0
            while with_s < arguments.seconds:
                seed = next(seeds)
                took, lengths = run(core, requests(prompt, batch, seed, None, grammar), clock)
                with_s += took
                took, found = run(core, requests(prompt, batch, seed, lengths, None), clock)
                assert found == lengths
                without_s += took
                tokens += sum(lengths)
            without.append(tokens / without_s)
            following.append(tokens / with_s)
        cost = statistics.median(1 - b / a for a, b in zip(without, following, strict=True))
        print(
            json.dumps(
                {
                    "batch": batch,
                    "tokens/s without": round(statistics.median(without), 1),
                    "tokens/s with": round(statistics.median(following), 1),
                    "cost": f"{cost:.1%}",
                }
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu on a busy machine, for one thread"
    )
    parser.add_argument("--speculation", choices=["auto", "off"], default="auto")
    parser.add_argument("--no-forced", action="store_true", help="no drafts of what the grammar forces")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per turn")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    compare(arguments)


if __name__ == "__main__":
    main()
