"""GGUF files: metadata become the small files of an ordinary checkpoint, tensors its weights. No PyTorch here.

A GGUF file is served from a folder in the cache that holds the config.json, tokenizer.json, tokenizer_config.json and
generation_config.json made of its metadata, and a link to the file itself; nothing else has to know the format.
Sources: GGUF specification and gguf-py, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the tokenizers that
its `tokenizer.ggml.pre` names, as llama.cpp defines them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from langport.errors import CheckpointError
from langport.models.limits import check_config

logger = logging.getLogger("langport")

FORMAT = 1
"""Counts changes to the files written here: a folder of another number is not used."""
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
LINK = "model.gguf"

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of modules, those in a layer without `blk.N.`, and transformers'."""
TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<module>\w+)\.(?P<kind>weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of Llama 3.1 to 3.3; files hold only the factors that result."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _CONTRACTIONS + r"|\p{N}{1,3}" + _REST
QWEN2_SPLIT = _CONTRACTIONS + r"|\p{N}" + _REST
LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
QWEN2_NAMES = frozenset({"qwen2", "deepseek-r1-qwen"})
GPT2_NAMES = frozenset({"gpt-2", "default"})
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Values of tokenizer.ggml.token_type that matter here."""


class GGUFFile:
    """An open GGUF file."""

    def __init__(self, path: Path) -> None:
        """Raises: CheckpointError when the file is damaged, or the library is not installed."""
        self.path = path
        try:
            self._reader = _open(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        except (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError) as error:
            raise CheckpointError(
                f"{path} is cut short or no GGUF file ({type(error).__name__}: {error}); download it again"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def architecture(self) -> str:
        """Raises: CheckpointError for one that is not read."""
        name = str(self.metadata.get("general.architecture"))
        if name not in ARCHITECTURES or self.get("expert_count", 0):
            what = f"{name} with experts" if name in ARCHITECTURES else name
            raise CheckpointError(
                f"{self.path}: LangPort reads GGUF files of {', '.join(ARCHITECTURES)}, not of {what}. Take the "
                "checkpoint that the file was made from."
            )
        return name

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata under the architecture's own prefix."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", default)

    def required(self, key: str) -> Any:
        """Raises: CheckpointError naming what the file lacks."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path}: the metadata lack {self.architecture}.{key}; download the file again")
        return value

    @cached_property
    def names(self) -> dict[str, str]:
        """transformers' names of the tensors, and the file's. Raises: CheckpointError for a tensor nobody knows."""
        names = {}
        for name in self._tensors:
            if name != ROPE_FACTORS:
                match = TENSOR.fullmatch(name)
                if match is None or match["module"] not in NAMES:
                    raise CheckpointError(f"{self.path}: nothing in {self.architecture} is named {name}")
                layer = "" if match["layer"] is None else f"model.layers.{match['layer']}."
                names[f"{layer}{NAMES[match['module']]}.{match['kind']}"] = name
        return names

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor by transformers' name, dequantized. Raises: CheckpointError naming it when that is not possible."""
        values = self.stored(self.names[name])
        if self.architecture == "llama" and re.search(r"\.[qk]_proj\.", name):
            heads = self.required("attention.head_count")
            if ".k_proj." in name:
                heads = self.get("attention.head_count_kv", heads)
            values = _in_halves(values, heads)
        return values

    def stored(self, name: str) -> NDArray[np.float32]:
        """A tensor by the file's own name."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {name} cannot be read as {tensor.tensor_type.name}: {error}"
            ) from error
        return values if values.flags.writeable else values.copy()  # not the file itself

    @property
    def dtype(self) -> str:
        """What most weights are stored in; bfloat16 for quantized ones."""
        sizes: Counter[str] = Counter()
        for tensor in self._tensors.values():
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        most = sizes.most_common(1)[0][0] if sizes else "F32"
        return {"F32": "float32", "F16": "float16"}.get(most, "bfloat16")

    def has(self, name: str) -> bool:
        return name in self._tensors


def _open(path: Path) -> Any:
    """A `gguf.GGUFReader`. Raises: CheckpointError naming the tensor that is damaged; what the reader itself raises."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"{path}: reading GGUF files needs a package: pip install 'langport[gguf]'") from None

    class Reader(gguf.GGUFReader):  # type: ignore[misc] # typed as Any
        """Reads tensors one by one, to know which one is at fault; they must follow one another as the format says."""

        tensors: list[Any]

        def _build_tensors(self, start: int, fields: list[Any]) -> None:
            tensors: dict[str, Any] = {}
            end = start
            for field in fields:
                try:
                    super()._build_tensors(start, [field])
                except (ValueError, KeyError, OverflowError, TypeError) as error:
                    raise _damaged(path, field.name, f"cannot be read: {error}") from error
                [tensor] = self.tensors
                if tensor.data_offset != end or tensor.name in tensors:
                    raise _damaged(
                        path, field.name, f"is there twice, or does not begin where it should, at byte {end}"
                    )
                end += -(-tensor.n_bytes // self.alignment) * self.alignment
                tensors[tensor.name] = tensor
            self.tensors = list(tensors.values())

    return Reader(path)


def _damaged(path: Path, tensor: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut short or damaged: tensor {tensor} {problem}; download it again")


def _in_halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head as transformers rotates them, in two halves; llama.cpp rotates neighbours."""
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


# The folder.


def checkpoint_folder(path: Path) -> Path:
    """An ordinary checkpoint folder for a GGUF file; made once, in the cache.

    Raises: CheckpointError naming the file and what of it cannot be read.
    """
    path = path.resolve()
    status = path.stat()
    key = hashlib.sha256(f"{FORMAT} {path} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "langport" / "gguf"
    folder = cache / key
    if folder.is_dir():
        return folder
    file = GGUFFile(path)
    config = _config(file)
    check_config(config, path, "Download the file again.")
    contents = {
        "config.json": json.dumps(config),
        "generation_config.json": json.dumps({"eos_token_id": _eos_token_ids(file)}),
        "tokenizer.json": _tokenizer(file).to_str(),
        "tokenizer_config.json": json.dumps(_tokenizer_config(file)),
    }
    logger.info("%s: its configuration and tokenizer are written to %s", path, folder)
    cache.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=cache))
    for name, text in contents.items():
        (making / name).write_text(text, encoding="utf-8")
    (making / LINK).symlink_to(path)
    try:
        making.rename(folder)
    except OSError:  # another process made it meanwhile
        shutil.rmtree(making)
    return folder


def _config(file: GGUFFile) -> dict[str, Any]:
    heads = file.required("attention.head_count")
    hidden = file.required("embedding_length")
    return {
        "architectures": [ARCHITECTURES[file.architecture]],
        "model_type": file.architecture,
        "hidden_size": hidden,
        "intermediate_size": file.required("feed_forward_length"),
        "num_hidden_layers": file.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": file.get("attention.key_length") or (hidden // heads if heads else None),
        "max_position_embeddings": file.required("context_length"),
        "rms_norm_eps": file.required("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(_tokens(file)),
        "attention_bias": file.has("blk.0.attn_q.bias"),
        "tie_word_embeddings": not file.has("output.weight"),
        "dtype": file.dtype,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos_token_ids(file),
        **_rope(file),
    }


def _rope(file: GGUFFile) -> dict[str, Any]:
    theta = file.get("rope.freq_base", 10000.0)
    kind = file.get("rope.scaling.type", "none")
    scaling: dict[str, Any] | None = None
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": file.required("rope.scaling.factor")}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = file.required("rope.scaling.original_context_length")
    elif kind != "none":
        raise CheckpointError(f"{file.path}: LangPort does not read the rotary scaling {kind} from GGUF files")
    if file.has(ROPE_FACTORS):
        scaling = _llama3_scaling(file, theta)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3_scaling(file: GGUFFile, theta: float) -> dict[str, Any] | None:
    """The parameters behind a file's factors. Raises: CheckpointError when they are not Llama 3's."""
    factors = file.stored(ROPE_FACTORS)
    if np.all(factors == 1):
        return None
    factor = float(factors.max())
    frequencies = theta ** -(np.arange(len(factors)) / len(factors))
    turns = LLAMA3_ROPE["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(f"{file.path}: {ROPE_FACTORS} is not that of Llama 3.1 to 3.3, which LangPort reads")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}


# The tokenizer.


def _tokens(file: GGUFFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise CheckpointError(f"{file.path}: the metadata hold no tokenizer (tokenizer.ggml.tokens)")
    return tokens


def _special(file: GGUFFile, name: str) -> str | None:
    number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return None if number is None else _tokens(file)[number]


def _eos_token_ids(file: GGUFFile) -> list[int]:
    found = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(number for number in found if number is not None))


def _tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    named = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config = {there: token for here, there in named.items() if (token := _special(file, here)) is not None}
    template = file.metadata.get("tokenizer.chat_template")
    return {**config, **({"chat_template": template} if template else {})}


def _tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(file)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(file), True
    else:
        raise CheckpointError(f"{file.path}: LangPort does not read tokenizers of the kind {kind} from GGUF files")
    tokenizer.add_tokens(list(_added_tokens(file)))
    bos = _special(file, "bos")
    if bos is not None and file.metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        number = file.metadata["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 $B:1", special_tokens=[(bos, number)]
        )
    return tokenizer


def _added_tokens(file: GGUFFile) -> Iterator[AddedToken]:
    types = file.metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(_tokens(file), types, strict=False):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            yield AddedToken(token, special=kind != USER_DEFINED, normalized=False)


def _byte_level(file: GGUFFile) -> tuple[tokenizers.Tokenizer, bool]:
    """A byte-level BPE, and whether a text begins with bos where the file does not say."""
    name = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = LLAMA3_SPLIT if name in LLAMA3_NAMES else QWEN2_SPLIT
    if name in LLAMA3_NAMES | QWEN2_NAMES:
        parts = [pre_tokenizers.Split(Regex(split), behavior="isolated"), bare]
    elif name == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), whole]
    elif name in GPT2_NAMES:
        parts = [whole]
    else:
        raise CheckpointError(
            f"{file.path}: LangPort does not know how the tokenizer {name} splits text. Take the checkpoint that the "
            "file was made from."
        )
    vocab = {token: number for number, token in enumerate(_tokens(file))}
    merges = [tuple(merge.split(" ", 1)) for merge in file.metadata.get("tokenizer.ggml.merges") or []]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name in LLAMA3_NAMES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    if name in QWEN2_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, name in LLAMA3_NAMES


def _sentencepiece(file: GGUFFile) -> tokenizers.Tokenizer:
    """Llama's first tokenizer: its scores say which pair of pieces is joined first."""
    tokens = _tokens(file)
    vocab = {token: number for number, token in enumerate(tokens)}
    scores = file.metadata.get("tokenizer.ggml.scores") or []
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=False):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    model = models.BPE(
        vocab=vocab,
        merges=[(left, right) for *_, left, right in merges],
        unk_token=_special(file, "unknown") or "<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend("▁")] if file.metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
