"""Custom tools in chat completions and responses: a text in place of arguments, by a grammar where it has one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from langport.errors import ApiError
from tests.unit.api.test_api_tools import BARE, HERMES, Followed, allowed, named, tool

LINES = r"""
start: line+
line: /[^\n]+/ "\n"
"""


def custom(name: str, syntax: str = "", definition: str = "", **fields: Any) -> dict[str, Any]:
    """As in chat completions."""
    wanted = {"format": {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}}
    return {"type": "custom", "custom": {"name": name, **(wanted if syntax else {}), **fields}}


def flat(name: str, syntax: str = "", definition: str = "", **fields: Any) -> dict[str, Any]:
    """As in responses."""
    wanted = {"format": {"type": "grammar", "syntax": syntax, "definition": definition}}
    return {"type": "custom", "name": name, **(wanted if syntax else {}), **fields}


def choice_of(name: str) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": name}}


CALL = '<tool_call>\n{"name": "shell", "arguments": {"input": "echo \\"a\\"\\nls"}}\n</tool_call>'
INPUT = 'echo "a"\nls'


async def test_a_call_in_a_chat(serve, says):
    fake = serve(says(CALL), template=HERMES)
    choice = (await fake.chat(tools=[custom("shell"), tool("clock")])).json["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "custom", "custom": {"name": "shell", "input": INPUT}}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None


async def test_a_streamed_call_in_a_chat(serve, says):
    fake = serve(says(CALL), template=HERMES)
    events = (await fake.chat(tools=[custom("shell")], stream=True)).events
    begin, *further = [
        delta["tool_calls"][0] for chunk in events[:-1] if "tool_calls" in (delta := chunk["choices"][0]["delta"])
    ]
    assert begin == {"index": 0, "id": begin["id"], "type": "custom", "custom": {"name": "shell", "input": ""}}
    assert all(piece == {"index": 0, "custom": piece["custom"]} for piece in further)
    assert "".join(piece["custom"]["input"] for piece in further) == INPUT
    assert len(further) > 5


async def test_what_the_model_is_shown(serve, says):
    fake = serve(says("x"), template=HERMES)
    earlier = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "a", "input": 'x"'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    await fake.chat(messages=earlier, tools=[custom("a", description="Runs.")])
    shown = fake.prompt_text()
    assert '{"name": "a", "description": "Runs.", "parameters": {"type": "object", "properties": {"input"' in shown
    assert '{"name": "a", "arguments": {"input": "x\\""}}' in shown
    await fake.chat(tools=[custom("b", "regex", "[a-c]+", description="Letters.")])
    assert "Letters.\\n\\nThe input must follow this regular expression" in fake.prompt_text()
    assert "[a-c]+" in fake.prompt_text()


@pytest.mark.parametrize("template", [HERMES, BARE])
async def test_a_required_call_follows_its_grammar(serve, says, template):
    fake = serve(says("x"), template=template)
    begin, end = '[{"name": "f", "arguments": ', "}]"
    if template == HERMES:
        begin, end = '<tool_call>\n{"name": "f", "arguments": ', "}\n</tool_call>"
    for tools, good, bad in (
        ([custom("f")], ["", 'any "\n'], []),
        ([custom("f", "regex", r"a\d+|\n")], ["a12", "\n"], ["a", "b1", "a1\n"]),
        ([custom("f", "regex", r"^a$")], ["a"], ["ab"]),
        ([custom("f", "lark", LINES)], ["ab\ncd\n", 'a"\\\n'], ["ab", "\n"]),
    ):
        await fake.chat(tools=tools, tool_choice=choice_of("f"), parallel_tool_calls=False)
        for text, is_good in [*((text, True) for text in good), *((text, False) for text in bad)]:
            call = begin + json.dumps({"input": text}, ensure_ascii=False) + end
            assert Followed(fake).takes(call) == is_good, text


async def test_a_grammar_is_followed_of_the_models_own_accord(serve, says):
    fake = serve(says("x"), template=HERMES)
    await fake.chat(tools=[custom("f", "lark", LINES), tool("clock")])
    call = '<tool_call>\n{{"name": "f", "arguments": {{"input": "{}"}}}}\n</tool_call>'
    assert Followed(fake).takes("Just text.")
    assert Followed(fake).takes("Look: " + call.format("a\\n"))
    assert not Followed(fake).takes("Look: " + call.format("a"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name"),
        ({"tools": [custom("two words")]}, "tools[0].custom.name"),
        ({"tools": [custom("f", format={"type": "grammar"})]}, "tools[0].custom.format.grammar"),
        ({"tools": [custom("f", "ebnf", "x")]}, "tools[0].custom.format.grammar.syntax"),
        ({"tools": [custom("f", "lark", "start: x")]}, "tools[0].custom.format.grammar.definition"),
        ({"tools": [custom("f", "lark", "start: <x>")]}, "tools[0].custom.format.grammar.definition"),
        ({"tools": [tool("g"), custom("f", "regex", "(")]}, "tools[1].custom.format.grammar.definition"),
        ({"tools": [custom("f")], "tool_choice": named("f")}, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": choice_of("f")}, "tool_choice"),
        ({"tools": [custom("f")], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [custom("f")], "tool_choice": allowed("auto", "f")}, "tool_choice"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields, param):
    with pytest.raises(ApiError) as error:
        await serve(template=HERMES).chat(**fields)
    assert error.value.param == param


async def test_allowed_custom_tools(serve, says):
    fake = serve(says("x"), template=HERMES)
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [choice_of("f")]}}
    await fake.chat(tools=[custom("f"), tool("clock")], tool_choice=choice)
    assert "clock" not in fake.prompt_text()


# Responses.


async def test_a_response_that_calls(serve, says):
    fake = serve(says(CALL), template=HERMES)
    response = (await fake.respond(tools=[flat("shell")], tool_choice={"type": "custom", "name": "shell"})).json
    (item,) = response["output"]
    assert item.pop("id").startswith("ctc_")
    assert item.pop("call_id").startswith("call_")
    assert item == {"type": "custom_tool_call", "status": "completed", "name": "shell", "input": INPUT}
    assert response["tools"] == [{"type": "custom", "name": "shell", "description": None, "format": {"type": "text"}}]
    assert response["tool_choice"] == {"type": "custom", "name": "shell"}


async def test_the_events_of_a_call(serve, says):
    fake = serve(says(CALL), template=HERMES)
    events = (await fake.respond(tools=[flat("shell")], stream=True)).events
    added, *deltas, done, item_done, _ = [event for event in events if event != "[DONE]"][2:]
    assert added["item"]["input"] == ""
    assert {event["type"] for event in deltas} == {"response.custom_tool_call_input.delta"}
    assert "".join(event["delta"] for event in deltas) == INPUT
    assert (done["type"], done["input"]) == ("response.custom_tool_call_input.done", INPUT)
    assert done["item_id"] == added["item"]["id"] == item_done["item"]["id"]


async def test_a_call_and_its_output_are_read(serve, says):
    fake = serve(says("x"), template=HERMES)
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "shell", "input": "ls"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "a.txt"}]}
    await fake.respond([call, output], tools=[flat("shell")])
    assert '{"name": "shell", "arguments": {"input": "ls"}}' in fake.prompt_text()
    assert "<|im_start|>tool\na.txt" in fake.prompt_text()


@pytest.mark.parametrize(
    ("input", "fields", "param"),
    [
        ([{"type": "custom_tool_call", "call_id": "c", "name": "f"}], {}, "input[0].input"),
        ([{"type": "custom_tool_call_output", "call_id": "c"}], {}, "input[0].output"),
        ([{"type": "custom_tool_call_output", "call_id": "c", "output": ""}], {}, "input[0].call_id"),
        ("x", {"tools": [{"type": "custom"}]}, "tools[0].name"),
        ("x", {"tools": [flat("f", format={"type": "grammar"})]}, "tools[0].format.syntax"),
        ("x", {"tools": [flat("f", format={"type": "grammar", "syntax": "lark"})]}, "tools[0].format.definition"),
        ("x", {"tools": [flat("f", "lark", "start: x")]}, "tools[0].format.definition"),
        ("x", {"tools": [flat("f")], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ],
)
async def test_refusals_of_responses_name_the_parameter(serve, input, fields, param):
    with pytest.raises(ApiError) as error:
        await serve(template=HERMES).respond(input, **fields)
    assert error.value.param == param
