"""Files: uploaded in pieces, described, listed, read back, deleted, and seen by their owner alone."""

from __future__ import annotations

import asyncio
import os
import shutil

import httpx
import pytest
from stored_fakes import KEYS, Clock, Site, on_disk

from langport.store import blobs

FILES = "/v1/files"


@pytest.fixture
async def site(tmp_path):
    made = Site(tmp_path)
    yield made
    await made.close()


async def test_upload_retrieve_content_delete(site, tmp_path):
    made = await site.upload(b"one\ntwo\xff", "user_data")
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": 8,
        "created_at": int(Clock.now),
        "filename": "in.jsonl",
        "purpose": "user_data",
        "status": "processed",
    }
    assert await site.get(f"{FILES}/{made['id']}") == made
    content = await site.http.get(f"{FILES}/{made['id']}/content")
    assert content.content == b"one\ntwo\xff"
    assert content.headers["content-length"] == "8"
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''in.jsonl"
    assert on_disk(tmp_path) == [made["id"]]
    answer = await site.http.delete(f"{FILES}/{made['id']}")
    assert answer.json() == {"id": made["id"], "object": "file", "deleted": True}
    assert on_disk(tmp_path) == []
    for path in ("", "/content"):
        assert (await site.http.get(f"{FILES}/{made['id']}{path}")).status_code == 404
    assert (await site.http.delete(f"{FILES}/{made['id']}")).status_code == 404


async def test_an_empty_file(site):
    made = await site.upload(b"", "evals")
    assert made["bytes"] == 0
    assert (await site.http.get(f"{FILES}/{made['id']}/content")).content == b""


async def test_a_large_file_in_small_pieces(site, monkeypatch):
    """Cut anywhere, boundaries and headers included, nothing is lost and little is kept."""
    content = os.urandom(300_000) + b"\r\n--frontier\r\n-"
    body = (
        b'--frontier2\r\nContent-Disposition: form-data; name="file"; filename="a b.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
        + content
        + b'\r\n--frontier2\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--frontier2--\r\n'
    )

    async def pieces():
        for start in range(0, len(body), 1009):
            yield body[start : start + 1009]

    headers = {"content-type": "multipart/form-data; boundary=frontier2"}
    made = (await site.http.post(FILES, content=pieces(), headers=headers)).json()
    assert (made["bytes"], made["filename"], made["purpose"]) == (len(content), "a b.bin", "vision")
    assert (await site.http.get(f"{FILES}/{made['id']}/content")).content == content


@pytest.mark.parametrize(
    ("given", "kept"),
    [("../../etc/passwd", "passwd"), ("C:\\x\\y.txt", "y.txt"), ("x" * 300, "x" * 255), ("grüße.txt", "grüße.txt")],
)
async def test_names_are_only_names(site, tmp_path, given, kept):
    answer = await site.http.post(FILES, data={"purpose": "evals"}, files={"file": (given, b"x")})
    made = answer.json()
    assert made["filename"] == kept
    assert on_disk(tmp_path) == [made["id"]]
    assert (await site.http.get(f"{FILES}/{made['id']}/content")).status_code == 200


async def test_the_list(site):
    ids = [(await site.upload(b"", purpose))["id"] for purpose in ("batch", "evals", "batch", "vision")]
    found = await site.get(FILES)
    assert [one["id"] for one in found["data"]] == ids[::-1]
    assert [one["id"] for one in (await site.get(FILES, purpose="batch", order="asc"))["data"]] == [ids[0], ids[2]]
    page = await site.get(FILES, limit=2, after=ids[3])
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    assert (await site.http.get(FILES, params={"limit": 10001})).json()["error"]["param"] == "limit"


