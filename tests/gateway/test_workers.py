"""`--workers`: several processes on one port that are one server to everybody who asks it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.upstream import Upstream, upstream_server
from tests.server.process import PATIENCE_S, Server, run_langport, running, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]
ADMIN = {"authorization": "Bearer admin"}


class Line:
    """A connection that stays, so that one worker answers all that is asked on it."""

    opened: ClassVar[list[Line]] = []

    def __init__(self, server: Server) -> None:
        self.opened.append(self)
        self._answer: http.client.HTTPResponse | None = None
        self._http = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        assert self.get("/health")[0] == 200
        assert self._http.sock is not None
        self.worker = _owner(server, self._http.sock.getsockname()[1])
        """Its process id."""

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, headers: dict[str, str], **body: Any) -> tuple[int, Any]:
        status, text = self._ask("POST", path, json.dumps(body).encode(), headers)
        return status, json.loads(text)

    def chat(self, key: str = "static", **body: Any) -> int:
        """The status."""
        return self.post(CHAT, bearer(key), model="far", messages=HELLO, **body)[0]

    def begin_stream(self, key: str = "static") -> http.client.HTTPResponse:
        """A streamed answer whose first event has come."""
        answer = self.stream(CHAT, bearer(key), model="far", messages=HELLO)
        assert answer.readline().startswith(b"data: ")
        return answer

    def stream(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> http.client.HTTPResponse:
        """A streamed answer that has begun."""
        self._http.request("POST", path, json.dumps({**body, "stream": True}), headers or {})
        answer = self._answer = self._http.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def follow(self, path: str) -> http.client.HTTPResponse:
        """A stream that is there already."""
        self._http.request("GET", path)
        answer = self._answer = self._http.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def load_adapter(self, name: str, path: Path) -> int:
        """The status."""
        body = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
        return self._ask("POST", "/v1/load_lora_adapter", body, {})[0]

    def unload_adapter(self, name: str) -> int:
        """The status."""
        return self._ask("POST", "/v1/unload_lora_adapter", json.dumps({"lora_name": name}).encode(), {})[0]

    def metrics(self) -> str:
        return self.get("/metrics", **bearer("static"))[1]

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
        self._http.request(method, path, body, headers)
        answer = self._http.getresponse()
        self.headers = dict(answer.getheaders())
        return answer.status, answer.read().decode()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _owner(server: Server, client_port: int) -> int:
    """The process that has the other end of a client's connection, by Linux' /proc."""
    ends = f"{server.port:04X}", f"{client_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1][-4:], fields[2][-4:]) == ends:
            link = f"socket:[{fields[9]}]"
            for process in server.processes():
                with suppress(OSError):
                    if any(os.readlink(file) == link for file in Path(f"/proc/{process}/fd").iterdir()):
                        return process
    raise AssertionError("nobody has the connection")


def lines(server: Server, num_workers: int = 2) -> list[Line]:
    """One connection to each worker."""
    found: dict[int, Line] = {}
    opened: list[Line] = []

    def one_each() -> bool:
        with socket.create_connection(("127.0.0.1", server.port)), socket.create_connection(("127.0.0.1", server.port)):
            opened.append(Line(server))  # the more come at once, the more workers wake up
        found.setdefault(opened[-1].worker, opened[-1])
        return len(found) == num_workers

    until(one_each, "a connection to each worker")
    for line in opened:
        if line is not found[line.worker]:
            line.close()
    return list(found.values())


def total(metrics: str, name: str, **labels: str) -> float:
    """The sum of all samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Leave no connection open."""
    yield
    for line in Line.opened:
        line.close()
    Line.opened.clear()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with upstream_server() as server:
        yield server


def arguments(upstream: Upstream) -> Sequence[str]:
    return (
        *("--upstream", f"far={upstream.url}#big", "--workers", "2", "--store", "memory"),
        *("--api-key", "static", "--admin-key", "admin"),
    )


@pytest.fixture(scope="module")
def site(upstream: Upstream) -> Iterator[Server]:
    with running(*arguments(upstream), "--response-cache", "1MiB", command="gateway") as server:
        yield server


@pytest.fixture
def pair(site: Server, upstream: Upstream) -> list[Line]:
    """A connection to each of the two workers."""
    upstream.hold.set()
    return lines(site)


def make_key(line: Line, **permissions: Any) -> dict[str, Any]:
    status, key = line.post("/admin/keys", ADMIN, name="test", **permissions)
    assert status == 200, key
    assert isinstance(key, dict)
    return key


def test_requests_per_minute_are_exactly_those_of_the_limit(pair: list[Line]) -> None:
    key = make_key(pair[0], requests_per_minute=13)["key"]
    assert sorted(ask_at_once(pair, key, 15)) == [200] * 13 + [429] * 17


def ask_at_once(pair: list[Line], key: str, number: int) -> list[int]:
    """The statuses of so many requests on each connection, on all of them at the same time."""
    statuses: list[int] = []

    def ask(line: Line) -> None:
        statuses.extend([line.chat(key) for _ in range(number)])

    asking = [threading.Thread(target=ask, args=(line,)) for line in pair]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return statuses


def test_tokens_per_minute_are_counted_together(pair: list[Line]) -> None:
    one, other = pair
    key = make_key(one, tokens_per_minute=1000)["key"]
    assert one.chat(key, max_tokens=700) == 200
    left = int(one.headers["x-ratelimit-remaining-tokens"])
    until(lambda: other.chat(key, max_tokens=1) == 200 and int(other.headers["x-ratelimit-remaining-tokens"]) > left)
    left = int(other.headers["x-ratelimit-remaining-tokens"])
    assert left > 900
    assert one.chat(key, max_tokens=left) == 429, (
        "the prompt is more than is left, as the other worker has admitted some"
    )
    assert other.chat(key, max_tokens=left - 100) == 200


def test_concurrency_is_one_number_and_a_client_that_leaves_frees_its_place(
    pair: list[Line], site: Server, upstream: Upstream
) -> None:
    one, other = pair
    key = make_key(one, max_concurrency=2)["key"]
    upstream.hold.clear()
    streams = [line.begin_stream(key) for line in pair]
    further = Line(site)
    assert further.chat(key) == 429
    other.close()
    until(lambda: _can_stream(site, key))
    upstream.hold.set()
    assert b"[DONE]" in streams[0].read()


def _can_stream(site: Server, key: str) -> bool:
    with httpx.stream("POST", site.url + CHAT, headers=bearer(key), trust_env=False,
                      json={"model": "far", "messages": HELLO, "stream": True}) as answer:  # fmt: skip
        return answer.status_code == 200


def test_any_worker_shows_the_figures_of_all(pair: list[Line]) -> None:
    one, other = pair
    key = make_key(one)["key"]
    labels = {"route": CHAT, "status": "200"}
    before = total(one.metrics(), "langport_requests_total", **labels)
    assert [line.chat(key) for line in (one, one, one, other, other)] == [200] * 5
    for line in pair:
        until(partial(_has_counted, line, before + 5))
    shown = [line.metrics() for line in pair]
    assert [total(text, "langport_requests_total", **labels) for text in shown] == [before + 5] * 2
    for text in shown:
        assert total(text, "langport_request_duration_seconds_count", route=CHAT) >= before + 5
        assert text.count("# TYPE langport_requests_total counter") == 1
        assert total(text, "langport_places", queue="far") == 4096
        assert total(text, "langport_info") == 1
        resident = total(text, "process_resident_memory_bytes")
        assert resident > 40e6, "of three processes"


def _has_counted(line: Line, number: float) -> bool:
    """A request is counted when its answer has ended, which its client may know a little earlier."""
    return total(line.metrics(), "langport_requests_total", route=CHAT, status="200") >= number


def test_a_key_is_known_and_revoked_in_every_process_at_once(pair: list[Line]) -> None:
    one, other = pair
    key = make_key(one)
    assert other.chat(key["key"]) == 200
    assert other.get(f"/admin/keys/{key['id']}", **ADMIN)[0] == 200
    one._ask("DELETE", f"/admin/keys/{key['id']}", None, ADMIN)
    assert [line.chat(key["key"]) for line in (other, one, other)] == [401] * 3


def test_budgets_and_usage_are_those_of_all(pair: list[Line]) -> None:
    one, other = pair
    key = make_key(one, budgets=[{"per": "day", "tokens": 10}])
    assert one.chat(key["key"]) == 200
    until(lambda: _usage(other, key["id"])["num_requests"] == 1)
    assert other.chat(key["key"]) == 429
    assert one.chat(key["key"]) == 429
    assert _usage(other, key["id"])["num_failed"] in (0, 2)  # what was refused may be written down, too


def _usage(line: Line, id: str) -> dict[str, Any]:
    found = json.loads(line.get(f"/admin/usage?key_id={id}", **ADMIN)[1])["data"]
    return found[0] if found else {"num_requests": 0}


def test_what_one_worker_has_kept_another_gives_again(pair: list[Line], upstream: Upstream) -> None:
    one, other = pair
    body = {"model": "far", "messages": HELLO, "temperature": 0, "seed": 7}
    assert one.post(CHAT, bearer("static"), **body)[0] == 200
    assert one.headers["x-langport-cache"] == "miss"
    until(lambda: other.post(CHAT, bearer("static"), **body)[0] == 200 and other.headers["x-langport-cache"] == "hit")
    assert total(one.metrics(), "langport_cache_bytes") > 0


def test_a_batch_is_worked_on_once(pair: list[Line], site: Server, upstream: Upstream) -> None:
    requests = [
        {"custom_id": str(n), "method": "POST", "url": CHAT, "body": {"model": "far", "messages": HELLO, "user": "b"}}
        for n in range(12)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    file = httpx.post(
        site.url + "/v1/files",
        files={"file": ("x.jsonl", content)},
        data={"purpose": "batch"},
        headers=bearer("static"),
        trust_env=False,
    ).json()
    for line in pair:  # each of them wakes its own worker's runner
        status, batch = line.post(
            "/v1/batches", bearer("static"), input_file_id=file["id"], endpoint=CHAT, completion_window="24h"
        )
        assert status == 200, batch
        for each in pair:
            until(partial(_is_completed, each, batch["id"]))
        assert _batch(line, batch["id"])["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    lines_asked = [body for _, _, body in upstream.requests if json.loads(body).get("user") == "b"]
    assert len(lines_asked) == 24


def _batch(line: Line, id: str) -> Any:
    return json.loads(line.get(f"/v1/batches/{id}", **bearer("static"))[1])


def _is_completed(line: Line, id: str) -> bool:
    return bool(_batch(line, id)["status"] == "completed")


def test_settings_are_read_again_by_all_and_bad_ones_by_none(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "langport.yaml"
    settings = {"workers": 2, "upstreams": [{"name": "far", "url": upstream.url, "model": "big"}], "admin_key": "admin"}
    file.write_text(json.dumps({**settings, "store": "none"}))
    with running("--config", str(file), command="gateway") as server:
        pair = lines(server)
        body = {"model": "near", "messages": HELLO}
        assert [line.post(CHAT, {}, **body)[0] for line in pair] == [404, 404]
        file.write_text(json.dumps({**settings, "store": "none", "redirect": ["near:far"]}))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "Reloaded: settings changed: redirect." in server.log)
        assert [line.post(CHAT, {}, **body)[0] for line in pair] == [200, 200]

        file.write_text(json.dumps({**settings, "redirect": ["near:nowhere"]}))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "--redirect near:nowhere: write FROM:TO" in server.log)
        status, answer = pair[0].post("/admin/reload", ADMIN)
        assert (status, "near:nowhere" in answer["error"]["message"]) == (400, True)
        assert [line.post(CHAT, {}, **body)[0] for line in pair] == [200, 200]
        assert server.log.count("--redirect near:nowhere: write FROM:TO") == 2  # once for each that asked

        file.write_text(json.dumps({**settings, "workers": 3, "api_key": ["k"]}))
        assert pair[1].post("/admin/reload", ADMIN) == (
            200,
            {"object": "settings.reload", "changed": ["api_key", "redirect"], "need_restart": ["workers", "store"]},
        )
        assert [line.post(CHAT, {}, **body)[0] for line in pair] == [401, 401]
        os.kill(pair[0].worker, signal.SIGKILL)
        until(lambda: len(workers(server)) == 2 and pair[0].worker not in workers(server))
        assert {line.post(CHAT, {}, **body)[0] for line in lines(server)} == {401}, "a new one begins with what holds"


def workers(server: Server) -> set[int]:
    """Process ids of those that answer: children of the process that the supervisor forks them from."""
    processes = server.processes()
    forkers = {process for process, parent in processes.items() if parent == server.process.pid}
    return {process for process, parent in processes.items() if parent in forkers}


def test_a_worker_that_is_killed_takes_only_its_own_requests(upstream: Upstream) -> None:
    with running(*arguments(upstream), command="gateway") as server:
        one, other = lines(server)
        key = make_key(one, max_concurrency=2)["key"]
        assert one.chat() == other.chat() == 200
        until(lambda: _has_counted(other, 2))  # and the worker that will be killed has told of them
        upstream.hold.clear()
        lost, kept = one.begin_stream(key), other.begin_stream(key)
        assert Line(server).chat(key) == 429
        os.kill(one.worker, signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            lost.read()
        for _ in range(10):
            assert httpx.get(server.url + "/health", trust_env=False).status_code == 200
        until(lambda: f"(process {one.worker}) died (killed by SIGKILL)" in server.log)
        assert httpx.get(server.url + "/health", trust_env=False).status_code == 200
        until(lambda: _can_begin(server, key), "the place of the request that was lost")
        upstream.hold.set()
        assert b"[DONE]" in kept.read()
        until(lambda: len(workers(server)) == 2)
        pair = lines(server)
        assert [line.chat() for line in pair] == [200, 200]
        until(lambda: _has_counted(pair[0], 4))

        # One that is told to end is replaced, and loses nothing.
        os.kill(pair[0].worker, signal.SIGTERM)
        until(lambda: f"(process {pair[0].worker}) has ended; another one takes its place" in server.log)
        until(lambda: len(workers(server)) == 2)
        before = total(pair[1].metrics(), "langport_requests_total", route=CHAT, status="200")
        assert [line.chat() for line in lines(server)] == [200, 200]
        until(lambda: _has_counted(pair[1], before + 2))


def _can_begin(server: Server, key: str) -> bool:
    line = Line(server)
    try:
        line.begin_stream(key)
    except AssertionError:
        return False
    finally:
        line.close()
    return True


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the supervisor", "to every process, as systemd does"])
def test_sigterm_lets_the_requests_of_all_workers_end(upstream: Upstream, send: Callable[[int, int], None]) -> None:
    with running(*arguments(upstream), command="gateway") as server:
        pair = lines(server)
        upstream.hold.clear()
        streams = [line.begin_stream() for line in pair]
        send(server.process.pid, signal.SIGTERM)
        until(lambda: "Stopping." in server.log)
        until(lambda: not _accepts(server.port))
        assert server.process.poll() is None
        upstream.hold.set()
        assert all(b"[DONE]" in stream.read() for stream in streams)
        assert server.wait_end() == 0
        until(lambda: server.processes() == {}, "the end of all processes")
        assert server.log.count("Stopping.") == 1
        assert "ERROR" not in server.log


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_workers_end_when_their_supervisor_is_killed(upstream: Upstream) -> None:
    with running(*arguments(upstream), command="gateway") as server:
        (folder,) = _folders(server)
        assert len(workers(server)) == 2
        server.process.kill()
        until(lambda: server.processes() == {}, "the end of all processes")
        assert not _accepts(server.port)
        assert not folder.exists(), "nor what --store memory keeps"


def _folders(server: Server) -> list[Path]:
    """Where a server keeps what is to be kept in memory, once it does."""
    make_key(Line(server))
    found = re.search(r"Stored objects are kept in (\S+)/store.db", server.log)
    assert found
    return [Path(found[1])]


def test_what_a_worker_cannot_do_ends_the_start_and_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "none" / "log"
    done = run_langport(
        "gateway", "--port", "0", "--workers", "2", "--upstream", "far=http://127.0.0.1:9", "--store", "none",
        "--access-log", "json", "--access-log-file", str(file),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count(f"--access-log-file {file}: cannot be written") == 1
    assert "Traceback" not in done.stderr


def test_the_access_log_has_whole_lines_of_all_workers(upstream: Upstream) -> None:
    with running(*arguments(upstream), "--access-log", "json", command="gateway") as server:
        pair = lines(server)
        assert ask_at_once(pair, "static", 25) == [200] * 50

        def logged() -> list[dict[str, Any]]:
            return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]

        until(lambda: sum(line["path"] == CHAT for line in logged()) == 50)
        assert len({line["id"] for line in logged()}) == len(logged())
