"""Calls of tools in chat completions: what is offered to the model, what it must write, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from langport.models.vocabulary import Vocabulary
from langport.testing import EOS

HERMES = (
    "{% for tool in tools or [] %}<|im_start|>tool {{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '' if loop.first else '\n' }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
BARE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


TOOLS = [tool("weather", parameters=CITY), tool("clock")]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


async def answer(fake: Any, **fields: Any) -> dict[str, Any]:
    """The only choice of a plain answer, which must be the fold of the streamed one."""
    plain = (await fake.chat(**fields)).json
    streamed = (await fake.chat(**fields, stream=True, stream_options={"include_usage": True})).events
    assert fold(streamed) == [without_ids(choice) for choice in plain["choices"]]
    assert streamed[-2]["usage"] == plain["usage"]
    return plain["choices"][0]


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    for call in choice["message"].get("tool_calls", []):
        assert call.pop("id").startswith("call_")
    return choice


def fold(events: Sequence[Any]) -> list[dict[str, Any]]:
    """Choices put together from chunks, as clients do it."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in events[:-1]:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"index": piece["index"], "message": {}, "logprobs": None})
            merge(choice["message"], piece["delta"])
            if piece["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"]["content"] += piece["logprobs"]["content"]
            choice["finish_reason"] = piece["finish_reason"]
    return [without_ids(choice) for _, choice in sorted(choices.items())]


def merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            (call,) = value
            calls = message.setdefault("tool_calls", [])
            if call.pop("index") == len(calls):
                assert call["id"]
                assert call["type"] == "function"
                assert call["function"]["arguments"] == ""
                calls.append(call)
            else:
                assert call.keys() == {"function"}
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        elif name == "function_call":
            function = message.setdefault("function_call", {"name": value.get("name"), "arguments": ""})
            function["arguments"] += value["arguments"]
        elif isinstance(value, str) and isinstance(message.get(name), str) and name != "role":
            message[name] += value
        else:
            message[name] = value


