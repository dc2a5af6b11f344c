"""Routes: who is asked, who is asked next, what the client sees of it, and what is left afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from gateway_fakes import Answer, FakeUpstream, answer, make_client, refuse, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from route_fakes import FakeClock, Routed, leftovers, upstream

from langport.errors import ApiError, EngineFailed, InvalidRequest, RateLimited, Unavailable
from langport.gateway.attempt import HELD_BYTES
from langport.gateway.health import State
from langport.gateway.queue import Places
from langport.gateway.upstream import Upstream
from langport.types import TokenUsage

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"
EVENTS = [b'data: {"a":1}\n\n', b'data: {"b":2}\n\n', b"data: [DONE]\n\n"]
DOWN = answer({"error": "down"}, 503)


def by_turns(*scripts):
    """A deployment that does one after the other, the last one for ever."""
    waiting = list(scripts)

    async def script(receive, send):
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(receive, send)

    return script


def hangs(began=None, ended=None):
    """Never answers; ends when the client leaves or it is cancelled."""

    async def script(receive, send):
        if began is not None:
            began.set()
        try:
            assert (await receive())["type"] == "http.disconnect"
        finally:
            if ended is not None:
                ended.set()

    return script


def gives(script):
    """Waits for the event it has, then goes on."""
    event = asyncio.Event()

    async def run(receive, send):
        await event.wait()
        await script(receive, send)

    run.event = event
    return run


class TestChoice:
    async def test_a_weight_is_the_upstreams_own_where_the_route_says_none(self):
        models = {"a": upstream("a", weight=3.0), "b": upstream("b", weight=7.0)}
        routed = Routed(models, {"chat": {"deployments": ["a", {"model": "b", "weight": 1}]}})
        for _ in range(8):
            await routed.ask()
        assert (routed.calls("a"), routed.calls("b")) == (6, 2)

    async def test_requests_are_spread_by_weight_and_say_who_answered(self):
        routed = Routed({"a": None, "b": None}, {"chat": {"deployments": [{"model": "a", "weight": 3}, "b"]}})
        seen = [(await routed.ask()).headers["x-langport-deployment"] for _ in range(8)]
        assert Counter(seen) == {"a": 6, "b": 2}
        assert routed.models["a"].app.scope["extensions"]["langport"]["model"] == "chat"
        assert routed.served_by == seen[-1]

    async def test_a_lower_priority_waits_until_the_higher_has_none(self):
        deployments = [{"model": "a", "priority": 1}, "b", {"model": "c", "priority": 2}]
        clock = FakeClock()
        routed = Routed(
            {"a": None, "b": by_turns(DOWN, answer({})), "c": None},
            {"chat": {"deployments": deployments, "health": {"max_failures": 1}}},
            clock=clock,
        )
        assert (await routed.ask()).headers["x-langport-deployment"] == "a"
        assert [routed.calls(name) for name in "abc"] == [1, 1, 0]
        await routed.ask()
        assert [routed.calls(name) for name in "abc"] == [2, 1, 0]
        clock.forward(1)
        assert (await routed.ask()).headers["x-langport-deployment"] == "b"

    async def test_one_that_is_loading_is_asked_only_when_nobody_else_can_be(self):
        models = {"a": upstream("a", is_ready=(False, "loading")), "b": None}
        routed = Routed(models, {"chat": {"deployments": ["a", "b"]}, "slow": {"deployments": ["a"]}})
        for _ in range(3):
            assert (await routed.ask()).headers["x-langport-deployment"] == "b"
        assert (await routed.ask(name="slow")).headers["x-langport-deployment"] == "a"

    async def test_engines_tell_their_load(self):
        stats = {"num_running": 3.0, "num_waiting": 2.0}
        models = {"a": upstream("a", stats=lambda: stats), "b": upstream("b", stats=lambda: {"num_running": 1.0})}
        routed = Routed(models, {"chat": {"deployments": ["a", "b"], "strategy": "least-loaded"}})
        assert [(await routed.ask()).headers["x-langport-deployment"] for _ in range(2)] == ["b", "b"]
        stats |= {"num_running": 0.0, "num_waiting": 0.0}
        assert (await routed.ask()).headers["x-langport-deployment"] == "a"

    async def test_requests_in_flight_count(self):
        slow = gives(answer({}))
        routed = Routed({"a": slow, "b": None}, {"chat": {"deployments": ["a", "b"], "strategy": "least-loaded"}})
        first = asyncio.create_task(routed.ask())
        await asyncio.sleep(0)
        assert routed.deployment("a").num_in_flight == 1
        assert {(await routed.ask()).headers["x-langport-deployment"] for _ in range(3)} == {"b"}
        slow.event.set()
        await first
        assert routed.deployment("a").num_in_flight == 0

    async def test_a_model_that_is_served_no_longer_is_not_asked(self):
        routed = Routed({"a": None, "b": None}, {"chat": {"deployments": ["a", "b"]}})
        kept = routed.models.pop("a")
        assert {(await routed.ask()).headers["x-langport-deployment"] for _ in range(3)} == {"b"}
        routed.models.clear()
        with pytest.raises(Unavailable, match=r"None of the deployments of chat .*a: not served, b: not served"):
            await routed.ask()
        routed.models["a"] = kept
        assert (await routed.ask()).headers["x-langport-deployment"] == "a"


class TestRetry:
    @pytest.mark.parametrize(
        "failure",
        [
            *(answer({"error": {}}, status) for status in (408, 429, 500, 502, 503, 504)),
            refuse(EngineFailed("gone")),
            refuse(Unavailable("loading")),
            refuse(RateLimited("full")),
            refuse(ConnectionRefusedError()),
            refuse(TimeoutError()),
            stream(then=ConnectionResetError()),
            stream(then=Unavailable("cut")),
            stream(b'{"id": ', then=ConnectionResetError(), content_type=b"application/json"),
        ],
    )
    async def test_what_failed_is_answered_by_another(self, failure):
        routed = Routed({"a": failure, "b": answer({"from": "b"})}, {"chat": {"deployments": ["a", "b"]}})
        found = await routed.ask()
        assert (found.status, found.json, found.headers["x-langport-deployment"]) == (200, {"from": "b"}, "b")
        assert routed.served_by == "b"
        assert routed.models["b"].app.body == routed.models["a"].app.body
        assert routed.clock.waits == [], "another one is asked without a pause"

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
    async def test_what_is_the_clients_own_fault_is_told_at_once(self, status):
        error = type("Refused", (ApiError,), {"status": status})("no")
        routed = Routed(
            {"a": answer({"error": "theirs"}, status), "b": refuse(error)}, {"chat": {"deployments": ["a", "b"]}}
        )
        assert (await routed.ask()).status == status
        with pytest.raises(ApiError, match="no"):
            await routed.ask()
        assert [routed.calls(name) for name in "ab"] == [1, 1]
        assert [routed.deployment(name).health._num_in_a_row for name in "ab"] == [0, 0]

    async def test_the_last_failure_is_told_whole(self):
        headers = [(b"retry-after", b"7"), (b"x-more", b"1")]
        routed = Routed({"a": answer({"error": "full"}, 429, headers)}, {"chat": {"deployments": ["a"]}})
        found = await routed.ask()
        assert (found.status, found.json, found.headers["retry-after"]) == (429, {"error": "full"}, "7")
        assert found.headers["x-langport-deployment"] == "a"
        assert routed.calls("a") == 1, "it asked to be left alone"

    async def test_a_connection_that_fails_is_told_in_words(self):
        routed = Routed({"a": refuse(ConnectionRefusedError("refused"))}, {"chat": {"deployments": ["a"]}})
        with pytest.raises(Unavailable, match="a cannot be reached: refused"):
            await routed.ask()
        assert routed.calls("a") == 3

    async def test_one_that_says_nothing_has_failed(self):
        async def silent(receive, send):
            pass

        routed = Routed({"a": silent}, {"chat": {"deployments": ["a"], "retry": {"attempts": 1}}})
        with pytest.raises(Unavailable, match="a ended without an answer"):
            await routed.ask()

    async def test_our_own_bug_is_not_repeated(self):
        routed = Routed({"a": refuse(ZeroDivisionError()), "b": None}, {"chat": {"deployments": ["a", "b"]}})
        with pytest.raises(ZeroDivisionError):
            await routed.ask()
        assert routed.calls("b") == 0

    async def test_the_same_one_is_asked_again_after_pauses_with_full_jitter(self):
        retry = {"attempts": 6, "backoff_s": 1, "max_backoff_s": 4}
        pauses = []
        for seed in range(200):
            routed = Routed({"a": DOWN}, {"chat": {"deployments": ["a"], "retry": retry}}, seed=seed)
            routed.deployment("a").health._is_too_much = lambda: False
            assert (await routed.ask()).status == 503
            pauses.append(routed.clock.waits)
        assert all(len(waits) == 5 for waits in pauses)
        for number, most in enumerate([1, 2, 4, 4, 4]):
            drawn = [waits[number] for waits in pauses]
            assert 0 <= min(drawn) < most * 0.1
            assert most * 0.9 < max(drawn) <= most
            assert most * 0.4 < sum(drawn) / len(drawn) < most * 0.6

    async def test_time_bounds_it(self):
        clock = FakeClock()

        async def slow(receive, send):
            clock.forward(20)
            await DOWN(receive, send)

        deployments = ["a", "b", "c"]
        routed = Routed(
            dict.fromkeys(deployments, slow),
            {"chat": {"deployments": deployments, "retry": {"within_s": 30}}},
            clock=clock,
        )
        assert (await routed.ask()).status == 503
        assert sum(routed.calls(name) for name in deployments) == 2

    async def test_retries_do_not_multiply_an_outage(self):
        deployments = ["a", "b", "c"]
        routed = Routed(
            dict.fromkeys(deployments, DOWN),
            {"chat": {"deployments": deployments, "retry": {"budget": 0.1}, "health": {"max_failures": 10**6}}},
        )
        for each in routed.route().group.deployments:
            each.health._is_too_much = lambda: False
        num_requests = 500
        for _ in range(num_requests):
            assert (await routed.ask()).status == 503
        num_calls = sum(routed.calls(name) for name in deployments)
        assert num_requests * 1.09 < num_calls <= num_requests * 1.1 + 10

    async def test_retries_that_succeed_are_free(self):
        routed = Routed(
            {"a": DOWN, "b": None},
            {"chat": {"deployments": ["a", "b"], "retry": {"budget": 0.01}, "health": {"max_failures": 10**6}}},
        )
        routed.deployment("a").health._is_too_much = lambda: False
        assert {(await routed.ask()).status for _ in range(100)} == {200}

    async def test_without_a_budget_there_are_none(self):
        routed = Routed({"a": DOWN, "b": None}, {"chat": {"deployments": ["a", "b"], "retry": {"budget": 0}}})
        assert (await routed.ask()).status == 503
        assert routed.calls("b") == 0


class TestFallbacks:
    async def test_they_are_asked_in_order_and_answer_under_their_own_names(self):
        routed = Routed(
            {"a": DOWN, "b": DOWN, "c": None},
            {"chat": {"deployments": ["a"], "fallbacks": ["b", "c"], "retry": {"attempts": 1}}},
        )
        found = await routed.ask()
        assert (found.status, found.headers["x-langport-deployment"]) == (200, "c")
        assert routed.models["c"].app.scope["extensions"]["langport"]["model"] == "c"
        assert [routed.calls(name) for name in "abc"] == [1, 1, 1]

    async def test_own_ones_are_tried_again_first(self):
        routed = Routed({"a": DOWN, "b": None}, {"chat": {"deployments": ["a"], "fallbacks": ["b"]}})
        await routed.ask()
        assert [routed.calls(name) for name in "ab"] == [3, 1]
        await routed.ask()
        assert [routed.calls(name) for name in "ab"] == [3, 2], "a is cooling down"

    async def test_a_route_stands_for_its_deployments_and_not_for_its_own_fallbacks(self):
        retry = {"attempts": 1}
        routed = Routed(
            {"a": DOWN, "b": DOWN, "c": DOWN},
            {
                "chat": {"deployments": ["a"], "fallbacks": ["other"], "retry": retry},
                "other": {"deployments": ["b"], "fallbacks": ["chat", "c"], "retry": retry},
            },
        )
        assert (await routed.ask()).status == 503
        assert [routed.calls(name) for name in "abc"] == [1, 1, 0]
        assert routed.deployment("b", "other").health._num_in_a_row == 1, "they share what they know of it"

    async def test_a_route_that_stands_for_itself_is_not_asked_for_ever(self):
        routed = Routed({"a": None}, {"chat": {"deployments": ["chat"], "fallbacks": ["chat"]}})
        routed.models["chat"] = routed.routing.upstreams()[0]
        with pytest.raises(Unavailable):
            await routed.ask()


class TestHealth:
    async def test_one_that_fails_is_left_alone_and_tried_by_one_request(self):
        clock = FakeClock()
        slow = gives(answer({}))
        routed = Routed(
            {"a": by_turns(DOWN, DOWN, DOWN, slow), "b": None}, {"chat": {"deployments": ["a", "b"]}}, clock=clock
        )
        for _ in range(6):
            assert (await routed.ask()).status == 200
        assert routed.deployment("a").health.state is State.COOLING
        num_calls = routed.calls("a")
        assert num_calls == 3
        for _ in range(6):
            await routed.ask()
        assert routed.calls("a") == 3
        clock.forward(1)
        trials = [asyncio.create_task(routed.ask()) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert routed.calls("a") == 4
        slow.event.set()
        assert {(await each).status for each in trials} == {200}
        assert routed.deployment("a").health.state is State.HEALTHY

    async def test_a_trial_has_passed_with_its_first_byte(self):
        clock = FakeClock()
        began = asyncio.Event()

        async def endless(receive, send):
            await stream_head(send)
            began.set()
            await receive()

        routed = Routed(
            {"a": by_turns(DOWN, endless)},
            {"chat": {"deployments": ["a"], "health": {"max_failures": 1}, "retry": {"attempts": 1}}},
            clock=clock,
        )
        assert (await routed.ask()).status == 503
        clock.forward(1)
        left = asyncio.Event()
        task = asyncio.create_task(routed.ask(left=left))
        await began.wait()
        assert routed.deployment("a").health.state is State.HEALTHY
        left.set()
        await task

    async def test_what_a_429_says_is_kept_to(self):
        clock = FakeClock()
        full = answer({"error": "full"}, 429, [(b"Retry-After", b"30")])
        routed = Routed({"a": by_turns(full, answer({}))}, {"chat": {"deployments": ["a"]}}, clock=clock)
        assert (await routed.ask()).status == 429
        clock.forward(20)
        with pytest.raises(RateLimited, match=r"a: asked for less work.*Try again in 10 s") as caught:
            await routed.ask()
        assert caught.value.retry_after_s == 10
        assert routed.calls("a") == 1
        clock.forward(10)
        assert (await routed.ask()).status == 200

    async def test_a_429_for_the_clients_own_key_is_nobody_elses(self):
        full = answer({"error": "full"}, 429, [(b"Retry-After", b"30")])
        own = upstream("a", by_turns(full, answer({})), limits_keys=True)
        routed = Routed({"a": own}, {"chat": {"deployments": ["a"], "retry": {"attempts": 1}}}, clock=FakeClock())
        assert (await routed.ask()).status == 429
        assert (await routed.ask()).status == 200

    @pytest.mark.parametrize("text", [b"Wed, 21 Oct 2026 07:28:00 GMT", b"-1", b"", b"inf", b"1e9"])
    async def test_a_429_that_says_it_otherwise_costs_one_cooldown(self, text):
        full = answer({"error": "full"}, 429, [(b"retry-after", text)])
        routed = Routed({"a": full}, {"chat": {"deployments": ["a"], "health": {"cooldown_s": 4}}})
        assert (await routed.ask()).status == 429
        assert routed.deployment("a").health.wait_s == 4

    @pytest.mark.parametrize(
        ("script", "wait_s"),
        [
            (answer({}, 503, [(b"retry-after", b"9")]), 9),
            (answer({}, 503), 0),
            (refuse(Unavailable("loading")), 0),
            (refuse(RateLimited("full", retry_after_s=9)), 9),
        ],
    )
    async def test_only_what_a_deployment_says_itself_is_kept_to_at_once(self, script, wait_s):
        routed = Routed({"a": script, "b": None}, {"chat": {"deployments": ["a", "b"]}}, clock=FakeClock())
        assert (await routed.ask()).headers["x-langport-deployment"] == "b"
        assert routed.deployment("a").health.wait_s == wait_s

    async def test_while_all_are_down_each_is_tried_once_all_the_same(self):
        clock = FakeClock()
        health = {"max_failures": 1}
        routed = Routed(
            {"a": by_turns(DOWN, answer({})), "b": DOWN},
            {"chat": {"deployments": ["a", "b"], "health": health}},
            clock=clock,
        )
        assert (await routed.ask()).status == 503
        assert [routed.deployment(name).health.state for name in "ab"] == [State.COOLING] * 2
        assert (await routed.ask()).status == 200, "a works again, and only the suspicion stood against it"

    async def test_or_refused_where_the_settings_say_so(self):
        clock = FakeClock()
        routed = Routed(
            {"a": DOWN},
            {"chat": {"deployments": ["a"], "health": {"when_down": "refuse", "cooldown_s": 8}}},
            clock=clock,
        )
        routed.clock._runs = True
        assert (await routed.ask()).status == 503
        routed.clock._runs = False
        assert routed.calls("a") == 3
        with pytest.raises(Unavailable, match="a: failed too often") as caught:
            await routed.ask()
        assert 7 < caught.value.retry_after_s <= 8
        assert routed.calls("a") == 3

    async def test_answers_that_break_off_count_as_failures_and_clients_that_leave_do_not(self):
        broken = stream(EVENTS[0], then=ConnectionResetError())
        routed = Routed({"a": broken}, {"chat": {"deployments": ["a"]}})
        for _ in range(4):
            with pytest.raises(Unavailable, match="a broke off its answer: ConnectionResetError"):
                await routed.ask()
        assert sum(routed.deployment("a").health._latest) == 4

        async def lost(message):
            raise OSError("connection lost")

        routed = Routed({"a": stream(*EVENTS)}, {"chat": {"deployments": ["a"]}})
        for _ in range(4):
            with pytest.raises(OSError, match="connection lost"):
                await routed.ask(send=lost)
        assert sum(routed.deployment("a").health._latest) == 0


async def stream_head(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})


class TestTheFirstByte:
    @pytest.mark.parametrize("num_events", range(4))
    @pytest.mark.parametrize("error", [ConnectionResetError("cut"), Unavailable("cut")])
    async def test_after_it_nothing_is_asked_again(self, num_events, error):
        """The stream is cut after each of its messages."""
        routed = Routed(
            {"a": stream(*EVENTS[:num_events], then=error), "b": stream(*EVENTS)}, {"chat": {"deployments": ["a", "b"]}}
        )
        found = Answer()
        if num_events == 0:
            await routed.ask(found=found)
            assert (found.chunks, found.headers["x-langport-deployment"], routed.calls("b")) == (EVENTS, "b", 1)
        else:
            with pytest.raises(Unavailable, match="cut"):
                await routed.ask(found=found)
            assert (found.chunks, routed.calls("b")) == (EVENTS[:num_events], 0)

    @given(
        st.lists(st.binary(max_size=40_000), max_size=6),
        st.integers(0, 7),
        st.sampled_from([b"text/event-stream", b"application/json"]),
        st.sampled_from([200, 400, 503]),
    )
    @settings(max_examples=60, deadline=None)
    def test_the_client_sees_one_whole_answer_or_the_beginning_of_one(self, parts, cut, content_type, status):
        """Whatever a deployment sends, wherever it is cut."""

        async def cut_off(receive, send):
            headers = [(b"content-type", content_type)]
            messages = [{"type": "http.response.start", "status": status, "headers": headers}]
            messages += [{"type": "http.response.body", "body": part, "more_body": True} for part in parts]
            messages += [{"type": "http.response.body", "body": b""}]
            for message in messages[:cut]:
                await send(message)
            if cut < len(messages):
                raise ConnectionResetError("cut")

        async def run():
            routed = Routed({"a": cut_off, "b": answer({"b": 1})}, {"chat": {"deployments": ["a", "b"]}})
            found = Answer()
            try:
                await routed.ask(found=found)
            except Unavailable:
                assert routed.calls("b") == 0
                sent = found.body
                assert sent
                assert b"".join(parts).startswith(sent)
                assert not found.finished
                return
            assert found.finished
            if routed.calls("b"):
                assert found.json == {"b": 1}
            else:
                assert found.body == b"".join(parts)

        asyncio.run(run())

    async def test_a_plain_answer_waits_for_its_end_unless_it_is_long(self):
        part = b"x" * (HELD_BYTES // 2)
        sent = []

        async def script(receive, send):
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for number in range(4):
                await send({"type": "http.response.body", "body": part, "more_body": number < 3})
                sent.append(len(found.messages))

        found = Answer()
        await Routed({"a": script}, {"chat": {"deployments": ["a"]}}).ask(found=found)
        assert sent == [0, 0, 4, 5]
        assert found.body == part * 4

    async def test_a_killed_deployment_loses_no_request_that_had_not_begun(self):
        killed = asyncio.Event()

        async def dies(receive, send):
            await killed.wait()
            raise ConnectionResetError

        routed = Routed(
            {"a": dies, "b": None}, {"chat": {"deployments": [{"model": "a", "weight": 9}, "b"]}}, clock=FakeClock()
        )
        requests = [asyncio.create_task(routed.ask()) for _ in range(100)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert routed.deployment("a").num_in_flight == 90
        killed.set()
        assert {(await each).status for each in requests} == {200}
        assert routed.calls("b") == 100


class TestClientsThatLeave:
    async def test_while_one_is_asked(self):
        began, ended, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        routed = Routed({"a": hangs(began, ended), "b": None}, {"chat": {"deployments": ["a", "b"]}})
        task = asyncio.create_task(routed.ask(left=left))
        await began.wait()
        left.set()
        assert not (await task).started
        assert ended.is_set()
        assert routed.calls("b") == 0
        assert routed.deployment("a").health._latest.count(True) == 0
        assert not await leftovers()

    async def test_between_two_tries(self):
        clock = FakeClock()
        left = asyncio.Event()
        routed = Routed({"a": DOWN}, {"chat": {"deployments": ["a"]}}, clock=clock)
        task = asyncio.create_task(routed.ask(left=left))
        while not clock.waits:
            await asyncio.sleep(0)
        left.set()
        assert not (await task).started
        assert routed.calls("a") == 1
        assert not await leftovers()

    async def test_a_cancelled_request_leaves_nothing(self):
        began, ended = asyncio.Event(), asyncio.Event()
        routed = Routed({"a": hangs(began, ended)}, {"chat": {"deployments": ["a"]}})
        task = asyncio.create_task(routed.ask())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        assert routed.deployment("a").num_in_flight == 0
        assert not await leftovers()


class TestHedging:
    async def warm(self, models, **more):
        clock = FakeClock()
        routed = Routed(models, {"chat": {"deployments": ["a", "b"], "hedge": True, **more}}, clock=clock)
        routed.route()._times_s.extend([0.1] * 20)
        return routed, clock

    async def until_waiting(self, clock):
        while not clock.waits:
            await asyncio.sleep(0)

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    async def test_a_slow_one_gets_company_and_the_first_answer_ends_the_other(self):
        ended = asyncio.Event()
        routed, clock = await self.warm({"a": hangs(ended=ended), "b": answer({"from": "b"})})
        task = asyncio.create_task(routed.ask(path=EMBED))
        await self.until_waiting(clock)
        assert clock.waits == [0.1]
        assert routed.calls("b") == 0
        clock.forward(0.1)
        found = await task
        assert (found.json, found.headers["x-langport-deployment"], routed.served_by) == ({"from": "b"}, "b", "b")
        assert ended.is_set()
        assert [routed.deployment(name).num_in_flight for name in "ab"] == [0, 0]
        assert not await leftovers()

    async def test_the_first_may_still_win(self):
        slow, ended = gives(answer({"from": "a"})), asyncio.Event()
        routed, clock = await self.warm({"a": slow, "b": hangs(ended=ended)})
        task = asyncio.create_task(routed.ask(path=EMBED))
        await self.until_waiting(clock)
        clock.forward(0.1)
        await self.settle()
        assert routed.calls("b") == 1
        slow.event.set()
        assert (await task).json == {"from": "a"}
        assert ended.is_set()
        assert routed.served_by == "a"
        assert not await leftovers()

    async def test_a_fast_one_gets_none(self):
        routed, _ = await self.warm({"a": None, "b": None})
        assert (await routed.ask(path=EMBED)).status == 200
        assert routed.calls("b") == 0
        assert not await leftovers()

    async def test_one_that_fails_leaves_the_answer_to_the_other(self):
        slow = gives(answer({"from": "b"}))
        fails = gives(DOWN)
        routed, clock = await self.warm({"a": fails, "b": slow})
        task = asyncio.create_task(routed.ask(path=EMBED))
        await self.until_waiting(clock)
        clock.forward(0.1)
        await self.settle()
        fails.event.set()
        await self.settle()
        assert not task.done()
        slow.event.set()
        assert (await task).json == {"from": "b"}

    async def test_a_failure_before_that_is_retried_as_ever(self):
        routed, _ = await self.warm({"a": DOWN, "b": answer({"from": "b"})})
        assert (await routed.ask(path=EMBED)).json == {"from": "b"}

    async def test_the_clients_fault_ends_both(self):
        wrong, ended = gives(refuse(InvalidRequest("no"))), asyncio.Event()
        routed, clock = await self.warm({"a": wrong, "b": hangs(ended=ended)})
        task = asyncio.create_task(routed.ask(path=EMBED))
        await self.until_waiting(clock)
        clock.forward(0.1)
        await self.settle()
        wrong.event.set()
        with pytest.raises(InvalidRequest):
            await task
        assert ended.is_set()
        assert not await leftovers()

    @pytest.mark.parametrize("leaves", [True, False])
    async def test_a_client_that_leaves_or_is_cancelled_ends_both(self, leaves):
        ends = [asyncio.Event(), asyncio.Event()]
        routed, clock = await self.warm({"a": hangs(ended=ends[0]), "b": hangs(ended=ends[1])})
        left = asyncio.Event()
        task = asyncio.create_task(routed.ask(path=EMBED, left=left))
        await self.until_waiting(clock)
        clock.forward(0.1)
        await self.settle()
        assert routed.calls("b") == 1
        if leaves:
            left.set()
            assert not (await task).started
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert all(end.is_set() for end in ends)
        assert not await leftovers()

    async def test_few_requests_are_doubled(self):
        script = gives(answer({}))
        script.event.set()
        routed, clock = await self.warm({"a": None, "b": None})
        doubled = 0
        for _ in range(300):
            slow = gives(answer({}))
            routed.models = {"a": upstream("a", slow), "b": upstream("b", slow)}
            num_waits = len(clock.waits)
            task = asyncio.create_task(routed.ask(path=EMBED))
            await self.settle()
            if len(clock.waits) > num_waits:
                clock.forward(clock.waits[-1])
            await self.settle()
            doubled += routed.calls("a") + routed.calls("b") - 1
            slow.event.set()
            await task
        assert 30 <= doubled <= 300 * 0.1 + 10

    async def test_only_embeddings_and_only_where_it_is_wanted(self):
        routed, clock = await self.warm({"a": None, "b": None})
        await routed.ask(path=CHAT)
        plain = Routed({"a": None, "b": None}, {"chat": {"deployments": ["a", "b"]}}, clock=clock)
        plain.route()._times_s.extend([0.1] * 20)
        await plain.ask(path=EMBED)
        assert clock.waits == []

    async def test_what_is_slow_is_learnt(self):
        clock = FakeClock()

        async def takes_a_second(receive, send):
            clock.forward(1)
            await answer({})(receive, send)

        routed = Routed(
            {"a": takes_a_second, "b": takes_a_second},
            {"chat": {"deployments": ["a", "b"], "hedge": True}},
            clock=clock,
        )
        for _ in range(20):
            assert routed.route()._slow_s() is None
            await routed.ask(path=EMBED)
        assert routed.route()._slow_s() == 1


class TestMeters:
    def metered(self, name, script, **how):
        async def app(scope, receive, send):
            await receive()
            scope["extensions"]["langport"]["meter"](lambda: TokenUsage(len(name)), **how)
            await script(receive, send)

        return Upstream(name, app, card=dict, is_ready=lambda: (True, ""), is_metered=True)

    async def test_tokens_count_for_the_try_that_answers(self):
        models = {"a": self.metered("a", DOWN), "bcd": self.metered("bcd", answer({}), work=None)}
        routed = Routed(models, {"chat": {"deployments": ["a", "bcd"]}})
        counted = []
        await routed.ask(meter=lambda count, work=None: counted.append(count().prompt_tokens))
        assert counted == [3]
        assert routed.routing.upstreams(routed.models.values())[0].is_metered

    async def test_and_for_the_one_that_the_client_left(self):
        began, left = asyncio.Event(), asyncio.Event()
        routed = Routed({"a": self.metered("a", hangs(began))}, {"chat": {"deployments": ["a"]}})
        counted = []
        task = asyncio.create_task(routed.ask(left=left, meter=lambda count, work=None: counted.append(count())))
        await began.wait()
        left.set()
        await task
        assert counted == [TokenUsage(1)]

    async def test_those_of_others_are_read_from_their_answers(self):
        routed = Routed({"a": self.metered("a", DOWN), "b": None}, {"chat": {"deployments": ["a", "b"]}})
        assert not routed.routing.upstreams(routed.models.values())[0].is_metered


async def test_metrics_say_which_deployments_get_requests():
    routes = {"chat": {"deployments": [{"model": "a"}, {"model": "b"}]}}
    client = make_client({"a": upstream("a", is_ready=(False, "loading")), "b": upstream("b")}, routes=routes)
    text = (await client.get("/metrics")).body.decode()
    assert 'langport_upstream_healthy{model="chat",upstream="a"} 0' in text
    assert 'langport_upstream_healthy{model="chat",upstream="b"} 1' in text


def test_a_route_has_the_places_of_its_deployments_together():
    places = {"a": Places("m", 4), "adapter": Places("m", 4), "b": Places("b", 3), "c": None}
    routed = Routed(
        {name: upstream(name, places=each) for name, each in places.items()},
        {"all": {"deployments": ["a", "adapter", "b"]}, "open": {"deployments": ["a", "c"]}},
    )
    found = {each.name: each.places for each in routed.routing.upstreams(routed.models.values())}
    assert found == {"all": Places("all", 7), "open": None}


class TestInTheGateway:
    async def test_a_route_is_a_model_like_any_other(self):
        demo = FakeUpstream()
        routes = {"chat": {"deployments": [{"model": "demo"}, {"model": "org/näme"}]}}
        small = upstream("org/näme", card=lambda: {"max_model_len": 1024})
        client = make_client({"demo": demo, "org/näme": small}, routes=routes, aliases={"gpt-4": "chat"})
        entries = {entry["id"]: entry for entry in (await client.get("/v1/models")).json["data"]}
        assert set(entries) == {"demo", "org/näme", "chat", "gpt-4"}
        assert (entries["chat"]["max_model_len"], entries["gpt-4"]["root"]) == (1024, "chat")
        seen = {(await client.post(CHAT, {"model": "gpt-4"})).headers["x-langport-deployment"] for _ in range(2)}
        assert seen == {"demo", "org/n%C3%A4me"}
        assert 'model="chat",upstream="demo"' in (await client.get("/metrics")).body.decode()

    async def test_the_header_may_be_left_out(self):
        routes = {"chat": {"deployments": [{"model": "demo"}]}}
        client = make_client(routes=routes, deployment_header=False)
        assert "x-langport-deployment" not in (await client.post(CHAT, {"model": "chat"})).headers

    async def test_the_header_of_a_gateway_behind_it_is_replaced(self):
        inner = answer({}, headers=[(b"X-LangPort-Deployment", b"inner")])
        client = make_client({"demo": inner}, routes={"chat": {"deployments": [{"model": "demo"}]}})
        assert (await client.post(CHAT, {"model": "chat"})).headers["x-langport-deployment"] == "demo"

    async def test_failures_are_told_in_openais_shape(self):
        routes = {"chat": {"deployments": [{"model": "demo"}]}}
        client = make_client({"demo": refuse(ConnectionRefusedError("refused"))}, routes=routes)
        found = await client.post(CHAT, {"model": "chat"})
        assert (found.status, found.error["type"]) == (503, "server_error")
        assert found.headers["retry-after"] == "2"

    async def test_a_client_that_leaves_is_no_failure(self, caplog):
        client = make_client({"demo": hangs()}, routes={"chat": {"deployments": [{"model": "demo"}]}})
        assert not (await client.post(CHAT, {"model": "chat"}, leave_after=0)).started
        assert 'status="499"' in (await client.get("/metrics")).body.decode()
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]

    async def test_it_is_ready_as_soon_as_one_is(self):
        routes = {"chat": {"deployments": [{"model": "a"}, {"model": "b"}]}}
        loading = {"a": upstream("a", is_ready=(False, "loading")), "b": upstream("b", is_ready=(False, "asleep"))}
        found = await make_client(loading, routes=routes).get("/ready")
        assert found.json["models"]["chat"] == "none of its deployments is ready (a: loading, b: asleep)"
        found = await make_client({**loading, "b": upstream("b")}, routes=routes).get("/ready")
        assert "chat" not in found.json["models"]
