"""What a LoRA adapter's folder says about itself, read without PyTorch and without its weights.

Format: PEFT's adapter_config.json beside adapter_model.safetensors (or .bin).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from langport.errors import CheckpointError

UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases",
    "modules_to_save": "whole modules (modules_to_save)",
    "trainable_token_indices": "token embeddings (trainable_token_indices)",
    "alora_invocation_tokens": "invocation tokens (aLoRA)",
    "layer_replication": "replicated layers",
    "target_parameters": "parameters that are no linear layers (target_parameters)",
}
"""Fields of adapter_config.json that change what an adapter computes in a way that is not done here."""

REPEATED_GROUP = re.compile(r"\)[*+?{]")
REPETITION = re.compile(r"[*+?{]")
MAX_REPETITIONS = 3
"""In a module's pattern: regular expressions with more, or with repeated groups, can take for ever."""

Rank = Annotated[int, msgspec.Meta(ge=1)]
_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that can be loaded, as far as its configuration can tell."""

    path: Path
    weight_file: Path
    default_rank: int
    """Of every module that `rank_pattern` does not name."""
    rank_pattern: dict[str, int]
    """Ends of module names, as regular expressions, with a rank of their own."""
    alpha: float
    alpha_pattern: dict[str, float]
    """Ends of module names, as regular expressions, with an alpha of their own."""
    is_rank_stabilized: bool

    def rank(self, module: str) -> int:
        """Rows of a module's first matrix and columns of its second."""
        return _of_module(self.rank_pattern, module, self.default_rank)

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the two matrices of a module is multiplied by. Source: Hu et al. 2021; rsLoRA, 2023."""
        alpha = _of_module(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def _of_module(pattern: Mapping[str, _N], module: str, default: _N) -> _N:
    return next((value for end, value in pattern.items() if re.fullmatch(rf"(.*\.)?({end})", module)), default)


def read_adapter(path: Path) -> Adapter:
    """Read and check an adapter's folder. Raises: CheckpointError naming the file and what to do."""
    file = path / "adapter_config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no adapter_config.json, so it is no LoRA adapter. Give PEFT's folder.")
    try:
        config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        alpha = msgspec.convert(config.get("lora_alpha", 8), float)
        alpha_pattern = msgspec.convert(config.get("alpha_pattern") or {}, dict[str, float])
        rank = msgspec.convert(config.get("r", 8), Rank)
        rank_pattern = msgspec.convert(config.get("rank_pattern") or {}, dict[str, Rank])
        _check_patterns(file, [*alpha_pattern, *rank_pattern])
    except (msgspec.DecodeError, UnicodeDecodeError, re.error, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid ({error}). Download it again.") from None
    _refuse_unsupported(config, file)
    weights = [path / f"adapter_model.{ending}" for ending in ("safetensors", "bin")]
    existing = [weight_file for weight_file in weights if weight_file.is_file()]
    if not existing:
        raise CheckpointError(f"{path} has no adapter_model.safetensors. Download it into the folder.")
    return Adapter(
        path=path,
        weight_file=existing[0],
        default_rank=rank,
        rank_pattern=rank_pattern,
        alpha=alpha,
        alpha_pattern=alpha_pattern,
        is_rank_stabilized=bool(config.get("use_rslora")),
    )


def _check_patterns(file: Path, patterns: list[str]) -> None:
    """Raises: re.error, or CheckpointError for an expression that could take for ever."""
    for pattern in patterns:
        re.compile(pattern)
        if REPEATED_GROUP.search(pattern) or len(REPETITION.findall(pattern)) > MAX_REPETITIONS:
            raise CheckpointError(
                f"{file}: the pattern {pattern[:80]!r} repeats too much; name the modules more plainly."
            )


def _refuse_unsupported(config: dict[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise CheckpointError(f"{file}: LangPort serves LoRA adapters; this one is of the type {kind}.")
    wrong = [what for name, what in UNSUPPORTED.items() if config.get(name)]
    if config.get("bias", "none") != "none":
        wrong.append("biases")
    if wrong:
        raise CheckpointError(
            f"{file}: the adapter also changes {wrong[0]}, which LangPort does not do. Merge it into its base model "
            "(peft's merge_and_unload) and serve the merged checkpoint."
        )
