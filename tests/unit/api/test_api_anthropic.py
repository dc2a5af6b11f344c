"""Anthropic's messages in process: what reaches the model, and how its answer is written."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from langport.api import anthropic
from langport.api.turn import ChatTurn, TurnEvent
from langport.api.turn_end import Finish
from langport.errors import EngineFailed, InvalidRequest, Unavailable
from langport.testing import Reply
from langport.text.answer import ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
WEATHER = {"name": "weather", "description": "Look out.", "input_schema": {"type": "object", "properties": {}}}


def body(content: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": content}], **fields}


def events(reply: Reply) -> list[dict[str, Any]]:
    """The data of all events, each of which must have the name that its data says."""
    found = []
    for event in reply.body.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = event.split(b"\n")
        found.append(msgspec.json.decode(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def asked(conversation: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """The messages as the template gets them."""
    request = msgspec.convert({"max_tokens": 5, "messages": conversation, **fields}, anthropic.MessagesRequest)
    return anthropic._turn_request(request).messages


async def test_an_answer(serve, says):
    fake = serve(says("Hello."), cached_tokens=3)
    reply = await fake.client.post(PATH, body(system="Be kind.", metadata={"user_id": "u"}, service_tier="auto"))
    assert reply.status == 200
    answer = reply.json
    assert answer.pop("id").startswith("msg_")
    num_prompt = len(fake.engine.requests[0].prompt_token_ids)
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello.", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "standard",
        },
    }
    assert fake.prompt_text() == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "x-langport-ignored" not in reply.headers


async def test_a_stream(serve, says):
    fake = serve(says("Hé!"), cached_tokens=2)
    reply = await fake.client.post(PATH, body(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    start, ping, block, *deltas, stop, delta, end = events(reply)
    num_prompt = len(fake.engine.requests[0].prompt_token_ids)
    assert start["message"]["content"] == []
    assert (start["message"]["stop_reason"], start["message"]["model"]) == (None, "fake")
    assert start["message"]["usage"]["input_tokens"] == num_prompt - 2
    assert start["message"]["usage"]["cache_read_input_tokens"] == 2
    assert ping == {"type": "ping"}
    assert block["content_block"] == {"type": "text", "text": "", "citations": None}
    assert {event["index"] for event in (block, *deltas, stop)} == {0}
    assert "".join(event["delta"]["text"] for event in deltas) == "Hé!"
    assert {event["delta"]["type"] for event in deltas} == {"text_delta"}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 5
    assert end == {"type": "message_stop"}


@pytest.mark.parametrize("streams", [False, True])
async def test_sampling_and_stop_reasons(serve, says, streams):
    async def ending(fake: Any, **fields: Any) -> dict[str, Any]:
        reply = await fake.client.post(PATH, body(stream=streams, **fields))
        return events(reply)[-2]["delta"] if streams else reply.json

    fake = serve(says("one two three"))
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["x", "tw", "a", "b", "c", "d"]}
    stopped = await ending(fake, **fields)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "tw")
    sampling = fake.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 7, 50)
    cut = await ending(fake, max_tokens=3)
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("max_tokens", None)
    endless = serve(says("x", ends=False))
    assert (await ending(endless, max_tokens=10_000))["stop_reason"] == "model_context_window_exceeded"


async def test_the_last_message_is_continued(serve, says):
    fake = serve(says("lo."))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    reply = await fake.client.post(PATH, body(messages=talk))
    assert reply.json["content"][0]["text"] == "lo."
    assert fake.prompt_text().endswith("<|im_start|>assistant\nHel")


def test_a_conversation_with_tools():
    conversation = asked(
        [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Look.", "signature": "abc"},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "text", "text": "One moment.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"at": "Zürich"}},
                    {"type": "tool_use", "id": "t2", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And?"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Sun."}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "Broken", "is_error": True},
                ],
            },
            {"role": "user", "content": "Now?"},
        ],
        system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
    )
    assert conversation == [
        {"role": "system", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning": "Look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Zürich"}'}},
                {"id": "t2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "Sun."},
        {"role": "tool", "tool_call_id": "t2", "name": "clock", "content": "Error: Broken"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "text", "text": "Now?"}]},
    ]


def test_results_without_content_and_neighbours_of_one_role():
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    results = [RESULT, {**RESULT, "is_error": True}]
    conversation = asked(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": results},
        ]
    )
    assert [message["role"] for message in conversation] == ["user", "assistant", "tool", "tool"]
    assert conversation[1]["content"] == "b"
    assert [message["content"] for message in conversation[2:]] == ["", "Error"]


@pytest.mark.parametrize(
    ("thinking", "variables"),
    [
        (None, {"enable_thinking": False, "thinking": False}),
        ({"type": "disabled"}, {"enable_thinking": False, "thinking": False}),
        ({"type": "adaptive"}, {"enable_thinking": True, "thinking": True}),
        (
            {"type": "enabled", "budget_tokens": 2000},
            {"enable_thinking": True, "thinking": True, "thinking_budget": 2000},
        ),
    ],
)
def test_thinking_reaches_the_template(thinking, variables):
    fields = body(max_tokens=3000, thinking=thinking, output_config={"effort": "low"})
    turn = anthropic._turn_request(msgspec.convert(fields, anthropic.MessagesRequest))
    assert turn.template_variables == variables
    assert turn.reasoning_effort == "low"
    own = {**fields, "chat_template_kwargs": {"thinking": "deep"}}
    turn = anthropic._turn_request(msgspec.convert(own, anthropic.MessagesRequest))
    assert turn.template_variables == {**variables, "thinking": "deep"}


@pytest.mark.parametrize(
    ("choice", "mode", "names", "parallel"),
    [
        (None, "auto", None, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", None, False),
        ({"type": "any"}, "required", None, True),
        ({"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, "required", ("weather",), False),
        ({"type": "none"}, "none", None, True),
    ],
)
def test_tools_and_their_choice(choice, mode, names, parallel):
    fields = body(tools=[{**WEATHER, "strict": True, "type": "custom"}], tool_choice=choice)
    turn = anthropic._turn_request(msgspec.convert(fields, anthropic.MessagesRequest))
    (tool,) = turn.tools
    assert (tool.name, tool.description, tool.parameters) == ("weather", "Look out.", WEATHER["input_schema"])
    assert tool.strict
    assert (turn.tool_choice.mode, turn.tool_choice.names, turn.parallel_tool_calls) == (mode, names, parallel)


async def test_a_schema_for_the_answer(serve, says):
    fake = serve(says('{"a": 1}'))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await fake.client.post(PATH, body(output_config={"format": {"type": "json_schema", "schema": schema}}))
    assert "integer" in fake.engine.requests[0].sampling.grammar.text
    wrong = {"format": {"type": "json_schema", "schema": {"type": "no such"}}}
    with pytest.raises(InvalidRequest, match=r"^output_config\.format\.schema") as error:
        await fake.client.post(PATH, body(output_config=wrong))
    assert error.value.param == "output_config.format.schema"


async def test_tokens_are_counted_as_they_are_sent(serve, says):
    fake = serve(says("x"))
    fields = body(system="Be kind.", tools=[WEATHER])
    await fake.client.post(PATH, fields)
    del fields["max_tokens"]
    reply = await fake.client.post(COUNT, fields)
    assert reply.json == {"input_tokens": len(fake.engine.requests[0].prompt_token_ids)}
    assert len(fake.engine.requests) == 1


# Answers of models that think and call tools, from the turn's events.


class ScriptedTurn(ChatTurn):
    """A turn whose events are given."""

    def __init__(self, turn: ChatTurn, deltas: list[Any]) -> None:
        self._inner = turn
        self._deltas = deltas

    async def events(self) -> Any:
        async for _ in self._inner.events():
            pass
        for delta in self._deltas:
            yield TurnEvent(0, delta)

    def usage(self) -> Any:
        return self._inner.usage()


@pytest.fixture
def post_scripted(serve, says, monkeypatch):
    """Post a request that is answered with these deltas."""

    async def post(deltas: list[Any], **fields: Any) -> Reply:
        async def scripted(*arguments: Any) -> ChatTurn:
            return ScriptedTurn(await prepare(*arguments), deltas)

        prepare = anthropic.prepare_turn
        monkeypatch.setattr(anthropic, "prepare_turn", scripted)
        try:
            return await serve(says("0123456789")).client.post(PATH, body(tools=[WEATHER], **fields))
        finally:
            monkeypatch.setattr(anthropic, "prepare_turn", prepare)

    return post


DELTAS = [
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    TextDelta("One ", 0),
    TextDelta("moment.", 4),
    TextDelta("", 11),
    ToolCallBegin(0, "call_abc", "weather"),
    ToolCallDelta(0, '{"at": '),
    ToolCallDelta(0, '"Oslo"}'),
    ToolCallBegin(1, "call_def", "weather"),
    Finish("tool_calls"),
]
CALLS = [
    {"type": "tool_use", "id": "toolu_abc", "name": "weather", "input": {"at": "Oslo"}},
    {"type": "tool_use", "id": "toolu_def", "name": "weather", "input": {}},
]


async def test_thinking_text_and_calls_are_blocks(post_scripted):
    answer = (await post_scripted(DELTAS, thinking={"type": "adaptive"})).json
    thinking, text, *calls = answer["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Let me see.")
    assert thinking["signature"]
    assert text["text"] == "One moment."
    assert calls == CALLS
    assert answer["stop_reason"] == "tool_use"


async def test_thinking_is_hidden_unless_it_is_asked_for(post_scripted):
    for streams in (False, True):
        reply = await post_scripted(DELTAS, stream=streams)
        assert b"thinking_delta" not in reply.body
        assert b"Let me" not in reply.body
    omitted = (await post_scripted(DELTAS, thinking={"type": "adaptive", "display": "omitted"})).json
    assert (omitted["content"][0]["type"], omitted["content"][0]["thinking"]) == ("thinking", "")
    assert omitted["content"][0]["signature"]


async def test_a_stream_folds_to_the_whole_answer(post_scripted):
    whole = (await post_scripted(DELTAS, thinking={"type": "adaptive"})).json
    streamed = events(await post_scripted(DELTAS, thinking={"type": "adaptive"}, stream=True))
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    open_blocks = []
    for event in streamed:
        match event["type"]:
            case "content_block_start":
                assert not open_blocks
                open_blocks = [event["index"]]
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
            case "content_block_delta":
                assert open_blocks == [event["index"]]
                delta = event["delta"]
                if delta["type"] == "input_json_delta":
                    arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
                else:
                    name = delta["type"].removesuffix("_delta")
                    blocks[event["index"]][name] += delta[name]
            case "content_block_stop":
                assert open_blocks == [event["index"]]
                open_blocks = []
    for index, text in arguments.items():
        blocks[index]["input"] = json.loads(text)
    assert blocks == whole["content"]
    assert streamed[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    counted = whole["usage"]
    counted.pop("service_tier")
    assert streamed[-2]["usage"] == counted


@pytest.mark.parametrize("reason", ["length", "stop"])
async def test_a_call_that_was_cut_off_has_no_input(post_scripted, reason):
    cut = [ToolCallBegin(0, "call_abc", "weather"), ToolCallDelta(0, '{"at": "Os'), Finish(reason)]
    answer = (await post_scripted(cut, max_tokens=11)).json
    assert answer["content"] == [{**CALLS[0], "input": {}}]
    assert answer["stop_reason"] == ("max_tokens" if reason == "length" else "tool_use")


# What is refused, and what goes wrong.


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": list(blocks)}]
    return {"messages": talk}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1"}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"top_k": -1}, "top_k"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        (block(**IMAGE), "messages[0].content[0].type"),
        (block(type="document", source={}), "messages[0].content[0].type"),
        (block(type="thinking", thinking="x"), "messages[0].content[0].type"),
        (block(type="text"), "messages[0].content[0].text"),
        (block(type="tool_result"), "messages[0].content[0].tool_use_id"),
        (block(type="tool_result", tool_use_id="t9"), "messages[0].content[0].tool_use_id"),
        (assistant({"type": "tool_use", "id": "t1", "name": "f"}), "messages[1].content[0].input"),
        (assistant({"type": "tool_use", "id": "t1", "name": "f", "input": []}), "messages[1].content[0].input"),
        (assistant(CALL), "messages"),
        (assistant({"type": "text", "text": "Hel "}), "messages"),
        ({**assistant({"type": "text", "text": "Hel"}), "thinking": {"type": "adaptive"}}, "messages"),
        (
            {"messages": [*assistant(CALL)["messages"], {"role": "user", "content": [{**RESULT, "content": [IMAGE]}]}]},
            "messages[2].content[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c1"}, "container"),
        ({"cache_control": {"type": "forever"}}, "cache_control.type"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(serve, fields, param):
    fake = serve()
    with pytest.raises(InvalidRequest) as error:
        await fake.client.post(PATH, {name: value for name, value in body(**fields).items() if value is not None})
    assert error.value.param == param
    assert param.removesuffix(".type") in error.value.message
    assert not fake.engine.requests


async def test_models_that_do_not_write_are_refused(serve):
    for path in (PATH, COUNT):
        with pytest.raises(InvalidRequest, match="cannot generate text"):
            await serve(kind="encoder").client.post(path, body())


async def test_ignored_fields_are_listed(serve, says):
    fake = serve(says("x"))
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    fields = body(messages=talk, tools=[{**WEATHER, "defer_loading": True}], context_management={"edits": []})
    listed = "messages[0].content[0].colour, tools[0].defer_loading, context_management, messages[1].content[0]"
    assert (await fake.client.post(PATH, fields)).headers["x-langport-ignored"] == listed
    with pytest.raises(InvalidRequest, match="colour"):
        await fake.client.post(PATH, fields, extension={"is_strict": True})


async def test_failures_of_the_engine(serve, says):
    dead = serve(says("x"), error=Unavailable("Down."))
    with pytest.raises(Unavailable):
        await dead.client.post(PATH, body(stream=True))
    assert not dead.client.received.parts
    failing = serve(says("Hello"), error=EngineFailed("Broken."), error_after=2)
    *_, delta, error = events(await failing.client.post(PATH, body(stream=True), extension={"request_id": "r1"}))
    assert delta["delta"]["text"] == "e"
    assert error == {"type": "error", "error": {"type": "api_error", "message": "Broken."}, "request_id": "r1"}


async def test_a_client_that_leaves_ends_the_work(serve):
    fake = serve(lambda request, index: [65])
    task = asyncio.create_task(fake.client.post(PATH, body(stream=True, max_tokens=500)))
    while not fake.client.received.parts:
        await asyncio.sleep(0)
    fake.client.left.set()
    await task
    assert fake.engine.aborted
    assert fake.engine.num_open == 0


async def test_work_in_the_background_comes_after_other_requests(serve, says):
    fake = serve(says("x"))
    await fake.client.post(PATH, body(), extension={"priority": 5})
    assert fake.engine.requests[0].priority == 5
