"""`response_format`, `structured_outputs` and their older spellings become one grammar, checked before it is used.

What cannot be honoured is refused by name; there is no answer that follows only a part of what was asked.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from langport.errors import InvalidRequest
from langport.models.vocabulary import GrammarError, Vocabulary
from langport.text.grammar import (
    ANY_OBJECT,
    COMPACT,
    Piece,
    ebnf_grammar,
    grammar,
    json_value,
    literal,
    matching,
    one_of,
)
from langport.text.json_schema import with_exclusive_choices
from langport.text.tokenizer import Tokenizer
from langport.types import Grammar, ModelInfo
from langport.wire.generation import GenerationFields
from langport.wire.structured import ResponseFormat, StructuredOutputs

MAX_KNOWN = 1024
"""Grammars whose check is remembered."""

_FORMS = ("json", "regex", "choice", "grammar", "json_object")
"""Fields of `structured_outputs` that say what is wanted."""

Kind = Literal["schema", "regular expression", "choice", "grammar"]


@dataclass(frozen=True)
class Demand:
    """What a request wants its answers to look like."""

    kind: Kind
    param: str
    """The field that says so."""
    piece: Piece | None = None
    grammar: Grammar | None = None
    """Written by the user, where it is not one piece."""


def demand(fields: GenerationFields) -> Demand | None:
    """What the request asks for, if anything. Raises: InvalidRequest naming the field that is wrong or one too many."""
    found = [
        made
        for made in (
            _of_response_format(fields.response_format),
            _of_structured_outputs(fields.structured_outputs or StructuredOutputs(), "structured_outputs."),
            _of_structured_outputs(_older_fields(fields), "guided_"),
        )
        if made is not None
    ]
    if len(found) > 1:
        raise InvalidRequest(f"{found[1].param} and {found[0].param} exclude each other.", param=found[1].param)
    if not found and fields.structured_outputs is not None:
        raise InvalidRequest(
            "structured_outputs needs one of json, regex, choice, grammar and json_object.", param="structured_outputs"
        )
    return found[0] if found else None


def _of_response_format(wanted: ResponseFormat | None) -> Demand | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Demand("schema", "response_format", json_value(ANY_OBJECT))
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema with a name and a schema.",
            param="response_format.json_schema",
        )
    param = "response_format.json_schema.schema"
    return Demand("schema", param, _json_piece(wanted.json_schema.schema, None, param))


def _older_fields(fields: GenerationFields) -> StructuredOutputs:
    """The fields that vLLM had before `structured_outputs`."""
    return StructuredOutputs(
        json=fields.guided_json,
        regex=fields.guided_regex,
        choice=fields.guided_choice,
        grammar=fields.guided_grammar,
    )


def _of_structured_outputs(wanted: StructuredOutputs, prefix: str) -> Demand | None:
    """`prefix`: what stands before a field's name where the request has it."""
    for name in ("structural_tag", "disable_additional_properties"):
        if getattr(wanted, name):
            raise InvalidRequest(f"{prefix}{name} is not supported by this server; leave it out.", param=prefix + name)
    given = [name for name in _FORMS if getattr(wanted, name) not in (None, False)]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequest(f"{prefix}{given[1]} and {prefix}{given[0]} exclude each other.", param=prefix + given[1])
    (name,) = given
    param, value = prefix + name, getattr(wanted, name)
    match name:
        case "json":
            return Demand("schema", param, _json_piece(value, _whitespace(wanted), param))
        case "json_object":
            return Demand("schema", param, json_value(ANY_OBJECT, whitespace=_whitespace(wanted)))
        case "regex":
            return Demand("regular expression", param, matching(value))
        case "choice":
            return Demand("choice", param, one_of([literal(choice) for choice in value]))
    try:
        return Demand("grammar", param, grammar=ebnf_grammar(value))
    except ValueError as error:
        raise InvalidRequest(f"{param}: this grammar cannot be followed: {error}.", param=param) from error


def _whitespace(wanted: StructuredOutputs) -> str | None:
    return COMPACT if wanted.disable_any_whitespace else wanted.whitespace_pattern


def _json_piece(schema: dict[str, Any] | str, whitespace: str | None, param: str) -> Piece:
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{param} is not the text of a JSON Schema: {error}.", param=param) from error
    try:
        return json_value(with_exclusive_choices(schema), whitespace=whitespace)
    except RecursionError:
        raise InvalidRequest(f"{param}: this schema is nested too deeply.", param=param) from None


class GrammarChecker:
    """Compiles grammars as the engine will, in a thread; remembers how it went."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    async def check(self, wanted: Demand, info: ModelInfo, *, begins_text: bool) -> Grammar:
        """The grammar for the engine. `begins_text`: the answer does not go on in the middle of the prompt's text.

        Raises: InvalidRequest saying what in it cannot be honoured.
        """
        made = wanted.grammar
        if wanted.piece is not None:
            made = grammar(wanted.piece, may_begin_with_space=begins_text and self._tokenizer.hides_first_space)
        assert made is not None
        key = blake2b(made.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._known:
            loop = asyncio.get_running_loop()
            self._known[key] = await loop.run_in_executor(self._thread, self._problem, made, info)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        problem = self._known[key]
        if problem is not None:
            shown = problem if wanted.kind == "grammar" else _without_place(problem)
            raise InvalidRequest(f"{wanted.param}: this {wanted.kind} cannot be followed: {shown}.", param=wanted.param)
        return made

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "langport-grammar-check")

    def _problem(self, made: Grammar, info: ModelInfo) -> str | None:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokenizer, info.vocab_size, info.eos_token_ids)
        try:
            self._vocabulary.compile(made)
        except GrammarError as error:
            return str(error)
        return None


def _without_place(problem: str) -> str:
    """llguidance's message about a piece that the user did not write as Lark, without the place in the Lark."""
    problem = problem.partition("\n   1 | ")[0]
    return problem.rpartition("failed to compile JSON schema: ")[2]
