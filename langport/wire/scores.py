"""`POST /v1/rerank` in the shape that Jina's and Cohere's clients send and read, and vLLM's servers answer in;
`POST /v1/score` in vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from langport.wire.pooling import PoolingRequest, PoolingUsage


class TextPart(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None


class TextItem(msgspec.Struct, kw_only=True):
    """A text as an object: `text`, as Jina's and Cohere's clients have it, or parts, as vLLM's."""

    text: str | None = None
    content: list[TextPart] | None = None


Text = str | TextItem
Texts = Text | list[Text]


class RerankRequest(PoolingRequest, kw_only=True):
    query: Text | None = None
    documents: Texts | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None


class ScoreRequest(PoolingRequest, kw_only=True):
    """Two lists of texts under any of the pairs of names that vLLM's servers know."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


SCORE_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Fields of a ScoreRequest that belong together."""


class RerankedDocument(msgspec.Struct):
    text: str


class RerankResult(msgspec.Struct, omit_defaults=True):
    index: int
    """Its place in the request."""
    relevance_score: float
    document: RerankedDocument | None = None
    """Unless the request does without."""


class RerankUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class ApiVersion(msgspec.Struct):
    version: str = "2"


class BilledUnits(msgspec.Struct):
    search_units: int = 1


class CohereTokens(msgspec.Struct):
    input_tokens: int
    output_tokens: int = 0


class CohereMeta(msgspec.Struct):
    """What Cohere's clients read besides the results."""

    tokens: CohereTokens
    api_version: ApiVersion = msgspec.field(default_factory=ApiVersion)
    billed_units: BilledUnits = msgspec.field(default_factory=BilledUnits)


class Rerank(msgspec.Struct, kw_only=True):
    """A whole answer, the most relevant document first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: CohereMeta


class Score(msgspec.Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


RERANK_DECODER = msgspec.json.Decoder(RerankRequest)
SCORE_DECODER = msgspec.json.Decoder(ScoreRequest)
