"""Native attention over a cache of 8-bit numbers, against float64 on what those stand for, and bit for bit itself.

The cases are those of test_native.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from langport.ops.attention import KeyBiases, LayerCache, QuantizedCache, in_int8
from langport.ops.native import Kernels, Sequences
from tests.unit.ops.test_native import BLOCK, DTYPES, LEVELS, Case, Prompt, array, close

pytestmark = [
    pytest.mark.skipif(not LEVELS, reason="the native kernels are not built"),
    pytest.mark.parametrize("dtype", DTYPES),
]


class InInt8:
    """Of a case or prompt: its cache in 8 bits. What is expected is computed from what the numbers stand for."""

    keys: Tensor
    values: Tensor
    query: Tensor

    def quantize(self) -> None:
        (keys, key_scales), (values, value_scales) = in_int8(self.keys), in_int8(self.values)
        self.stored = QuantizedCache(keys, values, key_scales, value_scales, self.query.dtype)
        self.keys, self.values = keys.double() * key_scales[..., None], values.double() * value_scales[..., None]

    def cache(self) -> LayerCache:
        return self.stored


class Int8Case(InInt8, Case):
    def __init__(self, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__(dtype, heads, kv_heads, head_dim)
        self.quantize()


class Int8Prompt(InInt8, Prompt):
    def __init__(self, dtype: torch.dtype, length: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 64) -> None:
        super().__init__(dtype, length, heads, kv_heads, head_dim)
        self.quantize()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(4, 2, 32), (3, 3, 80), (2, 1, 256), (40, 1, 6), (16, 2, 128)],
)
def test_equals_softmax_attention_in_float64(
    kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> None:
    case = Int8Case(dtype, heads, kv_heads, head_dim)
    whole = case.attend(kernels)
    close(whole, case.expected(), dtype)
    for query in (0, 15, 36):
        assert torch.equal(case.attend_part(kernels, 1, query, query + 1)[0], whole[1 + query])
    for begin, end in ((0, 20), (3, 35)):
        assert torch.equal(case.attend_part(kernels, 1, begin, end), whole[1 + begin : 1 + end])
    kernels.set_threads(3)
    assert torch.equal(case.attend(kernels), whole)


def test_windows_caps_sinks_and_biases(kernels: Kernels, dtype: torch.dtype) -> None:
    sinks = torch.tensor([-30.0, 0.5, 1.0, 4.0]).to(dtype)
    biases = torch.randn(4, 131) * 3
    for window, softcap in ((None, None), (20, None), (64, 1.5)):
        case = Int8Case(dtype, 4, 2, 32)
        case.options |= {"window": window, "softcap": softcap, "sinks": sinks, "biases": KeyBiases.by_distance(biases)}
        whole = case.attend(kernels)
        expected = case.expected(
            window=window,
            softcap=softcap,
            sinks=sinks,
            bias=lambda query, keys: biases[:, query - keys].double(),
        )
        close(whole, expected, dtype)
        assert torch.equal(case.attend_part(kernels, 1, 9, 30), whole[10:31])


def test_all_queries_see_all_of_an_encoder(kernels: Kernels, dtype: torch.dtype) -> None:
    case = Int8Case(dtype, 4, 2, 32)
    sequences = Sequences(array(0, 1), array(1, 37), array(131, 107), case.tables[:2].copy())
    out = kernels.attend(case.query[:38], case.cache(), sequences, scale=32**-0.5, is_causal=False)
    assert torch.equal(out[0], case.attend(kernels)[0])
    case.positions = array(130, 106, 0)
    alone = kernels.attend(
        case.query[5:6],
        case.cache(),
        Sequences(array(0), array(1), array(106), case.tables[1:2].copy()),
        scale=32**-0.5,
    )
    assert torch.equal(out[5], alone[0])


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 128), (3, 1, 80), (32, 1, 34)])
def test_prompts_in_pieces(kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    prompt = Int8Prompt(dtype, 140, heads, kv_heads, head_dim)
    whole = prompt.attend(kernels, 0, 140)
    queries = [0, 63, 64, 139]
    close(whole[queries], torch.stack([prompt.expected(query) for query in queries]), dtype)
    for size in (1, 13, 65):
        pieces = [prompt.attend(kernels, begin, min(begin + size, 140)) for begin in range(0, 140, size)]
        assert torch.equal(torch.cat(pieces), whole), size
    kernels.set_threads(2)
    assert torch.equal(prompt.attend(kernels, 0, 140), whole)


def test_a_token_that_is_no_number_does_not_reach_those_before_it(kernels: Kernels, dtype: torch.dtype) -> None:
    prompt = Int8Prompt(dtype, 120)
    whole = prompt.attend(kernels, 0, 120)
    block, slot = divmod(91, BLOCK)
    prompt.stored.key_scales[prompt.table[0, block], :, slot] = float("nan")
    prompt.stored.value_scales[prompt.table[0, block], :, slot] = float("inf")
    spoilt = prompt.attend(kernels, 0, 120)
    assert torch.equal(spoilt[:91], whole[:91])
    assert spoilt[91:].isnan().all()
    prompt.options["window"] = 20
    assert prompt.attend(kernels, 0, 120)[111:].isfinite().all()
