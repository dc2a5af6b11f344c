"""The official openai package, five generations of it, each in its own environment, against the real server.

`make clients` builds the environments. Where LANGPORT_CLIENTS names their folder, a missing one is a failure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients import busy
from tests.clients.busy import BusyServer
from tests.clients.environments import outcome, pinned, python_of, run
from tests.server.founding import snippet
from tests.server.process import Server
from tests.server.test_models import ALIASES, CHAT, EMBED, TEXT2TEXT

pytestmark = pytest.mark.clients

VERSIONS = pinned("OPENAI_VERSIONS")
LEGACY, *SINCE_1_0 = VERSIONS
OLDEST_MODERN, *WITH_RESPONSES = SINCE_1_0
COUNTING = " four, five, six"


def client_of(parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Whom a test with these parameters is about."""
    return "openai", parameters["version"]


def interpreter(version: str) -> Path:
    """The Python of the environment with this version of the package."""
    return python_of(f"openai-{version}")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def results(version: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What each call of a version's script brought; the script runs once."""
    servers = (request.getfixturevalue(name) for name in ("demo_server", "key_server", "busy_server"))
    script = "legacy.py" if version == LEGACY else "modern.py"
    found = outcome(interpreter(version), script, f"openai-{version}", *servers)
    assert found["version"] == version
    return found


def test_the_founding_documents_script(demo_server: Server, tmp_path: Path) -> None:
    script = tmp_path / "founding.py"
    script.write_text(snippet("python", "ChatCompletion", demo_server.port))
    *story, name = run(interpreter(LEGACY), script).rstrip("\n").split("\n")
    assert "\n".join(story).startswith("Once upon a time")
    assert len("\n".join(story)) > len("Once upon a time")
    assert name


@pytest.mark.shows("chat")
def test_chat(results: dict[str, Any]) -> None:
    answer = results["chat"]
    assert "LangPort" in answer["text"]
    assert answer["role"] == "assistant"
    assert answer["finish_reason"] == "stop"
    assert answer["total_tokens"] > 10
    assert answer["object"] == "chat.completion"
    assert answer["tool_calls"] is None


@pytest.mark.parametrize("version", [LEGACY], indirect=True)
def test_what_the_oldest_client_reads_in_headers(results: dict[str, Any]) -> None:
    answer = results["chat"]
    assert answer["organization"] == "langport"
    assert answer["response_ms"] >= 0


@pytest.mark.shows("streams")
def test_streams(results: dict[str, Any]) -> None:
    for name, text in (
        ("chat_stream", results["chat"]["text"]),
        ("completion_stream", results["completion"]["text"]),
    ):
        stream = results[name]
        assert stream["text"] == text
        assert stream["ids"] == 1
        assert len(stream["finish_reasons"]) == 1
        assert stream["num_chunks"] > 5
        assert stream["usages"] == []


@pytest.mark.shows("streams")
@pytest.mark.parametrize("version", SINCE_1_0, indirect=True)
def test_usage_of_a_stream(results: dict[str, Any]) -> None:
    """Not for 0.28, which reads choices[0] of every chunk."""
    stream = results["chat_stream_usage"]
    assert stream["text"] == results["chat"]["text"]
    assert stream["usages"] == [results["chat"]["total_tokens"]]


@pytest.mark.shows("tools")
@pytest.mark.parametrize("version", SINCE_1_0, indirect=True)
def test_tools(results: dict[str, Any]) -> None:
    answer = results["tools"]
    assert answer["content"] is None
    assert all(name.startswith("call_") for name in answer["ids"])
    assert answer["finish_reason"] == "tool_calls"
    for call in answer["calls"]:
        assert call["name"] == "get_weather"
        assert isinstance(json.loads(call["arguments"])["city"], str)
    assert results["tools_stream"] == {"calls": answer["calls"], "finish_reason": "tool_calls"}


@pytest.mark.shows("tools")
def test_functions(version: str, results: dict[str, Any]) -> None:
    answer = results["function"]
    assert answer["call"]["name"] == "get_weather"
    assert json.loads(answer["call"]["arguments"]).keys() == {"city"}
    assert answer["finish_reason"] == "function_call"
    if version == LEGACY:
        assert results["function_stream"] == answer


@pytest.mark.shows("structured")
def test_structured_answers(version: str, results: dict[str, Any]) -> None:
    """Parsed by the package itself where it can."""
    found = results["structured"]
    assert found.keys() == ({"answer"} if version in (LEGACY, OLDEST_MODERN) else {"answer", "parsed", "streamed"})
    for answer in found.values():
        assert answer.keys() == {"city", "degrees"}
        assert answer["city"] in ("Oslo", "Paris")
        assert -40 <= answer["degrees"] <= 50


@pytest.mark.shows("retries")
@pytest.mark.parametrize("version", SINCE_1_0, indirect=True)
def test_a_busy_server_is_asked_again(version: str, results: dict[str, Any], busy_server: BusyServer) -> None:
    assert results["retries"] == [busy.ANSWER] * len(busy.REFUSALS)
    for model in busy.REFUSALS:
        assert busy_server.attempts[f"openai-{version}", model] == 2


@pytest.mark.shows("errors")
@pytest.mark.parametrize("version", [LEGACY], indirect=True)
def test_the_oldest_client_is_told_that_a_server_is_busy(results: dict[str, Any]) -> None:
    """It does not ask again by itself."""
    refused = [["RateLimitError", 429, "1"], ["ServiceUnavailableError", 503, "1"]]
    assert results["busy"] == {"refused": refused, "later": [busy.ANSWER] * 2}


def test_completions(results: dict[str, Any]) -> None:
    answer = results["completion"]
    assert answer["text"].startswith(COUNTING)
    assert "".join(answer["tokens"]) == answer["text"]
    assert len(answer["token_logprobs"]) == 12
    assert max(answer["token_logprobs"]) <= 0
    assert answer["object"] == "text_completion"
    assert results["completion_extras"] == {"num_choices": 2, "completion_tokens": 60}


@pytest.mark.shows("embeddings")
def test_embeddings(results: dict[str, Any]) -> None:
    answer = results["embeddings"]
    vectors = np.array(answer["base64"])
    assert vectors.shape == (2, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, answer["floats"], atol=1e-7)
    assert answer["total_tokens"] > 2


def test_models(results: dict[str, Any]) -> None:
    assert results["models"] == [CHAT, TEXT2TEXT, EMBED, *ALIASES]
    assert results["model"] == {"id": CHAT, "object": "model", "owned_by": "langport"}


@pytest.mark.shows("errors")
def test_errors_have_the_classes_that_programs_catch(version: str, results: dict[str, Any]) -> None:
    def is_error(name: str, kind: str, status: int, code: str | None, param: str | None) -> None:
        error = results[name]
        legacy = {"NotFoundError": "InvalidRequestError", "BadRequestError": "InvalidRequestError"}
        assert error["class"] == (legacy.get(kind, kind) if version == LEGACY else kind), error
        assert (error["status"], error["code"]) == (status, code)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert len(error["message"]) > 10

    is_error("missing_model", "NotFoundError", 404, "model_not_found", "model")
    is_error("missing_model_with_a_slash", "NotFoundError", 404, "model_not_found", "model")
    is_error("missing_model_stream", "NotFoundError", 404, "model_not_found", "model")
    is_error("too_long", "BadRequestError", 400, "context_length_exceeded", "messages")
    is_error("out_of_range", "BadRequestError", 400, None, "temperature")
    is_error("wrong_key_is_refused", "AuthenticationError", 401, "invalid_api_key", None)


def test_files(version: str, results: dict[str, Any]) -> None:
    assert results["files"] == {
        "found": ["lines.txt", 8, "fine-tune", "file"],
        "content": "one\ntwo\n",
        "listed": True,
        "deleted": [True, True],
        "gone": "InvalidRequestError" if version == LEGACY else "NotFoundError",
    }


@pytest.mark.parametrize("version", WITH_RESPONSES, indirect=True)
def test_uploads(results: dict[str, Any]) -> None:
    assert results["uploads"] == {
        "status": ["completed", "pending", "cancelled"],
        "file": ["all.bin", 256_000, "user_data", "processed"],
        "is_whole": True,
        "part": ["upload.part", True],
        "wrong": "upload_id",
    }


@pytest.mark.parametrize("version", WITH_RESPONSES, indirect=True)
def test_batches(results: dict[str, Any]) -> None:
    assert results["batches"] == {
        "status": "completed",
        "counts": [2, 1, 1],
        "metadata": {"k": "v"},
        "listed": True,
        "text": results["chat"]["text"],
        "error": ["line-1", 400],
        "too_late": "BadRequestError",
    }


@pytest.mark.parametrize("version", WITH_RESPONSES, indirect=True)
def test_stored_chat_completions(results: dict[str, Any]) -> None:
    assert results["stored_chats"] == {
        "text": results["chat"]["text"],
        "streamed": results["chat"]["text"],
        "metadata": "3",
        "listed": True,
        "messages": [["user", "Hello! What is your name?"]],
        "deleted": True,
        "gone": "NotFoundError",
    }


def test_a_key(results: dict[str, Any]) -> None:
    assert results["key_is_accepted"] == [CHAT, EMBED]


def test_azure_clients(results: dict[str, Any]) -> None:
    assert results["azure_chat"] == {"text": results["chat"]["text"]}
    assert results["azure_embeddings"] == 128


@pytest.mark.parametrize("version", [LEGACY], indirect=True)
def test_engines_in_the_path(results: dict[str, Any]) -> None:
    assert results["engine"] == results["completion"]["text"]
    assert results["engine_stream"] == results["completion_stream"] | {
        "num_chunks": results["engine_stream"]["num_chunks"]
    }


@pytest.mark.parametrize("version", SINCE_1_0, indirect=True)
def test_raw_responses_and_the_asynchronous_client(results: dict[str, Any]) -> None:
    assert results["raw_response"]["request_id"].startswith("req_")
    assert results["raw_response"]["processing_ms"].isdigit()
    assert results["raw_response"]["parsed"] == "chat.completion"
    assert results["asynchronous"] == dict.fromkeys(("text", "streamed"), results["chat"]["text"])


@pytest.mark.shows("responses")
@pytest.mark.parametrize("version", WITH_RESPONSES)
def test_responses_and_decisions(
    version: str, demo_server: Server, key_server: Server, busy_server: BusyServer
) -> None:
    servers = demo_server, key_server, busy_server
    found = outcome(interpreter(version), "responses.py", f"openai-{version}", *servers)
    assert found["version"] == version
    assert "LangPort" in found["text"]
    assert found["status"] == "completed"
    for name in ("retrieved", "streamed", "resumed_text", "worked"):
        assert found[name] == found["text"], name
    assert found["input_items"] == ["Hello! What is your name?"]
    assert found["grew"]
    assert found["types"][:2] == ["response.created", "response.in_progress"]
    assert found["types"][-1] == "response.completed"
    assert found["numbers"] == list(range(len(found["numbers"])))
    assert found["resumed"] == list(range(len(found["resumed"])))
    assert (found["background"], found["cancelled"]) == ("queued", "cancelled")
    assert "not found" in found["deleted"]
    assert found["refused"] == "tools[0].type"
    assert found["parsed"].keys() == {"city", "degrees"}
    assert found["called"]["name"] == "get_weather"
    assert isinstance(json.loads(found["called"]["arguments"])["city"], str)
    assert found["answered"] == "completed"
    text = found["custom"]["input"]
    assert text in ("up\n", "down\n")
    assert found["custom"] == {"type": "custom_tool_call", "name": "lift", "input": text}
    assert found["custom_streamed"] == [text, text]
    assert found["custom_answered"] == "completed"
    assert found["custom_chat"] == {"name": "lift", "input": found["custom_chat_streamed"]}
    assert found["custom_chat"]["input"] in ("up\n", "down\n")
    assert found["custom_chat_answered"] in ("stop", "length")
    assert ("decisions" in found) == (version == WITH_RESPONSES[-1])
    for decision in found.get("decisions", {}).values():
        sunny, topic, warmth = decision["answers"]
        assert 0 <= sunny["probability"] <= 1
        assert sum(entry["probability"] for entry in topic["probabilities"]) == pytest.approx(1)
        assert topic["choice"] in ("weather", True)
        mean = sum(entry["value"] * entry["probability"] for entry in warmth["probabilities"])
        assert warmth["score"] == pytest.approx(mean)
