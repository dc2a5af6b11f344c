"""EleutherAI's lm-evaluation-harness scores our server as it scores the same weights with its own `hf` model.

`make lm-eval` builds its environment. Where LANGPORT_CLIENTS names the environments' folder, a missing one is a
failure.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langport.settings.tree import BUNDLED_MODELS_PATH
from tests.clients.environments import python_of
from tests.server.process import PATIENCE_S, Server, clean_environment
from tests.server.test_models import CHAT

pytestmark = [pytest.mark.clients, pytest.mark.slow]

TASK = Path(__file__).parent / "lm_eval"
WEIGHTS = str(BUNDLED_MODELS_PATH / CHAT)
NUM_QUESTIONS = len((TASK / "facts.jsonl").read_text("utf-8").splitlines())


def evaluate(cache: Path, model: str, /, **arguments: object) -> Any:
    """What the harness finds with one of its models."""
    environment = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    variables = {name: value for name, value in clean_environment(**environment).items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python_of("lm-eval", "make lm-eval"), "evaluate.py", model, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=variables,
        cwd=TASK,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def of_the_weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What it finds with its own `hf` model."""
    return evaluate(tmp_path_factory.mktemp("hf"), "hf", pretrained=WEIGHTS, device="cpu", dtype="float32")


@pytest.mark.parametrize("way", [{"num_concurrent": 8}, {"batch_size": 16}], ids=["concurrent", "batches"])
def test_the_harness_finds_what_it_finds_with_the_weights(
    of_the_weights: Any, demo_server: Server, tmp_path: Path, way: dict[str, int]
) -> None:
    served = {"model": CHAT, "base_url": f"{demo_server.url}/v1/completions"}
    text = {"tokenizer": WEIGHTS, "tokenizer_backend": "huggingface"}

    found = evaluate(tmp_path, "local-completions", **served, **text, **way)

    assert found["scores"] == of_the_weights["scores"]
    assert found["scores"]["acc"] > 0.5  # four choices each: not by chance
    logprobs, is_greedy = np.moveaxis(np.array(found["answers"]), -1, 0)
    expected_logprobs, expected_greedy = np.moveaxis(np.array(of_the_weights["answers"]), -1, 0)
    assert logprobs.shape == (NUM_QUESTIONS, 4)
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-3)
    np.testing.assert_array_equal(is_greedy, expected_greedy)
