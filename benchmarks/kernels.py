"""Time, GB/s and GFLOP/s of every native CPU kernel, and its share of what this machine can do.

    python benchmarks/kernels.py                              # bfloat16 on one thread, the shapes of Qwen3-0.6B
    python benchmarks/kernels.py --threads 2 --dtype float32 --level avx2
    python benchmarks/kernels.py --only attend --seconds 2
    python benchmarks/kernels.py --only int --rows 1,8,32,512   # weights of 8 and 4 bits

The ceilings, reading memory and multiplying in registers, are measured between the cases, so that they belong to the
same minutes. The share is that of the ceiling that a kernel comes closer to: bytes that have to be read or written at
least, or multiplications and additions, of whole numbers where weights are those. On one thread the thread's own
processor time is counted, which other processes hardly touch; on several the time that passes, so run those on a quiet
machine.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from langport.layers.linear import Bits
from langport.ops import native
from langport.ops.attention import LayerCache
from langport.ops.native import Kernels, PackedInts, PackedWeight, Sequences

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 1024, 3072, 16, 8, 128, 16
COLD_BYTES = 256 << 20
"""Weights, keys and values of a case come from so much memory in turns, so that no cache holds them."""
SAMPLE_S = 0.02
"""Of one reading of a ceiling."""
INTS: tuple[tuple[Bits, int | None], ...] = ((8, None), (8, 128), (4, 128), (4, 32))
"""Bits of a weight, and how many of a row's weights share a scale."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One kernel at one size."""

    name: str
    run: Callable[[int], object]
    """Called with the number of the call, by which it takes its operands in turns."""
    num_bytes: float
    operations: float
    is_whole: bool = False
    """The operations are those of whole numbers."""


@dataclass(frozen=True)
class Stopwatch:
    """Seconds that a body takes."""

    clock: Callable[[], float]

    def __call__(self, body: Callable[[], object]) -> float:
        begin = self.clock()
        body()
        return self.clock() - begin


class Ceilings:
    """What memory and the arithmetic units give at best."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype, seconds_of: Stopwatch) -> None:
        self.kernels, self.seconds_of = kernels, seconds_of
        self.memory = huge_pages(COLD_BYTES)
        self.bytes_per_s: list[float] = []
        self.floats = Multiplying(lambda rounds: kernels.multiply_adds(dtype, rounds), seconds_of)
        self.whole = Multiplying(kernels.int_multiply_adds, seconds_of)

    def measure(self) -> None:
        self.floats.measure()
        self.whole.measure()
        self.bytes_per_s.append(self.memory.nbytes / self.seconds_of(lambda: self.kernels.read_memory(self.memory)))

    def share(self, case: Case, seconds: float) -> float:
        memory_s = case.num_bytes / statistics.median(self.bytes_per_s)
        multiplying_s = case.operations / (self.whole if case.is_whole else self.floats).median
        return max(memory_s, multiplying_s) / seconds


class Multiplying:
    """Operations per second of so many rounds as take `SAMPLE_S`."""

    def __init__(self, multiply: Callable[[int], float], seconds_of: Stopwatch) -> None:
        self.seconds_of = seconds_of
        rounds = 1000
        while seconds_of(partial(multiply, rounds)) < SAMPLE_S:
            rounds *= 2
        self.multiply = partial(multiply, rounds)
        self.operations = self.multiply()
        self.per_s: list[float] = []

    def measure(self) -> None:
        self.per_s.append(self.operations / self.seconds_of(self.multiply))

    @property
    def median(self) -> float:
        return statistics.median(self.per_s)


def huge_pages(num_bytes: int) -> Tensor:
    """Memory as packed weights have it."""
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).fill_(1)


def linear(kernels: Kernels, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> Case:
    weight = torch.randn(outputs, inputs).to(dtype)
    packed = [PackedWeight(kernels, weight) for _ in range(1 + COLD_BYTES // weight.nbytes)]
    x = torch.randn(rows, inputs).to(dtype)
    return Case(
        f"linear {inputs} to {outputs}, {rows} rows",
        lambda i: kernels.linear(x, packed[i % len(packed)]),
        weight.nbytes + x.nbytes + rows * outputs * x.itemsize,
        2.0 * rows * inputs * outputs,
    )


def int_linear(
    kernels: Kernels, dtype: torch.dtype, bits: Bits, group: int | None, rows: int, inputs: int, outputs: int
) -> Case:
    """Weights with a scale for `group` values of a row, or one for a row."""
    limit = 1 << bits - 1
    values = torch.randint(-limit, limit, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs, inputs // group if group else 1).to(dtype)
    num_bytes = values.numel() * bits / 8 + scale.nbytes
    packed = [PackedInts(kernels, values, scale, bits) for _ in range(1 + int(COLD_BYTES / num_bytes))]
    x = torch.randn(rows, inputs).to(dtype)
    return Case(
        f"int{bits}{f'/{group}' if group else ''} {inputs} to {outputs}, {rows} rows",
        lambda i: kernels.int_linear(x, packed[i % len(packed)]),
        num_bytes + x.nbytes + rows * outputs * x.itemsize,
        2.0 * rows * inputs * outputs,
        is_whole=True,
    )


def attend(kernels: Kernels, dtype: torch.dtype, num_seqs: int, queries: int, before: int) -> Case:
    """Each of `num_seqs` sequences asks `queries` queries after `before` tokens."""
    blocks = -(-(before + queries) // BLOCK)
    shape = (num_seqs * blocks + 1, KV_HEADS, BLOCK, HEAD_DIM)
    cache_bytes = 2 * int(np.prod(shape)) * dtype.itemsize
    one = torch.randn(shape).to(dtype)
    caches = [LayerCache(one.clone(), one.clone()) for _ in range(1 + COLD_BYTES // cache_bytes)]
    tables = np.random.default_rng(0).permutation(np.arange(1, num_seqs * blocks + 1)).reshape(num_seqs, blocks)
    sequences = Sequences(np.arange(num_seqs) * queries, np.full(num_seqs, queries), np.full(num_seqs, before), tables)
    query = torch.randn(num_seqs * queries, HEADS, HEAD_DIM).to(dtype)
    seen = num_seqs * (queries * before + queries * (queries + 1) / 2)  # pairs of a query and a key
    tokens = num_seqs * (before + queries)
    return Case(
        f"attend {num_seqs} x {queries} queries after {before}",
        lambda i: kernels.attend(query, caches[i % len(caches)], sequences, scale=HEAD_DIM**-0.5),
        2.0 * tokens * KV_HEADS * HEAD_DIM * dtype.itemsize + 2.0 * query.nbytes,
        4.0 * seen * HEADS * HEAD_DIM,
    )


def rms_norm(kernels: Kernels, dtype: torch.dtype, rows: int) -> Case:
    x, weight = torch.randn(rows, HIDDEN).to(dtype), torch.ones(HIDDEN, dtype=dtype)
    name = f"rms_norm {HIDDEN}, {rows} rows"
    return Case(name, lambda _: kernels.rms_norm(x, weight, 1e-6), 2.0 * x.nbytes, 4.0 * x.numel())


def silu_mul(kernels: Kernels, dtype: torch.dtype, rows: int) -> Case:
    gate, up = torch.randn(rows, 2 * INNER).to(dtype).chunk(2, dim=-1)
    size = rows * INNER
    name = f"silu_mul {INNER}, {rows} rows"
    return Case(name, lambda _: kernels.silu_mul(gate, up), 3.0 * size * dtype.itemsize, 20.0 * size)


def cases(kernels: Kernels, dtype: torch.dtype, row_counts: list[int]) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Words that the names have, and cases, made one after the other, since their operands are large."""
    sizes = [(rows, *size) for rows in row_counts for size in ((HIDDEN, 2 * INNER), (INNER, HIDDEN))]
    for size in sizes:
        yield "linear", partial(linear, kernels, dtype, *size)
    for bits, group in INTS:
        for size in sizes:
            yield f"int{bits}", partial(int_linear, kernels, dtype, bits, group, *size)
    for num_seqs, queries, before in (
        (1, 1, 1000),
        (1, 1, 4000),
        (32, 1, 1000),
        (1, 512, 0),
        (1, 96, 1000),
        (1, 96, 4000),
    ):
        yield "attend", partial(attend, kernels, dtype, num_seqs, queries, before)
    for rows in (1, 512):
        yield "rms_norm", partial(rms_norm, kernels, dtype, rows)
        yield "silu_mul", partial(silu_mul, kernels, dtype, rows)


