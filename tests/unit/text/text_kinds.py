"""Tiny tokenizers of every kind, trained on a few lines and saved as checkpoint directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "Once upon a time there was a king who counted one two three four five.",
    "It's Don't do not, isn't it? They've said we're here! I'm fine. ' quoted '",
    "Grüße aus München, señor; 日本語のテキスト and emoji 🙂🙃 too.",
    "def add(a, b):\n    return a + b  # spaces   and\ttabs",
]

Builder = Callable[[], tuple[Tokenizer, dict[str, Any]]]


def byte_level(add_prefix_space: bool = False) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("größer")])
    # Saved by people who truncated and padded while training; serving must not.
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=16, pad_token="<|endoftext|>")
    config = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": {
            "__type": "AddedToken",
            "content": "<|endoftext|>",
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        },
        "add_bos_token": True,
        "model_max_length": 4096,
    }
    return tokenizer, config


def unigram() -> tuple[Tokenizer, dict[str, Any]]:
    """T5's way: Unigram, Metaspace, </s> at the end."""
    tokenizer = Tokenizer(models.Unigram())
    metaspace = {"replacement": "▁", "prepend_scheme": "always"}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    tokenizer.decoder = decoders.Metaspace(**metaspace)
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 2, "model_max_length": int(1e30)}
    return tokenizer, config


def cleaned_unigram() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer, config = unigram()
    config = {"tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": True}
    return tokenizer, config | {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def byte_fallback(*, strip: bool = True) -> tuple[Tokenizer, dict[str, Any]]:
    """Llama 2's way: sentencepiece BPE with byte tokens and <s> in front."""
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=40,
        show_progress=False,
    )
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    trained.train_from_iterator(CORPUS, trainer)
    # The trainer makes the byte tokens special; here they must be plain entries of the vocabulary.
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    config = {
        "tokenizer_class": "LlamaTokenizer" if strip else "TokenizersBackend",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "normalized": False},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "normalized": False},
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": True,
        "legacy": False,
    }
    return tokenizer, config


def byte_fallback_metaspace() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer, config = byte_fallback(strip=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer, config


def word_piece() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "clean_up_tokenization_spaces": True}
    return tokenizer, config


def word_end_suffix() -> tuple[Tokenizer, dict[str, Any]]:
    """CLIP's way, whose decoder needs to know the last token: it goes through a window."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer, {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}


def words_only() -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer without any decoder: tokens are joined with spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer, {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>", "eos_token": "</s>"}


KINDS: dict[str, Builder] = {
    "byte-level": byte_level,
    "byte-level-prefix-space": lambda: byte_level(add_prefix_space=True),
    "unigram": unigram,
    "unigram-cleaned": cleaned_unigram,
    "byte-fallback": byte_fallback,
    "byte-fallback-no-strip": lambda: byte_fallback(strip=False),
    "byte-fallback-metaspace": byte_fallback_metaspace,
    "word-piece": word_piece,
    "word-end-suffix": word_end_suffix,
    "words-only": words_only,
}


def save(directory: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
