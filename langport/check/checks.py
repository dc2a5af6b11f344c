"""The checks, a table: a function each, whose docstring is the rule as OpenAI's API reference has it.

A function returns when the rule is kept, and raises Failed or Skipped otherwise. The rules are those of
platform.openai.com/docs/api-reference, and what the official clients rely on.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from langport.check.server import Answer, Failed, Server, Skipped, shown

NUM_AT_ONCE = 8
NO_SUCH_MODEL = "a-model-that-nobody-serves"

CHATS, COMPLETIONS, EMBEDDINGS, RESPONSES = "/chat/completions", "/completions", "/embeddings", "/responses"
_QUESTION = [{"role": "user", "content": "Count upwards in words: one, two, three,"}]
_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": _PARAMETERS, "strict": True}}
_NAMED = {"type": "function", "function": {"name": "get_weather"}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": _PARAMETERS, "strict": True}}

Function = Callable[[Server], None]


@dataclass(frozen=True)
class Check:
    group: str
    name: str
    rule: str
    run: Function


CHECKS: list[Check] = []


def check(group: str) -> Callable[[Function], Function]:
    """Put a function into the table, under its own name."""

    def add(function: Function) -> Function:
        rule = " ".join((function.__doc__ or "").split())
        CHECKS.append(Check(group, function.__name__.removeprefix(f"{group}_").strip("_"), rule, function))
        return function

    return add


def expect(is_so: bool, wanted: str, came: object) -> None:
    """Raises: Failed."""
    if not is_so:
        raise Failed(f"expected {wanted}, got {shown(came)}")


def member(value: Any, path: str, kind: type | tuple[type, ...], where: str = "the answer") -> Any:
    """What stands at a dotted path of JSON. Raises: Failed when it is missing or of another type."""
    found = value
    for part in path.split("."):
        try:
            found = found[int(part)] if part.isdigit() else found[part]
        except (KeyError, IndexError, TypeError):
            raise Failed(f"expected {path} in {where}, got {shown(value)}") from None
    names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    is_number = isinstance(found, bool) and kind is not bool
    expect(isinstance(found, kind) and not is_number, f"{path} of type {names}", found)
    return found


# Asking.


def _chat(server: Server, **fields: Any) -> Answer:
    body = {"model": server.model("chat"), "messages": _QUESTION, "max_tokens": 12, "temperature": 0, **fields}
    return server.post(CHATS, body)


def _complete(server: Server, **fields: Any) -> Answer:
    body = {"model": server.model("completion"), "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    return server.post(COMPLETIONS, {**body, **fields})


def _embed(server: Server, given: object = "The quick brown fox.", **fields: Any) -> Answer:
    return server.post(EMBEDDINGS, {"model": server.model("embedding"), "input": given, **fields})


def _chunks(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream but [DONE]."""
    events = [event for event in answer.events if event != "[DONE]"]
    expect(bool(events), "events with chunks", answer.body.decode("utf-8", "replace"))
    try:
        chunks = [json.loads(event) for event in events]
    except ValueError:
        raise Failed(f"expected JSON in every event, got {shown(events)}") from None
    for chunk in chunks:
        for choice in member(chunk, "choices", list, "each chunk"):
            expect(isinstance(choice, dict), "choices that are objects", chunk)
    return chunks


