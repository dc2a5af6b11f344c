"""`POST /v1/rerank`: the documents that have most to do with a query, by a cross-encoder or an embedder."""

from __future__ import annotations

import secrets

from langport.api.http import Call, send_json
from langport.api.model import ServedModel
from langport.api.pooling import Cutting
from langport.api.relevance import Reader, read_text, read_texts
from langport.wire.error import decode_body
from langport.wire.scores import (
    RERANK_DECODER,
    CohereMeta,
    CohereTokens,
    Rerank,
    RerankedDocument,
    RerankResult,
    RerankUsage,
)


async def rerank(model: ServedModel, call: Call) -> None:
    """Answer a request to rank documents. Raises: ApiError before anything was sent."""
    request = decode_body(RERANK_DECODER, call.body)
    headers = call.ignored(request)
    model.require(call.model, "rank")
    query = read_text(request.query, "query")
    documents = read_texts(request.documents, "documents")
    info = await model.ready()
    reader = Reader(
        model,
        call,
        info,
        Cutting.of(request, model, info),
        param="documents",
        name=lambda number: f"documents[{number}] with the query",
        second_limit=request.max_tokens_per_doc,
        has_activation=request.wants_activation,
    )
    scores, num_tokens = await reader.scores([(query, document) for document in documents])
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    shows_documents = request.return_documents is not False
    results = [
        RerankResult(index, scores[index], RerankedDocument(documents[index]) if shows_documents else None)
        for index in order[: request.top_n or len(order)]
    ]
    document = Rerank(
        id=f"rerank-{secrets.token_hex(16)}",
        model=call.model,
        results=results,
        usage=RerankUsage(num_tokens, num_tokens),
        meta=CohereMeta(CohereTokens(num_tokens)),
    )
    await send_json(call.send, document, headers)
