"""Counter-based random numbers: a function of a key and a counter, with no state to share or to lose.

A sequence's n-th draw is the same alone, in a batch, and after preemption.
Source: SplitMix64, Steele, Lea and Flood 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(key: int, counter: int) -> int:
    """64 well-mixed bits for any two integers."""
    return int(_finalize(np.array([(key + (counter + 1) * _GAMMA) & _MASK], dtype=np.uint64))[0])


def uniform(keys: list[int], counters: list[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per pair, with 53 random bits."""
    state = np.array(keys, dtype=np.uint64) + (np.array(counters, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    return (_finalize(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalize(state: NDArray[Any]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)), dtype=np.uint64)
