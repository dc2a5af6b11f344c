"""A real store that goes away under a real gateway: what runs goes on, what comes is answered or refused as the
settings say, and what was used is written down when it is back.

SQLite's file is locked by another process' transaction. PostgreSQL and Redis are reached through a relay that the test
cuts; LANGPORT_TEST_POSTGRES and LANGPORT_TEST_REDIS name them, `.ci/run` starts both.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.gateway.upstream import EVENTS, Upstream, upstream_server
from tests.server.process import DONE, Server, run_langport, running, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]
ADMIN = {"authorization": "Bearer admin-secret"}
POSTGRES, REDIS = os.environ.get("LANGPORT_TEST_POSTGRES"), os.environ.get("LANGPORT_TEST_REDIS")


class Relay:
    """A TCP address that leads to a Unix socket, until it is cut."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and every new one at once."""
        self._is_cut = True
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if self._is_cut:
                    connection.close()
                    continue
                target = socket.socket(socket.AF_UNIX)
                target.connect(self._target)
                for one, other in ((connection, target), (target, connection)):
                    self._open.add(one)
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        self._open.discard(one)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        one.close()


@contextmanager
def relayed(target: str) -> Iterator[Relay]:
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def sqlite_store(folder: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    file = folder / "store.db"
    connections: list[sqlite3.Connection] = []

    def lock() -> None:
        connections.append(sqlite3.connect(file, isolation_level=None))
        connections[-1].execute("BEGIN EXCLUSIVE")

    def unlock() -> None:
        connections.pop().close()

    yield str(file), lock, unlock


@contextmanager
def postgres_store(folder: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    if POSTGRES is None:
        pytest.skip("LANGPORT_TEST_POSTGRES names no database; .ci/postgres runs a command with one")
    address, _, folder_of_socket = POSTGRES.partition("?host=")
    with relayed(f"{unquote(folder_of_socket)}/.s.PGSQL.5432") as relay:
        yield address.replace("@", f"@127.0.0.1:{relay.port}"), relay.cut, relay.mend


STORES = {"sqlite": sqlite_store, "postgres": postgres_store}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as server:
        yield server


def status(server: Server, headers: dict[str, str]) -> int:
    return server.http.post(CHAT, json={"model": "far", "messages": HELLO}, headers=headers).status_code


def is_noticed(server: Server, headers: dict[str, str], since: int) -> bool:
    """Whether the store is known to be down, of which a request must come; the log was so long before."""
    return server.http.get("/v1/models", headers=headers).status_code == 503 or "cannot be read" in server.log[since:]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("on_failure", ["answer", "refuse"])
def test_keys_and_usage(upstream: Upstream, tmp_path: Path, store: str, on_failure: str) -> None:
    with STORES[store](tmp_path) as (place, break_it, mend_it):
        options = ("--upstream", f"far={upstream.url}#big", "--store", place, "--keys-on-failure", on_failure)
        with running(*options, command="gateway", LANGPORT_ADMIN_KEY="admin-secret") as server:
            made = server.post("/admin/keys", ADMIN, name="Anna")
            key = {"authorization": f"Bearer {made['key']}"}
            assert status(server, key) == 200
            upstream.hold.clear()
            upstream.began.clear()
            body = {"model": "far", "messages": HELLO, "stream": True}
            with server.http.stream("POST", CHAT, json=body, headers=key) as stream:
                lines = stream.iter_lines()
                assert json.loads(next(lines).removeprefix("data: ")) == EVENTS[0]
                since = len(server.log)
                break_it()
                until(lambda: is_noticed(server, key, since), "that it is noticed")
                upstream.hold.set()
                texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
                assert [*map(json.loads, texts[:-1]), texts[-1]] == [*EVENTS[1:], DONE]  # what runs goes on
            assert status(server, key) == (200 if on_failure == "answer" else 503)
            assert server.get("/health") == {"status": "ok"}
            mend_it()
            until(lambda: status(server, key) == 200, "that it is used again")

            def is_written() -> bool:
                query = f"/admin/usage?group_by=key&key_id={made['id']}"
                sums = server.http.get(query, headers=ADMIN)
                return sums.status_code == 200 and sums.json()["data"][0]["num_requests"] >= 3

            until(is_written, "that the usage is there, the stream's too")
            server.process.terminate()
            assert server.wait_end() == 0


@pytest.mark.skipif(REDIS is None or not REDIS.startswith("unix://"), reason="LANGPORT_TEST_REDIS names no socket")
@pytest.mark.parametrize("on_failure", ["answer", "refuse"])
def test_limits(upstream: Upstream, on_failure: str) -> None:
    assert REDIS is not None
    with relayed(REDIS.removeprefix("unix://")) as relay:
        options = ("--upstream", f"far={upstream.url}#big", "--model-requests-per-minute", "1000", "--store", "none")
        shared = ("--limits-store", f"redis://127.0.0.1:{relay.port}", "--limits-on-failure", on_failure)
        with running(*options, *shared, command="gateway") as server:
            upstream.hold.clear()
            upstream.began.clear()
            with server.stream(CHAT, model="far", messages=HELLO) as events:
                assert next(events) == EVENTS[0]
                relay.cut()
                assert server.get("/health") == {"status": "ok"}
                upstream.hold.set()
                assert list(events) == [*EVENTS[1:], DONE]
            until(lambda: status(server, {}) == (200 if on_failure == "answer" else 503), "that it is noticed")
            relay.mend()
            until(lambda: status(server, {}) == 200, "that it is used again")


def test_usage_survives_kill_9_without_anybody_having_asked_for_it(upstream: Upstream, tmp_path: Path) -> None:
    store = str(tmp_path / "store.db")
    with running("--upstream", f"far={upstream.url}#big", "--store", store, command="gateway") as server:
        made = json.loads(run_langport("keys", "create", "Anna", "--json", LANGPORT_STORE=store).stdout)
        key = {"authorization": f"Bearer {made['key']}"}
        until(lambda: server.http.get("/v1/models").status_code == 401, "that the key is known")
        assert status(server, key) == 200
        until(lambda: "1 requests" in used(store), "that it is written")
        os.killpg(server.process.pid, signal.SIGKILL)
        server.wait_end()
    assert "1 requests" in used(store)


def used(store: str) -> str:
    return run_langport("keys", "show", "Anna", LANGPORT_STORE=store).stdout
