"""LoRA adapters as models of their own, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import save_checkpoint
from tests.engine.inprocess import Reference
from tests.lora import merge, write_adapter
from tests.server.process import Server, error_of, run_langport, running

PROMPT = [20, 21, 22, 9] * 5
NAMES = ("base", "polite", "rude", "alias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two adapters and the checkpoints that they make."""
    path = tmp_path_factory.mktemp("lora")
    base = save_checkpoint("llama", path / "base")
    for seed, name in enumerate(("polite", "rude")):
        adapter = write_adapter(path / name, base, ("q_proj", "v_proj", "down_proj"), seed=seed)
        merge(path / f"merged-{name}", base, adapter)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    adapters = (f"--lora=polite={folder / 'polite'}", "--lora", f"base:rude={folder / 'rude'}")
    with running(str(folder / "base"), *adapters, "--redirect", "alias:polite") as server:
        yield server


def complete(server: Server, name: str) -> Any:
    fields = {"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 12, "ignore_eos": True, "logprobs": 0}
    return server.post("/v1/completions", **fields)


def test_every_adapter_is_a_model_with_a_parent(server: Server) -> None:
    entries = {entry["id"]: entry for entry in server.get("/v1/models")["data"]}
    assert list(entries) == ["base", "polite", "rude", "alias"]
    assert "parent" not in entries["base"]
    assert {entries[name]["parent"] for name in ("polite", "rude", "alias")} == {"base"}
    assert entries["alias"]["root"] == "polite"
    assert entries["rude"]["max_model_len"] == entries["base"]["max_model_len"]


def test_all_at_once_answer_as_their_merged_checkpoints(server: Server, folder: Path) -> None:
    folders = {"base": "base", "polite": "merged-polite", "rude": "merged-rude", "alias": "merged-polite"}
    references = {name: Reference("llama", folder / folders[name]) for name in NAMES}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: complete(server, name), NAMES * 4))
    for name, answer in zip(NAMES * 4, answers, strict=True):
        assert answer["model"] == ("polite" if name == "alias" else name)
        _, expected = references[name].greedy(PROMPT, 12)
        found = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert found == pytest.approx(expected, abs=1e-3)


def test_chat_and_streams_reach_the_adapter(server: Server) -> None:
    with server.stream("/v1/completions", model="rude", prompt=PROMPT, temperature=0, max_tokens=12) as events:
        *chunks, _ = events
    streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    plain = server.post("/v1/completions", model="rude", prompt=PROMPT, temperature=0, max_tokens=12)
    assert streamed == plain["choices"][0]["text"]


@pytest.fixture(scope="module")
def open_server(folder: Path) -> Iterator[Server]:
    """A server whose clients may change its adapters."""
    adapter = f"--lora=polite={folder / 'polite'}"
    with running(f"base={folder / 'base'}", "langport-demo-embed", adapter, "--allow-adapter-updates") as server:
        yield server


def test_adapters_come_and_go_while_a_stream_runs(open_server: Server, server: Server, folder: Path) -> None:
    expected = {name: complete(server, name)["choices"][0]["logprobs"]["token_logprobs"] for name in NAMES}

    def logprobs(name: str) -> Any:
        return pytest.approx(complete(open_server, name)["choices"][0]["logprobs"]["token_logprobs"], abs=1e-3)

    long: dict[str, Any] = {
        "model": "polite",
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 400,
        "ignore_eos": True,
    }
    whole = open_server.post("/v1/completions", **long)["choices"][0]["text"]
    with open_server.stream("/v1/completions", **long) as events:
        text = next(events)["choices"][0]["text"]
        loaded = open_server.http.post(
            "/v1/load_lora_adapter", json={"lora_name": "rude", "lora_path": str(folder / "rude")}
        )
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'rude' added successfully.")
        entries = {entry["id"]: entry for entry in open_server.get("/v1/models")["data"]}
        assert list(entries) == ["base", "polite", "langport-demo-embed", "rude"]
        assert entries["rude"]["parent"] == "base"
        assert expected["rude"] == logprobs("rude")
        removed = open_server.http.post("/v1/unload_lora_adapter", json={"lora_name": "polite"})
        assert (removed.status_code, removed.text) == (200, "Success: LoRA adapter 'polite' removed successfully.")
        gone = open_server.http.post("/v1/completions", json={**long, "max_tokens": 1})
        assert error_of(gone) == (404, "invalid_request_error", "model", "model_not_found")
        *chunks, done = events
    assert done == "[DONE]"
    assert text + "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert expected["base"] == logprobs("base")
    again = {"lora_name": "rude", "lora_path": str(folder / "polite"), "load_inplace": True}
    assert open_server.http.post("/v1/load_lora_adapter", json=again).status_code == 200
    assert expected["polite"] == logprobs("rude")
    assert open_server.http.post("/v1/unload_lora_adapter", json={"lora_name": "rude"}).status_code == 200
    assert [entry["id"] for entry in open_server.get("/v1/models")["data"]] == ["base", "langport-demo-embed"]


