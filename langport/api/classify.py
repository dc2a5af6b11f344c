"""`POST /v1/classify`: the likeliest of a classifier's labels for each text."""

from __future__ import annotations

import secrets
import time

from langport.api.http import Call, send_json
from langport.api.model import ServedModel, check_vocabulary
from langport.api.pooling import MAX_TEXTS, Cutting, activated, check_lengths, run_encoder
from langport.errors import InvalidRequest
from langport.types import ModelInfo
from langport.wire.classify import DECODER, Classified, ClassifiedList, ClassifyRequest
from langport.wire.error import decode_body
from langport.wire.generation import is_given
from langport.wire.inputs import decode_inputs
from langport.wire.pooling import PoolingUsage


async def classify(model: ServedModel, call: Call) -> None:
    """Answer a request to classify texts. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    headers = call.ignored(request)
    model.require(call.model, "classify")
    classification = model.checkpoint.classification
    assert classification is not None
    info = await model.ready()
    inputs = await _inputs(request, model, info)
    outputs = await run_encoder(model, call, inputs)
    if request.wants_activation:
        outputs = activated(outputs, classification.activation)
    labels = classification.labels
    num_tokens = sum(map(len, inputs))
    document = ClassifiedList(
        id=f"classify-{secrets.token_hex(16)}",
        created=int(time.time()),
        model=call.model,
        data=[
            Classified(index, labels[int(row.argmax())], row.tolist(), len(labels)) for index, row in enumerate(outputs)
        ],
        usage=PoolingUsage(num_tokens, num_tokens),
    )
    await send_json(call.send, document, headers)


async def _inputs(request: ClassifyRequest, model: ServedModel, info: ModelInfo) -> list[list[int]]:
    if not is_given(request.input):
        raise InvalidRequest("input is required.", param="input")
    given = decode_inputs(request.input, "input")
    if len(given) > MAX_TEXTS:
        raise InvalidRequest(f"input may hold at most {MAX_TEXTS} inputs, got {len(given)}.", param="input")
    texts = [item for item in given if isinstance(item, str)]
    inputs = [item for item in given if not isinstance(item, str)]
    cutting = Cutting.of(request, model, info)
    if not texts:
        inputs = [_cut(token_ids, cutting) for token_ids in inputs]
    elif request.add_special_tokens is False:
        encoded = await model.tokenizer.encode_async(texts, add_special_tokens=False)
        inputs = [_cut(token_ids, cutting) for token_ids in encoded]
    else:
        inputs = [cutting.apply(encoded).ids for encoded in await model.tokenizer.encode_texts(texts)]
    for token_ids in inputs:
        check_vocabulary(token_ids, info.vocab_size, "input")
    check_lengths(inputs, info, "input", lambda index: f"input[{index}]")
    return inputs


def _cut(token_ids: list[int], cutting: Cutting) -> list[int]:
    """Token ids without special tokens that would have to stay."""
    limit = cutting.limit
    if limit is None or len(token_ids) <= limit:
        return token_ids
    if limit == 0:
        raise InvalidRequest("truncate_prompt_tokens must be above 0.", param="truncate_prompt_tokens")
    return token_ids[:limit] if cutting.side == "right" else token_ids[-limit:]
