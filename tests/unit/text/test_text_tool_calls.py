"""Calls of tools in every format that models write: golden answers, cut everywhere, broken and cut short."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langport.text.chat_template import ChatTemplate, TemplateSource
from langport.text.literal_calls import CallLayout, calls_of
from langport.text.reader import AnswerReader
from langport.text.tool_calls import FORMATS, derive_layout, tool_call_format_for
from langport.text.tools import FunctionTool
from tests.unit.text.answers import Parsed, cuts, parse

WEATHER = FunctionTool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "array"}},
    },
)
CLOCK = FunctionTool("clock")
TOOLS = [WEATHER, CLOCK]
OSLO = '{"city": "Oslo", "days": 2}'


def reader(name: str) -> AnswerReader:
    return AnswerReader(lambda reader: FORMATS[name].read(reader, TOOLS))


def read(name: str, text: str) -> Parsed:
    """What is read, which must not depend on how the text is cut."""
    parsed = parse(reader(name), [text])
    for pieces in cuts(text):
        assert parse(reader(name), pieces) == parsed, pieces
    return parsed


def calls(*found: tuple[str, str], text: str = "") -> Parsed:
    return Parsed(text, "", list(found), [True] * len(found))


GOLDEN: list[tuple[str, str, Parsed]] = [
    ("hermes", "No call <here>.", calls(text="No call <here>.")),
    ("hermes", "", calls()),
    (
        "hermes",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>',
        calls(("get_weather", OSLO)),
    ),
    (
        "hermes",
        'I look.\n\n<tool_call>{"name":"get_weather","arguments":{"city":"a } \\" \\\\"}}</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "clock"}\n</tool_call>\n',
        calls(("get_weather", '{"city":"a } \\" \\\\"}'), ("clock", "{}"), text="I look."),
    ),
    (
        "hermes",
        '<tool_call>{"id": 3, "name": "clock", "arguments": "{\\"zone\\": \\"\\u00e9\\"}", "x": [1, {"y": "]"}]}'
        "</tool_call>Done.",
        calls(("clock", '{"zone": "é"}'), text="Done."),
    ),
    ("hermes", '<tool_call>{"name": "clock"}</tool_call>', calls(("clock", "{}"))),
    ("hermes", '<tool_call>{"name": "clock", "arguments": null}</tool_call>', calls(("clock", "{}"))),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {}}', calls(("clock", "{}"))),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {}, "type": "x", "n": 1.5}', calls(("clock", "{}"))),
    (
        "hermes",
        '<tool_call>[{"name": "clock"}, {"name": "clock"}]</tool_call>',
        calls(("clock", "{}"), ("clock", "{}")),
    ),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', calls(("unknown", "{}"))),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        calls(("get_weather", '{"city": "Oslo"}')),
    ),
    (
        "llama3_json",
        '\n<|python_tag|>{"name": "clock", "parameters": {}}; {"name": "get_weather", "parameters": {"days": 1}}',
        calls(("clock", "{}"), ("get_weather", '{"days": 1}')),
    ),
    ("llama3_json", '{"name": "unknown", "parameters": {}}', calls(text='{"name": "unknown", "parameters": {}}')),
    ("llama3_json", '{"city": "Oslo"}', calls(text='{"city": "Oslo"}')),
    ("llama3_json", "[1] says so.", calls(text="[1] says so.")),
    ("llama3_json", ' {"name": "clock"} and text', calls(("clock", "{}"), text="and text")),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {OSLO}, "id": "abcdefghi"}}, {{"name": "clock"}}]',
        calls(("get_weather", OSLO), ("clock", "{}")),
    ),
    ("mistral", '[TOOL_CALLS]{"name": "clock", "arguments": {}}', calls(("clock", "{}"))),
    (
        "mistral",
        f"Well.[TOOL_CALLS]get_weather[ARGS]{OSLO}[TOOL_CALLS]clock[CALL_ID]a1[ARGS]{{}}",
        calls(("get_weather", OSLO), ("clock", "{}"), text="Well."),
    ),
    ("mistral", '[TOOL_CALLS]clock{"zone": 1}', calls(("clock", '{"zone": 1}'))),
    ("granite", '<|tool_call|>[{"name": "clock", "arguments": {}}]', calls(("clock", "{}"))),
    (
        "command_a",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "clock", "parameters": {}}\n]<|END_ACTION|>',
        calls(("clock", "{}")),
    ),
    ("jamba", '<tool_calls>[\n{"name": "clock", "arguments": {}}\n]</tool_calls>', calls(("clock", "{}"))),
    (
        "deepseek",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{OSLO}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{{}}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls(("get_weather", OSLO), ("clock", "{}"), text="Let me see."),
    ),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{OSLO}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls(("get_weather", OSLO), ("clock", "{}")),
    ),
    (
        "kimi",
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{OSLO}"
        "<|tool_call_end|><|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        calls(("get_weather", OSLO), ("clock", "{}")),
    ),
    (
        "pythonic",
        "[get_weather(city='Os\\'lo, (N)', days=2, units=[\"a\", {'b': None}]), clock()]",
        calls(("get_weather", '{"city": "Os\'lo, (N)", "days": 2, "units": ["a", {"b": null}]}'), ("clock", "{}")),
    ),
    (
        "pythonic",
        '[get_weather("Oslo", days=-1.5, a=true, b=(1, 2), c=Oslo, d={1, 2}, e="""x"y""", f=b"z")]',
        calls(
            (
                "get_weather",
                '{"city": "Oslo", "days": -1.5, "a": true, "b": [1, 2], "c": "Oslo", "d": "{1, 2}", "e": "x\\"y", '
                '"f": "b\\"z\\""}',
            )
        ),
    ),
    ("pythonic", "[see(note)]", calls(text="[see(note)]")),
    ("pythonic", "[1, 2]", calls(text="[1, 2]")),
    ("pythonic", "[clock( )] Done.", calls(("clock", "{}"), text="Done.")),
    (
        "lfm2",
        'Yes.<|tool_call_start|>[clock(zone="é")]<|tool_call_end|>',
        calls(("clock", '{"zone": "é"}'), text="Yes."),
    ),
    ("llama4_pythonic", "<|python_start|>[clock()]<|python_end|>", calls(("clock", "{}"))),
    (
        "qwen3_coder",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n7\n</parameter>\n<parameter=days>\n2\n"
        '</parameter>\n<parameter=units>\n["a"]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call><function=clock></function></tool_call>",
        calls(("get_weather", '{"city": "7", "days": 2, "units": ["a"]}'), ("clock", "{}"), text="I look."),
    ),
    (
        "glm",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Os\nlo</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>soon</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>",
        calls(("get_weather", '{"city": "Os\\nlo", "days": "soon"}'), ("clock", "{}")),
    ),
    (
        "minimax",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
        '<invoke name="clock">\n</invoke>\n</minimax:tool_call>',
        calls(("get_weather", '{"city": "Oslo"}'), ("clock", "{}")),
    ),
    ("json", f'```json\n[{{"name": "get_weather", "arguments": {OSLO}}}]\n```', calls(("get_weather", OSLO))),
    ("json", '{"tool_call": {"name": "clock", "arguments": {}}}', calls(("clock", "{}"))),
    (
        "json",
        '{"tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": "{}"}}, {"name": "clock"}]}',
        calls(("clock", "{}"), ("clock", "{}")),
    ),
    ("json", '{"function": "clock", "args": {"a": 1}}', calls(("clock", '{"a": 1}'))),
    ("json", "```json\n{}\n```", calls(text="```json\n{}\n```")),
    ("json", "Plain.\n", calls(text="Plain.\n")),
]


