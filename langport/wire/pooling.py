"""What requests to rerank, score and classify have in common, by the names that vLLM's servers know."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class PoolingRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    user: str | None = None

    @property
    def wants_activation(self) -> bool:
        """`use_activation`, or what it was called before."""
        given = (self.use_activation, self.activation, self.softmax)
        return next((value for value in given if value is not None), True)


class PoolingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
