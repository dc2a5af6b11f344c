"""Encoders with a head that classifies: BERT's, and that of RoBERTa and XLM-RoBERTa.

Cross-encoders (rerankers) are such models with one label, which read two texts together.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.models.base import ClassifierModel, Config
from langport.models.bert import Bert, Roberta
from langport.models.classification import labels_of

_tanh = activation("tanh")


class BertClassifier(Bert, ClassifierModel):
    """BertForSequenceClassification: the pooler, then one linear layer."""

    heads: ClassVar = ("pooler.dense", "classifier")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["hidden_size"]
        self.pooler = nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})
        self.classifier = nn.Linear(hidden, len(labels_of(config)))

    def classify(self, states: Tensor) -> Tensor:
        return self.classifier(_tanh(self.pooler["dense"](states)))


class RobertaClassifier(Roberta, ClassifierModel):
    """RobertaForSequenceClassification and XLM-RoBERTa's: the head is two linear layers."""

    heads: ClassVar = ("classifier.dense", "classifier.out_proj")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["hidden_size"]
        layers = {"dense": nn.Linear(hidden, hidden), "out_proj": nn.Linear(hidden, len(labels_of(config)))}
        self.classifier = nn.ModuleDict(layers)

    def classify(self, states: Tensor) -> Tensor:
        return self.classifier["out_proj"](_tanh(self.classifier["dense"](states)))
