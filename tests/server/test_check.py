"""`langport check` passes a right server, and sees what is wrong with a wrong one."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO

import pytest

from langport.check.checks import CHECKS
from langport.check.command import Result, run, run_checks
from langport.check.server import Answer, Server, base_url
from langport.errors import ConfigError
from tests.conftest import KEYS
from tests.server import process
from tests.server.process import run_langport
from tests.server.test_models import CHAT, EMBED

MODELS: dict[str, str | None] = {"chat": CHAT, "completion": CHAT, "embedding": EMBED}
Change = Callable[[Answer], Answer]
Respond = Callable[[str, str, bytes, dict[str, str]], Answer]


@contextmanager
def answering(respond: Respond) -> Iterator[str]:
    """A server that answers each method, path, body and headers as `respond` says; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = respond(self.command, self.path, body, dict(self.headers))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that leave are part of the checks."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def relaying(port: int, change: Change) -> Respond:
    """What the server at the port answers, changed."""

    def respond(method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=process.PATIENCE_S)
        sent = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        kept = {name.lower(): value for name, value in response.getheaders()}
        for name in ("content-length", "transfer-encoding", "connection", "date", "server"):
            kept.pop(name, None)
        answer = Answer(response.status, kept, response.read())
        connection.close()
        return change(answer)

    return respond


def results(url: str, groups: set[str] | None = None) -> dict[str, Result]:
    checks = [check for check in CHECKS if groups is None or check.group in groups]
    found = run_checks(Server(url, KEYS[0], dict(MODELS), process.PATIENCE_S), checks)
    return {f"{result.check.group}.{result.check.name}": result for result in found}


def test_a_right_server_passes(key_server: process.Server) -> None:
    done = run_langport("check", key_server.url, "--api-key", KEYS[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    assert f"(chat: {CHAT}, completion: {CHAT}, embedding: {EMBED})" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_report_in_json(key_server: process.Server) -> None:
    url = key_server.url.removeprefix("http://")
    done = run_langport("check", url, "--api-key", KEYS[0], "--json", "--embedding-model", EMBED)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (report["url"], report["failed"]) == (f"{key_server.url}/v1", 0)
    assert report["passed"] + report["skipped"] == len(report["checks"]) == len(CHECKS)
    assert all(check["rule"] and check["why"] is None for check in report["checks"] if check["outcome"] == "pass")


def test_a_wrong_key_fails(key_server: process.Server) -> None:
    done = run_langport("check", key_server.url, "--api-key", "wrong")
    assert done.returncode == 1
    assert "expected status 200, got 401" in done.stdout
    assert "the rule: GET /models answers" in done.stdout


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {"content-type": "application/json"}, b"{}"),
        Answer(200, {"content-type": "application/json"}, b"[]"),
        Answer(200, {"content-type": "text/event-stream"}, b'data: {"choices": [5]}\n\n'),
        Answer(200, {"content-type": "text/html"}, b"<html>"),
        Answer(500, {"content-type": "application/json"}, b'{"error": "x"}'),
    ],
    ids=lambda answer: answer.body.decode(),
)
def test_every_check_can_fail(answer: Answer) -> None:
    with answering(lambda *request: answer) as url:
        passed = [name for name, result in results(url).items() if result.outcome == "pass"]
    assert passed == []


def test_a_server_that_is_not_there_fails() -> None:
    with answering(lambda *request: Answer(200, {}, b"")) as url:
        pass
    out = StringIO()
    assert run(Server(url), out=out) == 1
    assert "expected an answer to GET /models, got ConnectionRefusedError" in out.getvalue()
    assert "0 passed" in out.getvalue()


def replaced(old: bytes, new: bytes, count: int = -1) -> Change:
    return lambda answer: Answer(answer.status, answer.headers, answer.body.replace(old, new, count))


def with_status(old: int, new: int) -> Change:
    return lambda answer: Answer(new if answer.status == old else answer.status, answer.headers, answer.body)


def with_header(name: str, value: str) -> Change:
    return lambda answer: Answer(answer.status, {**answer.headers, name: value}, answer.body)


def twice(line: bytes) -> Change:
    return replaced(line, line + line)


