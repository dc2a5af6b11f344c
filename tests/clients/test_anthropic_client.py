"""The official anthropic package, in an environment of its own, against the real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.clients import busy
from tests.clients.busy import BusyServer
from tests.clients.environments import outcome, pinned, python_of
from tests.server.process import Server
from tests.server.test_models import CHAT

pytestmark = pytest.mark.clients

(VERSION,) = pinned("ANTHROPIC_VERSION")


def client_of(parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Whom a test is about."""
    return "anthropic", VERSION


@pytest.fixture
def results(demo_server: Server, key_server: Server, busy_server: BusyServer) -> dict[str, Any]:
    """What each call of the script brought; the script runs once."""
    python = python_of(f"anthropic-{VERSION}")
    return outcome(python, "anthropic_messages.py", "anthropic", demo_server, key_server, busy_server)


@pytest.mark.shows("chat")
def test_messages(results: dict[str, Any]) -> None:
    assert results["version"] == VERSION
    answer = results["message"]
    assert "LangPort" in answer["text"]
    assert (answer["role"], answer["model"], answer["types"]) == ("assistant", CHAT, ["text"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["id"].startswith("msg_")
    assert answer["request_id"].startswith("req_")
    for name in ("asynchronous", "beta_message", "tools_that_are_not_used", "stream_helper"):
        assert results[name]["text"] == answer["text"], name
    assert "LangPort" in results["system_and_blocks"]["text"]


@pytest.mark.shows("streams")
def test_streams(results: dict[str, Any]) -> None:
    answer, stream, helper = results["message"], results["stream_of_events"], results["stream_helper"]
    assert stream["text"] == helper["streamed"] == answer["text"]
    assert stream["types"][:2] == ["message_start", "content_block_start"]
    assert stream["types"][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(stream["types"][2:-3]) == {"content_block_delta"}
    assert len(stream["types"]) > 8
    assert stream["output_tokens"] == answer["usage"][1]
    assert helper["stop_reason"] == "end_turn"


def test_how_answers_end_and_go_on(results: dict[str, Any]) -> None:
    stopped = results["stop_sequence"]
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "Demo")
    assert "Demo" not in stopped["text"]
    assert (results["cut"]["stop_reason"], results["cut"]["usage"][1]) == ("max_tokens", 3)
    assert results["continued"]["text"].lstrip().startswith("LangPort")
    assert results["history_with_tools"]["text"]


def test_tokens_are_counted(results: dict[str, Any]) -> None:
    assert results["counted"] == results["message"]["usage"][0]


def test_keys(results: dict[str, Any]) -> None:
    assert len(results["keys"]["accepted"]) == 2
    assert results["keys"]["refused"]["class"] == "AuthenticationError"


@pytest.mark.shows("tools")
def test_tools(results: dict[str, Any]) -> None:
    found = results["tools"]
    assert found["streamed"] == found["calls"]
    assert found["stop_reason"] == "tool_use"
    assert found["calls"]
    for call in found["calls"]:
        assert call["name"] == "get_weather"
        assert isinstance(call["input"]["city"], str)


@pytest.mark.shows("structured")
def test_structured_answers(results: dict[str, Any]) -> None:
    for name in ("answer", "parsed"):
        assert results["structured"][name].keys() == {"city", "degrees"}


@pytest.mark.shows("retries")
def test_a_busy_server_is_asked_again(results: dict[str, Any], busy_server: BusyServer) -> None:
    assert results["retries"] == [busy.ANSWER] * len(busy.REFUSALS)
    for model in busy.REFUSALS:
        assert busy_server.attempts["anthropic", model] == 2


@pytest.mark.shows("errors")
def test_errors_have_the_classes_that_programs_catch(results: dict[str, Any]) -> None:
    expected = {
        "unknown_model": ("NotFoundError", 404, "not_found_error"),
        "unknown_model_stream": ("NotFoundError", 404, "not_found_error"),
        "image": ("BadRequestError", 400, "invalid_request_error"),
        "too_long": ("BadRequestError", 400, "invalid_request_error"),
        "embedder": ("BadRequestError", 400, "invalid_request_error"),
        "out_of_range": ("BadRequestError", 400, "invalid_request_error"),
        "unknown_route": ("NotFoundError", 404, "not_found_error"),
    }
    for name, kind in expected.items():
        error = results["errors"][name]
        assert (error["class"], error["status"], error["type"]) == kind, error
        assert error["has_request_id"]
        assert len(error["message"]) > 10
    assert "image" in results["errors"]["image"]["message"]
