"""Counting: never more than the limit in any minute, all of a claim or nothing, and everything given back."""

from __future__ import annotations

import pytest
from fake_clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from langport.gateway.limits import GRAIN_S, WINDOW_S, Claim, Limit, LocalLimits, Share, Standing

REQUESTS = Limit.of("key a", "requests", 3)
TOKENS = Limit.of("key a", "tokens", 100)
RUNNING = Limit.of("key a", "concurrency", 2)
ARRIVALS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 1.0, 7.0, 29.9, 59.9, 60.0]), st.integers(1, 60)))


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def limits(clock):
    return LocalLimits(clock)


async def take(limits, *shares):
    claim = Claim([Share(limit, amount) for limit, amount in shares])
    await limits.take(claim)
    return claim


async def admits(limits, *shares):
    return (await take(limits, *shares)).refusal is None


async def test_a_limit_admits_exactly_as_much_as_it_says(limits):
    assert [await admits(limits, (REQUESTS, 1)) for _ in range(5)] == [True, True, True, False, False]


async def test_what_is_a_minute_old_counts_no_longer(limits, clock):
    for _ in range(3):
        assert await admits(limits, (REQUESTS, 1))
        clock.advance(10)
    refused = await take(limits, (REQUESTS, 1))
    assert refused.refusal == (REQUESTS, 30)
    clock.advance(29.99)
    assert not await admits(limits, (REQUESTS, 1))
    clock.advance(0.01)
    assert await admits(limits, (REQUESTS, 1))
    assert not await admits(limits, (REQUESTS, 1))


async def test_what_is_counted_together_is_forgotten_when_the_newest_of_it_is_a_minute_old(limits, clock):
    assert await admits(limits, (TOKENS, 50))
    clock.advance(0.2)
    assert await admits(limits, (TOKENS, 50))
    clock.advance(WINDOW_S - 0.1)
    assert not await admits(limits, (TOKENS, 60))
    clock.advance(0.1)
    assert await admits(limits, (TOKENS, 60))


async def test_a_claim_counts_wholly_or_not_at_all(limits):
    assert await admits(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 80))
    refused = await take(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 21))
    assert refused.refusal == (TOKENS, WINDOW_S)
    assert [standing.remaining for standing in refused.standings] == [1, 2, 20]
    assert await admits(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 20))


async def test_the_refusal_is_that_of_the_limit_that_takes_longest(limits, clock):
    await take(limits, (TOKENS, 100))
    clock.advance(10)
    for _ in range(3):
        await take(limits, (REQUESTS, 1))
    for shares in ([(REQUESTS, 1), (TOKENS, 1)], [(TOKENS, 1), (REQUESTS, 1)]):
        assert (await take(limits, *shares)).refusal == (REQUESTS, 60)


async def test_what_was_not_used_is_given_back_and_what_was_used_beyond_it_counts(limits, clock):
    first = await take(limits, (TOKENS, 90))
    clock.advance(1)
    limits.settle(first, 30)
    second = await take(limits, (TOKENS, 70))
    assert second.refusal is None
    assert second.standings[0].remaining == 0
    clock.advance(30)
    limits.settle(second, 120)  # fifty more than was expected
    assert (await take(limits, (TOKENS, 1))).standings[0].remaining == 0
    clock.advance(30)  # the first one's thirty and the seventy expected are old now
    claim = await take(limits, (TOKENS, 50))
    assert (claim.refusal, claim.standings[0].remaining) == (None, 0)


async def test_what_is_settled_after_its_minute_changes_nothing_but_for_what_is_new(limits, clock):
    claim = await take(limits, (TOKENS, 90))
    clock.advance(61)
    other = await take(limits, (TOKENS, 40))
    limits.settle(claim, 10)
    assert (await take(limits, (TOKENS, 60))).refusal is None
    limits.settle(other, 45)
    assert (await take(limits, (TOKENS, 1))).standings[0].remaining == 0


