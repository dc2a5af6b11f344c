"""The JSON access log: what a line says, what never gets into one, and a writer that nothing holds up."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from gateway_fakes import FakeUpstream, answer, make_client, refuse, stream

from langport.errors import ConfigError, Unavailable
from langport.gateway import access_log
from langport.gateway.access_log import Line, LineWriter
from langport.gateway.upstream import Upstream
from langport.settings.tree import TelemetrySettings
from langport.types import TokenUsage

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[]}\n\n'


class Log:
    """The file that a gateway under test writes, and the clients of it."""

    def __init__(self, path):
        self.path = path
        self.settings = TelemetrySettings(access_log="json", access_log_file=str(path))
        self._gateways = []

    def client(self, upstreams=None, **settings):
        client = make_client(upstreams, telemetry=self.settings, **settings)
        self._gateways.append(client.app)
        return client

    def lines(self):
        """All that was written, once the gateways are closed."""
        for gateway in self._gateways:
            gateway.close()
        lines = self.path.read_bytes().splitlines()
        for line in lines:
            assert list(json.loads(line)) == list(msgspec.to_builtins(msgspec.json.decode(line, type=Line)))
        return [json.loads(line) for line in lines]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "access.log")


def metered_stream():
    async def app(scope, receive, send):
        await receive()
        scope["extensions"]["langport"]["meter"](lambda: TokenUsage(7, 2))
        await stream(EVENT, EVENT)(receive, send)

    return Upstream("demo", app, card=dict, is_ready=lambda: (True, ""), is_metered=True)


async def test_a_line_says_who_asked_for_what_and_what_became_of_it(log):
    client = log.client({"demo": metered_stream()}, api_keys=["sk-secret"])
    headers = {"authorization": "Bearer sk-secret", "x-request-id": "my-id"}
    await client.post(CHAT, {"model": "demo", "stream": True}, headers=headers)
    (line,) = log.lines()
    age = datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))
    assert timedelta(0) <= age < timedelta(minutes=5)
    times = [line.pop(name) for name in ("first_byte_s", "duration_s", "upstream_s", "overhead_s")]
    assert times[2] + times[3] <= times[0] + 2e-6
    assert times[0] <= times[1]
    assert line == {
        "id": "my-id", "client": "", "method": "POST", "path": CHAT, "status": 200, "key": "static-1", "model": "demo",
        "upstream": "", "prompt_tokens": 7, "completion_tokens": 2, "queue_s": 0.0, "bytes": 2 * len(EVENT),
        "is_client_gone": False,
    }  # fmt: skip


async def test_errors_and_clients_that_leave(log):
    async def wait(receive, send):
        await receive()

    client = log.client({"down": refuse(Unavailable("Not now.")), "slow": wait})
    await client.post(CHAT, {"model": "down"})
    await client.post(CHAT, {"model": "unknown"})
    await client.post(CHAT, {"model": "slow"}, leave_after=0)
    down, unknown, slow = log.lines()
    assert (down["status"], down["model"], down["error"], down["is_client_gone"]) == (
        503,
        "down",
        "server_error",
        False,
    )
    assert (unknown["status"], unknown["model"], unknown["error"]) == (404, "", "model_not_found")
    assert (slow["status"], slow["first_byte_s"], slow["bytes"], slow["is_client_gone"]) == (499, None, 0, True)


async def test_an_answer_that_breaks_off_is_not_the_clients_leaving(log):
    async def leaves_midway(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await receive()

    client = log.client({"broken": stream(EVENT, then=Unavailable("Gone.")), "left": leaves_midway})
    await client.post(CHAT, {"model": "broken"})
    await client.post(CHAT, {"model": "left"}, leave_after=2)
    broken, left = log.lines()
    assert (broken["status"], broken["error"], broken["is_client_gone"]) == (200, "server_error", False)
    assert (left["status"], left["bytes"], left["is_client_gone"]) == (200, 4, True)


async def test_probes_are_left_out(log):
    client = log.client()
    for path in ("/health", "/ready", "/v1/models"):
        await client.get(path)
    assert [line["path"] for line in log.lines()] == ["/v1/models"]


async def test_no_key_no_query_and_no_text_gets_into_it(log):
    client = log.client({"demo": answer({"text": "the secret answer"})}, api_keys=["sk-secret"])
    body = {"model": "demo", "prompt": "the secret question", "user": "somebody"}
    for headers in ({"authorization": "Bearer sk-secret"}, {"api-key": "sk-secret"}, {"authorization": "Bearer sk-no"}):
        await client.post("/v1/completions?api-key=sk-secret", body, headers=headers)
    assert len(log.lines()) == 3
    text = log.path.read_text()
    for hidden in ("sk-", "secret", "somebody"):
        assert hidden not in text


@pytest.mark.parametrize("raw_path", ['/a%0A{"id":"forged"}', "/a\x1b[31m\r\n{}", "/\x85\u2028\x9b", False])
async def test_nobody_writes_lines_of_his_own(log, raw_path):
    client = log.client()
    path = '/a\n{"id":"forged"}'
    headers = {"x-request-id": 'x"\n{"id":"forged"}'}
    await client.get(path, raw_path=raw_path, headers=headers)
    (line,) = log.lines()
    assert line["id"].startswith("req_")
    data = log.path.read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == 1
    assert not [byte for byte in data[:-1] if byte < 32]


async def test_without_a_writer_nothing_is_written(tmp_path, caplog):
    client = make_client(telemetry=TelemetrySettings(access_log="off", access_log_file=str(tmp_path / "log")))
    with caplog.at_level("DEBUG"):
        await client.get("/v1/models")
    assert not caplog.records
    assert not list(tmp_path.iterdir())


class TestLineWriter:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(access_log, "FLUSH_S", 0.01)

    def test_lines_come_out_whole_and_in_order_from_many_threads(self, tmp_path):
        writer = LineWriter(str(tmp_path / "log"), on_lost=pytest.fail)

        def write(thread):
            for number in range(500):
                writer.write(b"%d %d\n" % (thread, number))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.close(60)
        lines = [tuple(map(int, line.split())) for line in (tmp_path / "log").read_bytes().splitlines()]
        assert sorted(lines) == [(thread, number) for thread in range(4) for number in range(500)]
        for thread in range(4):
            assert [line for line in lines if line[0] == thread] == sorted(line for line in lines if line[0] == thread)

    def test_it_appends(self, tmp_path):
        (tmp_path / "log").write_bytes(b"before\n")
        writer = LineWriter(str(tmp_path / "log"), on_lost=pytest.fail)
        writer.write(b"after\n")
        writer.close(60)
        assert (tmp_path / "log").read_bytes() == b"before\nafter\n"

    def test_it_writes_without_being_closed(self, tmp_path):
        path = tmp_path / "log"
        writer = LineWriter(str(path), on_lost=pytest.fail)
        writer.write(b"one\n")
        assert until(lambda: path.read_bytes() == b"one\n")
        writer.close(60)

    def test_a_file_that_was_moved_away_is_made_anew(self, tmp_path):
        path, moved = tmp_path / "log", tmp_path / "log.1"
        writer = LineWriter(str(path), on_lost=pytest.fail)
        writer.write(b"old\n")
        assert until(lambda: path.read_bytes() == b"old\n")
        path.rename(moved)
        writer.write(b"new\n")
        writer.close(60)
        assert (moved.read_bytes(), path.read_bytes()) == (b"old\n", b"new\n")

    def test_a_reader_that_has_stopped_holds_up_nobody_and_costs_lines(self, tmp_path, monkeypatch):
        monkeypatch.setattr(access_log, "MAX_WAITING_LINES", 5)
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        lost = []
        writer = LineWriter(str(fifo), on_lost=lost.append)
        long = b"x" * 65_536  # as much as a pipe holds
        for _ in range(20):  # a writer that waited would wait here for ever
            writer.write(long)
        assert sum(lost) >= 8  # five wait, and the thread has taken five at most
        os.close(reader)
        writer.close(60)

    def test_what_cannot_be_written_is_counted(self, tmp_path, capfd):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        lost = []
        writer = LineWriter(str(fifo), on_lost=lost.append)
        os.close(reader)
        writer.write(b"nobody reads\n")
        writer.close(60)
        assert lost == [1]
        assert "1 lines of the access log are lost" in capfd.readouterr().err

    @pytest.mark.parametrize("target", ["stdout", "stderr"])
    def test_standard_streams(self, target, capfd):
        writer = LineWriter(target, on_lost=pytest.fail)
        writer.write(b"a line\n")
        writer.close(60)
        out, err = capfd.readouterr()
        assert (out if target == "stdout" else err) == "a line\n"

    def test_a_file_that_cannot_be_opened_is_told_at_start(self, tmp_path):
        settings = TelemetrySettings(access_log="json", access_log_file=str(tmp_path / "no" / "log"))
        with pytest.raises(ConfigError, match=r"--access-log-file .*No such file"):
            make_client({"demo": FakeUpstream()}, telemetry=settings)

    def test_closing_twice_and_unused(self, tmp_path):
        writer = LineWriter(str(tmp_path / "log"), on_lost=pytest.fail)
        writer.close()
        writer.close()
        assert (tmp_path / "log").read_bytes() == b""


def until(condition) -> bool:
    """Patient, since a busy machine may be slow."""
    return any(condition() or threading.Event().wait(0.01) for _ in range(3000))
