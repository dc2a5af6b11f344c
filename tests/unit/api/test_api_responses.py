"""`POST /v1/responses` over fakes: what is answered, in which events, and what is refused."""

from __future__ import annotations

import re

import pytest

from langport.api.response_items import ItemIds, Reference, new_response_id, read_items, response_of, template_messages
from langport.api.response_writer import ResponseWriter
from langport.api.turn import TurnEvent
from langport.api.turn_end import Finish
from langport.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from langport.settings.tree import LimitSettings
from langport.text.answer import ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta
from langport.wire.generation import CompletionTokensDetails, PromptTokensDetails, Usage
from langport.wire.response_events import encode_event
from langport.wire.response_items import InputItem, InputPart
from langport.wire.responses import Response, TextFormat, TextShown

KEY = "0" * 48


class FakeTurn:
    """A turn that says these things, then fails if it is given an error."""

    def __init__(self, *deltas, error=None):
        self._deltas = deltas
        self._error = error

    async def events(self):
        for delta in self._deltas:
            yield TurnEvent(0, delta)
        if self._error is not None:
            raise self._error

    def usage(self):
        return Usage(7, 5, 12, PromptTokensDetails(2), CompletionTokensDetails(3))


def writer(**options):
    response = Response(
        id=f"resp_{KEY}",
        created_at=5,
        status="queued",
        model="m",
        temperature=1.0,
        top_p=1.0,
        text=TextShown(TextFormat("text")),
        background=options.pop("background", False),
    )
    return ResponseWriter(response, clock=lambda: 9.0, **options)


async def written(writing, turn):
    """The events as they stand in the stream."""
    return [encode_event(event).decode() async for event in writing.events(turn, "req")]


def names(events):
    return [re.match(r"event: (\S+)\n", event)[1].removeprefix("response.") for event in events]


# What is answered.


async def test_a_plain_response(serve, says):
    served = serve(says("Hello!"))
    reply = await served.respond(
        instructions="Be kind.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=17, user="u", store=False
    )
    assert served.prompt_text() == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    response = reply.json
    assert re.fullmatch("resp_[0-9a-f]{48}", response["id"])
    assert response["object"] == "response"
    assert response["status"] == "completed"
    assert response["error"] is None
    (item,) = response["output"]
    assert item == {
        "type": "message",
        "id": f"msg_{response['id'][5:]}01",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}],
    }
    num_prompt = len(served.engine.requests[0].prompt_token_ids)
    assert response["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + 7,
    }
    given_back = {name: response[name] for name in ("instructions", "metadata", "temperature", "user", "store")}
    assert given_back == {
        "instructions": "Be kind.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "user": "u",
        "store": False,
    }
    assert response["max_output_tokens"] == 17
    assert served.engine.requests[0].sampling.max_tokens == 17