def _choices(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


def _usage(document: Any) -> None:
    prompt, completion, total = (
        member(document, f"usage.{name}_tokens", int) for name in ("prompt", "completion", "total")
    )
    expect(total == prompt + completion > 0, "usage.total_tokens that is the sum of the others", document["usage"])


def _error(answer: Answer, status: int, *, code: str | None = None, param: str | None = None) -> None:
    expect(
        answer.status == status, f"status {status}", f"{answer.status} {answer.body[:200].decode('utf-8', 'replace')}"
    )
    error = member(answer.json, "error", dict)
    member(error, "message", str, "error")
    member(error, "type", str, "error")
    for name, wanted in (("param", param), ("code", code)):
        member(error, name, (str, type(None)), "error")
        expect(wanted is None or error[name] == wanted, f"error.{name} {wanted!r}", error[name])


# Models.


@check("models")
def models_list(server: Server) -> None:
    """GET /models answers {"object": "list", "data": [...]}, each model with id, object "model", created, owned_by."""
    document = server.get("/models").succeeded()
    expect(document.get("object") == "list", 'object "list"', document)
    data = member(document, "data", list)
    expect(bool(data), "at least one model", data)
    for model in data:
        for name, kind in (("id", str), ("created", int), ("owned_by", str)):
            member(model, name, kind, "each model")
        expect(model.get("object") == "model", 'object "model"', model)


@check("models")
def models_retrieve(server: Server) -> None:
    """GET /models/{id} answers the one model, an id with a slash included."""
    name = next((name for name in server.models.values() if name), None)
    if name is None:
        raise Failed("expected a model in GET /models to ask for, got none")
    document = server.get(f"/models/{name.replace('/', '%2F')}").succeeded()
    expect(document.get("id") == name, f"id {name!r}", document)


# Chat.


@check("chat")
def chat_answer(server: Server) -> None:
    """An answer is a chat.completion with id, created, model and choices; a message has role assistant and content."""
    document = _chat(server).succeeded()
    expect(document.get("object") == "chat.completion", 'object "chat.completion"', document)
    for name, kind in (("id", str), ("created", int), ("model", str), ("choices.0.message.content", str)):
        member(document, name, kind)
    expect(document["choices"][0]["message"].get("role") == "assistant", "role assistant", document["choices"][0])
    expect(document["choices"][0].get("index") == 0, "index 0", document["choices"][0])


@check("chat")
def chat_usage(server: Server) -> None:
    """usage counts prompt_tokens, completion_tokens and their sum."""
    _usage(_chat(server).succeeded())


@check("chat")
def chat_max_tokens(server: Server) -> None:
    """max_tokens bounds the answer, which then ends with finish_reason length."""
    document = _chat(server, max_tokens=1).succeeded()
    reason = member(document, "choices.0.finish_reason", str)
    count = member(document, "usage.completion_tokens", int)
    expect(count <= 1 and reason in ("length", "stop"), "one token and finish_reason length", (count, reason))


@check("chat")
def chat_n(server: Server) -> None:
    """n answers come as choices with the indices 0 to n - 1."""
    choices = member(_chat(server, n=2, temperature=1).succeeded(), "choices", list)
    indices = sorted(member(choice, "index", int, "each choice") for choice in choices)
    expect(indices == [0, 1], "choices 0 and 1", indices)


@check("chat")
def chat_logprobs(server: Server) -> None:
    """logprobs and top_logprobs give each token's log-probability, its bytes, and those of the likeliest tokens."""
    document = _chat(server, logprobs=True, top_logprobs=2, max_tokens=3).succeeded()
    content = member(document, "choices.0.logprobs.content", list)
    expect(bool(content), "an entry for each token", content)
    for entry in content:
        member(entry, "token", str, "each entry")
        expect(member(entry, "logprob", (int, float), "each entry") <= 1e-6, "a log-probability of at most 0", entry)
        expect(len(member(entry, "top_logprobs", list, "each entry")) == 2, "two top_logprobs", entry)


@check("chat")
def chat_content_parts(server: Server) -> None:
    """The content of a message may be a list of parts of type text."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    member(_chat(server, messages=parts).succeeded(), "choices.0.message.content", str)


# Streams.


@check("stream")
def stream_role_first(server: Server) -> None:
    """The first delta of a choice has the role, and no other has it."""
    roles = [member(c, "delta", dict, "each choice").get("role") for c in _choices(_chunks(_chat(server, stream=True)))]
    expect(roles[:1] == ["assistant"], "role assistant in the first delta", roles[:1])
    expect(not any(roles[1:]), "no role in later deltas", roles)


@check("stream")
def stream_one_finish(server: Server) -> None:
    """finish_reason is null until a choice's last chunk, which has the only one."""
    choices = _choices(_chunks(_chat(server, stream=True)))
    reasons = [member(choice, "finish_reason", (str, type(None)), "each choice") for choice in choices]
    expect(
        bool(reasons) and sum(map(bool, reasons)) == 1 and bool(reasons[-1]), "one finish_reason, at the end", reasons
    )


@check("stream")
def stream_done(server: Server) -> None:
    """data: [DONE] is the last event, and comes once."""
    events = _chat(server, stream=True).events
    expect(events[-1:] == ["[DONE]"] and events.count("[DONE]") == 1, "[DONE] once, as the last event", events[-2:])


@check("stream")
def stream_same_id(server: Server) -> None:
    """Every chunk is a chat.completion.chunk with the same id, created and model."""
    chunks = _chunks(_chat(server, stream=True))
    heads = {(str(c.get("id")), str(c.get("created")), str(c.get("model")), str(c.get("object"))) for c in chunks}
    expect(len(heads) == 1, "one id, created and model in all chunks", sorted(heads)[:2])
    member(chunks[0], "id", str, "each chunk")
    expect(chunks[0].get("object") == "chat.completion.chunk", 'object "chat.completion.chunk"', chunks[0])


@check("stream")
def stream_same_text(server: Server) -> None:
    """At temperature 0 the deltas together are the text of the plain answer."""
    plain = member(_chat(server).succeeded(), "choices.0.message.content", str)
    choices = _choices(_chunks(_chat(server, stream=True)))
    text = "".join(choice["delta"].get("content") or "" for choice in choices if isinstance(choice.get("delta"), dict))
    expect(text == plain, repr(plain), text)


@check("stream")
def stream_no_usage(server: Server) -> None:
    """Without stream_options.include_usage no chunk tells a usage, and every chunk has a choice."""
    chunks = _chunks(_chat(server, stream=True))
    expect(all(chunk["choices"] and not chunk.get("usage") for chunk in chunks), "choices and no usage", chunks[-1])


@check("stream")
def stream_include_usage(server: Server) -> None:
    """With include_usage the last chunk has the usage and no choices; the others have usage null."""
    chunks = _chunks(_chat(server, stream=True, stream_options={"include_usage": True}))
    expect(chunks[-1]["choices"] == [], "a last chunk without choices", chunks[-1])
    _usage(chunks[-1])
    expect(all(chunk.get("usage", 0) is None for chunk in chunks[:-1]), "usage null before it", chunks[0])


# Tools.


@check("tools")
def tools_named(server: Server) -> None:
    """A named tool_choice is called: finish_reason stop or tool_calls, an id, JSON arguments after the schema."""
    fields = {"tools": [_TOOL], "tool_choice": _NAMED, "max_tokens": 60}
    document = _chat(server, **fields).succeeded()
    call = member(document, "choices.0.message.tool_calls.0", dict)
    member(call, "id", str, "the call")
    _check_call(member(call, "function.name", str, "the call"), member(call, "function.arguments", str, "the call"))


@check("tools")
def tools_stream(server: Server) -> None:
    """A streamed call has its id and name once; its arguments come in pieces."""
    fields = {"tools": [_TOOL], "tool_choice": _NAMED, "max_tokens": 60, "stream": True}
    deltas = [choice["delta"] for choice in _choices(_chunks(_chat(server, **fields))) if choice.get("delta")]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or []]
    expect(bool(calls), "deltas with tool_calls", deltas)
    expect([bool(call.get("id")) for call in calls].count(True) == 1, "one id", calls)
    functions = [call.get("function") or {} for call in calls]
    names = [function["name"] for function in functions if function.get("name")]
    _check_call("".join(names), "".join(function.get("arguments") or "" for function in functions))


