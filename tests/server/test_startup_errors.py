"""What a person sees when the server cannot start: one message that says what to do, an exit code, no traceback."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.checkpoints import save_checkpoint
from tests.server.process import READY, run_langport, started, until

Damage = Callable[[Path], str]


def assert_refused(*arguments: str, code: int = 1, says: tuple[str, ...], **environment: str) -> str:
    """Run `langport serve`, which must end by itself, and return its message."""
    with started(*arguments, **environment) as server:
        until(lambda: server.process.poll() is not None or READY.search(server.log), "an end")
        assert server.process.poll() == code, server.log
        log = server.log
    assert "Traceback" not in log
    message = log[log.index("langport: error: ") :]
    for part in says:
        assert part in message
    return message


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("intact"), shard_size="100KB")


def _corrupt_config(path: Path) -> str:
    (path / "config.json").write_text('{"architectures": [')
    return "config.json"


def _no_config(path: Path) -> str:
    (path / "config.json").unlink()
    return "config.json"


def _truncated_weights(path: Path) -> str:
    file = sorted(path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    return file.name


def _weights_of_another_kind(path: Path) -> str:
    file = sorted(path.glob("*.safetensors"))[0]
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    return file.name


def _missing_shard(path: Path) -> str:
    file = sorted(path.glob("*.safetensors"))[-1]
    file.unlink()
    return file.name


def _unknown_architecture(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**config, "architectures": ["AbacusForCausalLM"], "model_type": "abacus"})
    )
    return "AbacusForCausalLM"


def _another_shape(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    return "mlp"


def _no_tokenizer(path: Path) -> str:
    for file in path.glob("tokenizer*"):
        file.unlink()
    return "tokenizer"


def _corrupt_tokenizer(path: Path) -> str:
    (path / "tokenizer.json").write_text("{}")
    return "tokenizer.json"


def _damaged(intact: Path, folder: Path, damages: Sequence[Damage]) -> tuple[list[str], list[tuple[str, str]]]:
    """The models' arguments, and what of each the message about it must name."""
    arguments, culprits = [], []
    for damage in damages:
        name = damage.__name__.strip("_")
        path = shutil.copytree(intact, folder / name)
        culprits.append((name, damage(path)))
        arguments.append(f"{name}={path}")
    return arguments, culprits


def test_checkpoints_whose_files_are_damaged_are_told_together(intact: Path, tmp_path: Path) -> None:
    damages = [_corrupt_config, _no_config, _truncated_weights, _weights_of_another_kind, _missing_shard]
    arguments, culprits = _damaged(intact, tmp_path, damages)
    message = assert_refused(*arguments, says=())
    told = message.splitlines()
    assert len(told) == len(culprits)
    for line, (name, culprit) in zip(told, culprits, strict=True):
        assert line.startswith(f"langport: error: {name}: ")
        assert culprit in line.removeprefix(f"langport: error: {name}: ")


@pytest.mark.parametrize("damage", [_unknown_architecture, _another_shape, _no_tokenizer, _corrupt_tokenizer])
def test_a_checkpoint_that_turns_out_damaged_when_it_is_loaded(damage: Damage, intact: Path, tmp_path: Path) -> None:
    arguments, [(name, culprit)] = _damaged(intact, tmp_path, [damage])
    message = assert_refused(*arguments, says=(name, culprit))
    assert message.endswith("\n")


def test_all_models_that_are_not_there_are_told_together(tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    message = assert_refused(
        *(str(tmp_path / "one"), "./two", f"c={tmp_path / 'three'}", str(empty)),
        says=("one", "two", "three", str(empty), "is empty"),
    )
    assert message.count("langport: error: ") == 4


def test_a_hub_id_that_is_not_downloaded_and_no_network(tmp_path: Path) -> None:
    assert_refused("org/nothing", says=("org/nothing", "HF_HUB_OFFLINE"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_refused("--port", str(port), says=(f"Port {port}", "in use", "--port"))


def test_a_host_that_is_not_ours() -> None:
    assert_refused("--host", "192.0.2.1", says=("192.0.2.1", "no address of this machine"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-model-length", "5"], ("no option --max-model-length", "did you mean --max-model-len?")),
        (["--api-keys", "x"], ("did you mean --api-key?",)),
        (["--redirect", "gpt-4:langport-demo-chta"], ("gpt-4:langport-demo-chta", "did you mean langport-demo-chat?")),
        (["--redirect", "gpt-4"], ("--redirect gpt-4", "FROM:TO")),
        (["--port", "http"], ("--port", "http")),
        (["--port", "70000"], ("--port",)),
        (["--dtype", "float8"], ("--dtype", "bfloat16")),
        (["--device", "tpu"], ("--device", "cuda")),
        (["--kv-cache-memory", "much"], ("--kv-cache-memory", "much")),
        (["--max-num-seqs", "0"], ("--max-num-seqs",)),
        (["--config", "nowhere.yaml"], ("nowhere.yaml", "--config")),
        (["a=x", "a=y"], ("a",)),
    ],
)
def test_a_wrong_command_line(arguments: list[str], says: tuple[str, ...]) -> None:
    assert_refused(*arguments, code=2, says=says)


def test_an_unknown_command() -> None:
    run = run_langport("sevre")
    assert run.returncode == 2
    assert run.stderr == "langport: error: there is no command 'sevre'; did you mean serve?\n"


def test_all_problems_of_a_command_line_are_told_together() -> None:
    message = assert_refused("--prot", "1", "--dtype", "x", "--redirect", "a:b", code=2, says=("--prot", "--dtype"))
    assert message.count("langport: error: ") == 3


def test_memory_that_does_not_hold_one_sequence() -> None:
    assert_refused("langport-demo-chat", "--kv-cache-memory", "1MiB", says=("KV cache", "4096"))


def test_a_chat_template_that_is_not_there() -> None:
    message = assert_refused("langport-demo-chat", "--chat-template", "vicnua", says=("vicnua",))
    assert "vicuna" in message
