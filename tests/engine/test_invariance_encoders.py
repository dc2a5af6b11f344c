"""An embedder's vectors, and what a decoder makes of an encoder's states, are the same whatever the neighbours."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from langport.engine.engine import EmbeddingEngine, GenerationEngine
from langport.ops import native
from langport.types import EmbedRequest
from tests.checkpoints import CLASSIFIERS, ENCODER_DECODERS, ENCODERS, save_classifier
from tests.engine.inprocess import embed, embed_request, load, run
from tests.engine.test_invariance import check, mixed, targets

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
Checkpoints = Callable[[str], Path]


def random_inputs() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(3, 250) for _ in range(rng.randrange(1, 120))] for _ in range(40)]


@both_dtypes
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("family", ENCODERS)
def test_vectors(family: str, dtype: str, quantization: str, checkpoint: Checkpoints) -> None:
    def engine(budget: int, num_threads: int = 1) -> EmbeddingEngine:
        core = load(
            checkpoint(family),
            dtype=dtype,
            quantization=quantization,
            max_num_batched_tokens=budget,
            num_threads=num_threads,
        )
        assert isinstance(core, EmbeddingEngine)
        assert core.runner.model.kernels is not None
        return core

    inputs = random_inputs()
    core = engine(1)
    alone = [embed(core, [tokens])[0] for tokens in inputs]
    for core in (engine(4096), engine(300), engine(4096, num_threads=3)):
        for vector, expected in zip(embed(core, inputs), alone, strict=True):
            np.testing.assert_array_equal(vector, expected)


@both_dtypes
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_outputs_of_classifiers(family: str, dtype: str, tmp_path: Path) -> None:
    core = load(save_classifier(family, tmp_path, num_labels=3), dtype=dtype, max_num_batched_tokens=4096)
    inputs = random_inputs()
    starts = [len(tokens) // 2 for tokens in inputs]
    together = embed_request(core, EmbedRequest("e", inputs, starts))
    for tokens, start, vector in zip(inputs, starts, together, strict=True):
        (alone,) = embed_request(core, EmbedRequest("e", [tokens], [start]))
        np.testing.assert_array_equal(vector, alone)


@both_dtypes
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_answers(family: str, dtype: str, checkpoint: Checkpoints) -> None:
    def engine(**settings: object) -> GenerationEngine:
        core = load(checkpoint(family), dtype=dtype, max_model_len=160, **settings)
        assert isinstance(core, GenerationEngine)
        return core

    requests = targets()
    alone = {key: stream for request in requests for key, stream in run(engine(), [request]).items()}
    check(run(engine(), mixed(requests)), alone)
    check(run(engine(max_num_seqs=4, num_threads=3), mixed(requests)), alone)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("family", ENCODERS)
def test_torch_s_vectors_are_near(family: str, checkpoint: Checkpoints) -> None:
    core = load(checkpoint(family))
    assert isinstance(core, EmbeddingEngine)
    assert core.runner.model.kernels is None
    inputs = random_inputs()
    alone = [embed(core, [tokens])[0] for tokens in inputs]
    np.testing.assert_allclose(embed(core, inputs), alone, atol=1e-5)
