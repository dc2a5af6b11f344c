"""`langport gateway` as its user runs it, in front of servers on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.upstream import EVENTS, Upstream, upstream_server
from tests.server.process import DONE, clean_environment, error_of, run_langport, running, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as server:
        yield server


def test_every_model_that_a_server_lists_and_one_by_name(upstream: Upstream) -> None:
    arguments = ("--upstream", upstream.url, "--upstream", f"far={upstream.url}/v1#big", "--redirect", "gpt:big")
    with running(*arguments, "--upstream-key", "far=env:K", command="gateway", K="sk-far-0001") as server:
        until(lambda: len(server.get("/v1/models")["data"]) == 3)
        entries = {entry["id"]: entry for entry in server.get("/v1/models")["data"]}
        assert entries.keys() == {"far", "big", "gpt"}
        assert (entries["big"]["owned_by"], entries["far"]["root"]) == ("them", "big")
        assert server.post(CHAT, model="far", messages=HELLO)["model"] == "big"
        assert server.post(CHAT, model="gpt", messages=HELLO)["model"] == "big"
        with server.stream(CHAT, model="far", messages=HELLO) as events:
            assert list(events) == [*EVENTS, DONE]
        status, kind, param, code = error_of(server.http.post(CHAT, json={"model": "no", "messages": HELLO}))
        assert (status, kind, param, code) == (404, "invalid_request_error", "model", "model_not_found")
        metrics = server.http.get("/metrics").text
        log = server.log
    named, listed = (headers for _, headers, _ in upstream.requests[:2])
    assert named["authorization"] == "Bearer sk-far-0001"
    assert "authorization" not in listed
    assert "sk-far-0001" not in log + metrics


def test_it_is_up_though_nobody_else_is_and_asks_again(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with running(
        "--upstream", dead, "--upstream", f"far={dead}", "--upstream", upstream.url, command="gateway"
    ) as server:
        assert server.http.get("/ready").status_code == 200
        until(lambda: any(entry["id"] == "big" for entry in server.get("/v1/models")["data"]))
        status, _, _, code = error_of(server.http.post(CHAT, json={"model": "far", "messages": HELLO}))
        assert (status, code) == (502, "upstream_error")
        assert f"The upstream {dead} cannot be reached: Connection refused." in server.log


@pytest.mark.parametrize("num_gateways", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_the_servers_work(upstream: Upstream, num_gateways: int, stream: bool) -> None:
    upstream.hold.clear()
    with running("--upstream", f"far={upstream.url}#big", command="gateway") as inner:
        if num_gateways == 1:
            _hang_up(inner.url, upstream, stream)
            return
        with running("--upstream", f"far={inner.url}", command="gateway") as outer:
            _hang_up(outer.url, upstream, stream)
            until(lambda: inner.metric("langport_requests_in_flight") == 1)  # the one that asks


def _hang_up(url: str, upstream: Upstream, stream: bool) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": "far", "messages": HELLO, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head + body)
        assert upstream.began.wait(60)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    if stream:
        assert upstream.left.wait(60)
    else:
        until(lambda: _has_ended_unanswered(url))


def _has_ended_unanswered(url: str) -> bool:
    return 'status="499"' in httpx.get(f"{url}/metrics", trust_env=False).text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_open_requests_finish(upstream: Upstream, number: signal.Signals) -> None:
    upstream.hold.clear()
    with running("--upstream", f"far={upstream.url}#big", command="gateway") as server:
        answers: list[httpx.Response] = []
        body = {"model": "far", "messages": HELLO}
        asking = threading.Thread(target=lambda: answers.append(server.http.post(CHAT, json=body)))
        asking.start()
        assert upstream.began.wait(60)
        os.kill(server.process.pid, number)
        until(lambda: "Stopping." in server.log)
        until(lambda: not _accepts(server.port))
        assert server.process.poll() is None
        upstream.hold.set()
        asking.join(60)
        assert answers[0].json()["model"] == "big"
        assert server.wait_end() == 0


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_stored_objects_are_there_and_loaded_when_asked_for(upstream: Upstream) -> None:
    with running("--upstream", f"far={upstream.url}#big", "--store", "memory", command="gateway") as server:
        assert server.get("/v1/files")["data"] == []
        lines = [{"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "far", "messages": HELLO}}]
        content = "\n".join(map(json.dumps, lines)).encode()
        file = server.http.post("/v1/files", files={"file": ("x.jsonl", content)}, data={"purpose": "batch"}).json()
        batch = server.post("/v1/batches", input_file_id=file["id"], endpoint=CHAT, completion_window="24h")
        until(lambda: server.get(f"/v1/batches/{batch['id']}")["status"] == "completed")
        output = server.get(f"/v1/batches/{batch['id']}")["output_file_id"]
        result = json.loads(server.http.get(f"/v1/files/{output}/content").text)
        assert result["response"]["body"]["model"] == "big"


LOADED = """
import sys
sys.argv = ["langport"]
import langport.gateway_server, langport.openai_api_gateway, langport.cli
import langport.openapi, langport.api.stored
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "llguidance", "numpy"}))
print(sorted(name for name in sys.modules if name.startswith(("langport.engine", "langport.models"))))
"""


def test_nothing_of_local_models_is_ever_loaded() -> None:
    """Neither at the start nor with what is loaded later."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, env=clean_environment())
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


STARTED = """
import sys
import langport.gateway_server
print(sorted({"sqlalchemy", "alembic", "langport.api.stored", "langport.openapi"} & sys.modules.keys()))
"""


def test_the_store_is_not_loaded_at_the_start() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, env=clean_environment())
    assert done.stdout.strip() == "[]", done.stderr


def test_the_older_name_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "langport.openai_api_gateway", "--help"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.stdout.startswith("usage: langport gateway [--option VALUE ...]")
    assert "--upstream" in done.stdout
    assert "--max-num-seqs" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nobody to ask: give it --upstream"),
        (("./model", "--upstream", "http://a.example"), "serves no local models, such as './model'"),
        (("--upstream", "http://a.example", "--dtype", "float32"), "gateway has no option --dtype"),
        (("--upstream", "x=http://a.example", "--upstream-key", "env:NO_SUCH"), "variable NO_SUCH is not set"),
    ],
)
def test_what_is_wrong_is_told_and_ends_with_2(arguments: tuple[str, ...], message: str) -> None:
    done = run_langport("gateway", "--port", "0", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_and_show_hide_what_is_secret(tmp_path: Path) -> None:
    file = tmp_path / "langport.yaml"
    file.write_text(
        "models: [langport-demo-chat]\nupstreams: [{name: far, url: 'http://a:sesame@b.example', key: sesame}]\n"
    )
    shown = run_langport("config", "show", "--config", str(file))
    checked = run_langport("config", "check", "--config", str(file))
    assert (shown.returncode, checked.returncode) == (0, 0), checked.stderr
    assert "(hidden)" in shown.stdout
    assert "sesame" not in shown.stdout + shown.stderr + checked.stdout + checked.stderr
    assert "langport-demo-chat, far" in checked.stdout


def test_serve_has_local_and_remote_models_in_one_list(upstream: Upstream) -> None:
    with running("langport-demo-embed", "--upstream", f"far={upstream.url}#big") as server:
        assert [entry["id"] for entry in server.get("/v1/models")["data"]] == ["langport-demo-embed", "far"]
        assert server.post(CHAT, model="far", messages=HELLO)["model"] == "big"
        assert server.post("/v1/embeddings", model="langport-demo-embed", input="x")["data"]
