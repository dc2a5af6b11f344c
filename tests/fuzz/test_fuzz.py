"""Whatever is sent, the server answers with what it was asked for or says what is wrong, and goes on with nothing left.

The bundled models answer with short contexts, so that no request can ask for much. Schemathesis draws requests from
/openapi.json; `bodies` holds what no schema would allow.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from langport.gateway.app import ADAPTER_PATHS
from langport.openapi import openapi_document
from tests.checkpoints import save_classifier
from tests.fuzz.bodies import CHAT, CLASSIFIER, EMBED, GOOD, TEXT2TEXT, Body, large_bodies, mutations, whole_bodies
from tests.server.process import Server, running, until

PATHS = list(GOOD)
ANTHROPIC = "/v1/messages"
OF_ENCODERS = {
    "EmbeddingRequest": [EMBED],
    "RerankRequest": [EMBED, CLASSIFIER],
    "ScoreRequest": [EMBED, CLASSIFIER],
    "ClassifyRequest": [CLASSIFIER],
}
SAMPLE = 80
"""Mutations of each endpoint that every run tries; the slow test tries all."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    classifier = save_classifier("bert", tmp_path_factory.mktemp("classifier"), num_labels=1)
    with running(
        *(CHAT, TEXT2TEXT, EMBED, f"{CLASSIFIER}={classifier}"),
        *("--max-model-len", "256"),
        *("--store", "memory"),
        "--allow-adapter-updates",
        COMPLETION_MAX_N="3",
        HF_HUB_OFFLINE="1",
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    """After each test the server answers, does nothing any more and has not failed."""
    before = len(server.log)
    yield
    until(lambda: server.metric("langport_requests_in_flight") == 1, "the end of all requests but this one")
    for model in (CHAT, TEXT2TEXT, EMBED, CLASSIFIER):
        for figure in ("running", "waiting"):
            name = f"langport_engine_num_{figure}"
            until(
                lambda name=name, model=model: server.metric(name, model=model) == 0, f"{model} with nothing {figure}"
            )
    log = server.log[before:]
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
    assert server.chat("Hello!", max_tokens=2)


def is_anthropic(path: str) -> bool:
    return path == ANTHROPIC or path.startswith(ANTHROPIC + "/")


def assert_answered(path: str, status: int, content_type: str, body: bytes) -> None:
    """A success, or an error that is the request's fault, in the form of the path's API."""
    text = body.decode()
    assert status < 500, f"{status}: {text[:500]}"
    if content_type.startswith("text/event-stream"):
        assert status == 200
        events = [json.loads(line[6:]) for line in text.splitlines() if line[:6] == "data: " and line[6:] != "[DONE]"]
        assert events, "a stream without events"
        assert not [event for event in events if event.get("error")], text[-500:]
    elif status >= 400:
        assert_error(path, status, content_type, json.loads(text))
    elif content_type.startswith("application/json"):
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def assert_error(path: str, status: int, content_type: str, answer: dict[str, Any]) -> None:
    assert content_type == "application/json"
    error = answer["error"]
    if is_anthropic(path):
        assert answer.keys() == {"type", "error", "request_id"}
        assert (answer["type"], error.keys()) == ("error", {"type", "message"})
    else:
        assert answer.keys() == {"error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    assert status in (400, 403, 404, 405, 413)
    assert isinstance(error["message"], str)
    assert 10 < len(error["message"]) < 2000, error["message"][:3000]


def send(server: Server, bodies: Iterable[Body]) -> None:
    """Send all, then say what went wrong with any of them."""
    problems = []
    for body in bodies:
        response = server.http.post(body.path, content=body.data, headers={"Content-Type": "application/json"})
        try:
            assert_answered(body.path, response.status_code, response.headers["content-type"], response.content)
        except Exception as problem:
            problems.append(f"{body.path}: {body.what}: {type(problem).__name__}: {str(problem)[:400]}")
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:20])


@pytest.fixture(scope="module")
def fields(server: Server) -> Callable[[str], list[str]]:
    """The names of a path's fields, from the server's document; none where it has another path."""
    document = server.get("/openapi.json")

    def of(path: str) -> list[str]:
        found = document["paths"].get(path)
        if found is None:
            return []
        name = found["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        return list(document["components"]["schemas"][name]["properties"])

    return of


def test_there_is_a_good_body_for_every_endpoint_and_it_is_good(server: Server) -> None:
    document = server.get("/openapi.json")
    in_json = {
        path
        for path, item in document["paths"].items()
        if "application/json" in item.get("post", {}).get("requestBody", {}).get("content", {})
        and not path.startswith("/admin/")  # no door without an admin key: tests/security/test_admin_door.py
    }
    found = {path.replace("chatcmpl-x", "{completion_id}").replace("upload-x", "{upload_id}") for path in PATHS}
    assert found == in_json
    for path, bodies in GOOD.items():
        for body in bodies:
            response = server.http.post(path, json=body)
            names_nothing_there = "-x" in path or path in ("/v1/batches", *ADAPTER_PATHS)
            assert response.status_code == 200 or (names_nothing_there and response.status_code in (400, 404)), (
                f"{path}: {response.text}"
            )


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_wrong_somewhere(server: Server, path: str, fields: Callable[[str], list[str]]) -> None:
    bodies = list(mutations(path, fields(path)))
    send(server, random.Random(path).sample(bodies, min(SAMPLE, len(bodies))))


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_wrong_as_a_whole(server: Server, path: str) -> None:
    send(server, whole_bodies(path))


@pytest.mark.parametrize("path", PATHS)
def test_a_body_of_ten_megabytes(server: Server, path: str) -> None:
    send(server, list(large_bodies(path))[-1:])


def test_a_prompt_of_ten_megabytes(server: Server) -> None:
    send(server, [body for body in large_bodies("/v1/completions") if "prompt" in body.what])


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_bodies_of_ten_megabytes(server: Server, path: str) -> None:
    send(server, large_bodies(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_wrong_anywhere(server: Server, path: str, fields: Callable[[str], list[str]]) -> None:
    send(server, mutations(path, fields(path)))


def operations() -> list[Any]:
    """Of the document, in which models have the names of those that are served."""
    document = openapi_document()
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema.get("properties", {}):
            names = OF_ENCODERS.get(name, [CHAT, TEXT2TEXT])
            schema["properties"]["model"] = {"enum": names}
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


def test_the_server_shows_the_document_that_requests_are_drawn_from(server: Server) -> None:
    assert server.get("/openapi.json") == json.loads(json.dumps(openapi_document()))


def draw_and_send(server: Server, operation: Any, num_examples: int) -> None:
    problems = []

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send_one(case: Any) -> None:
        response = case.call(base_url=server.url)
        try:
            content_type = response.headers["content-type"][0]
            assert_answered(case.path, response.status_code, content_type, response.content)
        except Exception as problem:
            problems.append(f"{case.as_curl_command()[:600]}: {type(problem).__name__}: {str(problem)[:400]}")

    send_one()
    assert not problems, "\n".join(problems[:10])


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_requests_that_schemathesis_draws(server: Server, operation: Any) -> None:
    draw_and_send(server, operation, 4)


@pytest.mark.slow
@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_many_requests_that_schemathesis_draws(server: Server, operation: Any) -> None:
    draw_and_send(server, operation, 300)
