"""What bfloat16, int8, int4 and an int8 KV cache cost in quality, measured against float32 on the same engine.

    python benchmarks/quality.py                             # the bundled chat and embedding models
    python benchmarks/quality.py --embedder DIR              # an embedder's checkpoint, such as all-MiniLM-L6-v2
    python benchmarks/quality.py --model DIR --text FILE     # another decoder's next tokens over a text

- Next tokens: Kullback-Leibler divergence, in nats, of each format's distribution from float32's, after every token of
  the texts, and how often both find the same token likeliest.
- The bundled chat model's tasks: the checks of `langport.demo.check_chat` on tool calls, facts, sums and counting.
- Embeddings: cosine between float32's vector of a text and that of each format, and how often the nearest other text
  stays the same. The texts are the paragraphs of this repository's documents.

Formats with fewer bits than bfloat16 have bfloat16 for the rest, as they are served with `--dtype bfloat16`. All of it
takes a few minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

import langport
from langport.demo import chat_data, chat_text, check_chat
from langport.engine.engine import EngineCore
from langport.engine.load import load_engine
from langport.engine.messages import Embedded, FromEngine, Load, RequestFailed, Step
from langport.models.checkpoint import read_checkpoint
from langport.settings.tree import EngineSettings
from langport.text.tokenizer import Tokenizer
from langport.types import EmbedRequest, GenerateRequest, SamplingParams, TokenLogprob

MODELS = Path(langport.__file__).parent / "demo" / "models"
CHAT, EMBEDDER = MODELS / "langport-demo-chat", MODELS / "langport-demo-embed"
DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"
FLOAT32: dict[str, Any] = {"dtype": "float32"}
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "int8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}
NUM_TEXTS = 40
TEXT_TOKENS = 256
"""Of a text, at most."""


def load(path: Path, settings: dict[str, Any]) -> EngineCore:
    """The engine of a checkpoint in this process, on one thread."""
    message = Load("quality", str(path), EngineSettings(num_threads=1, **settings), 0.1)
    return load_engine(read_checkpoint(path), message, lambda share: None)[0]


def messages_of(core: EngineCore, requests: list[GenerateRequest] | list[EmbedRequest]) -> Iterator[FromEngine]:
    """What the engine says until all requests have their answers."""
    for request in requests:
        failed = core.add(request)
        assert failed is None, failed
    while core.has_work:
        for message in core.step():
            assert not isinstance(message, RequestFailed), message
            yield message


class EngineSubject(check_chat.Subject):
    """The bundled chat model on this engine."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.folder = CHAT
        self.tokenizer = AutoTokenizer.from_pretrained(CHAT)
        self.eos = self.tokenizer.eos_token_id

    def generate(self, prompts: list[list[int]], max_tokens: int, is_greedy: bool = True) -> list[list[int]]:
        assert is_greedy, "the tasks that are compared are greedy"
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        answers: list[list[int]] = [[] for _ in prompts]
        requests = [GenerateRequest(str(number), prompt, sampling) for number, prompt in enumerate(prompts)]
        for message in messages_of(self.core, requests):
            for delta in message.deltas if isinstance(message, Step) else ():
                answers[int(delta.request_id)] += delta.token_ids
        return answers


# ---- next tokens ----


