"""Fakes for tests: an engine without a model, scripted or answering like a very small language model.

`FakeEngine` keeps the promises of `types.Engine`: stop tokens are counted and come last, log-probabilities
are those of the raw logits, seeds repeat, aborts end sequences. It computes nothing worth reading.
`byte_tokenizer` and `AsgiClient` are what tests need around it.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import tokenizers

from langport.errors import Unavailable
from langport.text.tokenizer import Tokenizer
from langport.types import (
    Delta,
    EmbedRequest,
    EngineHealth,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
    TokenLogprob,
)

Script = Callable[[GenerateRequest, int], Sequence[int]]
"""The tokens of one of a request's sequences, a final eos included where it ends by itself; repeated if need be."""


class FakeEngine:
    """An engine for tests.

    `reply` scripts the tokens; without it they are sampled from logits that depend on the last tokens.
    `error` is raised in place of the delta number `error_after`. Clear `running` to make every step wait.
    What was asked and aborted is kept in `requests`, `embed_requests`, `aborted` and `closed`.
    """

    def __init__(
        self,
        info: ModelInfo,
        reply: Script | None = None,
        *,
        tokens_per_delta: int = 1,
        error: Exception | None = None,
        error_after: int = 0,
        cached_tokens: int = 0,
    ) -> None:
        self.info = info
        self.running = asyncio.Event()
        self.running.set()
        self.requests: list[GenerateRequest] = []
        self.embed_requests: list[EmbedRequest] = []
        self.aborted: list[tuple[str, int | None]] = []
        """Sequences and requests that were aborted before their end."""
        self.num_open = 0
        """Calls in progress."""
        self.num_deltas = 0
        """Deltas given to all requests together."""
        self.is_closed = False
        self._reply = reply
        self._tokens_per_delta = tokens_per_delta
        self._error = error
        self._error_after = error_after
        self._cached_tokens = cached_tokens

    async def wait_ready(self) -> ModelInfo:
        return self.info

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        self.num_open += 1
        sequences = [_FakeSequence(self.info, request, index, self._reply) for index in range(request.n)]
        num_deltas = 0
        try:
            while open_sequences := [s for s in sequences if s.finish_reason is None]:
                for sequence in open_sequences:
                    await asyncio.sleep(0)
                    await self.running.wait()
                    if (request.request_id, sequence.index) in self.aborted:
                        sequence.finish_reason = "stop"
                        continue
                    if self.is_closed:
                        raise Unavailable("The engine was stopped.")
                    if self._error is not None and num_deltas == self._error_after:
                        raise self._error
                    num_deltas += 1
                    self.num_deltas += 1
                    yield sequence.step(self._tokens_per_delta, self._cached_tokens)
        finally:
            self.num_open -= 1
            if any(s.finish_reason is None for s in sequences):
                self.aborted.append((request.request_id, None))

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))

    async def embed(self, request: EmbedRequest) -> list[bytes]:
        self.embed_requests.append(request)
        self.num_open += 1
        try:
            await self.running.wait()
        except asyncio.CancelledError:
            self.aborted.append((request.request_id, None))
            raise
        finally:
            self.num_open -= 1
        if self._error is not None:
            raise self._error
        size = self.info.embedding_size or self.info.num_labels
        return [_vector(ids, size, self.info.is_normalized) for ids in request.inputs]

    def health(self) -> EngineHealth:
        return EngineHealth(is_ready=not self.is_closed, num_running=self.num_open)

    async def close(self) -> None:
        self.is_closed = True


