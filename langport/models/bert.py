"""BERT, RoBERTa and XLM-RoBERTa encoders. Sources: Devlin et al. 2018; Liu et al. 2019."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.activations import Activated
from langport.layers.encoder import EncoderBatch
from langport.layers.norm import LayerNorm
from langport.models.base import Config, EncoderModel


class Embeddings(nn.Module):
    """Words, positions and token types, normalized."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], hidden)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], hidden)
        self.token_type_embeddings = nn.Embedding(config.get("type_vocab_size", 2), hidden)
        self.LayerNorm = LayerNorm(hidden, config.get("layer_norm_eps", 1e-12))

    def forward(self, token_ids: Tensor, positions: Tensor, is_second: Tensor | None) -> Tensor:
        """Of tokens and their rows of the position table (num_tokens,), (num_tokens, hidden_size).

        `is_second`: which tokens belong to a second text; None: none does.
        """
        types = self.token_type_embeddings
        kind = types.weight[0] if is_second is None or types.num_embeddings == 1 else types(is_second.long())
        words = self.word_embeddings(token_ids) + kind
        return self.LayerNorm(words, self.position_embeddings(positions))


class SelfAttention(nn.Module):
    """Projections to query, key and value."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.scale = (hidden // self.heads) ** -0.5
        self.qkv = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return batch.attend(query, key, value, scale=self.scale)


class Output(nn.Module):
    """A projection back to the hidden size, added to the residual and normalized."""

    def __init__(self, config: Config, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config["hidden_size"])
        self.LayerNorm = LayerNorm(config["hidden_size"], config.get("layer_norm_eps", 1e-12))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x), residual)


class Layer(nn.Module):
    """Attention and MLP; module names are the checkpoints'."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config["intermediate_size"]
        attention = {"self": SelfAttention(config), "output": Output(config, config["hidden_size"])}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config["hidden_size"], inner)})
        self.activated = Activated(config.get("hidden_act", "gelu"))
        self.output = Output(config, inner)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, batch), x)
        return self.output(self.activated(self.intermediate["dense"], x), x)


class Bert(EncoderModel):
    """BertModel, also inside BertForMaskedLM and the like."""

    base_prefix = "bert."
    aliased_prefixes: ClassVar = {"encoder.layer.": "layers."}
    stacked: ClassVar = {"qkv": ("query", "key", "value")}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.get("position_embedding_type", "absolute") != "absolute":
            kind = config["position_embedding_type"]
            raise CheckpointError(f"config.json asks for {kind!r} position embeddings; LangPort knows absolute ones")
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, batch: EncoderBatch) -> Tensor:
        positions = batch.positions + self.position_offset
        x = self.embeddings(batch.token_ids, positions, batch.is_second)  # (num_tokens, hidden_size)
        for layer in self.layers:
            x = layer(x, batch)
        return x

    @property
    def position_offset(self) -> int:
        """The row of the position table that the first token uses."""
        return 0


class Roberta(Bert):
    """RobertaModel and XLMRobertaModel: positions begin after the padding token's id."""

    base_prefix = "roberta."

    @property
    def position_offset(self) -> int:
        return int(self.config.get("pad_token_id", 1)) + 1
