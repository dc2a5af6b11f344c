"""Reasoning before answers, and which of it a checkpoint writes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langport.errors import ConfigError
from langport.settings.tree import ReasoningParser, ToolCallParser
from langport.testing import byte_tokenizer
from langport.text import reasoning, tool_calls
from langport.text.answer_format import AnswerFormat
from langport.text.chat_template import ChatTemplate, TemplateSource
from langport.text.literal_calls import CallLayout
from langport.text.reasoning import reasoning_format_for
from langport.text.tool_calls import FORMATS, GENERIC
from langport.text.tools import FunctionTool
from tests.unit.text.answers import Parsed, cuts, parse

TOOLS = [FunctionTool("f")]
THINKER = AnswerFormat(reasoning.FORMATS["think"], FORMATS["hermes"])
OPEN = "<|assistant|>\n<think>\n"


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("", "<think>\nHm,\nwell.\n</think>\n\nYes.", Parsed("Yes.", "Hm,\nwell.")),
        ("", "\n<think>Hm</think>Yes.\n", Parsed("Yes.\n", "Hm")),
        ("", "<think>\n\n</think>\n\nYes.", Parsed("Yes.")),
        ("", "Yes. <think>no</think>", Parsed("Yes. <think>no</think>")),
        ("", "<thin", Parsed("<thin")),
        ("", " <b>", Parsed(" <b>")),
        ("", "<think>cut </thi", Parsed("", "cut </thi")),
        (OPEN, "Hm.\n</think>\n\n  Yes. </think>", Parsed("  Yes. </think>", "Hm.")),
        (OPEN, "<think>Hm.</think>Yes.", Parsed("Yes.", "Hm.")),
        (OPEN, "cut", Parsed("", "cut")),
        (OPEN + "\n</think>\n\n", "Yes.", Parsed("Yes.")),
        (OPEN, "a </think> <tool_call>{\"name\": \"f\"}</tool_call>", Parsed("", "a", [("f", "{}")], [True])),
        (OPEN, "<tool_call>{}</tool_call></think>x", Parsed("x", "<tool_call>{}</tool_call>")),
    ],
)  # fmt: skip
def test_reasoning_is_split_from_the_answer(prompt, text, expected):
    for pieces in cuts(text):
        assert parse(THINKER.parser(prompt, TOOLS), pieces) == expected


def test_where_reasoning_ends():
    parser = THINKER.parser("", [])
    parser.push("\n<think>Hm")
    assert parser.reasoning_end is None
    parser.push(".</think>\n\nYes")
    assert parser.reasoning_end == len("\n<think>Hm.</think>")
    plain = THINKER.parser("", [])
    plain.push("Yes")
    assert plain.reasoning_end == 0


def test_an_answer_that_is_continued_is_inside_its_reasoning_or_behind_it():
    inside = THINKER.parser("<|assistant|><think>I am", [], continues=True)
    assert parse(inside, ["bic.</think>Yes."]) == Parsed("Yes.", "bic.")
    behind = THINKER.parser("<|assistant|><think>I am.</think>No", [], continues=True)
    assert parse(behind, ["<think>w"]) == Parsed("<think>w")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<th", "\n", " ", "a", "<tool_call>", "é"]), max_size=8),
    st.booleans(),
)
def test_any_text_reads_the_same_in_any_pieces(fragments, is_open):
    text, prompt = "".join(fragments), OPEN if is_open else ""
    whole = parse(THINKER.parser(prompt, TOOLS), [text])
    for pieces in cuts(text):
        assert parse(THINKER.parser(prompt, TOOLS), pieces) == whole


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ x }}", [], None),
        ("{{ x.split('</think>')[-1] }}", [], "think"),
        ("{{ x }}", ["<think>", "</think>"], "think"),
        ("{{ x }}", ["<think>"], None),
        ("{{ '[THINK]' + x + '[/THINK]' }}", [], "mistral"),
        ("{{ x }}", ["<|START_THINKING|>", "<|END_THINKING|>"], "command_a"),
    ],
)
def test_a_checkpoints_marks_are_found(template, tokens, name):
    assert reasoning_format_for(template, tokens) == name


def template(text: str) -> ChatTemplate:
    return ChatTemplate({"default": TemplateSource(text, "test.jinja")}, {})


def test_the_settings_know_the_names_of_the_tables():
    assert set(get_args(ToolCallParser)) == {"auto", "none", "template", *tool_calls.FORMATS}
    assert set(get_args(ReasoningParser)) == {"auto", "none", *reasoning.FORMATS}


def test_a_format_is_found_overridden_or_left_out():
    tokenizer = byte_tokenizer()
    hermes = template(
        "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
        "{{ c.function | tojson }}\n</tool_call>{% endfor %}{% endfor %}</think>"
    )
    found = AnswerFormat.of(hermes, tokenizer)
    assert found.calls is found.forced_calls is FORMATS["hermes"]
    assert found.layout.before_name == '<tool_call>\n{"name": "'
    assert found.reasoning is reasoning.FORMATS["think"]
    chosen = AnswerFormat.of(hermes, tokenizer, calls="pythonic", reasoning="mistral")
    assert (chosen.calls, chosen.forced_calls, chosen.layout) == (FORMATS["pythonic"], FORMATS["json"], GENERIC)
    assert chosen.reasoning is reasoning.FORMATS["mistral"]
    without = AnswerFormat.of(hermes, tokenizer, calls="none", reasoning="none")
    assert (without.calls, without.reasoning) == (None, None)
    assert AnswerFormat.of(None, tokenizer) == AnswerFormat()
    learned = AnswerFormat.of(hermes, tokenizer, calls="template")
    assert learned.layout == CallLayout('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>",
                                        '<tool_call>\n{"name": "')  # fmt: skip
    with pytest.raises(ConfigError, match=r"test\.jinja"):
        AnswerFormat.of(template("{{ messages[0].content }}"), tokenizer, calls="template")


def test_a_layout_holds_no_reasoning():
    thinker = template(
        "{{ tools }}{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>\n"
        "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    found = AnswerFormat.of(thinker, byte_tokenizer())
    assert found.layout == CallLayout(
        '<tool_call>{"name": "', '", "arguments": ', "}</tool_call>", '<tool_call>{"name": "'
    )


def test_special_tokens_among_the_marks_are_known():
    tokenizer = byte_tokenizer("[TOOL_CALLS]", "[THINK]", "[/THINK]", "[OTHER]")
    found = AnswerFormat.of(template("{{ tools }}{{ messages }}"), tokenizer)
    assert {tokenizer.backend.id_to_token(token_id) for token_id in found.reasoning_ids} == {"[THINK]", "[/THINK]"}
    assert {tokenizer.backend.id_to_token(token_id) for token_id in found.call_ids} == {"[TOOL_CALLS]"}
