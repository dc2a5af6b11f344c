"""`POST /v1/embeddings`."""

from __future__ import annotations

import numpy as np

from langport.api.http import Call, send_json
from langport.api.model import ServedModel, check_vocabulary
from langport.errors import ContextLengthExceeded, InvalidRequest
from langport.types import EmbedRequest, ModelInfo, TokenUsage
from langport.wire.embeddings import (
    DECODER,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    Vector,
    as_base64,
    as_floats,
)
from langport.wire.error import decode_body
from langport.wire.generation import is_given
from langport.wire.inputs import decode_inputs

MAX_INPUTS = 2048


async def embeddings(model: ServedModel, call: Call) -> None:
    """Answer an embedding request. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    headers = call.ignored(request)
    model.require(call.model, "embed")
    info = await model.ready()
    size = _dimensions(request.dimensions, info)
    inputs = await _inputs(request, model, info)
    num_tokens = sum(map(len, inputs))
    call.meter(lambda: TokenUsage(num_tokens))
    vectors = await model.engine.embed(EmbedRequest(call.engine_id(), inputs))
    encode = as_base64 if request.encoding_format == "base64" else as_floats
    data = [Embedding(index=index, embedding=encode(_shortened(vector, size))) for index, vector in enumerate(vectors)]
    document = EmbeddingList(data=data, model=call.model, usage=EmbeddingUsage(num_tokens, num_tokens))
    await send_json(call.send, document, headers)


async def _inputs(request: EmbeddingRequest, model: ServedModel, info: ModelInfo) -> list[list[int]]:
    if not is_given(request.input):
        raise InvalidRequest("input is required.", param="input")
    inputs = decode_inputs(request.input, "input")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest(f"input may hold at most {MAX_INPUTS} inputs, got {len(inputs)}.", param="input")
    if "" in inputs:
        raise InvalidRequest("input must not hold an empty string.", param="input")
    texts = [item for item in inputs if isinstance(item, str)]
    token_lists = [item for item in inputs if not isinstance(item, str)]
    if texts:
        token_lists = await model.tokenizer.encode_async(texts, add_special_tokens=True)
    for index, token_ids in enumerate(token_lists):
        check_vocabulary(token_ids, info.vocab_size, "input")
        if not token_ids:
            raise InvalidRequest(f"input[{index}] holds no text that the model could read.", param="input")
        if len(token_ids) > info.max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {info.max_model_len} tokens. However, "
                f"input[{index}] resulted in {len(token_ids)} tokens. Please reduce its length.",
                param="input",
            )
    return token_lists


def _dimensions(wanted: int | None, info: ModelInfo) -> int:
    """The length of the vectors. Raises: InvalidRequest when this model has no vectors of that length."""
    size = info.embedding_size
    if wanted is None or wanted == size:
        return size
    if not info.is_matryoshka:
        raise InvalidRequest(
            f"dimensions must be left out or {size}: this model was not trained for shorter vectors.",
            param="dimensions",
        )
    if wanted > size:
        raise InvalidRequest(f"dimensions must be at most {size} for this model, got {wanted}.", param="dimensions")
    return wanted


def _shortened(data: bytes, size: int) -> Vector:
    """The vector, or its unit-length beginning."""
    vector: Vector = np.frombuffer(data, dtype="<f4")
    if len(vector) == size:
        return vector
    head = vector[:size].astype(np.float64)
    return (head / max(float(np.linalg.norm(head)), 1e-12)).astype(np.float32)
