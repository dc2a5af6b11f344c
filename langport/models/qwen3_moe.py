"""Qwen3 with a mixture of experts in some or all layers. Source: Qwen3 technical report 2025."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from langport.layers.decoder import GatedMLP
from langport.layers.moe import STACKED_EXPERTS, SparseMoE
from langport.models.llama import Qwen3


class Qwen3MoE(Qwen3):
    """Qwen3MoeForCausalLM."""

    unstacked: ClassVar = STACKED_EXPERTS
    defaults: ClassVar = {
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
    }

    def mlp(self, number: int) -> nn.Module:
        config = self.config
        num_experts = config.get("num_experts") or config.get("num_local_experts", 128)
        is_dense = number in (config.get("mlp_only_layers") or ()) or (number + 1) % config["decoder_sparse_step"]
        if is_dense:
            return super().mlp(number)
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        experts = (GatedMLP(hidden, inner, config.get("hidden_act", "silu")) for _ in range(num_experts))
        renormalizes = bool(config.get("norm_topk_prob"))
        return SparseMoE(hidden, experts, config["num_experts_per_tok"], renormalizes=renormalizes)

    def window(self, number: int) -> int | None:
        return self.config["sliding_window"] if self.config.get("use_sliding_window") else None
