"""Answers as they come off a connection: their pieces at known times, and everything that is no answer."""

from __future__ import annotations

import asyncio

import pytest

from langport.bench.client import Answer, Connection, RequestFailed

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\r\n\r\n'
DONE = b"data: [DONE]\n\n"


def said(text: str) -> bytes:
    return f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}],"usage":null}}\n\n'.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        pass


class Line:
    """A connection whose clock and bytes the test gives."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answer = Answer()
        self.connection = Connection(lambda: self.now)
        self.wire = Wire()
        self.connection.connection_made(self.wire)
        self.done = self.connection.ask(b"request", self.answer)

    def come(self, now: float, data: bytes) -> None:
        self.now = now
        self.connection.data_received(data)

    async def failed(self) -> str:
        with pytest.raises(RequestFailed) as found:
            await self.done
        return f"{found.value.kind}: {found.value}"


async def test_pieces_have_the_times_at_which_their_bytes_came() -> None:
    line = Line()
    assert line.wire.written == b"request"
    line.come(1.0, STREAM_HEAD + chunk(ROLE))
    line.come(2.0, chunk(said("a")))
    line.come(3.5, chunk(b": ping\n\n"))
    line.come(4.0, chunk(said("b") + said("c")))
    line.come(5.0, chunk(FINISH) + chunk(USAGE))
    assert not line.done.done()
    line.come(6.0, chunk(DONE) + chunk(b""))
    await line.done
    assert line.answer.pieces_s == [2.0, 4.0, 4.0]
    usage = line.answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (9, 3, 4)
    assert line.answer.failure is None
    assert line.connection.is_open


@pytest.mark.parametrize("size", [1, 7, 97])
async def test_a_stream_may_be_cut_anywhere(size: int) -> None:
    line = Line()
    whole = STREAM_HEAD + b"".join(map(chunk, (ROLE, said("a"), said("b"), FINISH, USAGE, DONE, b"")))
    for begin in range(0, len(whole), size):
        line.come(float(begin), whole[begin : begin + size])
    await line.done
    assert len(line.answer.pieces_s) == 2
    assert line.answer.usage is not None


@pytest.mark.parametrize(
    "choice", ['"text":"x"', '"delta":{"reasoning":"x"}', '"delta":{"reasoning_content":"x","content":null}']
)
async def test_text_may_stand_in_several_places(choice: str) -> None:
    line = Line()
    line.come(1.0, STREAM_HEAD + chunk(f'data: {{"choices":[{{{choice}}}]}}\n\n'.encode()) + chunk(b""))
    await line.done
    assert line.answer.pieces_s == [1.0]


def plain(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_an_answer_that_is_no_stream() -> None:
    line = Line()
    line.come(1.0, plain("200 OK", b'{"data":[{"embedding":"AA"},{"embedding":"AA"}],"usage":{"prompt_tokens":5}}'))
    await line.done
    assert (line.answer.num_items, line.answer.pieces_s) == (2, [])
    assert line.answer.usage is not None
    assert line.answer.usage.prompt_tokens == 5


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (plain("429 No", b'{"error":{"message":"slow down"}}'), "status 429: slow down"),
        (plain("404 No", b'{"error":"gone"}'), "status 404: gone"),
        (plain("422 No", b'{"detail":"field"}'), 'status 422: {"detail":"field"}'),
        (plain("502 No", b"<html>\n bad </html>"), "status 502: <html> bad </html>"),
        (plain("503 No", b""), "status 503: no body"),
        (plain("200 OK", b"["), "not understood: Expected `object`, got `array`: ["),
        (STREAM_HEAD + chunk(b'data: {"error":{"message":"died"}}\n\n') + chunk(b""), "error in the stream: died"),
    ],
)
async def test_a_complete_answer_that_is_none(data: bytes, failure: str) -> None:
    line = Line()
    line.come(1.0, data)
    await line.done
    assert line.answer.failure is not None
    assert f"{line.answer.failure.kind}: {line.answer.failure}" == failure


async def test_connections_that_end_too_early() -> None:
    line = Line()
    line.connection.connection_lost(None)
    assert await line.failed() == "connection lost: the server closed the connection before its answer"
    line = Line()
    line.come(1.0, STREAM_HEAD + chunk(said("a")))
    line.connection.connection_lost(None)
    assert await line.failed() == "connection lost: the server closed the connection within its answer"
    assert not line.connection.is_open


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    line = Line()
    line.come(1.0, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + said("a") + USAGE)
    line.connection.connection_lost(None)
    await line.done
    assert line.answer.usage is not None


async def test_what_is_no_http() -> None:
    line = Line()
    line.come(1.0, b"SSH-2.0-x\r\n")
    assert (await line.failed()).startswith("not understood: no HTTP/1.1: ")


async def test_a_server_that_closes_is_not_asked_again_on_the_same_connection() -> None:
    line = Line()
    line.come(1.0, plain("200 OK", b"{}", "connection: close"))
    await line.done
    assert not line.connection.is_open