def test_an_adapter_in_anothers_place_gives_none_of_its_kept_answers(folder: Path) -> None:
    options = ("--allow-adapter-updates", "--response-cache", "1MiB")
    kept: dict[str, Any] = {}
    with running(str(folder / "base"), *options) as server:

        def ask() -> tuple[str, Any]:
            body = {"model": "either", "prompt": PROMPT, "temperature": 0, "max_tokens": 5, "logprobs": 1}
            found = server.http.post("/v1/completions", json=body)
            return found.headers["x-langport-cache"], found.json()["choices"]

        for number, name in enumerate(("rude", "polite", "rude")):
            load = {"lora_name": "either", "lora_path": str(folder / name), "load_inplace": number > 0}
            assert server.http.post("/v1/load_lora_adapter", json=load).status_code == 200
            result, choices = ask()
            assert result == ("hit" if name in kept else "miss"), "the same files again are the same adapter"
            assert kept.setdefault(name, choices) == choices
            assert ask() == ("hit", choices)
    assert kept["rude"] != kept["polite"]


@pytest.mark.parametrize(
    ("make", "status", "part"),
    [
        (lambda path: path / "nowhere", 404, "does not exist"),
        (lambda path: "~nobody-has-this-name/x", 404, "does not exist"),
        (lambda path: "/" + "x" * 4000, 404, "does not exist"),
        (lambda path: "/a\0b", 404, "does not exist"),
        (lambda path: path / "file", 404, "is a file"),
        (lambda path: path, 400, "adapter_config.json"),
        (lambda path: path / "narrow", 400, "adapter_model.safetensors"),
        (lambda path: path / "cut", 400, "adapter_model.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_told_and_changes_nothing(
    make: Any, status: int, part: str, open_server: Server, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    write_adapter(tmp_path / "narrow", folder / "merged-rude", ("q_proj",), seed=0, r=3)
    cut = write_adapter(tmp_path / "cut", folder / "base", ("q_proj",), seed=0) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    before = open_server.get("/v1/models")
    body = {"lora_name": "new", "lora_path": str(make(tmp_path))}
    refused = open_server.http.post("/v1/load_lora_adapter", json=body)
    assert error_of(refused) == (status, "invalid_request_error", "lora_path", None)
    assert part in refused.json()["error"]["message"]
    other = open_server.http.post("/v1/load_lora_adapter", json={**body, "base_model_name": "langport-demo-embed"})
    assert error_of(other) == (400, "invalid_request_error", "base_model_name", None)
    assert open_server.get("/v1/models") == before
    assert complete(open_server, "base")["choices"]


def test_what_is_wrong_with_an_adapter_is_told_at_start(folder: Path, tmp_path: Path) -> None:
    cases = {
        f"x={tmp_path}": "adapter_config.json",
        f"base={folder / 'polite'}": "2 models are named 'base'",
        "x": "--lora",
    }
    for text, part in cases.items():
        ended = run_langport("serve", "--port", "0", str(folder / "base"), "--lora", text)
        assert ended.returncode in (1, 2)
        assert part in ended.stderr
        assert "Traceback" not in ended.stderr


def test_adapters_of_a_closed_server_stay_as_they_are(server: Server, folder: Path) -> None:
    body = {"lora_name": "new", "lora_path": str(folder / "rude")}
    refused = server.http.post("/v1/load_lora_adapter", json=body)
    assert error_of(refused) == (403, "invalid_request_error", None, None)
    assert "--allow-adapter-updates" in refused.json()["error"]["message"]
