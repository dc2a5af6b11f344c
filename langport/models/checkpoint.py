"""What a Hugging Face checkpoint directory says about itself, read without PyTorch and without its weights.

Everything the start-up can refuse is refused here: a missing, damaged or unsupported file becomes a
`CheckpointError` that names it and says what to do. Of a safetensors file only the header is read
(format: https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import msgspec

from langport.errors import CheckpointError
from langport.models.classification import CLASSIFIER_ENDING, Classification, read_classification
from langport.models.limits import check_config
from langport.types import ModelKind

WeightDtype = Literal["float32", "bfloat16", "float16"]
PoolingMode = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len"]
_T = TypeVar("_T")

DEFAULT_CONTEXT = 2048
DEFAULT_ENCODER_DECODER_CONTEXT = 512
SANE_TOKENIZER_LIMIT = 1_000_000
"""Tokenizers without a limit say 1e30, some say 1e9; below this the number is meant."""
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself has."""

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
HIDDEN_SIZE_KEYS = ("hidden_size", "d_model", "n_embd", "n_embed", "dim")

PADDED_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types whose position table starts after the padding id, so 514 rows hold 512 tokens."""

ARCHITECTURE_OF_TYPE = {
    "bart": "BartForConditionalGeneration",
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "marian": "MarianMTModel",
    "mbart": "MBartForConditionalGeneration",
    "mistral": "MistralForCausalLM",
    "mpnet": "MPNetModel",
    "mt5": "MT5ForConditionalGeneration",
    "opt": "OPTForCausalLM",
    "pegasus": "PegasusForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "roberta": "RobertaModel",
    "t5": "T5ForConditionalGeneration",
    "xlm-roberta": "XLMRobertaModel",
}
"""For configs that name a model type and no architecture."""

ENCODER_ARCHITECTURES = frozenset(
    {
        "AlbertModel",
        "BertModel",
        "CamembertModel",
        "DebertaModel",
        "DebertaV2Model",
        "DistilBertModel",
        "ElectraModel",
        "MPNetModel",
        "ModernBertModel",
        "NomicBertModel",
        "RobertaModel",
        "XLMRobertaModel",
        "XLMRobertaXLModel",
    }
)
CLASSIFIERS = frozenset(f"{family}{CLASSIFIER_ENDING}" for family in ("Bert", "Roberta", "XLMRoberta"))
ENCODER_DECODER_ENDINGS = ("ForConditionalGeneration", "MTModel", "WithLMHeadModel")
DECODER_ENDINGS = ("ForCausalLM", "LMHeadModel")
ENCODER_ENDINGS = ("ForMaskedLM", "EncoderModel")

QUANTIZATION_METHODS = ("awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt")
"""What quantization_config may say; `models.quantized` knows which variants of each are read."""

DTYPE_OF_SAFETENSORS: dict[str, WeightDtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Pooling(msgspec.Struct, frozen=True):
    """How token vectors become one vector; the defaults are for an encoder without a config of its own."""

    mode: PoolingMode = "mean"
    normalize: bool = False
    """Scale the vector to unit length."""


POOLING_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""sentence-transformers' names for the ways of pooling, one boolean each."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory that can be served, as far as its small files can tell."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    """{} when the checkpoint has none."""
    architecture: str
    """The transformers class, e.g. LlamaForCausalLM."""
    kind: ModelKind
    dtype: WeightDtype
    """What config.json says, else what most weights are stored in."""
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    vocab_size: int
    weight_files: tuple[Path, ...]
    """The safetensors or .bin files, all existing, in the order of the index."""
    pooling: Pooling
    """Of an encoder; sentence-transformers' modules.json when there is one."""
    is_matryoshka: bool
    embedding_size: int
    """Width of the hidden states."""
    classification: Classification | None = None
    """Of an encoder with a head that classifies; None: it embeds, or is no encoder."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check the small files of the checkpoint in directory `path`.

    Raises: CheckpointError naming the file at fault and what to do about it.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory. Give the directory that holds the model's config.json.")
    config = _read_config(path)
    architecture = _architecture(config, path / "config.json")
    kind = _kind(architecture, config, path / "config.json")
    generation_config = _read_json(path / "generation_config.json")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    weight_files = _weight_files(path)
    stored_dtypes = [dtype for file in weight_files for dtype in _stored_dtypes(file)]
    return Checkpoint(
        path=path,
        config=config,
        generation_config=generation_config,
        architecture=architecture,
        kind=kind,
        dtype=_dtype(config, stored_dtypes),
        max_model_len=_max_model_len(path, config, tokenizer_config, kind),
        eos_token_ids=_eos_token_ids(path, config, generation_config, tokenizer_config),
        bos_token_id=_bos_token_id(path, config, generation_config, tokenizer_config),
        vocab_size=_required_size(config, ("vocab_size",), path / "config.json"),
        weight_files=weight_files,
        pooling=_pooling(path) if kind == "encoder" and architecture not in CLASSIFIERS else Pooling(),
        is_matryoshka=bool(config.get("is_matryoshka") or config.get("matryoshka_dimensions")),
        embedding_size=_required_size(config, HIDDEN_SIZE_KEYS, path / "config.json"),
        classification=_classification(path, config, architecture),
    )


# config.json


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise CheckpointError(_why_no_config(path))
    config = _read_json(path / "config.json")
    if quantization := config.get("quantization_config") or config.get("compression_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if not isinstance(method, str) or method not in QUANTIZATION_METHODS:
            raise CheckpointError(
                f"{path / 'config.json'} says that the weights were quantized with {method}, which LangPort does not "
                f"read; it reads {', '.join(QUANTIZATION_METHODS)}. Take the checkpoint that this one was made from."
            )
    check_config(config, path / "config.json")
    return config


def _why_no_config(path: Path) -> str:
    names = {file.name for file in path.iterdir()}
    if not names:
        return f"{path} is empty. Download the checkpoint into it, or give its hub id instead."
    if any(name.endswith(".gguf") for name in names):
        return (
            f"{path} holds GGUF files and no config.json. Give the file itself: "
            f"{path / min(name for name in names if name.endswith('.gguf'))}"
        )
    if "adapter_config.json" in names:
        return (
            f"{path} holds a LoRA adapter and no config.json. Serve its base model, and the adapter beside it "
            f"with --lora NAME={path}."
        )
    below = sorted(file.parent.name for file in path.glob("*/config.json"))
    if below:
        return f"{path} has no config.json, but {path / below[0]} has one. Give that directory."
    return f"{path} has no config.json, so it is no Hugging Face checkpoint. Give a directory that has one."


def _architecture(config: dict[str, Any], file: Path) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    model_type = str(config.get("model_type"))
    if model_type in ARCHITECTURE_OF_TYPE:
        return ARCHITECTURE_OF_TYPE[model_type]
    raise CheckpointError(
        f"{file} names no architectures, and its model_type is {model_type}. "
        'Add the model\'s class to it, e.g. "architectures": ["LlamaForCausalLM"].'
    )


def _kind(architecture: str, config: dict[str, Any], file: Path) -> ModelKind:
    is_encoder_decoder = config.get("is_encoder_decoder", config.get("model_type") in ("t5", "mt5"))
    if is_encoder_decoder and architecture.endswith(ENCODER_DECODER_ENDINGS):
        return "encoder-decoder"
    if architecture.endswith(DECODER_ENDINGS) and not is_encoder_decoder:
        return "decoder"
    if architecture in ENCODER_ARCHITECTURES | CLASSIFIERS or architecture.endswith(ENCODER_ENDINGS):
        return "encoder"
    raise CheckpointError(f"{file}: {architecture} {_why_unsupported(architecture)}")


def _why_unsupported(architecture: str) -> str:
    if architecture.endswith(CLASSIFIER_ENDING):
        return f"is a classifier that LangPort does not serve. It serves {', '.join(sorted(CLASSIFIERS))}."
    if architecture.endswith(("ForTokenClassification", "ForQuestionAnswering")):
        return "classifies tokens, which LangPort does not serve. It serves models that write, embed or classify text."
    if architecture.endswith("ForConditionalGeneration"):
        return "also takes images or sound, which LangPort does not serve. Take a text-only model."
    if architecture.endswith("Model"):
        return "has no head that predicts tokens and is no known encoder. Take the checkpoint with the head."
    return (
        "is not a kind of model that LangPort serves. It serves decoders (…ForCausalLM), "
        "encoder-decoders (…ForConditionalGeneration) and encoders (BertModel and its like)."
    )


def _required_size(config: dict[str, Any], keys: Iterable[str], file: Path) -> int:
    size = _first_int(config, keys)
    if size is None:
        raise CheckpointError(
            f"{file} has no {' or '.join(keys)} above 0. Take config.json from the original checkpoint."
        )
    return size


def _dtype(config: dict[str, Any], stored: list[str]) -> WeightDtype:
    named = config.get("dtype") or config.get("torch_dtype")
    for dtype in get_args(WeightDtype):
        if named == dtype:
            return cast(WeightDtype, dtype)
    for dtype, _count in Counter(stored).most_common():
        if dtype in DTYPE_OF_SAFETENSORS:
            return DTYPE_OF_SAFETENSORS[dtype]
    return "float32"


# context and special tokens


def _max_model_len(path: Path, config: dict[str, Any], tokenizer_config: dict[str, Any], kind: ModelKind) -> int:
    limit = _first_int(config, CONTEXT_KEYS)
    if limit is not None and str(config.get("model_type")) in PADDED_POSITIONS:
        padding_id, *_ = *_token_ids(config.get("pad_token_id")), 1
        limit -= padding_id + 1
    if limit is None:
        tokenizer_limit = _first_int(tokenizer_config, ("model_max_length",))
        if tokenizer_limit is not None and tokenizer_limit < SANE_TOKENIZER_LIMIT:
            limit = tokenizer_limit
    if limit is None:
        limit = DEFAULT_ENCODER_DECODER_CONTEXT if kind == "encoder-decoder" else DEFAULT_CONTEXT
    if kind == "encoder":
        trained = _first_int(_read_json(path / "sentence_bert_config.json"), ("max_seq_length",))
        limit = min(limit, trained or limit)
    return limit


def _first_int(values: dict[str, Any], keys: Iterable[str]) -> int | None:
    """The first of `keys` whose value is a whole number above 0."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value == int(value):
            return int(value)
    return None


