"""What a LoRA adapter's folder says about itself, read without PyTorch and without its weights.

Format: PEFT's adapter_config.json beside adapter_model.safetensors (or .bin).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that can be loaded, as far as its configuration can tell."""

    path: Path
    weight_file: Path
    base: str
    """The model it was trained for, as its authors named it; may be empty."""
    alpha: float
    alpha_pattern: dict[str, float]
    """Ends of module names, as regular expressions, with an alpha of their own."""
    is_rank_stabilized: bool

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the two matrices of a module is multiplied by. Source: Hu et al. 2021; rsLoRA, 2023."""
        alpha = next(
            (value for end, value in self.alpha_pattern.items() if re.fullmatch(rf"(.*\.)?({end})", module)), self.alpha
        )
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def read_adapter(path: Path) -> Adapter:
    """Read and check an adapter's folder. Raises: CheckpointError naming the file and what to do."""
    file = path / "adapter_config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no adapter_config.json, so it is no LoRA adapter. Give PEFT's folder.")
    try:
        config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        alpha = msgspec.convert(config.get("lora_alpha", 8), float)
        pattern = msgspec.convert(config.get("alpha_pattern") or {}, dict[str, float])
        for end in pattern:
            re.compile(end)
    except (msgspec.DecodeError, UnicodeDecodeError, re.error) as error:
        raise CheckpointError(f"{file} is not valid ({error}). Download it again.") from None
    _refuse_unsupported(config, file)
    weights = [path / f"adapter_model.{ending}" for ending in ("safetensors", "bin")]
    existing = [weight_file for weight_file in weights if weight_file.is_file()]
    if not existing:
        raise CheckpointError(f"{path} has no adapter_model.safetensors. Download it into the folder.")
    return Adapter(
        path=path,
        weight_file=existing[0],
        base=str(config.get("base_model_name_or_path") or ""),
        alpha=alpha,
        alpha_pattern=pattern,
        is_rank_stabilized=bool(config.get("use_rslora")),
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
