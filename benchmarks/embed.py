"""Embeddings over HTTP beside sentence-transformers' `encode`: the same texts, weights and type, in turns.

    python -m venv peer && peer/bin/pip install torch sentence-transformers
    python benchmarks/embed.py MODEL --python peer/bin/python --dtype float32
    python benchmarks/embed.py MODEL --python peer/bin/python --dtype bfloat16 --rounds 5

MODEL is the folder of a sentence embedder, all-MiniLM-L6-v2 for instance. LangPort gets the texts in requests of
--batch texts from --clients clients, and answers in base64 as OpenAI's clients ask for it; the library gets all of them
in one call. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import base64
import random
from collections.abc import Sequence
from typing import Any

from sides import (
    Library,
    Side,
    answer_lines,
    comparison_parser,
    forget_this_folder,
    memory_mib,
    post_all,
    serving,
    table,
    take_turns,
)

WORDS_PER_TEXT = (8, 128)
NUM_WARMUP = 64


def random_texts(count: int, vocabulary: Sequence[str]) -> list[str]:
    source = random.Random(0)
    return [" ".join(source.choices(vocabulary, k=source.randint(*WORDS_PER_TEXT))) for _ in range(count)]


def as_library(arguments: argparse.Namespace) -> None:
    forget_this_folder()
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = getattr(torch, arguments.dtype)
    model = SentenceTransformer(str(arguments.model), device="cpu", model_kwargs={"torch_dtype": dtype})

    def encode(texts: list[str]) -> list[Any]:
        vectors = model.encode(texts, batch_size=arguments.batch)
        return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]

    answer_lines(encode)


def embed(url: str, texts: Sequence[str], batch: int, num_clients: int) -> list[str]:
    bodies = [
        {"model": "embed", "input": texts[begin : begin + batch], "encoding_format": "base64"}
        for begin in range(0, len(texts), batch)
    ]
    answers = post_all(url, "/v1/embeddings", bodies, num_clients)
    return [entry["embedding"] for answer in answers for entry in answer["data"]]


def least_cosine(sides: Sequence[Side]) -> float:
    """Between the two sides' vectors of the same text."""
    import numpy as np

    one, other = (
        np.stack([np.frombuffer(base64.b64decode(answer), "<f4") for answer in side.answers]) for side in sides
    )
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


def main() -> None:
    parser = comparison_parser(__doc__ or "", "sentence-transformers")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.as_library:
        return as_library(arguments)
    if arguments.python is None:
        parser.error("--python is missing: the environment in which sentence-transformers is installed")
    from langport.bench.prompts import WORDS

    texts = random_texts(arguments.texts, WORDS)
    common = [str(arguments.model), "--dtype", arguments.dtype]
    library = Library(arguments.python, __file__, [*common, "--batch", str(arguments.batch)])
    model, *options = common
    with serving([f"embed={model}", "--device", "cpu", *options]) as (url, pid):
        sides = [
            Side(
                "LangPort", lambda work: embed(url, work, arguments.batch, arguments.clients), lambda: memory_mib(pid)
            ),
            Side("sentence-transformers", library, lambda: memory_mib(library.process.pid)),
        ]
        take_turns(sides, texts, arguments.rounds, NUM_WARMUP)
    library.close()
    low, high = WORDS_PER_TEXT
    print(
        f"{arguments.texts} texts of {low} to {high} words, {arguments.dtype}, batches of {arguments.batch}; "
        f"{arguments.rounds} rounds in turns; LangPort asked by {arguments.clients} clients\n"
    )
    print(table(sides, len(texts), "texts/s"))
    print(f"\nleast cosine between the two sides' vectors: {least_cosine(sides):.6f}")
    return None


if __name__ == "__main__":
    main()
