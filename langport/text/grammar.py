"""What an answer has to look like, as a grammar: built here, compiled and enforced elsewhere.

A grammar is written in llguidance's dialect of Lark (github.com/guidance-ai/llguidance, docs/syntax.md). The functions
below return pieces of one, which may be put together at will, and `grammar` makes a whole of a piece:

    call = sequence(literal('<tool_call>{"name": "f", "arguments": '), json_value(schema), literal("}</tool_call>"))
    grammar(repeated(call, separator="\\n"))

Nothing here knows OpenAI's parameters or a tokenizer, and nothing is checked before it is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NewType

import msgspec

from langport.types import Grammar

Piece = NewType("Piece", str)
"""A part of a grammar, in parentheses where it needs them."""
Schema = Mapping[str, Any]
"""A JSON Schema, draft 2020-12, as decoded JSON."""

COMPACT = ""
"""As a pattern of whitespace: none at all."""
ANY_TEXT = Piece(r"/(?s:.*)/")
ANY_OBJECT: Schema = {"type": "object"}

_SPACES = ((",[ ]?", ", "), (":[ ]?", ": "))
"""Separators of JSON by default, and what they most often are."""
_OPTIONS_KEY = "x-guidance"
"""Where llguidance looks for its options. What a request has there is dropped: it could let keywords be skipped."""


def grammar(piece: Piece, *, hides_first_space: bool = False) -> Grammar:
    """The grammar of answers that are one piece. `hides_first_space`: see `Grammar`."""
    return Grammar(f'start: " "? {piece}', True) if hides_first_space else Grammar(f"start: {piece}")


def literal(text: str) -> Piece:
    """This text; a lone surrogate in it becomes U+FFFD."""
    valid = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return Piece(json.dumps(valid).replace("\x7f", r"\u007f"))  # the dialect takes no raw control characters


def token(token_id: int) -> Piece:
    """One special token, which no text stands for."""
    return Piece(f"<[{token_id}]>")


def json_value(schema: Schema | bool, *, whitespace: str | None = None) -> Piece:
    """JSON that follows a schema. Properties come in the order of the schema.

    `whitespace`: a regular expression for what may stand between two tokens of JSON. None allows one space after a
    comma and a colon, as json.dumps writes it: a weak model that may indent does so wherever it can, or for ever.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return Piece("%json " + msgspec.json.encode({**schema, _OPTIONS_KEY: _options(whitespace)}).decode())


def _options(whitespace: str | None) -> dict[str, Any]:
    if whitespace is None:
        (item, _), (key, _) = _SPACES
        return {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    return {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}


def with_usual_spaces(grammar: Grammar) -> Grammar:
    """The same grammar, but JSON has the spaces that most of it has. To guess by: a pattern in it may have changed."""
    text = grammar.text
    for allowed, usual in _SPACES:
        text = text.replace(f'"{allowed}"', f'"{usual}"')
    return Grammar(text, grammar.hides_first_space)


def matching(pattern: str) -> Piece:
    """Text that a regular expression matches from its first to its last character (Rust's syntax, no look-around)."""
    import llguidance

    # ASCII digits for \d, as in JSON Schema: what reads the answer seldom takes others.
    return Piece(f"/{llguidance.regex_to_lark(pattern, 'd')}/")


def sequence(*pieces: Piece) -> Piece:
    """The pieces one after the other, nothing between them."""
    return Piece(f"({' '.join(pieces)})")


def one_of(pieces: Sequence[Piece]) -> Piece:
    """Any one of the pieces; at least one must be given.

    Where JSON and other text could both go on with the next character, the parser takes the one that is written first,
    for good: begin JSON and literals among which there is a choice with different characters, or give JSON alone as one
    schema with `anyOf`.
    """
    return Piece(f"({' | '.join(pieces)})")


def optional(piece: Piece) -> Piece:
    """The piece, or nothing."""
    return Piece(f"({piece})?")


def repeated(piece: Piece, *, separator: str = "", at_most: int | None = None) -> Piece:
    """The piece once or more, with a text between two of them."""
    further = f"{literal(separator)} {piece}" if separator else piece
    limit = "*" if at_most is None else f"{{0,{at_most - 1}}}"
    return piece if at_most == 1 else Piece(f"({piece} ({further}){limit})")


def json_schema_between(prefix: str, schema: Schema, suffix: str) -> Piece:
    """JSON that follows a schema, between two fixed texts: most formats of tool calls."""
    return sequence(literal(prefix), json_value(schema), literal(suffix))


def json_schema_grammar(schema: Schema | bool, *, whitespace: str | None = None) -> Grammar:
    """JSON that follows a schema."""
    return grammar(json_value(schema, whitespace=whitespace))


def regex_grammar(pattern: str) -> Grammar:
    """Text that a regular expression matches whole."""
    return grammar(matching(pattern))


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """Exactly one of these texts."""
    return grammar(one_of([literal(choice) for choice in choices]))


def ebnf_grammar(text: str) -> Grammar:
    """A grammar that a user wrote: Lark with a rule `start`, or GBNF (EBNF with `::=`) with a rule `root`.

    Raises: ValueError saying what is wrong with GBNF; Lark is checked when it is compiled.
    """
    if "::=" not in text:
        return Grammar(text)
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return Grammar(any_to_lark(text))
    except Exception as error:  # the converter raises bare Exception for an unknown rule
        raise ValueError(str(error)) from error
