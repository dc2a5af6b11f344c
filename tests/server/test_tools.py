"""Calls of tools and reasoning over HTTP, from models that are made to write them, whatever they have learned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.checkpoints import save_checkpoint
from tests.server.process import DONE, Server, running
from tests.server.test_models import CHAT

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "clock": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
THINKER = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def random_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with random weights, which writes anything, and a template that begins with reasoning."""
    folder = tmp_path_factory.mktemp("random")
    template = folder / "thinker.jinja"
    template.write_text(THINKER)
    path = save_checkpoint("llama", folder / "any")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    with running(str(path), "--chat-template", str(template)) as server:
        yield server


def check_calls(calls: list[tuple[str, str]]) -> None:
    """There are calls, each of a known function by its schema."""
    assert calls
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def calls_in(choice: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_follow_their_schemas(demo_server: Server, seed: int) -> None:
    fields = {"model": CHAT, "messages": ASK, "tools": TOOLS, "tool_choice": "required", "seed": seed, "temperature": 2}
    choice = demo_server.post("/v1/chat/completions", **fields)["choices"][0]
    check_calls(calls_in(choice))
    assert choice["finish_reason"] == "tool_calls"
    streamed: dict[int, tuple[str, str]] = {}
    with demo_server.stream("/v1/chat/completions", **fields) as events:
        *chunks, done = events
    assert done == DONE
    for chunk in chunks:
        for call in chunk["choices"][0]["delta"].get("tool_calls", []):
            name, arguments = streamed.get(call["index"], ("", ""))
            function = call["function"]
            streamed[call["index"]] = (function.get("name", name), arguments + function["arguments"])
    assert list(streamed.values()) == calls_in(choice)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_each_of_several_choices_calls_the_named_function(demo_server: Server) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    answer = demo_server.post(
        "/v1/chat/completions", model=CHAT, messages=ASK, tools=TOOLS, tool_choice=named, n=3, parallel_tool_calls=False
    )
    assert [calls_in(choice) for choice in answer["choices"]] == [[("clock", "{}")]] * 3


def test_a_call_and_its_result_are_answered(demo_server: Server) -> None:
    fields = {"model": CHAT, "tools": TOOLS, "temperature": 0, "max_tokens": 60}
    message = demo_server.post("/v1/chat/completions", messages=ASK, tool_choice="required", **fields)["choices"][0][
        "message"
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "Rain, 4 degrees"} for call in message["tool_calls"]
    ]
    answer = demo_server.post("/v1/chat/completions", messages=[*ASK, message, *results], tool_choice="none", **fields)
    assert answer["choices"][0]["message"]["content"]


LINES = 'start: line+\nline: /[a-z"]{1,5}/ "\\n"'
FORMATS: dict[str, dict[str, str] | None] = {
    "any": None,
    "letters": {"syntax": "regex", "definition": '[a-c\\n"]{2,9}'},
    "lines": {"syntax": "lark", "definition": LINES},
}
INPUTS = {"any": r"(?s:.*)", "letters": r'[a-c\n"]{2,9}', "lines": r'([a-z"]{1,5}\n)+'}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["demo", "random"])
def test_inputs_of_custom_tools_follow_their_grammars(request: pytest.FixtureRequest, name: str, model: str) -> None:
    server: Server = request.getfixturevalue(f"{model}_server")
    grammar = FORMATS[name]
    fields: dict[str, Any] = {"model": CHAT if model == "demo" else "any", "temperature": 1.5, "seed": 3}
    format = {"format": {"type": "grammar", "grammar": grammar}} if grammar else {}
    chat = {
        **fields,
        "max_tokens": 300,
        "messages": ASK,
        "reasoning_effort": "none",
        "tools": [*TOOLS, {"type": "custom", "custom": {"name": name, **format}}],
        "tool_choice": {"type": "custom", "custom": {"name": name}},
        "parallel_tool_calls": False,
    }
    choice = server.post("/v1/chat/completions", **chat)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["custom"]["name"]) == ("custom", name)
    if choice["finish_reason"] == "tool_calls":
        assert re.fullmatch(INPUTS[name], call["custom"]["input"])
    with server.stream("/v1/chat/completions", **chat) as events:
        deltas = [event["choices"][0]["delta"] for event in events if event != DONE]
    pieces = [piece["custom"]["input"] for delta in deltas for piece in delta.get("tool_calls", [])]
    assert "".join(pieces) == call["custom"]["input"]
    flat = {"format": {"type": "grammar", **grammar}} if grammar else {}
    response = server.post(
        "/v1/responses",
        **fields,
        input="Go.",
        max_output_tokens=300,
        reasoning={"effort": "none"},
        tools=[{"type": "custom", "name": name, **flat}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (item,) = response["output"]
    assert (item["type"], item["name"]) == ("custom_tool_call", name)
    if response["status"] == "completed":
        assert re.fullmatch(INPUTS[name], item["input"])


def test_a_model_that_knows_no_tools_is_made_to_call(random_server: Server) -> None:
    answer = random_server.post(
        "/v1/chat/completions",
        model="any",
        messages=ASK,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning_effort="none",
        seed=1,
    )
    choice = answer["choices"][0]
    check_calls(calls_in(choice))
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_reasoning_is_apart_and_counted(random_server: Server) -> None:
    fields = {"model": "any", "messages": ASK, "max_tokens": 20, "ignore_eos": True, "seed": 2}
    answer = random_server.post("/v1/chat/completions", **fields)
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"] == message["reasoning_content"]
    assert message["reasoning"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    with random_server.stream("/v1/chat/completions", **fields) as events:
        deltas = [event["choices"][0]["delta"] for event in events if event != DONE]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    without = random_server.post("/v1/chat/completions", **fields, reasoning_effort="none")
    assert "reasoning" not in without["choices"][0]["message"]
    assert without["choices"][0]["message"]["content"]
