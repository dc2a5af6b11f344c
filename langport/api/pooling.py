"""What rerank, score and classify share: texts that fit the model, and scores of a classifier's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langport.api.http import Call
from langport.api.model import ServedModel
from langport.errors import ContextLengthExceeded, InvalidRequest
from langport.models.classification import Activation
from langport.text.truncation import EncodedTexts, Side
from langport.types import EmbedRequest, ModelInfo, TokenUsage
from langport.wire.pooling import PoolingRequest

Numbers = npt.NDArray[np.float64]

MAX_TEXTS = 2048
"""Texts or pairs of one request."""
WHOLE_CONTEXT = -1
"""What `truncate_prompt_tokens` says to keep as much as the model can read."""


@dataclass(frozen=True)
class Cutting:
    """How much is kept of texts that are too long."""

    limit: int | None
    """Tokens of a text or a pair, special ones included; None: what is too long for the model is refused."""
    side: Side
    """Where tokens are left out."""

    @classmethod
    def of(cls, request: PoolingRequest, model: ServedModel, info: ModelInfo) -> Cutting:
        """Raises: InvalidRequest for more tokens than the model can read."""
        limit = request.truncate_prompt_tokens
        if limit == WHOLE_CONTEXT:
            limit = info.max_model_len
        if limit is not None and limit > info.max_model_len:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be at most {info.max_model_len}, this model's context, or -1 for as much "
                f"as it can read; got {limit}.",
                param="truncate_prompt_tokens",
            )
        return cls(limit, request.truncation_side or model.tokenizer.truncation_side)

    def apply(self, texts: EncodedTexts) -> EncodedTexts:
        """Raises: InvalidRequest when not even the special tokens would be left."""
        if self.limit is None or len(texts.ids) <= self.limit:
            return texts
        if self.limit <= texts.num_special:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be above {texts.num_special}, the special tokens around the text.",
                param="truncate_prompt_tokens",
            )
        return texts.cut(self.limit, self.side)


def check_lengths(inputs: Sequence[Sequence[int]], info: ModelInfo, param: str, name: Callable[[int], str]) -> None:
    """`name` says what the user calls an input.

    Raises: ContextLengthExceeded or InvalidRequest naming `param` for one that is too long, or empty.
    """
    for number, token_ids in enumerate(inputs):
        if not token_ids:
            raise InvalidRequest(f"{name(number)} holds no text that the model could read.", param=param)
        if len(token_ids) > info.max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {info.max_model_len} tokens. However, {name(number)} resulted "
                f"in {len(token_ids)} tokens. Please reduce its length, or cut it with truncate_prompt_tokens: -1.",
                param=param,
            )


async def run_encoder(
    model: ServedModel, call: Call, inputs: list[list[int]], second_text: list[int] | None = None
) -> Numbers:
    """The model's vectors (num_inputs, size), counted for the call."""
    num_tokens = sum(map(len, inputs))
    call.meter(lambda: TokenUsage(num_tokens))
    data = await model.engine.embed(EmbedRequest(call.engine_id(), inputs, second_text or []))
    return np.stack([np.frombuffer(vector, dtype="<f4") for vector in data]).astype(np.float64)


def activated(outputs: Numbers, activation: Activation) -> Numbers:
    """Scores or probabilities (n, num_labels) of a classifier's outputs."""
    match activation:
        case "identity":
            return outputs
        case "sigmoid":
            small = np.exp(-np.abs(outputs))  # cannot overflow
            return np.where(outputs >= 0, 1.0, small) / (1.0 + small)
        case "softmax":
            weights: Numbers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            return weights
