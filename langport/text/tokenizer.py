"""A checkpoint's tokenizer: text to token ids and back, as transformers' AutoTokenizer would.

tokenizer.json is read through the `tokenizers` package alone; transformers (and with it torch) is imported
only for checkpoints that do not have that file. Text that is not valid Unicode is accepted: a lone surrogate
is encoded as U+FFFD, since no tokenizer knows it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tokenizers

from langport.errors import CheckpointError
from langport.text.pieces import PieceTable, byte_level_bytes, clean_up, read_plan
from langport.text.truncation import EncodedTexts, Side

INLINE_CHARACTERS = 500
"""Texts up to this length together are encoded at once; a switch of threads would cost more."""

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OLDER_FILES = ("vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json", "*.bpe", "dict.txt")
_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_HEAD = "\N{WHITE SMILING FACE}"
_NO_LIMIT = 10**9
"""A model_max_length above it is transformers' way to say that there is none."""

_CLASSES_WITHOUT_TYPES = ("PreTrainedTokenizerFast", "TokenizersBackend")

_DEFAULT_TOKENS: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
    (("gpt2", "codegen"), dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")),
    (("qwen2", "qwen3"), {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    (
        ("roberta", "bart", "mbart", "camembert"),
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    (("t5",), {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    (("llama",), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    (
        ("bert", "electra", "mpnet"),
        {
            "sep_token": "[SEP]",
            "cls_token": "[CLS]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        },
    ),
)
"""Special tokens of checkpoints that do not name them, by fragments of the tokenizer class or model type."""


class Tokenizer:
    """Encodes and decodes; safe to share between requests. Make one with `from_directory`."""

    def __init__(self, backend: Any, named_tokens: dict[str, str], config: dict[str, Any]) -> None:
        """`backend` is a tokenizers.Tokenizer; `config` what tokenizer_config.json holds."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.named_tokens = named_tokens
        """Special tokens by their names (bos_token, ...), as chat templates know them."""
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.added_tokens: frozenset[str] = frozenset(
            token.content for token in backend.get_added_tokens_decoder().values()
        )
        """Tokens besides the trained vocabulary, the special ones among them."""
        self.bos_token = named_tokens.get("bos_token")
        self.eos_token = named_tokens.get("eos_token")
        self.unk_token = named_tokens.get("unk_token")
        self.pad_token = named_tokens.get("pad_token")
        self.bos_token_id = self._id_of(self.bos_token)
        self.eos_token_id = self._id_of(self.eos_token)
        self.pad_token_id = self._id_of(self.pad_token)
        self.model_max_length = _max_length(config)
        self.has_token_types = _has_token_types(config)
        """Models read two texts with tokens of two types, as transformers' tokenizer of this class says it."""
        self.truncation_side: Side = "left" if config.get("truncation_side") == "left" else "right"
        self.cleans_up_spaces = (
            config.get("clean_up_tokenization_spaces") is True and type(backend.model).__name__ != "BPE"
        )
        """Decoding ends with `pieces.clean_up`; as in transformers never for BPE, which has real spaces."""
        decoder = backend.decoder
        self._plan = read_plan(None if decoder is None else json.loads(decoder.__getstate__()))
        self._tables: dict[frozenset[int], PieceTable] = {}
        self._bytes: dict[int, bytes] = {}
        self._literal_backends: dict[frozenset[str], Any] = {}

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint directory.

        Raises: CheckpointError naming the file that is missing or damaged, or the package it needs.
        """
        config = _read_json(path / "tokenizer_config.json")
        if (path / "tokenizer.json").is_file():
            backend = _read_backend(path / "tokenizer.json")
            named_tokens = _add_declared_tokens(backend, path, config)
        else:
            backend, named_tokens = _convert_with_transformers(path)
        return cls(backend, named_tokens, config)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        try:
            encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        except TypeError:  # how the library says that the text is not valid Unicode
            encoding = self.backend.encode(_without_surrogates(text), add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    async def encode_async(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of several texts, without holding up the event loop when they are long."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_worker(), self._encode_batch, texts, add_special_tokens)

    async def encode_texts(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[EncodedTexts]:
        """Texts or pairs of texts with the special tokens around them, to be cut where they are too long."""
        if sum(len(text) for item in texts for text in _parts(item)) <= INLINE_CHARACTERS:
            return self._encode_texts(texts)
        return await asyncio.get_running_loop().run_in_executor(_worker(), self._encode_texts, texts)

    async def encode_literally(self, texts: Sequence[str], markers: frozenset[str], *, joins: bool) -> list[list[int]]:
        """Token ids of texts in which nothing is a special token, nor one of the `markers`, whatever they spell.

        `joins` leaves out what the tokenizer puts before the first word of a text.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_worker(), self._encode_literally, texts, markers, joins)

    def opening_ids(self) -> list[int]:
        """The special tokens that stand before a text, such as bos."""
        plain, whole = (self.encode("x", add_special_tokens=is_whole) for is_whole in (False, True))
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids that the tokenizer does not know add nothing."""
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self.cleans_up_spaces else text

    def decode_raw(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones shown, before `pieces.clean_up`."""
        text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text that it does not begin; b"" for an unknown id.

        A special token stands for its name. Exact for byte-level tokenizers; for the others as near as a
        token can be looked at alone.
        """
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._token_bytes(token_id)
        return found

    @cached_property
    def hides_first_space(self) -> bool:
        """A token with a space before it loses that space at the beginning of a text, as with sentencepiece."""
        for token_id in range(self.vocab_size):
            text = self.token_bytes(token_id)
            if text[:1] == b" " and text[1:2].isalnum() and token_id not in self.special_ids:
                return not self.decode([token_id]).startswith(" ")
        return False

    def pieces(self, *, hidden_ids: frozenset[int] = frozenset()) -> PieceTable | None:
        """What each token adds to a text; None when the decoder needs to see tokens together."""
        if self._plan is None:
            return None
        found = self._tables.get(hidden_ids)
        if found is None:
            found = self._tables[hidden_ids] = PieceTable(self._plan, self.backend.id_to_token, hidden_ids)
        return found

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def _token_bytes(self, token_id: int) -> bytes:
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return byte_level_bytes(token) if self._plan and self._plan.is_byte_level else token.encode()
        table = self.pieces()
        piece = self.decode_raw([token_id]) if table is None else table[token_id]
        return piece if isinstance(piece, bytes) else (piece or "").encode()

    def _encode_literally(self, texts: Sequence[str], markers: frozenset[str], joins: bool) -> list[list[int]]:
        if markers not in self._literal_backends:
            self._literal_backends[markers] = _literal_backend(self.backend, markers)
        backend = self._literal_backends[markers]

        def encode(text: str) -> list[int]:
            ids: list[int] = backend.encode(_without_surrogates(text), add_special_tokens=False).ids
            return ids

        if not joins:
            return [encode(text) for text in texts]
        # What stands before a text goes before this character, which nothing is merged with (as Meta's code has it).
        head = encode(_HEAD)
        return [encode(_HEAD + text)[len(head) :] for text in texts]

    def _encode_texts(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[EncodedTexts]:
        encode = self.backend.encode_batch_fast
        try:
            encodings = encode(list(texts))
        except TypeError:
            encodings = encode(
                [
                    _without_surrogates(item) if isinstance(item, str) else tuple(map(_without_surrogates, item))
                    for item in texts
                ]
            )
        return [EncodedTexts.of(encoding) for encoding in encodings]

    def _encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        encode = self.backend.encode_batch_fast
        try:
            encodings = encode(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            encodings = encode([_without_surrogates(text) for text in texts], add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]


@cache
def _worker() -> ThreadPoolExecutor:
    """One thread for all long texts of the process; the library gives up the GIL while it works."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="langport-tokenizer")


def _without_surrogates(text: str) -> str:
    """Surrogate pairs joined to their character, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _has_token_types(config: dict[str, Any]) -> bool:
    """What it says itself, else what its class does; the classes that stand for any tokenizer do without."""
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return config.get("tokenizer_class") not in _CLASSES_WITHOUT_TYPES


def _parts(item: str | tuple[str, str]) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else item


def _max_length(config: dict[str, Any]) -> int | None:
    length = config.get("model_max_length", config.get("max_len"))
    return int(length) if isinstance(length, int | float) and 0 < length < _NO_LIMIT else None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download the checkpoint again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Download the checkpoint again.")
    return content


def _read_backend(path: Path) -> Any:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} can read: {error}. "
            "Download the checkpoint again, or upgrade the tokenizers package if the file is newer."
        ) from error


def _add_declared_tokens(backend: Any, path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Add the tokens that only the files beside tokenizer.json declare; return the named ones."""
    declared = config.get("added_tokens_decoder")
    declared = declared if isinstance(declared, dict) else {}
    sources = dict(config)
    if not declared:
        sources |= _read_json(path / "special_tokens_map.json")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = [_added_token(token) for _, token in sorted(declared.items(), key=lambda item: int(item[0]))]
    backend.add_tokens([token for token in added if token is not None and token.content not in known])
    named_tokens = _named_tokens(sources) or {}
    extra = sources.get("extra_special_tokens") or sources.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named_tokens |= {name: token for name, value in extra.items() if (token := _content(value))}
        extra = []
    contents = [*named_tokens.values(), *(token for value in extra if (token := _content(value)))]
    _make_special(backend, contents)
    defaults = _default_tokens(path, config)
    return {name: token for name, token in defaults.items() if backend.token_to_id(token) is not None} | named_tokens


def _literal_backend(backend: Any, markers: frozenset[str]) -> Any:
    """A copy that finds no special token in a text, nor the `markers`, which not all tokenizers call special."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in markers
    copy = tokenizers.Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = True  # the library's words for: as the text that they are
    return copy


def _make_special(backend: Any, contents: Iterable[str]) -> None:
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    tokens = []
    for content in dict.fromkeys(contents):
        token = known.get(content)
        if token is None:
            token = tokenizers.AddedToken(content, special=True, normalized=False)
        if token.special is False or content not in known:
            token.special = True
            tokens.append(token)
    backend.add_special_tokens(tokens)


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    return {
        name: token
        for name, value in config.items()
        if (name in _NAMED_TOKENS or name.endswith("_token")) and (token := _content(value))
    }


def _content(value: Any) -> str | None:
    """A token written as a string or as {"content": ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _added_token(value: Any) -> Any:
    content = _content(value)
    if content is None:
        return None
    options = value if isinstance(value, dict) else {}
    flags = {name: options[name] for name in _TOKEN_FLAGS if name in options}
    return tokenizers.AddedToken(content, special=bool(options.get("special")), **flags)


def _default_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    kind = config.get("tokenizer_class") or _read_json(path / "config.json").get("model_type") or ""
    kind = str(kind).lower()
    return next((tokens for fragments, tokens in _DEFAULT_TOKENS if any(f in kind for f in fragments)), {})


def _convert_with_transformers(path: Path) -> tuple[Any, dict[str, str]]:
    """Build the tokenizer from older files: vocab.json and merges.txt, vocab.txt, sentencepiece, tiktoken."""
    if not any(next(path.glob(pattern), None) for pattern in _OLDER_FILES):
        raise CheckpointError(
            f"{path} has no tokenizer.json nor any older tokenizer file. Download the checkpoint whole, "
            "or copy the tokenizer.json of its model there."
        )
    _require_package(path, "sentencepiece", ("*.model", "*.spm"))
    _require_package(path, "tiktoken", ("*.tiktoken",))
    try:
        from transformers import AutoTokenizer

        converted: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a foreign loader on foreign files: anything can go wrong in there
        raise CheckpointError(
            f"{path} has no tokenizer.json, and its other tokenizer files cannot be read: {error}. "
            "Add the model's tokenizer.json, or check that the download is complete."
        ) from error
    backend = getattr(converted, "backend_tokenizer", None) or getattr(converted, "_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise CheckpointError(
            f"{path} has no tokenizer.json and its {type(converted).__name__} cannot be converted to one. "
            "Add a tokenizer.json for this model to the directory."
        )
    return backend, {name: str(token) for name, token in converted.special_tokens_map.items() if isinstance(token, str)}


def _require_package(path: Path, package: str, patterns: Sequence[str]) -> None:
    found: Callable[[str], Any] = importlib.util.find_spec
    if found(package) is not None:
        return
    for pattern in patterns:
        for file in sorted(path.glob(pattern)):
            raise CheckpointError(
                f"{path} has no tokenizer.json, and {file.name} needs the package {package}: "
                f"run `pip install {package}`, or add the model's tokenizer.json."
            )