def measure(case: Case, seconds: float, seconds_of: Stopwatch) -> float:
    """Median time of a call, in seconds, from as many as fit into `seconds`."""
    case.run(0)
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 5:
        times.append(seconds_of(lambda: case.run(len(times) + 1)))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--level", choices=native.LEVELS, help="an instruction set; the best by default")
    parser.add_argument("--only", default="", help="cases whose kernel's name begins so")
    parser.add_argument("--rows", default="1,8,32,96,512", help="of the products with weights")
    parser.add_argument("--seconds", type=float, default=0.5, help="per case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kernels = native.choose_level(native.load_library(), arguments.level)
    if kernels is None:
        raise SystemExit(f"this processor lacks {arguments.level}; it has {', '.join(native.levels_here())}")
    kernels.set_threads(arguments.threads)
    dtype = DTYPES[arguments.dtype]
    seconds_of = Stopwatch(time.thread_time if arguments.threads == 1 else time.perf_counter)
    ceilings = Ceilings(kernels, dtype, seconds_of)
    results = []
    for name, make in cases(kernels, dtype, [int(rows) for rows in arguments.rows.split(",")]):
        if name.startswith(arguments.only):
            case = make()
            ceilings.measure()
            results.append((case, measure(case, arguments.seconds, seconds_of)))
    ceilings.measure()
    print(f"{kernels.level}, {arguments.dtype}, {arguments.threads} threads; medians of {len(ceilings.bytes_per_s)}:")
    print(f"{'reading memory':36}            {statistics.median(ceilings.bytes_per_s) / 1e9:8.1f} GB/s")
    print(f"{'multiplying in registers':36}{ceilings.floats.median / 1e9:33.1f} GFLOP/s")
    print(f"{'multiplying whole numbers':36}{ceilings.whole.median / 1e9:33.1f} GOP/s")
    for case, seconds in results:
        print(
            f"{case.name:36}{seconds * 1e6:9.1f} us{case.num_bytes / seconds / 1e9:8.1f} GB/s"
            f"{case.operations / seconds / 1e9:8.1f} {'GOP/s  ' if case.is_whole else 'GFLOP/s'}"
            f"{ceilings.share(case, seconds):6.0%}"
        )


if __name__ == "__main__":
    main()
