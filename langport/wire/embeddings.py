"""`POST /v1/embeddings`: the request and the answer."""

from __future__ import annotations

import binascii
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

Vector = npt.NDArray[np.float32]


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Every field OpenAI documents for embeddings. `input` is read by `inputs`."""

    model: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


DECODER = msgspec.json.Decoder(EmbeddingRequest)


class Embedding(msgspec.Struct, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """A whole answer."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def as_base64(vector: Vector) -> str:
    """Base64 of the numbers as little-endian float32."""
    return binascii.b2a_base64(vector.astype("<f4", copy=False).tobytes(), newline=False).decode("ascii")


def as_floats(vector: Vector) -> list[float]:
    """Numbers that print with at most nine significant digits, which is what a float32 needs to survive.

    A third shorter than the float64 of the same value. Powers of ten are exact up to 10**22; what would need
    a larger one, below 1e-13, is left as it is.
    """
    wide = vector.astype(np.float64)
    size = np.abs(wide)
    decimals = 8 - np.floor(np.log10(np.where(size > 0, size, 1.0)))
    scale = np.power(10.0, np.clip(decimals, 0, 22))
    floats: list[float] = np.where(decimals > 22, wide, np.rint(wide * scale) / scale).tolist()
    return floats
