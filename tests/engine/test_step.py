"""A step in one native call against the same layers called one by one: equal bit for bit.

Both are compared with transformers in test_parity.py and test_families_a.py, which run whichever a model has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from langport.engine.engine import GenerationEngine
from langport.models.llama import Llama
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import config_of
from tests.engine import families_a
from tests.engine.inprocess import Stream, load, run
from tests.engine.parity import save_random
from tests.engine.test_invariance import tokens

CONFIGS = {
    **{name: lambda name=name: config_of(name) for name in ("llama", "llama3-rope", "mistral", "qwen2", "qwen3")},
    **families_a.CONFIGS,
}
LAYER_BY_LAYER = (
    "llama-head-dim",  # its activation is not among those that the call knows
    *("mixtral", "mixtral-window", "qwen3-moe", "qwen3-moe-some-dense", "qwen3-moe-window"),
    *("phi", "phi-qk-norm", "starcoder2", "starcoder2-window"),
    *("stablelm", "stablelm-parallel", "stablelm-qk-norm", "cohere", "cohere-qk-norm", "cohere2"),
)
IN_ONE_CALL = [name for name in CONFIGS if name not in LAYER_BY_LAYER]

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


def model_of(core: object) -> Llama:
    assert isinstance(core, GenerationEngine)
    assert isinstance(core.runner.model, Llama)
    return core.runner.model


def requests() -> list[GenerateRequest]:
    """Contexts within windows and beyond, and one beyond the trained length of longrope."""
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=2)
    return [GenerateRequest(f"r{n}", tokens(f"step{n}", n), sampling) for n in (1, 30, 70, 254, 290)]


def both_ways(path: Path, **settings: object) -> tuple[dict[tuple[str, int], Stream], dict[tuple[str, int], Stream]]:
    """The answers by steps in one call, and by the same model layer by layer."""
    answers = []
    for is_whole in (True, False):
        core = load(path, max_model_len=320, max_num_batched_tokens=100, max_num_seqs=4, **settings)
        model = model_of(core)
        assert model.step is not None
        if not is_whole:
            model.step = None
        answers.append(run(core, requests()))
    return answers[0], answers[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", IN_ONE_CALL)
def test_one_call_equals_layer_by_layer(name: str, dtype: str, tmp_path: Path) -> None:
    whole, apart = both_ways(save_random(CONFIGS[name](), tmp_path), dtype=dtype)

    assert whole == apart


@pytest.mark.parametrize(
    "settings", [{"quantization": "int8"}, {"quantization": "int4"}, {"dtype": "float16"}, {"kv_cache_dtype": "int8"}]
)
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "granite-biases"])
def test_in_other_types(name: str, settings: dict[str, str], tmp_path: Path) -> None:
    whole, apart = both_ways(save_random(CONFIGS[name](), tmp_path), **settings)

    assert whole == apart


def test_any_number_of_threads(tmp_path: Path) -> None:
    path = save_random(CONFIGS["qwen3"](), tmp_path)
    one, three = (
        run(load(path, dtype="bfloat16", max_model_len=320, num_threads=threads), requests()) for threads in (1, 3)
    )

    assert one == three


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_other_forms_go_on_layer_by_layer(name: str, tmp_path: Path) -> None:
    assert model_of(load(save_random(CONFIGS[name](), tmp_path))).step is None
