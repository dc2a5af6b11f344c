"""The `langport` command: what to type, what it answers, its exit codes (2: usage or settings, 1: failure).

Commands import what they need when they run, so that `langport --help` costs no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from langport import __version__
from langport.errors import ConfigError, LangPortError
from langport.settings.fields import nearest
from langport.settings.load import load_settings
from langport.settings.options import GATEWAY_OPTIONS, OPTIONS, Option, field_docs
from langport.settings.show import as_yaml
from langport.settings.tree import Settings

ABOUT = """\
usage: langport COMMAND ...

Serve language models behind OpenAI's API.

commands:
  serve [MODEL ...]    serve models; with no MODEL the bundled demo models
  check URL            is the server there OpenAI-compatible? a table of checks
  bench URL            how fast does the server there answer?
  keys create|list|show|revoke|rotate
                       the API keys of a server
  gateway              serve models of remote servers only (--upstream)
  pull ID ...          download models from the hub
  models [list|remove] the models on this machine, bundled or from the hub
  config check|show    check the settings that serve would use, or print them merged
  version              print the version

`langport COMMAND --help` says more."""

SERVE_EXAMPLES = """\
examples:
  langport serve                                             the bundled demo models, offline
  langport serve Qwen/Qwen3-0.6B                             a hub id
  langport serve chat=./qwen embed=BAAI/bge-small-en-v1.5    several models, named
  langport serve --config langport.yaml

Every option is also a setting of the file (max_model_len: 4096) and the environment variable in brackets."""
GATEWAY_EXAMPLES = """\
examples:
  langport gateway --upstream http://10.0.0.5:8000                every model that this server lists
  langport gateway --upstream gpt=https://api.openai.com/v1#gpt-4o --upstream-key env:OPENAI_API_KEY
  langport gateway --config langport.yaml

Every option is also a setting of the file (api_key: [...]) and the environment variable in brackets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Expected errors are printed, not raised."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["help"]
    try:
        return _command(command)(rest)
    except ConfigError as error:
        for problem in error.problems:
            print(f"langport: error: {problem}", file=sys.stderr)
        return 2
    except LangPortError as error:
        for line in str(error).splitlines():
            print(f"langport: error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `langport serve --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
        return 0


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        known = [known for known in COMMANDS if known.startswith("-") == name.startswith("-")]
        hint = nearest(name, known) or f"; there are {', '.join(sorted(known))}"
        raise ConfigError(f"there is no {what} {name!r}{hint}")
    return COMMANDS[name]


def _help(arguments: list[str]) -> int:
    print(ABOUT)
    return 0


def _version(arguments: list[str]) -> int:
    print(f"langport {__version__}")
    return 0


def _serve(arguments: list[str]) -> int:
    def run(settings: Settings) -> int:
        from langport.engine.forker import Forker

        forker = Forker() if settings.models else None  # torch is imported there, while the server is imported here
        try:
            from langport.server import serve

            return serve(settings, lambda: _read_settings("serve", arguments), forker)
        finally:
            if forker is not None:
                forker.close()

    return _with_settings("serve", arguments, run)


def _keys(arguments: list[str]) -> int:
    from langport.keys_cli import run

    return run(arguments)


def _gateway(arguments: list[str]) -> int:
    def run(settings: Settings) -> int:
        from langport.gateway_server import serve_gateway

        return serve_gateway(settings, lambda: _read_settings("gateway", arguments))

    return _with_settings("gateway", arguments, run)


def _pull(arguments: list[str]) -> int:
    from langport.models_cli import pull

    return pull(arguments)


def _models(arguments: list[str]) -> int:
    from langport.models_cli import models

    return models(arguments)


def _config(arguments: list[str]) -> int:
    action, *rest = arguments or [""]
    if action in ("-h", "--help"):
        return _with_settings("config check|show", ["--help"], _check_settings)
    if action not in CONFIG_ACTIONS:
        raise ConfigError(f"langport config takes check or show, not {action!r}")
    return _with_settings(f"config {action}", rest, CONFIG_ACTIONS[action])


def _show_settings(settings: Settings) -> int:
    print(as_yaml(settings), end="")
    return 0


def _check_settings(settings: Settings) -> int:
    from langport.gateway.remote_models import RemoteModels

    _check_local_models(settings)
    RemoteModels(settings.upstreams)
    remote = [upstream.name or upstream.url.rpartition("@")[2] for upstream in settings.upstreams]
    print(f"The settings are valid: {', '.join([*(model.name for model in settings.models), *remote])}.")
    return 0


def _check_local_models(settings: Settings) -> None:
    """Read the checkpoints that are on this machine; hub ids are taken on trust."""
    from langport.models.adapter import read_adapter
    from langport.models.checkpoint import read_checkpoint

    for model in settings.models:
        path = Path(model.reference).expanduser()
        if path.exists():
            read_checkpoint(path)
        for adapter in (Path(reference).expanduser() for reference in model.lora.values()):
            if adapter.exists():
                read_adapter(adapter)


def _check(arguments: list[str]) -> int:
    parser = _Parser(
        prog="langport check",
        description="Check whether a server keeps to OpenAI's API. Exit code 0: it does; 1: a check failed.",
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="its base URL; without a path, /v1 is added")
    parser.add_argument("--api-key", metavar="K", help="sent as a bearer token")
    for purpose in ("chat", "completion", "embedding"):
        parser.add_argument(
            f"--{purpose}-model", metavar="NAME", help="the first of /v1/models that answers, if not given"
        )
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=120.0, help="for one answer; default 120")
    parser.add_argument("--json", action="store_true", help="print a report in JSON instead of the table")
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help())
        return 0
    given = parser.parse_args(arguments)

    from langport.check.command import run
    from langport.check.server import Server, base_url

    models = {"chat": given.chat_model, "completion": given.completion_model, "embedding": given.embedding_model}
    return run(Server(base_url(given.url), given.api_key, models, given.timeout), as_json=given.json)


