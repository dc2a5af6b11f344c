"""The mixture of experts against the plain sum over every token's experts."""

from __future__ import annotations

import pytest
import torch

from langport.layers.decoder import GatedMLP
from langport.layers.moe import SparseMoE


@pytest.mark.parametrize("renormalizes", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 33])
@torch.inference_mode()
def test_every_token_is_the_shared_sum_of_its_experts(num_tokens: int, renormalizes: bool) -> None:
    torch.manual_seed(num_tokens)
    moe = SparseMoE(16, [GatedMLP(16, 24, "silu") for _ in range(7)], 3, renormalizes=renormalizes)
    x = torch.randn(num_tokens, 16)
    shares = moe.gate(x).softmax(-1)

    found = moe(x)

    for token in range(num_tokens):
        best = shares[token].topk(3).indices.tolist()
        total = shares[token, best].sum() if renormalizes else 1.0
        expected = sum(moe.experts[e](x[token]) * shares[token, e] / total for e in best)
        torch.testing.assert_close(found[token], expected)


@torch.inference_mode()
def test_an_expert_that_nobody_chooses_is_not_run() -> None:
    moe = SparseMoE(8, [GatedMLP(8, 8, "silu") for _ in range(3)], 1, renormalizes=True)
    moe.gate.weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, 8))
    ran: list[tuple[int, int]] = []
    for number, expert in enumerate(moe.experts):
        expert.register_forward_hook(lambda _m, inputs, _o, number=number: ran.append((number, len(inputs[0]))))

    moe(torch.tensor([[1.0] * 8, [-1.0] * 8, [2.0] * 8]))

    assert ran == [(0, 2), (2, 1)]