def _check_call(name: str, arguments: str) -> None:
    expect(name == "get_weather", "the name get_weather once", name)
    _check_place(arguments)


def _check_place(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    is_place = isinstance(value, dict) and value.keys() == {"city"} and isinstance(value["city"], str)
    expect(is_place, 'JSON after the schema, like {"city": "Oslo"}', text)


@check("tools")
def tools_result(server: Server) -> None:
    """A conversation may hold the assistant's calls and the tool's results."""
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        *_QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
    ]
    document = _chat(server, messages=messages, tools=[_TOOL]).succeeded()
    member(document, "choices.0.message", dict)


# Structured output.


@check("structured")
def structured_json_object(server: Server) -> None:
    """response_format json_object: the answer is a JSON object, unless it was cut off."""
    messages = [{"role": "user", "content": "Answer with a JSON object with one short field."}]
    document = _chat(server, messages=messages, response_format={"type": "json_object"}, max_tokens=200).succeeded()
    text = member(document, "choices.0.message.content", str)
    if member(document, "choices.0.finish_reason", str) == "length":
        expect(text.lstrip().startswith("{"), "the beginning of a JSON object", text)
        return
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    expect(is_object, "a JSON object", text)


@check("structured")
def structured_json_schema(server: Server) -> None:
    """response_format json_schema with strict: the answer follows the schema."""
    document = _chat(server, response_format=_SCHEMA, max_tokens=60).succeeded()
    _check_place(member(document, "choices.0.message.content", str))


