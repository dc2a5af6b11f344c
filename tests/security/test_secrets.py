"""Keys of every kind in one server, and all that comes out of it: none of them is in anything of that."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.security.raw import ADMIN_KEY, BODY, KEY, ask, request
from tests.server.process import Server, run_langport, running, until
from tests.server.test_seeing import collector

SECRETS = {
    "a client's key": KEY,
    "the admin's key": ADMIN_KEY,
    "an upstream's key in the environment": "sk-upstream-env-0123456789",
    "an upstream's key in a file": "sk-upstream-file-0123456789",
    "an upstream's key in the settings": "sk-upstream-text-0123456789",
    "a secret header": "header-secret-0123456789",
    "a password in a URL": "url-password-0123456789",
    "a proxy's password": "proxy-password-0123456789",
}
WRONG = "sk-wrong-0123456789"
STREAMED = BODY[:-1] + b',"stream":true}'


@contextmanager
def telltale() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that repeats in its errors every header that it was sent, in its own headers as well."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps(
                {"error": {"message": str(self.headers), "type": "x", "param": None, "code": None}}
            ).encode()
            self.send_response((400, 401, 429, 500)[len(seen) % 4])
            for name in ("authorization", "api-key", "x-secret"):
                if name in self.headers:
                    self.send_header(f"x-echo-{name}", self.headers[name])
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", seen
        server.shutdown()


def settings(folder: Path, address: str) -> Path:
    (folder / "key").write_text(SECRETS["an upstream's key in a file"])
    upstreams = [
        {"name": "far", "url": f"http://{address}", "key": "env:UPSTREAM_KEY"},
        {"name": "file", "url": f"http://{address}/v1", "key": f"file:{folder / 'key'}", "api": "azure"},
        {"name": "text", "url": f"http://{address}", "key": SECRETS["an upstream's key in the settings"]},
        {"name": "header", "url": f"http://{address}", "headers": {"x-secret": SECRETS["a secret header"]}},
        {"name": "url", "url": "http://user:" + SECRETS["a password in a URL"] + "@" + address},
        {
            "name": "proxied",
            "url": "http://nowhere.example",
            "proxy": "http://user:" + SECRETS["a proxy's password"] + "@127.0.0.1:1",
        },
    ]
    file = folder / "langport.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "api_key": [KEY],
                "admin_key": ADMIN_KEY,
                "upstreams": upstreams,
                "routes": {"all": [upstream["name"] for upstream in upstreams]},
                "access_log": "json",
                "access_log_file": str(folder / "access.log"),
                "metrics_by_key": True,
                "store": str(folder / "store.db"),
                "log_level": "debug",
            }
        )
    )
    return file


def test_no_key_gets_out(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter", reason="the extra otel is not installed")
    environment = {"UPSTREAM_KEY": SECRETS["an upstream's key in the environment"]}
    with telltale() as (address, seen), collector() as (traces, received):
        file = settings(tmp_path, address)
        options = ("--config", str(file), "--otlp-traces-endpoint", traces)
        with running(*options, command="gateway", **environment) as server:
            admin = f"Authorization: Bearer {ADMIN_KEY}".encode()
            made = json.loads(ask(server.port, request("POST", "/admin/keys", body=b'{"name":"Anna"}', key=admin)).body)
            stored = made["key"]
            answers = "".join(str(answer) for answer in everything(server, stored))
            until(lambda: "far" in (tmp_path / "access.log").read_text(), "the access log")
            server.process.terminate()
            server.wait_end()
            log = server.log
        shown = [
            run_langport(*command, "--config", str(file), LANGPORT_STORE=str(tmp_path / "store.db"), **environment)
            for command in (("config", "show"), ("config", "check"), ("keys", "list"), ("keys", "show", "Anna"))
        ]
        assert [done.returncode for done in shown] == [0, 0, 0, 0], shown
        outs = {
            "answers": answers,
            "the log": log,
            "the access log": (tmp_path / "access.log").read_text(),
            "traces": b"".join(received).decode("latin-1"),
            "commands": "".join(done.stdout + done.stderr for done in shown),
            "the store": "".join(path.read_bytes().decode("latin-1") for path in tmp_path.glob("store.db*")),
        }
    sent = str(seen)
    for what in ("in the environment", "in a file", "in the settings"):
        assert SECRETS[f"an upstream's key {what}"] in sent  # it was there to get out
    assert SECRETS["a secret header"] in sent
    for name, secret in {**SECRETS, "a stored key": stored}.items():
        assert len(outs["traces"]) > 100
        for place, text in outs.items():
            assert secret not in text, f"{name} is in {place}"
        if name in ("a client's key", "the admin's key", "a stored key"):
            assert secret not in sent, f"{name} went to an upstream"
    assert WRONG not in "".join(outs.values())


def everything(server: Server, stored: str) -> Iterator[object]:
    """Answers to requests with every key in every place."""
    port = server.port
    for model in (b"far", b"file", b"text", b"header", b"url", b"proxied", b"all"):
        for body in (BODY, STREAMED):
            for key in (KEY, stored):
                yield ask(port, request(body=body.replace(b"far", model), key=f"Authorization: Bearer {key}".encode()))
    headers = ("Authorization: Bearer {}", "Authorization: Basic {}", "api-key: {}", "x-api-key: {}", "Cookie: key={}")
    for header in headers:
        for key in (KEY, stored, WRONG, ADMIN_KEY):
            for path in ("/v1/models", "/v1/models/none", "/none", "/admin/keys", "/admin/usage", "/metrics"):
                yield ask(port, request("GET", path + f"?api_key={key}", key=header.format(key).encode()))
            yield ask(port, request(body=b"{", key=header.format(key).encode()))
            yield ask(port, request(key=header.format(key).encode(), body=BODY.replace(b"far", b"none")))
    for path in ("/docs", "/openapi.json", "/v1/models", "/metrics", "/"):
        yield ask(port, request("GET", path))