async def test_calls_of_an_answer(serve, says):
    fake = serve(says(f"I look.\n\n{CALL}\n{CLOCK}"), template=HERMES)
    choice = await answer(fake, tools=TOOLS)
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "I look.",
            "refusal": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
                {"type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


async def test_a_call_alone_has_no_content(serve, says):
    fake = serve(says(CALL), template=HERMES)
    message = (await answer(fake, tools=TOOLS))["message"]
    assert message["content"] is None
    assert calls_of(message) == [("weather", '{"city": "Oslo"}')]


async def test_arguments_come_as_they_are_written(serve, says):
    fake = serve(says(CALL), template=HERMES)
    events = (await fake.chat(tools=TOOLS, stream=True)).events
    deltas = [chunk["choices"][0]["delta"] for chunk in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    begin = deltas[1]["tool_calls"][0]
    assert begin == {
        "index": 0,
        "id": begin["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    pieces = [delta["tool_calls"][0] for delta in deltas[2:-1]]
    written = ['{"', *'city": "Oslo"}']  # the bracket waits, since not every object that begins is one
    assert pieces == [{"index": 0, "function": {"arguments": piece}} for piece in written]
    assert deltas[-1] == {}


@pytest.mark.parametrize("text", ["No call.", "<tool_call>broken</tool_call>", "a <tool", "", "\n\n"])
async def test_what_is_no_call_is_content(serve, says, text):
    fake = serve(says(text), template=HERMES)
    choice = await answer(fake, tools=TOOLS)
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_calls_are_looked_for_only_with_tools(serve, says):
    fake = serve(says(CALL), template=HERMES)
    assert (await answer(fake))["message"]["content"] == CALL
    assert (await answer(fake, tools=TOOLS, tool_choice="none"))["message"]["content"] == CALL


async def test_a_call_that_is_cut_off_finishes_with_length(serve, says):
    fake = serve(says(CALL), template=HERMES)
    choice = await answer(fake, tools=TOOLS, max_tokens=len('<tool_call>\n{"name": "weather", "arguments": {"ci'))
    assert calls_of(choice["message"]) == [("weather", '{"ci')]
    assert choice["finish_reason"] == "length"
    choice = await answer(fake, tools=TOOLS, stop="Os")
    assert (calls_of(choice["message"]), choice["finish_reason"]) == ([("weather", '{"city": "')], "stop")


@pytest.mark.parametrize("tokens_per_delta", [1, 7, 1000])
async def test_without_parallel_calls_an_answer_ends_with_its_first(serve, says, tokens_per_delta):
    fake = serve(says(f"{CALL}\n{CLOCK}"), template=HERMES, tokens_per_delta=tokens_per_delta)
    choice = await answer(fake, tools=TOOLS, parallel_tool_calls=False)
    assert calls_of(choice["message"]) == [("weather", '{"city": "Oslo"}')]
    assert choice["finish_reason"] == "tool_calls"
    assert fake.engine.num_open == 0
    first, second = (request.request_id for request in fake.engine.requests)
    if tokens_per_delta < 1000:
        assert {(first, 0), (second, 0)} <= set(fake.engine.aborted)


async def test_each_choice_is_read_by_itself(serve, says):
    fake = serve(says(CALL, "Hello", CLOCK), template=HERMES)
    choices = (await fake.chat(tools=TOOLS, n=3)).json["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop", "tool_calls"]
    assert [calls_of(choice["message"]) for choice in choices] == [
        [("weather", '{"city": "Oslo"}')],
        [],
        [("clock", "{}")],
    ]
    streamed = fold((await fake.chat(tools=TOOLS, n=3, stream=True)).events)
    assert streamed == [without_ids(choice) for choice in choices]


async def test_the_older_functions_are_answered_in_their_form(serve, says):
    fake = serve(says(f"{CALL}\n{CLOCK}"), template=HERMES)
    choice = await answer(fake, functions=[entry["function"] for entry in TOOLS])
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    assert choice["finish_reason"] == "function_call"
    assert "weather" in fake.prompt_text()


async def test_special_tokens_that_mark_calls_are_read_and_not_shown(serve, says):
    marks = ["[TOOL_CALLS]", "[ARGS]", "[OTHER]"]
    calls, args, other = range(EOS + 2, EOS + 5)
    said = [*b"Well.", other, calls, *b"weather", args, *b'{"city": "Oslo"}', other]
    fake = serve(says(said), template=MISTRAL, special_tokens=marks)
    message = (await answer(fake, tools=TOOLS))["message"]
    assert (message["content"], calls_of(message)) == ("Well.", [("weather", '{"city": "Oslo"}')])
    assert (await answer(fake))["message"]["content"] == 'Well.weather{"city": "Oslo"}'


async def test_a_model_without_a_form_of_its_own_is_told_one(serve, says):
    fake = serve(says('[{"name": "weather", "arguments": {"city": "Oslo"}}]'), template=BARE)
    message = (await answer(fake, tools=TOOLS))["message"]
    assert calls_of(message) == [("weather", '{"city": "Oslo"}')]
    prompt = fake.prompt_text()
    assert '"name": "weather"' in prompt
    assert "JSON" in prompt
    history = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"id": "c1", **tool("weather", arguments='{"city": "Rome"}')}]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sun."},
    ]
    await fake.client.post("/v1/chat/completions", {"messages": history, "tools": TOOLS})
    prompt = fake.prompt_text()
    assert '[{"name": "weather", "arguments": {"city": "Rome"}}]' in prompt
    assert "<|im_start|>tool\nSun.<|im_end|>" in prompt


async def test_log_probabilities_are_those_of_the_content(serve, says):
    fake = serve(says(f"Hé.\n{CALL} so"), template=HERMES)
    choice = await answer(fake, tools=TOOLS, logprobs=True)
    assert choice["message"]["content"] == "Hé.so"
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in tokens) == "Hé.so".encode()


# What the engine is told to follow.


class Followed:
    """The grammar of the latest request, over the fake's tokens."""

    def __init__(self, fake: Any) -> None:
        self._fake = fake
        sampling = fake.engine.requests[-1].sampling
        assert sampling.grammar is not None
        vocabulary = Vocabulary(fake.tokenizer, fake.tokenizer.vocab_size, (EOS,))
        self._matcher = vocabulary.compile(sampling.grammar)

    def takes(self, text: str) -> bool:
        """Whether a text is a whole answer."""
        matcher = self._matcher.deep_copy()
        ids = self._fake.tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


async def test_required_calls_follow_their_schema(serve, says):
    fake = serve(says(CALL), template=HERMES)
    choice = await answer(fake, tools=TOOLS, tool_choice="required")
    assert calls_of(choice["message"]) == [("weather", '{"city": "Oslo"}')]
    assert choice["finish_reason"] == "tool_calls"
    followed = Followed(fake)
    assert followed.takes(CALL)
    assert followed.takes(f"{CALL}\n{CLOCK}\n{CALL}")
    for other in ("Hello", f"Hello {CALL}", "", CALL.replace("city", "town"), CALL.replace('"Oslo"', "7"),
                  CALL.replace("weather", "unknown"), CALL.replace('"Oslo"', '"Oslo", "more": 1'),
                  CLOCK.replace("{}", '{"a": 1}')):  # fmt: skip
        assert not followed.takes(other), other


