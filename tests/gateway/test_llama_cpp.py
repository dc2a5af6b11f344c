"""A real llama.cpp server as an upstream; `make clients` installs it (xllamacpp)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import save_checkpoint
from tests.clients.environments import python_of
from tests.engine.test_gguf import write_gguf
from tests.security.raw import connected, request
from tests.server.process import DONE, Server, clean_environment, running, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]
GREEDY: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "ignore_eos": True}

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    python = python_of("llama-cpp")
    folder = tmp_path_factory.mktemp("gguf")
    merges = {"tokenizer.ggml.merges": ["\u0100 \u0101"]}  # llama.cpp wants one; no text has these two bytes
    model = write_gguf(folder / "tiny.gguf", save_checkpoint("llama", folder / "llama"), metadata=merges)
    process = subprocess.Popen(
        [python, Path(__file__).with_name("llama_cpp_server.py"), model],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment(OMP_NUM_THREADS="1"),
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next((line.strip() for line in lines if line.startswith("http")), None)
        assert url, "llama.cpp's server did not start"
        yield url
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def gateway(llama_cpp: str) -> Iterator[Server]:
    with running("--upstream", llama_cpp, "--upstream", f"far={llama_cpp}/v1#tiny", command="gateway") as server:
        until(lambda: len(server.get("/v1/models")["data"]) == 2, "that its models are known")
        yield server


def test_its_models_are_listed(gateway: Server) -> None:
    assert {entry["id"] for entry in gateway.get("/v1/models")["data"]} == {"far", "tiny"}


def test_an_answer_is_the_one_that_it_gives_itself(gateway: Server, llama_cpp: str) -> None:
    direct = httpx.post(llama_cpp + CHAT, json={"model": "tiny", **GREEDY}, timeout=60, trust_env=False).json()
    found = gateway.post(CHAT, model="far", **GREEDY)
    assert found["choices"][0]["message"] == direct["choices"][0]["message"]
    assert found["usage"]["completion_tokens"] == 8


def test_a_stream_comes_whole(gateway: Server) -> None:
    plain = gateway.post(CHAT, model="tiny", **GREEDY)
    usage = {"stream_options": {"include_usage": True}}
    with gateway.stream(CHAT, model="tiny", **GREEDY, **usage) as events:
        *chunks, end = list(events)
    assert end == DONE
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert gateway.metric("langport_generation_tokens_total", model="tiny") >= 16


def test_its_own_parameters_and_errors_pass(gateway: Server) -> None:
    body = {"model": "far", "prompt": "Once", "n_predict": 4, "temperature": 0, "n_probs": 1}
    assert gateway.post("/v1/completions", **body)["choices"][0]["text"]
    wrong = gateway.http.post(CHAT, json={"model": "far", "messages": "Hello!"})
    assert 400 <= wrong.status_code <= 500
    assert wrong.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_slot(gateway: Server, llama_cpp: str) -> None:
    def num_busy() -> int:
        slots = httpx.get(llama_cpp + "/slots", timeout=60, trust_env=False).json()
        return sum(slot["is_processing"] for slot in slots)

    body = b'{"model":"far","prompt":"Once","max_tokens":100000,"ignore_eos":true,"stream":true,"temperature":0}'
    with connected(gateway.port) as connection:
        connection.send(request(target="/v1/completions", body=body))
        assert connection.socket.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: num_busy() == 0, "that nothing is computed any more")
    assert gateway.post(CHAT, model="far", **GREEDY)["choices"]
