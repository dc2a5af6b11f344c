"""The native kernels of encoders against float64, and bit for bit against themselves in other company; every level."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from langport.layers.activations import activation
from langport.layers.encoder import DistanceBiases, EncoderBatch
from langport.ops.native import ACTIVATIONS, Kernels, PackedWeight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PRECISION = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LENGTHS = [1, 70, 2, 33, 16, 200, 15]
"""Less than a vector, whole ones, and the rest of one; odd and even."""


def offsets_of(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def random_states(num_tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, key and value as parts of one projection."""
    torch.manual_seed(head_dim)
    whole = torch.randn(num_tokens, 3, heads, head_dim).to(dtype)
    return whole.unbind(1)


def expected_attention(parts: tuple[Tensor, ...], lengths: list[int], scale: float, biases: Tensor | None) -> Tensor:
    """In float64, sequence by sequence."""
    outs = []
    for sequence in zip(*(part.double().split(lengths) for part in parts), strict=True):
        query, key, value = (part.transpose(0, 1) for part in sequence)
        scores = query @ key.transpose(1, 2) * scale
        if biases is not None:
            length = scores.shape[-1]
            middle = biases.shape[1] // 2
            distances = torch.arange(length) - torch.arange(length)[:, None]
            scores = scores + biases.double()[:, middle + distances]
        outs.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outs)


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=4 * PRECISION[dtype], atol=4 * PRECISION[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [7, 32, 40, 64, 96, 256])
class TestAttention:
    @pytest.mark.parametrize("is_biased", [False, True])
    def test_equals_softmax_in_float64(
        self, kernels: Kernels, dtype: torch.dtype, head_dim: int, is_biased: bool
    ) -> None:
        parts = random_states(sum(LENGTHS), 3, head_dim, dtype)
        values = torch.randn(3, 2 * max(LENGTHS) - 1) if is_biased else None
        biases = None if values is None else DistanceBiases.of(values)
        batch = EncoderBatch(torch.empty(0), torch.empty(0), offsets_of(LENGTHS), kernels)

        out = batch.attend(*parts, scale=head_dim**-0.5, biases=biases)

        expected = expected_attention(parts, LENGTHS, head_dim**-0.5, values)
        close(out, expected.flatten(1), dtype)

    def test_a_sequence_is_the_same_in_any_company(self, kernels: Kernels, dtype: torch.dtype, head_dim: int) -> None:
        parts = random_states(sum(LENGTHS), 3, head_dim, dtype)
        offsets = offsets_of(LENGTHS)
        together = kernels.attend_spans(*parts, offsets, scale=0.3)
        for begin, end in pairwise(offsets):
            alone = kernels.attend_spans(*(p[begin:end] for p in parts), offsets_of([end - begin]), scale=0.3)
            assert torch.equal(together[begin:end], alone)
        kernels.set_threads(3)
        assert torch.equal(kernels.attend_spans(*parts, offsets, scale=0.3), together)


def test_projections_that_lie_apart(kernels: Kernels) -> None:
    query, key, value = (part.contiguous() for part in random_states(20, 4, 16, torch.float32))
    expected = kernels.attend_spans(query, key, value, offsets_of([20]), scale=0.25)
    wide = torch.randn(20, 4, 48)
    wide[..., 10:26] = key
    assert torch.equal(kernels.attend_spans(query, wide[..., 10:26], value, offsets_of([20]), scale=0.25), expected)


def test_what_is_not_finite_stays_in_its_sequence(kernels: Kernels) -> None:
    query, key, value = (part.clone() for part in random_states(30, 1, 32, torch.bfloat16))
    key[3, 0, 5] = float("nan")
    out = kernels.attend_spans(query, key, value, offsets_of([10, 20]), scale=0.2)
    assert out[:10].isnan().all()
    assert out[10:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [5, 64, 384, 391])
@pytest.mark.parametrize("has_residual", [False, True])
def test_layer_norm(kernels: Kernels, dtype: torch.dtype, columns: int, has_residual: bool) -> None:
    torch.manual_seed(columns)
    x, residual = (torch.randn(37, columns).to(dtype) + 3 for _ in range(2))
    weight, bias = (torch.randn(columns).to(dtype) for _ in range(2))
    second = residual if has_residual else None
    added = x.double() + (residual.double() if has_residual else 0)
    expected = F.layer_norm(added, (columns,), weight.double(), bias.double(), 1e-5)

    out = kernels.layer_norm(x, weight, bias, 1e-5, second)

    torch.testing.assert_close(out.double(), expected, rtol=4 * PRECISION[dtype], atol=1e-5)
    kernels.set_threads(3)
    alone = [kernels.layer_norm(x[i], weight, bias, 1e-5, second if second is None else second[i]) for i in range(37)]
    assert torch.equal(torch.stack(alone), out)
    without = kernels.layer_norm(x, weight, None, 1e-5, second)
    torch.testing.assert_close(without.double(), expected - bias.double(), rtol=4 * PRECISION[dtype], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(kernels: Kernels, dtype: torch.dtype, name: str) -> None:
    x = torch.linspace(-12, 12, 3 * 333).to(dtype).view(3, 333)
    expected = activation(name)(x.double())

    out = kernels.activate_(x.clone(), name)

    torch.testing.assert_close(out.double(), expected, rtol=PRECISION[dtype], atol=2e-6)
    weight = PackedWeight(kernels, torch.randn(70, 333, dtype=torch.float32).to(dtype))
    bias = torch.randn(70).to(dtype)
    apart = kernels.activate_(kernels.linear(x, weight, bias), name)
    assert torch.equal(kernels.linear(x, weight, bias, activation=name), apart)
