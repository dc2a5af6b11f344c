"""Request bodies that nobody should send: what is right but for one value, at every path; and what is hardly JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHAT, TEXT2TEXT, EMBED = "langport-demo-chat", "langport-demo-text2text", "langport-demo-embed"
CLASSIFIER = "classifier"

_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": _PARAMETERS, "strict": False}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
_CUSTOM_CALL = {"id": "call_1", "type": "custom", "custom": {"name": "sky", "input": "up"}}
_GRAMMAR = {"syntax": "lark", "definition": r'start: /[a-z]+/ "\n"'}
_SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 1,
    "stop": ["\n"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"50": 1},
    "top_k": 5,
    "min_p": 0.1,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "stop_token_ids": [3],
    "bad_words": ["zebra"],
    "allowed_token_ids": [40, 41, 42, 50],
    "min_tokens": 1,
    "truncate_prompt_tokens": 20,
    "priority": 1,
    "cache_salt": "s",
    "prompt_logprobs": 1,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "user": "u",
    "n": 2,
}
_SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": _PARAMETERS, "strict": True}}

GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "model": CHAT,
            "max_tokens": 2,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "name": "me", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            ],
            "tools": [{"type": "function", "function": _FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
            "logprobs": True,
            "top_logprobs": 2,
            "metadata": {"a": "b"},
            "store": True,
            "chat_template_kwargs": {"a": 1},
            "reasoning_effort": "low",
        },
        {
            "model": CHAT,
            "max_completion_tokens": 2,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True, "include_obfuscation": False},
            "response_format": _SCHEMA_FORMAT,
        },
        {"model": CHAT, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}], **_SAMPLING},
        {
            "model": CHAT,
            "max_tokens": 2,
            "messages": [{"role": "user", "content": "Hello"}],
            "functions": [_FUNCTION],
            "function_call": {"name": "weather"},
        },
        {
            "model": CHAT,
            "max_tokens": 2,
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": None, "tool_calls": [_CUSTOM_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            ],
            "tools": [
                {"type": "custom", "custom": {"name": "sky", "format": {"type": "grammar", "grammar": _GRAMMAR}}}
            ],
            "tool_choice": {"type": "custom", "custom": {"name": "sky"}},
        },
    ],
    "/v1/completions": [
        {"model": CHAT, "prompt": "one, two,", "max_tokens": 2, "logprobs": 1, "echo": True, **_SAMPLING},
        {"model": TEXT2TEXT, "prompt": ["say 7", "say 8"], "max_tokens": 2, "stream": True},
        {"model": CHAT, "prompt": [[3, 4], [5]], "max_tokens": 2, "best_of": 2, "use_beam_search": True},
        {"model": CHAT, "prompt": "a", "max_tokens": 4, "structured_outputs": {"choice": ["yes", "no"]}},
        {"model": CHAT, "prompt": "a", "max_tokens": 4, "guided_regex": "[a-c]{2}"},
        {"model": CHAT, "prompt": "a", "max_tokens": 4, "structured_outputs": {"json": _PARAMETERS}},
    ],
    "/v1/responses": [
        {
            "model": CHAT,
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "Rain."},
            ],
            "instructions": "Be brief.",
            "max_output_tokens": 16,
            "tools": [{"type": "function", **_FUNCTION}],
            "tool_choice": {"type": "function", "name": "weather"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "metadata": {"a": "b"},
            "reasoning": {"effort": "low", "summary": "auto"},
        },
        {
            "model": CHAT,
            "input": [
                {"type": "message", "role": "user", "content": "Hello"},
                {"type": "custom_tool_call", "call_id": "c", "name": "sky", "input": "up"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "Rain."},
            ],
            "max_output_tokens": 16,
            "tools": [{"type": "custom", "name": "sky", "description": "d", "format": {"type": "grammar", **_GRAMMAR}}],
            "tool_choice": {"type": "custom", "name": "sky"},
        },
        {
            "model": CHAT,
            "input": "Hello",
            "max_output_tokens": 16,
            "stream": True,
            "store": False,
            "truncation": "auto",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": _PARAMETERS, "strict": True}},
            "previous_response_id": None,
            "background": False,
        },
    ],
    "/v1/responses/input_tokens": [
        {"model": CHAT, "input": "Hello", "instructions": "Be brief.", "truncation": "auto"}
    ],
    "/v1/decisions": [
        {
            "model": CHAT,
            "input": "The train was late.",
            "questions": [
                {"type": "predicate", "instructions": "The customer is content."},
            ],
        }
    ],
    "/v1/embeddings": [
        {"model": EMBED, "input": ["a", "b"], "encoding_format": "base64", "dimensions": 16, "user": "u"},
        {"model": EMBED, "input": [[3, 4], [5]], "truncate_prompt_tokens": 2},
    ],
    "/v1/rerank": [
        {
            "model": EMBED,
            "query": "a",
            "documents": ["b", {"text": "c"}, {"content": [{"type": "text", "text": "d"}]}],
            "top_n": 2,
            "return_documents": True,
            "max_tokens_per_doc": 3,
            "truncate_prompt_tokens": 8,
            "truncation_side": "left",
            "use_activation": False,
            "user": "u",
        },
        {"model": CLASSIFIER, "query": "a", "documents": ["b", "c"], "truncate_prompt_tokens": -1},
    ],
    "/v1/score": [
        {"model": CLASSIFIER, "text_1": "a", "text_2": ["b", "c"], "activation": True, "softmax": True},
        {"model": EMBED, "queries": ["a", "b"], "documents": ["b", "c"]},
    ],
    "/v1/classify": [
        {"model": CLASSIFIER, "input": ["a", "b"], "use_activation": True, "add_special_tokens": True},
        {"model": CLASSIFIER, "input": [[3, 4], [5]], "truncate_prompt_tokens": 1},
    ],
    "/v1/messages": [
        {
            "model": CHAT,
            "max_tokens": 2,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "Rain."}]},
            ],
            "tools": [{"name": "weather", "description": "Of a city.", "input_schema": _PARAMETERS}],
            "tool_choice": {"type": "auto"},
            "temperature": 0.5,
            "stop_sequences": ["\n"],
            "metadata": {"user_id": "u"},
            "thinking": {"type": "disabled"},
            "stream": True,
        }
    ],
    "/v1/messages/count_tokens": [
        {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "system": "Be brief."}
    ],
    "/tokenize": [
        {"model": CHAT, "prompt": "Hello", "add_special_tokens": True, "return_token_strs": True},
        {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": True},
    ],
    "/detokenize": [{"model": CHAT, "tokens": [3, 4, 5]}],
    "/v1/load_lora_adapter": [{"lora_name": "x", "lora_path": "/nowhere", "base_model_name": CHAT}],
    "/v1/unload_lora_adapter": [{"lora_name": "x"}],
    "/v1/uploads": [
        {
            "bytes": 6,
            "filename": "in.jsonl",
            "mime_type": "text/jsonl",
            "purpose": "batch",
            "expires_after": {"anchor": "created_at", "seconds": 3600},
        }
    ],
    "/v1/uploads/upload-x/complete": [{"part_ids": ["part-x"], "md5": "0" * 32}],
    "/v1/batches": [
        {
            "input_file_id": "file-x",
            "endpoint": "/v1/completions",
            "completion_window": "24h",
            "metadata": {"a": "b"},
        }
    ],
    "/v1/chat/completions/chatcmpl-x": [{"metadata": {"a": "b"}}],
}
"""What is right, by path; together they have every kind of value that requests have."""

_DEPTH = 400
"""Levels that a decoder still takes."""
WRONG: dict[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "a fraction": "1.5",
    "2^31": "2147483648",
    "2^63": "9223372036854775808",
    "-2^63-1": "-9223372036854775809",
    "2^64": "18446744073709551616",
    "thirty digits": "1" + "0" * 30,
    "a largest float": "1.7976931348623157e308",
    "a smallest float": "5e-324",
    "over all floats": "1e999",
    "5000 digits": "9" * 5000,
    "not a number": "NaN",
    "infinity": "-Infinity",
    "no text": '""',
    "text": '"x"',
    "NUL": '"\\u0000"',
    "a lone surrogate": '"\\ud800"',
    "a low surrogate": '"a\\udc00b"',
    "a surrogate in UTF-8": '"\udced\udca0\udc80"',
    "bytes": '"\udcff\udcfe"',
    "braces": '"{{ x }}{% for %}"',
    "special tokens": '"<|im_start|><|endoftext|><s></s><pad><eos>"',
    "64 kB": '"' + "long text " * 6500 + '"',
    "no items": "[]",
    "null in a list": "[null]",
    "mixed": '["a", 1, {}, [], null, true]',
    "many items": "[" + ",".join(["1"] * 3000) + "]",
    "no fields": "{}",
    "an empty name": '{"": null}',
    "a lone surrogate's name": '{"\\ud800": "\\udfff"}',
    "the same name twice": '{"type": "text", "type": 5, "name": "a", "name": null}',
    "a schema that refers to itself": '{"$ref": "#"}',
    "deep lists": "[" * _DEPTH + "]" * _DEPTH,
    "deep objects": '{"a":' * _DEPTH + "1" + "}" * _DEPTH,
    "lists too deep": "[" * 100_000 + "]" * 100_000,
    "objects without an end": '{"a":' * 10_000,
}
"""Values as they stand in a body, by what they are. A surrogate here is one byte of a body that is not UTF-8."""


@dataclass(frozen=True)
class Body:
    """A body and what is wrong with it."""

    path: str
    what: str
    data: bytes


def mutations(path: str, fields: list[str]) -> Iterator[Body]:
    """The good bodies of an endpoint with each wrong value at each place, the further `fields` among them."""
    for number, good in enumerate(GOOD[path]):
        places = [*_places(good), *((name,) for name in fields if number == 0 and name not in good)]
        for place in places:
            for what, text in WRONG.items():
                yield Body(path, f"{'.'.join(map(str, place))} is {what}", _data(_with(good, place, _Raw(text))))
            yield Body(path, f"{'.'.join(map(str, place))} is missing", _data(_with(good, place, None)))


def whole_bodies(path: str) -> Iterator[Body]:
    """What is wrong as a whole, or very large."""
    good = _data(GOOD[path][0])
    for what, text in WRONG.items():
        yield Body(path, f"the body is {what}", _encode(text))
    for what, data in {
        "nothing": b"",
        "cut short": good[:-2],
        "twice": good + good,
        "given every name twice": b"{" + good[1:-1] + b"," + good[1:-1] + b"}",
        "UTF-16": good.decode().encode("utf-16"),
        "marked as UTF-8": b"\xef\xbb\xbf" + good,
    }.items():
        yield Body(path, f"the body is {what}", data)


def large_bodies(path: str, size: int = 10_000_000) -> Iterator[Body]:
    """One text of `size` characters in place of each text that a model reads, and in a field that nobody has."""
    for place in (place for place in _places(GOOD[path][0]) if place[-1] in _LARGE):
        large = _with(GOOD[path][0], place, _Raw('"' + "long " * (size // 5) + '"'))
        yield Body(path, f"{'.'.join(map(str, place))} has {size} characters", _data(large))
    yield Body(path, f"an unknown field has {size} characters", _data({**GOOD[path][0], "colour": "x" * size}))


_LARGE = frozenset(
    ("model", "content", "prompt", "input", "text", "system", "name", "lora_path", "input_file_id", "query", "text_1")
)


class _Raw(str):
    """JSON that stands in a body as it is."""


def _places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in a body, the body itself excepted."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from _places(child, (*at, key))


def _with(value: Any, place: tuple[str | int, ...], new: _Raw | None) -> Any:
    """A copy with something else at a place; None takes away what is there."""
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    if rest:
        copy[key] = _with(copy[key], tuple(rest), new)
    elif new is None:
        copy.pop(key, None)
    else:
        copy[key] = new
    return copy if isinstance(value, dict) else list(copy.values())


def _data(value: Any) -> bytes:
    return _encode(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, _Raw):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text(child) for child in value) + "]"
    return json.dumps(value)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
