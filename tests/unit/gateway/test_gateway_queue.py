"""The queue: fair turns by tokens, deadlines, speed, draining, and no place is ever lost."""

from __future__ import annotations

import asyncio

import pytest
from fake_clock import FakeClock, settle
from hypothesis import given
from hypothesis import strategies as st

from langport.errors import Overloaded, Unavailable
from langport.gateway.queue import NUM_COUNTED, FairQueue, Lane, Places, Waiter

WAIT_S = 30


def waiters(who, num, num_tokens=100, **fields):
    return [Waiter(who, num_tokens, **fields) for _ in range(num)]


def push_all(queue, *lines):
    for line in lines:
        for waiter in line:
            queue.push(waiter)


def order(queue):
    served = []
    while (waiter := queue.first()) is not None:
        served.append(waiter)
        queue.serve(waiter)
    return served


class TestFairQueue:
    def test_one_key_is_served_in_the_order_of_arrival(self):
        queue = FairQueue()
        line = waiters("a", 5)
        push_all(queue, line)
        assert order(queue) == line
        assert (queue.num_waiters, queue.num_tokens) == (0, 0)

    def test_keys_take_turns_by_tokens(self):
        queue = FairQueue()
        push_all(queue, waiters("a", 4, 100), waiters("b", 8, 50))
        served = [waiter.who for waiter in order(queue)]
        for num in range(3, 13, 3):
            assert abs(served[:num].count("b") - 2 * served[:num].count("a")) <= 2

    def test_a_flood_does_not_hold_up_anothers_single_request(self):
        queue = FairQueue()
        push_all(queue, waiters("flood", 1000))
        for _ in range(100):
            queue.serve(queue.first())
        single = Waiter("b", 500)
        queue.push(single)
        assert queue.tokens_before("b") >= 0
        assert order(queue).index(single) <= 1

    def test_a_key_does_not_gain_by_sending_one_after_the_other(self):
        queue = FairQueue()
        push_all(queue, waiters("flood", 50))
        served = {"flood": 0, "b": 0}
        for _ in range(40):
            if not any(waiter.who == "b" for waiter in queue):
                queue.push(Waiter("b", 100))
            waiter = queue.first()
            served[waiter.who] += 1
            queue.serve(waiter)
        assert abs(served["flood"] - served["b"]) <= 1

    def test_who_leaves_pays_nothing(self):
        queue = FairQueue()
        gone, stays = waiters("a", 2, 10_000)
        push_all(queue, [gone, stays], waiters("b", 3, 100))
        queue.discard(gone)
        assert order(queue)[0] is stays

    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), min_size=1, max_size=40),
        st.data(),
    )
    def test_tokens_before_are_those_served_before(self, arrivals, data):
        queue = FairQueue()
        for who, num_tokens in arrivals:
            queue.push(Waiter(who, num_tokens))
        for _ in range(data.draw(st.integers(0, len(arrivals) - 1))):
            queue.serve(queue.first())
        who = data.draw(st.sampled_from("abcd"))
        before = queue.tokens_before(who)
        newcomer = Waiter(who, 1)
        queue.push(newcomer)
        served = order(queue)
        actual = sum(waiter.num_tokens for waiter in served[: served.index(newcomer)])
        # Whole requests are served, and the estimate cuts the last one of each other key.
        assert before <= actual + 3 <= before + 303

    def test_idle_keys_take_no_memory(self):
        queue = FairQueue()
        push_all(queue, waiters("flood", 20))
        for number in range(1000):
            push_all(queue, [Waiter(f"key {number}", 1), Waiter("flood", 100)])
            queue.serve(queue.first())
            queue.serve(queue.first())
        assert queue.num_waiters == 20
        assert len(queue._lines) < 100
        assert len(queue._heap) < 100


@pytest.fixture
def clock():
    return FakeClock()


def make_lane(clock, num_places=2, max_queued_tokens=10_000):
    return Lane(Places("demo", num_places), max_queued_tokens, clock)


def arrive(lane, waiter, max_wait_s=WAIT_S):
    lane.check(waiter, max_wait_s)
    lane.enter(waiter, max_wait_s)
    return waiter


def is_running(waiter):
    return waiter.num_taken > 0