async def test_an_answer_that_is_cut_is_incomplete(serve, says):
    reply = await serve(says("word " * 9)).respond(max_output_tokens=16)
    assert reply.json["status"] == "incomplete"
    assert reply.json["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply.json["output"][0]["status"] == "incomplete"
    assert reply.json["completed_at"] is None


async def test_an_answer_of_nothing_is_an_empty_message(serve, says):
    reply = await serve(says("")).respond()
    (item,) = reply.json["output"]
    assert item["content"][0]["text"] == ""


async def test_logprobs(serve, says):
    served = serve(says("ab"))
    reply = await served.respond(include=["message.output_text.logprobs"], top_logprobs=2)
    entries = reply.json["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["a", "b"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2]
    plain = await served.respond(top_logprobs=2)
    assert plain.json["output"][0]["content"][0]["logprobs"] == []


async def test_the_stream_and_the_plain_answer_are_the_same(serve, says):
    served = serve(says("two words"))
    plain = (await served.respond(seed=1)).json
    reply = await served.respond(seed=1, stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.is_finished
    assert b"[DONE]" not in reply.body
    last = reply.events[-1]["response"]
    changing = {"id", "created_at", "completed_at", "output"}
    assert {k: v for k, v in last.items() if k not in changing} == {k: v for k, v in plain.items() if k not in changing}
    assert last["output"][0]["content"] == plain["output"][0]["content"]
    deltas = [event["delta"] for event in reply.events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "two words"
    assert len(deltas) > 1
    assert "obfuscation" not in reply.events[4]


async def test_obfuscation(serve, says):
    reply = await serve(says("two words")).respond(stream=True, stream_options={"include_obfuscation": True})
    paddings = [event["obfuscation"] for event in reply.events if event["type"].endswith(".delta")]
    assert len(paddings) == len(set(paddings)) == 9


async def test_what_nobody_documents_is_listed(serve, says):
    reply = await serve(says("x")).respond(wibble=1, max_tokens=5)
    assert reply.headers["x-langport-ignored"] == "wibble, max_tokens"


async def test_the_usual_extras(serve, says):
    served = serve(says("x"))
    await served.respond(top_k=3, seed=7, presence_penalty=0.5, priority=2, stop=["q"])
    request = served.engine.requests[0]
    assert (request.sampling.top_k, request.sampling.seed, request.sampling.presence_penalty) == (3, 7, 0.5)
    assert request.priority == 2


async def test_input_tokens(serve, says):
    served = serve(says("x"))
    counted = await served.client.post("/v1/responses/input_tokens", {"model": "fake", "input": "Hi"})
    asked = await served.respond()
    assert counted.json == {"input_tokens": asked.json["usage"]["input_tokens"], "object": "response.input_tokens"}
    assert len(served.engine.requests) == 1


async def test_a_failure_before_the_first_token_is_a_plain_error(serve, says):
    served = serve(says("abc"), error=EngineFailed("broken"))
    with pytest.raises(EngineFailed, match="broken"):
        await served.respond(stream=True)
    assert served.client.received.status == 0
    with pytest.raises(EngineFailed, match="broken"):
        await served.respond()


async def test_a_failure_later_is_the_streams_last_event(serve, says):
    served = serve(says("abc"), error=EngineFailed("broken"), error_after=2)
    reply = await served.respond(stream=True)
    last = reply.events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "broken"}
    (item,) = last["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "ab")
    assert [event["sequence_number"] for event in reply.events] == list(range(len(reply.events)))


# The events, written out.


async def test_the_events_of_a_text():
    head = '"id":"resp_' + KEY + '","object":"response","created_at":5'
    msg = f"msg_{KEY}01"
    place = f'"item_id":"{msg}","output_index":0,"content_index":0'
    events = await written(writer(), FakeTurn(TextDelta("Hé", 0), TextDelta("\u2028!", 2), Finish("stop")))
    assert [event.partition(head)[0] for event in events[:2]] == [
        'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{',
        'event: response.in_progress\ndata: {"type":"response.in_progress","sequence_number":1,"response":{',
    ]
    assert '"status":"in_progress"' in events[0]
    whole = '{"type":"output_text","text":"Hé\\u2028!","annotations":[],"logprobs":[]}'
    assert events[2:9] == [
        'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":2,'
        f'"output_index":0,"item":{{"type":"message","id":"{msg}","status":"in_progress","role":"assistant",'
        '"content":[]}}\n\n',
        'event: response.content_part.added\ndata: {"type":"response.content_part.added","sequence_number":3,'
        f'{place},"part":{{"type":"output_text","text":"","annotations":[],"logprobs":[]}}}}\n\n',
        'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,'
        f'{place},"delta":"Hé","logprobs":[]}}\n\n',
        'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":5,'
        f'{place},"delta":"\\u2028!","logprobs":[]}}\n\n',
        'event: response.output_text.done\ndata: {"type":"response.output_text.done","sequence_number":6,'
        f'{place},"text":"Hé\\u2028!","logprobs":[]}}\n\n',
        'event: response.content_part.done\ndata: {"type":"response.content_part.done","sequence_number":7,'
        f'{place},"part":{whole}}}\n\n',
        'event: response.output_item.done\ndata: {"type":"response.output_item.done","sequence_number":8,'
        f'"output_index":0,"item":{{"type":"message","id":"{msg}","status":"completed","role":"assistant",'
        f'"content":[{whole}]}}}}\n\n',
    ]
    assert names(events[9:]) == ["completed"]
    assert '"status":"completed"' in events[9]
    assert '"completed_at":9' in events[9]
    assert '"reasoning_tokens":3' in events[9]


async def test_the_events_of_reasoning_text_and_calls():
    turn = FakeTurn(
        ReasoningDelta("hm"),
        ReasoningDelta("m"),
        TextDelta("Look", 5),
        ToolCallBegin(0, "call_1", "f"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(0, "1}"),
        ToolCallBegin(1, "call_2", "g"),
        ToolCallDelta(1, "{}"),
        Finish("tool_calls"),
    )
    writing = writer()
    events = await written(writing, turn)
    assert names(events) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    reasoning, message, first, second = writing.response.output
    assert [part.text for part in reasoning.content] == ["hmm"]
    assert message.content[0].text == "Look"
    assert (first.call_id, first.name, first.arguments, first.status) == ("call_1", "f", '{"a":1}', "completed")
    assert (second.call_id, second.name, second.arguments) == ("call_2", "g", "{}")
    assert len({item.id for item in writing.response.output}) == 4
    assert '"name":"f","arguments":"{\\"a\\":1}"' in events[18]


async def test_the_context_of_reasoning(serve, says):
    template = "{% for m in messages %}{{ m.role }} {{ m.reasoning }} {{ m.content }}|{% endfor %}"
    served = serve(says("x"), template=template)
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "old"}]},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "new"}]},
    ]
    for context, is_there in ((None, True), ("auto", True), ("all_turns", True), ("current_turn", False)):
        await served.respond(items, reasoning={"context": context, "mode": "standard"})
        assert ("old" in served.prompt_text()) == is_there
        assert "new" in served.prompt_text()


