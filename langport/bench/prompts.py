"""What is asked: prompts of a wanted length out of common words, and the bodies of requests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from langport.check.server import Failed, Server

Endpoint = Literal["chat", "completions", "embeddings"]
PATHS: dict[Endpoint, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
}
_WORD_LIST = """time year people way day man thing life child world school state
family student group country problem hand part place case week company system"""
WORDS = tuple(_WORD_LIST.split())
"""Each is one token of most vocabularies."""
_REPEATS = 8


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens between two bounds, both included, each as likely as the other."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Words:
    """Makes texts of so many tokens, of words whose tokens are known.

    The words differ from one command to the next, whatever the seed, so that no server has them in its cache.
    """

    def __init__(self, costs: Mapping[str, int], source: random.Random | None = None) -> None:
        """`costs`: the tokens of each word after a space."""
        self._costs = costs
        self._random = source or random.Random()

    def text(self, num_tokens: int) -> str:
        """As many tokens as words can make, and never more than wanted; one word at least."""
        words: list[str] = []
        left = num_tokens
        while fitting := [word for word, cost in self._costs.items() if cost <= left]:
            words.append(self._random.choice(fitting))
            left -= self._costs[words[-1]]
        return " ".join(words) or min(self._costs, key=lambda word: self._costs[word])


def count_words(server: Server, model: str) -> tuple[dict[str, int], bool]:
    """The tokens of each word by the server's /tokenize, and whether it has one; without it a word counts as one."""
    root = Server(server.url.removesuffix("/v1"), server.api_key, timeout_s=server.timeout_s)
    for field_name in ("prompt", "content"):  # vLLM's and LangPort's, llama.cpp's
        counts = [_count(root, model, field_name, " ".join([word] * _REPEATS)) for word in WORDS[:1]]
        if counts[0]:
            texts = (" ".join([word] * _REPEATS) for word in WORDS[1:])
            counts += [_count(root, model, field_name, text) for text in texts]
            if all(counts):
                # Tokens around the text, such as a bos, are lost in the rounding.
                return {word: max(1, round(n / _REPEATS)) for word, n in zip(WORDS, counts, strict=True)}, True
    return dict.fromkeys(WORDS, 1), False


def _count(server: Server, model: str, field_name: str, text: str) -> int:
    """0 where the server does not say."""
    try:
        answer = server.post("/tokenize", {"model": model, field_name: text})
        tokens = answer.json["tokens"] if answer.status == 200 else []
    except (Failed, KeyError, TypeError):
        return 0
    return len(tokens) if isinstance(tokens, list) else 0


@dataclass(frozen=True)
class Plan:
    """What every request of a command has in common."""

    endpoint: Endpoint
    model: str
    prompt: Lengths
    output: Lengths
    shared_prefix: int = 0
    """Tokens before the prompt's own, the same for all."""
    batch: int = 1
    """Texts of one embeddings request."""
    temperature: float = 1.0
    has_extras: bool = True
    """Ask with `ignore_eos`, which OpenAI's own server does not know."""
    may_be_short: bool = False
    """Answers with fewer tokens than asked for are good ones."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """Set in every body last; null removes a field."""


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    num_tokens: int
    """Output tokens that are asked for; 0 of embeddings."""
    num_inputs: int
    """Texts to embed; else 0."""
    may_be_short: bool = False


def make_requests(plan: Plan, words: Words, prefix: str, num_requests: int, seed: int) -> list[Request]:
    """Their lengths depend on the seed alone. `prefix` is the text that all prompts begin with, if not empty."""
    lengths = random.Random(f"lengths {seed}")
    return [_request(plan, words, prefix, lengths) for _ in range(num_requests)]


def _request(plan: Plan, words: Words, prefix: str, lengths: random.Random) -> Request:
    is_embedding = plan.endpoint == "embeddings"
    texts = [words.text(plan.prompt.draw(lengths)) for _ in range(plan.batch if is_embedding else 1)]
    if prefix:
        texts = [f"{prefix} {text}" for text in texts]
    num_tokens = 0 if is_embedding else plan.output.draw(lengths)
    body: dict[str, object] = {"model": plan.model}
    if is_embedding:
        # As OpenAI's clients ask.
        body |= {"input": texts, "encoding_format": "base64"}
    else:
        is_chat = plan.endpoint == "chat"
        body |= {"messages": [{"role": "user", "content": texts[0]}]} if is_chat else {"prompt": texts[0]}
        body |= {"max_tokens": num_tokens, "temperature": plan.temperature, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if plan.has_extras:
            body["ignore_eos"] = True
    body |= plan.fields
    data = msgspec.json.encode({name: value for name, value in body.items() if value is not None})
    return Request(PATHS[plan.endpoint], data, num_tokens, len(texts) if is_embedding else 0, plan.may_be_short)