# Completions.


@check("completions")
def completions_answer(server: Server) -> None:
    """An answer is a text_completion with id, created, model, choices with text, and usage."""
    document = _complete(server).succeeded()
    expect(document.get("object") == "text_completion", 'object "text_completion"', document)
    for name, kind in (("id", str), ("created", int), ("model", str), ("choices.0.text", str)):
        member(document, name, kind)
    _usage(document)


@check("completions")
def completions_echo(server: Server) -> None:
    """echo begins the text with the prompt."""
    text = member(_complete(server, prompt="One, two,", echo=True).succeeded(), "choices.0.text", str)
    expect(text.lstrip().startswith("One, two,"), "a text that begins with the prompt", text)


@check("completions")
def completions_logprobs(server: Server) -> None:
    """logprobs gives tokens, token_logprobs, top_logprobs and text_offset, one entry for each token."""
    found = member(_complete(server, logprobs=2, max_tokens=3).succeeded(), "choices.0.logprobs", dict)
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    lengths = {name: len(member(found, name, list, "logprobs")) for name in names}
    expect(len(set(lengths.values())) == 1 and lengths["tokens"] > 0, "lists of one length", lengths)


@check("completions")
def completions_several_prompts(server: Server) -> None:
    """The choices of several prompts are numbered prompt by prompt."""
    choices = member(_complete(server, prompt=["One,", "Two,"]).succeeded(), "choices", list)
    indices = sorted(member(choice, "index", int, "each choice") for choice in choices)
    expect(indices == [0, 1], "choices 0 and 1", indices)


@check("completions")
def completions_stream(server: Server) -> None:
    """A stream has text_completion chunks, one finish_reason and [DONE] at its end."""
    answer = _complete(server, stream=True)
    chunks = _chunks(answer)
    expect(chunks[0].get("object") == "text_completion", 'object "text_completion"', chunks[0])
    reasons = [choice.get("finish_reason") for choice in _choices(chunks)]
    expect(sum(map(bool, reasons)) == 1, "one finish_reason", reasons)
    expect(answer.events[-1] == "[DONE]", "[DONE] as the last event", answer.events[-1])


# Embeddings.


def _vector(document: Any, index: int = 0) -> list[float]:
    vector: list[float] = member(document, f"data.{index}.embedding", list)
    is_vector = bool(vector) and all(isinstance(x, int | float) and math.isfinite(x) for x in vector)
    expect(is_vector, "a list of numbers", vector[:4])
    return vector


