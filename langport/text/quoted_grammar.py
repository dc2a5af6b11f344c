"""A Lark grammar as the grammar of the same texts between the quotes of a JSON string.

llguidance reads lexemes as far as they go and takes nothing back. All escapes begin with a backslash, so a terminal
that could go on with one would take the beginning of another one that follows it. Such terminals become rules, in which
escapes and other characters are lexemes of their own. That is also why texts to be ignored are woven into the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from langport.text.grammar import Piece
from langport.text.quoted_regex import (
    ANY,
    NOTHING,
    Quoted,
    can_go_on_with_escape,
    either,
    quoted_regex,
    repeated,
    sequence,
    text,
)

_TOKEN = re.compile(
    r"""(?P<space>(?:\#|//)[^\n]*|[ \t]+)
    | (?P<newline>(?:\r?\n)[\s]*)
    | (?P<directive>%\w+)
    | (?P<string>"(?:\\.|[^"\\\n])*"i?)
    | (?P<regex>/(?:\\.|[^/\\\n])+/[imslux]*)
    | (?P<rule>[!?]*_?[a-z][_a-z0-9\-]*)
    | (?P<terminal>_?[A-Z][_A-Z0-9\-]*)
    | (?P<mark>->|::|\.\.|[+-]?\d+|<[^<>\s]+>|@[\w\-]+|.)""",
    re.VERBOSE,
)
_IMPORT = re.compile(r"\s*common\s*\.\s*(\w+)\s*(?:->\s*(\w+))?\s*")
_IMPORTS = re.compile(r"\s*common\s*\(([\w\s,]*)\)\s*")
_COMMON = {
    "DIGIT": r"[0-9]",
    "HEXDIGIT": r"[a-fA-F0-9]",
    "INT": r"[0-9]+",
    "SIGNED_INT": r"(\+|-)?[0-9]+",
    "DECIMAL": r"([0-9]+\.[0-9]*)|(\.[0-9]+)",
    "_EXP": r"[eE](\+|-)?[0-9]+",
    "FLOAT": r"([0-9]+\.[0-9]*|\.[0-9]+)([eE](\+|-)?[0-9]+)?|[0-9]+[eE](\+|-)?[0-9]+",
    "SIGNED_FLOAT": r"(\+|-)?(([0-9]+\.[0-9]*|\.[0-9]+)([eE](\+|-)?[0-9]+)?|[0-9]+[eE](\+|-)?[0-9]+)",
    "NUMBER": r"([0-9]+)|([0-9]+\.[0-9]*|\.[0-9]+)([eE](\+|-)?[0-9]+)?|[0-9]+[eE](\+|-)?[0-9]+",
    "SIGNED_NUMBER": r"(\+|-)?(([0-9]+)|([0-9]+\.[0-9]*|\.[0-9]+)([eE](\+|-)?[0-9]+)?|[0-9]+[eE](\+|-)?[0-9]+)",
    "ESCAPED_STRING": r"\"([^\"\\]|\\.)*\"",
    "LCASE_LETTER": r"[a-z]",
    "UCASE_LETTER": r"[A-Z]",
    "LETTER": r"[A-Za-z]",
    "WORD": r"[A-Za-z]+",
    "CNAME": r"[_A-Za-z][_A-Za-z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "C_COMMENT": r"\/\*[^*]*\*+(?:[^\/*][^*]*\*+)*\/",
    "SQL_COMMENT": r"--[^\n]*",
}
"""The terminals that Lark's own `common` has, as llguidance reads them (its parser/src/lark/common.rs)."""


_LEAVES = ("string", "regex", "range")
"""Kinds of tokens that stand for text themselves."""


class _Token(NamedTuple):
    kind: str
    text: str


@lru_cache(64)
def quoted_grammar(definition: str) -> tuple[Piece, str]:
    """The piece that begins the texts of a grammar, and the rules that it needs, whose names no other grammar has.

    Takes milliseconds, more the first time. Raises: ValueError for what Lark itself does not know.
    """
    try:
        return _Grammar(definition).written()
    except RecursionError:
        raise ValueError("it is nested too deeply for a custom tool") from None


class _Grammar:
    """A grammar that is known to be well-formed, on its way."""

    def __init__(self, definition: str) -> None:
        self._suffix = "-" + blake2b(definition.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        self._rules: list[tuple[str, list[_Token]]] = []
        self._bodies: dict[str, list[_Token]] = {}
        """Of terminals."""
        self._ignored: list[list[_Token]] = []
        self._known: dict[str, Quoted | None] = {}
        """Of terminals; None for those with & and ~, which cannot be taken apart."""
        self._lines: list[str] = []
        for line in _statements(definition):
            self._take(line)

    def _take(self, line: list[_Token]) -> None:
        first, rest = line[0], line[1:]
        if first.kind == "directive":
            self._direct(first.text, rest)
        elif not rest or rest[0].text != ":":
            raise ValueError(f"{first.text}: options and priorities of rules and terminals are not known here")
        elif first.kind == "rule":
            self._rules.append((first.text, rest[1:]))
        else:
            self._bodies[first.text] = rest[1:]

    def _direct(self, directive: str, rest: list[_Token]) -> None:
        if directive == "%ignore":
            self._ignored.append(rest)
        elif directive == "%import":
            self._import("".join(token.text for token in rest))
        else:
            raise ValueError(f"{directive} cannot stand in the grammar of a custom tool")

    def _import(self, what: str) -> None:
        if single := _IMPORT.fullmatch(what):
            names = [(single[1], single[2] or single[1])]
        elif several := _IMPORTS.fullmatch(what):
            names = [(name.strip(), name.strip()) for name in several[1].split(",") if name.strip()]
        else:
            raise ValueError(f"%import {what}: only terminals of common can be imported")
        for name, alias in names:
            if name not in _COMMON:
                raise ValueError(f"%import common.{name}: there is no such terminal")
            self._bodies[alias] = [_Token("regex", f"/{_COMMON[name]}/")]

    # What is written.

    def written(self) -> tuple[Piece, str]:
        ignored = " | ".join(self._ignoring(body) for body in self._ignored)
        if ignored:
            self._lines.append(f"skip{self._suffix}: ({ignored})*")
        for name in self._bodies:
            self._define(name)
        for name, body in self._rules:
            self._lines.append(f"{self._name(name)}: {self._body(body)}")
        return Piece(f"r-start{self._suffix}"), "\n".join(self._lines)

    def _define(self, name: str) -> None:
        found = self._terminal(name)
        body = self._combined(self._bodies[name]) if found is None else _expression(found)
        self._lines.append(f"{self._name(name)}: {body}")

    def _combined(self, body: list[_Token]) -> str:
        """A terminal with & or ~, as one lexeme; without escapes that are none."""
        parts = []
        for token in _ranged(body):
            found = self._terminal(token.text) if token.kind == "terminal" else None
            if token.kind in _LEAVES:
                found = _leaf(token)
            if token.kind == "terminal" and found is None:
                parts.append(self._name(token.text))
            else:
                parts.append(token.text if found is None else f"/{found.regex or '()'}/")
        return f"({' '.join(parts)}) & /{ANY.regex}/"

    def _name(self, name: str) -> str:
        """Of a rule or terminal; a terminal with escapes becomes a rule."""
        if name.islower():
            return f"r-{name.lstrip('!?')}{self._suffix}"
        found = self._terminal(name)
        if found is not None and found.has_escapes:
            return f"t-{name.lower()}{self._suffix}"
        return name + self._suffix.upper()

    def _ignoring(self, body: list[_Token]) -> str:
        found = self._expansions(body)
        if found is None:
            raise ValueError("%ignore with & or ~ cannot stand in the grammar of a custom tool")
        return f"/{found.regex}/" if not found.has_escapes else found.end

    def _body(self, body: list[_Token]) -> str:
        """A rule's, with what is ignored before each lexeme."""
        parts = []
        skipped = f"skip{self._suffix} " if self._ignored else ""
        tokens = iter(_ranged(body))
        for token in tokens:
            match token.kind:
                case kind if kind in _LEAVES:
                    found = _leaf(token)
                    parts.append(f"({skipped}{_expression(found)})" if found != NOTHING else '""')
                case "terminal":
                    parts.append(f"({skipped}{self._name(token.text)})")
                case "rule":
                    parts.append(self._name(token.text))
                case _ if token.text == "->":
                    next(tokens)
                case kind if kind == "directive" or token.text[0] in "<@" or token.text == "::":
                    raise ValueError(f"{token.text} cannot stand in the rules of a custom tool's grammar")
                case _:
                    parts.append(token.text)
        return " ".join(parts)

    # Terminals.

    def _terminal(self, name: str) -> Quoted | None:
        if name not in self._known:
            self._known[name] = self._expansions(self._bodies[name])
        return self._known[name]

    def _expansions(self, body: list[_Token]) -> Quoted | None:
        """What a terminal matches; None for one with & or ~."""
        try:
            return _TerminalReader([*_ranged(body)], self._resolved).read()
        except _CannotSplit:
            return None

    def _resolved(self, name: str) -> Quoted:
        found = self._terminal(name)
        if found is None:
            raise _CannotSplit
        return found


class _CannotSplit(Exception):
    """A terminal is more than an expression."""


class _TerminalReader:
    """Reads what stands behind a terminal's name."""

    def __init__(self, tokens: list[_Token], resolved: Callable[[str], Quoted]) -> None:
        """`resolved`: what another terminal matches."""
        self._tokens = tokens
        self._resolved = resolved
        self._at = 0

    def read(self) -> Quoted:
        """Up to the end, or to the end of a group."""
        branches: list[list[Quoted]] = [[]]
        while token := self._next():
            match token.text:
                case ")" | "]":
                    break
                case "|":
                    branches.append([])
                case "->":
                    self._next()
                case _:
                    branches[-1].append(self._quantified(self._atom(token)))
        return either([sequence(branch) for branch in branches])

    def _next(self) -> _Token | None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        self._at += 1
        return token

    def _atom(self, token: _Token) -> Quoted:
        if token.kind == "terminal":
            return self._resolved(token.text)
        if token.kind != "mark":
            return _leaf(token)
        if token.text == "(":
            return self.read()
        if token.text == "[":
            return repeated(self.read(), "?")
        raise _CannotSplit

    def _quantified(self, part: Quoted) -> Quoted:
        texts = [token.text for token in self._tokens[self._at : self._at + 5]]
        if texts and texts[0] in ("*", "+", "?"):
            self._at += 1
            return repeated(part, texts[0])
        if texts and texts[0] == "{":
            length = texts.index("}") + 1
            self._at += length
            return repeated(part, "".join(texts[:length]))
        if len(texts) > 1 and texts[0] == "~" and texts[1].isdigit():
            is_range = texts[2:3] == [".."]
            self._at += 4 if is_range else 2
            return repeated(part, f"{{{texts[1]},{texts[3]}}}" if is_range else f"{{{texts[1]}}}")
        return part


def _statements(definition: str) -> Iterator[list[_Token]]:
    """The tokens of each rule, terminal and directive."""
    lines: list[list[_Token]] = [[]]
    for found in _TOKEN.finditer(definition):
        if found.lastgroup == "newline":
            lines.append([])
        elif found.lastgroup != "space":
            lines[-1].append(_Token(found.lastgroup or "", found[0]))
    statement: list[_Token] = []
    for line in filter(None, lines):
        is_new = line[0].kind == "directive" or (line[0].kind in ("rule", "terminal") and _Token("mark", ":") in line)
        if is_new and statement:
            yield statement
            statement = []
        statement += line
    if statement:
        yield statement


def _ranged(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """The tokens, each range of characters as one."""
    at = 0
    while at < len(tokens):
        if [token.text for token in tokens[at + 1 : at + 2]] == [".."] and tokens[at].kind == "string":
            first, last = (ord(_value(token.text)) for token in (tokens[at], tokens[at + 2]))
            yield _Token("range", rf"[\x{{{first:x}}}-\x{{{last:x}}}]")
            at += 3
        else:
            yield tokens[at]
            at += 1


def _leaf(token: _Token) -> Quoted:
    if token.kind == "string":
        return text(_value(token.text.removesuffix("i")), ignores_case=token.text.endswith("i"))
    if token.kind == "range":
        return quoted_regex(token.text)
    pattern, _, flags = token.text[1:].rpartition("/")
    return quoted_regex(pattern, flags)


def _value(string: str) -> str:
    """Of a string, which is one of JSON but for two-digit escapes."""
    value: str = json.loads(_SHORT_ESCAPE.sub(lambda found: rf"\u00{found[1]}" if found[1] else found[0], string))
    return value


_SHORT_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|.)")


def _expression(found: Quoted) -> str:
    """As a part of a rule: one lexeme where it may be."""
    if found == NOTHING:
        return '""'
    is_lexeme = not found.has_escapes or not can_go_on_with_escape(found.regex)
    return f"/{found.regex}/" if is_lexeme else found.end
