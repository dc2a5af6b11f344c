"""Tokens that a sequence will probably go on with, so that one step may confirm several: speculation without a model.

A draft is what followed the last time that the sequence's text ended as it ends now: in the prompt, in the output, or
in the `prediction` that came with the request. The runner computes a draft's tokens beside the last known one, as it
would a piece of a prompt, and the sampler draws each place as it always does; drafts only decide how many places a step
gets to. So a bad draft costs time, never a different answer, and how many tokens are worth drafting is all that is
learnt here: from how often drafts were right, and from what a row more makes a step last.

Sources: speculative decoding, Leviathan et al. 2023; prompt lookup decoding, Saxena 2023; the chains of places are
deflate's (RFC 1951, section 4).
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langport.engine.grammar import Matcher
    from langport.engine.scheduler import ScheduledSequence
    from langport.engine.sequence import Sequence

NGRAM = 3
"""Tokens that have to be the same before a place is looked at."""
MAX_MATCH = 32
"""Tokens before a place that are compared, at most."""
MAX_PLACES = 16
"""Places that are compared, the latest ones."""
SURE_MATCH = 8
"""With so many equal tokens no other place is looked for."""
NUM_TRIALS = 2
"""Drafts from where the text went on last, although it went another way since."""

MATCHES = (NGRAM, 4, 8, 16)
"""Lengths of matches from which on drafts are of another kind: the longer, the likelier to be right."""
FIRST_CHANCES = (0.5, 0.3, 0.5, 0.7, 0.85)
"""How likely each token of these kinds of drafts is right, before anything is known; the first of shorter matches."""
PREDICTED_CHANCES = (0.8, 0.6, 0.8, 0.9, 0.95)
"""The same for drafts from a prediction."""
CONFIDENCE = 4.0
"""How many tokens a first chance counts as much as."""
MEMORY = 0.8
"""Weight of a sequence's earlier drafts against the newest one."""
ENGINE_MEMORY = 0.98
"""The same for those of all sequences together, with which new ones begin."""
RECOVERY = 0.02
"""How far a chance goes back to where it began each time that it was too small to be taken."""

MARGIN = 1.5
"""How many times more than it costs a row has to bring."""
FORCED_MARGIN = 1.0
"""The same for forced text: its rows have to be computed now or later, and what is known of it is sure."""
SURE_SHARE = 0.8
"""So likely are tokens that go on from a forced text better drafted with it than not."""
FIRST_ROW_SHARE = 0.06
"""What one more row adds to a step of one row, before that is known. Source: benchmarks/speculation.py."""
ROW_SHARES = (0.01, 1.0)
"""The least and the most that is believed."""
FIRST_WEIGHT = 64.0
"""What the first share counts as much as: one comparison of two steps eight rows apart."""
ROW_MEMORY = (0.95, 0.99)
"""Weight of earlier steps against a step that teaches something, and one that does not."""
MAX_RATIO = 3.0
"""A step that took so many times longer than expected is not compared with others: something else held it up."""
MAX_CHANGE = 1.25
"""So many times longer than expected such a step is taken for."""
NEWEST_SHARE = 0.1
"""Weight of the newest step in the average."""

_Kind = tuple[bool, int]
"""Whether a draft is from a prediction, and the place of its match among `MATCHES`."""
_FIRST: dict[_Kind, float] = {
    **{(False, number): share for number, share in enumerate(FIRST_CHANCES)},
    **{(True, number): share for number, share in enumerate(PREDICTED_CHANCES)},
}


class Ngrams:
    """Where each n-gram of a growing list of tokens is; what follows it there is known."""

    def __init__(self, tokens: Seq[int]) -> None:
        """`tokens` is kept, not copied: what is added to it is found after the next `update`."""
        self.tokens = tokens
        self._latest: dict[tuple[int, ...], int] = {}
        self._earlier = array("q")
        """By place, the place before it with the same n-gram in front of it; 0: none."""

    def update(self) -> None:
        """Index all places that a token follows."""
        for place in range(len(self._earlier), len(self.tokens)):
            ngram = tuple(self.tokens[place - NGRAM : place]) if place >= NGRAM else ()
            self._earlier.append(self._latest.get(ngram, 0))
            if ngram:
                self._latest[ngram] = place

    def find(self, text: Seq[int], near: int | None) -> tuple[int, int]:
        """The place before which the most tokens are those that `text` ends with, and their number; 0, 0 if none is.

        Among equals the one nearest to `near` counts, or the latest.
        """
        best, longest = 0, 0
        place = self._latest.get(tuple(text[-NGRAM:]), 0) if len(text) >= NGRAM else 0
        for _ in range(MAX_PLACES):
            if place == 0 or longest == MAX_MATCH:
                break
            length = self.match(place, text)
            is_nearer = near is not None and length == longest and abs(place - near) < abs(best - near)
            if length > longest or is_nearer:
                best, longest = place, length
            place = self._earlier[place]
        return best, longest

    def match(self, place: int, text: Seq[int]) -> int:
        """How many tokens before `place` are those that `text` ends with."""
        tokens, length = self.tokens, 0
        most = min(place, len(text), MAX_MATCH) if place <= len(tokens) else 0
        while length < most and tokens[place - 1 - length] == text[-1 - length]:
            length += 1
        return length