def _eos_token_ids(
    path: Path, config: dict[str, Any], generation_config: dict[str, Any], tokenizer_config: dict[str, Any]
) -> tuple[int, ...]:
    """generation_config's, else config's, else the tokenizer's.

    A chat model without a generation config also ends at its tokenizer's eos: its turns do, whatever the base
    model that config.json was inherited from says.
    """
    if named := _token_ids(generation_config.get("eos_token_id")):
        return named
    named = _token_ids(config.get("eos_token_id"))
    is_chat = "chat_template" in tokenizer_config or (path / "chat_template.jinja").is_file()
    if named and not is_chat:
        return named
    token = _tokenizer_token_id(path, tokenizer_config, "eos_token")
    return tuple(dict.fromkeys((*named, token))) if token is not None else named


def _bos_token_id(
    path: Path, config: dict[str, Any], generation_config: dict[str, Any], tokenizer_config: dict[str, Any]
) -> int | None:
    for values in (generation_config, config):
        if named := _token_ids(values.get("bos_token_id")):
            return named[0]
    return _tokenizer_token_id(path, tokenizer_config, "bos_token")


def _token_ids(value: object) -> tuple[int, ...]:
    """A config's token id, which may be one, several or null."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0)


def _tokenizer_token_id(path: Path, tokenizer_config: dict[str, Any], name: str) -> int | None:
    token = tokenizer_config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    file = path / "tokenizer.json"
    if not isinstance(token, str) or not file.is_file():
        return None
    tokenizer = _read_json_value(file, _TokenizerFile)
    for added in tokenizer.added_tokens or []:
        if added.content == token:
            return added.id
    vocabulary = tokenizer.model.vocab
    if isinstance(vocabulary, dict):
        return vocabulary.get(token)
    return next((index for index, (piece, _score) in enumerate(vocabulary or []) if piece == token), None)


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerModel(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] | None = None
    """Unigram models have [piece, score] pairs, where the id is the place."""


class _TokenizerFile(msgspec.Struct):
    model: _TokenizerModel
    added_tokens: list[_AddedToken] | None = None


# weights


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files, else the .bin ones."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{single}.index.json"
        if (path / single).is_file():
            return (path / single,)
        if index.is_file():
            return _indexed_files(path, index, single.rpartition(".")[2])
    if (path / "model.gguf").is_file():
        return (path / "model.gguf",)  # of a folder that `models.gguf` made
    raise CheckpointError(_why_no_weights(path))


def _indexed_files(path: Path, index: Path, ending: str) -> tuple[Path, ...]:
    weight_map = _read_json_value(index, _WeightIndex).weight_map
    for tensor, name in weight_map.items():
        if not name.endswith(f".{ending}") or {"/", "\\", "\0"} & set(name):
            raise CheckpointError(
                f"{index} places the tensor {tensor[:200]} in {name[:200]!r}, which is no .{ending} file beside it. "
                "Download it again."
            )
    files = tuple(path / name for name in dict.fromkeys(weight_map.values()))
    missing = [file.name[:80] for file in files if not _is_file(file)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing[:3])} ({len(missing)} of {len(files)} weight files), which "
            f"{index.name} lists. Finish the download."
        )
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file's
        return False


def indexed_names(path: Path) -> dict[str, str]:
    """What the index of the checkpoint in `path` says is where: tensor to file. {} when there is none."""
    for ending in ("safetensors", "bin"):
        for index in sorted(path.glob(f"*.{ending}.index.json")):
            return _read_json_value(index, _WeightIndex).weight_map
    return {}


def _why_no_weights(path: Path) -> str:
    others = sorted(
        file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".h5", ".gguf", ".onnx"}
    )
    if others:
        return (
            f"{path} has no model.safetensors or pytorch_model.bin, only {others[0]}. Convert the weights: load "
            "them with transformers and save_pretrained(), or take a revision of the checkpoint that has them."
        )
    if (path / "adapter_model.safetensors").is_file():
        return f"{path} holds a LoRA adapter. Give it with --lora NAME={path}, and its base model as the model."
    return f"{path} has no weights (model.safetensors or model.safetensors.index.json). Download them into it."


class _WeightIndex(msgspec.Struct):
    weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


class _TensorEntry(msgspec.Struct):
    dtype: str
    data_offsets: tuple[int, int]


def _stored_dtypes(file: Path) -> list[str]:
    """The dtype names of the tensors in a safetensors file, after checking that the file is whole; none of a .bin."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise CheckpointError(f"{file} is a Git LFS pointer, not the weights. Run `git lfs pull` in its directory.")
        if file.suffix == ".bin":
            if not size:
                raise CheckpointError(f"{file} is empty. Download it again.")
            return []
        if start[:4] == b"GGUF" and file.suffix == ".gguf":
            return []
        header_size = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if header_size is None or header_size > min(size - 8, MAX_SAFETENSORS_HEADER_BYTES):
            raise CheckpointError(
                f"{file} is cut short or not a {file.suffix[1:]} file ({size} bytes). Download it again."
            )
        header = stream.read(header_size)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=_TensorEntry) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} has a damaged header ({error}). Download it again.") from None
    ends = {name: 8 + header_size + tensor.data_offsets[1] for name, tensor in tensors.items()}
    if cut := min((name for name in ends if ends[name] > size), key=ends.__getitem__, default=None):
        raise CheckpointError(
            f"{file} is cut short in tensor {cut}: {size} of {max(ends.values())} bytes are there. Download it again."
        )
    return [tensor.dtype for tensor in tensors.values()]


