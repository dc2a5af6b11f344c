"""Which of several deployments gets a request. Knows names, weights and loads, and nothing of HTTP.

Sources: smooth weighted round robin as in nginx; rendezvous hashing, Thaler and Ravishankar 1998, with weights as in
Schindelhauer and Schomaker 2005.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from langport.gateway.envelope import conversation, sticky_key
from langport.settings.tree import RouteSettings

BLOCK_BYTES = 256
"""Beginnings are compared in blocks of so many bytes, some sixty tokens of English."""
MAX_BLOCKS = 128
"""What two conversations share beyond 32 KiB makes no difference."""
MAX_REMEMBERED = 32_768
"""Blocks whose deployment is remembered, some 4 MB."""


class Candidate(Protocol):
    """A deployment that may be asked."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    def load(self) -> float:
        """What it is working on, per unit of its weight."""
        ...


C = TypeVar("C", bound=Candidate)


class Strategy(Protocol):
    """A way to choose. Candidates are never none, and may be others at every call."""

    def choose(self, candidates: Sequence[C], body: bytes) -> C: ...


class Weighted:
    """Each its share, as evenly spread as can be."""

    def __init__(self) -> None:
        self._credits: dict[str, float] = {}

    def choose(self, candidates: Sequence[C], body: bytes) -> C:
        if len(candidates) == 1:
            return candidates[0]
        for candidate in candidates:
            self._credits[candidate.name] = self._credits.get(candidate.name, 0.0) + candidate.weight
        chosen = max(candidates, key=lambda candidate: self._credits[candidate.name])
        self._credits[chosen.name] -= sum(candidate.weight for candidate in candidates)
        return chosen


class LeastLoaded:
    """Who has the least to do for its weight; by weight where several have."""

    def __init__(self) -> None:
        self._among_equals = Weighted()

    def choose(self, candidates: Sequence[C], body: bytes) -> C:
        loads = [candidate.load() for candidate in candidates]
        least = min(loads)
        equals = [candidate for candidate, load in zip(candidates, loads, strict=True) if load == least]
        return self._among_equals.choose(equals, body)


class PrefixAware:
    """Who saw the conversation's beginning last, and has it cached, unless that one is far busier than the others."""

    def __init__(self, load_factor: float) -> None:
        """`load_factor`: how many times the least loaded one's work, each counted with one more, is too much."""
        self._load_factor = load_factor
        self._least_loaded = LeastLoaded()
        self._seen_by: OrderedDict[int, str] = OrderedDict()

    def choose(self, candidates: Sequence[C], body: bytes) -> C:
        blocks = list(_blocks(body))
        chosen = self._familiar(candidates, blocks) or self._least_loaded.choose(candidates, body)
        for block in blocks:
            self._seen_by[block] = chosen.name
            self._seen_by.move_to_end(block)
        while len(self._seen_by) > MAX_REMEMBERED:
            self._seen_by.popitem(last=False)
        return chosen

    def _familiar(self, candidates: Sequence[C], blocks: Sequence[int]) -> C | None:
        by_name = {candidate.name: candidate for candidate in candidates}
        names = (self._seen_by.get(block) for block in reversed(blocks))
        familiar = next((by_name[name] for name in names if name in by_name), None)
        if familiar is None:
            return None
        limit = self._load_factor * (min(candidate.load() for candidate in candidates) + 1)
        return familiar if familiar.load() + 1 <= limit else None


class Sticky:
    """The same one for the same `prompt_cache_key` or `user`; when it is lost, only its own share moves."""

    def __init__(self) -> None:
        self._without_key = LeastLoaded()

    def choose(self, candidates: Sequence[C], body: bytes) -> C:
        key = sticky_key(body)
        if key is None:
            return self._without_key.choose(candidates, body)
        return max(candidates, key=lambda candidate: _rendezvous(key, candidate.name, candidate.weight))


def _blocks(body: bytes) -> Iterator[int]:
    """A number for each whole block of the conversation, which depends on all that comes before it."""
    number = 0
    num_blocks = 0
    for part in conversation(body, BLOCK_BYTES * MAX_BLOCKS):
        for end in range(BLOCK_BYTES, len(part) + 1, BLOCK_BYTES):
            number = hash((number, part[end - BLOCK_BYTES : end]))
            yield number
            num_blocks += 1
            if num_blocks == MAX_BLOCKS:
                return
        number = hash((number, part[len(part) - len(part) % BLOCK_BYTES :]))


def _rendezvous(key: str, name: str, weight: float) -> float:
    digest = blake2b(f"{len(name)} {name} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)  # between 0 and 1
    return -weight / math.log(share)


STRATEGIES: dict[str, Callable[[RouteSettings], Strategy]] = {
    "weighted": lambda settings: Weighted(),
    "least-loaded": lambda settings: LeastLoaded(),
    "prefix-aware": lambda settings: PrefixAware(settings.load_factor),
    "sticky": lambda settings: Sticky(),
}
"""By the names that the settings use."""
