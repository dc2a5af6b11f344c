"""Who gets a request: shares, loads, beginnings and keys."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langport.gateway import balance
from langport.gateway.balance import LeastLoaded, PrefixAware, Sticky, Weighted


@dataclass
class Fake:
    name: str
    weight: float = 1.0
    work: float = 0.0

    def load(self):
        return self.work / self.weight


WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(1, 5))
def test_over_each_round_everyone_has_exactly_his_weight(weights, num_rounds):
    candidates = [Fake(str(number), float(weight)) for number, weight in enumerate(weights)]
    strategy = Weighted()
    chosen = Counter(strategy.choose(candidates, b"").name for _ in range(sum(weights) * num_rounds))
    assert chosen == {str(number): weight * num_rounds for number, weight in enumerate(weights)}


@given(WEIGHTS.filter(lambda weights: len(weights) > 1), st.lists(st.booleans(), max_size=30))
def test_those_that_remain_share_by_weight_whatever_came_before(weights, before):
    candidates = [Fake(str(number), float(weight)) for number, weight in enumerate(weights)]
    strategy = Weighted()
    for is_whole in before:
        strategy.choose(candidates if is_whole else candidates[1:], b"")
    total = sum(weights[1:])
    chosen = Counter(strategy.choose(candidates[1:], b"").name for _ in range(total * 100))
    for candidate in candidates[1:]:
        assert abs(chosen[candidate.name] - candidate.weight * 100) <= sum(weights) + 30


def test_a_heavy_one_is_not_asked_in_bursts():
    candidates = [Fake("a", 3.0), Fake("b", 3.0), Fake("c", 1.0)]
    strategy = Weighted()
    order = "".join(strategy.choose(candidates, b"").name for _ in range(14))
    assert "aaa" not in order
    assert "bbb" not in order


def test_the_least_loaded_for_its_weight_is_asked():
    busy, strong = Fake("busy", 1.0, 2.0), Fake("strong", 4.0, 6.0)
    assert LeastLoaded().choose([busy, strong], b"").name == "strong"
    strategy = LeastLoaded()
    idle = [Fake("a", 3.0), Fake("b", 1.0)]
    assert Counter(strategy.choose(idle, b"").name for _ in range(8)) == {"a": 6, "b": 2}


def chat(*texts):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}).encode()


def long(word):
    return f"{word} " * 200


class TestPrefixAware:
    def test_a_conversation_goes_on_where_it_began(self):
        strategy = PrefixAware(2.0)
        candidates = [Fake("a"), Fake("b"), Fake("c")]
        conversations = {word: [long(word)] for word in ("red", "green", "blue", "black", "white")}
        began = {word: strategy.choose(candidates, chat(*texts)).name for word, texts in conversations.items()}
        assert set(began.values()) == {"a", "b", "c"}
        for turn in range(3):
            for word, texts in conversations.items():
                texts += [f"answer {turn}", f"question {turn} " * 20]
                assert strategy.choose(candidates, chat(*texts)).name == began[word]

    def test_the_longest_beginning_decides(self):
        strategy = PrefixAware(2.0)
        a, b = Fake("a"), Fake("b", work=1)
        assert strategy.choose([a, b], chat(long("system"), long("one"))).name == "a"
        a.work, b.work = 9, 0
        assert strategy.choose([a, b], chat(long("system"), long("two"))).name == "b"
        a.work, b.work = 0, 0
        assert strategy.choose([a, b], chat(long("system"), long("one"), "more")).name == "a"
        assert strategy.choose([a, b], chat(long("system"), long("two"), "more")).name == "b"

    def test_one_that_is_far_busier_than_the_least_loaded_is_not_asked(self):
        strategy = PrefixAware(2.0)
        a, b = Fake("a"), Fake("b", work=1)
        body = chat(long("x"))
        assert strategy.choose([a, b], body).name == "a"
        a.work, b.work = 3, 1
        assert strategy.choose([a, b], body).name == "a", "four to two, each counted with one more"
        a.work = 3.1
        assert strategy.choose([a, b], body).name == "b"
        a.work = 0
        assert strategy.choose([a, b], body).name == "b", "now b has it, too, and saw it last"

    def test_one_that_is_lost_is_replaced(self):
        strategy = PrefixAware(2.0)
        a, b = Fake("a"), Fake("b", work=1)
        body = chat(long("x"))
        assert strategy.choose([a, b], body).name == "a"
        assert strategy.choose([b], body).name == "b"

    def test_tools_and_instructions_are_part_of_the_beginning(self):
        strategy = PrefixAware(2.0)
        a, b = Fake("a"), Fake("b")
        bodies = [
            json.dumps({"messages": long("same"), **more}).encode()
            for more in ({"tools": "x"}, {"tools": "y"}, {"system": "x"}, {"instructions": "y"})
        ]
        chosen = [strategy.choose([a, b], body).name for body in bodies]
        assert chosen == ["a", "b", "a", "b"], "nobody has seen them, so they are spread"
        assert [strategy.choose([a, b], body).name for body in bodies] == chosen

    def test_short_ones_go_to_the_least_loaded(self):
        strategy = PrefixAware(2.0)
        assert [strategy.choose([Fake("a"), Fake("b")], chat("hi")).name for _ in range(4)] == ["a", "b", "a", "b"]

    def test_what_is_remembered_is_bounded(self, monkeypatch):
        monkeypatch.setattr(balance, "MAX_REMEMBERED", 50)
        strategy = PrefixAware(2.0)
        for number in range(100):
            strategy.choose([Fake("a"), Fake("b")], chat(long(f"word{number}")))
        assert len(strategy._seen_by) == 50

    @pytest.mark.parametrize("path_field", ["messages", "prompt", "input"])
    def test_a_huge_one_costs_no_more_than_its_beginning(self, path_field):
        body = json.dumps({path_field: "x" * 1_000_000}).encode()
        assert len(list(balance._blocks(body))) == balance.MAX_BLOCKS


KEYS = [f"key-{number}" for number in range(300)]


def owners(candidates):
    strategy = Sticky()
    return {key: strategy.choose(candidates, json.dumps({"prompt_cache_key": key}).encode()).name for key in KEYS}


class TestSticky:
    @given(WEIGHTS.filter(lambda weights: len(weights) > 1), st.data())
    @settings(max_examples=20)
    def test_only_the_lost_ones_share_moves(self, weights, data):
        candidates = [Fake(f"node-{number}", float(weight)) for number, weight in enumerate(weights)]
        lost = data.draw(st.sampled_from(candidates))
        before, after = owners(candidates), owners([each for each in candidates if each is not lost])
        assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == lost.name}

    def test_weights_are_respected(self):
        shares = Counter(owners([Fake("a", 3.0), Fake("b", 1.0)]).values())
        assert 195 <= shares["a"] <= 255

    def test_every_process_agrees(self):
        assert "".join(owners([Fake("a"), Fake("b"), Fake("c")])[key] for key in KEYS[:20]) == "ccacbbaacbbcaaacbacb"

    def test_the_cache_key_goes_before_the_user_and_without_either_load_decides(self):
        candidates = [Fake("a", work=1), Fake("b"), Fake("c", work=1)]
        strategy = Sticky()
        both = json.dumps({"user": "u", "prompt_cache_key": KEYS[0]}).encode()
        assert strategy.choose(candidates, both).name == owners(candidates)[KEYS[0]]
        user = json.dumps({"user": KEYS[0], "prompt_cache_key": None}).encode()
        assert strategy.choose(candidates, user).name == owners(candidates)[KEYS[0]]
        for neither in ({}, {"user": 3}, {"user": ""}):
            assert strategy.choose(candidates, json.dumps(neither).encode()).name == "b"
