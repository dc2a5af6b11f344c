"""The environments of real clients, in a folder that `make clients` fills, and scripts run in them.

Which versions there are stands in the Makefile alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.clients.busy import BusyServer
from tests.conftest import KEYS
from tests.server.process import PATIENCE_S, Server, clean_environment
from tests.server.test_models import CHAT, EMBED, TEXT2TEXT

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"


def pinned(variable: str) -> list[str]:
    """The words that the Makefile gives a variable."""
    found = re.search(rf"^{variable} = (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert found, f"the Makefile has no {variable}"
    return found[1].split()


def pinned_packages(variable: str) -> dict[str, str]:
    """The packages that the Makefile gives a variable, each with its version."""
    words = (re.fullmatch(r"(@?[\w./-]+)(?:\[\w+\])?(?:==|@)([\w.]+)", word) for word in pinned(variable))
    return {word[1]: word[2] for word in words if word}


def python_of(name: str, command: str = "make clients") -> Path:
    """The Python of the environment `name`, which `command` builds; skips or fails the test where there is none."""
    return program_of(name, "bin/python", command)


def node() -> Path:
    """The node of the environment with packages from npm; skips the test where there is no npm to build it with."""
    if not shutil.which("npm") and not (_folder() / "npm").exists():
        pytest.skip("there is no npm on this machine: the clients from npm are not tested")
    return program_of("npm", "node_modules/.bin/node", "make clients")


def program_of(name: str, path: str, command: str) -> Path:
    """A program of the environment `name`, which `command` builds; skips or fails the test where there is none.

    Where LANGPORT_CLIENTS names the folder of the environments, a missing one is a failure.
    """
    program = _folder() / name / path
    if program.exists():
        return program
    reason = f"no environment {name} in {_folder()}: run `{command}`"
    if os.environ.get("LANGPORT_CLIENTS"):
        pytest.fail(reason)
    pytest.skip(reason)


def _folder() -> Path:
    return Path(os.environ.get("LANGPORT_CLIENTS") or ROOT / ".venv-clients")


def run(program: Path, *arguments: str | Path, cwd: Path = SCRIPTS) -> str:
    """What a script prints. Nothing of LangPort, and no proxy, is in its environment."""
    environment = clean_environment()
    for name in ("PYTHONPATH", *(name for name in environment if name.startswith(("OPENAI_", "ANTHROPIC_")))):
        environment.pop(name, None)
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def outcome(program: Path, script: str, client: str, server: Server, keys: Server, busy: BusyServer) -> dict[str, Any]:
    """What each call of a script brought; a client's script runs once. `client` is its key at the busy server."""
    models = {"chat": CHAT, "embed": EMBED, "text2text": TEXT2TEXT}
    urls = {"url": server.url, "key_url": keys.url, "busy_url": busy.url}
    given = json.dumps({**urls, "key": KEYS[0], "busy_key": client, **models})
    # What node runs finds packages from the folder it is in.
    cwd = program.parents[2] if script.endswith(".mjs") else SCRIPTS
    results: dict[str, Any] = json.loads(run(program, SCRIPTS / script, given, cwd=cwd))
    return results
