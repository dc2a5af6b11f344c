"""torch's operators that the engine applies to rows: each row's bits are the same in any company."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from langport.layers.activations import ACTIVATIONS
from langport.layers.norm import RMSNorm

SIZES = [6, 30, 96, 127, 384, 1000]


def rms_norm(x: Tensor) -> Tensor:
    norm = RMSNorm(x.shape[-1], 1e-6)
    norm.weight.data = torch.linspace(0.5, 1.5, x.shape[-1]).to(x.dtype)
    return norm(x)


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "rms_norm": rms_norm,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "softmax": partial(torch.softmax, dim=-1),
    "log_softmax": lambda x: x.float().log_softmax(-1),
    "argmax": lambda x: x.argmax(-1),
}


@pytest.fixture(params=[1, 2], autouse=True)
def _threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_is_the_same_in_any_company(name: str, dtype: torch.dtype) -> None:
    operator = OPERATORS[name]
    for size in SIZES:
        torch.manual_seed(size)
        x = (torch.randn(33, size) * 3).to(dtype)
        whole = operator(x)
        for rows in (1, 2, 3, 5, 8, 17):
            assert torch.equal(operator(x[4 : 4 + rows].clone()), whole[4 : 4 + rows]), (size, rows)
        wide = torch.cat((x, x), -1)  # a half of it is contiguous only in a single row
        assert torch.equal(operator(wide[:, size:]), whole), size


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_padding_changes_no_value(name: str) -> None:
    x = torch.linspace(-6, 6, 90).view(2, 45)
    plain = {"gelu": F.gelu, "silu": F.silu, "swish": F.silu, "tanh": F.tanh, "sigmoid": F.sigmoid}
    if name in plain:
        torch.testing.assert_close(ACTIVATIONS[name](x), plain[name](x))
    assert ACTIVATIONS[name](x).shape == x.shape
