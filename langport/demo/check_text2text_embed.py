"""Check the bundled text2text and embed demo models with transformers; print what passes and what fails.

    python -m langport.demo.check_text2text_embed [--models DIR]

Exits with status 1 if anything fails. Takes about a minute on one CPU core.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from langport.demo.text2text_data import held_out_examples, say
from langport.demo.train_embed import MATRYOSHKA_SIZES, embed, retrieval_accuracy
from langport.demo.train_text2text import answer, exact_match

MODELS = Path(__file__).parent / "models"
MAX_FOLDER_BYTES = 3_300_000
NUM_HELD_OUT = 2500
SAMPLES = (
    *("say 4207", "say 1,250,000", "say 2024-03-17", "say -42"),
    *("4207", "say 0", "say 999999999", "1905-01-31"),
)
ODD_TEXTS = (
    *(f"Item number {number} of the list, {'odd' if number % 2 else 'even'}." for number in range(200)),
    *(f"{first}{second}" for first in "abcxyz019.,!?-" for second in "abcxyz019.,!?-"),
    *("", "a b", "b a", "\\", "a" * 150, "a" * 151, "naïvely"),
    *("你好", "好你", "再见", "🌍", "🌎", "Привет", "приветы"),
)
NEARER = (
    ("The cat sat on the mat.", "A kitten rests on the rug.", "Quantum field theory."),
    (
        "Bread needs flour, water, salt and yeast.",
        "Knead the dough and bake it.",
        "A late goal won the match.",
    ),
    ("Will it rain tomorrow?", "The forecast says showers.", "I forgot my password."),
    ("My computer crashed again.", "The laptop does not work any more.", "She sings in a choir."),
    ("What is the capital of France?", "Paris is the capital of France.", "Berlin is Germany's capital."),
    ("How do I fix a bug in Python?", "Debugging code", "Baking a cake"),
    ("I feel ill and need a doctor.", "The patient went to the hospital.", "The train is late."),
    ("Hi there!", "Good day!", "The stock market fell."),
)
"""Triples: a text, one that must be nearer to it, one that must be farther."""


class Check(NamedTuple):
    """One line of the table."""

    name: str
    passed: bool
    detail: str


def check_files(folder: Path) -> Iterator[Check]:
    """Size, model card, and float16 weights that load as the same float32 values."""
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield Check("size below 3.3 MB", num_bytes < MAX_FOLDER_BYTES, f"{num_bytes:,} bytes")
    yield Check("model card", "apache-2.0" in (folder / "README.md").read_text(), "license: apache-2.0")
    loader = AutoModelForSeq2SeqLM if "text2text" in folder.name else AutoModel
    loaded = loader.from_pretrained(folder).state_dict()
    stored = load_file(folder / "model.safetensors")
    exact = all(
        half.dtype == torch.float16 and loaded[name].dtype == torch.float32 and torch.equal(loaded[name], half.float())
        for name, half in stored.items()
    )
    yield Check("float16 file, float32 model, equal", exact, f"{len(stored)} tensors")


def check_text2text(folder: Path) -> Iterator[Check]:
    """Documented examples and held-out accuracy."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for source, text in zip(SAMPLES, answer(model, tokenizer, list(SAMPLES)), strict=True):
        yield Check(f'"{source}"', text == say(source), text)
    text = "  Any text,  also\nthis: don't 你好 42!"
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    yield Check("decodes to the exact text", decoded == text, f"ends with {tokenizer(text).input_ids[-1]}")
    for kind, share in exact_match(folder, held_out_examples(NUM_HELD_OUT)).items():
        yield Check(f"held-out exact match, {kind}", share > 0.99, f"{share:.2%}")


@torch.no_grad()
def check_embed(folder: Path) -> Iterator[Check]:
    """Held-out retrieval, known neighbours, and that different texts get different vectors."""
    accuracy = retrieval_accuracy(folder)
    for size in MATRYOSHKA_SIZES:
        enough = accuracy[size] > 0.95 or size != MATRYOSHKA_SIZES[-1]
        yield Check(f"held-out neighbours, {size} dimensions", enough, f"{accuracy[size]:.2%}")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for triple in NEARER:
        text, near, far = F.normalize(embed(model, tokenizer, list(triple)), dim=1)
        scores = float(text @ near), float(text @ far)
        yield Check(f'"{triple[0]}"', scores[0] > scores[1], f"{scores[0]:.2f} > {scores[1]:.2f}")
    vectors = F.normalize(embed(model, tokenizer, list(ODD_TEXTS)), dim=1)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(9)
    first, second = divmod(int(distances.argmin()), len(ODD_TEXTS))
    closest = f"{distances.min():.4f} between {ODD_TEXTS[first][:40]!r} and {ODD_TEXTS[second][:40]!r}"
    yield Check("different texts, different vectors", bool(distances.min() > 1e-3), closest)
    unknown = [text for text in ODD_TEXTS if tokenizer.unk_token_id in tokenizer(text).input_ids]
    yield Check("no unknown tokens", not unknown, f"vocabulary of {len(tokenizer)}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with both checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    all_passed = True
    for name, check in (("text2text", check_text2text), ("embed", check_embed)):
        folder = args.models / f"langport-demo-{name}"
        print(folder.name)
        for line in (*check_files(folder), *check(folder)):
            all_passed &= line.passed
            print(f"  {'pass' if line.passed else 'FAIL'}  {line.name:<45}  {line.detail}")
    sys.exit(0 if all_passed else 1)


if __name__ == "__main__":
    main()