# pooling


def _pooling(path: Path) -> Pooling:
    """What sentence-transformers' modules.json says; the default for a plain encoder."""
    file = path / "modules.json"
    if not file.is_file():
        return Pooling()
    mode = Pooling().mode
    normalize = False
    for module in _read_json_value(file, list[dict[str, Any]]):
        name = str(module.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            mode = _pooling_mode(path / str(module.get("path", "")) / "config.json")
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise CheckpointError(
                f"{file} lists a {name or 'nameless'} module. LangPort applies Transformer, Pooling and "
                "Normalize only; without the rest the vectors would be wrong. Take another embedding model."
            )
    return Pooling(mode=mode, normalize=normalize)


def _classification(path: Path, config: dict[str, Any], architecture: str) -> Classification | None:
    if architecture not in CLASSIFIERS:
        return None
    sentence_transformers = _read_json(path / "config_sentence_transformers.json")
    return read_classification(config, sentence_transformers, path / "config.json")


def _pooling_mode(file: Path) -> PoolingMode:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; modules.json names it. Finish the download.")
    settings = _read_json(file)
    chosen = [mode for field, mode in POOLING_FIELDS.items() if settings.get(field) is True]
    if not chosen and "pooling_mode" in settings:
        chosen = [str(settings["pooling_mode"])]
    try:
        return msgspec.convert({"mode": "+".join(chosen)}, Pooling).mode
    except msgspec.ValidationError:
        raise CheckpointError(
            f"{file} asks for the pooling {' and '.join(chosen) or 'of no kind'}; LangPort pools by one of "
            "mean, cls, max, lasttoken and mean_sqrt_len."
        ) from None


# files


def _read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; {} when there is no such file."""
    return _read_json_value(file, dict[str, Any]) if file.is_file() else {}


def _read_json_value(file: Path, type: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid JSON of the expected shape ({error}). Download it again.") from None
    except RecursionError:
        raise CheckpointError(f"{file} is nested too deeply to be what it should be. Download it again.") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
