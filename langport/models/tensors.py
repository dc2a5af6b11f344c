"""The tensors of a checkpoint's files, by name. Files are mapped into memory; no pickle is ever executed.

`.safetensors` hold no code. `.bin` files are pickles, of which torch's weights-only reader takes tensors and plain
values and refuses everything else before it could run.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from langport.errors import CheckpointError
from langport.models.gguf import GGUFFile

ZIP_MAGIC = b"PK\x03\x04"
"""PyTorch's files are zip archives since 1.6; older ones cannot be mapped."""


class TensorFiles:
    """All tensors of several files. Reading one copies nothing until its values are needed."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Raises: CheckpointError naming a file that is damaged or holds more than tensors."""
        self._readers: dict[str, Callable[[str], Tensor]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            names, reader = OPENERS.get(file.suffix, _open_pickle)(file)
            for name in names:
                self._file_of[name] = file
                self._readers[name] = reader

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the files."""
        return tuple(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def file_of(self, name: str) -> Path:
        return self._file_of[name]

    def get(self, name: str) -> Tensor:
        """Raises: CheckpointError naming file and tensor when it cannot be read."""
        try:
            return self._readers[name](name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._file_of[name]}: tensor {name} cannot be read ({error}); download the file again"
            ) from error


def _open_safetensors(file: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    try:
        tensors = safe_open(file, framework="pt")
        return list(tensors.keys()), tensors.get_tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); download it again") from error


def _open_pickle(file: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(4) == ZIP_MAGIC
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols that may end in an error
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is refused: it is damaged, or a pickle that holds more than tensors, which could run code. "
            "Nothing of it was executed. Download it again, or take the checkpoint's safetensors files."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: cannot be read as a PyTorch file ({reason}); download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(
            f"{file} does not map names to tensors, as pytorch_model.bin does; convert it to safetensors"
        )
    for name, tensor in tensors.items():
        # A pickle may call any shape a view of a few bytes, and computing with it would fill the memory.
        if tensor.layout is not torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{file} is refused: tensor {name} has shape {list(tensor.shape)}, for which the file holds no "
                "values; convert it to safetensors"
            )
    return [str(name) for name in tensors], tensors.__getitem__


def _open_gguf(file: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    tensors = GGUFFile(file)
    return list(tensors.names), lambda name: torch.from_numpy(tensors.floats(name))


OPENERS = {".safetensors": _open_safetensors, ".gguf": _open_gguf}
