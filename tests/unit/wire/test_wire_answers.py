"""Golden bytes of what clients read, and the small encoders beneath."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langport.errors import InvalidRequest
from langport.wire import sse
from langport.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkWriter,
    ChatCompletion,
    chat_logprobs,
)
from langport.wire.completions import (
    Completion,
    CompletionChoice,
    CompletionChunkWriter,
    completion_logprobs,
)
from langport.wire.embeddings import (
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    as_base64,
    as_floats,
)
from langport.wire.generation import (
    CompletionTokensDetails,
    PromptTokensDetails,
    ScoredToken,
    Usage,
    finite,
    token_name,
)
from langport.wire.inputs import decode_inputs

USAGE = Usage(1, 2, 3, PromptTokensDetails(), CompletionTokensDetails())
TOKENS = [
    ScoredToken(b"a", None, [], 0),
    ScoredToken(b"\xc3", -1.5, [(b"\xc3", -1.5), (b"b", -2.0)], 1),
    ScoredToken(b"c", float("-inf"), [(b"d", -0.5)], 2),
]


def test_chat_chunks():
    writer = ChatChunkWriter(id="chatcmpl-1", created=5, model="m", num_choices=2)
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","choices":'
    assert writer.opening(0) == head + (
        b'[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert writer.piece(1, 'a "b"\n') == head + (
        b'[{"index":1,"delta":{"content":"a \\"b\\"\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert writer.finish(1, "length") == head + (
        b'[{"index":1,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n'
    )


def test_chunks_of_reasoning_and_calls():
    writer = ChatChunkWriter(id="chatcmpl-1", created=5, model="m", num_choices=2)
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m",'
    head += b'"choices":[{"index":1,"delta":'
    end = b',"logprobs":null,"finish_reason":null}]}\n\n'
    assert writer.opening(1, has_text=False) == head + b'{"role":"assistant","content":null,"refusal":null}' + end
    assert writer.reasoning(1, 'a"') == head + b'{"reasoning":"a\\"","reasoning_content":"a\\""}' + end
    assert writer.tool_call(1, 0, "call_1", "f") == head + (
        b'{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}' + end
    )
    assert writer.arguments(1, 3, '{"x"') == head + (
        b'{"tool_calls":[{"index":3,"function":{"arguments":"{\\"x\\""}}]}' + end
    )
    assert writer.finish(1, "tool_calls").endswith(b'"delta":{},"logprobs":null,"finish_reason":"tool_calls"}]}\n\n')


def test_chat_chunks_with_usage_and_logprobs():
    writer = ChatChunkWriter(id="i", created=5, model="m", num_choices=1, include_usage=True, service_tier="default")
    head = b'data: {"id":"i","object":"chat.completion.chunk","created":5,"model":"m","service_tier":"default",'
    assert writer.piece(0, "b", chat_logprobs([ScoredToken(b"b", -0.5, [], 0)])) == head + (
        b'"choices":[{"index":0,"delta":{"content":"b"},"logprobs":{"content":[{"token":"b","logprob":-0.5,'
        b'"bytes":[98],"top_logprobs":[]}],"refusal":null},"finish_reason":null}],"usage":null}\n\n'
    )
    assert writer.usage(USAGE) == head + (
        b'"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,'
        b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":'
        b'{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}\n\n'
    )


def test_completion_chunks():
    writer = CompletionChunkWriter(id="cmpl-1", created=5, model="m", num_choices=1)
    head = b'data: {"id":"cmpl-1","object":"text_completion","created":5,"model":"m","choices":'
    assert writer.opening(0) == b""
    assert writer.piece(0, "é") == head + (
        '[{"index":0,"text":"é","logprobs":null,"finish_reason":null}]}\n\n'.encode()
    )
    assert writer.finish(0, "stop") == head + (b'[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}\n\n')


@given(st.text(), st.text())
def test_a_chunk_is_one_line_of_json(name, text):
    writer = CompletionChunkWriter(id="i", created=5, model=name, num_choices=1)
    event = writer.piece(0, text)
    lines = event.decode().splitlines()
    assert lines[1:] == [""]
    chunk = msgspec.json.decode(lines[0].removeprefix("data: "))
    assert (chunk["model"], chunk["choices"][0]["text"]) == (name, text)


def test_documents_escape_what_some_clients_take_for_a_line_end():
    assert sse.document("a\u2028\u2029\u0085é") == '"a\\u2028\\u2029\\u0085é"'.encode()


def test_logprobs_in_both_forms():
    chat = msgspec.to_builtins(chat_logprobs(TOKENS[1:]))
    assert chat["content"][0] == {
        "token": "bytes:\\xc3",
        "logprob": -1.5,
        "bytes": [0xC3],
        "top_logprobs": [
            {"token": "bytes:\\xc3", "logprob": -1.5, "bytes": [0xC3]},
            {"token": "b", "logprob": -2.0, "bytes": [98]},
        ],
    }
    legacy = completion_logprobs(TOKENS)
    assert legacy.tokens == ["a", "bytes:\\xc3", "c"]
    assert legacy.token_logprobs == [None, -1.5, -9999.0]
    assert legacy.top_logprobs == [None, {"bytes:\\xc3": -1.5, "b": -2.0}, {"d": -0.5, "c": -9999.0}]
    assert legacy.text_offset == [0, 1, 2]


def test_token_names():
    assert token_name("é".encode()) == "é"
    assert token_name(b"\xe2\x80") == "bytes:\\xe2\\x80"
    assert finite(float("-inf")) == -9999.0


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_floats_survive(values):
    vector = np.array(values, dtype=np.float32)
    decoded = msgspec.json.decode(msgspec.json.encode(as_floats(vector)))
    assert np.array_equal(np.array(decoded, dtype=np.float32), vector)


def test_floats_are_short():
    assert msgspec.json.encode(as_floats(np.array([0.1, -0.25, 0.0], np.float32))) == b"[0.100000001,-0.25,0.0]"


def test_base64_is_little_endian():
    assert as_base64(np.array([1.0, -2.0], dtype=np.float32)) == "AACAPwAAAMA="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a"', ["a"]),
        (' [ "a" , "b" ]', ["a", "b"]),
        ("[1, 2]", [[1, 2]]),
        ("[[1], [2, 3]]", [[1], [2, 3]]),
        ('""', [""]),
    ],
)
def test_inputs(text, expected):
    assert decode_inputs(msgspec.Raw(text.encode()), "prompt") == expected


@pytest.mark.parametrize(
    "text", ["5", "{}", "true", "[]", "[true]", "[null]", "[[]]", '["a", 1]', "[1, []]", '["\\ud800"]']
)
def test_other_inputs_are_refused_with_the_four_shapes_or_the_reason(text):
    with pytest.raises(InvalidRequest) as error:
        decode_inputs(msgspec.Raw(text.encode()), "prompt")
    assert error.value.param is not None
    assert error.value.param.startswith("prompt")
    assert "must" in error.value.message


def test_whole_answers():
    chat = ChatCompletion(
        id="chatcmpl-1",
        created=5,
        model="m",
        choices=[ChatChoice(index=0, message=AssistantMessage(content="hi"), logprobs=None, finish_reason="stop")],
        usage=USAGE,
    )
    usage = msgspec.json.encode(USAGE)
    assert msgspec.json.encode(chat) == (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"m","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"hi","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":' + usage + b"}"
    )
    completion = Completion(
        id="cmpl-1",
        created=5,
        model="m",
        choices=[CompletionChoice(index=0, text="hi", logprobs=None, finish_reason="length")],
        usage=USAGE,
    )
    assert msgspec.json.encode(completion) == (
        b'{"id":"cmpl-1","object":"text_completion","created":5,"model":"m","choices":[{"index":0,"text":"hi",'
        b'"logprobs":null,"finish_reason":"length"}],"usage":' + usage + b"}"
    )
    embeddings = EmbeddingList(data=[Embedding(index=0, embedding=[0.5])], model="m", usage=EmbeddingUsage(1, 1))
    assert msgspec.json.encode(embeddings) == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"model":"m",'
        b'"usage":{"prompt_tokens":1,"total_tokens":1}}'
    )
