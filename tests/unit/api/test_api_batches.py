"""Batches: every line is answered once, whatever happens to the server, and interactive requests go first."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from stored_fakes import CHATS, KEYS, Clock, FakeModel, Site, hurry, line, until

from langport.api import batch_runner
from langport.api.batch_runner import PRIORITY
from langport.errors import StoreUnavailable
from langport.store.threaded import ThreadedStore

BATCHES = "/v1/batches"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture
async def site():
    made = Site()
    await made.start()
    yield made
    await made.close()


async def test_lines_become_answers(site):
    batch = await site.batch([line(f"r{n}", f"number {n}") for n in range(20)], metadata={"k": "v"})
    assert batch["object"] == "batch"
    assert (batch["status"], batch["endpoint"], batch["metadata"]) == ("validating", CHATS, {"k": "v"})
    assert batch["expires_at"] - batch["created_at"] == 24 * 3600
    batch = await site.ended(batch["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert batch["error_file_id"] is None
    assert batch["errors"] is None
    for moment in ("in_progress_at", "finalizing_at", "completed_at"):
        assert batch[moment] == int(Clock.now)
    lines = await site.lines_of(batch["output_file_id"])
    assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(20)]
    assert len({one["id"] for one in lines}) == 20
    for number, one in enumerate(lines):
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"].startswith("req_")
        assert one["response"]["body"]["choices"][0]["message"]["content"] == f"echo: number {number}"
    file = await site.get(f"/v1/files/{batch['output_file_id']}")
    assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch['id']}_output.jsonl")
    assert file["expires_at"] == int(Clock.now) + 30 * 24 * 3600
    assert await site.stored.store.positions(batch["id"]) == []


async def test_each_wrong_line_is_an_error_line_and_the_others_are_answered(site):
    lines = [
        line("good"),
        "{broken",
        json.dumps([1]),
        {"custom_id": "no-method", "url": CHATS, "body": {}},
        {**line("get"), "method": "GET"},
        {**line("elsewhere"), "url": "/v1/embeddings"},
        {**line("no-body"), "body": "text"},
        line("stream", stream=True),
        {**line("x"), "custom_id": 5},
        {**line("colour"), "colour": "blue", "size": 1},
        line("unknown-model", model="nobody"),
        "  ",
        line("long", "x" * 200_000),
        line("also-good"),
    ]
    batch = await site.ended((await site.batch(lines))["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 13, "completed": 2, "failed": 11}
    assert [one["custom_id"] for one in await site.lines_of(batch["output_file_id"])] == ["good", "also-good"]
    errors = await site.lines_of(batch["error_file_id"])
    names = [None, None, "no-method", "get", "elsewhere", "no-body", "stream", None, "colour", "unknown-model", None]
    assert [one["custom_id"] for one in errors] == names
    for one in errors:
        if one["custom_id"] == "unknown-model":
            assert one["response"]["status_code"] == 404
            assert one["response"]["body"]["error"]["code"] == "model_not_found"
        else:
            assert one["response"] is None
            assert one["error"]["code"] == "invalid_request"
            assert one["error"]["message"].startswith("Line ")
    assert "Line 2: The line is not valid JSON" in errors[0]["error"]["message"]
    assert "Line 10: A line has no colour, size; it has custom_id, method" in errors[8]["error"]["message"]
    assert "Line 13:" in errors[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [([line("a"), line("b"), "", line("a")], "duplicate_custom_id", 4), ([], "empty_file", None)],
)
async def test_a_file_that_cannot_be_a_batch_fails_it(site, lines, code, number):
    batch = await site.ended((await site.batch(lines))["id"])
    assert (batch["status"], batch["failed_at"]) == ("failed", int(Clock.now))
    (error,) = batch["errors"]["data"]
    assert (error["code"], error["line"]) == (code, number)
    assert site.model.calls == []


async def test_too_many_lines_fail_it(site, monkeypatch):
    monkeypatch.setattr(batch_runner, "MAX_LINES", 3)
    batch = await site.ended((await site.batch([line(str(n)) for n in range(4)]))["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "too_many_requests")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-unknown"}, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
async def test_a_wrong_request_is_named(site, fields, param):
    file = await site.upload("")
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h", **fields}
    answer = await site.http.post(BATCHES, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_file_of_another_purpose_is_refused(site):
    file = await site.upload("", "evals")
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h"}
    answer = await site.http.post(BATCHES, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")


async def test_the_list_is_newest_first_and_the_owners_own():
    site = Site(keys=KEYS)
    ids = [(await site.batch([line("a")]))["id"] for _ in range(3)]
    found = await site.get(BATCHES, limit=2)
    assert ([one["id"] for one in found["data"]], found["has_more"]) == ([ids[2], ids[1]], True)
    assert (await site.get(BATCHES, after=ids[1]))["last_id"] == ids[0]
    other = {"authorization": f"Bearer {KEYS[1]}"}
    assert (await site.http.get(BATCHES, headers=other)).json()["data"] == []
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert (await site.http.request(method, f"{BATCHES}/{ids[0]}{path}", headers=other)).status_code == 404
    await site.close()


async def test_lines_run_as_their_owner_after_everybody_else():
    site = Site(keys=KEYS)
    await site.start()
    batch = await site.ended((await site.batch([line("a", store=True)]))["id"])
    assert batch["status"] == "completed"
    await site.chat("interactive", store=False)
    batched, interactive = site.model.known
    assert batched["priority"] == PRIORITY
    assert "priority" not in interactive
    assert batched["owner"] == interactive["owner"] != ""
    assert len((await site.get(CHATS))["data"]) == 1  # with `store` of the line
    await site.close()


class TestPlaces:
    async def test_so_many_lines_at_once_and_no_more(self):
        site = Site(batch_concurrency=4)
        site.model.running.clear()
        await site.start()
        ids = [(await site.batch([line(str(n)) for n in range(30)]))["id"] for _ in range(3)]
        await until(lambda: site.model.num_open == 4)
        site.model.running.set()
        for id in ids:
            assert (await site.ended(id))["request_counts"]["completed"] == 30
        assert site.model.most_open == 4
        await site.close()

    async def test_fewer_while_others_wait_for_their_answers(self):
        site = Site(batch_concurrency=8)
        await site.start()
        site.model.running.clear()
        interactive = asyncio.create_task(site.chat(store=False))
        await until(lambda: site.model.num_open == 1)
        batch = await site.batch([line(str(n)) for n in range(30)])
        await until(lambda: site.model.num_open == 3)
        await asyncio.sleep(0.1)
        assert site.model.num_open == 3  # a quarter of eight, and the interactive one
        site.model.running.set()
        await interactive
        assert (await site.ended(batch["id"]))["request_counts"]["completed"] == 30
        assert site.model.most_open > 3
        await site.close()


class TestTriesAgain:
    @pytest.fixture(autouse=True)
    def no_delay(self, monkeypatch):
        monkeypatch.setattr(batch_runner, "MAX_DELAY_S", 0.001)

    async def test_what_may_pass(self, site):
        site.model.statuses = [429, 503, 502, 200]
        batch = await site.ended((await site.batch([line("a")]))["id"])
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        assert len(site.model.calls) == 4

    async def test_not_for_ever(self, site):
        site.model.statuses = [503] * 100
        batch = await site.ended((await site.batch([line("a")]))["id"])
        assert len(site.model.calls) == batch_runner.MAX_TRIES
        (error,) = await site.lines_of(batch["error_file_id"])
        assert (error["response"]["status_code"], error["response"]["body"]) == (503, {"error": {"message": "no"}})
        assert batch["output_file_id"] is None

    async def test_not_what_is_wrong(self, site):
        site.model.statuses = [400]
        batch = await site.ended((await site.batch([line("a")]))["id"])
        assert (len(site.model.calls), batch["request_counts"]["failed"]) == (1, 1)


class TestCancel:
    async def test_it_stops_at_once_and_keeps_what_was_answered(self, site):
        site.model.pauses_after = 10
        batch = await site.batch([line(str(n)) for n in range(50)])
        await until(lambda: site.model.num_open == 8)
        answer = await site.http.post(f"{BATCHES}/{batch['id']}/cancel")
        assert answer.json()["status"] == "cancelling"
        batch = await site.ended(batch["id"])
        assert batch["status"] == "cancelled"
        assert batch["cancelling_at"] == batch["cancelled_at"] == int(Clock.now)
        assert site.model.num_cancelled == 8
        counts = batch["request_counts"]
        assert counts == {"total": 50, "completed": 10, "failed": 0}
        assert len(await site.lines_of(batch["output_file_id"])) == counts["completed"]
        again = await site.http.post(f"{BATCHES}/{batch['id']}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")

    async def test_one_that_has_ended_is_400(self, site):
        batch = await site.ended((await site.batch([line("a")]))["id"])
        answer = await site.http.post(f"{BATCHES}/{batch['id']}/cancel")
        assert answer.status_code == 400
        assert "completed" in answer.json()["error"]["message"]

    async def test_one_that_another_process_cancels(self, tmp_path):
        """Two servers over one file: the first works, the second is asked to cancel."""
        first, second = Site(tmp_path), Site(tmp_path)
        await first.start()
        first.model.running.clear()
        batch = await first.batch([line("a"), line("b")])
        await until(lambda: first.model.num_open == 2)
        await second.start()
        await second.http.post(f"{BATCHES}/{batch['id']}/cancel")
        assert (await second.ended(batch["id"]))["status"] == "cancelled"
        assert second.model.calls == []
        await second.close()
        await first.close()

    async def test_one_that_nobody_works_on_yet(self):
        site = Site()
        batch = await site.batch([line("a")])
        await site.http.post(f"{BATCHES}/{batch['id']}/cancel")
        await site.start()
        assert (await site.ended(batch["id"]))["status"] == "cancelled"
        assert site.model.calls == []
        await site.close()


async def test_after_its_window_it_expires_and_the_rest_are_error_lines(site):
    site.model.pauses_after = 10
    batch = await site.batch([line(str(n)) for n in range(30)])
    await until(lambda: site.model.num_open == 8)
    site.clock.now += 24 * 3600
    batch = await site.ended(batch["id"])
    assert batch["status"] == "expired"
    assert batch["expired_at"] == batch["expires_at"]
    done, late = await site.lines_of(batch["output_file_id"]), await site.lines_of(batch["error_file_id"])
    assert (len(done), len(late)) == (10, 20)
    assert {one["error"]["code"] for one in late} == {"batch_expired"}
    assert {one["custom_id"] for one in [*done, *late]} == {str(n) for n in range(30)}
    assert batch["request_counts"] == {"total": 30, "completed": len(done), "failed": len(late)}


async def test_output_expires_after(site):
    wanted = {"anchor": "created_at", "seconds": 7200}
    batch = await site.ended((await site.batch([line("a")], output_expires_after=wanted))["id"])
    file = await site.get(f"/v1/files/{batch['output_file_id']}")
    assert file["expires_at"] == file["created_at"] + 7200


class TestRestart:
    async def test_answered_lines_are_not_asked_again(self, tmp_path):
        site = Site(tmp_path)
        await site.start()
        site.model.pauses_after = 12
        batch = await site.batch([line(f"r{n}", f"{n}") for n in range(40)])
        await until(lambda: site.model.num_open == 8)
        await site.close()
        asked = [call["messages"][0]["content"] for call in site.model.calls]
        answered = set(asked[:-8])
        site = Site(tmp_path)
        await site.start()
        done = await site.ended(batch["id"])
        assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert {call["messages"][0]["content"] for call in site.model.calls} == {str(n) for n in range(40)} - answered
        names = [one["custom_id"] for one in await site.lines_of(done["output_file_id"])]
        assert names == [f"r{n}" for n in range(40)]
        await site.close()

    async def test_a_server_without_a_store_makes_none(self, tmp_path):
        site = Site(tmp_path)
        await site.start()
        await asyncio.sleep(0.1)
        await site.close()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("moment", ["put", "change", "drop_items"])
    async def test_killed_while_it_ends(self, tmp_path, moment):
        """Whatever the last thing was that was stored, the next server ends the batch, once."""

        class Dying(ThreadedStore):
            num_calls = 0

            async def _maybe_die(self, name):
                if name == moment and self.is_finalizing:
                    raise asyncio.CancelledError

            is_finalizing = False

            async def put(self, record, items=()):
                await self._maybe_die("put")
                await super().put(record, items)

            async def change(self, record, *, if_status=None):
                if record.status == "completed":
                    await self._maybe_die("change")
                self.is_finalizing = self.is_finalizing or record.status == "finalizing"
                return await super().change(record, if_status=if_status)

            async def drop_items(self, id):
                await self._maybe_die("drop_items")
                await super().drop_items(id)

        clock = Clock()
        store = Dying(tmp_path / "store.db", clock)
        site = Site(tmp_path, store=store, clock=clock)
        await site.start()
        batch = await site.batch([line("a"), line("b"), "{"])
        await until(lambda: store.is_finalizing)
        await site.close()
        site = Site(tmp_path, clock=clock)
        await site.start()
        done = await site.ended(batch["id"])
        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert [one["custom_id"] for one in await site.lines_of(done["output_file_id"])] == ["a", "b"]
        assert len((await site.get("/v1/files", purpose="batch_output"))["data"]) == 2
        assert site.model.calls == []
        await site.close()

    async def test_a_deleted_input_fails_it(self, tmp_path):
        site = Site(tmp_path)
        batch = await site.batch([line("a")])
        await site.http.delete(f"/v1/files/{batch['input_file_id']}")
        await site.start()
        failed = await site.ended(batch["id"])
        assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "file_not_found")
        await site.close()

    async def test_of_two_servers_one_works_and_the_other_takes_over(self, tmp_path):
        first, second = Site(tmp_path), Site(tmp_path)
        await first.start()
        first.model.running.clear()
        batch = await first.batch([line("a")])
        await until(lambda: first.model.num_open == 1)
        await second.start()
        await asyncio.sleep(0.1)
        assert second.model.calls == []
        await first.close()
        assert (await second.ended(batch["id"]))["status"] == "completed"
        assert len(second.model.calls) == 1
        await second.close()


async def test_a_store_that_goes_down_loses_no_answer(caplog):
    class Flaky(ThreadedStore):
        is_down = False
        num_refused = 0

        async def put_items(self, id, items):
            if self.is_down:
                self.num_refused += 1
                raise StoreUnavailable("The disk is full.")
            await super().put_items(id, items)

    clock = Clock()
    store = Flaky(None, clock)
    site = Site(store=store, clock=clock)
    await site.start()
    store.is_down = True
    batch = await site.batch([line(str(n)) for n in range(20)])
    await until(lambda: store.num_refused > 20)
    assert len(site.model.calls) == 8  # no further lines are begun
    store.is_down = False
    assert (await site.ended(batch["id"]))["request_counts"]["completed"] == 20
    assert len(site.model.calls) == 20
    assert len([record for record in caplog.records if "waits" in record.getMessage()]) == 1
    await site.close()


async def test_a_line_that_breaks_the_server_fails_the_batch_alone(site, monkeypatch, caplog):
    async def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(batch_runner, "post", broken)
    batch = await site.ended((await site.batch([line("a")]))["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "server_error")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    hurry(monkeypatch)
    assert (await site.ended((await site.batch([line("a")]))["id"]))["status"] == "completed"


async def test_a_long_file_does_not_fill_the_memory(tmp_path):
    """Some 5 MB of lines whose answers are as long, in a fraction of that."""
    model = FakeModel()
    site = Site(tmp_path, model=model)
    await site.start()
    filler = "x" * 20_000
    text = "\n".join(json.dumps(line(f"r{n}", filler)) for n in range(250))
    file = await site.upload(text)
    del text
    model.calls = _Nothing()
    model.known = _Nothing()
    body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h"}
    tracemalloc.start()
    batch = (await site.http.post(BATCHES, json=body)).json()
    async with asyncio.timeout(60):
        while (await site.get(f"{BATCHES}/{batch['id']}"))["status"] != "completed":
            await asyncio.sleep(0.2)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3_000_000, peak_bytes
    batch = await site.get(f"{BATCHES}/{batch['id']}")
    file = await site.get(f"/v1/files/{batch['output_file_id']}")
    assert file["bytes"] > 5_000_000
    await site.close()


class _Nothing(list):
    def append(self, item):
        pass
