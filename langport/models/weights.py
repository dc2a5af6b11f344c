"""Fills a model's parameters from a checkpoint's safetensors files.

Files are mapped into memory, so a tensor whose type already fits is not copied. No pickle is ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.models.base import Model

Progress = Callable[[float], None]
"""Called with the share of tensors that are loaded, 0 to 1."""


def load_weights(
    model: Model,
    files: tuple[Path, ...],
    *,
    dtype: torch.dtype,
    device: str,
    progress: Progress = lambda share: None,
) -> None:
    """Give every parameter of `model` (built on the meta device) its values.

    Raises: CheckpointError that names the file and the tensor when one is missing, has another shape, or a file is
    damaged.
    """
    if model.read_weights(dtype=dtype, device=device):
        progress(1.0)
        return
    loader = _Loader(model, dtype, device)
    for done, (file, name, tensor) in enumerate(_tensors(files), 1):
        loader.put(file, name, tensor)
        progress(min(done / loader.num_expected, 1.0))
    loader.finish(files)


class _Loader:
    """Matches checkpoint tensors with parameters."""

    def __init__(self, model: Model, dtype: torch.dtype, device: str) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.missing = set(self.shapes)
        self.parts = {
            part: (whole, index) for whole, parts in model.stacked.items() for index, part in enumerate(parts)
        }
        self.pieces: dict[str, dict[int, Tensor]] = {}
        self.num_expected = len(self.shapes)

    def put(self, file: Path, name: str, tensor: Tensor) -> None:
        """Take one tensor of the checkpoint, or leave it if the model has no use for it."""
        target = name.removeprefix(self.model.base_prefix)
        target = self.model.aliases.get(target, target)
        for prefix, replacement in self.model.aliased_prefixes.items():
            if target.startswith(prefix):
                target = replacement + target.removeprefix(prefix)
        for part, replacement in self.model.renamed.items():
            target = target.replace(part, replacement)
        for end, pattern in self.model.unstacked.items():
            if target.endswith(end):
                for number, matrix in enumerate(tensor):
                    self._place(file, target.removesuffix(end) + pattern.format(number), matrix)
                return
        if self.model.transposed and target.endswith(self.model.transposed):
            tensor = tensor.t()
        self._place(file, target, tensor)

    def _place(self, file: Path, target: str, tensor: Tensor) -> None:
        """Assign a tensor under its name here, or collect it as a piece of one."""
        if target in self.shapes:
            self._assign(file, target, tensor)
            return
        module, _, kind = target.rpartition(".")
        owner, _, part = module.rpartition(".")
        if part in self.parts:
            whole, index = self.parts[part]
            self._stack(file, ".".join(filter(None, (owner, whole, kind))), index, tensor)

    def _stack(self, file: Path, target: str, index: int, tensor: Tensor) -> None:
        """Collect the pieces of a stacked parameter; the last one completes it."""
        if target not in self.shapes:
            return
        pieces = self.pieces.setdefault(target, {})
        pieces[index] = tensor.to(self.dtype)
        count = len(self.model.stacked[target.split(".")[-2]])
        if len(pieces) == count:
            self._assign(file, target, torch.cat([pieces[i] for i in range(count)]))
            del self.pieces[target]

    def _assign(self, file: Path, target: str, tensor: Tensor) -> None:
        if tensor.shape != self.shapes[target]:
            raise CheckpointError(
                f"{file}: tensor {target} has shape {list(tensor.shape)}, but config.json describes "
                f"{list(self.shapes[target])}; the two do not belong together"
            )
        _set_parameter(self.model, target, tensor.to(device=self.device, dtype=self.dtype).contiguous())
        self.missing.discard(target)

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
            names = sorted(self.missing)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{files[0].parent}: the weights lack {', '.join(names[:3])}{more}, which config.json "
                f"({type(self.model).__name__}) needs; the download may be incomplete"
            )


def _set_parameter(model: Model, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))


def _tensors(files: tuple[Path, ...]) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of every file. Raises: CheckpointError naming a damaged file."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    yield file, name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); download it again") from error
