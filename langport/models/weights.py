"""Fills a model's parameters from a checkpoint's files, quantizing on the way when asked.

Files are mapped into memory, so a tensor whose type already fits is not copied. No pickle is ever executed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.linear import Bits, IntWeight, QuantizedLinear, quantize
from langport.layers.moe import SparseMoE
from langport.models.base import Model
from langport.models.checkpoint import indexed_names
from langport.models.quantized import Method, Stored, method_of, stored_weights
from langport.models.tensors import TensorFiles
from langport.ops.native import Kernels, NativeLinear, can_pack

log = logging.getLogger("langport.engine")

Progress = Callable[[float], None]
"""Called with the share of tensors that are loaded, 0 to 1."""
Quantization = Literal["none", "int8", "int4"]
BITS: dict[Quantization, Bits] = {"int8": 8, "int4": 4}
HEAD_ROWS = 8192
"""So many of a head's rows are held as float32 at a time while it is quantized."""


def load_weights(
    model: Model,
    files: tuple[Path, ...],
    *,
    dtype: torch.dtype,
    device: str,
    quantization: Quantization = "none",
    kernels: Kernels | None = None,
    progress: Progress = lambda share: None,
) -> None:
    """Give every parameter of `model` (built on the meta device) its values.

    With a `quantization`, linear layers become `QuantizedLinear`, one at a time: no more than one of them is held as
    floats. Embeddings, the head (see `quantize_heads`) and routers stay in `dtype`. What the checkpoint itself holds in
    as few bits is kept as it is; without a quantization it becomes floats.

    With `kernels` a linear layer is packed for them as soon as it is whole, so that never more than one is held beside
    its packed form; those that share their weight with others are left.

    Raises: CheckpointError that names the file and the tensor when one is missing, has another shape, or a file is
    damaged; MemoryError when there is no room for a packed weight.
    """
    tensors = TensorFiles(files)
    for name, file in indexed_names(files[0].parent).items() if len(files) > 1 else ():
        if name not in tensors:
            log.warning("%s lacks the tensor %s, which the index places there", files[0].parent / file, name)
    method = method_of(model.config)
    if method is not None:
        what = "dequantized" if quantization == "none" else f"read for {quantization}"
        log.info("%s: the weights are stored quantized (%s); they are %s", files[0].parent, method.name, what)
    if model.read_weights(lambda: _float_weights(tensors, method, dtype), dtype=dtype, device=device):
        for name in quantizable(model) if quantization != "none" else ():
            weight = model.get_parameter(f"{name}.weight")
            _set_quantized(model, name, quantize(weight, BITS[quantization], dtype))
    else:
        loader = _Loader(model, dtype, device, quantization, kernels)
        for done, stored in enumerate(stored_weights(tensors, method), 1):
            loader.put(stored)
            progress(min(done / loader.num_expected, 1.0))
        loader.finish(files)
    progress(1.0)
    if quantization != "none":
        _log_quantized(model, files[0].parent, dtype)


def quantizable(model: Model) -> set[str]:
    """The linear layers that may be quantized: not heads, whose errors go straight to the logits, nor routers."""
    routers = {f"{name}.gate" for name, module in model.named_modules() if isinstance(module, SparseMoE)}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name not in _tied(model) | routers | set(model.heads)
        and module.out_features != model.config.get("vocab_size")
    }


def quantize_heads(model: Model) -> None:
    """Hold the layers that make logits in 8 bits with one scale per row: with few bits elsewhere they are much of what
    a step reads. What they share with embeddings stays there as it is.

    Raises: MemoryError.
    """
    embeddings = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in list(model.named_modules()):
        if can_pack(module) and _is_head(model, module):
            weight = module.weight.detach()
            parts = [quantize(rows, 8, weight.dtype) for rows in weight.split(HEAD_ROWS)]
            is_tied = weight.data_ptr() in embeddings
            model.set_submodule(name, QuantizedLinear(IntWeight.cat(parts), module.bias, is_tied=is_tied))


def _is_head(model: Model, linear: nn.Linear) -> bool:
    return linear.out_features == model.config.get("vocab_size")


def _tied(model: Model) -> set[str]:
    """Modules whose weight may be another module's, too."""
    return {name.removesuffix(".weight") for pair in model.tied.items() for name in pair}


def name_here(model: Model, name: str) -> str:
    """What `model` calls the module or parameter that its checkpoints call `name`."""
    name = name.removeprefix(model.base_prefix)
    name = model.aliases.get(name, name)
    for prefix, replacement in model.aliased_prefixes.items():
        if name.startswith(prefix):
            name = replacement + name.removeprefix(prefix)
    for part, replacement in model.renamed.items():
        name = name.replace(part, replacement)
    return name


def piece_of(model: Model, module: str) -> tuple[str, int] | None:
    """The stacked module that holds a module of the checkpoint (named as here), and its place in it."""
    owner, _, last = module.rpartition(".")
    for whole, parts in model.stacked.items():
        if last in parts:
            return ".".join(filter(None, (owner, whole))), parts.index(last)
    return None


