"""Puts LoRA adapters on a loaded model's linear layers, and takes them away again."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from langport.errors import CheckpointError
from langport.layers.lora import ActiveAdapters, Linear, LoraLinear
from langport.models.adapter import Adapter, read_adapter
from langport.models.base import DecoderModel, EncoderDecoderModel
from langport.models.tensors import TensorFiles
from langport.models.weights import name_here, piece_of

log = logging.getLogger("langport.engine")

TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


class Adapters:
    """The adapters of one model by number, added and removed between two steps."""

    def __init__(self, model: DecoderModel, *, dtype: torch.dtype, device: str) -> None:
        self._model = model
        self._active = ActiveAdapters()
        self._layers: dict[str, LoraLinear] = {}
        """Those that some adapter changes, by name."""
        self._numbers: set[int] = set()
        self._like = torch.empty(0, dtype=dtype, device=device)

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def load(self, number: int, path: Path) -> None:
        """Add the adapter in the directory `path`.

        Raises: CheckpointError naming its file and the tensor that does not fit the model; nothing has changed then.
        """
        if isinstance(self._model, EncoderDecoderModel):
            raise CheckpointError(f"{path}: LoRA adapters are for decoder-only models; this one has an encoder as well")
        matrices = _Reader(self._model, read_adapter(path), self._like).read()
        for name, pair in matrices.items():
            self._layer(name).adapters[number] = pair
        self._numbers.add(number)
        log.info("a LoRA adapter on %d linear layers, from %s", len(matrices), path)

    def remove(self, number: int) -> None:
        """Free an adapter; layers that no other one changes are again what they were without any."""
        self._numbers.discard(number)
        for name, layer in tuple(self._layers.items()):
            layer.adapters.pop(number, None)
            if not layer.adapters:
                self._model.set_submodule(name, layer.base)
                del self._layers[name]

    def use(self, numbers: Sequence[int | None], counts: Sequence[int], num_tokens: int) -> None:
        """Prepare a step: each sequence's adapter, its number of tokens, and the rows of the batch."""
        self._active.set(numbers, counts, num_tokens, self._like)

    def _layer(self, name: str) -> LoraLinear:
        if name not in self._layers:
            base = self._model.get_submodule(name)
            assert isinstance(base, Linear), "the reader lets only these through"
            self._layers[name] = LoraLinear(base, self._active)
            self._model.set_submodule(name, self._layers[name])
        return self._layers[name]


@dataclass
class _Pair:
    """An adapter's two matrices for one module of the checkpoint."""

    down: Tensor | None = None
    """(rank, in_features)"""
    up: Tensor | None = None
    """(out_features, rank)"""


_Pieces = dict[int | None, tuple[str, _Pair]]
"""Place in the stacked layer, or None for a whole one, to the checkpoint's module and its matrices."""


class _Reader:
    """Reads one adapter and checks that it fits the model, which it leaves as it is."""

    def __init__(self, model: DecoderModel, adapter: Adapter, like: Tensor) -> None:
        self.model = model
        self.adapter = adapter
        self.like = like

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The linear layers to change, and down (rank, in_features) and up (out_features, rank) for each."""
        targets: defaultdict[str, _Pieces] = defaultdict(dict)
        for module, pair in self._pairs().items():
            here = name_here(self.model, module)
            whole, place = piece_of(self.model, here) or (here, None)
            if place in targets[whole]:
                raise self._refusal(module, f"is also there as {targets[whole][place][0]}")
            targets[whole][place] = module, pair
        return {name: self._matrices(name, pieces) for name, pieces in targets.items()}

    def _pairs(self) -> dict[str, _Pair]:
        """The matrices by the checkpoint's module names."""
        tensors = TensorFiles([self.adapter.weight_file])
        pairs: defaultdict[str, _Pair] = defaultdict(_Pair)
        for name in tensors.names:
            match = TENSOR.fullmatch(name)
            if match is None:
                raise self._refusal(name, "is no LoRA matrix of a linear layer")
            side = "down" if match["side"] == "A" else "up"
            if getattr(pairs[match["module"]], side) is not None:
                raise self._refusal(name, "is there twice under different names")
            tensor = tensors.get(name)
            if tensor.dim() != 2 or not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise self._refusal(name, f"is no matrix of floats but {kind} of the shape {list(tensor.shape)}")
            setattr(pairs[match["module"]], side, tensor.float())
        if not pairs:
            raise self._refusal("it", "has no tensors")
        return dict(pairs)

    def _matrices(self, name: str, pieces: _Pieces) -> tuple[Tensor, Tensor]:
        base = self._linear(name, next(iter(pieces.values()))[0])
        downs, ups = [], []
        for place, (module, pair) in sorted(pieces.items(), key=lambda item: item[0] or 0):
            rows = self._rows(name, place, base.out_features)
            down, up = self._checked(module, pair, base.in_features, len(rows))
            whole = torch.zeros(base.out_features, len(down))
            whole[rows.start : rows.stop] = up * self.adapter.scaling(module, len(down))
            downs.append(down)
            ups.append(whole)
        down, up = torch.cat(downs).to(self.like), torch.cat(ups, 1).to(self.like)
        # A gate of zero keeps other sequences apart from every number but these.
        if not (down.isfinite().all() and up.isfinite().all()):
            dtype = str(self.like.dtype).removeprefix("torch.")
            raise self._refusal(next(iter(pieces.values()))[0], f"holds numbers that are not finite in {dtype}")
        return down, up

    def _checked(self, module: str, pair: _Pair, num_in: int, num_out: int) -> tuple[Tensor, Tensor]:
        """Down (rank, num_in) and up (num_out, rank)."""
        down, up = pair.down, pair.up
        if down is None or up is None or down.shape[0] != up.shape[1]:
            raise self._refusal(module, "lacks one of its two matrices, or they differ in rank")
        if (rank := self.adapter.rank(module)) != len(down):
            raise self._refusal(module, f"has the rank {len(down)}, but adapter_config.json says {rank}")
        if down.shape[1] != num_in or up.shape[0] != num_out:
            raise self._refusal(
                module,
                f"goes from {down.shape[1]} to {len(up)} values, but in {self._model_name} here from {num_in} to "
                f"{num_out}",
            )
        return down, up

    def _rows(self, name: str, place: int | None, out_features: int) -> range:
        """The outputs of a layer that one of the modules it is stacked from has."""
        if place is None:
            return range(out_features)
        sizes = self.model.piece_sizes[name]
        return range(sum(sizes[:place]), sum(sizes[: place + 1]))

    def _linear(self, name: str, module: str) -> Linear:
        """The linear layer of the model itself."""
        try:
            layer = self.model.get_submodule(name)
            owner = self.model.get_submodule(name.rpartition(".")[0])
        except AttributeError:
            raise self._refusal(module, f"is not in the model, {self._model_name}") from None
        if isinstance(layer, LoraLinear):
            return layer.base
        is_head = getattr(layer, "out_features", None) == self.model.config.get("vocab_size")
        # Routers and experts see other rows than the batch's.
        is_expert = {"experts", "gate", "router"} & set(name.split("."))
        if not isinstance(layer, Linear) or isinstance(owner, LoraLinear) or is_head or is_expert:
            raise self._refusal(module, "is a head, an expert or no linear layer, which adapters cannot change here")
        return layer

    @property
    def _model_name(self) -> str:
        return type(self.model).__name__

    def _refusal(self, what: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.adapter.weight_file}: {what} {problem}. Give an adapter of this base model.")
