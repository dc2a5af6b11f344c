"""Which decoders compute a step in one call of the native kernels, and how their layers are described to it.

A model is read module by module. What is not exactly of a class named here has a form that the call does not know, and
its model computes layer by layer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from langport.layers.decoder import GatedMLP, SelfAttention
from langport.layers.linear import QuantizedLinear
from langport.layers.norm import RMSNorm
from langport.layers.rotary import RotaryEmbedding
from langport.models import gemma, granite, olmo2
from langport.models.llama import Layer, Llama, NormedAttention
from langport.ops import step
from langport.ops.native import DTYPES, Kernels, NativeLinear
from langport.ops.step import NativeStep


class _OtherForm(Exception):
    """The model has a part that the native step does not know."""


class _NormNames(NamedTuple):
    """Where a layer keeps its norms; None: it has none there."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


_BEFORE = _NormNames("input_layernorm", None, "post_attention_layernorm", None)
LAYERS: dict[type[nn.Module], _NormNames] = {
    Layer: _BEFORE,
    granite.ScaledLayer: _BEFORE,
    gemma.SandwichLayer: _NormNames(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    olmo2.Layer: _NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
}
ATTENTIONS: dict[type[nn.Module], Literal["no norms", "norms of heads", "norms of all"]] = {
    SelfAttention: "no norms",
    NormedAttention: "norms of heads",
    gemma.Gemma3Attention: "norms of heads",
    olmo2.Attention: "norms of all",
}
"""What is done to query and key."""
NORMS: dict[type[nn.Module], float] = {RMSNorm: 0.0, gemma.GemmaNorm: 1.0}
"""What is added to the weights of norms."""


def native_step(model: Llama, kernels: Kernels) -> NativeStep | None:
    """The step of a model whose weights are packed; None for one of another form."""
    if type(model).forward is not Llama.forward or model.is_interleaved:
        return None
    try:
        rotaries: dict[RotaryEmbedding, step.Rotary] = {}
        layers = [_layer(model, number, rotaries) for number in range(len(model.layers))]
        last_norm = _norm(model, "norm")
    except _OtherForm:
        return None
    attention, mlp = model.layers[0].get_submodule("self_attn"), model.layers[0].get_submodule("mlp")
    assert isinstance(attention, SelfAttention)
    assert isinstance(mlp, GatedMLP)
    assert mlp.gate is not None
    assert last_norm is not None
    form = step.Form(
        last_norm.weight.dtype,
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        mlp.gate,
        getattr(model.layers[0], "factor", 1.0),
        last_norm,
    )
    is_covered = form.dtype in DTYPES and form.head_dim % 2 == 0
    return NativeStep(kernels, form, layers) if is_covered else None


def _layer(model: Llama, number: int, rotaries: dict[RotaryEmbedding, step.Rotary]) -> step.Layer:
    """Raises: _OtherForm."""
    layer = model.layers[number]
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    if type(layer) not in LAYERS or type(attention) not in ATTENTIONS or type(mlp) is not GatedMLP or mlp.gate is None:
        raise _OtherForm
    assert isinstance(attention, SelfAttention)
    norms = LAYERS[type(layer)]
    kind = ATTENTIONS[type(attention)]
    return step.Layer(
        before_attention=_norm(layer, norms.before_attention),
        after_attention=_norm(layer, norms.after_attention),
        before_mlp=_norm(layer, norms.before_mlp),
        after_mlp=_norm(layer, norms.after_mlp),
        query_norm=_norm(attention, None if kind == "no norms" else "q_norm"),
        key_norm=_norm(attention, None if kind == "no norms" else "k_norm"),
        norms_heads=kind == "norms of heads",
        rotary=_rotary(model.rotary_of(number), rotaries),
        qkv=_linear(attention.qkv_proj),
        out=_linear(attention.o_proj),
        gate_up=_linear(mlp.gate_up_proj),
        down=_linear(mlp.down_proj),
        scale=attention.scale,
        softcap=attention.softcap,
        window=attention.window,
    )


def _norm(owner: nn.Module, name: str | None) -> step.Norm | None:
    if name is None:
        return None
    module = owner.get_submodule(name)
    if type(module) not in NORMS:
        raise _OtherForm
    assert isinstance(module, RMSNorm | gemma.GemmaNorm)
    return step.Norm(module.weight.detach(), module.eps, NORMS[type(module)])


def _linear(module: nn.Module) -> step.Linear:
    if not isinstance(module, NativeLinear | QuantizedLinear) or module.packed is None:
        raise _OtherForm
    return step.Linear(module.packed, module.bias)


def _rotary(rotary: RotaryEmbedding | None, known: dict[RotaryEmbedding, step.Rotary]) -> step.Rotary | None:
    if rotary is None:
        return None
    if rotary.rotary_dim % 2 or rotary.rotary_dim // 2 > step.MAX_PAIRS:
        raise _OtherForm
    if rotary not in known:
        known[rotary] = step.Rotary(rotary.cos, rotary.sin, rotary.trained_length)
    return known[rotary]
