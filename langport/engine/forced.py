"""Text that a grammar leaves no choice about, such as the keys of JSON, in the tokens that the model will write.

Grammars allow every spelling of such a text (`models.vocabulary`), so what is found here is a guess, to be drafted: the
tokens that the model wrote the same text with before, or else those of the tokenizer. Where a space may follow a comma
or a colon of JSON, the guess is that it does, as in nearly all text that models learn from.

Each sequence has a guide, a second matcher that walks behind the first. Asking what is forced changes a matcher, and
fills its lexer with states, which are limited and which its copies share. So guides are copies of matchers of their
own: the ones that answers depend on are never asked, and lose nothing when a long text has used up the guides' states.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from langport.models.vocabulary import Vocabulary
from langport.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_TEXT = 64
"""Bytes of a text that the choice of its first token may depend on."""
MAX_TEXTS = 4096
"""Texts of a grammar whose spelling is remembered."""
CONFIDENCE = 4.0
"""How many tokens the tokenizer's spelling counts as much as."""
FIRST_SHARE = 0.8
"""How likely the tokenizer's spelling is taken for, before anything is known."""
MEMORY = 0.95
"""Weight of earlier tokens against the newest one."""
SPECIAL = re.compile(rb"\xff\[(\d+)\]")
"""How llguidance writes a token that no text stands for."""


class Spelling:
    """What the model begins one text with."""

    def __init__(self, token: int | None) -> None:
        """`token`: the tokenizer's choice."""
        self._counts: dict[int, float] = {} if token is None else {token: FIRST_SHARE * CONFIDENCE}
        self._total = CONFIDENCE

    def likeliest(self) -> tuple[int | None, float]:
        """A token and how likely it is the next one."""
        token = max(self._counts, key=self._counts.__getitem__, default=None)
        return token, 0.0 if token is None else self._counts[token] / self._total

    def learn(self, token: int) -> None:
        self._counts = {known: count * MEMORY for known, count in self._counts.items() if count > 1 - MEMORY}
        self._counts[token] = self._counts.get(token, 0.0) + 1
        self._total = self._total * MEMORY + 1


class Forecast:
    """What all sequences that follow one grammar know of its forced text."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self._vocabulary = vocabulary
        self._grammar = grammar
        self._spellings: OrderedDict[bytes, Spelling] = OrderedDict()
        self.guides: tuple[LLMatcher, ...] = ()
        """Matchers at the beginning; one that the answer has left is followed by the next. None before `prepare`."""

    def prepare(self) -> None:
        """Compile the guides: what expects the usual spaces comes first. Takes as long as the grammar did, twice."""
        usual = self._vocabulary.compile_usual(self._grammar)
        exact = self._vocabulary.compile(self._grammar)
        self.guides = (exact,) if usual is None else (usual, exact)

    def spelled(self, text: bytes, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens of a text that has to follow, and how likely each is if those before it are right."""
        tokens: list[int] = []
        shares: list[float] = []
        while text and len(tokens) < most:
            token, share = self._spelling(text).likeliest()
            rest = None if token is None else self._after(text, token)
            if token is None or rest is None:
                break
            tokens.append(token)
            shares.append(share)
            text = rest
        return tokens, shares

    def learn(self, text: bytes, tokens: Seq[int]) -> bytes:
        """The text had to follow, and these tokens did. What is left of it; nothing where they went another way."""
        for token in tokens:
            if not text:
                break
            self._spelling(text).learn(token)
            text = self._after(text, token) or b""
        return text

    def _spelling(self, text: bytes) -> Spelling:
        key = text[:MAX_TEXT]
        found = self._spellings.get(key)
        if found is None:
            special = SPECIAL.match(key)
            found = Spelling(int(special[1]) if special else self._vocabulary.first_token(key))
            self._spellings[key] = found
            if len(self._spellings) > MAX_TEXTS:
                self._spellings.popitem(last=False)
        return found

    def _after(self, text: bytes, token: int) -> bytes | None:
        """What is left of the text after this token; None where it is none of the text's, or goes on past its end."""
        written = self._vocabulary.token_bytes(token)
        if written:
            return text[len(written) :] if text.startswith(written) else None
        special = SPECIAL.match(text)
        return text[special.end() :] if special and int(special[1]) == token else None


class Guide:
    """Where one sequence stands, seen by a matcher that may be asked what is forced."""

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast
        self._tokens: list[int] = []
        """All that came."""
        self._num_followed = 0
        self._guides: list[LLMatcher] | None = None
        """Those that are left, the next one last; None before the first question that they were ready for."""
        self._state: LLMatcher | None = None
        self._text = b""
        """What is forced after the tokens that were followed, as far as it is known."""

    def accept(self, token: int) -> None:
        self._tokens.append(token)

    def forced(self, most: int) -> tuple[list[int], list[float]]:
        """See `Forecast.spelled`; nothing where there is a choice of texts."""
        self._follow()
        if not self._text and self._state is not None:
            self._text = self._state.compute_ff_bytes()
        return self._forecast.spelled(self._text, most)

    def _follow(self) -> None:
        new = self._tokens[self._num_followed :]
        self._num_followed = len(self._tokens)
        self._text = self._forecast.learn(self._text, new)
        if self._guides is None:
            if not self._forecast.guides:
                return
            self._guides = [*self._forecast.guides[::-1]]
            self._state = self._guides.pop().deep_copy()
            new = self._tokens
        while self._state is not None and new and not self._state.consume_tokens(new):
            self._state = self._guides.pop().deep_copy() if self._guides else None
            new = self._tokens
