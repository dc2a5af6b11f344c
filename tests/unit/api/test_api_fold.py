"""A plain answer is the fold of the stream: the same request gives the same choices both ways."""

from __future__ import annotations

from typing import Any

import pytest


def requests() -> list[dict[str, Any]]:
    """Seeded requests over the corners where streams and plain answers drift apart."""
    found = []
    for seed in range(6):
        for extra in ({}, {"stop": ["e", "a"]}, {"stop": "th", "min_tokens": 4}, {"ignore_eos": True}):
            for n in (1, 3):
                bias = {str(token): 9 for token in "é😀".encode()}
                found.append({"seed": seed, "max_tokens": 12, "n": n, "temperature": 1.5, "logit_bias": bias, **extra})
    return found


def fold_chat(events: list[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for chunk in events:
        for choice in chunk["choices"]:
            text, logprobs, reasons = found.setdefault(choice["index"], ["", [], []])
            logprobs += (choice["logprobs"] or {"content": []})["content"]
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
            found[choice["index"]] = [text + choice["delta"].get("content", ""), logprobs, reasons]
    return found


@pytest.mark.parametrize("tokens_per_delta", [1, 5])
@pytest.mark.parametrize("has_logprobs", [False, True])
async def test_chat(serve, has_logprobs, tokens_per_delta):
    fake = serve(tokens_per_delta=tokens_per_delta)
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if has_logprobs else {}
    for request in requests():
        plain = (await fake.chat(**request, **fields)).json
        streamed = await fake.chat(**request, **fields, stream=True, stream_options={"include_usage": True})
        *chunks, done = streamed.events
        assert done == "[DONE]"
        assert fold_chat(chunks) == {
            choice["index"]: [
                choice["message"]["content"],
                choice["logprobs"]["content"] if has_logprobs else [],
                [choice["finish_reason"]],
            ]
            for choice in plain["choices"]
        }
        assert chunks[-1]["usage"] == plain["usage"]


@pytest.mark.parametrize("prompt", ["abc", ["one", "two"]])
async def test_completions(serve, prompt):
    fake = serve()
    for request in requests():
        fields = {**request, "prompt": prompt, "logprobs": 2, "echo": request["seed"] % 2 == 0}
        plain = (await fake.complete(**fields)).json
        streamed: dict[int, dict[str, Any]] = {}
        for chunk in (await fake.complete(**fields, stream=True)).events[:-1]:
            for choice in chunk["choices"]:
                into = streamed.setdefault(choice["index"], {"index": choice["index"], "text": "", "logprobs": {}})
                into["text"] += choice["text"]
                into["finish_reason"] = choice["finish_reason"]
                for key, values in (choice["logprobs"] or {}).items():
                    into["logprobs"][key] = into["logprobs"].get(key, []) + values
        for choice in plain["choices"]:
            assert streamed[choice["index"]] == {**choice, "logprobs": choice["logprobs"] if choice["text"] else {}}