def chat_texts(subject: EngineSubject) -> list[list[int]]:
    """Texts of the kind that the bundled chat model was trained on, half of them requests for tool calls."""
    rng = Random(2026)
    plain = [subject.encode(chat_text.document(rng)) for _ in range(NUM_TEXTS // 2)]
    chats = [subject.template_ids(chat_data.tool_request(rng)[0]) for _ in range(NUM_TEXTS // 2)]
    return [text[:TEXT_TOKENS] for text in plain + chats]


def file_texts(tokenizer: Tokenizer, file: Path) -> list[list[int]]:
    token_ids = tokenizer.encode(file.read_text())
    pieces = [token_ids[begin : begin + TEXT_TOKENS] for begin in range(0, len(token_ids), TEXT_TOKENS)]
    return [piece for piece in pieces if len(piece) > 1][:NUM_TEXTS]


def distributions(core: EngineCore, texts: list[list[int]], vocab_size: int) -> NDArray[np.float32]:
    """Log-probabilities (num_tokens, vocab_size) of what follows every token of every text but its last."""
    found: dict[str, list[TokenLogprob | None]] = {}
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=vocab_size)
    requests = [GenerateRequest(str(number), text, sampling) for number, text in enumerate(texts)]
    for message in messages_of(core, requests):
        for delta in message.deltas if isinstance(message, Step) else ():
            found.setdefault(delta.request_id, []).extend(delta.prompt_logprobs or [])
    entries = [entry for number in range(len(texts)) for entry in found[str(number)] if entry is not None]
    logprobs = np.empty((len(entries), vocab_size), dtype=np.float32)
    for row, entry in enumerate(entries):
        ids, values = zip(*entry.top, strict=True)
        logprobs[row, list(ids)] = values
    return logprobs


def compare_next_tokens(path: Path, text: Path | None) -> None:
    core = load(path, FLOAT32)
    texts = file_texts(Tokenizer.from_directory(path), text) if text else chat_texts(EngineSubject(core))
    vocab_size = read_checkpoint(path).vocab_size
    expected = distributions(core, texts, vocab_size)
    print(f"next tokens of {path.name}, {len(expected)} places in {len(texts)} texts")
    for name, settings in FORMATS.items():
        found = distributions(load(path, settings), texts, vocab_size)
        divergence = (np.exp(expected) * (expected - found)).sum(1)
        agreement = (expected.argmax(1) == found.argmax(1)).mean()
        print(
            f"{name:10} divergence {divergence.mean():.5f} nats, 99th percentile {np.quantile(divergence, 0.99):.4f}; "
            f"same likeliest token {agreement:.2%}",
            flush=True,
        )


# ---- the chat model's tasks ----


def compare_tasks() -> None:
    tasks = (check_chat.check_tools, check_chat.check_answers, check_chat.check_counting)
    for name, settings in {"float32": FLOAT32, **FORMATS}.items():
        subject = EngineSubject(load(CHAT, settings))
        print(f"tasks in {name}")
        for task in tasks:
            for check in task(subject):
                print(f"  {check.name:36} {check.figures}", flush=True)


# ---- embeddings ----


def paragraphs(tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """The documents' paragraphs of more than a line, with the tokenizer's special tokens."""
    texts = [part for file in sorted(DOCUMENTS.rglob("*.md")) for part in file.read_text().split("\n\n")]
    encoded = [tokenizer.encode(" ".join(text.split())) for text in texts if "\n" in text]
    return [token_ids[:max_tokens] for token_ids in encoded]


def vectors(core: EngineCore, texts: list[list[int]]) -> NDArray[np.float32]:
    """(num_texts, embedding_size), of length one."""
    for message in messages_of(core, [EmbedRequest("0", texts)]):
        if isinstance(message, Embedded):
            found = np.stack([np.frombuffer(vector, dtype=np.float32) for vector in message.vectors])
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def nearest(found: NDArray[np.float32]) -> list[int]:
    """Of each text the nearest other one."""
    similarity = found @ found.T
    np.fill_diagonal(similarity, -1)
    return [int(row.argmax()) for row in similarity]


def compare_embeddings(path: Path) -> None:
    texts = paragraphs(Tokenizer.from_directory(path), min(TEXT_TOKENS, read_checkpoint(path).max_model_len))
    expected = vectors(load(path, FLOAT32), texts)
    print(f"embeddings of {path.name}, {len(texts)} texts")
    for name, settings in FORMATS.items():
        if "kv_cache_dtype" in settings:
            continue  # encoders have no cache
        found = vectors(load(path, settings), texts)
        cosines = (expected * found).sum(1)
        kept = np.mean([a == b for a, b in zip(nearest(expected), nearest(found), strict=True)])
        print(
            f"{name:10} cosine {cosines.mean():.5f}, least {cosines.min():.4f}; same nearest text {kept:.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a decoder's checkpoint; the bundled chat model, with its tasks")
    parser.add_argument("--text", type=Path, help="what its next tokens are compared on")
    parser.add_argument("--embedder", type=Path, help="an embedder's checkpoint; the bundled one")
    arguments = parser.parse_args()
    if arguments.model and not arguments.text:
        parser.error("--model wants --text FILE: a text of the kind that the model was trained on")
    torch.set_num_threads(1)
    if arguments.model or not arguments.embedder:
        compare_next_tokens(arguments.model or CHAT, arguments.text)
    if not arguments.model and not arguments.embedder:
        compare_tasks()
    if arguments.embedder or not arguments.model:
        compare_embeddings(arguments.embedder or EMBEDDER)


if __name__ == "__main__":
    main()
