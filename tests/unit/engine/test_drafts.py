"""What is drafted: where texts go on, how many tokens are worth a row, and what is learnt from drafts and steps."""

from __future__ import annotations

import random
from typing import Any

import pytest

from langport.engine.drafts import FIRST_ROW_SHARE, MAX_MATCH, Chance, Draft, Drafter, Lookup, Ngrams, RowCost
from langport.engine.sequence import Sequence
from langport.types import GenerateRequest, SamplingParams


class Costs(RowCost):
    """Rows cost what the test says."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.fixed = share

    @property
    def share(self) -> float:
        return self.fixed


def sequence(prompt: list[int], output: list[int] = [], prediction: list[int] = [], **sampling: Any) -> Sequence:  # noqa: B006
    params = SamplingParams(**{"max_tokens": 1000, **sampling})
    request = GenerateRequest("r", prompt, params, prediction=prediction)
    made = Sequence(request, 0, 0, tokens=list(prompt))
    for token in output:
        made.append(token)
    return made


def drafter(share: float = 0.0, max_tokens: int = 15, **more: Any) -> Drafter:
    return Drafter(max_tokens, cost=Costs(share), **{"max_model_len": 1000, **more})


def drafted(subject: Drafter, *sequences: Sequence, room: int = 100) -> list[list[int]]:
    return [[] if draft is None else draft.tokens for draft in subject.draft(sequences, room)]


def test_places_are_those_with_the_longest_match_in_front() -> None:
    rng = random.Random(0)
    text = [rng.randrange(4) for _ in range(300)]
    index = Ngrams(text)
    for cut in (1, 5, 120, 300):
        index.update()
        ending = text[:cut]
        place, length = index.find(ending, None)
        if cut < 3:
            assert (place, length) == (0, 0)
            continue
        assert text[place - length : place] == ending[cut - length :]
        assert length in (place, cut, MAX_MATCH) or text[place - length - 1] != ending[cut - length - 1]


def test_what_is_added_is_found_after_an_update_and_the_end_itself_is_no_place() -> None:
    text = [1, 2, 3]
    index = Ngrams(text)
    index.update()
    assert index.find(text, None) == (0, 0)
    text += [9, 1, 2, 3]
    index.update()
    assert index.find(text, None) == (3, 3)


def test_among_equals_the_latest_or_the_nearest_counts() -> None:
    text = [7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2, 3]
    index = Ngrams(text)
    index.update()
    assert index.find(text, None) == (9, 3)
    assert index.find(text, near=3) == (4, 3)


def test_a_draft_is_what_followed_the_same_words() -> None:
    prompt = [*range(100, 130), 5, 6, 7]
    assert drafted(drafter(), sequence(prompt, [110, 111, 112])) == [[*range(113, 128)]]
    assert drafted(drafter(), sequence(prompt, [110, 111])) == [[]]
    assert drafted(drafter(max_tokens=4), sequence(prompt, [110, 111, 112])) == [[113, 114, 115, 116]]


def test_a_repetition_goes_on_for_ever() -> None:
    assert drafted(drafter(), sequence([9], [1, 2, 3, 1, 2, 3])) == [[1, 2, 3] * 5]


def test_a_prediction_is_followed_from_its_beginning_and_after_a_word_that_differs() -> None:
    subject, text = drafter(), [*range(100, 140)]
    asked = sequence([5, 6, 7], [100], prediction=text)
    assert drafted(subject, asked) == [text[1:16]]
    for token in (*text[1:4], 77):  # 104 became 77
        asked.append(token)
    [draft] = subject.draft([asked], 100)
    assert draft is not None
    assert draft.tokens == text[5:20]
    assert draft.is_predicted
    # Two words more: nothing says any longer where the text is, until three in a row are the same.
    asked.append(78)
    assert drafted(subject, asked)[0]
    asked.append(79)
    assert drafted(subject, asked) == [[]]
    for token in text[20:23]:
        asked.append(token)
    assert drafted(subject, asked) == [text[23:38]]


def test_the_input_of_an_encoder_is_looked_up_too() -> None:
    request = GenerateRequest("r", [5], SamplingParams(max_tokens=100))
    asked = Sequence(request, 0, 0, tokens=[0], encoder_tokens=[*range(100, 120), 2])
    for token in (103, 104, 105):
        asked.append(token)
    assert drafted(drafter(end_token_ids=(2,)), asked) == [[*range(106, 120)]]


def test_no_draft_goes_past_the_end() -> None:
    prompt, output = [*range(100, 130), 5, 6, 7], [110, 111, 112]
    assert drafted(drafter(), sequence(prompt, output, max_tokens=6)) == [[113, 114]]
    assert drafted(drafter(), sequence(prompt, output, max_tokens=4)) == [[]]
    assert drafted(drafter(max_model_len=40), sequence(prompt, output)) == [[113, 114, 115]]
    assert drafted(drafter(trained_length=38), sequence(prompt, output)) == [[113, 114]]
    assert drafted(drafter(trained_length=30), sequence(prompt, output)) == [[*range(113, 128)]]
    assert drafted(drafter(end_token_ids=(115,)), sequence(prompt, output)) == [[113, 114]]
    assert drafted(drafter(), sequence(prompt, output, stop_token_ids=(113,))) == [[]]
    assert drafted(drafter(), sequence(prompt, output, is_beam=True)) == [[]]


def test_rows_go_to_the_likeliest_tokens_as_far_as_there_is_room_and_worth() -> None:
    sure = sequence([*range(100, 130)], [*range(100, 120)])
    unsure = sequence([*range(200, 230)], [203, 204, 205])
    alone = len(drafted(drafter(0.1), unsure)[0])
    likely, unlikely = map(len, drafted(drafter(0.1), sure, unsure))
    assert likely > alone >= unlikely
    assert sum(map(len, drafted(drafter(0.01), sure, unsure, room=7))) == 7
    assert drafted(drafter(0.01), sure, room=0) == [[]]
    assert drafted(drafter(1.0), sure) == [[]]
    # The more sequences, the more a step brings for its time without any draft.
    crowd = [sequence([*range(100, 130)], [*range(100, 120)]) for _ in range(40)]
    assert not any(drafted(drafter(0.1), *crowd))
    assert any(drafted(drafter(0.01), *crowd))


def fail(subject: Drafter, asked: Sequence) -> int:
    """One step in which nothing of a draft is right; how long it was."""
    [draft] = subject.draft([asked], 100)
    if draft is None:
        return 0
    subject.learn(draft)
    return len(draft.tokens)


def test_a_text_that_never_goes_on_as_it_did_costs_next_to_nothing() -> None:
    rng = random.Random(0)
    subject, asked = drafter(0.06), sequence([1, 2, 3, 4])
    num_drafted = num_steps = 0
    for _ in range(400):  # the same three words again and again, and something else after them each time
        num_drafted += fail(subject, asked)
        for token in (rng.randrange(100, 10**6), 1, 2, 3):
            asked.append(token)
            num_steps += 1
    assert 0.06 * num_drafted < 0.01 * num_steps
    # Others begin with what this one has shown, but not without hope.
    fresh = sequence([1, 2, 3, 4], [9, 1, 2, 3])
    assert 0 < fail(subject, fresh) <= fail(drafter(0.06), sequence([1, 2, 3, 4], [9, 1, 2, 3]))


def test_a_chance_that_is_not_taken_comes_back() -> None:
    subject, asked = drafter(0.09), sequence([1, 2, 3, 4, 5, 6], [1, 2, 3])
    for _ in range(20):
        fail(subject, asked)
    assert fail(subject, asked) == 0
    tried = [fail(subject, asked) for _ in range(300)]
    assert 0 < sum(map(bool, tried)) < 30


def test_right_drafts_make_longer_ones() -> None:
    subject = drafter(0.1)
    text = [*range(100, 400)]
    asked = sequence(text, text[:3])
    lengths = []
    while len(asked.tokens) < 500:
        [draft] = subject.draft([asked], 100)
        assert draft is not None
        lengths.append(len(draft.tokens))
        draft.num_accepted = len(draft.tokens)
        subject.learn(draft)
        for _ in range(draft.num_accepted + 1):
            asked.append(text[len(asked.tokens) - 300])
    assert lengths[0] < lengths[-1]
    assert (subject.num_drafted, subject.num_accepted) == (sum(lengths), sum(lengths))


def test_chances_are_learnt() -> None:
    chance = Chance(0.5)
    for _ in range(50):
        chance.learn(9, is_whole=False, memory=0.8)
    assert chance.share == pytest.approx(0.9, abs=0.01)
    for _ in range(500):
        chance.recover()
    assert chance.share == pytest.approx(0.5, abs=0.01)


def test_what_rows_cost_is_learnt_from_steps_that_differ() -> None:
    rng = random.Random(0)
    cost = RowCost()
    assert cost.share == FIRST_ROW_SHARE
    for _ in range(200):
        cost.learn(5, 0.05)
    assert cost.share == pytest.approx(FIRST_ROW_SHARE, rel=0.05)
    for _ in range(300):
        rows = rng.choice([1, 4, 16])
        cost.learn(rows, (0.04 + 0.01 * rows) * rng.uniform(0.95, 1.05) * rng.choice([*[1] * 19, 30]))
    assert cost.share == pytest.approx(0.2, rel=0.4)
    for _ in range(1000):  # without anything new it is forgotten
        cost.learn(1, 0.05)
    assert cost.share == pytest.approx(FIRST_ROW_SHARE, rel=0.2)


def test_a_clock_that_stands_still_teaches_nothing() -> None:
    cost = RowCost(lambda: 1.0)
    with cost.measure(3):
        pass
    assert cost.share == FIRST_ROW_SHARE


def test_a_lookup_that_was_not_asked_for_a_while_finds_its_place_again() -> None:
    text = [*range(100, 160)]
    asked = sequence(text)
    lookup = Lookup(asked, {})
    assert lookup.find() == -1
    for token in text[:40]:
        asked.append(token)
    assert lookup.find() == MAX_MATCH
    assert lookup.following(3) == [140, 141, 142]


def test_drafts_say_whether_they_are_predicted() -> None:
    found = drafter().draft([sequence([*range(100, 130)], [110, 111, 112])], 100)
    assert [draft.is_predicted for draft in found if isinstance(draft, Draft)] == [False]


class Forced:
    """A grammar that leaves no choice; it allows what the lookup finds."""

    has_begun = True

    def __init__(self, tokens: list[int], share: float) -> None:
        self.found = tokens, [share] * len(tokens)

    def forced(self, most: int) -> tuple[list[int], list[float]]:
        return self.found[0][:most], self.found[1][:most]

    def num_allowed(self, tokens: list[int]) -> int:
        return len(tokens)


def bound(tokens: list[int], share: float = 0.97, output: list[int] = [], **sampling: Any) -> Sequence:  # noqa: B006
    made = sequence([*range(100, 130)], output, **sampling)
    made.matcher = Forced(tokens, share)  # type: ignore[assignment]
    return made


def test_forced_text_is_drafted_in_any_company() -> None:
    assert drafted(drafter(0.1), bound([7, 8, 9])) == [[7, 8, 9]]
    crowd = [bound([7, 8, 9]) for _ in range(40)]
    assert drafted(drafter(0.1), *crowd, room=200) == [[7, 8, 9]] * 40
    assert sum(map(len, drafted(drafter(0.1), *crowd, room=50))) == 50
    assert not any(drafted(drafter(0.1), *(bound([7, 8, 9], 0.6) for _ in range(40))))
    assert drafted(drafter(0.1), bound([7, 8, 9], max_tokens=2), bound([7, 8], is_beam=True)) == [[7], []]
    assert drafted(drafter(0.1, end_token_ids=(8,)), bound([7, 8, 9])) == [[7]]


def test_forced_text_goes_before_what_is_looked_up_unless_that_goes_on() -> None:
    seen, long_seen = [103, 104, 105], [*range(100, 120)]
    assert drafted(drafter(0.0), bound([7, 8], output=long_seen)) == [[7, 8]]
    assert drafted(drafter(0.0), bound([106, 107], output=seen)) == [[106, 107]]
    assert len(drafted(drafter(0.0), bound([120, 121], output=long_seen))[0]) > 8
    assert len(drafted(drafter(0.0), bound([], output=seen))[0]) > 8


def test_forced_drafts_are_counted() -> None:
    subject = drafter(0.01)
    [draft] = subject.draft([bound([7, 8, 9])], 100)
    assert draft is not None
    draft.num_accepted = 2
    subject.learn(draft)
    assert (subject.num_drafted, subject.num_accepted) == (3, 2)
