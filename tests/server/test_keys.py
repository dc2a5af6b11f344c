"""Keys from the command line against a running server, and what is written down of their use when that is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import Server, run_langport, running, until
from tests.server.test_models import CHAT

ADMIN = {"authorization": "Bearer admin-secret"}
BODY = {"model": CHAT, "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Hello!"}]}


def places() -> list[str]:
    """The address of a database too, where there is one (see .ci/postgres)."""
    return ["file", *(["postgres"] if os.environ.get("LANGPORT_TEST_POSTGRES") else [])]


def keys(store: str, *arguments: str) -> Any:
    done = run_langport("keys", *arguments, "--json", LANGPORT_STORE=store)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status(server: Server, secret: str | None) -> int:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    return server.http.get("/v1/models", headers=headers).status_code


def usage(server: Server, query: str = "") -> Any:
    return server.get("/admin/usage" + query, **ADMIN)["data"]


@pytest.mark.parametrize("place", places())
def test_a_key_from_its_making_to_its_end(tmp_path: Path, place: str) -> None:
    store = str(tmp_path / "store.db") if place == "file" else os.environ["LANGPORT_TEST_POSTGRES"]
    with running(CHAT, "--store", store, LANGPORT_ADMIN_KEY="admin-secret") as server:
        is_open = status(server, None) == 200  # a database may hold keys of other tests
        assert is_open or place == "postgres"
        made = keys(store, "create", "Anna", "--models", CHAT)
        bearer = {"authorization": f"Bearer {made['key']}"}
        until(lambda: status(server, None) == 401, "the end of the open server")
        assert status(server, made["key"]) == 200

        said = server.post("/v1/chat/completions", bearer, **BODY)["usage"]
        with server.http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}, headers=bearer) as it:
            assert it.status_code == 200
            assert b"usage" not in it.read()
        (used,) = usage(server, f"?group_by=key&key_id={made['id']}")
        assert used["key_name"] == "Anna"
        assert (used["num_requests"], used["num_estimated"]) == (2, 0)
        assert used["prompt_tokens"] == 2 * said["prompt_tokens"]
        assert used["completion_tokens"] == 2 * said["completion_tokens"]

        keys(store, "revoke", made["id"])
        until(lambda: status(server, made["key"]) == 401, "the end of the key")
        os.killpg(server.process.pid, signal.SIGKILL)
        server.wait_end()
    shown = run_langport("keys", "show", made["id"], LANGPORT_STORE=store).stdout
    assert f"{CHAT}: 2 requests" in shown
    assert made["key"] not in shown
