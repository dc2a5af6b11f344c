"""`response_format` and its kin over the fake engine: which grammar reaches the engine, and what is refused by name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from langport.errors import ApiError, InvalidRequest
from langport.models.vocabulary import Vocabulary
from langport.testing import EOS, byte_tokenizer
from langport.text.tokenizer import Tokenizer
from langport.types import Grammar

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def accepts(grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    tokenizer = byte_tokenizer()
    matcher = Vocabulary(tokenizer, tokenizer.vocab_size, (EOS,)).compile(grammar)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


@pytest.fixture(params=["chat", "complete"])
def asked(serve, says, request):
    """The grammar that reaches the engine when either endpoint is asked with these fields."""

    async def ask(**fields: Any) -> Grammar | None:
        fake = serve(says("x"))
        await getattr(fake, request.param)(**fields)
        found = fake.engine.requests[0].sampling.grammar
        assert found is None or isinstance(found, Grammar)
        return found

    return ask


async def test_without_a_wish_there_is_no_grammar(asked):
    assert await asked() is None
    assert await asked(response_format={"type": "text"}) is None
    assert await asked(response_format=None, structured_outputs=None, guided_json=None) is None


async def test_json_object(asked):
    grammar = await asked(response_format={"type": "json_object"})
    assert accepts(grammar, '{"a": [1, 2.5, {"b": null}]}')
    assert not accepts(grammar, "[1]")
    assert not accepts(grammar, "{" + "\n" * 3 + "}")


@pytest.mark.parametrize("strict", [True, False, None])
async def test_json_schema(asked, strict):
    grammar = await asked(response_format=json_schema(POINT, strict=strict))
    assert accepts(grammar, '{"x": 1, "y": -2}')
    assert not accepts(grammar, '{"x": 1}')
    assert not accepts(grammar, '{"x": 1, "y": 2, "z": 3}')


@pytest.mark.parametrize(
    ("wish", "good", "bad"),
    [
        ({"json": POINT}, '{"x":1,"y":2}', '{"x":1}'),
        ({"json": '{"type": "integer"}'}, "12", "1.5"),
        ({"json": POINT, "disable_any_whitespace": True}, '{"x":1,"y":2}', '{"x": 1,"y":2}'),
        ({"json": POINT, "whitespace_pattern": "[ ]{3}"}, '{"x":   1,"y":2}', '{"x": 1,"y":2}'),
        ({"json": POINT, "whitespace_pattern": ""}, '{"x":1,"y":2}', '{"x": 1,"y":2}'),
        ({"json_object": True}, "{}", "[]"),
        ({"regex": "[ab]{2}", "json": None, "disable_fallback": True}, "ab", "abc"),
        ({"choice": ["yes", "no"]}, "yes", "maybe"),
        ({"choice": ['"', "\\", "/"]}, '"', "//"),
        ({"grammar": 'start: "a" B\nB: /b+/'}, "abb", "a"),
        ({"grammar": 'root ::= "a" [0-9]+'}, "a12", "a"),
    ],
)
async def test_structured_outputs(asked, wish, good, bad):
    grammar = await asked(structured_outputs=wish)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"guided_json": POINT}, '{"x":1,"y":2}', "{}"),
        ({"guided_json": '{"const": "é"}'}, '"é"', '"e"'),
        ({"guided_regex": r"\d"}, "7", "77"),
        ({"guided_choice": ["a", "b"]}, "b", "c"),
        ({"guided_grammar": 'start: "x"'}, "x", "y"),
    ],
)
async def test_older_spellings(asked, fields, good, bad):
    grammar = await asked(**fields)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema",
        "schema",
    ),
    ({"response_format": json_schema({"type": "strnig"})}, "response_format.json_schema.schema", "strnig"),
    (
        {"response_format": json_schema({"properties": {"a": {"type": "array", "uniqueItems": True}}})},
        "response_format.json_schema.schema",
        "uniqueItems",
    ),
    (
        {"response_format": json_schema({"not": {"type": "string"}}, strict=False)},
        "response_format.json_schema.schema",
        '"not"',
    ),
    ({"response_format": json_schema({"if": {}, "then": {}})}, "response_format.json_schema.schema", '"if"'),
    ({"response_format": json_schema({"$ref": "#/$defs/x"})}, "response_format.json_schema.schema", "/$defs/x"),
    ({"response_format": json_schema({"$ref": "#"})}, "response_format.json_schema.schema", "no text follows it"),
    (
        {"response_format": json_schema({"type": "string", "format": "iri"})},
        "response_format.json_schema.schema",
        "iri",
    ),
    (
        {"response_format": json_schema({"type": "integer", "minimum": 3, "maximum": 2})},
        "response_format.json_schema.schema",
        "minimum",
    ),
    (
        {"response_format": json_schema({"type": "string", "pattern": "(?=a)"})},
        "response_format.json_schema.schema",
        "look-around",
    ),
    (
        {"response_format": json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]})},
        "response_format.json_schema.schema",
        "oneOf",
    ),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs.regex",
        "exclude",
    ),
    ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex", "exclude"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "exclude"),
    ({"structured_outputs": {}}, "structured_outputs", "needs one of"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", "needs one of"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "exclude"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"regex": "a(?!b)"}}, "structured_outputs.regex", "look-around"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "length"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "str"),
    ({"structured_outputs": {"grammar": 'start: "a" | foo'}}, "structured_outputs.grammar", "foo"),
    ({"structured_outputs": {"grammar": 'x: "a"'}}, "structured_outputs.grammar", "start"),
    ({"structured_outputs": {"grammar": "root ::= foo"}}, "structured_outputs.grammar", "foo"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "JSON"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "object"),
    ({"structured_outputs": {"json": {"contains": {}}}}, "structured_outputs.json", "contains"),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": "("}}, "structured_outputs.json", "regex"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
    (
        {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
        "not supported",
    ),
    ({"structured_outputs": {"json": {}, "further": 1}}, "structured_outputs", "further"),
    ({"guided_json": {"propertyNames": {}}}, "guided_json", "propertyNames"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
@pytest.mark.parametrize("endpoint", ["chat", "complete"])
async def test_what_cannot_be_honoured_is_refused_by_name(serve, endpoint, fields, param, words):
    fake = serve()
    with pytest.raises(ApiError) as error:
        await getattr(fake, endpoint)(**fields)
    assert isinstance(error.value, InvalidRequest)
    assert (error.value.status, error.value.param) == (400, param)
    assert words in error.value.message
    assert "x-guidance" not in error.value.message
    assert fake.engine.requests == []


async def test_a_deep_schema_is_refused(serve):
    fake = serve()
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequest, match=r"recursion|nested"):
        await fake.chat(response_format=json_schema(schema))


async def test_a_model_without_the_characters_is_told_so(serve):
    """Its tokens are the bytes below 123, so that no brace is among them."""
    fake = serve()
    fake.engine.info = msgspec.structs.replace(fake.info, vocab_size=123, eos_token_ids=(0,))
    with pytest.raises(InvalidRequest, match="no token that one begins with"):
        await fake.complete(prompt="abc", response_format={"type": "json_object"})


async def test_other_requests_go_on_while_a_schema_is_compiled(serve, says):
    fake = serve(says("x"))
    large = {"properties": {f"property_{n}": {"type": "string", "maxLength": n} for n in range(1500)}}
    slow = asyncio.create_task(
        fake.client.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "response_format": json_schema(large)},
        )
    )
    await asyncio.sleep(0)
    await fake.chat()
    assert not slow.done()
    await slow
    assert fake.engine.requests[1].sampling.grammar is not None


async def test_a_schema_is_compiled_once(serve, says, monkeypatch):
    compiled: list[Grammar] = []
    compile = Vocabulary.compile

    def counting(self, grammar):
        compiled.append(grammar)
        return compile(self, grammar)

    monkeypatch.setattr(Vocabulary, "compile", counting)
    fake = serve(says("x"))
    for _ in range(3):
        await fake.chat(response_format=json_schema(POINT))
        with pytest.raises(InvalidRequest):
            await fake.chat(guided_regex="(")
    assert len(compiled) == 2


async def test_a_tokenizer_that_hides_the_first_space(serve, says, monkeypatch):
    """Its first token may have one, unless the answer goes on in the prompt's text."""
    monkeypatch.setattr(Tokenizer, "hides_first_space", True)
    fake = serve(says("x"))
    await fake.chat(guided_choice=["yes"])
    await fake.chat(
        guided_choice=["yes"], continue_final_message=True, messages=[{"role": "assistant", "content": "a"}]
    )
    await fake.complete(guided_choice=["yes"])
    chat, continued, completion = (request.sampling.grammar for request in fake.engine.requests)
    assert [accepts(grammar, "yes") for grammar in (chat, continued, completion)] == [True, True, True]
    assert [accepts(grammar, " yes") for grammar in (chat, continued, completion)] == [True, False, False]
