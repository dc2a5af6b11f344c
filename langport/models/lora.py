"""Puts LoRA adapters on a loaded model's linear layers."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.linear import QuantizedLinear
from langport.layers.lora import ActiveAdapters, LoraLinear
from langport.models.adapter import Adapter, read_adapter
from langport.models.base import DecoderModel, EncoderDecoderModel
from langport.models.tensors import TensorFiles
from langport.models.weights import name_here, piece_of
from langport.ops.native import NativeLinear

log = logging.getLogger("langport.engine")

TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


class Adapters:
    """The adapters of one model by name."""

    def __init__(self, model: DecoderModel, paths: Mapping[str, str], *, dtype: torch.dtype, device: str) -> None:
        """Raises: CheckpointError naming the adapter's file and tensor that does not fit the model."""
        self._active = ActiveAdapters()
        self._numbers = {name: number for number, name in enumerate(paths)}
        self._like = torch.empty(0, dtype=dtype, device=device)
        for name, path in paths.items():
            if isinstance(model, EncoderDecoderModel):
                raise CheckpointError(f"{path}: LoRA adapters are for decoder-only models; {name}'s model is none")
            loader = _Loader(model, read_adapter(Path(path)), self._active, self._numbers[name], self._like)
            log.info("%s: a LoRA adapter on %d linear layers, from %s", name, loader.load(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def use(self, names: Sequence[str | None], counts: Sequence[int], num_tokens: int) -> None:
        """Prepare a step: each sequence's adapter, its number of tokens, and the rows of the batch."""
        numbers = [None if name is None else self._numbers[name] for name in names]
        self._active.set(numbers, counts, num_tokens, self._like)


@dataclass
class _Pair:
    """An adapter's two matrices for one module of the checkpoint."""

    down: Tensor | None = None
    """(rank, in_features)"""
    up: Tensor | None = None
    """(out_features, rank)"""


class _Loader:
    """Reads one adapter and puts it in place."""

    def __init__(
        self, model: DecoderModel, adapter: Adapter, active: ActiveAdapters, number: int, like: Tensor
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.active = active
        self.number = number
        self.like = like

    def load(self) -> int:
        """The number of layers that the adapter changes."""
        targets: defaultdict[str, dict[int | None, tuple[str, _Pair]]] = defaultdict(dict)
        for module, pair in self._pairs().items():
            here = name_here(self.model, module)
            whole, place = piece_of(self.model, here) or (here, None)
            targets[whole][place] = module, pair
        for name, pieces in targets.items():
            self._put(name, pieces)
        return len(targets)

    def _pairs(self) -> dict[str, _Pair]:
        """The matrices by the checkpoint's module names."""
        tensors = TensorFiles([self.adapter.weight_file])
        pairs: defaultdict[str, _Pair] = defaultdict(_Pair)
        for name in tensors.names:
            match = TENSOR.fullmatch(name)
            if match is None:
                raise self._refusal(name, "is no LoRA matrix of a linear layer")
            setattr(pairs[match["module"]], "down" if match["side"] == "A" else "up", tensors.get(name).float())
        if not pairs:
            raise self._refusal("", "has no tensors")
        for module, pair in pairs.items():
            if pair.down is None or pair.up is None or pair.down.shape[:1] != pair.up.shape[1:]:
                raise self._refusal(module, "lacks one of its two matrices, or they differ in rank")
        return dict(pairs)

    def _put(self, name: str, pieces: dict[int | None, tuple[str, _Pair]]) -> None:
        layer = self._layer(name, next(iter(pieces.values()))[0])
        base = layer.base
        downs, ups = [], []
        for place, (module, pair) in sorted(pieces.items(), key=lambda item: item[0] or 0):
            assert pair.down is not None
            assert pair.up is not None
            rows = self._rows(name, place, base.out_features)
            if pair.down.shape[1:] != (base.in_features,) or pair.up.shape[:1] != (len(rows),):
                raise self._refusal(
                    module,
                    f"goes from {pair.down.shape[-1]} to {len(pair.up)} values, but in {self._model_name} here from "
                    f"{base.in_features} to {len(rows)}",
                )
            up = torch.zeros(base.out_features, pair.up.shape[1])
            up[rows.start : rows.stop] = pair.up * self.adapter.scaling(module, pair.up.shape[1])
            downs.append(pair.down)
            ups.append(up)
        layer.adapters[self.number] = (
            torch.cat(downs).to(self.like.device, self.like.dtype),
            torch.cat(ups, 1).to(self.like.device, self.like.dtype),
        )

    def _rows(self, name: str, place: int | None, out_features: int) -> range:
        """The outputs of a layer that one of the modules it is stacked from has."""
        if place is None:
            return range(out_features)
        sizes = self.model.piece_sizes[name]
        return range(sum(sizes[:place]), sum(sizes[: place + 1]))

    def _layer(self, name: str, module: str) -> LoraLinear:
        """The linear layer, able to take adapters."""
        try:
            layer = self.model.get_submodule(name)
        except AttributeError:
            raise self._refusal(module, f"is not in {self.adapter.path.name}'s model, {self._model_name}") from None
        if isinstance(layer, LoraLinear):
            return layer
        is_head = getattr(layer, "out_features", None) == self.model.config.get("vocab_size")
        # Routers and experts see other rows than the batch's.
        is_expert = {"experts", "gate", "router"} & set(name.split("."))
        if not isinstance(layer, nn.Linear | QuantizedLinear | NativeLinear) or is_head or is_expert:
            raise self._refusal(module, "is a head, an expert or no linear layer, which adapters cannot change here")
        wrapped = LoraLinear(layer, self.active)
        self.model.set_submodule(name, wrapped)
        return wrapped

    @property
    def _model_name(self) -> str:
        return type(self.model).__name__

    def _refusal(self, what: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.adapter.weight_file}: {what} {problem}. Give an adapter of this base model.")