@pytest.mark.parametrize(("name", "text", "expected"), GOLDEN)
def test_golden_answers(name, text, expected):
    assert read(name, text) == expected
    for _, arguments in expected.calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>no JSON</tool_call>"),
        ("hermes", "<tool_call>{'name': 'clock'}</tool_call>"),
        ("hermes", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "clock", "arguments": {\'a\': 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "two words", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "clock" "arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>" * 3),
        ("hermes", "a < b <tool_cal> \n"),
        ("hermes", '<tool_call>{"na'),
        ("mistral", "[TOOL_CALLS] sorry, no {} today"),
        ("deepseek", "<｜tool▁calls▁begin｜>?<｜tool▁calls▁end｜>"),
        ("kimi", "<|tool_calls_section_begin|> " + "x" * 500),
        ("pythonic", "[get_weather"),
        ("lfm2", "<|tool_call_start|>clock()"),
        ("qwen3_coder", "<tool_call>\nclock()</tool_call>"),
        ("glm", "<tool_call>two words</tool_call>"),
    ],
)
def test_what_is_no_call_is_text_and_nothing_is_lost(name, text):
    assert read(name, text) == calls(text=text)


@pytest.mark.parametrize(
    ("name", "text", "name_of_call", "arguments"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather"', "get_weather", ""),
        ("hermes", '<tool_call>\n{"name": "get_weather", "argum', "get_weather", ""),
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os', "get_weather", '{"city": "Os'),
        ("hermes", '<tool_call>\n{"name": "clock", "arguments": {"a": "x\\', "clock", '{"a": "x\\'),
        ("llama3_json", '{"name": "clock", "parameters": {"a": [1', "clock", '{"a": [1'),
        ("mistral", '[TOOL_CALLS]clock[ARGS]{"a"', "clock", '{"a"'),
        ("pythonic", '[clock(a=1, b="Os', "clock", '{"a": 1, "b": "Os'),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>\nOs", "get_weather", '{"city": \nOs'),
        ("qwen3_coder", "<tool_call><function=get_weather>", "get_weather", ""),
    ],
)
def test_a_call_that_is_cut_short_keeps_what_was_read(name, text, name_of_call, arguments):
    assert read(name, text) == Parsed("", "", [(name_of_call, arguments)], [False])


@pytest.mark.parametrize(
    ("text", "arguments", "rest"),
    [
        ('<tool_call>{"name": "clock", "arguments": {"a": 1 </tool_call> so', '{"a": 1 ', "so"),
        ('<tool_call>{"name": "clock", "arguments": {"a": \'b\'}} so', '{"a": ', "'b'}} so"),
    ],
)
def test_a_call_that_goes_wrong_ends_and_the_rest_is_text(text, arguments, rest):
    assert read("hermes", text) == Parsed(rest, "", [("clock", arguments)], [False])


def test_text_and_arguments_are_given_as_they_come():
    parser = reader("hermes")
    given = [parse_one(parser, piece) for piece in ("Hel", "lo <", "b> <tool", "_call>", '{"name": "clock", "argu')]
    assert [parsed.text for parsed in given] == ["Hel", "lo", " <b>", "", ""]
    given = [parse_one(parser, piece) for piece in ('ments": {"a', '": "b', 'c"', "}")]
    assert [delta for parsed in given for delta in parsed.calls] == [("clock", '{"a')]


def parse_one(parser: AnswerReader, piece: str) -> Parsed:
    """What one piece gives; the arguments of calls that began before are left out."""
    parsed = Parsed()
    for delta in parser.push(piece):
        if hasattr(delta, "name") or hasattr(delta, "offset") or parsed.calls:
            parsed.add(delta)
    return parsed


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", '{"name": "clock"', ', "arguments": ', "{", "}", "[", "]",
     '"', "\\", ":", ",", "clock", "(", ")", "a=", "'", "1", " ", "\n", "é", "```json", "<function=clock>",
     "<parameter=a>", "</parameter>", "</function>", "<|python_tag|>", "<tool", "text"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(FRAGMENTS, max_size=14), st.data())
