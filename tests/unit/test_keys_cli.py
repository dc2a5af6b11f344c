"""`langport keys`: what is typed and printed, and what is then in the store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import pytest

from langport.cli import main
from langport.gateway.key_book import digest_of
from langport.store.base import UsageRecord
from langport.store.threaded import ThreadedStore


@pytest.fixture
def keys(tmp_path, monkeypatch, capsys):
    """Run a command; its exit code, and the lines of both outputs."""
    monkeypatch.setenv("LANGPORT_STORE", str(tmp_path / "store.db"))

    def run(*arguments):
        code = main(["keys", *arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def in_store(tmp_path, call):
    async def run():
        store = ThreadedStore(tmp_path / "store.db")
        try:
            return await call(store)
        finally:
            await store.close()

    return asyncio.run(run())


def as_json(keys, *arguments):
    code, out, err = keys(*arguments, "--json")
    assert (code, err) == (0, [])
    return json.loads("\n".join(out))


def test_a_secret_is_printed_alone_and_only_its_digest_kept(keys, tmp_path):
    code, (secret,), (told,) = keys("create", "Anna")
    assert code == 0
    assert "Anna" in told
    assert secret not in told
    (record,) = in_store(tmp_path, lambda store: store.keys())
    assert record.digest == digest_of(secret.encode())
    code, listed, _ = keys("list")
    assert listed[0].split() == ["ID", "NAME", "SECRET", "STATUS", "EXPIRES", "MODELS"]
    assert listed[1].split() == [record.id, "Anna", secret[:7] + "...", "active", "never", "all"]


def test_everything_that_may_be_said_of_a_key(keys):
    made = as_json(
        keys, "create", "team", "--expires", "2099-12-31", "--models", "chat, embed", "--requests-per-minute", "60",
        "--tokens-per-minute", "1000", "--max-concurrency", "4", "--token-budget", "1_000/day", "--money-budget",
        "20.5/month", "--metadata", "owner=Anna", "--metadata", "a=b=c",
    )  # fmt: skip
    assert made["key"].startswith("lp-")
    shown = as_json(keys, "show", "team")
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert shown["expires_at"] == 4102358400
    assert shown["models"] == ["chat", "embed"]
    limits = (shown["requests_per_minute"], shown["tokens_per_minute"], shown["max_concurrency"])
    assert limits == (60, 1000, 4)
    assert shown["budgets"] == [{"per": "day", "tokens": 1000}, {"per": "month", "money": 20.5}]
    assert shown["metadata"] == {"owner": "Anna", "a": "b=c"}
    code, lines, _ = keys("show", shown["id"])
    assert code == 0
    assert "expires_at:           2099-12-31 00:00:00 UTC" in lines
    assert lines[-1] == "used this month:      nothing"


def test_what_a_key_used_is_shown(keys, tmp_path):
    made = as_json(keys, "create", "Anna")
    record = UsageRecord(
        at=int(time.time() * 1000), request_id="r", key_id=made["id"], model="chat", upstream="chat", path="/v1",
        status=200, prompt_tokens=1000, completion_tokens=20, is_estimated=False, cost_nano=5 * 10**8, duration_ms=1,
    )  # fmt: skip
    in_store(tmp_path, lambda store: store.add_usage([record]))
    assert keys("show", "Anna")[1][-1] == "  chat: 1 requests, 1,000 + 20 tokens, 0.5000 of money"


def test_rotate_and_revoke(keys, tmp_path):
    _, (old,), _ = keys("create", "Anna")
    code, (new,), (told,) = keys("rotate", "Anna", "--grace", "24h")
    assert code == 0
    assert "good until" in told
    (record,) = in_store(tmp_path, lambda store: store.keys())
    assert (record.digest, record.previous_digest) == (digest_of(new.encode()), digest_of(old.encode()))
    assert record.previous_until == pytest.approx(time.time() + 24 * 3600, abs=60)
    assert keys("revoke", "Anna")[0] == 0
    assert len(keys("list")[1]) == 1
    assert "revoked" in keys("list", "--all")[1][1]
    assert keys("rotate", "Anna")[0] == 2
    _, (second,), _ = keys("create", "Anna")  # the name is free again
    assert keys("show", "Anna")[1][0].split()[1] != record.id
    assert second != new


def test_a_name_that_two_have_asks_for_an_id(keys):
    first, second = (as_json(keys, "create", "Anna")["id"] for _ in range(2))
    code, _, (told,) = keys("revoke", "Anna")
    assert code == 1
    assert first in told
    assert second in told
    assert keys("revoke", first)[0] == 0
    code, _, (told,) = keys("show", "nobody")
    assert (code, "langport keys list" in told) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "create, list, show, revoke, rotate"),
        (("make",), "make"),
        (("create",), "NAME"),
        (("create", "x", "--expires", "soon"), "2026-12-31"),
        (("create", "x", "--expires", "2001-01-01"), "past"),
        (("create", "x", "--models", ""), "models is empty"),
        (("create", "x", "--requests-per-minute", "0"), "1 or more"),
        (("create", "x", "--token-budget", "5/week"), "/day or /month"),
        (("create", "x", "--money-budget", "much/day"), "20/month"),
        (("create", "x", "--metadata", "x"), "KEY=VALUE"),
        (("rotate", "x", "--grace", "long"), "24h"),
        (("list", "--store", "memory"), "POST /admin/keys"),
        (("list", "--store", "none"), "--store none"),
        (("create", "x", "--modles", "a"), "--modles"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_made(keys, tmp_path, arguments, told):
    code, out, err = keys(*arguments)
    assert (code, out) == (2, [])
    assert told in " ".join(err)
    assert not (tmp_path / "store.db").exists()


def test_a_store_that_cannot_be_used_is_named(keys, tmp_path):
    (tmp_path / "store.db").write_text("no database")
    code, _, (told,) = keys("list")
    assert (code, str(tmp_path / "store.db") in told) == (1, True)


def test_listing_keys_makes_no_store(keys, tmp_path):
    assert len(keys("list")[1]) == 1
    assert not (tmp_path / "store.db").exists()


def test_help_and_keys_load_neither_torch_nor_a_server():
    code = (
        "import sys\nfrom langport.cli import main\n"
        "try:\n    main(['keys', 'create', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'uvicorn', 'sqlalchemy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--token-budget" in done.stdout
    assert done.stdout.endswith("[]\n")