class Chance:
    """How likely a token of a draft is right, by those before it."""

    def __init__(self, share: float) -> None:
        self.first = share
        self.right = CONFIDENCE * share
        self.wrong = CONFIDENCE - self.right

    @property
    def share(self) -> float:
        return self.right / (self.right + self.wrong)

    def learn(self, num_right: int, *, is_whole: bool, memory: float) -> None:
        """A draft was right in `num_right` tokens, and wrong in the next one unless that was the whole of it."""
        self.right = memory * self.right + num_right
        self.wrong = memory * self.wrong + (not is_whole)

    def recover(self) -> None:
        """Go back a little to where it began."""
        self.right += RECOVERY * (CONFIDENCE * self.first - self.right)
        self.wrong += RECOVERY * (CONFIDENCE * (1 - self.first) - self.wrong)


class RowCost:
    """What one more row adds to a step, as a share of what a step of one row takes: learnt from steps that differ.

    A processor that waits for the weights computes a few rows more for little; one that is busy computing does not.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds = 0.0
        """Of a step, on average; 0: nothing is measured yet."""
        self._rows = 0.0
        self._last: tuple[int, float] | None = None
        """Rows and seconds of the last step."""
        self._squares = 0.0
        """Of the differences in rows between two steps."""
        self._products = 0.0
        """Of these and the differences in seconds."""

    @contextmanager
    def measure(self, num_rows: int) -> Iterator[None]:
        """Learn from the step inside."""
        begin = self._clock()
        yield
        self.learn(num_rows, self._clock() - begin)

    def learn(self, num_rows: int, seconds: float) -> None:
        if seconds <= 0:
            return
        expected = max(self._seconds + self._row * (num_rows - self._rows), self._seconds / MAX_RATIO) or seconds
        last, self._last = self._last, (num_rows, seconds)
        if not expected / MAX_RATIO < seconds < expected * MAX_RATIO:
            seconds, self._last = expected * (MAX_CHANGE if seconds > expected else 1 / MAX_CHANGE), None
        newest = NEWEST_SHARE if self._seconds else 1.0
        self._seconds += newest * (seconds - self._seconds)
        self._rows += newest * (num_rows - self._rows)
        if last is not None and self._last is not None:
            difference = num_rows - last[0]
            memory = ROW_MEMORY[0 if difference else 1]
            self._squares = memory * self._squares + difference**2
            self._products = memory * self._products + difference * (seconds - last[1])

    @property
    def share(self) -> float:
        if not self._seconds:
            return FIRST_ROW_SHARE
        one = self._seconds - self._row * (self._rows - 1)
        least, most = ROW_SHARES
        return min(most, max(least, self._row / one)) if one > 0 else most

    @property
    def _row(self) -> float:
        """Seconds of one more row."""
        first = FIRST_ROW_SHARE * self._seconds / (1 + FIRST_ROW_SHARE * (self._rows - 1))
        return (self._products + FIRST_WEIGHT * first) / (self._squares + FIRST_WEIGHT)


@dataclass
class Draft:
    """Tokens that may follow a sequence's last one."""

    tokens: list[int]
    chance: Chance
    """Of each of them."""
    first_chance: Chance
    """The same over all sequences."""
    is_predicted: bool = False
    """They are from the request's prediction."""
    num_accepted: int = 0
    """How many of them the model drew, known when the step is over."""

    margin = MARGIN

    def share(self, number: int) -> float:
        """How likely the token with this number is right if those before it are."""
        return self.chance.share

    def learn(self) -> None:
        """The step is over."""
        is_whole = self.num_accepted == len(self.tokens)
        self.chance.learn(self.num_accepted, is_whole=is_whole, memory=MEMORY)
        self.first_chance.learn(self.num_accepted, is_whole=is_whole, memory=ENGINE_MEMORY)

    def drop(self) -> None:
        """It was not worth a row."""
        self.chance.recover()


