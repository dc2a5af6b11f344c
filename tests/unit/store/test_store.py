"""Any store: what is put is found by its owner, in order, until it expires; and the file outlives its process."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from time import time
from typing import Any

import pytest

from langport.errors import StoreUnavailable
from langport.store import sql, threaded
from langport.store.base import ANYONE, Item, Query, Record
from langport.store.threaded import ThreadedStore


def record(id: str, **fields: Any) -> Record:
    return Record(**{"kind": "thing", "id": id, "owner": "me", "created_at": 1, "body": b"{}", **fields})


async def ids(store, **query: Any) -> tuple[list[str], bool]:
    found, has_more = await store.page("thing", "me", Query(**{"limit": 10, **query}))
    return [one.id for one in found], has_more


async def test_what_was_put_is_found_whole(store):
    given = record(
        "a", model="m", status="s", tag="t", parent="p", metadata={"k": "v", "l": "w"}, expires_at=2000, body=b"\x00{"
    )
    await store.put(given)
    assert await store.get("thing", "a", "me") == given


@pytest.mark.parametrize("wrong", [("other", "a", "me"), ("thing", "b", "me"), ("thing", "a", ANYONE)])
async def test_another_kind_id_or_owner_finds_nothing(store, wrong):
    await store.put(record("a"))
    assert await store.get(*wrong) is None
    assert not await store.delete(*wrong)
    assert await store.get("thing", "a", "me")


async def test_a_second_put_replaces_all_of_the_first(store):
    await store.put(record("a", metadata={"k": "v"}), [Item("i", 0, b"")])
    await store.put(record("a", body=b"new"))
    assert await store.get("thing", "a", "me") == record("a", body=b"new")
    assert await store.positions("a") == []


async def test_an_id_of_another_owner_is_not_taken_over(store):
    await store.put(record("a"), [Item("i", 0, b"")])
    with pytest.raises(StoreUnavailable, match="taken"):
        await store.put(record("a", owner="you"))
    assert await store.get("thing", "a", "me")
    assert await store.positions("a") == [0]


async def test_pages_in_both_directions(store):
    for number in range(5):
        await store.put(record(f"r{number}"))
    assert await ids(store, limit=2) == (["r0", "r1"], True)
    assert await ids(store, limit=3, after="r1") == (["r2", "r3", "r4"], False)
    assert await ids(store, limit=2, is_descending=True) == (["r4", "r3"], True)
    assert await ids(store, after="r3", is_descending=True) == (["r2", "r1", "r0"], False)
    assert await store.page("thing", "me", Query(limit=2, after="unknown")) is None
    assert await store.page("thing", "you", Query(limit=2, after="r1")) is None


async def test_filters(store):
    await store.put(record("a", model="m", metadata={"k": "v", "l": "w"}))
    await store.put(record("b", model="n", tag="t", metadata={"k": "v"}))
    await store.put(record("c", owner="you", model="m"))
    assert await ids(store, model="m") == (["a"], False)
    assert await ids(store, tag="t") == (["b"], False)
    assert await ids(store, metadata={"k": "v"}) == (["a", "b"], False)
    assert await ids(store, metadata={"k": "v", "l": "w"}) == (["a"], False)
    assert await ids(store, metadata={"k": "w"}) == ([], False)


async def test_change_is_refused_when_the_status_has_moved(store):
    await store.put(record("a", status="queued"))
    changed = record("a", status="done", body=b"new", metadata={"k": "v"}, expires_at=5000)
    assert not await store.change(changed, if_status=["running"])
    assert await store.change(changed, if_status=["queued", "running"])
    assert await store.get("thing", "a", "me") == changed
    assert not await store.change(record("b"))


async def test_what_expires_is_gone_and_purge_says_what_it_was(store, clock):
    await store.put(record("a", expires_at=1001, metadata={"k": "v"}), [Item("i", 0, b"")])
    await store.put(record("b"))
    assert await ids(store) == (["a", "b"], False)
    clock.now = 1001.0
    assert await store.get("thing", "a", "me") is None
    assert await ids(store) == (["b"], False)
    (purged,) = await store.purge()
    assert (purged.id, purged.metadata) == ("a", {"k": "v"})
    assert await store.purge() == []
    assert await store.positions("a") == []


async def test_items(store):
    await store.put(record("a"), [Item("x", 1, b"1", "good"), Item("y", 5, b"5", "bad")])
    await store.put_items("a", [Item("z", 3, b"3", "good"), Item("y2", 5, b"six", "bad")])
    await store.put(record("b"), [Item("x", 1, b"")])
    found, has_more = await store.items("a", limit=2)
    assert ([item.id for item in found], has_more) == (["x", "z"], True)
    found, has_more = await store.items("a", limit=2, after="z")
    assert (found, has_more) == ([Item("y2", 5, b"six", "bad")], False)
    found, _ = await store.items("a", limit=9, after="y2", is_descending=True)
    assert [item.id for item in found] == ["z", "x"]
    found, _ = await store.items("a", limit=9, tag="good")
    assert [item.id for item in found] == ["x", "z"]
    assert await store.items("a", limit=1, after="unknown") is None
    assert await store.positions("a") == [1, 3, 5]
    assert await store.count_items("a") == {"good": 2, "bad": 1}
    await store.drop_items("a")
    assert (await store.positions("a"), await store.positions("b")) == ([], [1])


async def test_a_chain_comes_oldest_first(store):
    await store.put(record("a"), [Item("a0", 0, b"")])
    await store.put(record("b", parent="a"))
    await store.put(record("c", parent="b"), [Item("c1", 1, b""), Item("c0", 0, b"")])
    chain = await store.chain("thing", "c", "me")
    assert [(one.id, [item.id for item in items]) for one, items in chain] == [
        ("a", ["a0"]),
        ("b", []),
        ("c", ["c0", "c1"]),
    ]
    await store.delete("thing", "a", "me")
    assert [one.parent for one, _ in await store.chain("thing", "c", "me")] == ["a", "b"]
    assert await store.chain("thing", "c", "you") == []


async def test_work_to_go_on_with_is_found_for_all_owners(store):
    await store.put(record("a", status="queued"))
    await store.put(record("b", status="done"))
    await store.put(record("c", status="running", owner="you"))
    assert [one.id for one in await store.with_status("thing", ["queued", "running"])] == ["a", "c"]


async def test_more_objects_than_a_statement_may_name(store, clock, monkeypatch):
    monkeypatch.setattr(sql, "MAX_VARIABLES", 3)
    for number in range(10):
        await store.put(record(f"r{number}", expires_at=1001, metadata={"n": str(number)}))
    found, _ = await store.page("thing", "me", Query(limit=100))
    assert [one.metadata["n"] for one in found] == [str(number) for number in range(10)]
    clock.now = 2000.0
    assert len(await store.purge()) == 10
    assert await store.purge() == []


class TestFile:
    async def test_nothing_is_made_before_it_is_needed(self, tmp_path):
        path = tmp_path / "a" / "store.db"
        store = ThreadedStore(path)
        assert not await store.exists()
        assert not path.parent.exists()
        await store.put(record("a"))
        assert await store.exists()
        await store.close()

    async def test_only_its_user_may_read_it(self, tmp_path):
        path = tmp_path / "a" / "store.db"
        store = ThreadedStore(path)
        await store.put(record("a"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes["store.db"] == 0o600
        assert modes["store.db-wal"] == 0o600
        assert set(modes.values()) == {0o600}
        await store.close()

    async def test_a_second_store_reads_what_the_first_wrote(self, tmp_path):
        first, second = ThreadedStore(tmp_path / "s"), ThreadedStore(tmp_path / "s")
        await first.put(record("a"))
        assert await second.get("thing", "a", "me") == record("a")
        await second.put(record("b"))
        assert await ids(first) == (["a", "b"], False)
        await asyncio.gather(first.close(), second.close())

    async def test_two_that_begin_at_once_both_work(self, tmp_path):
        stores = [ThreadedStore(tmp_path / "s") for _ in range(4)]
        await asyncio.gather(*(store.put(record(str(n))) for n, store in enumerate(stores)))
        assert sorted((await ids(stores[0]))[0]) == ["0", "1", "2", "3"]
        await asyncio.gather(*(store.close() for store in stores))

    async def test_a_new_file_that_another_process_writes_is_waited_for(self, tmp_path):
        other = sqlite3.connect(tmp_path / "s", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store = ThreadedStore(tmp_path / "s")
        opening = asyncio.create_task(store.put(record("a")))
        await asyncio.wait([opening], timeout=0.1)
        other.execute("COMMIT")
        other.close()
        await opening
        await store.close()

    async def test_a_damaged_file_is_named(self, tmp_path):
        path = tmp_path / "s"
        path.write_bytes(b"not a database at all, " * 100)
        store = ThreadedStore(path)
        with pytest.raises(StoreUnavailable, match=f"{path}.*not a database"):
            await store.get("thing", "a", "me")
        path.unlink()
        assert await store.get("thing", "a", "me") is None  # mended while the server runs
        await store.close()

    async def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        store = ThreadedStore(tmp_path / "file" / "store.db")
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            await store.put(record("a"))
        await store.close()

    async def test_one_of_a_newer_version_is_refused(self, tmp_path):
        store = ThreadedStore(tmp_path / "s")
        await store.put(record("a"))
        await store.close()
        with sqlite3.connect(tmp_path / "s") as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
        store = ThreadedStore(tmp_path / "s")
        with pytest.raises(StoreUnavailable, match=r"another version of LangPort.*9999"):
            await store.get("thing", "a", "me")
        await store.close()

    async def test_the_lead_passes_on_when_its_process_is_killed(self, tmp_path):
        store = ThreadedStore(tmp_path / "s")
        await store.put(record("a"))
        program = (
            "import asyncio, sys, pathlib\nfrom langport.store.threaded import ThreadedStore\n"
            "async def main():\n"
            "    print(await ThreadedStore(pathlib.Path(sys.argv[1])).lead(), flush=True)\n"
            "    await asyncio.sleep(600)\n"
            "asyncio.run(main())"
        )
        other = subprocess.Popen([sys.executable, "-c", program, tmp_path / "s"], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert await asyncio.to_thread(other.stdout.readline) == "True\n"
        assert not await store.lead()
        other.kill()
        other.wait()
        other.stdout.close()
        assert await store.lead()
        assert await store.lead()
        await store.close()


async def test_calls_that_pile_up_are_refused(monkeypatch):
    monkeypatch.setattr(threaded, "MAX_WAITING", 3)
    store = ThreadedStore(None)
    found = await asyncio.gather(*(store.get("thing", "a", "me") for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in found] == [type(None)] * 3 + [StoreUnavailable] * 2
    assert await store.get("thing", "a", "me") is None
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_the_newest_migration_makes_the_tables_that_are_used(request, kind):
    """Built by Alembic and built from the schema: the same."""
    import sqlalchemy
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from langport.store import schema
    from langport.store.threaded import _open

    database = _open(request.getfixturevalue("postgres") if kind == "postgres" else None, time)
    with database._engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        version = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    assert version == schema.HEAD
    database.close()


async def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path):
    from alembic import command
    from alembic.config import Config

    from langport.store import sqlite

    engine = sqlite._engine(f"sqlite:///{tmp_path / 's'}")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(sql.MIGRATIONS))
        command.upgrade(config, "0001")
    engine.dispose()
    store = ThreadedStore(tmp_path / "s")
    await store.put(record("a"))
    assert await store.keys() == []
    await store.close()


def test_the_tables_suit_postgresql():
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    from langport.store import schema

    texts = [str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in schema.metadata.sorted_tables]
    assert all("CREATE TABLE" in text for text in texts)
    assert "number SERIAL" in "".join(texts)


def test_importing_the_store_costs_no_database_library():
    code = "import sys, langport.store.threaded, langport.store.blobs; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
