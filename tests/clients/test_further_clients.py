"""Clients that others wrote over OpenAI's API, in Python and JavaScript, against the real server.

Each has a script in `scripts/`, whose calls are named as the features here and bring the same for every client.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.clients import busy
from tests.clients.busy import BusyServer
from tests.clients.environments import node, outcome, pinned, pinned_packages, python_of
from tests.server.process import Server
from tests.server.test_models import EMBED

pytestmark = pytest.mark.clients

HELLO = "Hello! What is your name?"
TEXTS = ["Hi there!", "Good day!"]
ALL_CALLS = ("chat", "stream", "tools", "structured", "responses", "embeddings", "errors", "retries")
STATUSES = {"missing_model": 404, "wrong_key": 401, "too_long": 400}
OPENAI_ERRORS = ("NotFoundError", "AuthenticationError", "BadRequestError")


class Client(NamedTuple):
    name: str
    version: str
    environment: str
    script: str
    errors: tuple[str, str, str]
    """What it raises for a model that is not served, a wrong key and a prompt that is too long."""
    without: tuple[str, ...] = ()
    """What it does not have, or has only for OpenAI's own server."""

    @property
    def calls(self) -> tuple[str, ...]:
        return tuple(name for name in ALL_CALLS if name not in self.without)


TOOLS, NPM = pinned_packages("TOOL_VERSIONS"), pinned_packages("NPM_VERSIONS")
(INSTRUCTOR,) = pinned("INSTRUCTOR_VERSION")
CLIENTS = [
    Client(
        "langchain-openai",
        TOOLS["langchain-openai"],
        "tools",
        "langchain_client.py",
        ("OpenAIModelNotFoundError", "OpenAIAuthenticationError", "OpenAIInvalidRequestError"),
    ),
    Client(
        "litellm",
        TOOLS["litellm"],
        "tools",
        "litellm_client.py",
        ("NotFoundError", "AuthenticationError", "ContextWindowExceededError"),
    ),
    Client(
        "pydantic-ai",
        TOOLS["pydantic-ai-slim"],
        "tools",
        "pydantic_ai_client.py",
        ("ModelNotFoundError", "ModelAuthenticationError", "ModelContextWindowExceededError"),
    ),
    Client("llm (the command)", TOOLS["llm"], "tools", "llm_command.py", ("Error",) * 3, without=("embeddings",)),
    Client(
        "instructor",
        INSTRUCTOR,
        f"instructor-{INSTRUCTOR}",
        "instructor_client.py",
        OPENAI_ERRORS,
        without=("tools", "responses", "embeddings"),
    ),
    Client("openai (npm)", NPM["openai"], "npm", "openai_client.mjs", OPENAI_ERRORS),
    Client(
        "ai (npm) with @ai-sdk/openai-compatible",
        NPM["ai"],
        "npm",
        "ai_client.mjs",
        ("APICallError",) * 3,
        without=("responses",),
    ),
]


def client_of(parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Whom a test with these parameters is about."""
    client: Client = parameters["client"]
    return client.name, client.version


def having(call: str) -> pytest.MarkDecorator:
    """The test is for the clients whose scripts have this call."""
    clients = [client for client in CLIENTS if call in client.calls]
    return pytest.mark.parametrize("client", clients, ids=[client.name for client in clients])


def program_of(client: Client) -> Path:
    return node() if client.environment == "npm" else python_of(client.environment)


@pytest.fixture
def results(client: Client, demo_server: Server, key_server: Server, busy_server: BusyServer) -> dict[str, Any]:
    """What each call of a client's script brought; the script runs once."""
    found = outcome(program_of(client), client.script, client.name, demo_server, key_server, busy_server)
    assert found["version"] == client.version
    assert tuple(found)[1:] == client.calls
    return found


def brought(results: dict[str, Any], call: str) -> Any:
    """What a call brought, which must not be a failure."""
    found = results[call]
    assert not (isinstance(found, dict) and "failed" in found), found["failed"]
    return found


@having("chat")
@pytest.mark.shows("chat")
def test_chat(client: Client, results: dict[str, Any], demo_server: Server) -> None:
    assert brought(results, "chat") == demo_server.chat(HELLO)


@having("stream")
@pytest.mark.shows("streams")
def test_streams(client: Client, results: dict[str, Any]) -> None:
    pieces = brought(results, "stream")
    if client.name == "instructor":  # Its streams are objects that fill.
        assert pieces[-1] == brought(results, "structured")[-1]
        assert pieces[0] == dict.fromkeys(pieces[-1])
        assert len(pieces) > 5
        return
    assert "".join(pieces) == brought(results, "chat")
    assert len(pieces) > 5 or client.name.startswith("llm")  # A pipe joins what a command prints.


@having("tools")
@pytest.mark.shows("tools")
def test_tools(client: Client, results: dict[str, Any]) -> None:
    """The call of a tool is read, and its result goes back."""
    found = brought(results, "tools")
    assert found["name"] == "get_weather"
    assert found["arguments"].keys() == {"city"}
    assert isinstance(found["arguments"]["city"], str)
    assert found["answer"]


@having("structured")
@pytest.mark.shows("structured")
def test_structured_answers(client: Client, results: dict[str, Any]) -> None:
    """In each of the client's ways; it has validated them itself."""
    answers = brought(results, "structured")
    assert answers
    for answer in answers:
        assert answer.keys() == {"city", "degrees"}
        assert isinstance(answer["city"], str)
        assert -40 <= answer["degrees"] <= 50


@having("responses")
@pytest.mark.shows("responses")
def test_responses(client: Client, results: dict[str, Any]) -> None:
    assert brought(results, "responses") == brought(results, "chat")


@having("embeddings")
@pytest.mark.shows("embeddings")
def test_embeddings(client: Client, results: dict[str, Any], demo_server: Server) -> None:
    expected = demo_server.post("/v1/embeddings", model=EMBED, input=TEXTS)["data"]
    np.testing.assert_allclose(brought(results, "embeddings"), [entry["embedding"] for entry in expected], atol=1e-6)


@having("errors")
@pytest.mark.shows("errors")
def test_errors_have_the_classes_that_programs_catch(client: Client, results: dict[str, Any]) -> None:
    errors = brought(results, "errors")
    expected = dict(zip(STATUSES, client.errors, strict=True))
    assert {name: kind for name, (kind, _, _) in errors.items()} == expected
    words = {"missing_model": "is not served here", "wrong_key": "key", "too_long": "maximum context length"}
    for name, (_, status, message) in errors.items():
        assert words[name] in message
        assert status == (1 if client.name.startswith("llm") else STATUSES[name])


@having("retries")
@pytest.mark.shows("retries")
def test_a_busy_server_is_asked_again(client: Client, results: dict[str, Any], busy_server: BusyServer) -> None:
    assert brought(results, "retries") == [busy.ANSWER] * len(busy.REFUSALS)
    for model in busy.REFUSALS:
        assert busy_server.attempts[client.name, model] == 2