@check("embeddings")
def embeddings_floats(server: Server) -> None:
    """encoding_format float answers a list of embedding objects with an index each, and usage without completions."""
    document = _embed(server, ["one", "two"], encoding_format="float").succeeded()
    expect(document.get("object") == "list", 'object "list"', document.get("object"))
    lengths = {len(_vector(document, index)) for index in (0, 1)}
    expect(len(lengths) == 1, "vectors of one length", sorted(lengths))
    expect([entry.get("index") for entry in document["data"]] == [0, 1], "index 0 and 1", document["data"])
    member(document, "usage.prompt_tokens", int)


@check("embeddings")
def embeddings_base64(server: Server) -> None:
    """encoding_format base64 is the same vector as little-endian float32; the official client asks for it."""
    plain = _vector(_embed(server, encoding_format="float").succeeded())
    text = member(_embed(server, encoding_format="base64").succeeded(), "data.0.embedding", str)
    try:
        data = base64.b64decode(text, validate=True)
        decoded = struct.unpack(f"<{len(plain)}f", data)
    except (ValueError, struct.error):
        raise Failed(f"expected {len(plain)} floats in base64, got {shown(text)}") from None
    is_same = all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in zip(plain, decoded, strict=True))
    expect(is_same, "the values of the float format", decoded[:4])


@check("embeddings")
def embeddings_dimensions(server: Server) -> None:
    """dimensions shortens the vector, or is refused with a 400 that names it; it is never ignored."""
    answer = _embed(server, dimensions=8, encoding_format="float")
    if answer.status == 400:
        _error(answer, 400)
    else:
        expect(len(_vector(answer.succeeded())) == 8, "8 numbers", answer.succeeded())


# Errors.


@check("errors")
def errors_unknown_model(server: Server) -> None:
    """A model that does not exist is a 404 with code model_not_found."""
    answer = server.post(CHATS, {"model": NO_SUCH_MODEL, "messages": _QUESTION})
    _error(answer, 404, code="model_not_found")


@check("errors")
def errors_unknown_path(server: Server) -> None:
    """A path that does not exist is a 404 with an error object."""
    _error(server.get("/nothing-is-here"), 404)


@check("errors")
def errors_no_messages(server: Server) -> None:
    """A missing parameter is a 400, never a 422, with error.param naming it."""
    _error(server.post(CHATS, {"model": server.model("chat")}), 400, param="messages")


@check("errors")
def errors_wrong_type(server: Server) -> None:
    """A parameter of a wrong type is a 400 with error.param naming it."""
    _error(_chat(server, temperature="hot"), 400, param="temperature")


@check("errors")
def errors_out_of_range(server: Server) -> None:
    """A temperature above 2 is a 400 with error.param naming it."""
    _error(_chat(server, temperature=2.5), 400, param="temperature")


@check("errors")
def errors_no_json(server: Server) -> None:
    """A body that is no JSON is a 400 with an error object."""
    _error(server.post(CHATS, b'{"model": '), 400)


@check("errors")
def errors_before_a_stream(server: Server) -> None:
    """What is wrong with a request for a stream is told as a plain error, before any event."""
    answer = _chat(server, stream=True, temperature="hot")
    _error(answer, 400)
    content_type = answer.headers.get("content-type", "")
    expect(content_type.startswith("application/json"), "content-type application/json", content_type)


@check("errors")
def errors_wrong_key(server: Server) -> None:
    """A wrong key is a 401 with code invalid_api_key."""
    if not server.api_key:
        raise Skipped("no --api-key given")
    _error(server.get("/models", Authorization="Bearer not-the-key"), 401, code="invalid_api_key")


# Headers.


@check("headers")
def headers_content_type(server: Server) -> None:
    """Answers are application/json, streams text/event-stream."""
    found = _chat(server).headers.get("content-type", "")
    expect(found.startswith("application/json"), "content-type application/json", found)
    _ = _chat(server, stream=True).events


@check("headers")
def headers_request_id(server: Server) -> None:
    """Every answer has an x-request-id of its own."""
    ids = [_chat(server, max_tokens=1).headers.get("x-request-id") for _ in range(2)]
    expect(all(ids) and ids[0] != ids[1], "two different x-request-id", ids)


