"""Mixtral: Mistral with a mixture of experts for the MLP. Source: Jiang et al. 2024."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.attention import DecoderBatch
from langport.layers.decoder import GatedMLP, Turn
from langport.layers.moe import SparseMoE
from langport.models.llama import Mistral


class Layer(nn.Module):
    """Llama's layer, with the name that checkpoints give to the mixture of experts."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], self_attn: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norms
        self.self_attn = self_attn
        self.block_sparse_moe = experts

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), batch, turn)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class Mixtral(Mistral):
    """MixtralForCausalLM. Of each expert, w1 is the gate, w3 goes up and w2 down."""

    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
    defaults: ClassVar = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}

    def layer(self, number: int) -> nn.Module:
        return Layer((self.norm_layer(), self.norm_layer()), self.attention(number), self.mlp(number))

    def mlp(self, number: int) -> nn.Module:
        config = self.config
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        experts = (
            GatedMLP(hidden, inner, config.get("hidden_act", "silu")) for _ in range(config.get("num_local_experts", 8))
        )
        return SparseMoE(hidden, experts, config.get("num_experts_per_tok", 2), renormalizes=True)
