"""LoRA adapters in PEFT's format with random matrices, and the checkpoint that results from merging one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_adapter(
    path: Path,
    checkpoint: Path,
    ends: tuple[str, ...],
    *,
    seed: int,
    rank: int = 4,
    is_conv: bool = False,
    **config: Any,
) -> Path:
    """An adapter on every weight of `checkpoint` whose module name ends so; Conv1D weights are (in, out)."""
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, weight in sorted(load_file(checkpoint / "model.safetensors").items()):
        module = name.removesuffix(".weight")
        if module.endswith(ends) and weight.dim() == 2:
            num_out, num_in = weight.t().shape if is_conv else weight.shape
            down, up = torch.randn(rank, num_in, generator=generator), torch.randn(num_out, rank, generator=generator)
            tensors[f"base_model.model.{module}.lora_A.weight"] = down * 0.2
            tensors[f"base_model.model.{module}.lora_B.weight"] = up * 0.2
    assert tensors, ends
    save_file(tensors, path / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(ends), "bias": "none", **config}
    (path / "adapter_config.json").write_text(json.dumps(written))
    return path


def merge(path: Path, checkpoint: Path, adapter: Path, *, is_conv: bool = False) -> Path:
    """`checkpoint` with the adapter's product added to its weights, as peft's merge_and_unload does."""
    path.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    matrices = load_file(adapter / "adapter_model.safetensors")
    for name in matrices:
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            down, up = matrices[name], matrices[name.replace("lora_A", "lora_B")]
            alpha = next((v for end, v in config.get("alpha_pattern", {}).items() if module.endswith(end)), None)
            scaling = (alpha or config["lora_alpha"]) / (
                math.sqrt(len(down)) if config.get("use_rslora") else len(down)
            )
            product = up @ down * scaling
            weights[f"{module}.weight"] += product.t() if is_conv else product
    save_file(weights, path / "model.safetensors")
    return path
