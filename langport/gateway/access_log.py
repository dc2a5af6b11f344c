"""One line a request, as JSON: who asked for what, what became of it, how long each part took. Never a key or a text.

Lines are encoded at once, and written by a thread of their own at least every second, so that a full disk or a reader
of a pipe that has stopped never holds up a request. What a crash loses is that second.
"""

from __future__ import annotations

import atexit
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache

import msgspec

from langport.errors import ConfigError
from langport.gateway.asgi import Scope
from langport.gateway.exchange import Exchange
from langport.types import TokenUsage

FLUSH_S = 1.0
MAX_WAITING_LINES = 50_000
"""Kept in memory, some 20 MB, while nothing can be written; further ones are lost, and counted."""

_FILE_DESCRIPTORS = {"stdout": 1, "stderr": 2}


MAX_CACHED_PATH = 256
"""Longer ones are not likely to come again, and would take memory."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request; docs/observability.md says what the fields mean. Times are seconds, sizes bytes."""

    time: datetime
    """When its answer ended."""
    id: str
    client: str
    """Address of the connection's other end."""
    method: str
    path: str
    """Percent-encoded, without the query, which may hold keys."""
    status: int
    key: str
    model: str
    upstream: str
    prompt_tokens: int
    completion_tokens: int
    queue_s: float
    first_byte_s: float | None
    duration_s: float
    upstream_s: float | None
    overhead_s: float | None
    bytes: int
    is_client_gone: bool
    error: str | None = None
    """Its code, where this server refused it or gave up."""
    is_estimated: bool = False
    """Nobody counted the tokens: they are guessed."""
    trace_id: str | None = None
    cache: str | None = None
    """hit, miss or bypass, where there is a response cache."""


_encode = msgspec.json.Encoder().encode


def line_of(exchange: Exchange, usage: TokenUsage, duration_s: float) -> bytes:
    """A `Line`, with its end, put together by hand as that takes a third of the time.

    Whatever clients write, JSON's escapes keep it in its place. The id has only letters that need none.
    """
    client = exchange.scope.get("client")
    path = loggable_path(exchange.scope)
    write_what = _what if len(path) <= MAX_CACHED_PATH else _what.__wrapped__
    what = write_what(exchange.method, path, exchange.status, exchange.key.name, exchange.model, exchange.deployment)
    return (
        f'{{"time":"{_now()}","id":"{exchange.request_id}","client":{_text(client[0] if client else "")},{what},'
        f'"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens},'
        f'"queue_s":{exchange.queue_s:.6f},"first_byte_s":{_seconds(exchange.first_byte_s)},'
        f'"duration_s":{duration_s:.6f},"upstream_s":{_seconds(exchange.upstream_s)},'
        f'"overhead_s":{_seconds(exchange.overhead_s)},"bytes":{exchange.num_bytes},'
        f'"is_client_gone":{"true" if exchange.is_client_gone else "false"}{_more(exchange, usage)}}}\n'
    ).encode()


def _now() -> str:
    """As RFC 3339 has it."""
    second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{microsecond:06d}Z"


@lru_cache(1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(256)
def _text(value: str) -> str:
    return _encode(value).decode()


@lru_cache(1024)
def _what(method: str, path: str, status: int, key: str, model: str, upstream: str) -> str:
    what = {"method": method, "path": path, "status": status, "key": key, "model": model, "upstream": upstream}
    return _encode(what)[1:-1].decode()


def _more(exchange: Exchange, usage: TokenUsage) -> str:
    """What most lines do not have."""
    trace = exchange.trace
    if not (exchange.error_code or usage.is_estimated or trace or exchange.cache):
        return ""
    more = {
        "error": exchange.error_code,
        "is_estimated": usage.is_estimated,
        "trace_id": trace and trace.trace_id,
        "cache": exchange.cache,
    }
    return "," + _encode({name: value for name, value in more.items() if value})[1:-1].decode()


def _seconds(value: float | None) -> str:
    return "null" if value is None else f"{value:.6f}"


def loggable_path(scope: Scope) -> str:
    """In ASCII and still percent-encoded, so nobody can write line breaks or look-alikes into a log."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("unicode_escape")
    return raw.partition(b"?")[0].decode("ascii", "backslashreplace")


class LineWriter:
    """Appends lines to a file or to a standard stream. A file that was moved away (by logrotate) is made anew."""

    def __init__(self, target: str, on_lost: Callable[[int], None]) -> None:
        """`target`: stderr, stdout or a path. `on_lost` is told how many lines could not be written, in any thread.

        Raises: ConfigError when the file cannot be opened.
        """
        self._path = None if target in _FILE_DESCRIPTORS else target
        self._on_lost = on_lost
        self._lines: deque[bytes] = deque()
        self._has_lines = threading.Event()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = _FILE_DESCRIPTORS.get(target, -1)
        if self._path is not None:
            try:
                self._file = _open(self._path)
            except OSError as error:
                raise ConfigError(
                    f"--access-log-file {target}: cannot be written ({error.strerror}). Give a file in a folder that "
                    "exists and belongs to this user, or stderr or stdout."
                ) from None

    def write(self, line: bytes) -> None:
        """Never waits."""
        if len(self._lines) >= MAX_WAITING_LINES:
            self._on_lost(1)
            return
        self._lines.append(line)
        if not self._has_lines.is_set():
            self._has_lines.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is left, as far as that is possible at once. A second call does nothing."""
        self._is_closing.set()
        self._has_lines.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
            atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            self._has_lines.wait()
            self._is_closing.wait(FLUSH_S)
            self._has_lines.clear()  # before the lines are taken: one that comes meanwhile sets it again
            self._write_waiting()
            if self._is_closing.is_set() and not self._lines:
                return

    def _write_waiting(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        try:
            if self._path is not None:
                self._follow(self._path)
            _write_lines(self._file, lines)
        except OSError as error:
            self._on_lost(len(lines))
            print(f"langport: {len(lines)} lines of the access log are lost: {error.strerror}", file=sys.stderr)

    def _follow(self, path: str) -> None:
        """Be at the file that has the name now."""
        try:
            named, held = os.stat(path), os.fstat(self._file)
            is_same = (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
        except FileNotFoundError:
            is_same = False
        if not is_same:
            opened = _open(path)
            os.close(self._file)
            self._file = opened


def _open(path: str) -> int:
    return os.open(os.path.expanduser(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _write_lines(file: int, lines: Sequence[bytes]) -> None:
    """Whole lines, however many processes write to the same place: to a file they are appended at once, to a pipe in
    pieces that the system does not mix with others' (PIPE_BUF)."""
    if stat.S_ISREG(os.fstat(file).st_mode):
        _write_all(file, b"".join(lines))
        return
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            _write_all(file, piece)
            piece = b""
        piece += line
    _write_all(file, piece)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(file, view) :]
        except BlockingIOError:  # a pipe whose reader is slow, and which somebody made non-blocking
            select.select([], [file], [])
