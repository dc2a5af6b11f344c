"""The parts of the assembly that need no engine: addresses, models that cannot be read, what a person is told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import pytest

from langport.errors import CheckpointError, LangPortError
from langport.gateway.app import Gateway
from langport.http_server import listen
from langport.models.classification import Classification
from langport.server import curl_example, models_at_start, read_models
from langport.settings.tree import GatewaySettings, ModelSettings, Settings, StoreSettings
from langport.stored import default_store, service_of, stored_api


def test_listens_at_once_so_that_a_second_server_is_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(LangPortError, match=f"Port {port} on 127.0.0.1 is in use.*--port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LangPortError, match=r"--host 192.0.2.1 is no address of this machine"):
        listen("192.0.2.1", 0)


def test_the_problems_of_all_models_are_told_together(tmp_path: Path) -> None:
    models = [ModelSettings("one", str(tmp_path)), ModelSettings("two", str(tmp_path / "missing"))]
    with pytest.raises(CheckpointError) as caught:
        read_models(models)
    first, second = str(caught.value).splitlines()
    assert first.startswith("one: ")
    assert "is empty" in first
    assert second.startswith("two: ")
    assert "does not exist" in second


@pytest.mark.parametrize(
    ("kind", "labels", "can_chat", "path", "field"),
    [
        ("decoder", (), True, "/v1/chat/completions", "messages"),
        ("decoder", (), False, "/v1/completions", "prompt"),
        ("encoder-decoder", (), False, "/v1/completions", "prompt"),
        ("encoder", (), False, "/v1/embeddings", "input"),
        ("encoder", ("LABEL_0",), False, "/v1/rerank", "documents"),
        ("encoder", ("no", "yes"), False, "/v1/classify", "input"),
    ],
)
def test_the_example_survives_a_shell(
    kind: str, labels: tuple[str, ...], can_chat: bool, path: str, field: str
) -> None:
    name = "it's/ä model"
    classification = Classification(labels, "softmax") if labels else None
    line = curl_example("http://localhost:8000", name, kind, classification, can_chat, "KEY")  # type: ignore[arg-type]
    words = shlex.split(line)
    assert words[:2] == ["curl", f"http://localhost:8000{path}"]
    assert "Authorization: Bearer KEY" in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == name
    assert field in body
    assert "Authorization" not in curl_example("http://localhost:8000", name, "encoder", None, False, None)


def test_the_store_is_where_the_user_keeps_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_store() == Path("/state/langport/store.db")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert default_store() == Path("~/.local/state/langport/store.db")


async def test_a_server_that_keeps_nothing_says_so() -> None:
    stored = stored_api(Settings(store=StoreSettings(place="none")), None)
    gateway = Gateway([], GatewaySettings(), service=service_of(stored, stored.recorders))
    transport = httpx.ASGITransport(app=gateway)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/chat/completions/x")):
            answer = await client.request(method, path)
            assert answer.status_code == 404
            assert "--store none" in answer.json()["error"]["message"]


def test_as_many_models_start_as_may_be_loaded_and_pinned_ones_first() -> None:
    models = (
        ModelSettings("a", "./a"),
        ModelSettings("b", "./b", load="on_request", pinned=True),
        ModelSettings("c", "./c", pinned=True),
        ModelSettings("d", "./d"),
    )
    assert models_at_start(Settings(models=models)) == {"a", "c", "d"}
    assert models_at_start(Settings(models=models, max_loaded_models=2)) == {"a", "c"}
