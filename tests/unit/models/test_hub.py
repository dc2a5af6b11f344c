"""Hub ids against a local imitation of the hub, in processes of their own: huggingface_hub reads its
environment when it is imported."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_imitation import COMMIT, Hub, HubModel, running_hub
from safetensors.numpy import save

from langport.errors import CheckpointError
from langport.models.checkpoint import read_checkpoint
from langport.models.hub import resolve_model

RESOLVE = """
import sys
from langport.errors import CheckpointError
from langport.models.hub import resolve_model
try:
    print(resolve_model(sys.argv[1], with_code=sys.argv[2:] == ["with-code"]))
except CheckpointError as error:
    sys.exit(str(error))
"""


def sharded_checkpoint() -> dict[str, bytes]:
    """A tiny decoder in two shards, beside files that must not be downloaded."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "vocab_size": 16,
        "max_position_embeddings": 64,
    }
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    return {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": [2, 3]}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "1_Pooling/config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        shards[0]: save({"a": np.arange(4000, dtype=np.float32)}),
        shards[1]: save({"b": np.arange(8, dtype=np.float32)}),
        **UNWANTED,
    }


UNWANTED = {
    "README.md": b"#",
    "pytorch_model.bin": b"unsafe",
    "model.gguf": b"GGUF",
    "modeling_tiny.py": b"raise SystemExit",
    "onnx/model.onnx": b"onnx",
    "original/model.safetensors": b"second copy",
    "consolidated.safetensors": b"second copy",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = sharded_checkpoint()
    models = {
        "org/tiny": HubModel(files),
        "gpt-tiny": HubModel(files),
        "org/private": HubModel(files, needs_token="hf_secret"),
        "org/gated": HubModel(files, needs_token="hf_secret", is_gated=True),
        "org/branches": HubModel(files, revisions=("v2", COMMIT)),
        "org/older": HubModel({"config.json": b"{}", "pytorch_model.bin": b"x", "training_args.bin": b"x"}),
        "org/other": HubModel({"config.json": b"{}", "tf_model.h5": b"x"}),
    }
    with running_hub(models) as hub:
        yield hub


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resolve(
    reference: str, home: Path, endpoint: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", RESOLVE, reference, *flags],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(reference: str, home: Path, endpoint: str, **environment: str) -> str:
    done = resolve(reference, home, endpoint, **environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_downloads_a_sharded_checkpoint_and_only_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    done = resolve("org/tiny", tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    checkpoint = read_checkpoint(directory)
    assert [file.name for file in checkpoint.weight_files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert checkpoint.eos_token_ids == (2, 3)
    there = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    assert there == set(sharded_checkpoint()) - set(UNWANTED)
    for name in there:
        assert (directory / name).read_bytes() == hub.models["org/tiny"].files[name]


def test_code_is_downloaded_only_where_it_may_run(hub: Hub, tmp_path: Path) -> None:
    plain, trusted = (resolve("org/tiny", tmp_path, hub.url, *flags).stdout.strip() for flags in ((), ("with-code",)))
    assert plain == trusted
    assert (Path(trusted) / "modeling_tiny.py").read_bytes() == UNWANTED["modeling_tiny.py"]


def test_a_name_without_organisation(hub: Hub, tmp_path: Path) -> None:
    done = resolve("gpt-tiny", tmp_path, hub.url)
    assert read_checkpoint(Path(done.stdout.strip())).vocab_size == 16


def test_a_second_run_works_offline_and_asks_nothing(hub: Hub, tmp_path: Path) -> None:
    first = resolve("org/tiny", tmp_path, hub.url)
    hub.requests.clear()
    second = resolve("org/tiny", tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert hub.requests == []


def test_a_second_run_downloads_no_file_again(hub: Hub, tmp_path: Path) -> None:
    resolve("org/tiny", tmp_path, hub.url)
    hub.requests.clear()
    assert resolve("org/tiny", tmp_path, hub.url).returncode == 0
    assert [request for request in hub.requests if "/resolve/" in request.path and request.method == "GET"] == []


def test_the_cache_serves_when_the_hub_is_away(hub: Hub, tmp_path: Path, free_port: int) -> None:
    first = resolve("org/tiny", tmp_path, hub.url)
    second = resolve("org/tiny", tmp_path, f"http://127.0.0.1:{free_port}")
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    assert resolve("org/private", tmp_path, hub.url, HF_TOKEN="hf_secret").returncode == 0
    assert {request.token for request in hub.requests} == {"hf_secret"}


def test_a_broken_download_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    hub.cut_once.add(shard)
    done = resolve("org/tiny", tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / shard).read_bytes() == hub.models["org/tiny"].files[shard]
    tries = [request for request in hub.requests if request.path.endswith(shard) and request.method == "GET"]
    assert len(tries) == 2


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    assert resolve("org/branches@v2", tmp_path, hub.url).returncode == 0
    message = refusal("org/branches@v3", tmp_path, hub.url)
    assert "no revision 'v3'" in message


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_wrong"}])
def test_unknown_and_private_models(hub: Hub, tmp_path: Path, token: dict[str, str]) -> None:
    for reference in ("org/missing", "org/private"):
        message = refusal(reference, tmp_path, hub.url, **token)
        assert f"no directory {reference} here" in message
        assert hub.url in message
        assert "HF_TOKEN" in message


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_wrong"}])
def test_a_gated_model(hub: Hub, tmp_path: Path, token: dict[str, str]) -> None:
    message = refusal("org/gated", tmp_path, hub.url, **token)
    assert "org/gated is gated" in message
    assert "HF_TOKEN" in message


def test_offline_without_a_cached_copy(hub: Hub, tmp_path: Path) -> None:
    message = refusal("org/tiny", tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in message
    assert str(tmp_path) in message
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached(tmp_path: Path, free_port: int) -> None:
    message = refusal("org/tiny", tmp_path, f"http://127.0.0.1:{free_port}")
    assert f"could not be downloaded from http://127.0.0.1:{free_port}" in message
    assert "HF_ENDPOINT" in message


def test_pytorch_weights_are_taken_where_there_are_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    done = resolve("org/older", tmp_path, hub.url)
    assert {file.name for file in Path(done.stdout.strip()).iterdir()} == {"config.json", "pytorch_model.bin"}


def test_a_model_without_weights(hub: Hub, tmp_path: Path) -> None:
    message = refusal("org/other", tmp_path, hub.url)
    assert "no safetensors or PyTorch weights" in message


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_args: object, **_options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fill)
    with pytest.raises(CheckpointError, match="The disk is full: org/tiny does not fit"):
        resolve_model("org/tiny")


def test_directories_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == Path("model")


@pytest.mark.parametrize(
    "reference", ["./missing", "/missing/here", "~/missing", "../missing", "a/b/c", "missing/", "with space/x", "@main"]
)
def test_paths_that_do_not_exist_are_not_looked_up(reference: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_model(reference)


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model(str(tmp_path / "model.onnx"))