# Responses.


def _respond(server: Server, **fields: Any) -> Answer:
    body = {"model": server.model("chat"), "input": "Hello", "max_output_tokens": 16, "store": False, **fields}
    answer = server.post(RESPONSES, body)
    if answer.status in (404, 405):
        raise Skipped("the server has no responses")
    return answer


@check("responses")
def responses_answer(server: Server) -> None:
    """An answer is a response whose output holds a message with output_text."""
    document = _respond(server).succeeded()
    expect(document.get("object") == "response", 'object "response"', document)
    texts = [
        part
        for item in member(document, "output", list)
        for part in item.get("content") or []
        if part.get("type") == "output_text" and isinstance(part.get("text"), str)
    ]
    expect(bool(texts), "a message with output_text", document["output"])
    expect(document.get("status") in ("completed", "incomplete"), "status completed or incomplete", document["status"])


@check("responses")
def responses_stream(server: Server) -> None:
    """Events begin with response.created, end with response.completed or incomplete, and are numbered without gaps."""
    try:
        events = [json.loads(event) for event in _respond(server, stream=True).events if event != "[DONE]"]
    except ValueError:
        raise Failed("expected JSON in every event") from None
    kinds = [event.get("type") for event in events]
    expect(kinds[:1] == ["response.created"], "response.created first", kinds[:1])
    expect(kinds[-1] in ("response.completed", "response.incomplete"), "response.completed last", kinds[-1:])
    numbers = [event.get("sequence_number") for event in events]
    expect(numbers == list(range(len(numbers))), "sequence_number 0, 1, 2, ...", numbers)


# Together.


@check("together")
def together_eight_at_once(server: Server) -> None:
    """Eight requests at once are all answered, each with what it asked for."""
    limits = range(1, NUM_AT_ONCE + 1)
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        answers = list(pool.map(lambda limit: _chat(server, max_tokens=limit), limits))
    for limit, answer in zip(limits, answers, strict=True):
        count = member(answer.succeeded(), "usage.completion_tokens", int)
        expect(count <= limit, f"at most {limit} tokens", count)


@check("together")
def together_a_client_that_leaves(server: Server) -> None:
    """A client that hangs up in the middle of a stream harms nobody."""
    body = {"model": server.model("chat"), "messages": _QUESTION, "max_tokens": 200, "stream": True}
    for _ in range(3):
        server.leave(CHATS, body)
    member(_chat(server).succeeded(), "choices.0.message.content", str)


# The official client.


@check("sdk")
def sdk_openai_package(server: Server) -> None:
    """The official openai package reads models, an answer, a stream and an error."""
    try:
        import openai
    except ImportError:
        raise Skipped("the openai package is not installed here (pip install openai)") from None
    if not hasattr(openai, "OpenAI"):
        raise Skipped("the openai package here is older than 1.0")
    ask: dict[str, Any] = {"model": server.model("chat"), "messages": _QUESTION, "max_tokens": 4}
    try:
        with openai.OpenAI(base_url=server.url, api_key=server.api_key or "EMPTY", max_retries=0) as client:
            expect(bool(client.models.list().data), "models", "none")
            answer = client.chat.completions.create(**ask)
            expect(isinstance(answer.choices[0].message.content, str), "a text", answer.choices)
            chunks = list(client.chat.completions.create(stream=True, **ask))
            expect(bool(chunks) and chunks[0].choices[0].delta.role == "assistant", "a role first", chunks[:1])
            try:
                client.chat.completions.create(**{**ask, "model": NO_SUCH_MODEL})
            except openai.NotFoundError as error:
                expect(error.code == "model_not_found", "code model_not_found", error.code)
            else:
                raise Failed("expected NotFoundError, got an answer")
    except (openai.OpenAIError, AttributeError, IndexError, TypeError) as error:
        raise Failed(f"expected no error, got {type(error).__name__}: {shown(str(error))}") from None