# fmt: off
WRONG: list[tuple[str, Change, set[str]]] = [
    ("no role", replaced(b'"role":"assistant",', b""), {"stream.role_first", "chat.answer"}),
    ("roles everywhere", replaced(b'"delta":{"content"', b'"delta":{"role":"user","content"'), {"stream.role_first"}),
    ("no end", replaced(b"data: [DONE]\n\n", b""), {"stream.done", "completions.stream"}),
    ("two ends", twice(b"data: [DONE]\n\n"), {"stream.done"}),
    ("no finish", replaced(b'reason":"length"', b'reason":null'), {"stream.one_finish", "completions.stream"}),
    ("finish absent", replaced(b'"finish_reason":null', b'"x":1'), {"stream.one_finish"}),
    ("usage unasked", replaced(b'"choices":[', b'"usage":{"total_tokens":1},"choices":['), {"stream.no_usage"}),
    ("usage not null", replaced(b',"usage":null', b""), {"stream.include_usage"}),
    ("a wrong sum", replaced(b'"total_tokens":', b'"total_tokens":1'), {"chat.usage", "stream.include_usage"}),
    ("other text in streams", replaced(b'"delta":{"content":"', b'"delta":{"content":"x'), {"stream.same_text"}),
    ("another object", replaced(b"chat.completion.chunk", b"chunk"), {"stream.same_id"}),
    ("one choice", replaced(b'"index":1', b'"index":0'), {"chat.n", "completions.several_prompts"}),
    ("positive logprobs", replaced(b'"logprob":-', b'"logprob":'), {"chat.logprobs"}),
    ("no arguments", replaced(b'"arguments":"', b'"arguments":"]'), {"tools.named", "tools.stream"}),
    ("another function", replaced(b'"name":"get_weather"', b'"name":"hammer"'), {"tools.named", "tools.stream"}),
    ("prose", replaced(b'"content":"{', b'"content":"Sure: {'), {"structured.json_schema", "structured.json_object"}),
    ("no echo", replaced(b'"text":"One', b'"text":"Uno'), {"completions.echo"}),
    ("lists of two lengths", replaced(b'"text_offset":[', b'"text_offset":[0,'), {"completions.logprobs"}),
    ("422", with_status(400, 422), {"errors.no_messages", "errors.wrong_type", "errors.no_json"}),
    ("no code", replaced(b'"code":"model_not_found"', b'"code":null'), {"errors.unknown_model"}),
    ("numbers as codes", replaced(b'"code":null', b'"code":400'), {"errors.wrong_type"}),
    ("no param", replaced(b'"param":"temperature"', b'"param":null'), {"errors.wrong_type", "errors.out_of_range"}),
    ("403", with_status(401, 403), {"errors.wrong_key"}),
    ("detail", replaced(b'{"error":', b'{"detail":'), {"errors.unknown_path", "errors.before_a_stream"}),
    ("text/plain", with_header("content-type", "text/plain"), {"headers.content_type", "errors.before_a_stream"}),
    ("one id for all", with_header("x-request-id", "x"), {"headers.request_id"}),
    ("no created", replaced(b'"created":', b'"made":'), {"models.list", "chat.answer", "completions.answer"}),
    ("other models", replaced(b'"object":"model"', b'"object":"thing"'), {"models.list"}),
    ("gaps", replaced(b'"sequence_number":', b'"sequence_number":1'), {"responses.stream"}),
    ("no output", replaced(b"output_text", b"out"), {"responses.answer"}),
]
# fmt: on


@pytest.mark.parametrize(("change", "failing"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_seen(key_server: process.Server, change: Change, failing: set[str]) -> None:
    groups = {name.partition(".")[0] for name in failing}
    with answering(relaying(key_server.port, change)) as url:
        found = results(url, groups)
    assert {name: found[name].outcome for name in failing} == dict.fromkeys(failing, "fail")


def test_the_relay_itself_changes_nothing(key_server: process.Server) -> None:
    with answering(relaying(key_server.port, lambda answer: answer)) as url:
        assert [name for name, result in results(url).items() if result.outcome == "fail"] == []


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("https://api.example/", "https://api.example/v1"),
        ("http://x/api/v2/", "http://x/api/v2"),
    ],
)
def test_addresses_as_they_are_typed(given: str, url: str) -> None:
    assert base_url(given) == url


@pytest.mark.parametrize("given", ["", "http://", "ftp://x", "http://x:port"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a server"):
        base_url(given)
