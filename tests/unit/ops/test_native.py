"""The native kernels against float64, and bit for bit against themselves in other company; every level of this machine.

A result must not change with the number of rows beside it, its place among them, or the number of threads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langport.errors import ConfigError
from langport.layers.linear import Bits, IntWeight, quantize
from langport.ops import native
from langport.ops.attention import KeyBiases, LayerCache
from langport.ops.native import Kernels, PackedInts, PackedWeight, Sequences

BLOCK = 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PRECISION = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Rounding of the result; sums are kept in float32."""


def here() -> list[str]:
    try:
        return native.levels_here()
    except native.NotBuilt:
        return []


LEVELS = here()
pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built")


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=PRECISION[dtype], atol=4 * PRECISION[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(64, 64), (96, 70), (33, 129), (1, 2), (40, 1)])
class TestLinear:
    def test_equals_the_product_in_float64(
        self, kernels: Kernels, dtype: torch.dtype, columns: int, depth: int
    ) -> None:
        weight, bias, x = operands(dtype, columns, depth, 41)
        packed = PackedWeight(kernels, weight)
        expected = x.double() @ weight.double().T
        close(kernels.linear(x, packed), expected, dtype)
        close(kernels.linear(x, packed, bias), expected + bias.double(), dtype)

    def test_a_row_is_the_same_in_any_company(
        self, kernels: Kernels, dtype: torch.dtype, columns: int, depth: int
    ) -> None:
        weight, bias, x = operands(dtype, columns, depth, 70)
        packed = PackedWeight(kernels, weight)
        whole = kernels.linear(x, packed, bias)
        for rows in (*range(1, 36), 64):
            assert torch.equal(kernels.linear(x[5 : 5 + rows], packed, bias), whole[5 : 5 + rows]), rows
        for threads in (2, 3):
            kernels.set_threads(threads)
            assert torch.equal(kernels.linear(x, packed, bias), whole)
            assert torch.equal(kernels.linear(x[9:10], packed, bias), whole[9:10])