async def test_what_is_undone_was_never_there(limits):
    claim = await take(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 90))
    limits.undo(claim)
    limits.undo(claim)
    claim = await take(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 100))
    assert [standing.remaining for standing in claim.standings] == [1, 2, 0]


async def test_concurrency_ends_with_the_requests_and_not_with_the_minute(limits, clock):
    claims = [await take(limits, (RUNNING, 1)) for _ in range(2)]
    clock.advance(600)
    assert (await take(limits, (RUNNING, 1))).refusal == (RUNNING, None)
    limits.settle(claims[0], 0)
    limits.settle(claims[0], 0)
    assert limits.total(RUNNING) == 1
    assert await admits(limits, (RUNNING, 1))
    assert not await admits(limits, (RUNNING, 1))


async def test_the_standing_says_when_all_is_there_again(limits, clock):
    await take(limits, (REQUESTS, 1))
    clock.advance(15)
    claim = await take(limits, (REQUESTS, 1))
    assert claim.standings == [Standing(REQUESTS, 1, 60)]
    clock.advance(20)
    for _ in range(2):
        claim = await take(limits, (REQUESTS, 1))
    assert claim.standings == [Standing(REQUESTS, 0, 60)]


async def test_windows_of_keys_that_are_gone_take_no_memory(limits, clock):
    for number in range(100):
        await take(limits, (Limit.of(f"key {number}", "requests", 5), 1))
    clock.advance(WINDOW_S)
    await take(limits, (REQUESTS, 1))
    assert len(limits._counts) == 1


@given(ARRIVALS)
async def test_no_window_of_a_minute_ever_holds_more_than_the_limit(arrivals):
    clock = FakeClock()
    limits = LocalLimits(clock)
    admitted: list[tuple[float, int]] = []
    for pause, amount in arrivals:
        clock.advance(pause)
        claim = await take(limits, (TOKENS, amount))
        if claim.refusal is None:
            admitted.append((clock.now(), amount))
            window = sum(each for when, each in admitted if when + WINDOW_S > clock.now())
            assert window <= TOKENS.most
        else:
            # It is refused for a reason: what came within a minute and a grain leaves no room.
            recent = sum(each for when, each in admitted if clock.now() - when < WINDOW_S + GRAIN_S)
            assert recent + amount > TOKENS.most


@given(ARRIVALS, st.integers(1, 100))
async def test_what_waits_as_long_as_it_is_told_is_admitted_and_not_a_moment_before(arrivals, amount):
    clock = FakeClock()
    limits = LocalLimits(clock)
    for pause, each in arrivals:
        clock.advance(pause)
        await take(limits, (TOKENS, each))
    claim = await take(limits, (TOKENS, amount))
    if claim.refusal is None:
        return
    clock.advance(claim.refusal.retry_after_s - 0.001)
    assert not await admits(limits, (TOKENS, amount))
    clock.advance(0.002)
    assert await admits(limits, (TOKENS, amount))


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "settle", "undo"]), st.integers(0, 60), st.sampled_from([0.1, 9.0, 61.0]))
    )
)
async def test_nothing_is_lost_or_counted_twice_in_whatever_order_requests_end(events):
    clock = FakeClock()
    limits = LocalLimits(clock)
    running: list[Claim] = []
    for what, amount, pause in events:
        clock.advance(pause)
        if what == "take":
            claim = await take(limits, (RUNNING, 1), (REQUESTS, 1), (TOKENS, amount))
            if claim.refusal is None:
                running.append(claim)
        elif running:
            claim = running.pop(amount % len(running))
            if what == "settle":
                limits.settle(claim, amount)
            else:
                limits.undo(claim)
        assert limits.total(RUNNING) == len(running) <= RUNNING.most
    for claim in running:
        limits.undo(claim)
    clock.advance(WINDOW_S)
    claim = await take(limits, (RUNNING, 2), (REQUESTS, 3), (TOKENS, 100))
    assert claim.refusal is None
    assert [standing.remaining for standing in claim.standings] == [0, 0, 0]
