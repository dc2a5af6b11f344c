"""Bodies that cannot be decoded name the field at fault; errors have the body that every client reads."""

from __future__ import annotations

import msgspec
import pytest

from langport.errors import ApiError, ContextLengthExceeded, EngineFailed, InvalidRequest, RateLimited
from langport.wire import chat
from langport.wire.error import decode_body, encode_error


def test_error_bodies_have_all_four_keys():
    assert encode_error(ContextLengthExceeded("too long", param="messages")) == (
        b'{"error":{"message":"too long","type":"invalid_request_error","param":"messages",'
        b'"code":"context_length_exceeded"}}'
    )
    for error in (ApiError("x"), RateLimited("x"), EngineFailed("x")):
        assert set(msgspec.json.decode(encode_error(error))["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"model": "x", ', "not valid JSON"),
        (b'{"n": NaN}', "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": "\xff\xfe"}', "UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_bodies_that_are_no_request(body, says):
    with pytest.raises(InvalidRequest, match=says) as error:
        decode_body(chat.DECODER, body)
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"temperature": 2.1}, "temperature", "<= 2"),
        ({"temperature": "hot"}, "temperature", "expected `float`, got `str`"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": True}, "n", "got `bool`"),
        ({"stop": ["a", 5]}, "stop[1]", "got `int`"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop", "length <= 4"),
        ({"logit_bias": {"fifty": 1}}, "logit_bias", "got `str`"),
        ({"logit_bias": {"50": 101}}, "logit_bias", "<= 100"),
        ({"logit_bias": {"50": "x"}}, "logit_bias", "got `str`"),
        ({"messages": "hello"}, "messages", "array"),
        ({"messages": [{"role": "wizard"}]}, "messages[0].role", "wizard"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is required"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type", "smell"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is required"),
        ({"tool_choice": 5}, "tool_choice", "got `int`"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"metadata": {"a": {"b": 1}}}, "metadata", "got `object`"),
        ({"stream_options": "usage"}, "stream_options", "object"),
        ({"top_logprobs": 21}, "top_logprobs", "<= 20"),
    ],
)
def test_the_field_at_fault_is_named(body, param, says):
    with pytest.raises(InvalidRequest) as error:
        decode_body(chat.DECODER, msgspec.json.encode(body))
    assert error.value.param == param
    assert says in error.value.message
    assert "null" not in error.value.message