async def test_expiry(site, tmp_path):
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    short = await site.upload(b"", "evals", **fields)
    batch, kept = await site.upload(b"", "batch"), await site.upload(b"", "evals")
    now = int(site.clock.now)
    assert (short["expires_at"], batch["expires_at"]) == (now + 3600, now + 30 * 24 * 3600)
    assert "expires_at" not in kept
    site.clock.now += 3600
    assert (await site.http.get(f"{FILES}/{short['id']}")).status_code == 404
    assert len(on_disk(tmp_path)) == 3
    await site.stored.purge()
    assert on_disk(tmp_path) == sorted([batch["id"], kept["id"]])
    site.clock.now += 40 * 24 * 3600
    await site.stored.purge()
    assert on_disk(tmp_path) == [kept["id"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "nonsense"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"purpose": "batch", "expires_after": "soon"}, "expires_after"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
        ),
        ({"purpose": "batch", "x": "y" * 70_000}, "x"),
    ],
)
async def test_wrong_fields_leave_nothing(site, tmp_path, fields, param):
    for files in ({"file": ("a", b"x" * 10)}, {"file": ("a", b"x" * 1_000_000)}):
        answer = await site.http.post(FILES, data=fields, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert on_disk(tmp_path) == []
    assert (await site.get(FILES))["data"] == []


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", PART),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"no form at all"),
        ("multipart/form-data; boundary=b", PART),
        ("multipart/form-data; boundary=b", PART + PART + b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 9000 + b"\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=" + "b" * 5000, PART),
        ("multipart/form-data; boundary=\xff", PART),
    ],
)
async def test_what_is_no_form_is_400(site, tmp_path, content_type, body):
    answer = await site.http.post(FILES, content=body, headers={"content-type": content_type.encode("latin-1")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    assert on_disk(tmp_path) == []


class TestLimits:
    async def test_one_byte_too_many(self, tmp_path):
        site = Site(tmp_path, max_file_bytes=100_000)
        assert (await site.upload(b"x" * 100_000))["bytes"] == 100_000
        for size in (100_001, 10_000_000):
            answer = await site.http.post(FILES, data={"purpose": "batch"}, files={"file": ("a", b"x" * size)})
            assert answer.status_code == 413
            assert "--max-file-size" in answer.json()["error"]["message"]
        assert len(on_disk(tmp_path)) == 1
        await site.close()

    async def test_without_a_length_it_ends_as_soon_as_it_is_too_long(self, tmp_path):
        site = Site(tmp_path, max_file_bytes=100_000)
        num_sent = 0

        async def endless():
            nonlocal num_sent
            yield PART
            while True:
                num_sent += 1
                yield b"x" * 10_000

        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await site.http.post(FILES, content=endless(), headers=headers)
        assert answer.status_code == 413
        assert num_sent < 20
        assert on_disk(tmp_path) == []
        await site.close()

    async def test_a_full_disk(self, site, tmp_path, monkeypatch):
        free = blobs.KEPT_FREE_BYTES + 1000
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
        answer = await site.http.post(FILES, data={"purpose": "batch"}, files={"file": ("a", b"x" * 2000)})
        assert (answer.status_code, answer.json()["error"]["param"]) == (413, "file")
        assert "no room" in answer.json()["error"]["message"]
        assert on_disk(tmp_path) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(site, tmp_path):
    messages = [{"type": "http.request", "body": PART, "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        raise AssertionError("nobody is there")

    scope = {
        "type": "http",
        "method": "POST",
        "path": FILES,
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
    }
    async with asyncio.timeout(10):
        await site.gateway(scope, receive, send)
    assert on_disk(tmp_path) == []


async def test_another_key_does_not_see_it(tmp_path):
    site = Site(tmp_path, keys=KEYS)
    id = (await site.upload(b"secret"))["id"]
    other = httpx.Headers({"authorization": f"Bearer {KEYS[1]}"})
    assert (await site.http.get(FILES, headers=other)).json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert (await site.http.request(method, f"{FILES}/{id}{path}", headers=other)).status_code == 404
    batch = {"input_file_id": id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    answer = await site.http.post("/v1/batches", json=batch, headers=other)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")
    assert (await site.http.get(f"{FILES}/{id}/content")).content == b"secret"
    await site.close()


async def test_a_content_that_is_gone_is_404(site, tmp_path):
    id = (await site.upload(b"x"))["id"]
    (tmp_path / "store.db.files" / id).unlink()
    answer = await site.http.get(f"{FILES}/{id}/content")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


async def test_a_store_that_is_down_leaves_no_content(tmp_path):
    (tmp_path / "store.db").mkdir()
    site = Site(tmp_path)
    answer = await site.http.post(FILES, data={"purpose": "batch"}, files={"file": ("a", b"x")})
    assert answer.status_code == 503
    assert on_disk(tmp_path) == []
    await site.close()
