"""Encoding and decoding equal transformers' AutoTokenizer, for every kind of tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from text_kinds import CORPUS, KINDS, byte_fallback, byte_level, save, unigram, word_piece
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from langport.errors import CheckpointError
from langport.text import tokenizer as tokenizer_module
from langport.text.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "Once upon a time",
    "  two  spaces\n\nand lines\t",
    "Grüße, señor! 日本語 🙂 <|im_start|>user<|im_end|> <s> </s> [SEP] größer <tool call>",
    "It's they've ' do not ' , . ?",
    "x" * 40,
    *CORPUS,
]

_loaded: dict[str, tuple[Tokenizer, Any]] = {}


def load(directory: Path) -> tuple[Tokenizer, Any]:
    """Ours and transformers' reading of a directory, once each."""
    key = str(directory)
    if key not in _loaded:
        _loaded[key] = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(key)
    return _loaded[key]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encode_equals_transformers(directories: dict[str, Path], kind: str, add_special_tokens: bool) -> None:
    ours, theirs = load(directories[kind])
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=add_special_tokens, truncation=False, padding=False)
        assert ours.encode(text, add_special_tokens=add_special_tokens) == expected.input_ids, text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_decode_equals_transformers(directories: dict[str, Path], kind: str, skip_special_tokens: bool) -> None:
    ours, theirs = load(directories[kind])
    for text in TEXTS:
        ids = ours.encode(text)
        expected = theirs.decode(ids, skip_special_tokens=skip_special_tokens)
        assert ours.decode(ids, skip_special_tokens=skip_special_tokens) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_equal_transformers(directories: dict[str, Path], kind: str) -> None:
    ours, theirs = load(directories[kind])
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert ours.special_ids >= set(theirs.all_special_ids)


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_random_text_encodes_like_transformers(directories: dict[str, Path], text: str) -> None:
    for kind in ("byte-level", "unigram", "byte-fallback", "word-piece"):
        ours, theirs = load(directories[kind])
        assert ours.encode(text) == theirs(text, truncation=False, padding=False).input_ids


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=[]), max_size=20))
def test_any_str_encodes(directories: dict[str, Path], text: str) -> None:
    """A JSON body may hold lone surrogates; they count as U+FFFD."""
    ours = load(directories["byte-level"])[0]
    valid = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert ours.encode(text) == ours.encode(valid)


async def test_encode_async_equals_encode(directories: dict[str, Path]) -> None:
    ours = load(directories["byte-level"])[0]
    long_texts = ["upon a time " * 200, "\ud800", "short", ""]
    assert sum(map(len, long_texts)) > tokenizer_module.INLINE_CHARACTERS
    for texts in (long_texts, ["a", "b\udfff"], []):
        assert await ours.encode_async(texts) == [ours.encode(text) for text in texts]
    assert await ours.encode_async(["a"], add_special_tokens=False) == [[*ours.encode("a")]]


async def test_encode_async_honours_add_special_tokens(directories: dict[str, Path]) -> None:
    ours = load(directories["byte-fallback"])[0]
    for text in ("a", "upon a time " * 100):
        with_bos, without = ours.encode(text), ours.encode(text, add_special_tokens=False)
        assert with_bos == [1, *without]
        assert await ours.encode_async([text]) == [with_bos]
        assert await ours.encode_async([text], add_special_tokens=False) == [without]


@pytest.mark.parametrize("kind", ["byte-level", "byte-level-prefix-space"])
def test_token_bytes_of_byte_level_are_exact(directories: dict[str, Path], kind: str) -> None:
    ours, theirs = load(directories[kind])
    for text in TEXTS:
        ids = ours.encode(text)
        joined = b"".join(ours.token_bytes(token_id) for token_id in ids)
        assert joined.decode("utf-8", "replace") == theirs.decode(ids)


def test_token_bytes_of_other_kinds(directories: dict[str, Path]) -> None:
    fallback = load(directories["byte-fallback"])[0]
    assert fallback.token_bytes(fallback.backend.token_to_id("<0xE2>")) == b"\xe2"
    assert fallback.token_bytes(1) == b"<s>"
    pieces = load(directories["word-piece"])[0]
    vocabulary = pieces.backend.get_vocab()
    continuation = next(token for token in vocabulary if token.startswith("##") and len(token) > 3)
    assert pieces.token_bytes(vocabulary[continuation]) == continuation.removeprefix("##").encode()
    assert pieces.token_bytes(vocabulary["one"]) == b" one"
    spaced = load(directories["unigram"])[0]
    token = next(token for token in spaced.backend.get_vocab() if token.startswith("▁") and len(token) > 2)
    assert spaced.token_bytes(spaced.backend.token_to_id(token)) == token.replace("▁", " ").encode()
    assert spaced.token_bytes(10**6) == b""


def test_model_max_length(directories: dict[str, Path]) -> None:
    assert load(directories["byte-level"])[0].model_max_length == 4096
    assert load(directories["unigram"])[0].model_max_length is None