@dataclass
class ForcedDraft:
    """Tokens of a text that a grammar leaves no choice about; how they are spelled is learnt in `engine.forced`."""

    tokens: list[int]
    shares: list[float]
    is_predicted: bool = False
    num_accepted: int = 0

    margin = FORCED_MARGIN

    def share(self, number: int) -> float:
        return self.shares[number]

    def learn(self) -> None:
        """The guide does, when it sees what was drawn."""

    def drop(self) -> None:
        """The guide learns from what is drawn without it, too."""


AnyDraft = Draft | ForcedDraft


class Lookup:
    """What one sequence's drafts are looked up in, and where its text goes on."""

    def __init__(self, sequence: Sequence, chances: dict[_Kind, Chance]) -> None:
        """`chances`: of the sequence's own drafts, by their kinds."""
        self.sequence = sequence
        self.chances = chances
        own, predicted = Ngrams(sequence.tokens), Ngrams(sequence.prediction)
        texts = (own, Ngrams(sequence.encoder_tokens or ()), predicted)
        self.texts = [text for text in texts if text.tokens]
        self.predicted = predicted
        self.source, self.place = (predicted, 0) if sequence.prediction else (own, 0)
        """What the next token was expected to be, `num_known` tokens ago."""
        self.num_known = sequence.num_prompt_tokens
        self.num_trials = NUM_TRIALS if sequence.prediction else 0

    def find(self) -> int:
        """Look for where the text goes on, which `source` and `place` then say; how many tokens match, -1: too few."""
        text = self.sequence.tokens
        for source in self.texts:
            source.update()
        self.place += len(text) - self.num_known
        self.num_known = len(text)
        length = self.source.match(self.place, text)
        if length < SURE_MATCH:
            for source in self.texts:
                near = self.place if source is self.source else None
                place, found = source.find(text, near)
                if found > length:
                    self.source, self.place, length = source, place, found
        if length >= SURE_MATCH:
            self.num_trials = NUM_TRIALS
        elif length < NGRAM:
            if self.num_trials == 0:
                return -1
            self.num_trials -= length == 0
        return length

    def following(self, count: int) -> list[int]:
        """Up to `count` tokens from the place on. The sequence's own text goes on with the draft itself."""
        found = list(self.source.tokens[self.place : self.place + count])
        if found and self.source.tokens is self.sequence.tokens:
            period = len(found)
            while len(found) < count:
                found.append(found[-period])
        return found


