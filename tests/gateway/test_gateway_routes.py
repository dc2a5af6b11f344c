"""`langport gateway` with routes over remote servers, and in front of other LangPorts, each in its process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.upstream import EVENTS, UpstreamProcess, upstream_server
from tests.server.process import DONE, Server, running, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]
NUM_KILLS = 4


@pytest.fixture
def pair() -> Iterator[tuple[UpstreamProcess, UpstreamProcess]]:
    """Two servers of the same model."""
    servers = UpstreamProcess(), UpstreamProcess()
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


def settings_file(folder: Path, **settings: object) -> Path:
    file = folder / "langport.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_server_is_killed_again_and_again_and_no_request_is_lost_that_had_not_begun(
    pair: tuple[UpstreamProcess, UpstreamProcess], tmp_path: Path
) -> None:
    steady, killed = pair
    file = settings_file(
        tmp_path,
        upstreams=[{"name": "a", "url": steady.url, "model": "big"}, {"name": "b", "url": killed.url, "model": "big"}],
        routes={"best": {"deployments": ["a", "b"], "health": {"cooldown_s": 0.05, "check_interval_s": 0.05}}},
    )
    with running("--config", str(file), command="gateway") as server:
        clients = [Asking(server, streams=number % 2 == 1) for number in range(4)]
        for _ in range(NUM_KILLS):
            until(lambda: all(client.saw_both() for client in clients[:1]), "that both are asked")
            killed.kill()
            until(lambda: healthy(server, "b") == 0, "that it is noticed")
            killed.start()
            until(lambda: healthy(server, "b") == 1, "that it is asked again")
        num_asked = sum(client.end() for client in clients)
        assert [client.lost for client in clients] == [[]] * len(clients)
        assert num_asked > NUM_KILLS
        assert healthy(server, "a") == 1


def healthy(server: Server, upstream: str) -> float:
    return server.metric("langport_upstream_healthy", model="best", upstream=upstream)


class Asking:
    """A client that asks all the time."""

    def __init__(self, server: Server, *, streams: bool) -> None:
        self.lost: list[str] = []
        """What came instead of an answer, where none had begun."""
        self._seen: set[str] = set()
        self._num_asked = 0
        self._is_over = False
        self._server = server
        self._streams = streams
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def saw_both(self) -> bool:
        """Whether both servers have answered since this was asked with success last."""
        if self._seen < {"a", "b"}:
            return False
        self._seen = set()
        return True

    def end(self) -> int:
        """The number of requests, when the last one has been answered."""
        self._is_over = True
        self._thread.join(60)
        return self._num_asked

    def _run(self) -> None:
        body = {"model": "best", "messages": HELLO, "stream": self._streams}
        while not self._is_over:
            self._num_asked += 1
            try:
                with self._server.http.stream("POST", CHAT, json=body) as answer:
                    self._read(answer)
            except httpx.HTTPError as error:
                self.lost.append(repr(error))

    def _read(self, answer: httpx.Response) -> None:
        text = answer.read().decode()
        is_whole = "[DONE]" in text or '"error"' in text if self._streams else '"big"' in text
        if answer.status_code != 200 or not is_whole:
            self.lost.append(text)
        self._seen = {*self._seen, answer.headers.get("x-langport-deployment", "")}


def test_two_gateways_and_a_langport_behind_them(tmp_path: Path) -> None:
    with running("langport-demo-chat") as last:
        direct = last.chat("What is your name?")
        with running("--upstream", last.url, command="gateway") as inner:
            until(lambda: inner.get("/v1/models")["data"], "that its models are known")
            file = settings_file(
                tmp_path,
                upstreams=[{"name": "far", "url": inner.url, "model": "langport-demo-chat"}],
                routes={"best": ["far"]},
            )
            with running("--config", str(file), command="gateway") as outer:
                assert outer.chat("What is your name?", model="best") == direct
                message = {"role": "user", "content": "What is your name?"}
                with outer.stream(CHAT, model="best", messages=[message], temperature=0, max_tokens=60) as events:
                    *chunks, end = list(events)
                assert end == DONE
                assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == direct
                wrong = outer.http.post(CHAT, json={"model": "far", "messages": [message], "temperature": 9})
                assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")


def test_sighup_changes_the_servers_and_a_stream_goes_on(tmp_path: Path) -> None:
    with upstream_server() as first, upstream_server() as second:
        file = settings_file(tmp_path, upstreams=[{"name": "far", "url": first.url, "model": "big"}])
        with running("--config", str(file), command="gateway") as server:
            first.hold.clear()
            with server.stream(CHAT, model="far", messages=HELLO) as events:
                assert first.began.wait(60)
                settings_file(tmp_path, upstreams=[{"name": "near", "url": second.url, "model": "big"}, second.url])
                os.kill(server.process.pid, signal.SIGHUP)
                until(lambda: names(server) == ["near", "big"], "that others are served")
                assert "Reloaded: settings changed: upstream." in server.log
                first.hold.set()
                assert list(events) == [*EVENTS, DONE]
            for name in ("near", "big"):
                assert server.post(CHAT, model=name, messages=HELLO)["model"] == "big"
            assert len(first.requests) == 1
            file.write_text("upstreams: [{name: near, url: 'http://a.example', key: 'env:NO_SUCH'}]")
            os.kill(server.process.pid, signal.SIGHUP)
            until(lambda: "variable NO_SUCH is not set" in server.log, "that the problem is told")
            assert names(server) == ["near", "big"]
            assert server.post(CHAT, model="near", messages=HELLO)["model"] == "big"


def names(server: Server) -> list[str]:
    return [entry["id"] for entry in server.get("/v1/models")["data"]]
