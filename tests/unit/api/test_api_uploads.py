"""Uploads: a file that comes in parts, and ends as one like others."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from stored_fakes import KEYS, Clock, Site, on_disk

from langport.api import uploads
from langport.settings.tree import StoreSettings

UPLOADS = "/v1/uploads"
FIELDS: dict[str, Any] = {"bytes": 6, "filename": "a/b.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}


@pytest.fixture
async def site(tmp_path):
    made = Site(tmp_path)
    yield made
    await made.close()


async def post(site, path, headers=None, **body) -> Any:
    return await site.http.post(path, json=body, headers=headers)


async def begun(site, **fields) -> Any:
    answer = await post(site, UPLOADS, **{**FIELDS, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def part(site, upload, data: bytes, **options) -> Any:
    return await site.http.post(f"{UPLOADS}/{upload['id']}/parts", files={"data": ("x", data)}, **options)


async def parts(site, upload, *contents: bytes) -> list[str]:
    return [(await part(site, upload, data)).json()["id"] for data in contents]


async def complete(site, upload, ids, **fields) -> Any:
    return await post(site, f"{UPLOADS}/{upload['id']}/complete", part_ids=ids, **fields)


def refused(answer: Any, status: int, param: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_file_in_parts(site, tmp_path):
    upload = await begun(site)
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 6,
        "created_at": int(Clock.now),
        "filename": "b.jsonl",
        "purpose": "batch",
        "status": "pending",
        "expires_at": int(Clock.now) + 3600,
    }
    second, first, _ = await parts(site, upload, b"def", b"abc", b"!")
    whole = (await complete(site, upload, [first, second], md5=hashlib.md5(b"abcdef").hexdigest().upper())).json()
    file = whole.pop("file")
    assert whole == {**upload, "status": "completed"}
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": 6,
        "created_at": int(Clock.now),
        "expires_at": int(Clock.now) + StoreSettings().retention_days * 24 * 3600,
        "filename": "b.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    assert await site.get(f"/v1/files/{file['id']}") == file
    assert (await site.http.get(f"/v1/files/{file['id']}/content")).content == b"abcdef"
    assert on_disk(tmp_path) == [file["id"]]


async def test_a_part_as_it_is_answered(site):
    upload = await begun(site)
    made = (await part(site, upload, b"abc")).json()
    assert made == {
        "id": made["id"],
        "object": "upload.part",
        "created_at": int(Clock.now),
        "upload_id": upload["id"],
    }
    assert made["id"].startswith("part_")


async def test_the_file_expires_as_asked(site):
    after = {"anchor": "created_at", "seconds": 7200}
    upload = await begun(site, purpose="user_data", expires_after=after)
    whole = (await complete(site, upload, await parts(site, upload, b"abcdef"))).json()
    assert whole["file"]["expires_at"] == int(Clock.now) + 7200


async def test_a_cancelled_upload_is_over(site, tmp_path):
    upload = await begun(site)
    ids = await parts(site, upload, b"abcdef")
    cancelled = await post(site, f"{UPLOADS}/{upload['id']}/cancel")
    assert cancelled.json() == {**upload, "status": "cancelled"}
    assert on_disk(tmp_path) == []
    for answer in (
        await part(site, upload, b"abc"),
        await complete(site, upload, ids),
        await post(site, f"{UPLOADS}/{upload['id']}/cancel"),
    ):
        refused(answer, 400, "upload_id")
        assert "is cancelled" in answer.json()["error"]["message"]


async def test_a_completed_upload_is_over(site):
    upload = await begun(site)
    ids = await parts(site, upload, b"abcdef")
    assert (await complete(site, upload, ids)).status_code == 200
    for answer in (await complete(site, upload, ids), await post(site, f"{UPLOADS}/{upload['id']}/cancel")):
        assert "is completed" in answer.json()["error"]["message"]


async def test_an_upload_is_completed_once(site, tmp_path):
    upload = await begun(site)
    ids = await parts(site, upload, b"abcdef")
    answers = await asyncio.gather(*(complete(site, upload, ids) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert len((await site.get("/v1/files"))["data"]) == 1
    assert len(on_disk(tmp_path)) == 1


async def test_one_that_was_not_completed_in_time(site, tmp_path):
    site.clock.now = Clock.now
    upload = await begun(site)
    ids = await parts(site, upload, b"abcdef")
    site.clock.now += uploads.LIFETIME_S
    answer = await complete(site, upload, ids)
    refused(answer, 400, "upload_id")
    assert "is expired" in answer.json()["error"]["message"]
    assert len(on_disk(tmp_path)) == 1
    site.clock.now += uploads.REMEMBERED_S
    await site.stored.purge()
    assert on_disk(tmp_path) == []
    assert (await complete(site, upload, ids)).status_code == 404


async def test_what_is_wrong_is_named(site, monkeypatch):
    upload = await begun(site)
    for name in ("bytes", "filename", "mime_type", "purpose"):
        body = {key: value for key, value in FIELDS.items() if key != name}
        refused(await post(site, UPLOADS, **body), 400, name)
    refused(await post(site, UPLOADS, **{**FIELDS, "bytes": -1}), 400, "bytes")
    refused(await post(site, UPLOADS, **{**FIELDS, "purpose": "fun"}), 400, "purpose")
    refused(await post(site, UPLOADS, **{**FIELDS, "bytes": 10**12}), 413, "bytes")
    short = {"anchor": "created_at", "seconds": 5}
    refused(await post(site, UPLOADS, **FIELDS, expires_after=short), 400, "expires_after.seconds")
    (id,) = await parts(site, upload, b"abc")
    refused(await complete(site, upload, [id]), 400, "part_ids")
    refused(await complete(site, upload, [id, "part_0"]), 400, "part_ids[1]")
    refused(await complete(site, upload, []), 400, "part_ids")
    refused(await complete(site, upload, [id, id], md5="0" * 32), 400, "md5")
    form = {"files": {"data": ("x", b"y"), "other": ("z", b"z")}}
    answer = await site.http.post(f"{UPLOADS}/{upload['id']}/parts", **form)
    assert answer.headers["x-langport-ignored"] == "other"
    form = {"files": {"file": ("x", b"y")}}
    refused(await site.http.post(f"{UPLOADS}/{upload['id']}/parts", **form), 400, "data")
    refused(await part(site, upload, b"123456789"), 413, "data")
    monkeypatch.setattr(uploads, "MAX_PART_BYTES", 2)
    refused(await part(site, upload, b"123"), 413, "data")


async def test_what_was_refused_is_not_on_the_disk(site, tmp_path):
    upload = await begun(site)
    await part(site, upload, b"1234567890123")
    ids = await parts(site, upload, b"123", b"456")
    await complete(site, upload, ids, md5="0" * 32)
    assert on_disk(tmp_path) == sorted(ids)


async def test_an_upload_is_its_owners_alone(tmp_path):
    site = Site(tmp_path, keys=KEYS)
    upload = await begun(site)
    other = {"authorization": f"Bearer {KEYS[1]}"}
    for answer in (
        await part(site, upload, b"abc", headers=other),
        await post(site, f"{UPLOADS}/{upload['id']}/cancel", other),
        await post(site, f"{UPLOADS}/{upload['id']}/complete", other, part_ids=["x"]),
    ):
        assert answer.status_code == 404
    await site.close()
