"""benchmarks/peers.py: medians and ratios of known reports, a server that is started, and files that are wrong."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from langport.bench.figures import Report, Run, Sample, summary

FILE = Path(__file__).parents[3] / "benchmarks" / "peers.py"


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("peers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module  # where msgspec looks for the types that annotations name
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]


def report(elapsed_s: float) -> Report:
    """10 tokens in `elapsed_s`, the first after half of it."""
    sample = Sample(0.0, elapsed_s, [elapsed_s / 2, elapsed_s], output_tokens=10)
    level = summary(Run("closed", 8, [sample], elapsed_s, 0.0))
    return Report(date="d", url="u", model="m", endpoint="chat", load={}, levels=[level])


def test_figures_are_medians_and_ratios_are_of_the_same_round(peers: ModuleType) -> None:
    turns = {
        "A": [peers.Turn(report(s), 2.0) for s in (1.0, 10.0, 2.0)],
        "B": [peers.Turn(report(s), None) for s in (3.0, 20.0, 2.0)],
    }
    _, _, a, b = peers.table(turns)
    assert a == "| A | 2.0 s | 8 | 5.0 | 1000 ms | 1000 ms | 2000 ms |  |"
    # Of 3, 2 and 1; the ratio of the medians would be 1.5.
    assert b == "| B | - | 8 | 3.3 | 1500 ms | 1500 ms | 3000 ms | 2.00 |"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servers: []", "there must be a server"),
        ("servers: [{name: a, url: 'ftp://x'}]", "is no address of a server"),
        ("servers: [{name: a}]", "missing required field `url`"),
        ("servers: [{name: a, url: x, cmd: y}]", "unknown field `cmd`"),
        ("servers: [{name: a, url: x}, {name: a, url: y}]", "every server needs its own name"),
        ("servers: [", "peers.yaml: "),
    ],
)
def test_files_that_are_wrong(peers: ModuleType, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "peers.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        peers.read_peers(path)


def test_a_server_that_does_not_start_is_told_with_what_it_wrote(peers: ModuleType, tmp_path: Path) -> None:
    peer = peers.Peer("A", "http://127.0.0.1:1", command=f"{sys.executable} -c 'print(\"no weights\")'")
    with (
        pytest.raises(SystemExit, match=r"A has ended. It wrote:\nno weights"),
        peers.serving(peer, tmp_path / "log", []),
    ):
        pass
    with (
        pytest.raises(SystemExit, match=r"A: .*No such file"),
        peers.serving(peers.Peer("A", "http://127.0.0.1:1", command="/nowhere/x"), tmp_path / "log", []),
    ):
        pass


def test_a_url_that_answers_before_its_command_is_not_measured(peers: ModuleType, tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        peer = peers.Peer("A", f"http://127.0.0.1:{server.server_port}", command="true")
        with pytest.raises(SystemExit, match="something answers at"), peers.serving(peer, tmp_path / "log", []):
            pass
        thread.join()