def _bench(arguments: list[str]) -> int:
    from langport.bench.command import run

    return run(arguments)


CONFIG_ACTIONS = {"check": _check_settings, "show": _show_settings}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "serve": _serve,
    "check": _check,
    "bench": _bench,
    "keys": _keys,
    "gateway": _gateway,
    "pull": _pull,
    "models": _models,
    "config": _config,
    "version": _version,
    "help": _help,
    "--version": _version,
    "--help": _help,
    "-h": _help,
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(command: str, *, has_help: bool) -> _Parser:
    """The options of a command that takes settings; their docs are read only when help is wanted."""
    docs = field_docs() if has_help else {}
    has_models = command != "gateway"
    models = " [[NAME=]MODEL ...]" if has_models else ""
    parser = _Parser(
        prog=f"langport {command}",
        usage=f"langport {command}{models} [--option VALUE ...]",
        epilog=SERVE_EXAMPLES if has_models else GATEWAY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if has_models:
        parser.add_argument(
            "models",
            metavar="[NAME=]MODEL",
            nargs="*",
            help="a directory or a hub id, and the name that clients use (else the id, or the directory's name)",
        )
    parser.add_argument("--config", metavar="FILE", help="settings in YAML [LANGPORT_CONFIG]")
    if has_models:
        parser.add_argument(
            "--load-on-request",
            dest="load",
            action="store_const",
            const="on_request",
            help="short for --load on_request",
        )
    for option in _options(command):
        meaning = f"{docs.get(option, '').replace('%', '%%')} [{option.variable}]"
        if option.flag.form == "switch":
            parser.add_argument(option.switch, dest=option.name, action=argparse.BooleanOptionalAction, help=meaning)
        else:
            action = "append" if option.flag.form == "list" else "store"
            parser.add_argument(
                option.switch, dest=option.name, metavar=option.flag.metavar, action=action, help=meaning
            )
    return parser


def _options(command: str) -> Sequence[Option]:
    """Those that a command has."""
    return GATEWAY_OPTIONS if command == "gateway" else OPTIONS


def _with_settings(command: str, arguments: list[str], run: Callable[[Settings], int]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(_parser(command, has_help=True).format_help())
        return 0
    return run(_read_settings(command, arguments))


def _read_settings(command: str, arguments: list[str]) -> Settings:
    """Settings from the command line, the environment and the file. Raises: ConfigError with all problems."""
    given, unknown = _parser(command, has_help=False).parse_known_intermixed_args(arguments)
    flags = {name: value for name, value in vars(given).items() if value not in (None, [])}
    file = flags.pop("config", None) or os.environ.get("LANGPORT_CONFIG")
    known = [option.switch for option in _options(command)] + ["--config", "--help", "--load-on-request"]
    problems = [
        f"{command} has no option {flag}{nearest(flag, known)}"
        for flag in (argument.partition("=")[0] for argument in unknown)
        if flag.startswith("-")
    ]
    if command == "gateway" and unknown and not problems:
        problems.append(f"langport gateway serves no local models, such as {unknown[0]!r}; langport serve does.")
    try:
        settings = load_settings(
            flags, os.environ, Path(file).expanduser() if file else None, with_models=command != "gateway"
        )
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return settings
