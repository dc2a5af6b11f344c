"""What the answers of a turn have to look like: reasoning, then calls of tools, text, or what the request wants.

Calls that a request requires follow their function's schema, and so do those that the model makes of its own accord
where a function is strict, from their mark on. Reasoning is free; what a request wants begins behind it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from langport.api.model import ServedModel
from langport.api.structured import Demand, demand, schema_piece
from langport.errors import InvalidRequest
from langport.text.grammar import ANY_TEXT, Piece, grammar, literal, matching, one_of, optional, sequence, token
from langport.text.literal_calls import ID, CallLayout
from langport.text.quoted_grammar import quoted_grammar
from langport.text.tokenizer import Tokenizer
from langport.text.tools import INPUT, CustomInput, FunctionTool
from langport.text.written_arguments import written_arguments
from langport.types import Grammar, ModelInfo

if TYPE_CHECKING:
    from langport.api.turn import TurnRequest

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_NEW_ID = "[a-zA-Z0-9]{9}"


async def turn_grammar(turn: TurnRequest, prompt: str, model: ServedModel, info: ModelInfo) -> Grammar | None:
    """The grammar for the engine, compiled once to see that it can be followed; None where the answers are free.

    `prompt`: its text. Raises: InvalidRequest naming the field that asks for what cannot be followed.
    """
    answers, tools = model.answer_format, turn.callable_tools
    await _check_inputs(tools, model, info)
    is_required = turn.tool_choice.mode == "required"
    layout = answers.writing(tools)
    is_strict = any(tool.strict for tool in tools) and layout.marker is not None
    reasoning = answers.reasoning_state(prompt, continues=turn.continues_last)
    begins_text = not turn.continues_last
    wanted = None if is_required else demand(turn.fields)
    is_direct = not is_required and not is_strict and reasoning == "none"
    checked = None
    if wanted is not None:
        checked = await model.grammars.check(wanted, info, begins_text=is_direct and begins_text)
    if is_direct or not (is_required or is_strict or checked):
        return checked
    rules = _Rules(model.tokenizer)
    if is_required:
        body = _calls(rules, tools, layout, turn)
    elif is_strict:
        body = _calls_or_text(rules, tools, layout, turn, checked)
    else:
        assert checked is not None
        body = rules.nested(checked)
    if reasoning != "none":
        assert answers.reasoning is not None
        thinking = rules.up_to(answers.reasoning.end)
        if reasoning == "possible":
            thinking = optional(sequence(rules.spelled(answers.reasoning.begin), thinking))
        body = sequence(thinking, optional(matching("\n{1,2}")), body)
    made = rules.grammar(body, hides_first_space=begins_text and model.tokenizer.hides_first_space)
    param = wanted.param if wanted and not is_strict else turn.tools_param
    return await model.grammars.check(Demand("schema", param, grammar=made), info, begins_text=False)


class _Rules:
    """A grammar under construction: the rules that its pieces name, and texts spelled with the tokenizer's marks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rules: list[str] = []
        self._special = {tokenizer.backend.id_to_token(token_id): token_id for token_id in tokenizer.special_ids}
        marks = "|".join(re.escape(mark) for mark in sorted(self._special, key=len, reverse=True))
        self._marks = re.compile(f"({marks}|{ID})" if marks else f"({ID})")

    def grammar(self, start: Piece, *, hides_first_space: bool) -> Grammar:
        begun = grammar(start, hides_first_space=hides_first_space)
        return msgspec.structs.replace(begun, text="\n".join([begun.text, *self._rules]))

    def is_special(self, text: str) -> bool:
        """Whether the text begins with a special token, which no other text spells."""
        found = self._marks.match(text)
        return found is not None and found[0] != ID

    def spelled(self, text: str) -> Piece:
        """A text with special tokens as such, and a fresh id where one belongs."""
        parts = [self._part(part) for part in self._marks.split(text) if part]
        return sequence(*parts)

    def _part(self, part: str) -> Piece:
        if part == ID:
            return matching(_NEW_ID)
        return token(self._special[part]) if part in self._special else literal(part)

    def up_to(self, mark: str) -> Piece:
        """Any text up to the mark, and that."""
        if self.is_special(mark):
            return sequence(ANY_TEXT, self.spelled(mark))
        return self._add("before", f"[suffix={literal(mark)}]: {ANY_TEXT}")

    def without(self, mark: str) -> Piece:
        """Any text that does not hold the mark."""
        if self.is_special(mark):
            return ANY_TEXT
        return self._add("TEXT", f": {ANY_TEXT} & ~({ANY_TEXT} {literal(mark)} {ANY_TEXT})")

    def nested(self, whole: Grammar) -> Piece:
        """A whole grammar as a part of this one."""
        return self._add("answer", f": %lark {{\n{whole.text}\n}}")

    def quoted(self, input: CustomInput) -> Piece:
        """What follows a Lark grammar, as it stands between the quotes of a JSON string."""
        start, rules = quoted_grammar(input.definition)
        if rules not in self._rules:  # several tools may have one grammar
            self._rules.append(rules)
        return start

    def _add(self, name: str, rule: str) -> Piece:
        name = f"{name}{len(self._rules)}" if name.islower() else f"{name}_{len(self._rules)}"
        self._rules.append(name + rule)
        return Piece(name)


