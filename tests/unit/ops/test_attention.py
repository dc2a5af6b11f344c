"""Soft-capped scores against the formula, and against the uncapped operator where the cap is out of reach."""

from __future__ import annotations

import torch

from langport.ops.attention import KeyBiases, additive_mask, fold_mask, grouped_attention


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sequences of three queries, four heads that share two kv heads, a context of five."""
    torch.manual_seed(0)
    query = torch.randn(2, 3, 4, 8) * 3
    keys, values = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    visible = torch.arange(5) <= torch.arange(2, 5)[:, None]
    mask = additive_mask(visible.expand(2, 1, 3, 5), torch.float32)
    return query, keys, values, fold_mask(mask, 2, 2)


def test_a_cap_bounds_the_scores_before_the_mask() -> None:
    query, keys, values, mask = inputs()

    capped = grouped_attention(query, keys, values, mask, 0.5, softcap=1.5)

    for sequence in range(2):
        for row in range(3):
            for head in range(4):
                key, value = keys[sequence, head // 2, : row + 3], values[sequence, head // 2, : row + 3]
                scores = 1.5 * torch.tanh(key @ query[sequence, row, head] * 0.5 / 1.5)
                torch.testing.assert_close(capped[sequence, row, head], scores.softmax(0) @ value)


def test_a_cap_out_of_reach_changes_nothing() -> None:
    query, keys, values, mask = inputs()
    plain = grouped_attention(query, keys, values, mask, 0.5)
    torch.testing.assert_close(grouped_attention(query, keys, values, mask, 0.5, softcap=1e6), plain, atol=1e-4, rtol=0)
    assert not torch.allclose(grouped_attention(query, keys, values, mask, 0.5, softcap=1.5), plain, atol=1e-2)


def test_biases_lie_where_their_keys_do() -> None:
    values = torch.randn(3, 6)
    positions = torch.tensor([[0, 1], [4, 5]])
    for biases, column in (
        (KeyBiases.by_distance(values), lambda query, key: query - key),
        (KeyBiases.by_position(values), lambda query, key: key),
    ):
        mask = biases.mask(positions, 16, torch.float32)
        assert mask.shape == (2, 3, 2, 16)
        for sequence, row in ((0, 0), (0, 1), (1, 0), (1, 1)):
            query = int(positions[sequence, row])
            expected = [values[:, column(query, key)] for key in range(query + 1)]
            assert torch.equal(mask[sequence, :, row, : query + 1], torch.stack(expected, 1))
            assert mask[sequence, :, row, query + 1 :].max() == float("-inf")