class _Loader:
    """Matches checkpoint tensors with parameters."""

    def __init__(
        self, model: Model, dtype: torch.dtype, device: str, quantization: Quantization, kernels: Kernels | None
    ) -> None:
        self.model = model
        self.kernels = kernels
        self.dtype = dtype
        self.device = device
        self.bits = BITS.get(quantization)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.quantized = {f"{name}.weight" for name in quantizable(model)} if self.bits else set()
        self.missing = set(self.shapes)
        self.tied = _tied(model)
        self.scratch = torch.empty(0, dtype=dtype)
        """Where the pieces of layers that are packed at once are put together, one layer after the other: what malloc
        would get back each time would not fit the next, larger one."""
        self.pieces: dict[str, dict[int, Tensor | IntWeight]] = {}
        self.num_expected = len(self.shapes)

    def put(self, stored: Stored) -> None:
        """Take one tensor of the checkpoint, or leave it if the model has no use for it."""
        target = name_here(self.model, stored.name)
        tensor = stored.tensor
        for end, pattern in self.model.unstacked.items():
            if target.endswith(end) and isinstance(tensor, Tensor):
                for number, matrix in enumerate(tensor):
                    self._place(stored, target.removesuffix(end) + pattern.format(number), matrix)
                return
        is_transposed = self.model.transposed and target.endswith(self.model.transposed) and not stored.is_decoded
        if is_transposed and isinstance(tensor, Tensor):
            tensor = tensor.t()
        self._place(stored, target, tensor)

    def _place(self, stored: Stored, target: str, tensor: Tensor | IntWeight) -> None:
        """Assign a tensor under its name here, or collect it as a piece of one."""
        if target in self.shapes:
            self._check_shape(stored, tensor, self.shapes[target])
            self._assign(target, self._fit(stored, target, tensor))
            return
        module, _, kind = target.rpartition(".")
        if (piece := piece_of(self.model, module)) is not None:
            whole = f"{piece[0]}.{kind}"
            if whole in self.shapes:
                self._stack(stored, whole, piece[1], tensor)

    def _stack(self, stored: Stored, target: str, index: int, tensor: Tensor | IntWeight) -> None:
        """Collect the pieces of a stacked parameter; the last one completes it."""
        pieces = self.pieces.setdefault(target, {})
        rows = _shape(tensor)[:1]
        self._check_shape(stored, tensor, torch.Size((*rows, *self.shapes[target][1:])))
        pieces[index] = self._fit(stored, target, tensor)
        count = len(self.model.stacked[target.split(".")[-2]])
        if len(pieces) == count:
            ordered = [pieces[number] for number in range(count)]
            shape = torch.Size((sum(_shape(piece)[0] for piece in ordered), *self.shapes[target][1:]))
            if shape != self.shapes[target]:
                parts = ", ".join(self.model.stacked[target.split(".")[-2]])
                what = f"{stored.name} with those beside it ({parts})"
                raise self._mismatch(stored, what, shape, self.shapes[target])
            self.model.piece_sizes[target.rpartition(".")[0]] = [_shape(piece)[0] for piece in ordered]
            self._assign(target, self._joined(target, ordered))
            del self.pieces[target]

    def _joined(self, target: str, pieces: list[Tensor | IntWeight]) -> Tensor | IntWeight:
        """The rows of all pieces. Integers of different kinds, as a checkpoint may mix them, are quantized anew."""
        whole = [piece for piece in pieces if isinstance(piece, IntWeight)]
        if len(whole) == len(pieces) and len({(piece.bits, piece.scale.shape[1]) for piece in whole}) == 1:
            return IntWeight.cat(whole)
        floats = [piece.dequantize(self.dtype) if isinstance(piece, IntWeight) else piece for piece in pieces]
        if not self._packs_next(target):
            return torch.cat(floats)
        num_values = self.shapes[target].numel()
        if self.scratch.numel() < num_values:
            self.scratch = torch.empty(num_values, dtype=self.dtype)
        return torch.cat(floats, out=self.scratch[:num_values].view(self.shapes[target]))

    def _fit(self, stored: Stored, target: str, tensor: Tensor | IntWeight) -> Tensor | IntWeight:
        """The tensor in the model's type, or quantized where the target is to be."""
        if isinstance(tensor, IntWeight):
            is_exact = torch.equal(tensor.scale.to(self.dtype).to(tensor.scale.dtype), tensor.scale)
            if target in self.quantized and tensor.bits <= (self.bits or 0) and is_exact:
                return tensor.to(self.device, self.dtype)
            tensor = tensor.dequantize(torch.float32 if target in self.quantized else self.dtype)
        if not (tensor.is_floating_point() and tensor.itemsize > 1):
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name} holds {str(tensor.dtype).removeprefix('torch.')} values, so it "
                "is quantized in a way that config.json does not describe (quantization_config)"
            )
        if target in self.quantized and self.bits is not None:
            return quantize(tensor.to(self.device), self.bits, self.dtype)
        return tensor.to(device=self.device, dtype=self.dtype)

    def _assign(self, target: str, tensor: Tensor | IntWeight) -> None:
        if isinstance(tensor, Tensor) and target in self.quantized and self.bits is not None:
            tensor = quantize(tensor, self.bits, self.dtype)
        if isinstance(tensor, IntWeight):
            _set_quantized(self.model, target.removesuffix(".weight"), tensor)
        else:
            _set_parameter(self.model, target, tensor.contiguous())
        self.missing.discard(target)
        if self.kernels is not None:
            self._pack(target.rpartition(".")[0], self.kernels)

    def _pack(self, name: str, kernels: Kernels) -> None:
        """Hand a module to the kernels if it is a linear layer that lacks nothing any more."""
        parameters = self._parameters_to_pack(name)
        if parameters and not parameters & self.missing:
            module = self.model.get_submodule(name)
            assert isinstance(module, nn.Linear)
            self.model.set_submodule(name, NativeLinear(kernels, module))
            for parameter in parameters:
                del self.shapes[parameter]  # should there be a second tensor of that name, the first one counts

    def _packs_next(self, target: str) -> bool:
        """Whether a float tensor is all that a layer lacks, so that it is packed and let go at once."""
        return (
            self.kernels is not None
            and target not in self.quantized
            and self._parameters_to_pack(target.rpartition(".")[0]) & self.missing == {target}
        )

    def _parameters_to_pack(self, name: str) -> set[str]:
        """Those of a module that is to be packed as floats; none of others."""
        module = self.model.get_submodule(name)
        if not can_pack(module) or name in self.tied or (self.bits is not None and _is_head(self.model, module)):
            return set()
        return {f"{name}.{kind}" for kind, _ in module.named_parameters()}

    def _check_shape(self, stored: Stored, tensor: Tensor | IntWeight, expected: torch.Size) -> None:
        if _shape(tensor) != expected:
            raise self._mismatch(stored, stored.name, _shape(tensor), expected)

    @staticmethod
    def _mismatch(stored: Stored, name: str, shape: torch.Size, expected: torch.Size) -> CheckpointError:
        return CheckpointError(
            f"{stored.file}: tensor {name} has shape {list(shape)}, but config.json describes {list(expected)}; the "
            "two do not belong together"
        )

    def finish(self, files: tuple[Path, ...]) -> None:
        """Tie what is shared, and refuse a checkpoint that leaves something out."""
        for target, source in self.model.tied.items():
            if target in self.missing and source not in self.missing:
                _set_parameter(self.model, target, self.model.get_parameter(source))
                self.missing.discard(target)
        for target in self.missing.intersection(self.model.zero_when_absent):
            zeros = torch.zeros(self.shapes[target], dtype=self.dtype, device=self.device)
            _set_parameter(self.model, target, zeros)
            self.missing.discard(target)
        if self.missing:
            names = sorted(name for target in self.missing for name in self._absent(target))
            indexed = {name_here(self.model, name): file for name, file in indexed_names(files[0].parent).items()}
            file = next((indexed[name] for name in names if name in indexed), None)
            where = files[0] if len(files) == 1 else files[0].parent / (file or "")
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{where}: the weights lack {', '.join(names[:3])}{more}, which config.json "
                f"({type(self.model).__name__}) needs; the download may be incomplete"
            )

    def _absent(self, target: str) -> list[str]:
        """The parameter, or those it is stacked from that the checkpoint lacks when it has others of them."""
        if target not in self.pieces:
            return [target]
        owner, whole, kind = target.rsplit(".", 2)
        parts = self.model.stacked[whole]
        return [f"{owner}.{part}.{kind}" for number, part in enumerate(parts) if number not in self.pieces[target]]


def _set_parameter(model: Model, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))


def _set_quantized(model: Model, name: str, weight: IntWeight) -> None:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    model.set_submodule(name, QuantizedLinear(weight, linear.bias))


def _shape(tensor: Tensor | IntWeight) -> torch.Size:
    return tensor.values.shape if isinstance(tensor, IntWeight) else tensor.shape


def _float_weights(tensors: TensorFiles, method: Method | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights at once; those stored as floats are not copied."""
    return {
        stored.name: stored.tensor.dequantize(dtype)
        if isinstance(stored.tensor, IntWeight)
        else stored.tensor.to(dtype if stored.is_decoded else stored.tensor.dtype)
        for stored in stored_weights(tensors, method)
    }


def _log_quantized(model: Model, path: Path, dtype: torch.dtype) -> None:
    counts = Counter(module.bits for module in model.modules() if isinstance(module, QuantizedLinear))
    parts = " and ".join(f"{count} linear layers are int{bits}" for bits, count in sorted(counts.items()))
    log.info("%s: %s, the rest is %s", path, parts or "no layer can be quantized", str(dtype).removeprefix("torch."))
