"""`langport serve --workers`: several processes ask the same engines, and one decides what is in memory."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import save_checkpoint
from tests.gateway.test_workers import ADMIN, Line, hang_up, lines, total, workers
from tests.lora import write_adapter
from tests.server.process import Server, running, until

COMPLETIONS = "/v1/completions"
PROMPT = [20, 21, 22, 9] * 5
__all__ = ["hang_up"]  # a fixture


@pytest.fixture(scope="module")
def folder(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the endless model."""
    path = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("polite", "rude")):
        write_adapter(path / name, endless_model, ("q_proj", "v_proj", "down_proj"), seed=seed)
    return path


@pytest.fixture(scope="module")
def site(endless_model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    encoder = save_checkpoint("bert", tmp_path_factory.mktemp("encoder") / "bert")
    with running(
        f"one={endless_model}", f"two={encoder}", "--lora", f"one:polite={folder / 'polite'}", "--workers", "2",
        "--dtype", "float32", "--admin-key", "admin", "--store", "memory", "--allow-adapter-updates",
        "--chat-template", "chatml",
    ) as server:  # fmt: skip
        yield server


def complete(line: Line, model: str = "one", **fields: Any) -> tuple[int, Any]:
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "ignore_eos": True, **fields}
    status, answer = line.post(COMPLETIONS, {}, **body)
    return status, answer["choices"][0]["text"] if status == 200 else answer


def begin_endless(line: Line, model: str = "one") -> http.client.HTTPResponse:
    """A stream that does not end by itself, after its first event."""
    answer = line.stream(COMPLETIONS, model=model, prompt="a", max_tokens=100_000, ignore_eos=True)
    assert answer.readline().startswith(b"data: ")
    return answer


def num_running(line: Line, model: str = "one") -> float:
    return total(line.get("/metrics")[1], "langport_engine_num_running", model=model)


def residence(line: Line, model: str) -> dict[str, Any]:
    found = json.loads(line.get("/admin/models", **ADMIN)[1])["data"]
    return next(entry for entry in found if entry["id"] == model)


def goes_on(stream: http.client.HTTPResponse) -> bool:
    return all(stream.readline() for _ in range(20))


def test_every_worker_answers_with_the_same_engines(site: Server) -> None:
    pair = lines(site)
    assert len({complete(line) for line in pair}) == 1
    assert [line.post("/v1/embeddings", {}, model="two", input="x")[0] for line in pair] == [200, 200]
    assert {line.get("/ready") for line in pair} == {(200, '{"status":"ready"}')}
    first = "langport_engine_time_to_first_token_seconds_count"
    shown = [line.get("/metrics")[1] for line in pair]
    assert {total(text, first, model="one") for text in shown} == {total(shown[0], "langport_requests_total",
        model="one", status="200")}  # fmt: skip
    assert {total(text, "langport_engine_loaded") for text in shown} == {2}


def test_a_client_that_leaves_any_worker_frees_the_engines_work(site: Server) -> None:
    pair = lines(site)
    watching = Line(site)
    for line in pair:
        begin_endless(line)
    until(lambda: num_running(watching) == 2)
    pair[0].close()
    until(lambda: num_running(watching) == 1)
    pair[1].close()
    until(lambda: num_running(watching) == 0)
    assert total(watching.get("/metrics")[1], "langport_places_taken", queue="one") == 0


def test_a_worker_that_is_killed_frees_its_own_work_only(site: Server) -> None:
    one, other = lines(site)
    begin_endless(one)
    kept = begin_endless(other)
    until(lambda: total(Line(site).get("/metrics")[1], "langport_places_taken", queue="one") == 2)
    os.kill(one.worker, signal.SIGKILL)
    until(lambda: f"(process {one.worker}) died" in site.log)
    assert goes_on(kept)
    watching = next(line for line in lines(site, 1) if line.worker != one.worker)
    until(lambda: num_running(watching) == 1)
    until(lambda: total(watching.get("/metrics")[1], "langport_places_taken", queue="one") == 1)
    assert goes_on(kept)
    until(lambda: len(http_workers(site)) == 2)
    assert len({complete(line) for line in lines(site)}) == 1, "the new one asks the same engine"
    kept.close()