async def test_a_named_call_is_that_one(serve, says):
    fake = serve(says(CLOCK), template=HERMES)
    await fake.chat(tools=TOOLS, tool_choice=named("clock"), parallel_tool_calls=False)
    followed = Followed(fake)
    assert followed.takes(CLOCK)
    assert not followed.takes(f"{CLOCK}\n{CLOCK}")
    assert not followed.takes(CALL)


async def test_a_named_function_is_called(serve, says):
    fake = serve(says(CLOCK), template=HERMES)
    choice = await answer(fake, functions=[entry["function"] for entry in TOOLS], function_call={"name": "clock"})
    assert choice["message"]["function_call"] == {"name": "clock", "arguments": "{}"}
    assert Followed(fake).takes(CLOCK)


async def test_allowed_tools_are_those_that_are_offered(serve, says):
    fake = serve(says(CLOCK), template=HERMES)
    await fake.chat(tools=TOOLS, tool_choice=allowed("auto", "clock"))
    assert "weather" not in fake.prompt_text()
    assert fake.engine.requests[-1].sampling.grammar is None
    await fake.chat(tools=TOOLS, tool_choice=allowed("required", "clock", "weather"))
    followed = Followed(fake)
    assert followed.takes(CLOCK)
    assert followed.takes(CALL)


async def test_strict_functions_are_called_by_their_schema_or_not_at_all(serve, says):
    fake = serve(says("Hello"), template=HERMES)
    await fake.chat(tools=[tool("weather", parameters=CITY, strict=True)])
    followed = Followed(fake)
    for text in ("Hello", "a <tool_cal> b", f"I look.\n{CALL}", CALL, f"{CALL}\n{CALL}"):
        assert followed.takes(text), text
    for text in (CALL.replace('"Oslo"', "7"), "So <tool_call>nothing</tool_call>", CLOCK):
        assert not followed.takes(text), text
    await fake.chat(tools=TOOLS)
    assert fake.engine.requests[-1].sampling.grammar is None


async def test_strict_functions_and_a_wanted_format(serve, says):
    fake = serve(says("{}"), template=HERMES)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    await fake.chat(tools=[tool("clock", strict=True)], response_format=wanted)
    followed = Followed(fake)
    assert followed.takes('{"a": 1}')
    assert followed.takes(CLOCK)
    assert not followed.takes("Hello")
    assert not followed.takes(f'{{"a": 1}}{CLOCK}')


async def test_required_calls_are_spelled_with_special_tokens(serve, says):
    marks = ["[TOOL_CALLS]", "[ARGS]"]
    calls, args = range(EOS + 2, EOS + 4)
    fake = serve(says([calls, *b"clock", args, *b"{}"]), template=MISTRAL, special_tokens=marks)
    choice = await answer(fake, tools=TOOLS, tool_choice="required")
    assert calls_of(choice["message"]) == [("clock", "{}")]
    followed = Followed(fake)
    assert followed.takes("[TOOL_CALLS]clock[ARGS]{}")
    assert followed.takes('[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}')
    assert not followed.takes("Hello")


async def test_a_model_without_a_form_of_its_own_is_made_to_write_json(serve, says):
    fake = serve(says('[{"name": "clock", "arguments": {}}]'), template=BARE)
    choice = await answer(fake, tools=TOOLS, tool_choice="required")
    assert calls_of(choice["message"]) == [("clock", "{}")]
    calls = [{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"city": "Oslo"}}]
    assert Followed(fake).takes(json.dumps(calls))


async def test_a_schema_that_cannot_be_followed_matters_only_where_it_must_be(serve, says):
    fake = serve(says("Hello"), template=HERMES)
    odd = tool("odd", parameters={"type": "object", "properties": {"a": {"contains": {}}}})
    assert (await fake.chat(tools=[odd])).status == 200
    with pytest.raises(Exception, match="contains") as error:
        await fake.chat(tools=[odd], tool_choice="required")
    assert (error.value.status, error.value.param) == (400, "tools")  # type: ignore[attr-defined]
    assert msgspec.json.encode(error.value.message)  # type: ignore[attr-defined]
