"""The contents of files: whole or not at all, read in pieces, and never more of the disk than is free."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import threading

import pytest

from langport.errors import PayloadTooLarge, StoreUnavailable
from langport.store import blobs as blobs_module
from langport.store.blobs import Blobs


async def write(blobs: Blobs, id: str, *parts: bytes) -> int:
    writer = await blobs.create(id)
    for part in parts:
        await writer.write(part)
    await writer.commit()
    return writer.num_bytes


async def lines(blobs: Blobs, id: str, max_bytes: int = 100):
    return [found async for found in blobs.lines(id, max_bytes)]


@pytest.fixture
def blobs(tmp_path) -> Blobs:
    return Blobs(tmp_path / "files")


async def test_what_is_written_is_read(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(blobs_module, "CHUNK_BYTES", 10)
    assert await write(blobs, "a", b"123456", b"7890123", b"45") == 15
    assert [part async for part in blobs.read("a")] == [b"1234567890", b"12345"]
    assert os.listdir(tmp_path / "files") == ["a"]
    assert stat.S_IMODE((tmp_path / "files" / "a").stat().st_mode) == 0o600


async def test_nothing_is_left_of_what_was_given_up(blobs, tmp_path):
    writer = await blobs.create("a")
    await writer.write(b"x" * 1_000_000)
    assert len(os.listdir(tmp_path / "files")) == 1
    await writer.discard()
    await writer.discard()
    assert os.listdir(tmp_path / "files") == []
    with pytest.raises(FileNotFoundError):
        [part async for part in blobs.read("a")]


async def test_a_discard_after_the_commit_keeps_it(blobs):
    writer = await blobs.create("a")
    await writer.write(b"x")
    await writer.commit()
    await writer.discard()
    assert [part async for part in blobs.read("a")] == [b"x"]


async def test_delete(blobs):
    await write(blobs, "a", b"x")
    await blobs.delete("a")
    await blobs.delete("a")
    with pytest.raises(FileNotFoundError):
        await lines(blobs, "a")


@pytest.mark.parametrize("chunk_bytes", [2, 7, 1000])
async def test_lines(blobs, monkeypatch, chunk_bytes):
    monkeypatch.setattr(blobs_module, "CHUNK_BYTES", chunk_bytes)
    await write(blobs, "a", b"one\n\n \r\n", b"x" * 10 + b"\n", b"y" * 11 + b"\n", b"z" * 50 + b"\nfive\r\nsix")
    assert await lines(blobs, "a", max_bytes=10) == [
        (1, b"one\n"),
        (4, b"x" * 10 + b"\n"),
        (5, None),
        (6, None),
        (7, b"five\r\n"),
        (8, b"six"),
    ]


async def test_a_disk_without_room(blobs, monkeypatch):
    free = blobs_module.KEPT_FREE_BYTES + 10
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    writer = await blobs.create("a")
    await writer.write(b"x" * 10)
    with pytest.raises(PayloadTooLarge, match="no room"):
        await writer.write(b"x")
    await writer.discard()


async def test_a_disk_that_fills_up(blobs):
    writer = await blobs.create("a")
    writer._file.close()
    writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await writer.write(b"x" * 1_000_000)
    await writer.discard()


async def test_what_dead_processes_left_is_cleaned_up(blobs, tmp_path):
    await write(blobs, "a", b"x")
    old, fresh = tmp_path / "files" / "b.1.part", tmp_path / "files" / "c.2.part"
    old.write_text("")
    fresh.write_text("")
    os.utime(old, (1, 1))
    await blobs.clean()
    assert sorted(os.listdir(tmp_path / "files")) == ["a", "c.2.part"]


async def test_a_temporary_folder_goes_with_its_store():
    blobs = Blobs(None)
    await write(blobs, "a", b"x")
    folder = blobs._folder
    blobs.close()
    assert not folder.exists()


@pytest.mark.parametrize("what", ["create", "read", "lines"])
async def test_who_is_cancelled_while_a_file_is_opened_leaves_none_open(tmp_path, monkeypatch, what):
    blobs = Blobs(tmp_path)
    writer = await blobs.create("file-1")
    await writer.commit()
    opened, may_go = [], threading.Event()

    async def slow(function, *arguments):
        def wait():
            may_go.wait(10)
            opened.append(function(*arguments))
            return opened[-1]

        return await asyncio.get_running_loop().run_in_executor(None, wait)

    monkeypatch.setattr("langport.store.blobs.asyncio.to_thread", slow)
    doing = {"create": lambda: blobs.create("file-2"), "read": lambda: anext(blobs.read("file-1")),
             "lines": lambda: anext(blobs.lines("file-1", 9))}[what]  # fmt: skip
    task = asyncio.ensure_future(doing())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go.set()
    while not opened or not getattr(opened[0], "_file", opened[0]).closed:
        await asyncio.sleep(0.001)
    assert not list(tmp_path.glob("*.part"))
