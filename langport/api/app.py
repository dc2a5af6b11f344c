"""`LocalApi`: the ASGI app that answers OpenAI's and Anthropic's requests for one local model."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Literal

from langport.api.anthropic import count_tokens, messages
from langport.api.chat import chat_completions
from langport.api.classify import classify
from langport.api.completions import completions
from langport.api.decisions import decisions
from langport.api.embeddings import embeddings
from langport.api.http import Call, ClientWatch, Receive, Scope, Send, read_body, unmetered
from langport.api.model import ServedModel
from langport.api.rerank import rerank
from langport.api.response_runs import Runs
from langport.api.response_store import ResponseStore
from langport.api.responses import Responses
from langport.api.score import score
from langport.api.structured import GrammarChecker
from langport.api.tokens import detokenize, tokenize
from langport.errors import NotFound
from langport.models.checkpoint import Checkpoint
from langport.settings.tree import LimitSettings
from langport.store.base import ANYONE
from langport.text.answer_format import AnswerFormat
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from langport.types import Engine

Handler = Callable[[ServedModel, Call], Awaitable[None]]

HANDLERS: dict[str, Handler] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/decisions": decisions,
    "/v1/rerank": rerank,
    "/v1/score": score,
    "/v1/classify": classify,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


class LocalApi:
    """One model behind its APIs.

    `scope["extensions"]["langport"]` may give `request_id`, `model`, `priority`, `owner`, `is_strict`
    and a `meter`.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        limits: LimitSettings,
        *,
        sampling_defaults: Literal["openai", "model"] = "openai",
        answer_format: AnswerFormat | None = None,
        runs: Runs | None = None,
    ) -> None:
        """`answer_format`: how the model writes reasoning and calls of tools; the template's own when not given.

        `runs`: the kept responses of all models; without them none is kept.
        """
        self._model = ServedModel(
            name,
            engine,
            checkpoint,
            tokenizer,
            template,
            limits,
            GrammarChecker(tokenizer),
            answer_format or AnswerFormat.of(template, tokenizer),
            sampling_defaults,
        )
        responses = Responses(runs or Runs(ResponseStore(None)))
        self._handlers: dict[str, Handler] = {
            **HANDLERS,
            "/v1/responses": responses.create,
            "/v1/responses/input_tokens": responses.count,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ApiError before anything was sent, never after."""
        handler = self._handlers.get(scope["path"])
        if handler is None:
            raise NotFound(f"There is no {scope['path']} here.")
        known = (scope.get("extensions") or {}).get("langport", {})
        body = await read_body(receive)
        if body is None:
            return
        call = Call(
            request_id=known.get("request_id") or secrets.token_hex(8),
            model=known.get("model") or self._model.name,
            body=body,
            send=send,
            priority=known.get("priority", 0),
            owner=known.get("owner", ANYONE),
            is_strict=known.get("is_strict", False),
            meter=known.get("meter", unmetered),
        )
        async with ClientWatch(receive):
            await handler(self._model, call)
