"""`POST /v1/score`: how much texts have to do with each other, by a cross-encoder or an embedder."""

from __future__ import annotations

import secrets
import time

from langport.api.http import Call, send_json
from langport.api.model import ServedModel
from langport.api.pooling import Cutting
from langport.api.relevance import Pair, Reader, read_texts
from langport.errors import InvalidRequest
from langport.wire.error import decode_body
from langport.wire.pooling import PoolingUsage
from langport.wire.scores import SCORE_DECODER, SCORE_PAIRS, Score, ScoreList, ScoreRequest


async def score(model: ServedModel, call: Call) -> None:
    """Answer a request for scores. Raises: ApiError before anything was sent."""
    request = decode_body(SCORE_DECODER, call.body)
    headers = call.ignored(request)
    model.require(call.model, "rank")
    first, second = _fields(request)
    pairs = _pairs(read_texts(getattr(request, first), first), read_texts(getattr(request, second), second), second)
    info = await model.ready()
    reader = Reader(
        model,
        call,
        info,
        Cutting.of(request, model, info),
        param=second,
        name=lambda number: f"pair {number} of {first} and {second}",
        has_activation=request.wants_activation,
    )
    scores, num_tokens = await reader.scores(pairs)
    document = ScoreList(
        id=f"score-{secrets.token_hex(16)}",
        created=int(time.time()),
        model=call.model,
        data=[Score(index=index, score=value) for index, value in enumerate(scores)],
        usage=PoolingUsage(num_tokens, num_tokens),
    )
    await send_json(call.send, document, headers)


def _fields(request: ScoreRequest) -> tuple[str, str]:
    """The names of the two fields that hold the texts. Raises: InvalidRequest unless there is just one such pair."""
    given = [name for name in dict.fromkeys(sum(SCORE_PAIRS, ())) if getattr(request, name) is not None]
    for pair in SCORE_PAIRS:
        if set(pair) == set(given):
            return pair
    known = ", ".join(f"{first} with {second}" for first, second in SCORE_PAIRS)
    for first, second in SCORE_PAIRS:
        if given in ([first], [second]):
            missing = second if given == [first] else first
            raise InvalidRequest(f"{missing} is required beside {given[0]}.", param=missing)
    what = f"not {' and '.join(given)}" if given else "but neither was given"
    raise InvalidRequest(f"Two fields hold the texts: {known}; {what}.", param=given[0] if given else SCORE_PAIRS[0][0])


def _pairs(first: list[str], second: list[str], param: str) -> list[Pair]:
    """Each with each, or the one with all. Raises: InvalidRequest naming `param` when the numbers do not fit."""
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"{param} must hold as many texts as the first field, or that one only: there are {len(first)} and "
            f"{len(second)}.",
            param=param,
        )
    return list(zip(first, second, strict=True))
