"""Stop strings in a text that arrives in pieces.

The result does not depend on how the text is cut: it is what searching the whole text would give. The match
that begins first wins; of two that begin at the same place the shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class StopStrings:
    """Let text through up to the first stop string, holding back only what could still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted({stop for stop in stops if stop}, key=len)
        self._longest = len(self._stops[-1]) if self._stops else 0
        first_characters = "".join(sorted({re.escape(stop[0]) for stop in self._stops}))
        self._beginning = re.compile(f"[{first_characters}]") if self._stops else None
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that was found, or None so far."""
        return self._matched

    def push(self, text: str) -> str:
        """Add text; return what may be shown now. After a match nothing more is shown."""
        if self._beginning is None:
            return text
        if self._matched is not None:
            return ""
        if not self._held and self._beginning.search(text) is None:
            return text
        text = self._held + text
        open_at = self._first_open_start(text)
        position, stop = self._find(text)
        if stop is not None and position <= open_at:
            return self._finish(text, position, stop)
        # A match further on waits while a longer stop string that began before it can still complete.
        self._held = text[open_at:]
        return text[:open_at]

    def flush(self) -> str:
        """The text has ended: return what was held back, up to a stop string in it."""
        text, self._held = self._held, ""
        position, stop = self._find(text)
        return text if stop is None else self._finish(text, position, stop)

    def _finish(self, text: str, position: int, stop: str) -> str:
        self._matched = stop
        self._held = ""
        return text[:position]

    def _find(self, text: str) -> tuple[int, str | None]:
        """The earliest complete match; len(text) and None when there is none."""
        best, found = len(text), None
        for stop in self._stops:
            position = text.find(stop, 0, best + len(stop) - 1)
            if position >= 0:
                best, found = position, stop
        return best, found

    def _first_open_start(self, text: str) -> int:
        """Where the first stop string begins that only the text to come can complete; else len(text)."""
        assert self._beginning is not None
        for match in self._beginning.finditer(text, max(0, len(text) - self._longest + 1)):
            start = match.start()
            rest = text[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return len(text)
