"""A KV cache in 8-bit numbers, on torch's operators."""

from __future__ import annotations

import pytest
import torch

from langport.engine.memory import BLOCK_SIZE, allocate_caches
from langport.models.base import CacheSpec
from langport.ops.attention import QuantizedCache, in_int8

SPEC = CacheSpec(num_layers=1, kv_heads=2, head_dim=64)


def cache(dtype: torch.dtype = torch.float32) -> QuantizedCache:
    (made,) = allocate_caches(SPEC, 5, dtype, "cpu", in_int8=True)
    assert isinstance(made, QuantizedCache)
    return made


def test_numbers_are_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, 64) * torch.logspace(-6, 6, 50)[:, None, None]
    numbers, scales = in_int8(x)
    assert numbers.dtype == torch.int8
    assert scales.shape == (50, 3)
    assert torch.equal(numbers.abs().amax(-1), torch.full((50, 3), 127, dtype=torch.int8))
    off = (numbers.double() * scales.double()[..., None] - x.double()).abs()
    assert (off <= scales[..., None] * 0.5001).all()


def test_nothing_stays_nothing() -> None:
    numbers, scales = in_int8(torch.zeros(2, 8))
    assert not numbers.any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_gathered_and_nothing_else_changes(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    made = cache(dtype)
    keys, values = torch.randn(2, 20, 2, 64).to(dtype)
    slots = torch.arange(BLOCK_SIZE + 7, BLOCK_SIZE + 27)  # of the blocks 1 and 2
    made.write(slots, keys, values)
    before = made.gather(torch.tensor([[1, 2]]))
    for found, written in zip(before, (keys, values), strict=True):
        assert found.dtype == dtype
        assert found.shape == (1, 2, 2 * BLOCK_SIZE, 64)
        off = (found[0, :, 7:27].transpose(0, 1).float() - written.float()).abs()
        assert (off <= written.float().abs().amax(-1, keepdim=True) / 127).all()
        assert not found[0, :, :7].any()
    made.write(slots[:1], 100 * keys[:1], 100 * values[:1])
    after = made.gather(torch.tensor([[1, 2]]))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:, :, 8:], old[:, :, 8:])
        assert not torch.equal(new[:, :, 7], old[:, :, 7])


def test_a_token_takes_about_half_the_memory_of_bfloat16() -> None:
    made = cache(torch.bfloat16)
    num_bytes = sum(t.nbytes for t in (made.keys, made.values, made.key_scales, made.value_scales))
    assert SPEC.bytes_per_token(torch.int8) * 5 * BLOCK_SIZE == num_bytes
    assert SPEC.bytes_per_token(torch.int8) / SPEC.bytes_per_token(torch.bfloat16) == (64 + 4) / 128