def move(lane, clock, num, seconds=1.0):
    """Let so many leave the queue, one every so many seconds, so that its speed is known."""
    running = waiters("mover", lane.num_places)
    for waiter in running:
        arrive(lane, waiter)
    line = [arrive(lane, waiter, 10_000) for waiter in waiters("mover", num + 1)]
    for waiter in [*running, *line][:num]:
        clock.advance(seconds)
        lane.leave(waiter)
    for waiter in [*running, *line]:
        lane.leave(waiter)


def flood(lane, who):
    """Let requests arrive until one is refused; why it was."""
    for _ in range(100):
        try:
            arrive(lane, Waiter(who, 100))
        except Overloaded as error:
            return error
    raise AssertionError("nothing was refused")


class TestLane:
    async def test_places_are_taken_and_the_rest_waits(self, clock):
        lane = make_lane(clock)
        first, second, third = (arrive(lane, waiter) for waiter in waiters("a", 3))
        assert (is_running(first), is_running(second), is_running(third)) == (True, True, False)
        assert (lane.num_taken, lane.num_waiting, lane.num_waiting_tokens) == (2, 1, 100)
        lane.leave(first)
        assert is_running(third)
        assert third.start.done()
        assert clock.num_timers == 0

    async def test_one_that_needs_more_places_than_there_are_runs_alone(self, clock):
        lane = make_lane(clock, 4)
        big = arrive(lane, Waiter("a", 100, num_places=128))
        small = arrive(lane, Waiter("b", 100))
        assert (is_running(big), is_running(small), lane.num_taken) == (True, False, 4)
        lane.leave(big)
        assert lane.num_taken == 1

    async def test_one_that_needs_many_places_is_not_passed_for_ever(self, clock):
        lane = make_lane(clock, 4)
        running = [arrive(lane, Waiter("a", 100)) for _ in range(4)]
        big = arrive(lane, Waiter("a", 100, num_places=4))
        later = arrive(lane, Waiter("a", 100))
        for waiter in running:
            assert not is_running(later)
            lane.leave(waiter)
        assert is_running(big)

    async def test_at_the_deadline_a_waiter_is_refused(self, clock):
        lane = make_lane(clock, 1)
        arrive(lane, Waiter("a", 100))
        waiter = arrive(lane, Waiter("a", 100), 5)
        clock.advance(4.9)
        assert not waiter.start.done()
        clock.advance(0.2)
        with pytest.raises(Overloaded, match="waited 5 s in vain"):
            waiter.start.result()
        assert lane.num_waiting == 0

    async def test_a_deadline_that_ends_makes_way_for_who_needs_less(self, clock):
        lane = make_lane(clock, 2)
        arrive(lane, Waiter("a", 100))
        big = arrive(lane, Waiter("a", 100, num_places=2), 5)
        small = arrive(lane, Waiter("b", 100))
        clock.advance(5)
        assert isinstance(big.start.exception(), Overloaded)
        assert is_running(small)

    async def test_nobody_waits_where_waiting_is_not_wanted(self, clock):
        lane = make_lane(clock, 1)
        arrive(lane, Waiter("a", 100), 0)
        with pytest.raises(Overloaded, match="was not to wait"):
            arrive(lane, Waiter("a", 100), 0)

    async def test_the_queue_is_bounded_in_tokens_but_takes_one_of_any_size(self, clock):
        lane = make_lane(clock, 1, max_queued_tokens=1000)
        arrive(lane, Waiter("a", 100))
        big = arrive(lane, Waiter("a", 50_000))
        with pytest.raises(Overloaded, match="the queue is full"):
            arrive(lane, Waiter("b", 1))
        lane.leave(big)
        arrive(lane, Waiter("b", 900))
        arrive(lane, Waiter("b", 100))
        with pytest.raises(Overloaded):
            arrive(lane, Waiter("b", 1))

    async def test_what_cannot_start_in_time_is_refused_at_once_with_the_time_to_come_again(self, clock):
        lane = make_lane(clock, 1)
        move(lane, clock, NUM_COUNTED)  # 100 tokens a second
        arrive(lane, Waiter("a", 100))
        error = flood(lane, "a")
        # Thirty seconds at 100 tokens a second, give or take how the speed was measured.
        assert 25 <= lane.num_waiting <= 35
        assert 25 <= error.retry_after_s <= 35
        assert clock.num_timers == lane.num_waiting

    async def test_the_flood_of_one_key_refuses_itself_and_not_another(self, clock):
        lane = make_lane(clock, 1)
        move(lane, clock, NUM_COUNTED)
        arrive(lane, Waiter("flood", 100))
        flood(lane, "flood")
        other = arrive(lane, Waiter("b", 100), 10)
        lane.leave(arrive(lane, Waiter("c", 100)))
        assert not other.start.done()

    async def test_who_leaves_the_queue_makes_room_at_once(self, clock):
        lane = make_lane(clock, 1, max_queued_tokens=100)
        arrive(lane, Waiter("a", 100))
        gone = arrive(lane, Waiter("a", 100))
        lane.leave(gone)
        lane.leave(gone)
        assert (lane.num_waiting, clock.num_timers) == (0, 0)
        arrive(lane, Waiter("a", 100))

    async def test_background_work_waits_behind_all_others_and_has_no_deadline(self, clock):
        lane = make_lane(clock, 1, max_queued_tokens=200)
        running = arrive(lane, Waiter("a", 100))
        background = [arrive(lane, Waiter("batch", 500, is_background=True), 0) for _ in range(3)]
        other = arrive(lane, Waiter("a", 100))
        clock.advance(WAIT_S - 1)
        lane.leave(running)
        assert is_running(other)
        clock.advance(3600)
        assert not any(waiter.start.done() for waiter in background)
        lane.leave(other)
        assert [is_running(waiter) for waiter in background] == [True, False, False]

    async def test_draining_refuses_what_waits_and_lets_run_what_runs(self, clock):
        lane = make_lane(clock, 1)
        running = arrive(lane, Waiter("a", 100))
        line = [arrive(lane, Waiter("a", 100)), arrive(lane, Waiter("b", 100, is_background=True))]
        lane.drain()
        for waiter in line:
            with pytest.raises(Unavailable, match="stopping"):
                waiter.start.result()
        with pytest.raises(Unavailable, match="stopping"):
            arrive(lane, Waiter("a", 100))
        assert is_running(running)
        assert clock.num_timers == 0

    async def test_a_lane_that_grows_takes_more(self, clock):
        lane = make_lane(clock, 1)
        line = [arrive(lane, Waiter("a", 100)) for _ in range(4)]
        lane.resize(3)
        assert [is_running(waiter) for waiter in line] == [True, True, True, False]
        lane.resize(1)
        for waiter in line[:2]:
            lane.leave(waiter)
        assert not is_running(line[3])
        lane.leave(line[2])
        assert is_running(line[3])
        lane.leave(line[3])
        assert lane.num_taken == 0

    async def test_the_speed_of_a_lane_that_stands_still_sinks(self, clock):
        lane = make_lane(clock, 1)
        move(lane, clock, NUM_COUNTED)
        arrive(lane, Waiter("a", 100))
        arrive(lane, Waiter("a", 100), 10_000)
        clock.advance(600)
        with pytest.raises(Overloaded):
            arrive(lane, Waiter("a", 100))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "leave", "leave", "advance"]),
            st.sampled_from("abc"),
            st.integers(1, 200),
            st.integers(1, 5),
            st.booleans(),
        ),
        max_size=60,
    )
)
async def test_no_place_is_lost_whatever_happens(events):
    clock = FakeClock()
    lane = Lane(Places("demo", 4), 1000, clock)
    here: list[Waiter] = []
    for what, who, number, num_places, is_background in events:
        if what == "advance":
            clock.advance(number / 4)
        elif what == "leave":
            if here:
                lane.leave(here.pop(number % len(here)))
        else:
            try:
                here.append(arrive(lane, Waiter(who, number, num_places, is_background)))
            except Overloaded:
                assert lane.num_taken > 0 or lane.num_waiting > 0
        here = [waiter for waiter in here if is_running(waiter) or not waiter.start.done()]
        running = [waiter for waiter in here if is_running(waiter)]
        waiting = [waiter for waiter in here if not is_running(waiter)]
        assert lane.num_taken == sum(min(waiter.num_places, 4) for waiter in running) <= 4
        assert lane.num_waiting == len(waiting)
        assert lane.num_waiting_tokens == sum(waiter.num_tokens for waiter in waiting)
        assert clock.num_timers == sum(not waiter.is_background for waiter in waiting)
        # Somebody waits only where somebody runs.
        assert running or not waiting
    for waiter in here:
        lane.leave(waiter)
    assert (lane.num_taken, lane.num_waiting, clock.num_timers) == (0, 0, 0)
    await settle()
    await asyncio.sleep(0)
