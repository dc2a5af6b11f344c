"""torch's matrix products on one thread: each row's bits are the same in any company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from langport.layers.linear import Bits, QuantizedLinear, quantize
from langport.ops import native
from langport.ops.rows import make_steady


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [(64, 96), (320, 384), (1000, 77)])
def test_a_product(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*sizes)
    make_steady(linear)
    x = torch.randn(140, sizes[0])
    whole = linear(x)
    torch.testing.assert_close(whole, F.linear(x, linear.weight, linear.bias))
    for rows in (1, 2, 3, 4, 5, 17, 100):
        assert torch.equal(linear(x[9 : 9 + rows]), whole[9 : 9 + rows]), rows
    assert torch.equal(linear(x[:2, None]), whole[:2, None])
    assert linear(x[:0]).shape == (0, sizes[1])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sizes", [(64, 96), (256, 80), (40, 64), (1000, 77)])
def test_a_quantized_product(
    sizes: tuple[int, int], bits: Bits, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "kernels", lambda: None)  # tests/unit/ops has theirs
    """Of sizes, too, that torch's integer kernels do not know: the 8-bit one crashes on them."""
    torch.manual_seed(0)
    weight = quantize(torch.randn(sizes[1], sizes[0]), bits, dtype)
    linear = QuantizedLinear(weight, None)
    x = torch.randn(70, sizes[0]).to(dtype)
    whole = linear(x)
    torch.testing.assert_close(whole.float(), x.float() @ weight.dequantize(torch.float32).t(), rtol=0.02, atol=0.5)
    for rows in (1, 2, 3, 4, 5, 17, 60):
        assert torch.equal(linear(x[9 : 9 + rows]), whole[9 : 9 + rows]), rows
