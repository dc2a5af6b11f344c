"""SIGHUP: the settings are read again while requests run, and none of them notices."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.server.process import error_of, running, until


def write(file: Path, endless_model: Path, **settings: Any) -> None:
    models = [{"name": "one", "model": str(endless_model)}, {"name": "two", "model": str(endless_model)}]
    file.write_text(json.dumps({"models": models, **settings}))  # JSON is YAML


def test_new_settings_hold_while_a_stream_goes_on(endless_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "langport.yaml"
    write(file, endless_model)
    ask = {"prompt": "a", "max_tokens": 3}
    with running("--config", str(file), "--dtype", "float32") as server:

        def hangup(line: str) -> None:
            server.process.send_signal(signal.SIGHUP)
            until(lambda: line in server.log, line)

        assert server.http.post("/v1/completions", json={"model": "both", **ask}).status_code == 404
        endless = {"model": "one", "prompt": "a", "max_tokens": 100_000, "ignore_eos": True}
        with server.stream("/v1/completions", **endless) as events:
            next(events)
            routes = {"both": ["one", "two"]}
            write(file, endless_model, routes=routes, redirect=["gpt:both"], api_key=["k"], store="none")
            hangup("Reloaded: settings changed: api_key, redirect, routes. Only a restart changes store.")
            assert error_of(server.http.post("/v1/completions", json={"model": "both", **ask}))[3] == "invalid_api_key"
            headers = {"authorization": "Bearer k"}
            found = [server.http.post("/v1/completions", json={"model": "gpt", **ask}, headers=headers) for _ in "12"]
            assert {each.headers["x-langport-deployment"] for each in found} == {"one", "two"}
            assert {each.json()["model"] for each in found} == {"both"}

            write(file, endless_model, routes={"both": ["three"]}, redirect=["gpt:nowhere"])
            hangup("'three' is none of one, two")
            hangup("--redirect gpt:nowhere: write FROM:TO")
            assert server.post("/v1/completions", headers, model="both", **ask)["model"] == "both"
            assert [next(events)["object"] for _ in range(20)] == ["text_completion"] * 20
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
