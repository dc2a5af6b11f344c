"""`langport pull` and `langport models`, over a hub's cache in processes of their own: its place is read at import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from langport import cli
from langport.settings.tree import BUNDLED_MODELS
from tests.checkpoints import save_checkpoint
from tests.hub_imitation import HubModel, running_hub
from tests.server.process import run_langport


def test_a_model_is_pulled_listed_and_removed(tmp_path: Path) -> None:
    path = save_checkpoint("llama", tmp_path / "tiny")
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    with running_hub({"org/tiny": HubModel(files), "org/empty": HubModel({"config.json": b"{}"})}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        done = run_langport("pull", "org/nobody", "org/tiny", **environment)
        assert done.returncode == 1
        assert done.stdout.startswith("org/tiny: decoder, ")
        assert done.stderr.startswith("langport: error: org/nobody: There is no directory org/nobody here")
        assert run_langport("pull", "org/empty", **environment).returncode == 1

        found = json.loads(run_langport("models", "--json", **environment).stdout)
        assert [model["name"] for model in found] == [*BUNDLED_MODELS, "org/empty", "org/tiny"]
        kinds = ["decoder", "encoder-decoder", "encoder", "not served", "decoder"]
        assert [model["kind"] for model in found] == kinds
        assert found[-1]["size_bytes"] >= sum(map(len, files.values()))
        assert Path(found[-1]["path"], "config.json").exists()
        table = run_langport("models", "list", **environment).stdout.splitlines()
        assert table[0].split() == ["NAME", "KIND", "SIZE", "FROM"]
        assert table[-1].split()[:2] == ["org/tiny", "decoder"]

        removed = run_langport("models", "remove", "org/tiny", **environment)
        assert removed.stdout.startswith("org/tiny: removed, ")
        assert not Path(found[-1]["path"]).exists()
        assert Path(found[-2]["path"]).exists(), "it has the same commit, and is another model"
        again = run_langport("models", "remove", "org/tiny", **environment)
        assert (again.returncode, again.stdout) == (1, "")
        assert "org/tiny is not in the hub's cache" in again.stderr


def test_what_comes_with_langport_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "remove", BUNDLED_MODELS[0]]) == 1
    assert capsys.readouterr().err == f"langport: error: {BUNDLED_MODELS[0]} comes with LangPort and is not removed.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["pull"], "ID"), (["models", "delete"], "delete"), (["models", "remove"], "ID"), (["models", "--jsn"], "jsn")],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["pull", "--help"], ["models", "-h"]):
        assert cli.main(arguments) == 0
        assert "usage: langport" in capsys.readouterr().out
