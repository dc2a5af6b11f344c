"""A whole step of a decoder of Llama's form as one call of the native kernels: docs/adr/0006.

`csrc/step.h` says what is computed; here it is described to it once per model, and each step's inputs are handed over.
The results are those of the same layers called one by one, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p, pointer
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from langport.ops.attention import LayerCache
from langport.ops.native import DTYPES, Kernels, PackedInts, PackedWeight, Sequences, can_attend

MAX_PAIRS = 256
"""Most pairs of a head that are turned (kMostPairs)."""
GATES = {"silu": 0, "tanh_gelu": 1}


@dataclass(frozen=True)
class Norm:
    """x over its root mean square, times weight + offset."""

    weight: Tensor
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Linear:
    packed: PackedWeight | PackedInts
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Rotary:
    """Tables of `layers.rotary.RotaryEmbedding`."""

    cos: Tensor
    """(rows, pairs) in float32."""
    sin: Tensor
    trained_length: int | None


@dataclass(frozen=True)
class Layer:
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))), where each norm may be left out."""

    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    norms_heads: bool
    """Query and key are normalized head by head; else all heads together."""
    rotary: Rotary | None
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    scale: float
    softcap: float | None
    window: int | None


@dataclass(frozen=True)
class Form:
    """What all layers of a model have in common."""

    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    gate: str
    """One of GATES."""
    factor: float
    """On what attention and MLP add to x."""
    last_norm: Norm


class Inputs(Protocol):
    """What a step brings: see `layers.attention.DecoderBatch`."""

    @property
    def positions(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor | None: ...
    @property
    def slots(self) -> Tensor: ...
    @property
    def sequences(self) -> Sequences | None: ...
    @property
    def caches(self) -> list[LayerCache]: ...


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("offset", c_float), ("epsilon", c_float))


class _Linear(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("is_ints", c_int32))


class _Rotary(Structure):
    _fields_ = (("cosines", c_void_p), ("sines", c_void_p), ("pairs", c_int64), ("trained_length", c_int64))


class _Layer(Structure):
    _fields_ = (
        ("before_attention", _Norm),
        ("after_attention", _Norm),
        ("before_mlp", _Norm),
        ("after_mlp", _Norm),
        ("query_norm", _Norm),
        ("key_norm", _Norm),
        ("norms_heads", c_int32),
        ("rotary", c_int32),
        ("qkv", _Linear),
        ("out", _Linear),
        ("gate_up", _Linear),
        ("down", _Linear),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    )


class _Model(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("gate", c_int32),
        ("hidden", c_int64),
        ("inner", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("factor", c_float),
        ("num_layers", c_int64),
        ("layers", POINTER(_Layer)),
        ("rotaries", POINTER(_Rotary)),
        ("last_norm", _Norm),
    )


class _Input(Structure):
    _fields_ = (
        ("num_tokens", c_int64),
        ("x", c_void_p),
        ("out", c_void_p),
        ("positions", c_void_p),
        ("lengths", c_void_p),
        ("slots", c_void_p),
        ("sequences", c_void_p),
    )


class NativeStep:
    """All layers of a model and its last norm."""

    def __init__(self, kernels: Kernels, form: Form, layers: Sequence[Layer]) -> None:
        self._function = kernels.library.langport_step
        self._kept = (form, tuple(layers))  # what the structures point to
        rotaries = list(dict.fromkeys(layer.rotary for layer in layers if layer.rotary is not None))
        tables = [_Rotary(r.cos.data_ptr(), r.sin.data_ptr(), r.cos.shape[1], r.trained_length or 0) for r in rotaries]
        self._layers = (_Layer * len(layers))(*(_layer(layer, rotaries) for layer in layers))
        self._rotaries = (_Rotary * max(len(tables), 1))(*tables)
        self._model = _Model(
            DTYPES[form.dtype],
            GATES[form.gate],
            layers[0].qkv.packed.in_features,
            layers[0].down.packed.in_features,
            form.heads,
            form.kv_heads,
            form.head_dim,
            0,
            form.factor,
            len(layers),
            self._layers,
            self._rotaries,
            _norm(form.last_norm),
        )
        self._model_pointer = pointer(self._model)
        self._caches: list[LayerCache] | None = None

    def run(self, x: Tensor, inputs: Inputs) -> Tensor:
        """Embeddings (num_tokens, hidden_size), which are overwritten, to the states behind the last norm.

        Keys and values of the step's tokens are left in the caches.
        """
        if inputs.caches is not self._caches:
            self._use(inputs.caches)
        assert inputs.sequences is not None
        assert inputs.lengths is not None
        out = torch.empty_like(x)
        step = _Input(
            x.shape[0],
            x.data_ptr(),
            out.data_ptr(),
            inputs.positions.data_ptr(),
            inputs.lengths.data_ptr(),
            inputs.slots.data_ptr(),
            ctypes.addressof(inputs.sequences.native),  # type: ignore[attr-defined]
        )
        self._function(self._model_pointer, byref(step))
        return out

    def _use(self, caches: list[LayerCache]) -> None:
        for layer, cache in zip(self._layers, caches, strict=True):
            assert can_attend(cache)
            layer.keys, layer.values, layer.key_scales, layer.value_scales = cache.pointers()
        self._model.block_size = caches[0].block_size
        self._caches = caches


def _norm(norm: Norm | None) -> _Norm:
    return _Norm() if norm is None else _Norm(norm.weight.data_ptr(), norm.offset, norm.eps)


def _linear(linear: Linear) -> _Linear:
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return _Linear(linear.packed.handle, bias, isinstance(linear.packed, PackedInts))


def _layer(layer: Layer, rotaries: list[Rotary]) -> _Layer:
    return _Layer(
        _norm(layer.before_attention),
        _norm(layer.after_attention),
        _norm(layer.before_mlp),
        _norm(layer.after_mlp),
        _norm(layer.query_norm),
        _norm(layer.key_norm),
        layer.norms_heads,
        -1 if layer.rotary is None else rotaries.index(layer.rotary),
        _linear(layer.qkv),
        _linear(layer.out),
        _linear(layer.gate_up),
        _linear(layer.down),
        layer.scale,
        layer.softcap or 0.0,
        layer.window or 0,
    )
