"""What the text2text and embed training scripts share: learning rate, progress lines, float16 export."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def linear_schedule(optimizer: torch.optim.Optimizer, num_steps: int, num_warmup: int) -> LambdaLR:
    """Learning rate up linearly for `num_warmup` steps, then down linearly to zero at `num_steps`."""

    def factor(step: int) -> float:
        return min((step + 1) / max(num_warmup, 1), (num_steps - step) / (num_steps - num_warmup))

    return LambdaLR(optimizer, factor)


class Progress:
    """Prints step, mean loss since the last line, and the time left."""

    def __init__(self, num_steps: int, every: int = 100) -> None:
        self.num_steps = num_steps
        self.every = every
        self.started = time.monotonic()
        self.losses: list[float] = []

    def update(self, step: int, loss: float) -> None:
        """Note the loss of `step` (counted from 1); print when a line is due."""
        self.losses.append(loss)
        if step % self.every and step != self.num_steps:
            return
        elapsed_s = time.monotonic() - self.started
        left_s = elapsed_s / step * (self.num_steps - step)
        mean = sum(self.losses) / len(self.losses)
        print(
            f"step {step}/{self.num_steps}  loss {mean:.4f}  {elapsed_s:.0f} s  ETA {left_s:.0f} s",
            flush=True,
        )
        self.losses.clear()


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face checkpoint whose weights take two bytes each but load as float32.

    transformers follows the dtype of `config.json`, so the float16 values of the file are widened exactly.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_portable_class(folder / "tokenizer_config.json")
    weights = folder / "model.safetensors"
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    if json.loads((folder / "config.json").read_text())["dtype"] != "float32":
        raise RuntimeError("config.json must say float32; this is our bug")


def _name_portable_class(path: Path) -> None:
    """Name the tokenizer's class as every transformers knows it; newer ones write a new name."""
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n")