async def _check_inputs(tools: Sequence[FunctionTool], model: ServedModel, info: ModelInfo) -> None:
    """Raises: InvalidRequest naming the grammar of a custom tool that cannot be followed."""
    for tool in tools:
        if tool.custom is None or tool.custom.syntax is None:
            continue
        wanted = Demand("grammar", tool.custom.param, grammar=Grammar(tool.custom.definition))
        if tool.custom.syntax == "regex":
            wanted = Demand("regular expression", tool.custom.param, matching(tool.custom.definition))
        await model.grammars.check(wanted, info, begins_text=False)
        if tool.custom.syntax == "lark":
            try:
                await asyncio.to_thread(quoted_grammar, tool.custom.definition)  # kept there for `_Rules`
            except ValueError as error:
                param = tool.custom.param
                raise InvalidRequest(f"{param}: this grammar cannot be followed: {error}.", param=param) from error


def _calls(rules: _Rules, tools: Sequence[FunctionTool], layout: CallLayout, turn: TurnRequest) -> Piece:
    """One call or several."""
    return sequence(rules.spelled(layout.before_name), _behind_begin(rules, tools, layout, turn))


def _behind_begin(rules: _Rules, tools: Sequence[FunctionTool], layout: CallLayout, turn: TurnRequest) -> Piece:
    """From the name of the first call to the end of the last."""
    call = sequence(
        one_of([_named(rules, tool, layout, turn) for tool in tools]),
        rules.spelled(layout.after_arguments),
    )
    end = [rules.spelled(layout.end)] if layout.end else []
    if not layout.next_name or not turn.parallel_tool_calls:
        return sequence(call, *end)
    further = sequence(rules.spelled(layout.next_name), call)
    return sequence(call, Piece(f"{further}*"), *end)


def _named(rules: _Rules, tool: FunctionTool, layout: CallLayout, turn: TurnRequest) -> Piece:
    if layout.arguments is not None:
        before = rules.spelled(tool.name + layout.before_arguments)
        written = written_arguments(
            tool, layout.arguments, rules.spelled, lambda schema: schema_piece(schema, turn.tools_param), rules.up_to
        )
        return before if written is None else sequence(before, written)
    return sequence(rules.spelled(tool.name + layout.before_arguments), _arguments(rules, tool, turn))


def _arguments(rules: _Rules, tool: FunctionTool, turn: TurnRequest) -> Piece:
    """As one JSON object."""
    schema = _closed(tool.parameters or _NO_PARAMETERS)
    if tool.custom is None or tool.custom.syntax is None:
        return schema_piece(schema, turn.tools_param)
    if tool.custom.syntax == "regex":
        text = {"type": "string", "pattern": f"^(?:{tool.custom.definition})$"}
        return schema_piece({**schema, "properties": {INPUT: text}}, tool.custom.param)
    return sequence(literal(f'{{"{INPUT}": "'), rules.quoted(tool.custom), literal('"}'))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of arguments without properties that it does not name, unless it says something of them."""
    says_more = (
        "additionalProperties",
        "patternProperties",
        "unevaluatedProperties",
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
    )
    if "properties" not in schema or any(keyword in schema for keyword in says_more):
        return schema
    return {**schema, "additionalProperties": False}


def _calls_or_text(
    rules: _Rules, tools: Sequence[FunctionTool], layout: CallLayout, turn: TurnRequest, wanted: Grammar | None
) -> Piece:
    """Calls behind their mark, with any text before them, or an answer without it: what is wanted, or any text."""
    marker = layout.marker or ""
    rest = layout.before_name.lstrip()[len(marker) :]
    behind = _behind_begin(rules, tools, layout, turn)
    calls = sequence(rules.spelled(rest), behind) if rest else behind
    if wanted is not None:
        return one_of([sequence(rules.spelled(marker), calls), rules.nested(wanted)])
    return one_of([rules.without(marker), sequence(rules.up_to(marker), calls)])