async def test_reasoning_as_a_summary():
    writing = writer(has_summary=True)
    events = await written(writing, FakeTurn(ReasoningDelta("hm"), TextDelta("x", 2), Finish("stop")))
    assert names(events)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert [part.text for part in writing.response.output[0].summary] == ["hm"]
    assert writing.response.output[0].content == []


async def test_a_call_that_is_cut():
    writing = writer()
    turn = FakeTurn(ToolCallBegin(0, "call_1", "f"), ToolCallDelta(0, '{"a'), Finish("length"))
    events = await written(writing, turn)
    assert names(events)[-1] == "incomplete"
    assert (writing.response.output[0].status, writing.response.output[0].arguments) == ("incomplete", '{"a')


async def test_an_error_that_is_not_ours_is_told_of_and_logged(caplog):
    writing = writer()
    events = await written(writing, FakeTurn(TextDelta("x", 0), error=ValueError("secret")))
    assert names(events)[-1] == "failed"
    assert "secret" not in events[-1]
    assert "req" in caplog.text


async def test_one_in_the_background_begins_before_the_engine_does():
    events = await written(writer(background=True), FakeTurn(error=EngineFailed("broken")))
    assert names(events) == ["created", "queued", "failed"]
    assert '"status":"queued"' in events[1]


async def test_a_format_reaches_the_engine(serve, says):
    served = serve(says('{"n":1}'))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    reply = await served.respond(text={"format": wanted, "verbosity": "low"})
    assert reply.json["text"] == {"format": wanted, "verbosity": "low"}
    await served.respond(text={"format": {"type": "json_object"}})
    await served.respond(text={"format": {"type": "text"}})
    grammars = [request.sampling.grammar for request in served.engine.requests]
    assert grammars[0] is not None
    assert grammars[1] not in (None, grammars[0])
    assert grammars[2] is None


