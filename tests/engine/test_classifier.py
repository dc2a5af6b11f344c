"""Classifiers and cross-encoders against transformers on the same random weights, texts and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from langport.api.pooling import activated
from langport.engine.engine import EmbeddingEngine
from langport.layers.linear import QuantizedLinear
from langport.models.checkpoint import read_checkpoint
from langport.text.tokenizer import Tokenizer
from langport.types import EmbedRequest
from tests.checkpoints import CLASSIFIERS, save_classifier
from tests.engine.inprocess import embed_request, load

TEXTS = ["hello", "a longer text about nothing in particular, which goes on for a while", "", "ab"]
PAIRS = [("what is it?", text) for text in TEXTS]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(request.param, tmp_path_factory.mktemp(request.param), num_labels=3)


@torch.inference_mode()
def expected(path: Path, items: list[Any]) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    texts = [([item[0]], [item[1]]) if isinstance(item, tuple) else ([item],) for item in items]
    batches = [tokenizer(*lists, return_tensors="pt") for lists in texts]
    return np.concatenate([model(**batch).logits.numpy() for batch in batches])


async def found(path: Path, items: list[Any], **settings: object) -> np.ndarray:
    tokenizer = Tokenizer.from_directory(path)
    encoded = await tokenizer.encode_texts(items)
    second_text = [texts.second_text for texts in encoded] if tokenizer.has_token_types else []
    core = load(path, max_num_batched_tokens=128, **settings)
    assert isinstance(core, EmbeddingEngine)
    return np.stack(embed_request(core, EmbedRequest("e", [texts.ids for texts in encoded], second_text)))


@pytest.mark.parametrize("items", [TEXTS, PAIRS], ids=["texts", "pairs"])
async def test_outputs_equal_transformers(path: Path, items: list[Any]) -> None:
    np.testing.assert_allclose(await found(path, items), expected(path, items), atol=1e-4)


async def test_the_token_types_of_bert_matter(tmp_path: Path) -> None:
    """Otherwise the test of pairs would say nothing about them."""
    path = save_classifier("bert", tmp_path, num_labels=3)
    inputs = [texts.ids for texts in await Tokenizer.from_directory(path).encode_texts(PAIRS)]
    without = np.stack(embed_request(load(path), EmbedRequest("e", inputs)))
    assert np.abs(without - expected(path, PAIRS)).max() > 1e-2


async def test_heads_are_not_quantized(tmp_path: Path) -> None:
    path = save_classifier("roberta", tmp_path, num_labels=3)
    outputs = await found(path, TEXTS, quantization="int8")
    exact = expected(path, TEXTS)
    assert 0 < np.abs(outputs - exact).max() < 0.2 * np.abs(exact).max()
    core = load(path, quantization="int8")
    assert isinstance(core, EmbeddingEngine)
    assert not isinstance(core.runner.model.classifier["dense"], QuantizedLinear)
    assert any(isinstance(module, QuantizedLinear) for module in core.runner.model.modules())


def test_probabilities_equal_torchs(path: Path) -> None:
    outputs = np.random.default_rng(0).normal(scale=30, size=(5, 3))
    tensor = torch.from_numpy(outputs)
    np.testing.assert_allclose(activated(outputs, "softmax"), tensor.softmax(-1).numpy(), atol=1e-12)
    np.testing.assert_allclose(activated(outputs, "sigmoid"), tensor.sigmoid().numpy(), atol=1e-12)
    assert activated(np.array([[-1000.0, 1000.0]]), "sigmoid").tolist() == [[0.0, 1.0]]


def test_the_checkpoint_says_what_it_is(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "encoder"
    assert checkpoint.classification is not None
    assert checkpoint.classification.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
