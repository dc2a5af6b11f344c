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
from tests.server.process import Server, run_langport, running

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
