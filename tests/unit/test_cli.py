"""The command line as a user types it: exit codes, messages, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import yaml

from langport import __version__, cli
from langport.errors import CheckpointError
from langport.settings.options import OPTIONS
from langport.settings.tree import Settings


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    for variable in ("LANGPORT_CONFIG", "LANGPORT_MODELS"):
        monkeypatch.delenv(variable, raising=False)


class FakeForker:
    """Imports no torch."""

    made: ClassVar[list[FakeForker]] = []

    def __init__(self) -> None:
        self.is_closed = False
        self.made.append(self)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `serve` was called with; it serves nothing and exits with 0."""
    calls: list[Settings] = []
    server = ModuleType("langport.server")
    monkeypatch.setattr(FakeForker, "made", [])
    monkeypatch.setattr("langport.engine.forker.Forker", FakeForker)

    def serve(settings: Settings, read_again: Callable[[], Settings], forker: FakeForker | None) -> int:
        assert read_again() == settings
        assert forker is not None
        assert not forker.is_closed
        calls.append(settings)
        return 0

    server.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langport.server", server)
    return calls


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        assert "langport COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("version", "--version"):
        assert cli.main([command]) == 0
        assert capsys.readouterr().out == f"langport {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "there is no command 'serv'; did you mean serve?"),
        (["--versoin"], "there is no option '--versoin'; did you mean --version?"),
        (
            ["zzz"],
            "there is no command 'zzz'; there are bench, check, config, gateway, help, keys, models, pull, serve, "
            "version",
        ),
        (["config"], "langport config takes check or show, not ''"),
        (["config", "chekc"], "langport config takes check or show, not 'chekc'"),
        (["check"], "the following arguments are required: URL"),
        (["check", "ftp://x"], "'ftp://x' is no address of a server; write http://HOST:PORT or https://HOST/v1."),
        (["check", "http://x:y"], "'http://x:y' is no address of a server; write http://HOST:PORT or https://HOST/v1."),
        (["check", "x", "--colour"], "unrecognized arguments: --colour"),
        (["serve", "--prot", "80"], "serve has no option --prot; did you mean --port?"),
        (["serve", "--prot=80"], "serve has no option --prot; did you mean --port?"),
        (["serve", "--port"], "argument --port: expected one argument"),
        (["serve", "--por", "80"], "serve has no option --por; did you mean --port?"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"langport: error: {message}\n"


def test_unknown_options_and_wrong_values_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--prot", "80", "--dtype", "int3", "--device=gpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("langport: error: ") for line in lines)


def test_serve_takes_models_and_options_in_any_order(served: list[Settings]) -> None:
    arguments = "serve a=org/x --port 81 --api-key k1 b=org/y --api-key k2 --redirect c:a --redirect d:e:b"
    assert cli.main(arguments.split()) == 0
    (settings,) = served
    assert [model.name for model in settings.models] == ["a", "b"]
    assert settings.port == 81
    assert settings.gateway.api_keys == ("k1", "k2")
    assert settings.gateway.aliases == {"c": "a", "d:e": "b"}


def test_a_switch_takes_no_value(served: list[Settings]) -> None:
    for arguments, expected in (([], False), (["--trust-remote-code"], True), (["--no-trust-remote-code"], False)):
        assert cli.main(["serve", *arguments, "org/x"]) == 0
        [model] = served[-1].models
        assert (model.name, model.engine.trust_remote_code) == ("org/x", expected)


def test_serve_reads_the_file_and_the_environment(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "langport.yaml"
    file.write_text("models: [m=org/x]\nport: 5\nlog_level: error\n")
    monkeypatch.setenv("LANGPORT_PORT", "6")
    assert cli.main(["serve", "--config", str(file)]) == 0
    monkeypatch.setenv("LANGPORT_CONFIG", str(file))
    assert cli.main(["serve"]) == 0
    first, second = served
    assert first == second
    assert (first.models[0].name, first.port, first.log_level) == ("m", 6, "error")


def test_an_expected_failure_is_a_line_and_exits_with_1(
    served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: Settings, read_again: object, forker: FakeForker | None) -> int:
        raise CheckpointError("x has no config.json.")

    monkeypatch.setattr(sys.modules["langport.server"], "serve", fail)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "langport: error: x has no config.json.\n"
    assert [forker.is_closed for forker in FakeForker.made] == [True]


def test_settings_with_a_problem_start_no_process(served: list[Settings]) -> None:
    assert cli.main(["serve", "--port", "many"]) == 2
    assert FakeForker.made == []


def test_help_of_serve_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["serve", "--help"], ["serve", "m", "-h"], ["config", "--help"], ["config", "show", "-h"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        for option in OPTIONS:
            assert option.switch in text
            assert f"[{option.variable}]" in text
        assert "Address to listen on" in text


def test_config_show_prints_the_merged_file_without_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "m=org/x", "--api-key", "sk-secret", "--port", "9"]) == 0
    text = capsys.readouterr().out
    assert "sk-secret" not in text
    content = yaml.safe_load(text)
    assert (content["port"], content["models"][0]["model"]) == (9, "org/x")


def test_config_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["config", "check", "m=org/x"]) == 0
    assert capsys.readouterr().out == "The settings are valid: m.\n"
    assert cli.main(["config", "check", str(tmp_path)]) == 1
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["version"], ["--help"], ["check", "--help"], ["bench", "--help"], ["serve", "--help"], ["config", "show"]],
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from langport import cli
cli.main({arguments!r})
heavy = {{"torch", "transformers", "huggingface_hub", "numpy", "uvicorn", "asyncio"}} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "langport", "serve", "--prot", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "langport: error: serve has no option --prot; did you mean --port?\n"