def test_tokens_declared_only_beside_tokenizer_json(tmp_path: Path) -> None:
    """added_tokens_decoder and special_tokens_map.json add what tokenizer.json lacks, at the same ids."""
    backend, config = byte_level()
    size = backend.get_vocab_size()
    declared = {
        str(size): {
            "content": "<new>",
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
        },
        str(size + 1): {"content": "<plain>", "special": False, "normalized": False},
    }
    directory = save(tmp_path / "declared", backend, config | {"added_tokens_decoder": declared})
    ours, theirs = load(directory)
    assert ours.encode("a<new><plain>b") == theirs("a<new><plain>b", truncation=False, padding=False).input_ids
    assert ours.backend.token_to_id("<plain>") == size + 1
    assert size in ours.special_ids
    assert size + 1 not in ours.special_ids

    mapped = save(tmp_path / "mapped", backend, {"tokenizer_class": "TokenizersBackend"})
    special = {"eos_token": {"content": "<end>"}, "additional_special_tokens": ["<a>", "one"]}
    (mapped / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    ours, theirs = load(mapped)
    text = "a<end> <a> one"
    assert ours.encode(text) == theirs(text, truncation=False, padding=False).input_ids
    assert ours.eos_token_id == theirs.eos_token_id == ours.vocab_size - 3
    assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)


def test_a_vocabulary_entry_named_as_eos_becomes_special(tmp_path: Path) -> None:
    backend, _ = unigram()
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "</s>"]
    config = {"tokenizer_class": "TokenizersBackend", "eos_token": "</s>"}
    directory = save(tmp_path, Backend.from_str(json.dumps(state)), config)
    ours, theirs = load(directory)
    assert ours.eos_token_id == 1
    assert 1 in ours.special_ids
    text = "once</s> upon"
    assert ours.encode(text) == theirs(text).input_ids


def test_special_tokens_of_old_gpt2_are_known(tmp_path: Path) -> None:
    """openai-community/gpt2 names no special token in any file."""
    backend, _ = byte_level()
    directory = save(tmp_path, backend, {"model_max_length": 1024})
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    ours = Tokenizer.from_directory(directory)
    assert ours.eos_token == ours.bos_token == "<|endoftext|>"
    assert ours.eos_token_id == backend.token_to_id("<|endoftext|>")


def test_vocab_and_merges_without_tokenizer_json(tmp_path: Path) -> None:
    backend, _ = byte_level()
    backend.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}), encoding="utf-8")
    ours, theirs = load(tmp_path)
    assert ours.encode(CORPUS[2]) == theirs(CORPUS[2]).input_ids
    assert ours.decode(ours.encode(CORPUS[2])) == CORPUS[2]
    assert ours.eos_token == "<|endoftext|>"
    assert ours.model_max_length == 77


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 5}', "\xff"])
def test_damaged_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_damaged_tokenizer_config(tmp_path: Path, content: str) -> None:
    save(tmp_path, byte_level()[0], {})
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_directory(tmp_path)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nor any older tokenizer file"):
        Tokenizer.from_directory(tmp_path)


def test_older_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="its other tokenizer files cannot be read"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(("file", "package"), [("tokenizer.model", "sentencepiece"), ("a.tiktoken", "tiktoken")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, package: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=f"{file} needs the package {package}"):
        Tokenizer.from_directory(tmp_path)


def test_added_tokens_may_hold_anything(tmp_path: Path) -> None:
    backend, config = byte_level()
    backend.add_tokens([AddedToken("日本 x"), AddedToken("é")])
    ours, theirs = load(save(tmp_path, backend, config))
    ids = [ours.backend.token_to_id("日本 x"), ours.backend.token_to_id("é")]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.token_bytes(ids[0]).decode() == "日本 x"


def test_torch_and_transformers_stay_out(directories: dict[str, Path]) -> None:
    script = (
        "import sys, pathlib\n"
        "import langport.text.chat_template, langport.text.stop\n"
        "from langport.text.detokenizer import Detokenizer\n"
        "from langport.text.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.from_directory(pathlib.Path(sys.argv[1]))\n"
        "assert Detokenizer(tokenizer).push(tokenizer.encode('one')) == 'one'\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", script, str(directories["byte-level"])], check=True)


def bpe_parts(build: Any) -> dict[str, Any]:
    model = json.loads(build()[0].model.__getstate__())
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges}


def unigram_vocab() -> list[tuple[str, float]]:
    return [(token, score) for token, score in json.loads(unigram()[0].model.__getstate__())["vocab"]]


TRANSFORMERS_CLASSES: dict[str, Any] = {
    "GPT2Tokenizer": lambda: bpe_parts(byte_level),
    "Qwen2Tokenizer": lambda: bpe_parts(byte_level),
    "RobertaTokenizer": lambda: bpe_parts(byte_level),
    "LlamaTokenizer": lambda: bpe_parts(byte_fallback) | {"add_bos_token": True},
    "GemmaTokenizer": lambda: bpe_parts(byte_fallback),
    "BertTokenizer": lambda: {"vocab": json.loads(word_piece()[0].model.__getstate__())["vocab"]},
    "T5Tokenizer": lambda: {"vocab": unigram_vocab(), "extra_ids": 2},
    "XLMRobertaTokenizer": lambda: {"vocab": unigram_vocab()},
}


@pytest.mark.parametrize("name", TRANSFORMERS_CLASSES)
def test_what_transformers_saves_is_read_the_same(tmp_path: Path, name: str) -> None:
    getattr(transformers, name)(**TRANSFORMERS_CLASSES[name]()).save_pretrained(tmp_path)
    ours, theirs = load(tmp_path)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            ids = ours.encode(text, add_special_tokens=add_special_tokens)
            assert ids == theirs(text, add_special_tokens=add_special_tokens).input_ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