def test_any_text_reads_the_same_in_any_pieces(name, fragments, data):
    text = "".join(fragments)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    whole = parse(reader(name), [text])
    assert parse(reader(name), pieces) == whole
    assert parse(reader(name), list(text)) == whole
    if not whole.calls:
        assert whole.text == text


def template(text: str) -> ChatTemplate:
    return ChatTemplate({"default": TemplateSource(text, "test")}, {})


def calling(call: str, before: str = "", between: str = "", after: str = "") -> str:
    """A template that writes calls like this."""
    return (
        "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}" + before +
        "{% for c in m.tool_calls %}{% if not loop.first %}" + between + "{% endif %}" + call + "{% endfor %}"
        + after + "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )  # fmt: skip


NAME, ARGUMENTS = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}"


def test_a_layout_is_learned_from_the_template():
    text = calling(f"<call>{NAME}: {ARGUMENTS}</call>", "<calls>", "", "</calls>")
    layout = derive_layout(template(text))
    assert layout == CallLayout("<calls><call>", ": ", "</call>", "<call>", "</calls>")
    assert tool_call_format_for(template(text), []) == "template"
    learned = calls_of(layout)
    assert learned is not None
    answer = f"So: <calls><call>get_weather: {OSLO}</call>\n<call>clock:{{}}</call></calls> Done."
    expected = calls(("get_weather", OSLO), ("clock", "{}"), text="So:Done.")
    for pieces in cuts(answer):
        assert parse(AnswerReader(lambda reader: learned.read(reader, TOOLS)), pieces) == expected


def test_ids_in_a_layout_may_be_any():
    text = calling('<call id="{{ c.id }}">' + NAME + ARGUMENTS + " #{{ c.id }}#")
    layout = derive_layout(template(text))
    assert layout is not None
    learned = calls_of(layout)
    assert learned is not None
    answer = '<call id="abc">clock{} #abc#<call id="def">clock{} #def#'
    parsed = parse(AnswerReader(lambda reader: learned.read(reader, TOOLS)), list(answer))
    assert parsed == calls(("clock", "{}"), ("clock", "{}"))


@pytest.mark.parametrize(
    ("text", "tokens", "name"),
    [
        ("{{ messages }}", [], "json"),
        ("{{ messages }}[TOOL_CALLS]", ["[TOOL_CALLS]"], "json"),
        ("{{ tools }}{{ messages }}", ["[TOOL_CALLS]"], "mistral"),
        (calling("{{ c.function | tojson }}"), ["[TOOL_CALLS]"], "json"),
        (calling("<tool_call>{{ c.function | tojson }}</tool_call>"), [], "hermes"),
        (calling("[TOOL_CALLS]" + NAME + "[ARGS]" + ARGUMENTS), [], "mistral"),
        (calling("<tool_call><function=" + NAME + "><parameter="), [], "qwen3_coder"),
        (calling("<|python_tag|>{{ c.function | tojson }}"), [], "llama3_json"),
        (calling("functools[" + NAME + ", " + ARGUMENTS + "]"), [], "template"),
        (calling(NAME), [], "json"),
    ],
)
def test_a_checkpoints_format_is_found(text, tokens, name):
    assert tool_call_format_for(template(text), tokens) == name
