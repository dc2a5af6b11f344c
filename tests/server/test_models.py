"""What the server tells about itself: models and aliases, health, metrics, documents, CORS."""

from __future__ import annotations

import pytest

from tests.conftest import KEYS
from tests.server.process import Server, error_of

CHAT, TEXT2TEXT, EMBED = "langport-demo-chat", "langport-demo-text2text", "langport-demo-embed"
ALIASES = ("openbuddy", "vicuna-7b-v1.1")
PAGE = "https://app.example"


def test_every_model_and_alias_is_listed_and_can_be_retrieved(demo_server: Server) -> None:
    listed = demo_server.get("/v1/models")
    assert listed["object"] == "list"
    entries = {entry["id"]: entry for entry in listed["data"]}
    assert list(entries) == [CHAT, TEXT2TEXT, EMBED, *ALIASES]
    for name, entry in entries.items():
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert entry["owned_by"]
        assert entry["root"] == (CHAT if name in ALIASES else name)
        for path in (f"/v1/models/{name}", f"/models/{name}", f"/openai/models/{name}"):
            assert demo_server.get(path) == entry
    assert entries[CHAT]["max_model_len"] >= 4096
    assert entries["openbuddy"]["max_model_len"] == entries[CHAT]["max_model_len"]


def test_an_unknown_model_is_not_found(demo_server: Server) -> None:
    for name in ("nobody", "org/nobody", "org%2Fnobody"):
        response = demo_server.http.get(f"/v1/models/{name}")
        assert error_of(response) == (404, "invalid_request_error", "model", "model_not_found")
        assert name.replace("%2F", "/") in response.json()["error"]["message"]


def test_health_and_readiness(demo_server: Server) -> None:
    assert demo_server.get("/health") == {"status": "ok"}
    assert demo_server.get("/ready") == {"status": "ready"}


def test_metrics_count_requests_and_know_every_model(demo_server: Server) -> None:
    labels = {"route": "/v1/embeddings", "model": EMBED, "status": "200"}
    demo_server.post("/v1/embeddings", model=EMBED, input="one")
    before = demo_server.metric("langport_requests_total", **labels)
    demo_server.post("/v1/embeddings", model=EMBED, input="two")
    assert demo_server.metric("langport_requests_total", **labels) == before + 1
    for model in (CHAT, TEXT2TEXT, EMBED):
        assert demo_server.metric("langport_model_ready", model=model) == 1
        assert demo_server.metric("langport_engine_num_waiting", model=model) == 0


def test_every_documented_path_is_there(demo_server: Server) -> None:
    document = demo_server.get("/openapi.json")
    for path in ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        assert path in document["paths"]
    page = demo_server.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


def test_answers_name_their_request(demo_server: Server) -> None:
    response = demo_server.http.get("/v1/models")
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["openai-organization"]
    assert response.headers["openai-processing-ms"].isdigit()
    mine = demo_server.http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"


def test_the_allowed_page_may_call_and_another_may_not(demo_server: Server) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = demo_server.http.options("/v1/chat/completions", headers={"Origin": PAGE, **preflight})
    assert allowed.is_success
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    answer = demo_server.http.get("/v1/models", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    other = demo_server.http.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_the_server(key_server: Server, key: str) -> None:
    for header in ({"Authorization": f"Bearer {key}"}, {"api-key": key}):
        models = key_server.get("/v1/models", **header)
        assert [entry["id"] for entry in models["data"]] == [CHAT, EMBED]


def test_probes_need_no_key(key_server: Server) -> None:
    assert key_server.get("/health") == {"status": "ok"}
    assert key_server.get("/ready") == {"status": "ready"}


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": KEYS[0]}])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions", "/v1/nowhere"])
def test_without_a_key_everything_else_is_closed(key_server: Server, path: str, header: dict[str, str]) -> None:
    method = "POST" if "chat" in path else "GET"
    response = key_server.http.request(method, path, headers=header, content=b"{" if method == "POST" else None)
    assert error_of(response) == (401, "invalid_request_error", None, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "sk-" not in response.text


def test_keys_are_not_written_to_the_log(key_server: Server) -> None:
    key_server.get("/v1/models", Authorization=f"Bearer {KEYS[0]}")
    assert not any(key in key_server.log for key in KEYS)
