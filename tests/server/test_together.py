"""Many requests at once: nobody waits for another model, or for another's long answer or long prompt."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from langport.demo.text2text_data import say
from tests.server.process import DONE, Server
from tests.server.test_models import CHAT, EMBED, TEXT2TEXT

PATH = "/v1/completions"
LONG = {"model": CHAT, "prompt": "Once upon a time there was a", "max_tokens": 4000, "ignore_eos": True, "seed": 3}
NUM_LONG_PROMPTS = 4


@contextmanager
def running_stream(server: Server) -> Iterator[list[Any]]:
    """The growing list of a long stream's events; at least one is there."""
    received: list[Any] = []
    has_begun, is_enough = Event(), Event()

    def read() -> None:
        with server.stream(PATH, **LONG) as events:
            for event in events:
                received.append(event)
                has_begun.set()
                if is_enough.is_set():
                    return

    reader = Thread(target=read)
    reader.start()
    try:
        assert has_begun.wait(60)
        yield received
    finally:
        is_enough.set()
        reader.join()


def test_other_requests_are_answered_during_a_long_answer(demo_server: Server) -> None:
    with running_stream(demo_server) as received:
        vectors = demo_server.post("/v1/embeddings", model=EMBED, input="A kitten rests on the rug.")
        assert len(vectors["data"][0]["embedding"]) == 128
        assert demo_server.chat("say 4207", model=TEXT2TEXT) == say("say 4207")
        short = demo_server.post(PATH, model=CHAT, prompt="The numbers in order are one, two,", max_tokens=4)
        assert short["usage"]["completion_tokens"] == 4
        assert demo_server.get("/health") == {"status": "ok"}
        assert received[-1] != DONE, "the long answer ended first, so nothing was shown"
        assert demo_server.metric("langport_engine_num_running", model=CHAT) == 1


def test_long_prompts_do_not_stop_a_stream(demo_server: Server) -> None:
    """Four prompts of 4,000 tokens are many steps' work, and every step brings the stream a token."""
    prompts = [[300 + number] * 4000 for number in range(NUM_LONG_PROMPTS)]
    with running_stream(demo_server) as received:
        before = len(received)
        answer = demo_server.post(PATH, model=CHAT, prompt=prompts, max_tokens=1)
        num_meanwhile = len(received) - before
        assert received[-1] != DONE, "the stream ended first, so nothing was shown"
    assert answer["usage"]["prompt_tokens"] == 4000 * NUM_LONG_PROMPTS
    assert num_meanwhile >= 2 * NUM_LONG_PROMPTS


def test_eight_streams_run_side_by_side(demo_server: Server) -> None:
    order: list[tuple[int, bool]] = []

    def read(client: int) -> None:
        with demo_server.stream(PATH, **{**LONG, "max_tokens": 100, "seed": client}) as events:
            order.extend((client, event == DONE) for event in events)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))

    first_end = order.index(next(entry for entry in order if entry[1]))
    assert {client for client, _ in order[:first_end]} == set(range(8))
    assert sum(is_end for _, is_end in order) == 8


@pytest.mark.parametrize("path", ["/v1/embeddings", PATH])
def test_requests_that_share_a_request_id_are_all_answered(demo_server: Server, path: str) -> None:
    """A client chooses x-request-id, so it may choose the same one again."""

    def ask(client: int) -> int:
        texts = [f"text {number} of client {client}" for number in range(20)]
        asked: dict[str, Any] = {"input": texts, "model": EMBED}
        if path == PATH:
            asked = {"prompt": texts, "model": CHAT, "max_tokens": 10}
        answer = demo_server.http.post(path, json=asked, headers={"x-request-id": "the-same"}, timeout=60)
        assert len(answer.json()["data" if path == "/v1/embeddings" else "choices"]) == len(texts)
        return answer.status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {200}
