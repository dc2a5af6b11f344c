"""Regular expressions as those of the same texts between the quotes of a JSON string.

There a quote, a backslash and each control character stand as two or six characters that begin with a backslash; all
others stand as they are. The syntax is that of Rust's regex crate, and llguidance says which characters a class holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

ESCAPES = {chr(code): json.dumps(chr(code))[1:-1] for code in (*range(0x20), ord('"'), ord("\\"))}
"""How the characters that cannot stand in a string as they are do stand there."""
_OTHERS = r'[^"\\\x00-\x1f]'

_ATOM = re.compile(
    r"""\\(?:[pPxuU]\{[^}]*\}|[pP].|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)  # an escape
    | \((?:\?(?:P?<\w+>|(?P<flags>[a-zA-Z-]*)(?P<scope>[:)])))?  # a group's beginning, or flags
    | [^\\]""",
    re.VERBOSE | re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\}|\{,\d+\})")
_ASSERTIONS = ("^", "$", r"\b", r"\B", r"\A", r"\z")


_MAX_LEXER_STATES = 1000
"""Of one question about an expression; where that is too few, the answer is the careful one."""


@dataclass(frozen=True)
class Quoted:
    """What an expression matches, as it stands in a JSON string."""

    regex: str
    rule: str
    """The same as a part of a rule, in which each character with an escape is a lexeme of its own."""
    has_escapes: bool = False
    tail: str = ""
    """`rule` where nothing follows, so that a run of characters may be one lexeme."""
    plain: str | None = None
    """Of a single character: the expression of those that stand as they are, if there are any."""
    escapes: frozenset[str] | None = None
    """Of a single character: those that do not; None for all other expressions."""

    @property
    def end(self) -> str:
        return self.tail or self.rule


NOTHING = Quoted("", '""')


def text(value: str, *, ignores_case: bool = False) -> Quoted:
    """A fixed text."""
    flags = "i" if ignores_case else ""
    return sequence([_characters(re.escape(character).replace("/", r"\/"), {character}, flags) for character in value])


def sequence(parts: Sequence[Quoted]) -> Quoted:
    """One after the other; neighbours without escapes are one lexeme."""
    merged: list[Quoted] = []
    for part in parts:
        if part == NOTHING:
            continue
        if merged and not part.has_escapes and not merged[-1].has_escapes:
            merged[-1] = _without_escapes(merged[-1].regex + part.regex)
        else:
            merged.append(part)
    if len(merged) < 2:
        return merged[0] if merged else NOTHING
    tail = " ".join([*(part.rule for part in merged[:-1]), merged[-1].end])
    return Quoted(
        "".join(part.regex for part in merged), f"({' '.join(part.rule for part in merged)})", True, f"({tail})"
    )


def either(parts: Sequence[Quoted]) -> Quoted:
    """Any one of them; a choice of single characters is a single character."""
    if len(parts) == 1:
        return parts[0]
    if all(part.escapes is not None for part in parts):
        plain = [part.plain for part in parts if part.plain is not None]
        escapes = frozenset[str]().union(*(part.escapes or () for part in parts))
        return _single(f"(?:{'|'.join(plain)})" if plain else None, escapes)
    regex = f"(?:{'|'.join(part.regex for part in parts)})"
    if not any(part.has_escapes for part in parts):
        return _without_escapes(regex)
    rule, tail = (" | ".join(texts) for texts in ([p.rule for p in parts], [p.end for p in parts]))
    return Quoted(regex, f"({rule})", True, f"({tail})")


def repeated(part: Quoted, quantifier: str) -> Quoted:
    """`quantifier`: as in an expression."""
    regex = f"(?:{part.regex}){quantifier}"
    if not part.has_escapes:
        return _without_escapes(regex)
    tail = ""
    if part.plain is not None and part.escapes is not None and quantifier in "*+":
        tail = f"(/{part.plain}+/ | /{_escaped(part.escapes)}/){quantifier}"
    return Quoted(regex, f"{part.rule}{quantifier}", True, tail)


def _without_escapes(regex: str) -> Quoted:
    return Quoted(regex, f"/{regex}/")


def _single(plain: str | None, escapes: frozenset[str]) -> Quoted:
    """One character out of a class."""
    parts = [part for part in (plain, _escaped(escapes) if escapes else None) if part is not None]
    rule = "(" + " | ".join(f"/{part}/" for part in parts) + ")"
    return Quoted(f"(?:{'|'.join(parts)})", rule, bool(escapes), plain=plain, escapes=escapes)


def _escaped(characters: frozenset[str]) -> str:
    """An expression for the escapes of these characters."""
    short = sorted(re.escape(escape[1]) for escape in map(ESCAPES.__getitem__, characters) if len(escape) == 2)
    long = sorted(escape[4:] for escape in map(ESCAPES.__getitem__, characters) if len(escape) > 2)
    parts = [f"[{''.join(short)}]"] if short else []
    for first in ("0", "1"):
        if seconds := "".join(pair[1] for pair in long if pair[0] == first):
            parts.append(f"u00{first}[{seconds}]")
    return rf"\\(?-i:{'|'.join(parts)})"


def _characters(atom: str, known: set[str] | None, flags: str) -> Quoted:
    """One character that an atom of an expression matches. `known`: those it can be, where it is a literal."""
    wrapped = f"(?{flags}:{atom})" if flags else atom
    if known is None:
        codes, has_others = _members(wrapped)
        escapes = frozenset(map(chr, codes)) & ESCAPES.keys()
    else:
        escapes, has_others = frozenset(known & ESCAPES.keys()), not known <= ESCAPES.keys()
    if not escapes:
        return Quoted(wrapped, f"/{wrapped}/", plain=wrapped, escapes=escapes)
    inner = _OTHERS if atom == "." else f"[{atom}&&{_OTHERS}]"
    return _single((f"(?{flags}:{inner})" if flags else inner) if has_others else None, escapes)


@lru_cache(4096)
def _members(atom: str) -> tuple[frozenset[int], bool]:
    """The ASCII characters that an expression of one character matches, and whether it matches any without escape."""
    first = _first_bytes(f"start: /{atom}/") or frozenset()
    return frozenset(byte for byte in first if byte < 0x80), any(chr(byte) not in ESCAPES for byte in first)


def can_go_on_with_escape(regex: str) -> bool:
    """Whether a text that an expression matches can go on with an escape, and be matched again or still."""
    further = _first_bytes(f"start: A\nA: (/{regex}/ /\\\\(?s:.)+/) & /{regex}/")
    return further is None or bool(further)


def _first_bytes(grammar: str) -> frozenset[int] | None:
    """Those that a text of the grammar can begin with; None where that is too hard to say."""
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    matcher = llguidance.LLMatcher(_byte_tokens(), grammar, log_level=0, limits=limits)
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        return frozenset() if "NoExtension" in matcher.get_error() else None
    return frozenset(byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1)


@lru_cache(1)
def _byte_tokens() -> LLTokenizer:
    import llguidance

    return llguidance.LLTokenizer("byte")


def quoted_regex(pattern: str, flags: str = "") -> Quoted:
    """The texts of a whole expression. Raises: ValueError for what cannot be taken apart."""
    return _Reader(pattern).read(flags)


class _Reader:
    """Reads one expression, which is known to be well-formed."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self, flags: str) -> Quoted:
        """Up to the end, or to the end of a group."""
        branches: list[list[Quoted]] = [[]]
        while self._at < len(self._pattern):
            if "x" in flags:
                raise ValueError("the flag x of a regular expression is not known here")
            character = self._pattern[self._at]
            if character in "|)":
                self._at += 1
                if character == ")":
                    break
                branches.append([])
                continue
            found = _ATOM.match(self._pattern, self._at)
            assert found is not None
            if found["scope"] == ")":
                self._at = found.end()
                flags = _changed(flags, found["flags"])
                continue
            branches[-1].append(self._quantified(self._atom(found, flags)))
        return either([sequence(branch) for branch in branches])

    def _atom(self, found: re.Match[str], flags: str) -> Quoted:
        atom = found[0]
        self._at = found.end()
        if atom.startswith("("):
            return self.read(_changed(flags, found["flags"] or ""))
        if atom in _ASSERTIONS:
            return _without_escapes(atom)
        if atom == "[":
            return _characters(self._class(), None, flags)
        if atom == "." or (atom.startswith("\\") and atom[1].isalnum()):
            return _characters(atom, None, flags)
        return _characters(atom, {atom[-1]}, flags)

    def _class(self) -> str:
        """The rest of a class, other classes in it included."""
        start, depth = self._at - 1, 1
        self._at += self._pattern.startswith("^", self._at)
        self._at += self._pattern.startswith("]", self._at)
        while depth:
            character = self._pattern[self._at]
            depth += (character == "[") - (character == "]")
            self._at += 2 if character == "\\" else 1
        return self._pattern[start : self._at]

    def _quantified(self, part: Quoted) -> Quoted:
        while found := _QUANTIFIER.match(self._pattern, self._at):
            self._at = found.end()
            part = repeated(part, found[0])
        return part


ANY = repeated(_single(_OTHERS, frozenset(ESCAPES)), "*")
"""Any text."""


def _changed(flags: str, change: str) -> str:
    added, _, removed = change.partition("-")
    return "".join(sorted({*flags, *added} - {*removed}))
