"""Limits and overload as clients see them: who is refused, with what headers, and who is let in after whom."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_clock import FakeClock, settle
from gateway_fakes import LEAVE, FakeUpstream, answer, make_client, refuse, stream

from langport.errors import EngineFailed
from langport.gateway.admission import Admission, duration
from langport.gateway.asgi import ClientGone
from langport.gateway.limits import Limit, ModelLimits
from langport.gateway.queue import Places
from langport.gateway.upstream import Upstream
from langport.settings.tree import OverloadSettings
from langport.types import TokenUsage

CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer one"}
OTHER_KEY = {"authorization": "Bearer two"}
USAGE = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}


class Gates:
    """An upstream whose answers wait for a gate each, in the order of their coming."""

    def __init__(self):
        self.waiting = []
        self.started = []

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"]
        self.started.append(json.loads(body).get("user"))
        gate = asyncio.get_running_loop().create_future()
        self.waiting.append(gate)
        gone = asyncio.ensure_future(receive())
        await asyncio.wait((gate, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not gate.done():
            self.waiting.remove(gate)
            return
        await answer({"ok": True, "usage": USAGE})(receive, send)

    async def open(self, num=1):
        for _ in range(num):
            self.waiting.pop(0).set_result(None)
            await settle()


def upstream(app, num_places=1, limits=None):
    return Upstream(
        "demo",
        app,
        card=dict,
        is_ready=lambda: (True, ""),
        places=Places("demo", num_places),
        limits=limits or ModelLimits(),
    )


class Server:
    """A gateway with a clock of its own."""

    def __init__(self, app, *, num_places=1, limits=None, **overload):
        self.clock = FakeClock()
        self.admission = Admission(OverloadSettings(**overload), clock=self.clock)
        rows = {"demo": upstream(app, num_places, limits)}
        self.client = make_client(rows, admission=self.admission, api_keys=["one", "two"])
        self.gateway = self.client.app
        self.tasks = []

    async def post(self, headers=KEY, path=CHAT, **fields):
        body = {"model": "demo", "messages": [], **fields}
        return await self.client.post(path, body, headers=headers)

    async def begin(self, headers=KEY, **fields):
        """Post without waiting for the answer."""
        task = asyncio.ensure_future(self.post(headers, **fields))
        self.tasks.append(task)
        await settle()
        return task

    @property
    def lane(self):
        return self.admission.lanes[0]

    def check_idle(self):
        assert (self.lane.num_taken, self.lane.num_waiting, self.clock.num_timers) == (0, 0, 0)
        assert not [
            name
            for name, count in self.admission._turnstile._store._counts.items()
            if name.startswith("conc") and count.total
        ]


def rate_headers(found):
    return {name[12:]: value for name, value in found.headers.items() if name.startswith("x-ratelimit-")}


class TestRateLimits:
    async def test_requests_per_minute_of_a_key(self):
        server = Server(FakeUpstream(answer({"usage": USAGE})), key_requests_per_minute=2)
        first = await server.post()
        assert rate_headers(first) == {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "1m0s"}
        server.clock.advance(20)
        assert rate_headers(await server.post())["remaining-requests"] == "0"
        refused = await server.post()
        assert refused.status == 429
        assert refused.headers["retry-after"] == "40"
        assert rate_headers(refused) == {"limit-requests": "2", "remaining-requests": "0", "reset-requests": "1m0s"}
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "requests"
        assert "2 requests per minute of this key" in refused.error["message"]
        assert (await server.post(OTHER_KEY)).status == 200
        server.clock.advance(40)
        assert (await server.post()).status == 200

    async def test_tokens_are_claimed_as_estimated_and_settled_by_usage(self):
        server = Server(FakeUpstream(answer({"usage": USAGE})), key_tokens_per_minute=1000)
        first = await server.post(max_tokens=500)
        estimate = 1000 - int(rate_headers(first)["remaining-tokens"])
        assert 500 < estimate < 600
        second = await server.post(max_tokens=0)
        assert 900 < int(rate_headers(second)["remaining-tokens"]) <= 950
        third = await server.post(max_tokens=890)
        assert third.status == 429
        assert third.error["type"] == "tokens"
        assert int(third.headers["retry-after"]) == 60

    async def test_max_tokens_count_for_each_choice(self):
        server = Server(FakeUpstream(answer({"usage": USAGE})), key_tokens_per_minute=1000)
        found = await server.post(max_completion_tokens=100, n=4)
        assert 400 < 1000 - int(rate_headers(found)["remaining-tokens"]) < 450

    async def test_without_max_tokens_the_mean_of_earlier_answers_is_expected(self):
        usage = {**USAGE, "completion_tokens": 10}
        server = Server(FakeUpstream(answer({"usage": usage})), key_tokens_per_minute=1_000_000)
        first = 1_000_000 - int(rate_headers(await server.post())["remaining-tokens"])
        for _ in range(100):
            await server.post()
        server.clock.advance(60)
        last = 1_000_000 - int(rate_headers(await server.post())["remaining-tokens"])
        assert first > 256
        assert 10 < last < 60

    async def test_a_request_larger_than_the_limit_is_told_not_to_try_again(self):
        server = Server(FakeUpstream(answer({"usage": USAGE})), key_tokens_per_minute=1000)
        found = await server.post(max_tokens=2000)
        assert found.status == 429
        assert found.headers["x-should-retry"] == "false"
        assert "retry-after" not in found.headers
        assert rate_headers(found)["remaining-tokens"] == "1000"
        assert "never" in found.error["message"]
        assert (await server.post(max_tokens=500)).status == 200

    async def test_what_fails_before_its_answer_takes_no_tokens(self):
        server = Server(
            FakeUpstream(refuse(EngineFailed("broken"))), key_tokens_per_minute=1000, key_requests_per_minute=10
        )
        assert (await server.post(max_tokens=900)).status == 500
        found = await server.post(max_tokens=900)
        assert found.status == 500
        assert rate_headers(found)["remaining-requests"] == "8"
        server.check_idle()

    async def test_a_models_limit_is_for_all_keys_together_and_its_own_goes_before_the_general(self):
        own = ModelLimits(requests_per_minute=3)
        server = Server(FakeUpstream(answer({"usage": USAGE})), limits=own, model_requests_per_minute=100)
        assert [(await server.post(headers)).status for headers in (KEY, OTHER_KEY, KEY)] == [200] * 3
        refused = await server.post(OTHER_KEY)
        assert refused.status == 429
        assert "of the model demo for all keys together" in refused.error["message"]

    async def test_the_nearest_limit_is_shown(self):
        limits = ModelLimits(requests_per_minute=5)
        server = Server(FakeUpstream(answer({"usage": USAGE})), limits=limits, key_requests_per_minute=100)
        assert rate_headers(await server.post())["limit-requests"] == "5"

    async def test_the_limits_of_a_remote_server_are_not_passed_off_as_ours(self):
        given = [(b"x-ratelimit-limit-requests", b"9999"), (b"x-ratelimit-limit-tokens", b"8888")]
        server = Server(FakeUpstream(answer({}, headers=given)), key_requests_per_minute=2)
        assert rate_headers(await server.post()) == {
            "limit-requests": "2",
            "remaining-requests": "1",
            "reset-requests": "1m0s",
            "limit-tokens": "8888",
        }

    async def test_calls_without_the_model_take_no_tokens_and_no_place(self):
        server = Server(FakeUpstream(answer({})), num_places=1, key_tokens_per_minute=10, key_requests_per_minute=5)
        found = await server.post(path="/tokenize", prompt="long " * 1000)
        assert found.status == 200
        assert rate_headers(found)["remaining-requests"] == "4"
        assert not server.admission.lanes

    async def test_concurrency_of_a_key(self):
        gates = Gates()
        server = Server(gates, num_places=10, key_max_concurrency=2)
        tasks = [await server.begin() for _ in range(2)]
        refused = await server.post()
        assert (refused.status, refused.error["type"]) == (429, "concurrency")
        assert refused.headers["retry-after"] == "1"
        other = await server.begin(OTHER_KEY)
        await gates.open()
        tasks.append(await server.begin())
        server.clock.advance(40)
        await gates.open(3)
        assert [(await task).status for task in [*tasks, other]] == [200] * 4
        tasks = [await server.begin() for _ in range(2)]
        assert int((await server.post()).headers["retry-after"]) in range(1, 21)  # one of two ends about so often
        await gates.open(2)
        server.check_idle()

    async def test_an_open_server_has_no_key_to_limit(self):
        clock = FakeClock()
        admission = Admission(OverloadSettings(key_requests_per_minute=1), clock=clock)
        client = make_client({"demo": answer({})}, admission=admission)
        for _ in range(3):
            assert (await client.post(CHAT, {"model": "demo"})).status == 200


class TestQueue:
    async def test_what_finds_no_place_waits_for_it(self):
        gates = Gates()
        server = Server(gates)
        first = await server.begin()
        second = await server.begin()
        assert len(gates.waiting) == 1
        server.clock.advance(7)
        await gates.open()
        assert (await first).status == 200
        await gates.open()
        assert (await second).status == 200
        server.check_idle()

    async def test_a_flood_of_one_key_does_not_starve_another(self):
        gates = Gates()
        server = Server(gates)
        flood = [await server.begin(user=f"flood {number}") for number in range(20)]
        single = await server.begin(OTHER_KEY, user="single")
        await gates.open(3)
        assert single.done()
        assert gates.started.index("single") <= 2
        await gates.open(18)
        assert {(await task).status for task in flood} == {200}

    async def test_the_deadline_is_kept_and_the_refusal_says_when_to_come_again(self):
        gates = Gates()
        server = Server(gates, max_queue_s=10)
        await server.begin()
        waiting = await server.begin()
        server.clock.advance(10)
        refused = await waiting
        assert (refused.status, refused.error["code"]) == (503, "server_overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        await gates.open()
        server.check_idle()

    @pytest.mark.parametrize(("given", "seconds"), [("2", 2), ("0.5", 0.5), ("99", 10), (" 3 ", 3)])
    async def test_a_client_may_wait_less_but_not_longer(self, given, seconds):
        gates = Gates()
        server = Server(gates, max_queue_s=10)
        await server.begin()
        waiting = await server.begin({**KEY, "x-langport-max-wait": given})
        server.clock.advance(seconds - 0.1)
        await settle()
        assert not waiting.done()
        server.clock.advance(0.2)
        assert (await waiting).status == 503
        await gates.open()

    @pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", ""])
    async def test_a_time_that_is_none_is_refused(self, given):
        server = Server(FakeUpstream(answer({})))
        found = await server.post({**KEY, "x-langport-max-wait": given})
        assert found.status == 400
        assert "x-langport-max-wait" in found.error["message"]

    async def test_who_is_refused_has_taken_nothing_of_its_limits(self):
        gates = Gates()
        server = Server(gates, max_queue_s=10, key_requests_per_minute=100, key_tokens_per_minute=100_000)
        await server.begin()
        for _ in range(5):
            refused = await server.post({**KEY, "x-langport-max-wait": "0"})
            assert refused.status == 503
            assert rate_headers(refused)["remaining-requests"] == "99"
        late = await server.begin()
        server.clock.advance(10)
        assert (await late).status == 503
        await gates.open()
        task = await server.begin()
        await gates.open()
        assert rate_headers(await task)["remaining-requests"] == "98"

    async def test_health_ready_models_and_metrics_answer_while_everything_is_saturated(self):
        gates = Gates()
        server = Server(gates, max_queued_tokens=1)
        for _ in range(3):
            await server.begin()
        assert server.lane.num_waiting == 1
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            assert (await server.client.get(path, headers=KEY)).status == 200
        await gates.open(2)

    async def test_draining_refuses_what_waits_and_ends_what_runs(self):
        gates = Gates()
        server = Server(gates)
        running = await server.begin()
        waiting = await server.begin()
        server.gateway.drain()
        refused = await waiting
        assert refused.status == 503
        assert "stopping" in refused.error["message"]
        assert (await server.post()).status == 503
        await gates.open()
        assert (await running).status == 200
        server.check_idle()

    async def test_work_in_the_background_waits_for_its_turn_and_its_limits(self):
        gates = Gates()
        server = Server(gates, max_queue_s=0, model_requests_per_minute=2)
        running = await server.begin(user="running")
        scope, receive, sent, send = background_call()
        task = asyncio.ensure_future(server.gateway(scope, receive, send))
        await settle()
        assert gates.started == ["running"]
        await gates.open()
        assert (await running).status == 200
        await gates.open()
        await task
        assert sent[0]["status"] == 200
        scope, receive, sent, send = background_call()
        task = asyncio.ensure_future(server.gateway(scope, receive, send))
        await settle()
        server.clock.advance(59)
        await settle()
        assert not task.done()
        server.clock.advance(1)
        await settle()
        await gates.open()
        await task
        assert sent[0]["status"] == 200
        server.check_idle()


def background_call():
    body = json.dumps({"model": "demo", "user": "background"}).encode()
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "extensions": {"langport": {"owner": "somebody", "priority": 100}},
    }
    return scope, receive, sent, send


class TestBodies:
    async def test_all_open_bodies_together_take_bounded_memory(self):
        gates = Gates()
        server = Server(gates, num_places=10, max_held_bodies_bytes=1000)
        text = "x" * 300
        tasks = [await server.begin(user=text) for _ in range(2)]
        refused = await server.post(user=text)
        assert (refused.status, refused.error["code"]) == (503, "server_overloaded")
        assert "take" in refused.error["message"]
        assert refused.headers["retry-after"]
        assert (await server.client.get("/health")).status == 200
        await gates.open(2)
        assert [(await task).status for task in tasks] == [200, 200]
        assert server.admission.num_held_bytes == 0
        task = await server.begin(user=text)
        await gates.open()
        assert (await task).status == 200

    async def test_a_body_that_is_not_read_to_its_end_is_let_go(self):
        server = Server(FakeUpstream(), max_held_bodies_bytes=1000)
        await server.client.post(CHAT, headers=KEY, chunks=[b"x" * 500, LEAVE])
        found = await server.client.post(CHAT, headers=KEY, chunks=[b"x" * 500, b"x" * 600, b"x"])
        assert found.status == 503
        assert server.admission.num_held_bytes == 0


class TestLeaving:
    async def test_a_client_that_leaves_while_it_waits_leaves_the_queue_at_once(self):
        gates = Gates()
        server = Server(gates, key_max_concurrency=2)
        running = await server.begin()
        body = json.dumps({"model": "demo"}).encode()
        await server.client.post(CHAT, headers=KEY, chunks=[body], leave_after=0)
        assert (server.lane.num_waiting, server.clock.num_timers) == (0, 0)
        assert server.admission._turnstile._store.total(Limit.of("key static-1", "concurrency", 2)) == 1
        await gates.open()
        assert (await running).status == 200
        assert len(gates.started) == 1
        server.check_idle()

    @pytest.mark.parametrize("num_turns", range(25))
    async def test_no_place_is_lost_at_whatever_moment_a_request_is_cut(self, num_turns):
        gates = Gates()
        server = Server(gates, num_places=2, key_max_concurrency=5, key_tokens_per_minute=100_000)
        before = await server.begin(OTHER_KEY)
        tasks = [asyncio.ensure_future(server.post()) for _ in range(4)]
        for _ in range(num_turns):
            await asyncio.sleep(0)
        if num_turns % 2 and gates.waiting:
            gates.waiting.pop(0).set_result(None)  # its place is handed on in the same moment
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not before.done():
            await gates.open(len(gates.waiting))
        await before
        server.check_idle()

    async def test_a_stream_that_is_cut_is_settled_by_what_came(self):
        events = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * 5
        server = Server(FakeUpstream(stream(*events, then=ClientGone())), key_tokens_per_minute=1000)
        await server.post(stream=True, max_tokens=900)
        found = await server.post(stream=True, max_tokens=0)
        assert int(rate_headers(found)["remaining-tokens"]) > 900
        server.check_idle()

    async def test_a_client_that_leaves_before_its_body_costs_nothing(self):
        server = Server(FakeUpstream(), key_requests_per_minute=1)
        await server.client.post(CHAT, headers=KEY, chunks=[b"{", LEAVE])
        assert (await server.post()).status == 200


async def test_work_that_outlives_its_request_keeps_its_place():
    work = asyncio.get_running_loop().create_future()

    async def app(scope, receive, send):
        scope["extensions"]["langport"]["meter"](lambda: TokenUsage(10, 20), work)
        await answer({})(receive, send)

    server = Server(app, key_max_concurrency=1, key_tokens_per_minute=1000)
    assert (await server.post(max_tokens=500)).status == 200
    assert (await server.post()).status == 429
    assert server.lane.num_taken == 1
    work.set_result(None)
    await settle()
    server.check_idle()
    assert (await server.post(max_tokens=900)).status == 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0004, "0s"), (0.02, "20ms"), (1, "1s"), (8.64, "8.64s"), (59.9996, "1m0s"), (60, "1m0s"),
     (360, "6m0s"), (90.951, "1m30.951s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text
