"""Over HTTP: answers follow what was asked of them, streamed and plain, and bad schemas cost a 400 and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.server.process import DONE, Server, error_of, until
from tests.server.test_models import CHAT, TEXT2TEXT

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "name": {"type": "string", "maxLength": 10},
        "points": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["colour", "name", "points"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
QUESTION = [{"role": "user", "content": "Describe a ball as JSON."}]


def follows(text: str) -> bool:
    """Raises what is wrong."""
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    return True


@pytest.mark.parametrize("model", [CHAT, TEXT2TEXT])
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_a_schema_streamed_and_plain(demo_server: Server, model: str, temperature: float) -> None:
    fields = {"model": model, "response_format": FORMAT, "n": 3, "seed": 5, "temperature": temperature}
    plain = demo_server.post("/v1/chat/completions", messages=QUESTION, max_tokens=150, **fields)
    texts = [choice["message"]["content"] for choice in plain["choices"]]
    assert [choice["finish_reason"] for choice in plain["choices"]] == ["stop"] * 3
    assert all(follows(text) for text in texts)
    streamed = ["", "", ""]
    with demo_server.stream("/v1/chat/completions", messages=QUESTION, max_tokens=150, **fields) as events:
        for choice in (choice for event in events if event != DONE for choice in event["choices"]):
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts


@pytest.mark.parametrize("model", [CHAT, TEXT2TEXT])
def test_completions(demo_server: Server, model: str) -> None:
    def text(**fields: Any) -> str:
        reply = demo_server.post("/v1/completions", model=model, prompt="say 4207", max_tokens=150, seed=3, **fields)
        assert reply["choices"][0]["finish_reason"] == "stop"
        found: str = reply["choices"][0]["text"]
        return found

    assert follows(text(response_format=FORMAT))
    assert follows(text(structured_outputs={"json": SCHEMA}, logprobs=2))
    assert re.fullmatch(r"\d{3}-[a-z]{2,5}", text(structured_outputs={"regex": r"\d{3}-[a-z]{2,5}"}))
    assert text(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert text(guided_grammar='root ::= "a" | "b" root').rstrip("a").strip("b") == ""
    beams = {
        "use_beam_search": True,
        "best_of": 3,
        "n": 2,
        "logprobs": 0,
        "guided_choice": ["red", "green", "grey", "blue"],
    }
    reply = demo_server.post("/v1/completions", model=model, prompt="say 4207", **beams)
    assert {choice["text"] for choice in reply["choices"]} <= {"red", "green", "grey", "blue"}
    # Two beams may be one text, in other tokens ("b", "l", "ue" and "b", "l", "u", "e").
    first, second = [choice["logprobs"]["tokens"] for choice in reply["choices"]]
    assert first != second


def test_a_cut_answer_and_a_stop_string(demo_server: Server) -> None:
    fields = {"model": CHAT, "messages": QUESTION, "response_format": FORMAT, "temperature": 0}
    whole = demo_server.post("/v1/chat/completions", **fields)["choices"][0]["message"]["content"]
    cut = demo_server.post("/v1/chat/completions", max_tokens=6, **fields)["choices"][0]
    assert cut["finish_reason"] == "length"
    assert whole.startswith(cut["message"]["content"])
    stopped = demo_server.post("/v1/chat/completions", stop='"name"', **fields)["choices"][0]
    assert (stopped["finish_reason"], stopped["message"]["content"]) == ("stop", whole[: whole.index('"name"')])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strnig"}}}},
            "response_format.json_schema.schema",
            "strnig",
        ),
        ({"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}}, "structured_outputs.json", "unique"),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs.regex", "unclosed"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", '"x"'),
    ],
)
def test_bad_wishes(demo_server: Server, path: str, fields: dict[str, Any], param: str, words: str) -> None:
    body = {"model": CHAT, "max_tokens": 2, **fields}
    body |= {"messages": QUESTION} if "chat" in path else {"prompt": "x"}
    response = demo_server.http.post(path, json=body)
    assert error_of(response) == (400, "invalid_request_error", param, None)
    assert words in response.json()["error"]["message"]


def test_a_lone_surrogate(demo_server: Server) -> None:
    for name in (b"guided_json", b"guided_regex", b"guided_grammar"):
        response = demo_server.http.post("/v1/completions", content=b'{"prompt": "x", "%b": "\\ud800"}' % name)
        assert response.status_code == 400


def test_everything_is_given_back(demo_server: Server) -> None:
    demo_server.post("/v1/completions", model=CHAT, prompt="x", n=4, response_format=FORMAT, max_tokens=5)
    until(lambda: demo_server.metric("langport_engine_kv_cache_usage", model=CHAT) == 0, "an empty cache")