def http_workers(site: Server) -> set[int]:
    """Of the processes that are forked, those that are no engines."""
    return {process for process in workers(site) if b"engine.forker" not in _command(process)}


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_an_unload_waits_for_the_requests_of_all_workers(site: Server) -> None:
    one, other = lines(site)
    stream = begin_endless(other)
    admin = Line(site)
    assert admin.post("/admin/models/one/unload", ADMIN)[1]["state"] == "draining"
    assert goes_on(stream)
    assert residence(one, "one")["num_requests"] == 1
    assert residence(one, "two")["state"] == "ready"
    other.close()
    until(lambda: residence(one, "one")["state"] == "unloaded")
    assert one.get("/ready")[0] == 200, "a request would load it"
    assert complete(one)[0] == 200
    assert (residence(one, "one")["state"], residence(one, "one")["num_loads"]) == ("ready", 2)
    assert complete(lines(site)[1])[0] == 200


def test_adapters_come_and_go_in_all_workers(site: Server, folder: Path) -> None:
    one, other = lines(site)
    texts = {model: complete(one, model)[1] for model in ("one", "polite")}
    assert texts["one"] != texts["polite"]
    assert other.load_adapter("rude", folder / "rude") == 200
    until(lambda: complete(one, "rude")[0] == 200)
    assert {complete(line, "rude") for line in (one, other)} == {complete(one, "rude")}
    stream = begin_endless(other, "rude")
    assert one.unload_adapter("rude") == 200
    assert one.unload_adapter("polite") == 200
    until(lambda: [complete(Line(site), model)[0] for model in ("rude", "polite") * 2] == [404] * 4)
    assert goes_on(stream), "a request that runs goes on with it"
    os.kill(one.worker, signal.SIGKILL)
    until(lambda: len(http_workers(site)) == 2 and one.worker not in http_workers(site))
    assert [complete(line, "polite")[0] for line in lines(site)] == [404, 404], "a new one knows of it"
    stream.close()


def test_a_response_in_the_background_is_everybodys(site: Server) -> None:
    one, other = lines(site)
    asked = {"model": "one", "input": "a", "background": True, "max_output_tokens": 100_000, "ignore_eos": True}
    stream = one.stream("/v1/responses", **asked)
    created = next(event for event in _events(stream) if event["type"] == "response.created")
    path = f"/v1/responses/{created['response']['id']}"
    one.close()
    status, text = other.get(path)
    assert (status, json.loads(text)["status"] in ("queued", "in_progress")) == (200, True)
    following = other.follow(f"{path}?stream=true&starting_after=1")
    seen = _events(following)
    first, second = next(seen), next(seen)
    assert (first["sequence_number"], second["sequence_number"]) == (2, 3)
    cancelling = next(line for line in lines(site) if line.worker == other.worker)
    status, cancelled = cancelling.post(f"{path}/cancel", {})
    assert (status, cancelled["status"]) == (200, "cancelled")
    numbers = [event["sequence_number"] for event in seen]
    assert numbers == list(range(4, 4 + len(numbers))), "each event once, to the end"
    until(lambda: num_running(Line(site)) == 0)
    assert other.get("/v1/responses/resp_none")[0] == 404


def _events(stream: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in stream:
        if line.startswith(b"data: ") and b"[DONE]" not in line:
            yield json.loads(line.removeprefix(b"data: "))


def test_an_engine_that_dies_fails_the_requests_of_all_and_comes_back_for_all(site: Server) -> None:
    pair = lines(site)
    streams = [begin_endless(line) for line in pair]
    engines = [process for process in workers(site) - http_workers(site) if _threads(process)]
    for engine in engines:
        os.kill(engine, signal.SIGKILL)
    for stream in streams:
        assert b"stopped unexpectedly" in stream.read()
    until(lambda: [complete(line)[0] for line in lines(site)] == [200, 200])


def _threads(process: int) -> bool:
    return Path(f"/proc/{process}/task").exists()


def test_sigterm_drains_and_leaves_no_process(endless_model: Path) -> None:
    with running(f"one={endless_model}", "--dtype", "float32", "--workers", "2", "--store", "none") as server:
        pair = lines(server)
        streams = [line.stream(COMPLETIONS, model="one", prompt="a", max_tokens=600, ignore_eos=True) for line in pair]
        assert all(stream.readline() for stream in streams)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "Stopping." in server.log)
        assert all(b"[DONE]" in stream.read() for stream in streams)
        assert server.wait_end() == 0
        until(lambda: server.processes() == {}, "the end of all processes")
        assert "ERROR" not in server.log


def test_a_checkpoint_that_cannot_be_loaded_ends_the_start(endless_model: Path, tmp_path: Path) -> None:
    broken = save_checkpoint("llama", tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    from tests.server.process import run_langport

    done = run_langport("serve", str(broken), "--workers", "2", "--port", "0", "--store", "none")
    assert done.returncode == 1
    assert "broken: " in done.stderr
    assert "Traceback" not in done.stderr