# Items.


def messages(*items):
    given = [InputItem(**item) for item in items]
    return template_messages(read_items(given, ItemIds(f"resp_{KEY}")))


def test_items_become_chat_messages():
    assert messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [InputPart("input_text", "a"), InputPart("input_text", "b")]},
        {"type": "reasoning", "summary": [], "content": [InputPart("reasoning_text", "hm")]},
        {"type": "message", "role": "assistant", "content": [InputPart("output_text", "Look")]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "[]"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [InputPart("input_text", "2")]},
        {"role": "assistant", "content": "Done"},
        {"role": "assistant", "content": [InputPart("refusal", refusal="No")]},
    ) == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": "Look",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "[]"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "assistant", "content": "Done"},
        {"role": "assistant", "content": "No"},
    ]


def test_ids_of_items():
    ids = ItemIds(f"resp_{KEY}")
    items = read_items(
        [
            InputItem(role="user", content="a", id="mine"),
            InputItem(role="user", content="b", id="mine"),
            InputItem(role="user", content="c", id="not an id"),
            InputItem(id="msg_1"),
        ],
        ids,
    )
    assert [item.id for item in items] == ["mine", f"msg_{KEY}i1", f"msg_{KEY}i2", "msg_1"]
    assert isinstance(items[3], Reference)
    assert response_of(items[1].id) == f"resp_{KEY}"
    assert response_of("msg_1") is None
    fresh = new_response_id()
    assert response_of(ItemIds(fresh).output(type(items[0]))) == fresh


# What is refused.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {}}, "moderation"),
        ({"context_management": [{}]}, "context_management"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "two words"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "allowed_callers": ["x"]}]}, "tools[0].allowed_callers[0]"),
        ({"tools": [{"type": "function", "name": "f", "defer_loading": "x"}]}, "tools[0].defer_loading"),
        ({"text": {"format": {"type": "json_schema", "name": "two words", "schema": {}}}}, "text.format.name"),
        ({"input": [{"role": "user", "content": "a", "status": "x"}]}, "input[0].status"),
        ({"input": [{"role": "assistant", "content": "a", "phase": "x"}]}, "input[0].phase"),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"reasoning": {"generate_summary": "concise"}}, "reasoning.generate_summary"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}},
            "tool_choice",
        ),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strnig"}}}},
            "text.format.schema",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary"),
        ({"max_output_tokens": 15}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"stream_options": {}}, "stream_options"),
        ({"include": ["everything"]}, "include[0]"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"input": "x" * 1000}, "input"),
    ],
)
async def test_refusals_name_the_parameter(serve, says, fields, param):
    served = serve(says("x"), limits=LimitSettings(completion_max_tokens=500))
    with pytest.raises(InvalidRequest) as refused:
        await served.client.post("/v1/responses", {"model": "fake", "input": "Hi", **fields})
    assert refused.value.param == param
    assert not served.engine.requests


async def test_an_embedder_answers_no_response(serve):
    with pytest.raises(InvalidRequest, match="cannot generate text"):
        await serve(kind="encoder").respond()


# Conversations that do not fit.


async def test_truncation(serve, says):
    served = serve(says("x"))
    turns = [
        {"role": role, "content": f"{role} {number} " + "y" * 60}
        for number in range(6)
        for role in ("user", "assistant")
    ]
    conversation = [{"role": "system", "content": "Be kind."}, *turns, {"role": "user", "content": "last"}]
    with pytest.raises(ContextLengthExceeded) as refused:
        await served.respond(conversation)
    assert refused.value.param == "input"
    reply = await served.respond(conversation, truncation="auto", max_output_tokens=50)
    prompt = served.prompt_text()
    assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nuser 3 ")
    assert "last" in prompt
    assert reply.json["usage"]["input_tokens"] <= 550
    assert reply.json["truncation"] == "auto"
    with pytest.raises(ContextLengthExceeded):
        await served.respond("z" * 700, truncation="auto")