class _FakeSequence:
    """One sequence: its tokens so far and how the next is found."""

    def __init__(self, info: ModelInfo, request: GenerateRequest, index: int, reply: Script | None) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self._info = info
        self._request = request
        self._script = None if reply is None else list(reply(request, index))
        self._tokens: list[int] = list(request.outputs[index]) if request.outputs else []
        seed = request.sampling.seed
        self._random = np.random.default_rng(None if seed is None else [abs(seed), index])
        self._is_first = True

    def step(self, num_tokens: int, cached_tokens: int) -> Delta:
        sampling = self._request.sampling
        delta = Delta(self._request.request_id, self.index, [])
        if sampling.logprobs is not None:
            delta.logprobs = []
        if self._is_first:
            self._is_first = False
            delta.cached_tokens = cached_tokens
            if self.index == 0 and sampling.prompt_logprobs is not None:
                delta.prompt_logprobs = self._score_prompt(sampling.prompt_logprobs, sampling.ranks_prompt)
        while len(delta.token_ids) < num_tokens and self.finish_reason is None:
            self._append(delta, sampling)
        delta.finish_reason = self.finish_reason
        self._compare(delta)
        return delta

    def _compare(self, delta: Delta) -> None:
        """Count the tokens that a prediction has at the same places, or has others there."""
        begin = len(self._tokens) - len(delta.token_ids)
        predicted = self._request.prediction[begin : len(self._tokens)]
        delta.accepted_prediction_tokens = sum(map(int.__eq__, predicted, delta.token_ids))
        delta.rejected_prediction_tokens = len(predicted) - delta.accepted_prediction_tokens

    def _append(self, delta: Delta, sampling: SamplingParams) -> None:
        if len(self._tokens) >= sampling.max_tokens:
            self.finish_reason = "length"
            return
        logits = _logits(self._context(), self._info.vocab_size)
        token = self._next(logits, sampling)
        self._tokens.append(token)
        delta.token_ids.append(token)
        if delta.logprobs is not None and sampling.logprobs is not None:
            allowed = sampling.allowed_token_ids if sampling.is_beam else ()
            delta.logprobs.append(_score(logits, token, sampling.logprobs, allowed=allowed))
        if sampling.is_beam:
            self.finish_reason = "length"
            return
        is_eos = token in self._info.eos_token_ids and not sampling.ignore_eos
        if (is_eos or token in sampling.stop_token_ids) and len(self._tokens) > sampling.min_tokens:
            self.finish_reason = "stop"
        elif len(self._tokens) >= sampling.max_tokens:
            self.finish_reason = "length"

    def _context(self) -> list[int]:
        return [*self._request.prompt_token_ids[-3:], *self._tokens][-3:]

    def _next(self, logits: npt.NDArray[np.float64], sampling: SamplingParams) -> int:
        if self._script is not None:
            return self._script[len(self._tokens) % len(self._script)]
        logits = logits.copy()
        for token, bias in sampling.logit_bias.items():
            logits[token] += bias
        for token in set(self._tokens):
            logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * self._tokens.count(token)
        if len(self._tokens) < sampling.min_tokens or sampling.ignore_eos:
            logits[[*self._info.eos_token_ids]] = -math.inf
        if sampling.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits)
        chances = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
        chances /= chances.sum()
        chances[1:][np.cumsum(chances)[:-1] >= sampling.top_p] = 0.0
        return int(order[self._random.choice(len(order), p=chances / chances.sum())])

    def _score_prompt(self, num_top: int, has_ranks: bool) -> list[TokenLogprob | None]:
        ids = self._request.prompt_token_ids
        scored = [
            _score(_logits(ids[max(0, end - 3) : end], self._info.vocab_size), ids[end], num_top, has_rank=has_ranks)
            for end in range(1, len(ids))
        ]
        return [None, *scored]


def _logits(context: Sequence[int], vocab_size: int) -> npt.NDArray[np.float64]:
    """Made-up logits that depend on the last tokens alone; all but printable ASCII is unlikely."""
    seed = zlib.crc32(array("q", context).tobytes())
    logits = np.random.default_rng(seed).normal(scale=2.0, size=vocab_size)
    logits[:32] -= 12.0
    logits[127:] -= 12.0
    return logits


def _score(
    logits: npt.NDArray[np.float64], token: int, num_top: int, *, has_rank: bool = False, allowed: Sequence[int] = ()
) -> TokenLogprob:
    """Where only some tokens are allowed, the others are not among the likeliest."""
    logprobs = logits - np.logaddexp.reduce(logits)
    likeliest = (
        np.argsort(-logprobs)[:num_top] if not allowed else sorted(allowed, key=lambda t: -logprobs[t])[:num_top]
    )
    top = [(int(t), float(logprobs[t])) for t in likeliest]
    rank = int((logprobs > logprobs[token]).sum()) + 1 if has_rank else None
    return TokenLogprob(token, float(logprobs[token]), top, rank)


def _vector(ids: Sequence[int], size: int, is_normalized: bool) -> bytes:
    vector = np.random.default_rng(zlib.crc32(msgspec.json.encode(ids))).normal(size=size)
    if is_normalized:
        vector /= np.linalg.norm(vector)
    return vector.astype("<f4").tobytes()


BOS, EOS, TURN = 256, 257, 258
"""Ids of the special tokens of `byte_tokenizer`."""


def byte_tokenizer(*special_tokens: str) -> Tokenizer:
    """A tokenizer whose first 256 ids are the bytes, then `<s>`, `<|im_end|>` and `<|im_start|>`; adds none.

    `special_tokens`: further ones that follow.
    """
    alphabet = _byte_alphabet()
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({character: byte for byte, character in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "turn_token": "<|im_start|>"}
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, special=True) for name in [*names.values(), *special_tokens]]
    )
    return Tokenizer(backend, names, {})


def _byte_alphabet() -> list[str]:
    """The characters by which byte-level tokenizers write the bytes 0 to 255 (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


@dataclass
class Reply:
    """What an ASGI app answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    """The body as it was sent, a message each."""
    is_finished: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of all server-sent events; `[DONE]` as the string."""
        lines = self.body.split(b"\n")
        found = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
        return [part.decode() if part == b"[DONE]" else msgspec.json.decode(part) for part in found]


class AsgiClient:
    """Calls an ASGI app without a server. Set `left` to hang up."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self.left = asyncio.Event()
        self.received: Reply = Reply()
        """The answer so far of the latest call."""
        self._app = app

    async def post(
        self,
        path: str,
        body: object,
        *,
        extension: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send a body (bytes as they are, anything else as JSON) and wait for the app to return."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope["extensions"] = {"langport": extension or {}}
        requests: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": data, "more_body": False}]
        reply = self.received = Reply()

        async def receive() -> MutableMapping[str, Any]:
            if requests:
                return requests.pop()
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            reply.parts.append(message["body"])
            reply.is_finished = not message.get("more_body", False)

        await self._app(scope, receive, send)
        return reply
