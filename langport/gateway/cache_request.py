"""Which requests may be answered with what was answered before, and what makes two of them the same.

A request qualifies when its answer is meant to be repeatable and nothing but an answer comes of it. Two are the same
when their JSON is, in any order and spacing, and they come from the same owner, with the same credentials, to the same
generation of the same model. docs/cache.md says so to users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from langport.gateway.exchange import Exchange
from langport.gateway.upstream import Upstream

SAMPLED_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
"""What is repeatable at temperature 0 or with a seed."""
COMPUTED_PATHS = frozenset(("/v1/embeddings", "/v1/decisions", "/v1/rerank", "/v1/score", "/v1/classify"))
"""What always is: nothing is drawn."""
MAX_SORTED_BYTES = 1024 * 1024
"""Longer bodies are the same only byte for byte: sorting one takes milliseconds, in which nothing else is done."""

_UNREAD = ("user", "safety_identifier", "prompt_cache_key")
"""Fields that no answer depends on. Responses repeat them, so there they count; `cache_salt` counts everywhere, since
its purpose is to share nothing."""
_MAX_UNREAD = 64
"""Characters of OpenAI's longest valid one. Anything else in these fields may be a 400, so it counts."""
_HEADERS = (b"authorization", b"api-key", b"x-api-key", b"openai-beta", b"openai-organization", b"openai-project",
            b"anthropic-version", b"anthropic-beta")  # fmt: skip
"""Of those that go on to remote servers, the ones that answers depend on. The credentials are among them because an
open server has one owner only, and some upstreams get the client's own key."""
_CLIENT_TOOLS = (None, "function", "custom")
"""Types of tools that the client runs. Others (web_search, mcp, code_interpreter) have other results every time."""


class Asked(msgspec.Struct):
    """The fields that decide whether a request qualifies, of any type."""

    stream: Any = None
    temperature: Any = None
    seed: Any = None
    store: Any = None
    background: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    tools: Any = None
    web_search_options: Any = None
    mcp_servers: Any = None
    container: Any = None

    def is_repeatable(self, path: str) -> bool:
        """Whether an answer may be kept and given again. `path`: of the route."""
        if path in COMPUTED_PATHS:
            return self.store is not True
        if path not in SAMPLED_PATHS or not (_is_zero(self.temperature) or type(self.seed) is int):
            return False
        if self.store is True or self.background or self.web_search_options or self.mcp_servers or self.container:
            return False
        if path == "/v1/responses" and (
            self.store is not False or self.previous_response_id or self.conversation or self.prompt
        ):
            return False  # what is stored may be asked for by its id, and what is referred to may be deleted
        return _are_clients(self.tools)


_NEVER = Asked(store=True)
_asked = msgspec.json.Decoder(Asked).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_pack = msgspec.msgpack.Encoder().encode


def read_asked(body: bytes) -> Asked:
    """`body`: a JSON object, as `envelope.read_envelope` has seen. What cannot be read is the upstream's to refuse."""
    try:
        return _asked(body)
    except (ValueError, RecursionError):
        return _NEVER


def key_of(exchange: Exchange, upstream: Upstream, body: bytes, *, is_strict: bool) -> bytes:
    """What equal requests have in common and no others: 32 bytes."""
    given = exchange.headers
    headers = [given.get(name) for name in (*_HEADERS, *upstream.read_headers)]
    query: bytes = exchange.scope.get("query_string", b"")
    return sha256(
        _pack(
            (
                exchange.owner,
                upstream.name,
                upstream.generation(),
                exchange.route,
                exchange.model_in_path,
                query,
                is_strict,
                headers,
                canonical(body, exchange.route),
            )
        )
    ).digest()


def canonical(body: bytes, path: str) -> bytes:
    """A request's JSON with sorted keys, no spaces, and without fields that cannot change the answer."""
    if len(body) > MAX_SORTED_BYTES:
        return body
    try:
        fields = _decode(body)
        if path != "/v1/responses":
            for name in _UNREAD:
                value = fields.get(name)
                if type(value) is str and len(value) <= _MAX_UNREAD:
                    del fields[name]
        return _encode(fields)
    except (ValueError, OverflowError, RecursionError):  # numbers and texts that JSON has and msgspec cannot write
        return body


def _is_zero(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


def _are_clients(tools: Any) -> bool:
    if not tools:
        return True
    if not isinstance(tools, list):
        return False
    return all(isinstance(tool, dict) and tool.get("type") in _CLIENT_TOOLS for tool in tools)


class Control(msgspec.Struct, frozen=True):
    """What a client says of answers from a cache (RFC 9111, 5.2.1)."""

    is_no_store: bool = False
    """Neither give a kept answer nor keep this one."""
    max_age_s: float = float("inf")
    """Give none that is older; below 0, none at all."""


_ANY = Control()
_MAX_AGE = re.compile(r"max-age=\"?([0-9]{1,9})\"?")


def read_control(headers: Mapping[bytes, bytes]) -> Control:
    """The request's `cache-control`; other directives are ignored, as the RFC says."""
    given = headers.get(b"cache-control")
    if given is None:
        return _ANY
    max_age_s = _ANY.max_age_s
    for directive in given.decode("latin-1").lower().split(","):
        directive = directive.strip()
        if directive == "no-store":
            return Control(is_no_store=True)
        if directive == "no-cache" or directive.startswith("no-cache="):
            max_age_s = -1.0
        elif directive.startswith("max-age"):
            found = _MAX_AGE.fullmatch(directive)
            max_age_s = min(max_age_s, float(found[1]) if found else -1.0)
    return Control(max_age_s=max_age_s)
