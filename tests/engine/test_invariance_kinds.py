"""The same answer whatever the neighbours, for the other kinds of models: experts, biases, caps, windows, integers.

One batch of 32 whole and one in pieces each. What is not bit-equal is listed in docs/same-answer.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langport.engine.engine import GenerationEngine
from langport.ops import native
from tests.checkpoints import config_of
from tests.engine import families_a, families_b, test_fallback
from tests.engine.inprocess import load, run
from tests.engine.parity import save_random
from tests.engine.test_invariance import check, mixed, targets

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: config_of("llama"),
    "qwen3": lambda: config_of("qwen3"),
    **families_a.CONFIGS,
    **families_b.CONFIGS,
    **test_fallback.CONFIGS,
}
NATIVE = ("mixtral-window", "qwen3-moe", "gemma2-tight-caps", "phi3", "falcon-rw", "bloom")
THROUGH_TRANSFORMERS = ("olmo3-sliding-window", "vaultgemma-soft-caps")
QUANTIZED = (("llama", "int8"), ("llama", "int4"), ("qwen3-moe", "int4"))

needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def assert_the_same_in_company(name: str, path: Path, **settings: object) -> GenerationEngine:
    save_random(CONFIGS[name](), path)

    def engine(**more: object) -> GenerationEngine:
        core = load(path, max_model_len=160, **settings, **more)
        assert isinstance(core, GenerationEngine)
        return core

    requests = targets(prompt_logprobs=2)
    alone = {key: stream for request in requests for key, stream in run(engine(), [request]).items()}
    for more in ({}, {"max_num_batched_tokens": 16, "max_num_seqs": 4}):
        streams = run(engine(**more), mixed(requests))
        check(streams, alone)
        for key, expected in alone.items():
            assert streams[key].prompt_logprobs == expected.prompt_logprobs
    return engine()


@needs_kernels
@both_dtypes
@pytest.mark.parametrize("name", [*NATIVE, *THROUGH_TRANSFORMERS])
def test_in_company(name: str, dtype: str, tmp_path: Path) -> None:
    core = assert_the_same_in_company(name, tmp_path, dtype=dtype)

    assert core.runner.model.kernels is not None


@needs_kernels
@both_dtypes
@pytest.mark.parametrize(("name", "quantization"), QUANTIZED)
def test_quantized(name: str, quantization: str, dtype: str, tmp_path: Path) -> None:
    core = assert_the_same_in_company(name, tmp_path, dtype=dtype, quantization=quantization)

    assert core.runner.model.kernels is not None


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_short_contexts_on_torch_s_operators(name: str, tmp_path: Path) -> None:
    core = assert_the_same_in_company(name, tmp_path, dtype="float32")

    assert core.runner.model.kernels is None
