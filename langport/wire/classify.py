"""`POST /v1/classify`, in the shape that vLLM's servers answer in."""

from __future__ import annotations

from typing import Literal

import msgspec

from langport.wire.pooling import PoolingRequest, PoolingUsage


class ClassifyRequest(PoolingRequest, kw_only=True):
    """`input` is read by `inputs`."""

    input: msgspec.Raw = msgspec.Raw()
    add_special_tokens: bool | None = None


class Classified(msgspec.Struct):
    index: int
    label: str
    """The likeliest one."""
    probs: list[float]
    """One per label, in the model's order; the outputs themselves when the request wants no activation."""
    num_classes: int


class ClassifiedList(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: PoolingUsage


DECODER = msgspec.json.Decoder(ClassifyRequest)
