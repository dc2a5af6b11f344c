"""Mixtral: Mistral with a mixture of experts for the MLP. Source: Jiang et al. 2024."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from langport.layers.decoder import GatedMLP
from langport.layers.moe import STACKED_EXPERTS, SparseMoE
from langport.models.llama import Mistral


class Mixtral(Mistral):
    """MixtralForCausalLM. Of each expert, w1 is the gate, w3 goes up and w2 down."""

    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
    renamed: ClassVar = {".block_sparse_moe.": ".mlp."}
    unstacked: ClassVar = STACKED_EXPERTS
    defaults: ClassVar = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}

    def mlp(self, number: int) -> nn.Module:
        config = self.config
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        experts = (
            GatedMLP(hidden, inner, config.get("hidden_act", "silu")) for _ in range(config.get("num_local_experts", 8))
        )
        return SparseMoE(hidden, experts, config.get("num_experts_per_tok", 2), renormalizes=True)
