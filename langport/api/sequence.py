"""One sequence's tokens become the text, the log-probabilities and the end that the client sees.

Text may be held back (half a character, the beginning of a stop string); a token's log-probability then waits
and leaves with the first character that the token shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

import msgspec

from langport.text.detokenizer import Detokenizer
from langport.text.stop import StopStrings
from langport.text.tokenizer import Tokenizer
from langport.types import Delta, FinishReason, TokenLogprob
from langport.wire.generation import PromptLogprob, PromptLogprobs, ScoredToken, finite, token_name


class TextOptions(msgspec.Struct, frozen=True):
    """How tokens become text, the same for all sequences of a request."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Show the stop string that was found."""
    skip_special_tokens: bool = True
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that are shown even so, since what reads the text looks for them."""
    min_tokens: int = 0
    """Stop strings are not looked for in so many first tokens."""
    has_logprobs: bool = False
    lists_hidden: bool = False
    """Give log-probabilities of tokens without text too, the end token and special ones.

    With an echoed prompt, whose special tokens are listed as well: evaluations count the tokens of the answer.
    """
    counts_offsets: bool = False
    """Remember where in the text each token begins, for `SequenceText.num_tokens_before`."""

    def is_hidden(self, token_id: int, tokenizer: Tokenizer) -> bool:
        return self.skip_special_tokens and token_id in tokenizer.special_ids and token_id not in self.shown_ids

    def detokenizer(self, tokenizer: Tokenizer) -> Detokenizer:
        return Detokenizer(tokenizer, skip_special_tokens=self.skip_special_tokens, shown_ids=self.shown_ids)


class TextEvent(msgspec.Struct):
    """New text of one choice."""

    choice: int
    text: str
    tokens: list[ScoredToken] | None = None
    """The tokens that begin in this text, when log-probabilities are wanted."""
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    """The one that ended it."""


class SequenceText:
    """Feed it a sequence's deltas; it gives what may be shown."""

    def __init__(
        self,
        choice: int,
        tokenizer: Tokenizer,
        options: TextOptions,
        *,
        before: Sequence[int] = (),
        offset: int = 0,
    ) -> None:
        """`before`: the tokens that the text continues, since its first word may begin with a space.

        `offset`: characters of the choice that stand before this text.
        """
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0
        """Generated tokens up to the end, the stop token or the one that completed a stop string included."""
        self.logprob_sum = 0.0
        """Of the counted tokens, when the engine gave log-probabilities."""
        self._choice = choice
        self._tokenizer = tokenizer
        self._options = options
        self._detokenizer = _detokenizer_after(before, tokenizer, options)
        self._stops = StopStrings(options.stop) if options.stop else None
        self._offset = offset
        self._num_decoded = 0
        """Characters that came out of the detokenizer."""
        self._num_shown = 0
        self._waiting: deque[ScoredToken] = deque()
        self._beginnings: list[int] = []

    @property
    def found_stop(self) -> bool:
        """A stop string ended it; the engine does not know yet."""
        return self._stops is not None and self._stops.matched is not None

    def num_tokens_before(self, offset: int) -> int:
        """How many tokens begin in so many first characters; needs `TextOptions.counts_offsets`."""
        return bisect_left(self._beginnings, offset)

    def take(self, delta: Delta) -> TextEvent | None:
        """The event for new tokens, or None when there is nothing to show."""
        if self.finish_reason is not None:
            return None
        shown_ids = delta.token_ids[:-1] if delta.finish_reason == "stop" else delta.token_ids
        if self._stops is None and not self._options.has_logprobs and not self._options.counts_offsets:
            text = self._detokenizer.push(shown_ids)
            self._count(delta, 0, len(delta.token_ids))
        else:
            text = self._take_each(shown_ids, delta)
        if self.found_stop:
            return self._end(text, "stop")
        if delta.finish_reason is None:
            event = self._event(text)
            return event if event.text or event.tokens else None
        text += self._pass(self._detokenizer.flush())
        if self._stops is not None and not self.found_stop:
            text += self._stops.flush()
        return self._end(text, "stop" if self.found_stop else delta.finish_reason)

    def _take_each(self, shown_ids: Sequence[int], delta: Delta) -> str:
        """Token by token, since it matters which one completes a stop string and which text is whose."""
        text = ""
        for position, token_id in enumerate(shown_ids):
            start = self._num_decoded
            if self._options.counts_offsets:
                self._beginnings.append(start)
            piece = self._detokenizer.push((token_id,))
            if self._options.has_logprobs and delta.logprobs is not None:
                self._wait(delta.logprobs[position], start, piece)
            self._count(delta, position, position + 1)
            text += self._pass(piece)
            if self.found_stop:
                return text
        if self._options.lists_hidden and delta.logprobs is not None:
            for entry in delta.logprobs[len(shown_ids) :]:
                self._waiting.append(score(self._tokenizer, entry, self._offset + self._num_decoded))
        self._count(delta, len(shown_ids), len(delta.token_ids))
        return text

    def _pass(self, piece: str) -> str:
        """What of newly decoded text may be shown."""
        self._num_decoded += len(piece)
        if self._stops is None or self.num_tokens <= self._options.min_tokens:
            return piece
        return self._stops.push(piece)

    def _count(self, delta: Delta, begin: int, end: int) -> None:
        self.num_tokens += end - begin
        if delta.logprobs is not None:
            self.logprob_sum += sum(entry.logprob for entry in delta.logprobs[begin:end])

    def _wait(self, entry: TokenLogprob, start: int, piece: str) -> None:
        """Keep a token's log-probability until its text is shown."""
        if self._options.is_hidden(entry.token_id, self._tokenizer) and not self._options.lists_hidden:
            return
        token = score(self._tokenizer, entry, self._offset + start)
        own = token.text.decode("utf-8", "ignore")
        if own and piece.endswith(own):  # what was held back before it is not its own
            token.offset += len(piece) - len(own)
        elif start == 0 and token.text == b" " + piece.encode():  # a text does not begin with its first word's space
            token.text = token.text[1:]
        self._waiting.append(token)

    def _end(self, text: str, reason: FinishReason) -> TextEvent:
        self.finish_reason = reason
        if self.found_stop:
            if self._options.include_stop and self._stops is not None:
                text += self._stops.matched or ""
        else:
            self._num_shown = self._num_decoded + 1  # nothing is held back any more
        event = self._event(text)
        event.finish_reason = reason
        event.stop_string = None if self._stops is None else self._stops.matched
        return event

    def _event(self, text: str) -> TextEvent:
        self._num_shown += len(text)
        if not self._options.has_logprobs:
            return TextEvent(self._choice, text)
        shown = []
        while self._waiting and self._waiting[0].offset - self._offset < self._num_shown:
            shown.append(self._waiting.popleft())
        return TextEvent(self._choice, text, shown)


