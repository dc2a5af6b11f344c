"""The server as its user runs it: `python -m langport serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 240.0
"""For whatever must happen at all, on however busy a machine."""
READY = re.compile(r"Ready on (http://\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Server:
    """A running server. `log` is all that it has written to its terminal."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self.url = ""
        self._log_path = log_path

    @property
    def log(self) -> str:
        return self._log_path.read_text("utf-8")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> None:
        """Raises: AssertionError with what the server wrote, when it ends instead."""
        until(lambda: READY.search(self.log) or self.process.poll() is not None)
        found = READY.search(self.log)
        assert found, f"the server ended with {self.process.returncode}:\n{self.log}"
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of a GET that succeeds."""
        return answer(self.http.get(path, headers=headers))

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """The JSON of a POST that succeeds."""
        return answer(self.http.post(path, json=body, headers=headers))

    def chat(self, content: str, **body: Any) -> str:
        """The greedy answer of the demo model to one message."""
        fields = {"model": "langport-demo-chat", "temperature": 0, "max_tokens": 60, **body}
        message = {"role": "user", "content": content}
        text = self.post("/v1/chat/completions", messages=[message], **fields)["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text

    @contextmanager
    def stream(self, path: str, **body: Any) -> Iterator[Iterator[Any]]:
        """The events of a streamed answer as they come; leaving the block early hangs up."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield parsed(response.iter_lines())

    def metric(self, name: str, **labels: str) -> float:
        """The value of the one sample with these labels."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith((name + " ", name + "{")):  # a parser of all takes 50 ms
                found = dict(_LABEL.findall(line))
                if labels.items() <= found.items():
                    return float(line.rpartition(" ")[2])
        raise AssertionError(f"/metrics has no {name} with {labels}")

    def processes(self) -> dict[int, int]:
        """The live processes that this server is made of, and their parents."""
        return processes_of_group(self.process.pid)

    def engines(self) -> list[int]:
        """Those that run a model: the ones without children. Not meaningful when every engine is dead."""
        processes = self.processes()
        return sorted(processes.keys() - set(processes.values()))

    def wait_end(self) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(PATIENCE_S)


DONE = "[DONE]"


def parsed(lines: Iterator[str]) -> Iterator[Any]:
    """Server-sent events as values; the last one is DONE when the stream ended as it should."""
    for line in lines:
        assert line == "" or line.startswith(("data: ", ":")), line
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield DONE if data == DONE else json.loads(data)


def answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def error_of(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    """Status, type, param and code of an error body, which must be OpenAI's and say something."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    return response.status_code, error["type"], error["param"], error["code"]


def until(condition: Callable[[], Any], what: str = "what the test waits for") -> None:
    """Ask again and again. Raises: AssertionError when it never comes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def processes_of_group(group: int) -> dict[int, int]:
    """Process id -> its parent's, of those that are not zombies; needs Linux' /proc."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found[int(path.name)] = int(parent)
    return found


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings of LangPort, the hub or a proxy."""
    ours = ("LANGPORT_", "COMPLETION_MAX_", "HF_", "HUGGING_FACE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "NO_PROXY": "*", "no_proxy": "*", **changes}


@contextmanager
def running(*arguments: str, command: str = "serve", **environment: str) -> Iterator[Server]:
    """A server on a free port, ready; all its processes have ended when the block has."""
    with started(*arguments, command=command, **environment) as server:
        server.wait_ready()
        with server.http:
            yield server


@contextmanager
def started(*arguments: str, command: str = "serve", **environment: str) -> Iterator[Server]:
    """The same, but perhaps not ready yet."""
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "langport", command, "--port", "0", *arguments],
                cwd=folder,
                env=clean_environment(**{"XDG_STATE_HOME": folder, **environment}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Server(process, log_path)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)


def run_langport(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `langport` command that ends by itself."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-m", "langport", *arguments],
            cwd=folder,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
