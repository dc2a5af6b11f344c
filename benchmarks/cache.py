"""What a step of decoding at a long context takes with the KV cache in the model's own type and in int8, in turns.

    python benchmarks/make_model.py --shape 0.6b /tmp/m06
    python benchmarks/cache.py --model /tmp/m06 --context 4000 --batch 1 8

The caches hold random numbers, so no prompt has to be computed: a step takes as long whatever they are. The engine runs
in this process, without HTTP. For each batch: milliseconds of a step (the median), its tokens per second, and what the
cache takes per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from langport.engine.batch import build_batch
from langport.engine.engine import GenerationEngine
from langport.engine.load import load_engine
from langport.engine.memory import BLOCK_SIZE, allocate_caches
from langport.engine.messages import Load
from langport.engine.scheduler import ScheduledSequence
from langport.engine.sequence import Sequence
from langport.models.base import CacheSpec
from langport.models.checkpoint import read_checkpoint
from langport.ops.attention import LayerCache
from langport.settings.tree import EngineSettings
from langport.types import GenerateRequest, SamplingParams

FORMATS = {"auto": False, "int8": True}
PIECE = 1024
"""Tokens of a cache that are written at once."""


def filled(spec: CacheSpec, num_blocks: int, dtype: torch.dtype, *, in_int8: bool) -> list[LayerCache]:
    caches = allocate_caches(spec, num_blocks, dtype, "cpu", in_int8=in_int8)
    keys, values = torch.randn(2, PIECE, spec.kv_heads, spec.head_dim).to(dtype)
    for cache in caches:
        for slots in torch.arange(num_blocks * BLOCK_SIZE).split(PIECE):
            cache.write(slots, keys[: len(slots)], values[: len(slots)])
    return caches


def decoding(batch: int, context: int) -> list[ScheduledSequence]:
    """Sequences whose next token follows `context` tokens."""
    per_sequence = -(-(context + 1) // BLOCK_SIZE)
    step = []
    for number in range(batch):
        tokens = [5 + n % 200 for n in range(context + 1)]
        request = GenerateRequest(str(number), tokens, SamplingParams(max_tokens=1))
        sequence = Sequence(request, 0, 0, tokens=tokens)
        sequence.num_computed_tokens = context
        sequence.block_table = list(range(1 + number * per_sequence, 1 + (number + 1) * per_sequence))
        step.append(ScheduledSequence(sequence, 1))
    return step


def measure(core: GenerationEngine, dtype: torch.dtype, arguments: argparse.Namespace) -> None:
    model = core.runner.model
    num_blocks = 1 + max(arguments.batch) * -(-(arguments.context + 1) // BLOCK_SIZE)
    caches = {name: filled(model.cache_spec, num_blocks, dtype, in_int8=in_int8) for name, in_int8 in FORMATS.items()}
    for batch in arguments.batch:
        step = decoding(batch, arguments.context)
        took: dict[str, list[float]] = {name: [] for name in FORMATS}
        for turn in range(arguments.turns + 1):
            for name in FORMATS:
                begin = time.perf_counter()
                model.logits(model(build_batch(step, caches[name], BLOCK_SIZE, "cpu", model.kernels)))
                if turn:  # the first one finds cold memory
                    took[name].append(time.perf_counter() - begin)
        for name, in_int8 in FORMATS.items():
            median = statistics.median(took[name])
            figures = {
                "cache": name,
                "context": arguments.context,
                "batch": batch,
                "ms": round(1e3 * median, 1),
                "tokens/s": round(batch / median, 1),
                "bytes/token": model.cache_spec.bytes_per_token(torch.int8 if in_int8 else dtype),
            }
            print(json.dumps(figures), flush=True)
        ratio = statistics.median(a / b for a, b in zip(took["auto"], took["int8"], strict=True))
        print(json.dumps({"batch": batch, "times as fast": round(ratio, 2)}), flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    settings = EngineSettings(
        num_threads=arguments.threads,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        max_model_len=arguments.context + 1,
        max_num_seqs=1,
    )
    checkpoint = read_checkpoint(arguments.model)
    core, info = load_engine(checkpoint, Load("bench", str(arguments.model), settings, 0.5), lambda share: None)
    assert isinstance(core, GenerationEngine)
    measure(core, getattr(torch, info.dtype), arguments)


if __name__ == "__main__":
    main()
