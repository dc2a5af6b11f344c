"""Fields that nobody documents are found wherever structs stand, and nowhere else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from langport.errors import InvalidRequest
from langport.wire import chat, completions, embeddings, tokens
from langport.wire.unknown import unknown_fields


class Cat(msgspec.Struct, tag="cat", tag_field="kind"):
    name: str
    kittens: list[Cat] = []


class Dog(msgspec.Struct, tag="dog", tag_field="kind"):
    barks: bool


class Zoo(msgspec.Struct, rename="camel"):
    the_animal: Cat | Dog | str | list[Cat] | None = None
    by_name: dict[str, Dog] = {}
    pair: tuple[Dog, ...] = ()
    free: dict[str, Any] = {}
    raw: msgspec.Raw = msgspec.Raw()


def found(known: type[msgspec.Struct], body: object) -> list[str]:
    return unknown_fields(msgspec.json.encode(body), known)


@pytest.mark.parametrize(
    ("known", "body", "names"),
    [
        (completions.CompletionRequest, {"prompt": [[1]], "a": 1, "b": {"x": 1}, "top_k": 2}, ["a", "b"]),
        (embeddings.EmbeddingRequest, {"input": "x", "top_k": 1}, ["top_k"]),
        (tokens.TokenizeRequest, {"messages": [{"role": "user", "content": "x", "mood": 1}]}, ["messages[0].mood"]),
        (
            chat.ChatRequest,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y", "z": 1}]},
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "args": 1}}], "foo": 0},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"any": {"x": 1}}, "bar": 1}}],
                "stream_options": {"include_usage": True, "x": None},
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"q": 1}, "s": 1}},
                "metadata": {"anything": "goes"},
                "prediction": {"type": "content", "content": "x", "y": 1},
                "chat_template_kwargs": {"free": {"too": 1}},
            },
            [
                "messages[0].content[1].z",
                "messages[1].tool_calls[0].function.args",
                "messages[1].foo",
                "tools[0].function.bar",
                "stream_options.x",
                "response_format.json_schema.s",
                "prediction.y",
            ],
        ),
        (chat.ChatRequest, {"tool_choice": "auto", "stop": ["x"], "stream_options": None}, []),
        (Zoo, {"theAnimal": {"kind": "cat", "name": "a", "barks": 1}}, ["theAnimal.barks"]),
        (Zoo, {"theAnimal": {"kind": "dog", "barks": True, "name": 1}}, ["theAnimal.name"]),
        (Zoo, {"theAnimal": [{"kind": "cat", "name": "a", "wings": 1}]}, ["theAnimal[0].wings"]),
        (Zoo, {"theAnimal": "text", "the_animal": 1}, ["the_animal"]),
        (
            Zoo,
            {"theAnimal": {"kind": "cat", "name": "a", "kittens": [{"kind": "cat", "name": "b", "x": 1}]}},
            ["theAnimal.kittens[0].x"],
        ),
        (Zoo, {"byName": {"rex": {"kind": "dog", "barks": True, "age": 3}}}, ["byName.rex.age"]),
        (Zoo, {"pair": [{"kind": "dog", "barks": True, "age": 3}]}, ["pair[0].age"]),
        (Zoo, {"free": {"x": {"y": 1}}, "raw": {"z": [1]}}, []),
    ],
)  # fmt: skip
def test_where_they_stand(known, body, names):
    assert found(known, body) == names
    msgspec.json.decode(msgspec.json.encode(body), type=known)  # decoding passes over them


def test_text_that_decoding_passed_over_unread_is_refused():
    body = b'{"messages":[{"role":"user","content":"x","foo":"\xff\xfe"}]}'
    with pytest.raises(InvalidRequest, match="UTF-8"):
        unknown_fields(body, chat.ChatRequest)
