"""`POST /tokenize` and `/detokenize`, in the form that vLLM's servers gave them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from langport.wire.chat import Message, Tool


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text, or messages to put through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(msgspec.Struct):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None
    """As the tokenizer's vocabulary spells them."""


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[Annotated[int, Meta(ge=0)]] | None = None


class DetokenizeResponse(msgspec.Struct):
    prompt: str


TOKENIZE_DECODER = msgspec.json.Decoder(TokenizeRequest)
DETOKENIZE_DECODER = msgspec.json.Decoder(DetokenizeRequest)
