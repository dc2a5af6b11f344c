"""The server's end and its engines' ends: nothing is left behind, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import save_checkpoint
from tests.server.conftest import ENDLESS
from tests.server.process import DONE, Server, processes_of_group, running, started, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through Linux' /proc")

PATH = "/v1/completions"
LONG = {"model": "endless", "prompt": "Once upon a time", "max_tokens": ENDLESS - 100, "ignore_eos": True, "seed": 1}
NUM_TOKENS = 400


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("small") / "small")


def is_refused(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health", trust_env=False)
    except httpx.TransportError:  # refused, or reset by a socket that closes
        return True
    return False


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.kill, signal.SIGTERM, id="SIGTERM to the server"),
        pytest.param(os.killpg, signal.SIGTERM, id="SIGTERM to the engines as well, as systemd does it"),
        pytest.param(os.killpg, signal.SIGINT, id="SIGINT to the engines as well, as a terminal does it"),
    ],
)
def test_a_signal_lets_open_requests_finish(
    endless_model: Path, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    with running(str(endless_model)) as server:
        with server.stream(PATH, **{**LONG, "max_tokens": NUM_TOKENS}) as events:
            received = [next(events)]
            assert len(server.processes()) > 1
            send(server.process.pid, number)
            until(lambda: is_refused(server), "a closed port")
            received += events
        assert received[-1] == DONE
        assert received[-2]["choices"][0]["finish_reason"] == "length"
        assert server.wait_end() == 0
        until(lambda: not server.processes(), "the engines' end")
        assert "Traceback" not in server.log


def test_a_second_signal_ends_open_requests(endless_model: Path) -> None:
    with running(str(endless_model)) as server:
        with server.stream(PATH, **LONG) as events:
            next(events)
            server.process.send_signal(signal.SIGINT)
            until(lambda: is_refused(server), "a closed port")
            server.process.send_signal(signal.SIGINT)
            try:
                received = list(events)
            except httpx.RemoteProtocolError:
                received = [None]
            assert received[-1] != DONE
        assert server.wait_end() == 0
        until(lambda: not server.processes(), "the engines' end")
        assert "Traceback" not in server.log


def test_a_signal_while_the_model_is_loading(small_model: Path) -> None:
    with started(str(small_model)) as server:
        until(lambda: "loading" in server.log, "a model that is loading")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
        until(lambda: not server.processes(), "the engines' end")
        assert "Traceback" not in server.log


def test_a_killed_server_leaves_no_engine_behind(small_model: Path, endless_model: Path) -> None:
    with running(str(small_model), str(endless_model)) as server:
        assert len(server.engines()) == 2
        with server.stream(PATH, **LONG) as events:
            next(events)
            server.process.kill()
            server.wait_end()
            until(lambda: not processes_of_group(server.process.pid), "the engines' end")


def test_a_killed_engine_is_told_and_started_again(small_model: Path, endless_model: Path) -> None:
    with running(str(endless_model), str(small_model)) as server:
        before = server.engines()
        with server.stream(PATH, **LONG) as events:
            received = [next(events)]
            victim = busiest(before)
            os.kill(victim, signal.SIGKILL)
            received += events
        error = received[-1]["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "server_error"
        assert "endless" in error["message"]
        assert DONE not in received

        unready = server.http.get("/ready")
        assert unready.status_code == 503
        assert list(unready.json()["models"]) == ["endless"]
        other = server.post(PATH, model="small", prompt="x", max_tokens=2, ignore_eos=True)
        assert other["usage"]["completion_tokens"] == 2
        assert server.get("/health") == {"status": "ok"}

        until(lambda: server.http.get("/ready").status_code == 200, "the engine's return")
        answer = server.post(PATH, **{**LONG, "max_tokens": 5})
        assert answer["usage"]["completion_tokens"] == 5
        assert len(server.engines()) == 2
        assert victim not in server.engines()


def busiest(processes: list[int]) -> int:
    """The one that has used the processor most: of two engines the one that generates."""

    def ticks(process: int) -> int:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    start = {process: ticks(process) for process in processes}
    until(lambda: max(ticks(process) - start[process] for process in processes) > 20, "a busy engine")
    return max(processes, key=lambda process: ticks(process) - start[process])
