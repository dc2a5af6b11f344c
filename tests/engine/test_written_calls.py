"""Calls that a model of random weights is made to write, in each family's own way, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from langport.api.turn import TurnRequest
from langport.api.turn_grammar import _calls, _Rules
from langport.engine.engine import GenerationEngine
from langport.text.answer import ToolCallBegin, ToolCallDelta
from langport.text.answer_format import AnswerFormat
from langport.text.tokenizer import Tokenizer
from langport.text.tool_calls import FORMATS, GENERIC, OWN_LAYOUTS
from langport.text.tools import FunctionTool
from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import byte_tokenizer
from tests.engine.inprocess import load, run

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "is_exact": {"type": "boolean"},
        "places": {"type": "array", "items": {"enum": [True, None, "a/b"]}, "maxItems": 2},
    },
    "required": ["days"],
}
OPTIONAL = {
    "type": "object",
    "properties": {"one": {"type": "null"}, "two": {"const": 2}},
    "additionalProperties": False,
}
TOOLS = [
    FunctionTool("weather", parameters=WEATHER),
    FunctionTool("set-up", parameters=OPTIONAL),
    FunctionTool("clock"),
]


def answers(name: str) -> AnswerFormat:
    return AnswerFormat(calls=FORMATS[name], own_layout=OWN_LAYOUTS[name])


@pytest.mark.parametrize("name", OWN_LAYOUTS)
def test_every_call_is_read_as_one_that_follows_its_schema(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    core = load(checkpoint("llama"), max_num_seqs=16)
    assert isinstance(core, GenerationEngine)
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    form = answers(name)
    layout = form.writing(TOOLS)
    assert layout is OWN_LAYOUTS[name]
    rules = _Rules(tokenizer)
    made = rules.grammar(_calls(rules, TOOLS, layout, TurnRequest([])), hides_first_space=False)
    request = GenerateRequest("r", [5, 6], SamplingParams(max_tokens=400, seed=1, temperature=1.5, grammar=made), n=16)
    schemas = {tool.name: tool.parameters or {"maxProperties": 0} for tool in TOOLS}
    seen: set[str] = set()
    for stream in run(core, [request]).values():
        if stream.finish_reason != "stop":
            continue
        parser = form.parser("", TOOLS, is_forced=True)
        deltas = [*parser.push(tokenizer.decode(stream.tokens)), *parser.end()]
        arguments: list[str] = []
        names: list[str] = []
        for delta in deltas:
            if isinstance(delta, ToolCallBegin):
                names.append(delta.name)
                arguments.append("")
            elif isinstance(delta, ToolCallDelta):
                arguments[-1] += delta.arguments
        assert names, tokenizer.decode(stream.tokens)
        for called, text in zip(names, arguments, strict=True):
            jsonschema.validate(json.loads(text), schemas[called])
        seen.update(names)
    assert seen == set(schemas)
    # A text that may be anything goes on until the model happens to end it.
    note = [FunctionTool("note", parameters={"properties": {"text": {"type": "string"}}, "required": ["text"]})]
    rules = _Rules(tokenizer)
    made = rules.grammar(_calls(rules, note, form.writing(note), TurnRequest([])), hides_first_space=False)
    free = GenerateRequest("n", [5, 6], SamplingParams(max_tokens=90, seed=1, grammar=made))
    text = tokenizer.decode(run(core, [free])["n", 0].tokens)
    assert text.startswith(layout.before_name + "note" + layout.before_arguments)


@pytest.mark.parametrize(
    ("parameters", "can_keywords", "can_tags"),
    [
        (None, True, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, True, True),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}}, True, False),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": ["a\nb"]}}}, True, False),
        ({"type": "object", "properties": {"a b": {"type": "string"}}}, False, False),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}}, False, False),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, False, False),
        ({"type": "object", "properties": {}, "required": ["b"]}, False, False),
        ({"anyOf": [{"type": "object"}]}, False, False),
    ],
)
def test_what_cannot_be_written_so_is_written_as_json(
    parameters: dict[str, Any] | None, can_keywords: bool, can_tags: bool
) -> None:
    tools = [FunctionTool("f", parameters=parameters)]
    for name, can in (("pythonic", can_keywords), ("qwen3_coder", can_tags)):
        form = answers(name)
        assert form.writing(tools) is (OWN_LAYOUTS[name] if can else GENERIC)