class Drafter:
    """Decides what is drafted for which of the decoding sequences of a step, and learns from what came of it."""

    def __init__(
        self,
        max_tokens: int,
        *,
        max_model_len: int,
        end_token_ids: Collection[int] = (),
        trained_length: int | None = None,
        cost: RowCost | None = None,
    ) -> None:
        """At most `max_tokens` for a sequence in a step; none past `max_model_len`, across `trained_length` (see
        `Scheduler`), or from one of `end_token_ids` on."""
        self.max_tokens = max_tokens
        self.max_model_len = max_model_len
        self.end_token_ids = frozenset(end_token_ids)
        self.trained_length = trained_length
        self.cost = cost or RowCost()
        self.num_drafted = 0
        """Tokens that were computed as drafts."""
        self.num_accepted = 0
        """Those of them that the model drew."""
        self._least = {kind: share / 2 for kind, share in _FIRST.items()}
        """Chances that new sequences begin with at least, whatever others had."""
        self._chances = {kind: Chance(share) for kind, share in _FIRST.items()}
        """Over all sequences."""

    def draft(self, sequences: Seq[Sequence], room: int) -> list[AnyDraft | None]:
        """Drafts for decoding sequences, `room` tokens of them at most."""
        drafts: list[AnyDraft | None] = [None] * len(sequences)
        room = min(room, self.max_tokens * len(sequences))
        if room <= 0:
            return drafts
        is_worth_a_look = _is_worth(1.0 / MARGIN, self.cost.share, len(sequences), len(sequences))
        for number, sequence in enumerate(sequences):
            if sequence.matcher is not None or is_worth_a_look:
                most = min(self._most(sequence), room)
                if most > 0:
                    drafts[number] = self._find_either(sequence, most, is_worth_a_look)
        if any(drafts):
            self._cut(drafts, room)
        return drafts

    def _cut(self, drafts: list[AnyDraft | None], room: int) -> None:
        """Leave of each draft what is worth its rows."""
        counts = self._counts(drafts, room)
        for number, draft in enumerate(drafts):
            if draft is not None:
                del draft.tokens[counts[number] :]
                if not draft.tokens:
                    draft.drop()
                    drafts[number] = None

    def learn(self, draft: AnyDraft) -> None:
        """A step with a draft is over."""
        self.num_drafted += len(draft.tokens)
        self.num_accepted += draft.num_accepted
        draft.learn()

    @contextmanager
    def measure(self, step: Seq[ScheduledSequence]) -> Iterator[None]:
        """Learn from the step inside what rows cost, if all of it is decoding."""
        if all(scheduled.num_tokens == 1 for scheduled in step):
            with self.cost.measure(sum(scheduled.num_rows for scheduled in step)):
                yield
        else:
            yield

    def _most(self, sequence: Sequence) -> int:
        """So many tokens of a draft could be of use: the last token of an answer is drawn from the one before it."""
        sampling, length = sequence.sampling, len(sequence.tokens)
        if sampling.is_beam:
            return 0
        most = min(
            self.max_tokens, sampling.max_tokens - sequence.num_output_tokens - 1, self.max_model_len - length - 1
        )
        if self.trained_length is not None and length <= self.trained_length:
            most = min(most, self.trained_length - length)
        return most

    def _find_either(self, sequence: Sequence, most: int, looks_up: bool) -> AnyDraft | None:
        """What the grammar forces, unless the text was there before, and is as sure to go on from there."""
        forced = None if sequence.matcher is None else self._find_forced(sequence, sequence.matcher, most)
        found = self._find(sequence, most) if looks_up else None
        if forced is None or found is None:
            return forced or found
        goes_on = len(found.tokens) > len(forced.tokens) and found.tokens[: len(forced.tokens)] == forced.tokens
        return found if goes_on and found.share(0) >= SURE_SHARE else forced

    def _find_forced(self, sequence: Sequence, matcher: Matcher, most: int) -> ForcedDraft | None:
        tokens, shares = matcher.forced(most)
        tokens = self._up_to_end(sequence, tokens) if tokens else tokens
        return ForcedDraft(tokens, shares) if tokens else None

    def _find(self, sequence: Sequence, most: int) -> Draft | None:
        if sequence.lookup is None:
            chances = {kind: Chance(max(c.share, self._least[kind])) for kind, c in self._chances.items()}
            sequence.lookup = Lookup(sequence, chances)
        lookup = sequence.lookup
        matcher = sequence.matcher if sequence.matcher is not None and sequence.matcher.has_begun else None
        length = lookup.find()
        if length < 0:
            return None
        tokens = self._up_to_end(sequence, lookup.following(most))
        if matcher is not None:
            tokens = tokens[: matcher.num_allowed(tokens)]
        return self._draft(lookup, (lookup.source is lookup.predicted, bisect_right(MATCHES, length)), tokens)

    def _draft(self, lookup: Lookup, kind: _Kind, tokens: list[int]) -> Draft | None:
        return Draft(tokens, lookup.chances[kind], self._chances[kind], is_predicted=kind[0]) if tokens else None

    def _up_to_end(self, sequence: Sequence, tokens: list[int]) -> list[int]:
        """The tokens before the first one that ends the answer: nothing is drawn after it."""
        ends = self.end_token_ids.union(sequence.sampling.stop_token_ids)
        for number, token in enumerate(tokens):
            if token in ends:
                return tokens[:number]
        return tokens

    def _counts(self, drafts: Seq[AnyDraft | None], room: int) -> list[int]:
        """How many tokens of each draft to compute: the likeliest ones first, as long as they are worth a row."""
        counts = [0] * len(drafts)
        heap = [
            (-draft.share(0) / draft.margin, draft.share(0), number)
            for number, draft in enumerate(drafts)
            if draft is not None
        ]
        heapify(heap)
        share, num_rows, num_tokens = self.cost.share, len(drafts), float(len(drafts))
        while heap and num_rows < len(drafts) + room:
            negative, chance, number = heappop(heap)
            if not _is_worth(-negative, share, num_rows, num_tokens):
                break
            counts[number] += 1
            num_rows += 1
            num_tokens += chance
            draft = drafts[number]
            assert draft is not None
            if counts[number] < len(draft.tokens):
                chance *= draft.share(counts[number])
                heappush(heap, (-chance / draft.margin, chance, number))
        return counts


def _is_worth(chance: float, share: float, num_rows: int, num_tokens: float) -> bool:
    """Whether one more row, right with this chance, makes a step of `num_rows` that brings `num_tokens` more worth it.

    `share`: see `RowCost`. A chance divided by a margin has to bring as many times more than the row costs.
    """
    return chance * (1 + share * (num_rows - 1)) > share * num_tokens
