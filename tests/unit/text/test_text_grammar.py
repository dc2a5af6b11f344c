"""Grammars as they are built, checked by compiling them over the 256 bytes as tokens."""

from __future__ import annotations

import llguidance
import pytest

from langport.testing import BOS, EOS, TURN, byte_tokenizer
from langport.text.grammar import (
    ANY_OBJECT,
    ANY_TEXT,
    COMPACT,
    choice_grammar,
    ebnf_grammar,
    grammar,
    json_schema_between,
    json_schema_grammar,
    json_value,
    literal,
    matching,
    one_of,
    optional,
    regex_grammar,
    repeated,
    sequence,
    token,
    with_usual_spaces,
)
from langport.types import Grammar

NUMBERED = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


class _Bytes:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self) -> None:
        self.eos_token_id, self.bos_token_id, self.is_tokenizer_wrapper = EOS, None, True
        self.tokens = [byte_tokenizer().token_bytes(token_id) for token_id in range(TURN + 1)]
        self.special_token_ids = (BOS, EOS, TURN)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


BYTES = llguidance.LLTokenizer(_Bytes())


def accepts(made: Grammar, text: str | list[int]) -> bool:
    """Whether a text, or a list of tokens, is a whole answer."""
    matcher = llguidance.LLMatcher(BYTES, made.text, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode()) if isinstance(text, str) else text
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    "text", ["plain", 'a "quoted" \\ one\n', "\x00\x1f\x7f", "é€😀", "/*{}[]|()", "%json {}", "<[5]>"]
)
def test_a_literal_is_that_text_and_no_other(text):
    assert accepts(grammar(literal(text)), text)
    assert not accepts(grammar(literal(text)), text + "x")
    assert not accepts(grammar(literal(text)), text[:-1])


def test_a_lone_surrogate_in_a_literal_is_the_replacement_character():
    assert accepts(grammar(literal("a\ud800b")), "a\ufffdb")


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ('{"n":1,"m":[1,2]}', True),
        ('{"n": 1, "m": [1, 2]}', True),
        ('{"n":  1,"m":[]}', False),
        ('{"n":1,  "m":[]}', False),
        ('{ "n":1,"m":[]}', False),
        ('{"n" :1,"m":[]}', False),
        ('{"n":1,"m":[]\n}', False),
        ('{\n"n":1,"m":[]}', False),
        (' {"n": 1, "m": []}', False),
        ('{"n": 1, "m": []}\n', False),
        ('{"n": "1", "m": []}', False),
        ('{"n": 1}', False),
    ],
)
def test_json_has_little_whitespace(text, follows):
    listed = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "m": {"type": "array"}},
        "required": ["n", "m"],
        "additionalProperties": False,
    }
    assert accepts(json_schema_grammar(listed), text) is follows


@pytest.mark.parametrize(
    ("whitespace", "text", "follows"),
    [
        (COMPACT, '{"n":1}', True),
        (COMPACT, '{"n": 1}', False),
        (r"\n {0,4}| ", '{\n  "n": 1\n}', True),
        (r"\n {0,4}| ", '{\n      "n": 1\n}', False),
        (r"\n {0,4}| ", '{\n\n"n": 1\n}', False),
        (r"\n {0,4}| ", '{"n":1}', True),
    ],
)
def test_whitespace_may_be_chosen(whitespace, text, follows):
    assert accepts(json_schema_grammar(NUMBERED, whitespace=whitespace), text) is follows


