"""A checkpoint's pages leave memory once its weights are packed, and come back where they are still read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from langport.models.mapped import SMAPS, release_pages
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.engine.inprocess import load, run

pytestmark = pytest.mark.skipif(not SMAPS.is_file(), reason="this system does not say what is in memory")


def resident_kilobytes(file: Path) -> list[int]:
    """Of each mapping of the file."""
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)
    return [int(found[1]) for block in blocks if str(file) in block and (found := re.search(r"Rss: +(\d+) kB", block))]


def test_a_files_pages_come_back_when_they_are_read(checkpoint: Callable[[str], Path]) -> None:
    file = checkpoint("llama") / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        mapped = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        before = {name: tensor.clone() for name, tensor in mapped.items()}
        assert sum(resident_kilobytes(file)) > 0
        release_pages([file])
        assert sum(resident_kilobytes(file)) == 0
        assert all((mapped[name] == before[name]).all() for name in mapped)


def test_what_was_written_stays(checkpoint: Callable[[str], Path]) -> None:
    file = checkpoint("llama") / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        weight = tensors.get_tensor("lm_head.weight")
        weight.fill_(7)
        release_pages([file])
        assert (weight == 7).all()


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_an_engine_leaves_only_what_it_has_read_since(checkpoint: Callable[[str], Path], quantization: str) -> None:
    if native.kernels() is None:
        pytest.skip("there are no native kernels here")
    path = checkpoint("llama")
    core = load(path, quantization=quantization)
    assert sum(resident_kilobytes(path / "model.safetensors")) == 0
    request = GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=4, temperature=0, logprobs=0))
    logprobs = [entry.logprob for entry in run(core, [request])["r", 0].logprobs]
    assert np.isfinite(logprobs).all()
