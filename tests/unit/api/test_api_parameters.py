"""Every parameter that OpenAI documents for the served endpoints: one row each, for what becomes of it.

A parameter has an effect, which a request without it has not; or it is accepted without meaning here; or it is
refused by name. The names are those of OpenAI's specification, so that one added there is missing here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from langport.api.stored import StoredApi
from langport.gateway.app import Gateway
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings, StoreSettings
from langport.store.base import ANYONE, Query
from langport.stored import service_of
from langport.testing import AsgiClient, Reply

SPECIFICATION = json.loads((Path(__file__).parents[2] / "conformance" / "schemas.json").read_text())
PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "responses": "/v1/responses",
}
BASES: dict[str, dict[str, Any]] = {
    "chat": {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]},
    "completion": {"model": "fake", "prompt": "Hi", "max_tokens": 50},
    "embedding": {"model": "fake", "input": "Hi", "encoding_format": "float"},
    "responses": {"model": "fake", "input": "Hi", "store": False},
}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\n'
    "{% endfor %}effort={{ reasoning_effort }}"
)
TOOL = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
RESPONSE_TOOLS = [{"type": "function", **TOOL, "strict": False}]
CALL = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'
LOGPROBS = "message.output_text.logprobs"
TOO_LONG = [{"role": "user", "content": "x" * 700}, {"role": "user", "content": "Hi"}]


@dataclass
class Outcome:
    """What became of a request."""

    fake: Any
    reply: Reply
    kept: list[Any]
    """What is stored after it."""

    @property
    def choice(self) -> Any:
        return self.reply.json["choices"][0]

    @property
    def text(self) -> str:
        choice = self.choice
        found: str = choice["text"] if "text" in choice else choice["message"]["content"]
        return found

    @property
    def usage(self) -> Any:
        return self.reply.json["usage"]["completion_tokens_details"]

    @property
    def sampling(self) -> Any:
        return self.fake.engine.requests[0].sampling

    @property
    def prompt(self) -> str:
        text: str = self.fake.prompt_text(0)
        return text

    @property
    def items(self) -> list[Any]:
        found: list[Any] = self.reply.json["output"]
        return found

    @property
    def data(self) -> list[Any]:
        found: list[Any] = self.reply.json["data"]
        return found


@dataclass(frozen=True)
class Row:
    """One parameter."""

    endpoint: str
    name: str
    value: Any
    shows: Callable[[Outcome], bool] | None = None
    """Whether the effect is there; None: it has no meaning here."""
    refused: int | None = None
    """The status of the refusal."""
    beside: dict[str, Any] = field(default_factory=dict)
    """Further fields, of a request without the parameter as well."""
    says: str = "Hello"
    """What the model answers."""


def chat(name: str, value: Any, shows: Callable[[Outcome], bool] | None = None, **options: Any) -> Row:
    return Row("chat", name, value, shows, **options)


def completion(name: str, value: Any, shows: Callable[[Outcome], bool] | None = None, **options: Any) -> Row:
    return Row("completion", name, value, shows, **options)


def embedding(name: str, value: Any, shows: Callable[[Outcome], bool] | None = None, **options: Any) -> Row:
    return Row("embedding", name, value, shows, **options)


def response(name: str, value: Any, shows: Callable[[Outcome], bool] | None = None, **options: Any) -> Row:
    return Row("responses", name, value, shows, **options)


def sampled(name: str, value: Any) -> Callable[[Outcome], bool]:
    return lambda outcome: getattr(outcome.sampling, name) == value


def given_back(name: str, value: Any) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.reply.json.get(name) == value


def follows_a_grammar(outcome: Outcome) -> bool:
    return outcome.sampling.grammar is not None


def streams(outcome: Outcome) -> bool:
    return outcome.reply.headers["content-type"].startswith("text/event-stream")


def counts(outcome: Outcome) -> bool:
    return any(event != "[DONE]" and event.get("usage") for event in outcome.reply.events)


ROWS = [
    chat("messages", [{"role": "user", "content": "Other"}], lambda o: "user: Other" in o.prompt),
    chat("model", "gpt-5", refused=404),
    chat("audio", {"voice": "alloy", "format": "wav"}, refused=400),
    chat("frequency_penalty", 1.5, sampled("frequency_penalty", 1.5)),
    chat("logit_bias", {"65": 5}, sampled("logit_bias", {65: 5})),
    chat("logprobs", True, lambda o: o.choice["logprobs"] is not None),
    chat("max_completion_tokens", 2, lambda o: o.choice["finish_reason"] == "length"),
    chat("metadata", {"a": "b"}),
    chat("metadata", {"a": "b"}, lambda o: o.kept[0]["metadata"] == {"a": "b"}, beside={"store": True}),
    chat("modalities", ["text"]),
    chat("modalities", ["text", "audio"], refused=400),
    chat("moderation", {"model": "omni-moderation"}, refused=400),
    chat("n", 2, lambda o: len(o.reply.json["choices"]) == 2),
    chat(
        "parallel_tool_calls",
        False,
        lambda o: len(o.choice["message"]["tool_calls"]) == 1,
        beside={"tools": TOOLS},
        says=f"{CALL}\n{CALL}",
    ),
    chat("prediction", {"type": "content", "content": "Hello"}, lambda o: o.usage["accepted_prediction_tokens"] == 5),
    chat(
        "prediction",
        {"type": "content", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "y"}]},
        lambda o: o.usage["rejected_prediction_tokens"] == 1 and o.fake.engine.requests[0].prediction == [*b"Hey"],
    ),
    chat("prediction", "Hello", refused=400),
    chat("presence_penalty", 1.5, sampled("presence_penalty", 1.5)),
    chat("prompt_cache_key", "me"),
    chat("prompt_cache_options", {"mode": "implicit"}),
    chat("reasoning_effort", "low", lambda o: "effort=low" in o.prompt),
    chat("response_format", {"type": "text"}),
    chat("response_format", {"type": "json_object"}, follows_a_grammar),
    chat("safety_identifier", "me"),
    chat("service_tier", "auto", lambda o: o.reply.json.get("service_tier") == "default"),
    chat("stop", "l", lambda o: o.text == "He"),
    chat("store", False),
    chat("store", True, lambda o: [kept["id"] for kept in o.kept] == [o.reply.json["id"]]),
    chat("stream", True, streams),
    chat("stream_options", {"include_usage": True}, counts, beside={"stream": True}),
    chat("temperature", 0.5, sampled("temperature", 0.5)),
    chat("tool_choice", "none", lambda o: "look_up" not in o.prompt, beside={"tools": TOOLS}),
    chat("tool_choice", "required", follows_a_grammar, beside={"tools": TOOLS}, says=CALL),
    chat("tools", TOOLS, lambda o: "look_up" in o.prompt),
    chat("tools", TOOLS, lambda o: o.choice["finish_reason"] == "tool_calls", says=CALL),
    chat(
        "top_logprobs",
        2,
        lambda o: len(o.choice["logprobs"]["content"][0]["top_logprobs"]) == 2,
        beside={"logprobs": True},
    ),
    chat("top_p", 0.5, sampled("top_p", 0.5)),
    chat("verbosity", "low"),
    chat("web_search_options", {"search_context_size": "low"}, refused=400),
    chat("function_call", "none", lambda o: "look_up" not in o.prompt, beside={"functions": [TOOL]}),
    chat("functions", [TOOL], lambda o: "look_up" in o.prompt),
    chat("max_tokens", 2, lambda o: o.choice["finish_reason"] == "length"),
    chat("prompt_cache_retention", "24h"),
    chat("seed", 7, sampled("seed", 7)),
    chat("user", "me"),
    completion("model", "gpt-5", refused=404),
    completion("prompt", "Other", lambda o: o.prompt == "Other"),
    completion("best_of", 2, lambda o: o.reply.json["usage"]["completion_tokens"] == 12),
    completion("echo", True, lambda o: o.text == "HiHello"),
    completion("frequency_penalty", 1.5, sampled("frequency_penalty", 1.5)),
    completion("logit_bias", {"65": 5}, sampled("logit_bias", {65: 5})),
    completion("logprobs", 2, lambda o: len((o.choice["logprobs"] or {"top_logprobs": [[]]})["top_logprobs"][0]) >= 2),
    completion("max_tokens", 2, lambda o: o.text == "He"),
    completion("n", 2, lambda o: len(o.reply.json["choices"]) == 2),
    completion("presence_penalty", 1.5, sampled("presence_penalty", 1.5)),
    completion("seed", 7, sampled("seed", 7)),
    completion("stop", ["x", "l"], lambda o: o.text == "He"),
    completion("stream", True, streams),
    completion("stream_options", {"include_usage": True}, counts, beside={"stream": True}),
    completion("suffix", " there", refused=400),  # with an effect in test_api_suffix.py, where a tokenizer has markers
    completion("temperature", 0.5, sampled("temperature", 0.5)),
    completion("top_p", 0.5, sampled("top_p", 0.5)),
    completion("user", "me"),
    embedding("input", ["a", "b"], lambda o: len(o.data) == 2),
    embedding("model", "gpt-5", refused=404),
    embedding("dimensions", 4, lambda o: len(o.data[0]["embedding"]) == 4),
    embedding("encoding_format", "base64", lambda o: isinstance(o.data[0]["embedding"], str)),
    embedding("user", "me"),
    response("background", True, given_back("status", "queued"), beside={"store": True}),
    response("context_management", [{"type": "compaction"}], refused=400),
    response("conversation", "conv_1", refused=400),
    response("include", [LOGPROBS], lambda o: bool(o.items[0]["content"][0]["logprobs"])),
    response("input", "Other", lambda o: "user: Other" in o.prompt),
    response("instructions", "Be kind.", lambda o: "system: Be kind." in o.prompt),
    response("max_output_tokens", 16, lambda o: o.reply.json["status"] == "incomplete", says="Hello, hello, hello."),
    response("max_tool_calls", 1, given_back("max_tool_calls", 1)),  # of built-in tools, which there are none of
    response("metadata", {"a": "b"}, given_back("metadata", {"a": "b"})),
    response("model", "gpt-5", refused=404),
    response("moderation", {"model": "omni-moderation"}, refused=400),
    response(
        "parallel_tool_calls",
        False,
        lambda o: len(o.items) == 1,
        beside={"tools": RESPONSE_TOOLS},
        says=f"{CALL}\n{CALL}",
    ),
    response("previous_response_id", "resp_1", refused=400),  # of one that is kept in test_api_stored_responses.py
    response("prompt", {"id": "pmpt_1"}, refused=400),
    response("prompt_cache_key", "me", given_back("prompt_cache_key", "me")),
    response("prompt_cache_options", {"mode": "implicit"}),
    response("prompt_cache_retention", "24h", given_back("prompt_cache_retention", "24h")),
    response("reasoning", {"effort": "low"}, lambda o: "effort=low" in o.prompt),
    response("safety_identifier", "me", given_back("safety_identifier", "me")),
    response("service_tier", "auto"),
    response("store", True, lambda o: [kept["response"]["id"] for kept in o.kept] == [o.reply.json["id"]]),
    response("stream", True, streams),
    response(
        "stream_options",
        {"include_obfuscation": True},
        lambda o: any("obfuscation" in event for event in o.reply.events),
        beside={"stream": True},
    ),
    response("temperature", 0.5, sampled("temperature", 0.5)),
    response("text", {"format": {"type": "json_object"}}, follows_a_grammar),
    response("tool_choice", "none", lambda o: "look_up" not in o.prompt, beside={"tools": RESPONSE_TOOLS}),
    response("tool_choice", "required", follows_a_grammar, beside={"tools": RESPONSE_TOOLS}, says=CALL),
    response("tools", RESPONSE_TOOLS, lambda o: o.items[0]["type"] == "function_call", says=CALL),
    response(
        "top_logprobs",
        2,
        lambda o: len(o.items[0]["content"][0]["logprobs"][0]["top_logprobs"]) == 2,
        beside={"include": [LOGPROBS]},
    ),
    response("top_p", 0.5, sampled("top_p", 0.5)),
    response("truncation", "auto", lambda o: o.reply.status == 200, beside={"input": TOO_LONG}),
    response("user", "me", given_back("user", "me")),
]
ACCEPTED = [row for row in ROWS if row.refused is None]
IDS = [f"{row.endpoint}-{row.name}" for row in ROWS]
ACCEPTED_IDS = [f"{row.endpoint}-{row.name}" for row in ACCEPTED]
NAMES = sorted({(row.endpoint, row.name) for row in ROWS})


def documented(endpoint: str) -> set[str]:
    """The names in OpenAI's specification of a request's body."""

    def names(schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return names(SPECIFICATION["$defs"][schema["$ref"].rpartition("/")[2]])
        found = set(schema.get("properties", {}))
        return found.union(*(names(part) for part in schema.get("allOf", [])))

    return names({"$ref": SPECIFICATION["x-roots"][f"{endpoint}.request"]})


@pytest.fixture
def ask(serve, says):
    """Ask a fake model behind the gateway."""

    async def send(endpoint: str, fields: dict[str, Any], *, text: str = "Hello", strict: bool = False) -> Outcome:
        kind = "encoder" if endpoint == "embedding" else "decoder"
        stored = StoredApi(StoreSettings(place="memory"), Path("/nowhere"), max_line_bytes=1)
        fake = serve(says(text), kind=kind, template=TEMPLATE, runs=stored.runs)
        upstream = Upstream("fake", fake.app, card=dict, is_ready=lambda: (True, ""))
        headers = {"x-langport-strict": "true"} if strict else None
        client = AsgiClient(Gateway([upstream], GatewaySettings(), service=service_of(stored, stored.recorders)))
        reply = await client.post(PATHS[endpoint], {**BASES[endpoint], **fields}, headers=headers)
        await stored.chats.close()  # what is still being written
        kept = [json.loads(body) for body in await kept_in(stored)]
        await stored.close()
        return Outcome(fake, reply, kept)

    return send


async def kept_in(stored: StoredApi) -> list[bytes]:
    if not await stored.store.exists():
        return []
    pages = [await stored.store.page(kind, ANYONE, Query(limit=5)) for kind in ("chat.completion", "response")]
    return [record.body for page in pages if page for record in page[0]]


@pytest.mark.parametrize("endpoint", PATHS)
def test_there_is_a_row_for_each(endpoint):
    assert {row.name for row in ROWS if row.endpoint == endpoint} == documented(endpoint)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
async def test_what_becomes_of_it(ask, row):
    outcome = await ask(row.endpoint, {**row.beside, row.name: row.value}, text=row.says)
    if row.refused is not None:
        assert outcome.reply.status == row.refused
        assert outcome.reply.json["error"]["param"] == row.name
        message = outcome.reply.json["error"]["message"]
        assert row.name in message or str(row.value) in message
        assert not outcome.fake.engine.requests
        return
    assert outcome.reply.status == 200, outcome.reply.body
    assert "x-langport-ignored" not in outcome.reply.headers
    if row.shows is not None:
        assert row.shows(outcome)
        assert not row.shows(await ask(row.endpoint, row.beside, text=row.says))


@pytest.mark.parametrize("row", ACCEPTED, ids=ACCEPTED_IDS)
async def test_what_is_accepted_is_no_unknown_field(ask, row):
    fields = {**row.beside, row.name: row.value}
    assert (await ask(row.endpoint, fields, text=row.says, strict=True)).reply.status == 200


@pytest.mark.parametrize(("endpoint", "name"), NAMES)
async def test_null_is_the_default(ask, endpoint, name):
    reply = (await ask(endpoint, {name: None})).reply
    if name in ("model", "messages", "input"):
        assert (reply.status, reply.json["error"]["param"]) == (400, name)
    else:
        assert reply.status == 200, reply.body


@pytest.mark.parametrize(("endpoint", "name"), NAMES)
async def test_a_wrong_type_is_named(ask, endpoint, name):
    outcome = await ask(endpoint, {name: [[{}]]})
    assert outcome.reply.status == 400
    assert outcome.reply.json["error"]["param"].startswith(name)
    assert not outcome.fake.engine.requests
