"""The native CPU kernels of `csrc`, called through ctypes on raw pointers.

A result's row depends on its own inputs only: never on the rows computed beside it, nor on the number of threads.
Without the library (no compiler at installation) everything runs on torch's own operators.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langport.errors import ConfigError
from langport.ops.attention import KeyBiases, LayerCache

log = logging.getLogger("langport.engine")

LIBRARY = Path(__file__).with_name("_kernels.so")
VARIABLE = "LANGPORT_CPU_KERNELS"
"""Environment variable: a level, or `torch` for no native kernels. Unset: the best level of this processor."""
LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "neon", "neon_dot")
INTERFACE = 13
"""`langport_interface` of the library that this file describes."""
MAX_GROUP = 1024
"""Most values of a row that may share a scale where a row has several (kIntLargestBlock)."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATIONS = {
    "gelu": 1,
    "gelu_fast": 2,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "silu": 4,
    "swish": 4,
    "quick_gelu": 5,
}
"""Activation functions that there are kernels for; the numbers are those of encoder.h."""


class NotBuilt(Exception):
    """There is no usable library; the message says why."""


class _AttentionJob(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("query", c_void_p),
        ("query_token_stride", c_int64),
        ("query_head_stride", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("out", c_void_p),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("sinks", c_void_p),
        ("is_causal", c_bool),
        ("biases", c_void_p),
        ("bias_stride", c_int64),
        ("own_column", c_int64),
    )


class _SpanAttentionJob(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("stride", c_int64),
        ("out", c_void_p),
        ("scale", c_float),
        ("biases", c_void_p),
        ("bias_stride", c_int64),
        ("own_column", c_int64),
    )


class _SequenceList(Structure):
    _fields_ = (
        ("num_seqs", c_int64),
        ("rows", c_void_p),
        ("positions", c_void_p),
        ("counts", c_void_p),
        ("tables", c_void_p),
        ("table_stride", c_int64),
    )


@dataclass(frozen=True)
class Sequences:
    """The sequences of a step as the attention kernel reads them; int64 arrays, one entry per sequence."""

    rows: NDArray[np.int64]
    """The first of each sequence's rows among the step's tokens."""
    counts: NDArray[np.int64]
    """How many rows it has."""
    positions: NDArray[np.int64]
    """Position of the first; for attention to an encoder, how many positions that has."""
    tables: NDArray[np.int64]
    """(num_seqs, max_blocks) block numbers."""

    def __post_init__(self) -> None:
        for array in (self.rows, self.counts, self.positions, self.tables):
            assert array.dtype == np.int64
            assert array.flags.c_contiguous
        pointers = (array.ctypes.data for array in (self.rows, self.positions, self.counts, self.tables))
        object.__setattr__(self, "native", _SequenceList(len(self.rows), *pointers, self.tables.shape[1]))


class PackedWeight:
    """A matrix (out_features, in_features) as the kernels read it, in memory of its own."""

    def __init__(self, kernels: Kernels, weight: Tensor) -> None:
        """Raises: MemoryError."""
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.kernels = kernels
        weight = weight.contiguous()
        pack = kernels.library.langport_pack
        self.handle: int | None = pack(DTYPES[weight.dtype], *weight.shape, weight.data_ptr(), weight.stride(0))
        if not self.handle:
            raise MemoryError(f"no memory for a packed weight of {weight.numel() * weight.itemsize / 2**20:.0f} MiB")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.kernels.library.langport_free(self.handle)


class PackedInts:
    """A matrix (out_features, in_features) of whole numbers and their scales as the kernels read it."""

    def __init__(self, kernels: Kernels, values: Tensor, scale: Tensor, bits: int) -> None:
        """values int8 (out_features, in_features); scale (out_features, groups), of the activations' dtype.

        Raises: MemoryError.
        """
        self.out_features, self.in_features = values.shape
        self.dtype = scale.dtype
        self.kernels = kernels
        values, scale = values.contiguous(), scale.contiguous()
        group = self.in_features // scale.shape[1]
        self.handle: int | None = kernels.library.langport_pack_ints(
            DTYPES[scale.dtype], bits, *values.shape, group, values.data_ptr(), scale.data_ptr()
        )
        if not self.handle:
            raise MemoryError(f"no memory for a packed weight of {values.numel() * bits / 2**23:.0f} MiB")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.kernels.library.langport_free_ints(self.handle)


def can_pack_ints(values: Tensor, scale: Tensor, bits: int) -> bool:
    """Whether `PackedInts` takes these."""
    group = values.shape[1] // scale.shape[1]
    is_grouped = scale.shape[1] > 1
    per_line = 32 // bits
    return scale.dtype in DTYPES and (not is_grouped or (group % per_line == 0 and group <= MAX_GROUP))


class Kernels:
    """The library, set to one level. The level and the number of threads belong to the process."""

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.library = library
        self.level = level

    def set_threads(self, count: int) -> None:
        """How many threads share the work, the calling one included."""
        self.library.langport_set_threads(count)

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        """x (..., in_features) times the transposed weight, plus bias, summed in float32 and rounded once.

        Then comes the activation, one of ACTIVATIONS, rounded once more.
        """
        code = 0 if activation is None else ACTIVATIONS[activation]
        return self._multiply(self.library.langport_activated_linear, x, weight, bias, code)

    def quantize(self, weight: Tensor, bits: int, group_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """values int8 (out_features, in_features) and scales (out_features, num_groups) of `dtype`, as
        `layers.linear.quantize` finds them. weight (out_features, in_features) is finite, or its scale is not."""
        weight = weight.contiguous()
        num_rows, num_columns = weight.shape
        values = torch.empty(num_rows, num_columns, dtype=torch.int8)
        scale = torch.empty(num_rows, num_columns // group_size, dtype=dtype)
        self.library.langport_quantize(
            DTYPES[weight.dtype],
            DTYPES[dtype],
            bits,
            num_rows,
            num_columns,
            group_size,
            weight.data_ptr(),
            values.data_ptr(),
            scale.data_ptr(),
        )
        return values, scale

    def int_linear(self, x: Tensor, weight: PackedInts, bias: Tensor | None = None) -> Tensor:
        """The same with whole numbers for weights.

        x becomes 8-bit numbers, with a scale for every group of the weight, or every 128 values where a row of it has
        one scale. Their products are added up exactly in a group, and the groups in float32.
        """
        return self._multiply(self.library.langport_int_linear, x, weight, bias)

    def _multiply(
        self,
        function: Callable[..., None],
        x: Tensor,
        weight: PackedWeight | PackedInts,
        bias: Tensor | None,
        *more: int,
    ) -> Tensor:
        assert x.dtype == weight.dtype, f"{x.dtype} activations, {weight.dtype} weight"
        rows = x.reshape(-1, weight.in_features)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = torch.empty(*x.shape[:-1], weight.out_features, dtype=x.dtype)
        function(
            weight.handle,
            rows.shape[0],
            rows.data_ptr(),
            rows.stride(0),
            None if bias is None else bias.data_ptr(),
            *more,
            out.data_ptr(),
            weight.out_features,
        )
        return out

    def attend(
        self,
        query: Tensor,
        cache: LayerCache,
        sequences: Sequences,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        biases: KeyBiases | None = None,
        is_causal: bool = True,
    ) -> Tensor:
        """Softmax attention over a paged cache; see `DecoderBatch.attend`.

        query (num_tokens, heads, head_dim) of the cache's dtype. Returns (num_tokens, heads, head_dim).
        """
        num_tokens, heads, head_dim = query.shape
        assert query.dtype == cache.dtype
        if query.stride(2) != 1:
            query = query.contiguous()
        out = torch.empty(num_tokens, heads, head_dim, dtype=query.dtype)
        if sinks is not None:
            sinks = sinks.float().contiguous()
        job = _AttentionJob(
            DTYPES[query.dtype],
            heads,
            cache.kv_heads,
            head_dim,
            cache.block_size,
            query.data_ptr(),
            query.stride(0),
            query.stride(1),
            *cache.pointers(),
            out.data_ptr(),
            scale,
            softcap or 0.0,
            window or 0,
            None if sinks is None else sinks.data_ptr(),
            is_causal,
            None if biases is None else biases.table.data_ptr(),
            0 if biases is None else biases.table.stride(0),
            -1 if biases is None or biases.own_column is None else biases.own_column,
        )
        self.library.langport_attend(byref(job), byref(sequences.native))  # type: ignore[attr-defined]
        return out

    def attend_spans(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: NDArray[np.int64],
        *,
        scale: float,
        biases: Tensor | None = None,
        own_column: int = 0,
    ) -> Tensor:
        """Softmax attention of sequences in which every token sees all others; see `EncoderBatch.attend`.

        query, key and value (num_tokens, heads, head_dim); `offsets` (num_seqs + 1,) are the sequences' first rows, and
        the end; `biases` as in `DistanceBiases`. Returns (num_tokens, heads, head_dim).
        """
        num_tokens, heads, head_dim = query.shape
        parts = (query, key, value)
        whole = (query.stride(0), head_dim, 1)
        if any(part.stride() != whole for part in parts):
            parts = (query.contiguous(), key.contiguous(), value.contiguous())
        assert offsets.dtype == np.int64
        assert offsets.flags.c_contiguous
        out = torch.empty(num_tokens, heads, head_dim, dtype=query.dtype)
        job = _SpanAttentionJob(
            DTYPES[query.dtype],
            heads,
            head_dim,
            *(part.data_ptr() for part in parts),
            parts[0].stride(0),
            out.data_ptr(),
            scale,
            None if biases is None else biases.data_ptr(),
            0 if biases is None else biases.stride(0),
            own_column,
        )
        self.library.langport_attend_spans(byref(job), len(offsets) - 1, offsets.ctypes.data)
        return out

    def activate_(self, x: Tensor, name: str) -> Tensor:
        """x (..., columns), contiguous, becomes what one of ACTIVATIONS makes of it; returns it."""
        assert x.is_contiguous()
        rows = x.numel() // x.shape[-1]
        self.library.langport_activate(DTYPES[x.dtype], ACTIVATIONS[name], rows, x.shape[-1], x.data_ptr(), x.shape[-1])
        return x

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None
    ) -> Tensor:
        """The layer norm of x (..., columns), plus `residual` where there is one, rounded once."""
        x = x.contiguous()
        if residual is not None:
            assert residual.shape == x.shape
            residual = residual.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.langport_layer_norm(
            DTYPES[x.dtype],
            x.numel() // x.shape[-1],
            x.shape[-1],
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            eps,
            out.data_ptr(),
        )
        return out

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up for two halves (rows, columns) of one matrix, rounded once."""
        return self._gate(self.library.langport_silu_mul, gate, up)

    def gelu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """The same with the tanh form of GELU."""
        return self._gate(self.library.langport_gelu_mul, gate, up)

    @staticmethod
    def _gate(function: Callable[..., None], gate: Tensor, up: Tensor) -> Tensor:
        rows, columns = gate.shape
        assert gate.stride() == up.stride()
        assert gate.stride(1) == 1
        out = torch.empty(rows, columns, dtype=gate.dtype)
        function(DTYPES[gate.dtype], rows, columns, gate.data_ptr(), up.data_ptr(), gate.stride(0), out.data_ptr())
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
        """x (num_tokens, columns) or (num_tokens, heads, columns), over its root mean square, times weight + offset."""
        rows = x if x.dim() == 3 else x[:, None]
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.langport_rms_norm(
            DTYPES[x.dtype],
            *rows.shape,
            rows.data_ptr(),
            rows.stride(0),
            rows.stride(1),
            weight.data_ptr(),
            offset,
            eps,
            out.data_ptr(),
        )
        return out

    def hide_(self, logits: Tensor, rows: Tensor, bits: Tensor) -> None:
        """Make what is forbidden minus infinity, in `rows` (num_masks,) of float32 logits (num_seqs, vocab_size).

        bits (num_masks, words) int32: a bit per token, that of token 0 lowest, set where it is allowed.
        """
        assert logits.dtype == torch.float32
        assert logits.stride(1) == 1
        assert rows.dtype == torch.int64
        assert 32 * bits.shape[1] >= logits.shape[1]
        self.library.langport_hide(
            len(bits),
            rows.data_ptr(),
            bits.data_ptr(),
            bits.shape[1],
            logits.shape[1],
            logits.stride(0),
            logits.data_ptr(),
        )

    def multiply_adds(self, dtype: torch.dtype, rounds: int) -> float:
        """Multiply in registers, as fast as this level can for `dtype`; the number of operations done."""
        return float(self.library.langport_multiply_adds(DTYPES[dtype], rounds))

    def int_multiply_adds(self, rounds: int) -> float:
        """The same with whole numbers of 8 bits."""
        return float(self.library.langport_int_multiply_adds(rounds))

    def read_memory(self, data: Tensor) -> None:
        """Read a contiguous tensor as fast as memory gives it."""
        self.library.langport_read_memory(data.data_ptr(), data.nbytes)


class NativeLinear(nn.Module):
    """Stands for an `nn.Linear`, whose weight it holds packed."""

    def __init__(self, kernels: Kernels, linear: nn.Linear, *, is_tied: bool = False) -> None:
        """`is_tied`: the model keeps the weight elsewhere, too, as embeddings."""
        super().__init__()
        self.packed = PackedWeight(kernels, linear.weight.detach())
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.num_weights = 0 if is_tied else linear.weight.numel()
        """Parameters that the model has here only."""

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """With the name of one of ACTIVATIONS, what that makes of the result."""
        return self.packed.kernels.linear(x, self.packed, self.bias, activation=activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def can_attend(cache: LayerCache) -> bool:
    """Whether the attention kernel covers this layer: the same answer in every step."""
    return cache.dtype in DTYPES and cache.head_dim % 2 == 0


def can_pack(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a NativeLinear can stand for the module."""
    return type(module) is nn.Linear and module.weight.dtype in DTYPES


def use_kernels(model: nn.Module, kernels: Kernels, *, max_weights: int | None = None) -> None:
    """Replace every plain `nn.Linear` of `model`, one at a time: its weight is packed, then let go.

    Modules whose class has an attribute `kernels` get it. `max_weights`: larger layers stay as they are.
    Raises: MemoryError.
    """
    embeddings = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in list(model.named_modules()):
        if can_pack(module):
            if max_weights is not None and module.weight.numel() > max_weights:
                continue
            is_tied = module.weight.data_ptr() in embeddings
            model.set_submodule(name, NativeLinear(kernels, module, is_tied=is_tied))
        elif hasattr(type(module), "kernels"):
            module.kernels = kernels


@cache
def kernels() -> Kernels | None:
    """The kernels that this process uses, chosen once; None: torch's own operators.

    Raises: ConfigError when the environment asks for a level that this machine does not have.
    """
    wanted = os.environ.get(VARIABLE) or None
    if wanted == "torch":
        return None
    if wanted is not None and wanted not in LEVELS:
        raise ConfigError(f"{VARIABLE}={wanted}: there is no such level; use one of torch, {', '.join(LEVELS)}")
    try:
        library = load_library()
    except NotBuilt as error:
        if wanted is not None:
            raise ConfigError(f"{VARIABLE}={wanted}, but the native kernels are not built: {error}") from error
        return None
    chosen = choose_level(library, wanted)
    if chosen is None:
        raise ConfigError(
            f"{VARIABLE}={wanted}: this processor lacks it; here are {', '.join(levels_here())}, and torch"
        )
    return chosen


def describe() -> str:
    """What `kernels` chose, for the log."""
    chosen = kernels()
    if chosen is not None:
        return chosen.level
    if os.environ.get(VARIABLE) == "torch":
        return f"off ({VARIABLE}=torch)"
    try:
        load_library()
    except NotBuilt as error:
        return f"not built: {error}"
    raise AssertionError("the library is there, so kernels() uses it")


def levels_here() -> list[str]:
    """The levels that this processor has, the slowest first. Raises: NotBuilt."""
    library = load_library()
    return [level for level in LEVELS if choose_level(library, level) is not None]


def choose_level(library: ctypes.CDLL, name: str | None) -> Kernels | None:
    """The kernels at the named level, or the best; None when the processor lacks it."""
    level = library.langport_choose_level(None if name is None else name.encode())
    return None if level is None else Kernels(library, level.decode())


@cache
def load_library() -> ctypes.CDLL:
    """Raises: NotBuilt."""
    if not LIBRARY.exists():
        raise NotBuilt("no C++ compiler when LangPort was installed; get one and install again")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise NotBuilt(f"{LIBRARY} cannot be loaded ({error}); install LangPort again") from error
    if library.langport_interface() != INTERFACE:
        raise NotBuilt(f"{LIBRARY} belongs to another version of LangPort; install it again")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "langport_choose_level": (c_char_p, (c_char_p,)),
    "langport_set_threads": (None, (c_int32,)),
    "langport_pack": (c_void_p, (c_int32, c_int64, c_int64, c_void_p, c_int64)),
    "langport_free": (None, (c_void_p,)),
    "langport_activated_linear": (
        None,
        (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32, c_void_p, c_int64),
    ),
    "langport_quantize": (
        None,
        (c_int32, c_int32, c_int32, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "langport_pack_ints": (c_void_p, (c_int32, c_int32, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
    "langport_free_ints": (None, (c_void_p,)),
    "langport_int_linear": (None, (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int64)),
    "langport_attend": (None, (POINTER(_AttentionJob), POINTER(_SequenceList))),
    "langport_attend_spans": (None, (POINTER(_SpanAttentionJob), c_int64, c_void_p)),
    "langport_hide": (None, (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "langport_activate": (None, (c_int32, c_int32, c_int64, c_int64, c_void_p, c_int64)),
    "langport_layer_norm": (
        None,
        (c_int32, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_float, c_void_p),
    ),
    "langport_rms_norm": (
        None,
        (c_int32, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_float, c_float, c_void_p),
    ),
    "langport_multiply_adds": (c_double, (c_int32, c_int64)),
    "langport_int_multiply_adds": (c_double, (c_int64,)),
    "langport_read_memory": (None, (c_void_p, c_int64)),
    "langport_silu_mul": (None, (c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p)),
    "langport_gelu_mul": (None, (c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p)),
    "langport_step": (None, (c_void_p, c_void_p)),
    "langport_sample": (None, (c_void_p,)),
}
