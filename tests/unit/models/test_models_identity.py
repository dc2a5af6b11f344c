"""A model's identity changes with whatever its answers depend on, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from langport.models.identity import identity
from langport.settings.tree import EngineSettings, ModelSettings

SETTINGS = ModelSettings("chat", "./chat")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "chat"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text("{}")
        os.utime(folder / name, ns=(5, 5))
    return folder


def test_it_stays_the_same(checkpoint: Path) -> None:
    assert identity(SETTINGS, checkpoint) == identity(msgspec.structs.replace(SETTINGS), checkpoint)


def test_it_changes_with_settings(checkpoint: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("a")
    given = msgspec.structs.replace(SETTINGS, chat_template=str(template))
    found = [
        identity(SETTINGS, checkpoint),
        identity(msgspec.structs.replace(SETTINGS, engine=EngineSettings(quantization="int8")), checkpoint),
        identity(given, checkpoint),
    ]
    template.write_text("ab")
    found.append(identity(given, checkpoint))
    assert len(set(found)) == 4


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json"])
def test_it_changes_with_files(checkpoint: Path, name: str) -> None:
    before = identity(SETTINGS, checkpoint)
    os.utime(checkpoint / name, ns=(5, 6))
    touched = identity(SETTINGS, checkpoint)
    (checkpoint / name).write_text("{ }")
    os.utime(checkpoint / name, ns=(5, 5))
    assert len({before, touched, identity(SETTINGS, checkpoint)}) == 3


def test_it_changes_with_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert identity(SETTINGS, checkpoint, adapter) != identity(SETTINGS, checkpoint)


def test_a_file_is_a_checkpoint_too(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    before = identity(SETTINGS, file)
    file.write_text("{ }")
    assert identity(SETTINGS, file) != before


def test_in_a_hubs_cache_content_counts_and_time_does_not(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    for name in ("aaa", "bbb"):
        (tmp_path / name).write_text("{}")
    link.symlink_to(tmp_path / "aaa")
    before = identity(SETTINGS, link.parent)
    os.utime(tmp_path / "aaa", ns=(5, 5))
    assert identity(SETTINGS, link.parent) == before
    link.unlink()
    link.symlink_to(tmp_path / "bbb")
    assert identity(SETTINGS, link.parent) != before
