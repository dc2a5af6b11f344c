"""How much pairs of texts have to do with each other: by a cross-encoder, which reads both together, or by an embedder,
as the cosine of their vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from langport.api.http import Call
from langport.api.model import ServedModel
from langport.api.pooling import MAX_TEXTS, Cutting, activated, check_lengths, run_encoder
from langport.errors import InvalidRequest
from langport.text.truncation import EncodedTexts
from langport.types import ModelInfo
from langport.wire.scores import Text, TextItem, Texts

Pair = tuple[str, str]


def read_text(given: Text | None, param: str) -> str:
    """Raises: InvalidRequest naming the field when there is none, or it is no text."""
    if given is None:
        raise InvalidRequest(f"{param} is required.", param=param)
    return _text(given, param)


def read_texts(given: Texts | None, param: str) -> list[str]:
    """The texts of a field, one alone as a list of one.

    Raises: InvalidRequest naming the field when there is none, there are too many, or one is no text.
    """
    if given is None:
        raise InvalidRequest(f"{param} is required.", param=param)
    if not isinstance(given, list):
        return [_text(given, param)]
    if not given:
        raise InvalidRequest(f"{param} must not be an empty list.", param=param)
    if len(given) > MAX_TEXTS:
        raise InvalidRequest(f"{param} may hold at most {MAX_TEXTS} texts, got {len(given)}.", param=param)
    return [_text(item, f"{param}[{index}]") for index, item in enumerate(given)]


def _text(item: Text, where: str) -> str:
    if isinstance(item, str):
        return item
    if item.text is not None:
        return item.text
    return _content_text(item, where)


def _content_text(item: TextItem, where: str) -> str:
    if item.content is None:
        raise InvalidRequest(f"{where} must be a string, or an object with a text.", param=where)
    for number, part in enumerate(item.content):
        if part.type != "text" or part.text is None:
            place = f"{where}.content[{number}]"
            raise InvalidRequest(f"{place} is of type {part.type}; this model reads text only.", param=place)
    return "\n".join(part.text or "" for part in item.content)


@dataclass(frozen=True)
class Reader:
    """What reads pairs for one call, and what the user calls them."""

    model: ServedModel
    call: Call
    info: ModelInfo
    cutting: Cutting
    param: str
    """The field that is at fault when a pair is too long."""
    name: Callable[[int], str]
    """Of a pair by its number, for messages."""
    second_limit: int | None = None
    """Tokens that are kept of a pair's second text."""
    has_activation: bool = True
    """Scores by the checkpoint's own function; else a cross-encoder's outputs as they are."""

    async def scores(self, pairs: Sequence[Pair]) -> tuple[list[float], int]:
        """One for each pair, and the tokens that were read for all.

        Raises: InvalidRequest, EngineFailed, Unavailable.
        """
        classification = self.model.checkpoint.classification
        if classification is None:
            return await self._cosines(pairs)
        encoded = [
            self.cutting.apply(self._shortened(texts, 1)) for texts in await self.model.tokenizer.encode_texts(pairs)
        ]
        inputs = [texts.ids for texts in encoded]
        check_lengths(inputs, self.info, self.param, self.name)
        second_text = [texts.second_text for texts in encoded] if self.model.tokenizer.has_token_types else None
        outputs = await run_encoder(self.model, self.call, inputs, second_text)
        if self.has_activation:
            outputs = activated(outputs, classification.activation)
        return outputs[:, 0].tolist(), sum(map(len, inputs))

    async def _cosines(self, pairs: Sequence[Pair]) -> tuple[list[float], int]:
        """Each text is read once, in however many pairs it is."""
        first_pair: dict[tuple[str, bool], int] = {}
        for number, pair in enumerate(pairs):
            for key in self._keys(pair):
                first_pair.setdefault(key, number)
        keys, numbers = list(first_pair), list(first_pair.values())
        encoded = await self.model.tokenizer.encode_texts([text for text, _ in keys])
        inputs = [
            self.cutting.apply(self._shortened(texts, 0) if is_limited else texts).ids
            for texts, (_, is_limited) in zip(encoded, keys, strict=True)
        ]
        check_lengths(inputs, self.info, self.param, lambda place: self.name(numbers[place]))
        vectors = await run_encoder(self.model, self.call, inputs)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        places = {key: place for place, key in enumerate(keys)}
        firsts, seconds = np.array([[places[key] for key in self._keys(pair)] for pair in pairs]).T
        cosines: list[float] = (vectors[firsts] * vectors[seconds]).sum(axis=1).tolist()
        return cosines, sum(map(len, inputs))

    def _keys(self, pair: Pair) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """Both texts, and whether the second's limit holds for them."""
        return (pair[0], False), (pair[1], self.second_limit is not None)

    def _shortened(self, texts: EncodedTexts, number: Literal[0, 1]) -> EncodedTexts:
        limit = self.second_limit
        return texts if limit is None else texts.cut_text(number, limit, self.cutting.side)