def _detokenizer_after(before: Sequence[int], tokenizer: Tokenizer, options: TextOptions) -> Detokenizer:
    """A detokenizer that has seen the last of these tokens that stands for itself.

    One that is part of a character, or whose text waits for the next token, would come out again.
    """
    for token_id in reversed(before):
        probe, primed = (options.detokenizer(tokenizer) for _ in range(2))
        if probe.push((token_id,)) and not probe.flush():
            primed.push((token_id,))
            return primed
    return options.detokenizer(tokenizer)


def score(tokenizer: Tokenizer, entry: TokenLogprob, offset: int) -> ScoredToken:
    """A token of the engine with the bytes it stands for."""
    top = [(tokenizer.token_bytes(token_id), logprob) for token_id, logprob in entry.top]
    return ScoredToken(tokenizer.token_bytes(entry.token_id), entry.logprob, top, offset)


def score_prompt(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None], text: str, num_top: int
) -> list[ScoredToken]:
    """The prompt's tokens with their log-probabilities, `num_top` likeliest ones and their places in `text`."""
    detokenizer = Detokenizer(tokenizer)
    tokens = []
    position = 0
    for token_id, entry in zip(token_ids, entries, strict=True):
        offset = min(position, len(text))
        if entry is None:
            tokens.append(ScoredToken(tokenizer.token_bytes(token_id), None, [], offset))
        else:
            token = score(tokenizer, entry, offset)
            tokens.append(msgspec.structs.replace(token, top=token.top[:num_top]))
        position += len(detokenizer.push((token_id,)))
    return tokens


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None], num_top: int) -> PromptLogprobs:
    """The prompt's tokens and the `num_top` likeliest ones at their places, in vLLM's form."""

    def named(token_id: int, logprob: float, rank: int | None) -> PromptLogprob:
        return PromptLogprob(finite(logprob), rank, token_name(tokenizer.token_bytes(token_id)))

    found: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            found.append(None)
            continue
        place = {str(entry.token_id): named(entry.token_id, entry.logprob, entry.rank)}
        for rank, (token_id, logprob) in enumerate(entry.top[:num_top], 1):
            place[str(token_id)] = named(token_id, logprob, rank)
        found.append(place)
    return found