def operands(dtype: torch.dtype, columns: int, depth: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(columns + depth)
    weight = torch.randn(columns, depth) / depth**0.5
    return weight.to(dtype), torch.randn(columns).to(dtype), torch.randn(rows, depth).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_in_several_passes(kernels: Kernels, dtype: torch.dtype) -> None:
    weight, bias, x = operands(dtype, 32, 1500, 700)
    packed = PackedWeight(kernels, weight)
    kernels.set_threads(2)
    whole = kernels.linear(x, packed, bias)
    close(whole, x.double() @ weight.double().T + bias.double(), dtype)
    assert torch.equal(kernels.linear(x[699:], packed, bias), whole[699:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(200, 130), (72, 1100)])
def test_many_rows_give_the_bits_of_few(kernels: Kernels, dtype: torch.dtype, columns: int, depth: int) -> None:
    """Several slices of the depth, several pieces of rows, panels that do not come out even."""
    weight, bias, x = operands(dtype, columns, depth, 395)
    packed = PackedWeight(kernels, weight)
    few = torch.cat([kernels.linear(rows, packed, bias, activation="relu") for rows in x.split(37)])
    close(few, (x.double() @ weight.double().T + bias.double()).relu(), dtype)
    for threads in (1, 3):
        kernels.set_threads(threads)
        assert torch.equal(kernels.linear(x, packed, bias, activation="relu"), few)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_panels_shared_by_threads(kernels: Kernels, dtype: torch.dtype) -> None:
    weight, bias, x = operands(dtype, 1300, 48, 40)
    packed = PackedWeight(kernels, weight)
    alone = kernels.linear(x, packed, bias)
    close(alone, x.double() @ weight.double().T + bias.double(), dtype)
    for threads in (2, 3, 5):
        kernels.set_threads(threads)
        assert torch.equal(kernels.linear(x, packed, bias), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_pass_unchanged_and_round_as_in_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    special = torch.tensor([0.0, 1.0, -2.5, limits.max, limits.min, limits.tiny, 1.2345, -1e-3], dtype=dtype)
    identity = PackedWeight(kernels, torch.eye(8).to(dtype))
    assert torch.equal(kernels.linear(special.diag(), identity), special.diag())
    # One product per sum, so that only the rounding at the end counts.
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight = torch.randn(50, 1, generator=torch.Generator().manual_seed(4)).to(dtype)
    exact = (x.double() * weight.double().T).float()
    assert torch.equal(kernels.linear(x, PackedWeight(kernels, weight)), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_shows(kernels: Kernels, dtype: torch.dtype) -> None:
    packed = PackedWeight(kernels, torch.ones(3, 4, dtype=dtype))
    x = torch.ones(3, 4, dtype=dtype)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    out = kernels.linear(x, packed)
    assert out[0].isnan().all()
    assert out[1].isinf().all()
    assert torch.equal(out[2], torch.full((3,), 4.0, dtype=dtype))


def test_rows_may_lie_apart_and_have_more_dimensions(kernels: Kernels) -> None:
    weight, bias, x = operands(torch.bfloat16, 40, 24, 12)
    packed = PackedWeight(kernels, weight)
    wide = torch.randn(12, 60).bfloat16()
    wide[:, 20:44] = x
    expected = kernels.linear(x, packed, bias)
    assert torch.equal(kernels.linear(wide[:, 20:44], packed, bias), expected)
    assert torch.equal(kernels.linear(x.view(3, 4, 24), packed, bias), expected.view(3, 4, 40))
    assert kernels.linear(x[:0], packed, bias).shape == (0, 40)


def test_every_plain_linear_of_a_model_is_replaced(kernels: Kernels) -> None:
    class Special(nn.Linear):
        """What its class is for, a packed weight would not know."""

    model = nn.Sequential(nn.Linear(8, 12), nn.Sequential(nn.ReLU(), nn.Linear(12, 5, bias=False)), Special(5, 5))
    x = torch.randn(3, 8)
    with torch.inference_mode():
        expected = model(x)
        native.use_kernels(model, kernels)
        torch.testing.assert_close(model(x), expected)
    assert [type(module) for module in model.modules()].count(native.NativeLinear) == 2
    assert type(model[2]) is Special
    assert {name for name, _ in model.named_parameters()} == {"0.bias", "2.weight", "2.bias"}


class Case:
    """Three sequences in a cache whose other blocks hold no numbers: what leaks from those, shows."""

    def __init__(self, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
        torch.manual_seed(heads + head_dim)
        self.keys, self.values = (torch.randn(31, kv_heads, BLOCK, head_dim).to(dtype) for _ in range(2))
        self.tables: NDArray[np.int64] = np.random.default_rng(1).permutation(np.arange(1, 31)).reshape(3, 10)
        self.positions, self.counts = array(130, 70, 0), array(1, 37, 5)
        self.rows = array(0, 1, 38)
        self.query = torch.randn(43, heads, head_dim).to(dtype)
        for table, end in zip(self.tables, (131, 107, 5), strict=True):
            for block in range(end // BLOCK, 10):
                begin = end % BLOCK if block == end // BLOCK else 0
                self.keys[table[block], :, begin:] = self.values[table[block], :, begin:] = float("nan")
        self.keys[0] = self.values[0] = float("nan")
        self.options: dict[str, object] = {"scale": head_dim**-0.5}

    def cache(self) -> LayerCache:
        return LayerCache(self.keys, self.values)

    def attend(self, kernels: Kernels) -> Tensor:
        sequences = Sequences(self.rows, self.counts, self.positions, self.tables)
        return kernels.attend(self.query, self.cache(), sequences, **self.options)  # type: ignore[arg-type]

    def attend_part(self, kernels: Kernels, sequence: int, begin: int, end: int) -> Tensor:
        """Some queries of one sequence, without the others."""
        first = int(self.rows[sequence])
        position = array(self.positions[sequence] + begin)
        table = self.tables[sequence : sequence + 1].copy()
        sequences = Sequences(array(0), array(end - begin), position, table)
        query = self.query[first + begin : first + end]
        return kernels.attend(query, self.cache(), sequences, **self.options)  # type: ignore[arg-type]

    def expected(
        self,
        *,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        bias: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """One query at a time, in float64."""
        rows = []
        for first, count, position, table in zip(self.rows, self.counts, self.positions, self.tables, strict=True):
            keys, values = (cache[table].transpose(1, 2).flatten(0, 1).double() for cache in (self.keys, self.values))
            fold = self.query.shape[1] // keys.shape[1]
            for i in range(count):
                end = int(position) + i + 1
                seen = slice(max(0, end - window) if window else 0, end)
                query = self.query[int(first) + i].double()
                scores = torch.einsum("hd,thd->ht", query, keys[seen].repeat_interleave(fold, 1))
                scores = scores * self.query.shape[2] ** -0.5
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                if bias is not None:
                    scores = scores + bias(end - 1, torch.arange(seen.start, end))
                extra = [] if sinks is None else [sinks.double()[:, None]]
                weights = torch.cat([scores, *extra], 1).softmax(1)[:, : end - seen.start]
                rows.append(torch.einsum("ht,thd->hd", weights, values[seen].repeat_interleave(fold, 1)))
        return torch.stack(rows)


def array(*numbers: object) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 2, 64), (3, 3, 80), (6, 1, 16), (2, 1, 256), (40, 1, 6)]
)
class TestAttention:
    def test_equals_softmax_attention_in_float64(
        self, kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        case = Case(dtype, heads, kv_heads, head_dim)
        close(case.attend(kernels), case.expected(), dtype)

    def test_a_query_is_the_same_in_any_company(
        self, kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        case = Case(dtype, heads, kv_heads, head_dim)
        whole = case.attend(kernels)
        for query in (0, 1, 15, 36):
            assert torch.equal(case.attend_part(kernels, 1, query, query + 1)[0], whole[1 + query])
        for begin, end in ((0, 20), (20, 37), (3, 35)):
            assert torch.equal(case.attend_part(kernels, 1, begin, end), whole[1 + begin : 1 + end])
        assert torch.equal(case.attend_part(kernels, 0, 0, 1), whole[:1])
        kernels.set_threads(3)
        assert torch.equal(case.attend(kernels), whole)


@pytest.mark.parametrize("dtype", DTYPES)
class TestKindsOfAttention:
    def test_a_window(self, kernels: Kernels, dtype: torch.dtype) -> None:
        case = Case(dtype, 4, 2, 32)
        for window in (1, 20, 64, 1000):
            case.options["window"] = window
            whole = case.attend(kernels)
            close(whole, case.expected(window=window), dtype)
            assert torch.equal(case.attend_part(kernels, 1, 9, 30), whole[10:31])

    def test_a_cap_on_the_scores_and_sinks(self, kernels: Kernels, dtype: torch.dtype) -> None:
        case = Case(dtype, 4, 2, 32)
        sinks = torch.tensor([-30.0, 0.5, 1.0, 4.0]).to(dtype)
        case.options |= {"softcap": 1.5, "sinks": sinks}
        whole = case.attend(kernels)
        close(whole, case.expected(softcap=1.5, sinks=sinks), dtype)
        assert torch.equal(case.attend_part(kernels, 1, 9, 30), whole[10:31])

    @pytest.mark.parametrize("softcap", [None, 1.5])
    @pytest.mark.parametrize("window", [None, 40])
    def test_biases(self, kernels: Kernels, dtype: torch.dtype, window: int | None, softcap: float | None) -> None:
        values = torch.randn(4, 131) * 3  # the longest context has so many keys
        kinds = {
            "distance": (KeyBiases.by_distance(values), lambda query, keys: values[:, query - keys].double()),
            "position": (KeyBiases.by_position(values), lambda query, keys: values[:, keys].double()),
        }
        case = Case(dtype, 4, 2, 32)
        for biases, formula in kinds.values():
            case.options |= {"biases": biases, "window": window, "softcap": softcap}
            whole = case.attend(kernels)
            close(whole, case.expected(window=window, softcap=softcap, bias=formula), dtype)
            assert torch.equal(case.attend_part(kernels, 1, 9, 30), whole[10:31])

    def test_scores_far_apart(self, kernels: Kernels, dtype: torch.dtype) -> None:
        case = Case(dtype, 4, 2, 32)
        case.query *= 60
        # Scores of hundreds have a resolution of 3e-5 in float32, and so have the weights.
        torch.testing.assert_close(case.attend(kernels).double(), case.expected(), rtol=PRECISION[dtype], atol=4e-3)

    def test_all_queries_see_all_of_an_encoder(self, kernels: Kernels, dtype: torch.dtype) -> None:
        case = Case(dtype, 4, 2, 32)
        case.options["is_causal"] = False
        sequences = Sequences(array(0, 1), array(1, 37), array(131, 107), case.tables[:2].copy())
        out = kernels.attend(case.query[:38], case.cache(), sequences, **case.options)  # type: ignore[arg-type]
        # As if each query of the second sequence were its last position.
        alone = [
            kernels.attend(
                case.query[row : row + 1],
                case.cache(),
                Sequences(array(0), array(1), array(106), case.tables[1:2].copy()),
                scale=32**-0.5,
            )
            for row in range(1, 38)
        ]
        assert torch.equal(out[1:], torch.cat(alone))
        case.options["is_causal"] = True
        assert torch.equal(out[:1], case.attend(kernels)[:1])

    def test_queries_cut_from_a_wider_matrix(self, kernels: Kernels, dtype: torch.dtype) -> None:
        case = Case(dtype, 4, 2, 32)
        whole = case.attend(kernels)
        wide = torch.randn(43, 8, 40).to(dtype)
        wide[:, 2:6, 8:] = case.query
        case.query = wide[:, 2:6, 8:]
        assert torch.equal(case.attend(kernels), whole)


class Prompt:
    """One long sequence, whole or in pieces: a piece of one query is a step of decoding."""

    def __init__(self, dtype: torch.dtype, length: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 64) -> None:
        torch.manual_seed(length)
        num_blocks = -(-length // BLOCK)
        self.length = length
        self.keys, self.values = (torch.randn(num_blocks + 1, kv_heads, BLOCK, head_dim).to(dtype) for _ in range(2))
        self.table = np.random.default_rng(2).permutation(np.arange(1, num_blocks + 1))[None]
        self.query = torch.randn(length, heads, head_dim).to(dtype)
        self.options: dict[str, object] = {"scale": head_dim**-0.5}

    def cache(self) -> LayerCache:
        return LayerCache(self.keys, self.values)

    def attend(self, kernels: Kernels, begin: int, end: int) -> Tensor:
        sequences = Sequences(array(0), array(end - begin), array(begin), self.table)
        query = self.query[begin:end]
        return kernels.attend(query, self.cache(), sequences, **self.options)  # type: ignore[arg-type]

    def expected(self, query: int, window: int | None = None) -> Tensor:
        """In float64."""
        fold = self.query.shape[1] // self.keys.shape[1]
        seen = slice(max(0, query + 1 - window) if window else 0, query + 1)
        keys, values = (
            cache[self.table[0]].transpose(1, 2).flatten(0, 1)[seen].double().repeat_interleave(fold, 1)
            for cache in (self.keys, self.values)
        )
        scores = torch.einsum("hd,thd->ht", self.query[query].double(), keys) * self.query.shape[2] ** -0.5
        return torch.einsum("ht,thd->hd", scores.softmax(1), values)


@pytest.mark.parametrize("dtype", DTYPES)
class TestPrompts:
    """Many rows go through a rearranged tile together, few read it in place: the same bits."""

    def test_a_long_prompt(self, kernels: Kernels, dtype: torch.dtype) -> None:
        prompt = Prompt(dtype, 700)
        whole = prompt.attend(kernels, 0, 700)
        queries = [0, 1, 62, 63, 64, 65, 255, 256, 390, 511, 640, 698, 699]
        close(whole[queries], torch.stack([prompt.expected(query) for query in queries]), dtype)
        for query in queries:
            assert torch.equal(prompt.attend(kernels, query, query + 1)[0], whole[query])
        for threads in (2, 3):
            kernels.set_threads(threads)
            assert torch.equal(prompt.attend(kernels, 0, 700), whole)

    @pytest.mark.parametrize("window", [None, 1, 2, 37, 64, 65])
    def test_pieces_that_end_anywhere_around_a_tile(
        self, kernels: Kernels, dtype: torch.dtype, window: int | None
    ) -> None:
        prompt = Prompt(dtype, 150)
        prompt.options["window"] = window
        whole = prompt.attend(kernels, 0, 150)
        close(whole[[3, 70, 149]], torch.stack([prompt.expected(query, window) for query in (3, 70, 149)]), dtype)
        for cut in (*range(58, 70), *range(126, 131)):
            pieces = [prompt.attend(kernels, begin, end) for begin, end in ((0, cut), (cut, 150))]
            assert torch.equal(torch.cat(pieces), whole), cut
        for size in (1, 2, 3, 5, 7, 16):
            pieces = [prompt.attend(kernels, begin, min(begin + size, 150)) for begin in range(0, 150, size)]
            assert torch.equal(torch.cat(pieces), whole), size

    @pytest.mark.parametrize(
        ("heads", "kv_heads", "head_dim"), [(2, 2, 32), (6, 2, 128), (7, 1, 96), (3, 1, 80), (4, 1, 256), (32, 1, 34)]
    )
    def test_sizes_of_heads(
        self, kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        prompt = Prompt(dtype, 140, heads, kv_heads, head_dim)
        whole = prompt.attend(kernels, 0, 140)
        queries = [0, 63, 64, 139]
        close(whole[queries], torch.stack([prompt.expected(query) for query in queries]), dtype)
        for size in (1, 4, 13):
            pieces = [prompt.attend(kernels, begin, min(begin + size, 140)) for begin in range(0, 140, size)]
            assert torch.equal(torch.cat(pieces), whole), size

    def test_a_token_that_is_no_number_does_not_reach_those_before_it(
        self, kernels: Kernels, dtype: torch.dtype
    ) -> None:
        prompt = Prompt(dtype, 120)
        whole = prompt.attend(kernels, 0, 120)
        block, slot = divmod(91, BLOCK)
        prompt.keys[prompt.table[0, block], :, slot] = float("nan")
        prompt.values[prompt.table[0, block], :, slot] = float("inf")
        spoilt = prompt.attend(kernels, 0, 120)
        assert torch.equal(spoilt[:91], whole[:91])
        assert spoilt[91:].isnan().all()
        prompt.options["window"] = 20
        assert prompt.attend(kernels, 0, 120)[111:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_times_up(kernels: Kernels, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    gate, up = (torch.randn(9, 2 * 37) * 8).to(dtype).chunk(2, dim=-1)
    whole = kernels.silu_mul(gate, up)
    wide = gate.double()
    close(whole, wide / (1 + (-wide).exp()) * up.double(), dtype)
    for row in range(9):
        assert torch.equal(kernels.silu_mul(gate[row : row + 1], up[row : row + 1])[0], whole[row])
    large = torch.tensor([[100.0, -100.0, 0.0, float("nan")]]).to(dtype)
    torch.testing.assert_close(
        kernels.silu_mul(large, torch.ones_like(large)), nn.functional.silu(large), equal_nan=True
    )


@pytest.mark.parametrize("columns", [1, 31, 32, 200, 2048, 40_001])
def test_what_is_forbidden_becomes_minus_infinity(kernels: Kernels, columns: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(9, columns)
    rows, num_words = torch.tensor([1, 2, 5, 8]), -(-columns // 32) + 1
    allowed = torch.rand(4, 32 * num_words) < torch.tensor([[0.5], [0.0], [1.0], [0.9]])
    bits = torch.from_numpy(np.packbits(allowed.numpy(), axis=1, bitorder="little").view(np.int32))
    expected = logits.clone()
    expected[rows] = expected[rows].where(allowed[:, :columns], float("-inf"))
    for threads in (1, 2):
        kernels.set_threads(threads)
        wide = torch.zeros(9, columns + 5)
        wide[:, :columns] = logits
        kernels.hide_(wide[:, :columns], rows, bits)
        assert torch.equal(wide[:, :columns], expected)
        assert not wide[:, columns:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_root_mean_square_norm(kernels: Kernels, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    wide = (torch.randn(11, 3, 90) * 3).to(dtype)
    heads, weight = wide[:, :, 20:65], torch.randn(45).to(dtype)
    whole = kernels.rms_norm(heads, weight, 1e-3)
    exact = heads.double()
    close(whole, exact * (exact.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * weight.double(), dtype)
    kernels.set_threads(2)
    for row in range(11):
        assert torch.equal(kernels.rms_norm(heads[row : row + 1], weight, 1e-3)[0], whole[row])
        assert torch.equal(kernels.rms_norm(heads[row], weight, 1e-3), whole[row])
    many = torch.randn(400, 700).to(dtype)
    assert torch.equal(
        kernels.rms_norm(many, torch.ones(700, dtype=dtype), 1e-6)[399:],
        kernels.rms_norm(many[399:], torch.ones(700, dtype=dtype), 1e-6),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ceilings_of_benchmarks_count_what_they_do(kernels: Kernels, dtype: torch.dtype) -> None:
    once = kernels.multiply_adds(dtype, 800)
    assert once > 0
    kernels.set_threads(3)
    assert kernels.multiply_adds(dtype, 1600) == 6 * once
    kernels.read_memory(torch.zeros(1001))


IN_CHILDREN = """
import os, time, torch
from langport.ops import native
kernels = native.kernels()
kernels.set_threads(2)
packed = native.PackedWeight(kernels, torch.randn(4096, 64))
x = torch.randn(3, 64)
expected = kernels.linear(x, packed)
pid = os.fork()
assert torch.equal(kernels.linear(x, packed), expected)
if pid == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
time.sleep(0.05)
used = time.process_time()
time.sleep(0.5)
print(time.process_time() - used)
"""


def test_a_forked_process_starts_threads_of_its_own_and_idle_ones_sleep() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_CHILDREN], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1, "seconds of processor time in half a second of rest"


class TestChoice:
    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        native.kernels.cache_clear()
        yield
        native.kernels.cache_clear()

    def test_the_environment_picks_a_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(native.VARIABLE, "portable")
        chosen = native.kernels()
        assert chosen is not None
        assert chosen.level == native.describe() == "portable"

    def test_torch_means_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(native.VARIABLE, "torch")
        assert native.kernels() is None
        assert "torch" in native.describe()

    def test_a_wrong_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(native.VARIABLE, "avx9000")
        with pytest.raises(ConfigError, match=r"avx9000.*portable"):
            native.kernels()

    def test_without_a_library_torch_computes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        native.load_library.cache_clear()
        monkeypatch.setattr(native, "LIBRARY", tmp_path / "_kernels.so")
        monkeypatch.delenv(native.VARIABLE, raising=False)
        try:
            assert native.kernels() is None
            assert native.describe().startswith("not built: no C++ compiler")
            monkeypatch.setenv(native.VARIABLE, "portable")
            native.kernels.cache_clear()
            with pytest.raises(ConfigError, match="not built"):
                native.kernels()
            (tmp_path / "_kernels.so").write_text("no library")
            monkeypatch.delenv(native.VARIABLE)
            native.kernels.cache_clear()
            assert "cannot be loaded" in native.describe()
        finally:
            native.load_library.cache_clear()


def int_operands(
    dtype: torch.dtype, bits: Bits, columns: int, depth: int, rows: int
) -> tuple[IntWeight, Tensor, Tensor]:
    torch.manual_seed(columns + depth)
    weight = quantize(torch.randn(columns, depth), bits, dtype)
    return weight, torch.randn(columns).to(dtype), torch.randn(rows, depth).to(dtype)


def int_product(x: Tensor, weight: IntWeight, bias: Tensor) -> Tensor:
    """What the kernels compute, operation by operation: whole numbers exactly, then float32 in the order of K."""
    scale, depth = weight.scale.float(), x.shape[1]
    is_grouped = scale.shape[1] > 1
    block = weight.group_size if is_grouped else 128
    total = torch.zeros(x.shape[0], weight.values.shape[0])
    for index, first in enumerate(range(0, depth, block)):
        part = x[:, first : first + block].float()
        largest = part.abs().amax(1, keepdim=True)
        numbers = (part * torch.where(largest > 1e-30, torch.full_like(largest, 127) / largest, 0)).round()
        product = numbers.double() @ weight.values[:, first : first + block].double().T
        factor = torch.where(largest > 1e-30, largest / 127, 0)
        total += product.float() * (factor * scale[:, index] if is_grouped else factor)
    return ((total if is_grouped else total * scale[:, 0]) + bias.float()).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("bits", "columns", "depth"), [(8, 100, 333), (8, 64, 256), (8, 33, 5), (4, 70, 256), (4, 64, 96), (4, 4, 160)]
)
class TestWholeNumbers:
    def test_is_exact_whatever_the_level(
        self, kernels: Kernels, dtype: torch.dtype, bits: Bits, columns: int, depth: int
    ) -> None:
        weight, bias, x = int_operands(dtype, bits, columns, depth, 41)
        packed = PackedInts(kernels, weight.values, weight.scale, weight.bits)
        for threads in (1, 3):
            kernels.set_threads(threads)
            for rows in (1, 2, 4, 5, 8, 9, 12, 41):
                expected = int_product(x[:rows], weight, bias)
                assert torch.equal(kernels.int_linear(x[:rows], packed, bias), expected), rows

    def test_is_near_the_product_of_floats(
        self, kernels: Kernels, dtype: torch.dtype, bits: Bits, columns: int, depth: int
    ) -> None:
        weight, _, x = int_operands(dtype, bits, columns, depth, 41)
        packed = PackedInts(kernels, weight.values, weight.scale, weight.bits)
        expected = x.float() @ weight.dequantize(torch.float32).T
        found = kernels.int_linear(x, packed).float()
        assert (found - expected).norm() < 0.012 * expected.norm()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_numbers_at_their_limits(kernels: Kernels, bits: Bits, group: int) -> None:
    """Sums of their products are the largest that any level keeps, however many bits it keeps them in."""
    torch.manual_seed(group)
    limit = 2 ** (bits - 1)
    values = torch.randint(-limit, limit, (70, 256), dtype=torch.int8)
    values[:3] = torch.tensor([-limit, limit - 1, 0], dtype=torch.int8)[:, None]
    weight = IntWeight(values, torch.rand(70, 256 // group), bits)
    x, bias = torch.randn(19, 256), torch.randn(70)
    x[0], x[1] = 3.0, -3.0
    packed = PackedInts(kernels, weight.values, weight.scale, bits)
    assert torch.equal(kernels.int_linear(x, packed, bias), int_product(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "depth"), [(8, 333), (8, 5), (8, 256), (4, 256), (4, 96), (4, 50)])
class TestQuantizing:
    def test_gives_the_numbers_that_torch_gives(
        self, kernels: Kernels, dtype: torch.dtype, bits: Bits, depth: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(depth)
        weight = torch.randn(150, depth).to(dtype)
        weight[0] = 0
        weight[1] *= 1e-4
        weight[2], weight[3] = weight[2].abs(), -weight[3].abs()
        for scale_dtype in DTYPES:
            monkeypatch.setattr(native, "kernels", lambda: kernels)
            found = quantize(weight, bits, scale_dtype)
            monkeypatch.setattr(native, "kernels", lambda: None)
            expected = quantize(weight, bits, scale_dtype)
            assert torch.equal(found.values, expected.values)
            assert torch.equal(found.scale, expected.scale)
            assert found.scale.dtype == scale_dtype
            assert found.bits == expected.bits

    def test_what_is_not_finite_shows(
        self, kernels: Kernels, dtype: torch.dtype, bits: Bits, depth: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(native, "kernels", lambda: kernels)
        weight = torch.randn(4, depth).to(dtype)
        sound = quantize(weight, bits, dtype)
        weight[1, depth - 1] = float("nan")
        weight[2, depth - 1] = float("inf")
        found = quantize(weight, bits, dtype)
        assert not found.scale[1:3, -1].isfinite().any()
        assert torch.equal(found.values[::3], sound.values[::3])
        assert torch.equal(found.scale[::3], sound.scale[::3])


def test_whole_numbers_of_zeros_and_of_what_is_not_finite(kernels: Kernels) -> None:
    weight, _, x = int_operands(torch.float32, 8, 40, 300, 4)
    packed = PackedInts(kernels, weight.values, weight.scale, 8)
    x[0] = 0
    x[1, 290] = float("nan")
    x[2, 3] = float("inf")
    found = kernels.int_linear(x, packed)
    assert not found[0].any()
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[3:], kernels.int_linear(x[3:], packed))
