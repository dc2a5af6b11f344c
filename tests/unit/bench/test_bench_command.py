"""`langport bench` against a server of known answers. Only counts are compared, never times."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from langport import cli
from langport.bench import plot as plotting
from langport.bench.client import Client
from langport.bench.command import default_requests
from langport.bench.load import arrivals, closed_loop, open_loop
from langport.bench.prompts import WORDS, Lengths, Plan, Words, make_requests


@dataclass
class FakeServer:
    """Answers as many tokens as are asked for, each in its own event; every word is two tokens."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    num_connections: int = 0
    num_open: int = 0
    max_open: int = 0
    tokenize_field: str | None = "prompt"
    """How /tokenize wants the text; None: there is none."""
    short_after: int = 1_000_000
    """Answers before they begin to have a token too few."""
    fail_after: int = 1_000_000
    """Answers before 503."""
    gate: threading.Barrier | None = None
    """So many requests must be open at once before any is answered."""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
        if path == "/v1/models":
            return 200, "application/json", b'{"data":[{"id":"first"},{"id":"second"}]}'
        if path == "/tokenize":
            if self.tokenize_field is None:
                return 404, "text/plain", b"none"
            tokens = [0] * 2 * len(str(body.get(self.tokenize_field, "")).split())
            return 200, "application/json", json.dumps({"tokens": tokens}).encode()
        self.bodies.append(body)
        if body["model"] == "first" and path != "/v1/embeddings":
            return 400, "application/json", b'{"error":{"message":"an embedder"}}'
        if len(self.bodies) > self.fail_after:
            return 503, "application/json", b'{"error":{"message":"busy"}}'
        if path == "/v1/embeddings":
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            found = {"data": [{"embedding": "AAAA"} for _ in texts], "usage": {"prompt_tokens": 3 * len(texts)}}
            return 200, "application/json", json.dumps(found).encode()
        num = body["max_tokens"] - (len(self.bodies) > self.short_after)
        piece = {"text": "x"} if path == "/v1/completions" else {"delta": {"content": "x"}}
        usage = {"prompt_tokens": 10, "completion_tokens": num}
        events = [{"choices": [piece]}] * num + [{"choices": [], "usage": usage}]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return 200, "text/event-stream" if body.get("stream") else "application/json", data.encode()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                fake.num_connections += 1

        def do_GET(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            body = json.loads(data or b"{}")
            with lock:
                fake.num_open += 1
                fake.max_open = max(fake.max_open, fake.num_open)
                fake.keys.add(self.headers.get("authorization"))
                status, kind, answer = fake.answer(self.path, body)
            if fake.gate is not None and "stream" in body:
                fake.gate.wait(60)
            with lock:
                fake.num_open -= 1
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Threads(ThreadingHTTPServer):
        request_queue_size = 64
        daemon_threads = True

    running = Threads(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    fake.url = f"http://127.0.0.1:{running.server_port}"
    yield fake
    running.shutdown()
    thread.join()
    running.server_close()


def bench(server: FakeServer, arguments: str) -> int:
    return cli.main(["bench", server.url, *arguments.split()])


def test_a_sweep_asks_what_it_says(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    arguments = f"--concurrency 1,3 --requests 6 --prompt-tokens 11-20 --output-tokens 2-5 --api-key k --json {file}"
    assert bench(server, arguments) == 0
    told = json.loads(file.read_text())
    assert (told["model"], told["load"]["counted_in"]) == ("second", "tokens")
    asked = [body for body in server.bodies if body.get("stream")]
    assert len(asked) == 1 + 2 * 6
    for body in asked:
        [message] = body["messages"]
        assert 5 <= len(message["content"].split()) <= 10  # each word is two tokens
        assert (body["ignore_eos"], body["stream_options"]) == (True, {"include_usage": True})
    first, second = (sorted(body["max_tokens"] for body in asked[begin : begin + 6]) for begin in (1, 7))
    assert first == second  # the seed's
    assert len(set(first)) > 1
    for level, clients in zip(told["levels"], (1, 3), strict=True):
        assert (level["level"], level["num_requests"], level["num_answered"]) == (clients, 6, 6)
        assert level["output_tokens"] == sum(first) / 6
        assert level["first_token_ms"]["num"] == 6
        assert level["inter_token_ms"]["num"] == sum(first) - 6
    assert "Bearer k" in server.keys
    out, err = capsys.readouterr()
    assert "11-20 in, 2-5 out (tokens)" in out
    assert len(out.splitlines()) == 5
    assert err == ""


def test_as_many_requests_are_open_as_there_are_clients(server: FakeServer) -> None:
    server.gate = threading.Barrier(4)
    assert bench(server, "--model second --concurrency 4 --requests 8 --warmup 0 --output-tokens 1") == 0
    assert server.max_open == 4
    # The number of connections that ask for tokens is one for each of /tokenize's.
    assert server.num_connections == len(WORDS) + 4


def test_an_open_loop_does_not_wait_for_answers(server: FakeServer) -> None:
    server.gate = threading.Barrier(5)
    assert bench(server, "--model second --rate 100000 --requests 5 --warmup 0 --endpoint completions") == 0
    assert server.max_open == 5
    assert all("prompt" in body for body in server.bodies)


def test_a_shared_prefix_begins_every_prompt(server: FakeServer) -> None:
    server.tokenize_field = "content"
    assert bench(server, "--model m --concurrency 2 --requests 4 --shared-prefix 40 --prompt-tokens 10") == 0
    words = [body["messages"][0]["content"].split() for body in server.bodies]
    assert {len(prompt) for prompt in words} == {25}
    assert len({tuple(prompt[:20]) for prompt in words}) == 1
    assert len({tuple(prompt[20:]) for prompt in words}) > 1


def test_embeddings(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.tokenize_field = None
    file = tmp_path / "out.json"
    arguments = f"--endpoint embeddings --batch 4 --concurrency 2 --requests 6 --prompt-tokens 7 --json {file}"
    assert bench(server, arguments) == 0
    told = json.loads(file.read_text())
    assert (told["model"], told["load"]["counted_in"], told["load"]["batch"]) == ("first", "words", 4)
    assert [len(text.split()) for text in server.bodies[-1]["input"]] == [7] * 4
    assert told["levels"][0]["prompt_tokens"] == 12
    assert told["levels"][0]["answer_ms"]["num"] == 6
    assert "texts/s" in capsys.readouterr().out


def test_a_server_that_answers_too_little_is_told_of(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.short_after = 3
    assert bench(server, "--model m --concurrency 1 --requests 4 --output-tokens 5 --no-extras") == 1
    assert all("ignore_eos" not in body for body in server.bodies)
    assert "clients 1: 2 of 4 requests: short answer (4 tokens came where 5 were asked for)" in capsys.readouterr().err
    assert bench(server, "--model m --concurrency 1 --requests 4 --output-tokens 5 --allow-short") == 0
    server.short_after = 0
    assert bench(server, "--model m --output-tokens 5") == 1
    assert (
        "The first request failed: short answer: 4 tokens came where 5 were asked for; does the server"
        in capsys.readouterr().err
    )


def test_errors_are_counted_by_kind(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.fail_after = 3
    file = tmp_path / "out.json"
    assert bench(server, f"--model m --concurrency 1 --requests 5 --json {file}") == 1
    [level] = json.loads(file.read_text())["levels"]
    assert (level["num_answered"], level["errors"], level["messages"]) == (2, {"status 503": 3}, {"status 503": "busy"})
    assert "langport: error: clients 1: 3 of 5 requests: status 503 (busy)" in capsys.readouterr().err


def test_fields_of_the_body(server: FakeServer) -> None:
    body = '{"top_k":5,"temperature":null}'
    assert bench(server, f"--model m --concurrency 1 --requests 1 --body {body}") == 0
    assert server.bodies[0]["top_k"] == 5
    assert "temperature" not in server.bodies[0]


def test_comparing(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.json"
    options = "--model m --concurrency 2 --requests 2"
    assert bench(server, f"{options} --json {file}") == 0
    assert bench(server, f"{options} --compare {file} --output-tokens 9") == 0
    out = capsys.readouterr().out
    assert "not the same: output_tokens is 9, was 128" in out
    assert "clients 2: tokens/s " in out


def test_a_plot(server: FakeServer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'langport[plot]'")
    file = tmp_path / "out.png"
    options = "--model m --concurrency 1,2 --requests 2 --output-tokens 3"
    for endpoint in ("completions", "embeddings"):
        assert bench(server, f"{options} --endpoint {endpoint} --plot {file}") == 0
        assert file.read_bytes().startswith(b"\x89PNG")
        file.unlink()


def test_without_matplotlib_nothing_is_measured(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    assert bench(server, "--model m --plot x.png") == 2
    assert "pip install 'langport[plot]'" in capsys.readouterr().err
    assert server.bodies == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--concurrency 0", "--concurrency is 1 at least."),
        ("--concurrency 1,x", "--concurrency takes a whole number, not 'x'."),
        ("--rate 1 --concurrency 1", "--rate is an open loop and --concurrency a closed one: give one of them."),
        ("--rate -1", "--rate is above 0."),
        ("--rate nan", "--rate takes a number, not 'nan'."),
        ("--prompt-tokens 9-2", "--prompt-tokens 9-2: the range ends before it begins."),
        ("--output-tokens 1-x", "--output-tokens takes a whole number, not 'x'."),
        ("--body []", "--body takes a JSON object, such as '{\"top_k\": 20}'."),
        ("--compare /nowhere.json", "--compare /nowhere.json: No such file or directory."),
        ("--json /nowhere/x.json", "--json /nowhere/x.json: there is no directory /nowhere."),
        ("--timeout 0", "--timeout is above 0."),
    ],
)
def test_wrong_options(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "localhost:1", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"langport: error: {message}\n"


def test_all_wrong_options_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "x", "--concurrency", "a", "--batch", "0", "--seed", "s"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_file_that_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert cli.main(["bench", "x", "--compare", str(tmp_path / "x.json")]) == 2
    assert "is no report of `langport bench --json`" in capsys.readouterr().err


def test_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1/v1 cannot be measured: expected an answer to GET /models" in capsys.readouterr().err
    assert cli.main(["bench", "127.0.0.1:1", "--model", "m"]) == 1
    assert "The first request failed: no connection: 127.0.0.1:1: " in capsys.readouterr().err


async def test_a_kept_connection_that_the_server_has_closed_is_replaced(server: FakeServer) -> None:
    plan = Plan("chat", "m", Lengths(1, 1), Lengths(1, 1))
    client = Client(f"{server.url}/v1", None, 60)
    requests = make_requests(plan, Words({"word": 1}), "", 3, 0)
    first = await closed_loop(client, requests, 1, lambda sample: None)
    assert server.num_connections == 1
    [kept] = client._free
    assert kept._transport is not None
    kept._transport.abort()  # which the client is told of when it has sent the next request
    answer = await client.post(requests[0].path, requests[0].body)
    assert server.num_connections == 2
    [kept] = client._free
    kept.close()
    second = await open_loop(client, requests, 1e6, 0, lambda sample: None)
    client.close()
    assert answer.usage is not None
    assert [sample.error for run in (first, second) for sample in run.samples] == [None] * 6


def test_arrivals_are_the_seeds_and_their_mean_is_the_rates() -> None:
    times = arrivals(4.0, 4001, 7)
    assert times == arrivals(4.0, 4001, 7)
    assert times != arrivals(4.0, 4001, 8)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1000, rel=0.05)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # Exponential: 1 - 1/e of the gaps are shorter than the mean.
    assert sum(gap < 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)


def test_texts_have_the_tokens_that_are_wanted() -> None:
    words = Words({"a": 2, "b": 3}, random.Random(0))
    costs = {"a": 2, "b": 3}
    for wanted in (2, 3, 7, 100):
        assert wanted - 1 <= sum(costs[word] for word in words.text(wanted).split()) <= wanted
    assert words.text(1) == "a"


@pytest.mark.parametrize(
    ("level", "is_open", "num"), [(1, False, 8), (32, False, 128), (0.1, True, 20), (2.5, True, 75)]
)
def test_how_many_requests_are_made(level: float, is_open: bool, num: int) -> None:
    assert default_requests(level, is_open=is_open) == num
