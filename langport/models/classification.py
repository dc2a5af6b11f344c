"""What a sequence classifier's outputs mean, as its checkpoint says it; read without PyTorch.

Sources: transformers' config.json (id2label, problem_type); sentence-transformers' CrossEncoder, which names the
function that makes scores of its outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from langport.errors import CheckpointError

Activation = Literal["identity", "sigmoid", "softmax"]

CLASSIFIER_ENDING = "ForSequenceClassification"
MAX_LABELS = 2**16
"""More than any classifier has."""
DEFAULT_NUM_LABELS = 2
"""transformers' own, for a config.json that names none."""
_OF_PROBLEM: dict[str, Activation] = {
    "regression": "identity",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
_OF_FUNCTION: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}


class Classification(msgspec.Struct, frozen=True):
    """The outputs of a classifier, in their order."""

    labels: tuple[str, ...]
    activation: Activation
    """What makes scores or probabilities of the outputs."""


def read_classification(config: dict[str, Any], sentence_transformers: dict[str, Any], file: Path) -> Classification:
    """From config.json (`file`) and config_sentence_transformers.json ({} when there is none).

    Raises: CheckpointError naming the key that makes no sense.
    """
    labels = labels_of(config, file)
    return Classification(labels, _activation(config, sentence_transformers, len(labels), file))


def labels_of(config: dict[str, Any], file: Path = Path("config.json")) -> tuple[str, ...]:
    """The names of a classifier's outputs. Raises: CheckpointError."""
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        try:
            by_number = {int(number): str(label) for number, label in named.items()}
        except (TypeError, ValueError):
            by_number = {}
        if len(named) <= MAX_LABELS and sorted(by_number) == list(range(len(named))):
            return tuple(by_number[number] for number in range(len(named)))
        raise _wrong(file, "id2label", f"it must name the labels 0 to at most {MAX_LABELS - 1}, each once")
    count = config.get("num_labels", DEFAULT_NUM_LABELS)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_LABELS:
        raise _wrong(file, "num_labels", f"it must be a whole number from 1 to {MAX_LABELS}")
    return tuple(f"LABEL_{number}" for number in range(count))


def _activation(
    config: dict[str, Any], sentence_transformers: dict[str, Any], num_labels: int, file: Path
) -> Activation:
    """The function that is named, else the one for the kind of problem, else the usual one for so many labels."""
    inner = config.get("sentence_transformers")
    inner = inner if isinstance(inner, dict) else {}
    places = (
        inner.get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
        sentence_transformers.get("activation_fn"),
    )
    function = next((name for name in places if name), None)
    if function is not None:
        activation = _OF_FUNCTION.get(str(function).rpartition(".")[2])
        if activation is None:
            known = ", ".join(_OF_FUNCTION)
            raise _wrong(file.parent, f"activation function {str(function)[:80]!r}", f"LangPort knows {known}")
    else:
        activation = _OF_PROBLEM.get(str(config.get("problem_type")), "sigmoid" if num_labels == 1 else "softmax")
    return "sigmoid" if activation == "softmax" and num_labels == 1 else activation


def _wrong(file: Path, what: str, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: the {what} of this classifier cannot be used: {why}.")