def test_options_in_a_schema_do_not_loosen_it():
    loose = {"x-guidance": {"lenient": True, "whitespace_flexible": True}, **NUMBERED}
    assert not accepts(json_schema_grammar(loose), '{  \n\n "n": 1}')
    unknown = {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    assert llguidance.LLMatcher(BYTES, json_schema_grammar(unknown).text, log_level=0).is_error()


def test_boolean_schemas():
    assert accepts(json_schema_grammar(True), "[1, null]")
    assert llguidance.LLMatcher(BYTES, json_schema_grammar(False).text, log_level=0).is_error()


def test_any_object():
    assert accepts(json_schema_grammar(ANY_OBJECT), '{"a": [1, {"b": null}], "c": "é\\n"}')
    assert not accepts(json_schema_grammar(ANY_OBJECT), "[]")


@pytest.mark.parametrize(
    ("pattern", "text", "follows"),
    [
        ("a/b", "a/b", True),
        ("[/]", "/", True),
        ("^[a-c]+$", "abc", True),
        ("ab|c", "ab", True),
        ("ab|c", "abc", False),
        (r"\d{2}", "12", True),
        (r"\d", "٣", False),
        ("a\nb", "a\nb", True),
        ("", "", True),
        ("", "a", False),
        (".", "\n", False),
        ("é|ß", "ß", True),
    ],
)
def test_a_regular_expression_matches_the_whole_text(pattern, text, follows):
    assert accepts(regex_grammar(pattern), text) is follows


def test_choices_are_taken_literally():
    made = choice_grammar(["yes", "no", "a|b", "yes, but"])
    assert all(accepts(made, text) for text in ("yes", "no", "a|b", "yes, but"))
    assert not any(accepts(made, text) for text in ("a", "ye", "yes,", ""))


def test_lark_and_gbnf():
    lark = ebnf_grammar('start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[A-Z][a-z]+/')
    gbnf = ebnf_grammar('root ::= greeting " " [A-Z] [a-z]+\ngreeting ::= "hi" | "bye"\n')
    for made in (lark, gbnf):
        assert accepts(made, "bye Ann")
        assert not accepts(made, "ho Ann")


@pytest.mark.parametrize("text", ['root ::= "a', "root ::= foo", "::="])
def test_broken_gbnf_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        ebnf_grammar(text)


def test_a_schema_between_texts():
    call = json_schema_between('<tool_call>{"name": "f", "arguments": ', NUMBERED, "}</tool_call>")
    assert accepts(grammar(call), '<tool_call>{"name": "f", "arguments": {"n": 3}}</tool_call>')
    assert not accepts(grammar(call), '<tool_call>{"name": "g", "arguments": {"n": 3}}</tool_call>')
    assert not accepts(grammar(call), '<tool_call>{"name": "f", "arguments": {}}</tool_call>')


def test_several_calls_of_several_functions():
    texts = {"type": "object", "properties": {"t": {"type": "string"}}, "required": ["t"]}
    call = one_of([json_schema_between("[f", NUMBERED, "]"), json_schema_between("[g", texts, "]")])
    calls = grammar(repeated(call, separator="\n"))
    assert accepts(calls, '[f{"n": 1}]')
    assert accepts(calls, '[f{"n": 1}]\n[g{"t": "x"}]\n[f{"n": 2}]')
    assert not accepts(calls, '[f{"n": 1}]\n')
    assert not accepts(calls, '[g{"n": 1}]')
    assert not accepts(calls, "")
    one = grammar(repeated(call, separator="\n", at_most=1))
    assert not accepts(one, '[f{"n": 1}]\n[f{"n": 2}]')
    two = grammar(repeated(call, at_most=2))
    assert accepts(two, '[f{"n": 1}][f{"n": 2}]')
    assert not accepts(two, '[f{"n": 1}]' * 3)


def test_free_text_then_a_special_token_then_json():
    made = grammar(sequence(ANY_TEXT, token(BOS), json_value(NUMBERED)))
    document = list(b'{"n": 1}')
    assert accepts(made, [BOS, *document])
    assert accepts(made, [*b"I think\n{so}", BOS, *document])
    assert not accepts(made, list(b"I think") + document)
    assert not accepts(made, list(b"<s>") + document)


def test_pieces_nest():
    made = grammar(sequence(matching("[a-c]"), one_of([literal("x"), sequence(literal("y"), optional(literal("z")))])))
    assert all(accepts(made, text) for text in ("ax", "by", "cyz"))
    assert not any(accepts(made, text) for text in ("a", "axz", "dx"))


def test_usual_spaces_are_a_narrower_grammar() -> None:
    made = json_schema_grammar({**NUMBERED, "properties": {"n": {"type": "array", "items": {"type": "integer"}}}})
    usual = with_usual_spaces(made)
    assert accepts(made, '{"n":[1,2]}')
    assert accepts(made, '{"n": [1, 2]}')
    assert not accepts(usual, '{"n":[1,2]}')
    assert accepts(usual, '{"n": [1, 2]}')
    for other in (json_schema_grammar(NUMBERED, whitespace=COMPACT), regex_grammar("[ab]+"), choice_grammar(["a"])):
        assert with_usual_spaces(other) == other
