"""What a classifier's checkpoint says about its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from langport.errors import CheckpointError
from langport.models.classification import read_classification

FILE = Path("/m/config.json")
ONE = {"id2label": {"0": "LABEL_0"}}
THREE = {"id2label": {"2": "glad", "0": "sad", "1": "neutral"}}


def test_labels_in_the_order_of_their_numbers():
    assert read_classification(THREE, {}, FILE).labels == ("sad", "neutral", "glad")
    assert read_classification({}, {}, FILE).labels == ("LABEL_0", "LABEL_1")
    assert read_classification({"num_labels": 1}, {}, FILE).labels == ("LABEL_0",)


@pytest.mark.parametrize(
    ("config", "sentence_transformers", "expected"),
    [
        (ONE, {}, "sigmoid"),
        (THREE, {}, "softmax"),
        ({**THREE, "problem_type": "multi_label_classification"}, {}, "sigmoid"),
        ({**ONE, "problem_type": "regression"}, {}, "identity"),
        ({**ONE, "problem_type": "single_label_classification"}, {}, "sigmoid"),
        ({**ONE, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, {}, "identity"),
        (
            {**ONE, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            {"activation_fn": "torch.nn.modules.linear.Identity"},
            "sigmoid",
        ),
        (ONE, {"activation_fn": "torch.nn.modules.linear.Identity"}, "identity"),
        (ONE, {"activation_fn": None}, "sigmoid"),
    ],
)
def test_what_makes_scores_of_outputs(config: dict[str, Any], sentence_transformers: dict[str, Any], expected: str):
    assert read_classification(config, sentence_transformers, FILE).activation == expected


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"x": "a"}}, "id2label"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 2**40}, "num_labels"),
        ({"num_labels": True}, "num_labels"),
        ({**ONE, "sbert_ce_default_activation_function": "torch.nn.modules.activation.ELU"}, "ELU"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], what: str):
    with pytest.raises(CheckpointError, match=rf"^/m.*{what}"):
        read_classification(config, {}, FILE)
