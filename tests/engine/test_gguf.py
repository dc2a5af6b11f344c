"""GGUF files, written here from transformers' checkpoints as llama.cpp's converter does."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from langport.errors import CheckpointError
from langport.models.checkpoint import read_checkpoint
from langport.models.gguf import LLAMA3_SPLIT, QWEN2_SPLIT, checkpoint_folder
from langport.models.hub import resolve_model
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from tests.engine.test_weights import answers, logprobs, rewrite

Checkpoints = Callable[[str], Path]
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEXTS = (
    "Hello, world! It's 12345 o'clock.\n\n  Indented   text\tand tabs ",
    "Größe 日本語 🦊 naïve e\u0301",
    "<bos>special<eos> tokens<mark> inside",
    " leading and trailing ",
    "",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def write_gguf(
    path: Path,
    source: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """`source` as one file; matrices of the layers in `kind`."""
    config = json.loads((source / "config.json").read_text())
    name = config["model_type"]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    add_tokens(writer, tokenizer, pre="gpt-2")
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for there, tensor in load_file(source / "model.safetensors").items():
        values = tensor.float().numpy()
        module, _, end = there.removeprefix("model.").rpartition(".")
        here = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}.get(module)
        if here is None:
            _, number, part = module.split(".", 2)
            here = f"blk.{number}.{MODULES[part]}"
            if name == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"]
                halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        is_matrix = values.ndim == 2 and here.startswith("blk.")
        stored = kind if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{here}.{end}", gguf.quants.quantize(values, stored), raw_dtype=stored)
    for here, values in (tensors or {}).items():
        writer.add_tensor(here, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokens(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], *, pre: str, kind: str = "gpt2") -> None:
    """What a tokenizer.json holds, as metadata."""
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    vocab = {**tokenizer["model"]["vocab"], **{content: token["id"] for content, token in added.items()}}
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_token_list(tokens)
    types = [3 if token in added and added[token]["special"] else 4 if token in added else 1 for token in tokens]
    writer.add_token_types(types)
    for name in ("bos", "eos"):
        if f"<{name}>" in vocab:
            getattr(writer, f"add_{name}_token_id")(vocab[f"<{name}>"])


def served(path: Path) -> Path:
    return resolve_model(str(path))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_float_file_answers_as_its_checkpoint(family: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = checkpoint(family)
    path = served(write_gguf(tmp_path / "model.gguf", source))
    read = read_checkpoint(path)
    assert (read.dtype, read.max_model_len, read.eos_token_ids, read.bos_token_id) == ("float32", 512, (2,), 1)
    for found, expected in zip(answers(path), answers(source), strict=True):
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(logprobs(found), logprobs(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_a_quantized_file_answers_as_the_floats_it_means(kind: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = checkpoint("qwen2")
    quantization = gguf.GGMLQuantizationType[kind]

    def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        for name, tensor in tensors.items():
            is_matrix = tensor.dim() == 2 and ".layers." in name
            values = gguf.quants.quantize(tensor.numpy(), quantization) if is_matrix else None
            out[name] = tensor if values is None else torch.from_numpy(gguf.quants.dequantize(values, quantization))
        return out

    meant = rewrite(tmp_path / "floats", source, rounded)
    path = served(write_gguf(tmp_path / "model.gguf", source, quantization))
    assert read_checkpoint(path).dtype == ("float16" if kind == "F16" else "bfloat16")
    for found, expected in zip(answers(path, dtype="float32"), answers(meant), strict=True):
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(logprobs(found), logprobs(expected), atol=1e-4)
    assert answers(path, quantization="int4")


def test_llama_3_rotation_is_recovered_from_its_factors(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from tests.checkpoints import _llama_like
    from tests.engine.parity import save_random

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = _llama_like(LlamaConfig, rope_parameters=rope, tie_word_embeddings=False)
    source = save_random(config, tmp_path / "source")
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = {"rope_freqs.weight": (plain / scaled).numpy().astype(np.float32)}
    path = served(write_gguf(tmp_path / "model.gguf", source, tensors=factors))
    assert read_checkpoint(path).config["rope_scaling"]["factor"] == pytest.approx(8)
    for found, expected in zip(answers(path), answers(source), strict=True):
        assert found.tokens == expected.tokens
    factors["rope_freqs.weight"][2] = 3
    other = write_gguf(tmp_path / "other.gguf", source, tensors=factors)
    with pytest.raises(CheckpointError, match="rope_freqs"):
        served(other)


def trained(pre: str) -> tokenizers.Tokenizer:
    """A small tokenizer of the kind that GGUF calls `pre`, as transformers' tokenizer.json has it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts: list[Any] = [whole]
    if pre in ("llama-bpe", "qwen2"):
        split = LLAMA3_SPLIT if pre == "llama-bpe" else QWEN2_SPLIT
        parts = [pre_tokenizers.Split(Regex(split), behavior="isolated"), bare]
    elif pre == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), whole]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text()], trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<mark>", special=False, normalized=False)])
    return tokenizer


def tokenizer_of(tmp_path: Path, content: dict[str, Any], source: Path, **options: Any) -> Tokenizer:
    """The tokenizer read from a GGUF file that holds what a tokenizer.json does."""
    path = tmp_path / "tokens.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(8)
    writer.add_layer_norm_rms_eps(1e-6)
    scores = options.pop("scores", None)
    metadata = options.pop("metadata", {})
    add_tokens(writer, content, **options)
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Tokenizer.from_directory(served(path))


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_byte_level_tokenizers(pre: str, tmp_path: Path, checkpoint: Checkpoints) -> None:
    original = trained(pre)
    tokenizer = tokenizer_of(tmp_path, json.loads(original.to_str()), checkpoint("llama"), pre=pre)
    for text in TEXTS:
        expected = original.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        assert tokenizer.encode(text) == ([1] if pre == "llama-bpe" else []) + expected
        assert tokenizer.decode(expected) == original.decode(expected)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")
    assert tokenizer.special_ids == {0, 1, 2}


def test_a_sentencepiece_tokenizer(tmp_path: Path, checkpoint: Checkpoints) -> None:
    original = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    original.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    original.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    text = " ".join(Path(__file__).read_text().replace(" ", "▁").split("\n"))
    original.train_from_iterator([word for line in text.split() for word in line.split("▁")], trainer)
    content = json.loads(original.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    original = tokenizers.Tokenizer.from_str(json.dumps(content))
    # sentencepiece numbers its pieces in the order of the merges, and scores them by it
    ranks = {"".join(merge): -float(rank) for rank, merge in enumerate(content["model"]["merges"])}
    vocab = content["model"]["vocab"]
    scores = [ranks.get(token, -1e9) for token in sorted(vocab, key=vocab.__getitem__)]
    metadata = {"tokenizer.ggml.unknown_token_id": 0}
    tokenizer = tokenizer_of(
        tmp_path, content, checkpoint("llama"), pre="", kind="llama", scores=scores, metadata=metadata
    )
    for text in ("def test_tokens(path): return", "naïve 日本 🦊", "  two spaces", "<bos>x"):
        expected = original.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        assert tokenizer.encode(text) == [1, *expected]
        assert tokenizer.decode(expected) == original.decode(expected)


def test_the_chat_template_and_the_end_of_a_turn(tmp_path: Path, checkpoint: Checkpoints) -> None:
    metadata = {"tokenizer.chat_template": "{{ messages[0].content }}!", "tokenizer.ggml.eot_token_id": 7}
    path = served(write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"), metadata=metadata))
    tokenizer = Tokenizer.from_directory(path)
    template = ChatTemplate.from_checkpoint(path, tokenizer)
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}]) == "Hi!"
    assert read_checkpoint(path).eos_token_ids == (2, 7)


def test_a_changed_file_is_read_again(tmp_path: Path, checkpoint: Checkpoints) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    first = checkpoint_folder(file)
    assert checkpoint_folder(file) == first
    write_gguf(file, checkpoint("qwen3"))
    assert read_checkpoint(checkpoint_folder(file)).architecture == "Qwen3ForCausalLM"
    assert len(list(first.parent.iterdir())) == 2


@pytest.mark.parametrize("size", [0, 3, 100, 20_000, -1000])
def test_a_truncated_file_is_named(size: int, tmp_path: Path, checkpoint: Checkpoints) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError) as caught:
        served(file)
    assert str(file) in str(caught.value)


def test_a_file_cut_in_its_weights_names_the_tensor(tmp_path: Path, checkpoint: Checkpoints) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"tensor blk\.\d\.\w+\.weight cannot be read") as caught:
        served(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (b"qwen2.attention.head_count", 0, "num_attention_heads is 0"),
        (b"qwen2.block_count", 10**9, "num_hidden_layers is 1000000000"),
        (b"qwen2.embedding_length", 2**32 - 1, "hidden_size is 4294967295"),
        (b"GGUF\3\0\0\0", 2**31, "cut short or no GGUF file"),
    ],
)
def test_absurd_numbers_are_refused(
    place: bytes, value: int, named: str, tmp_path: Path, checkpoint: Checkpoints
) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    raw = bytearray(file.read_bytes())
    begin = raw.index(place) + len(place) + (4 if place.startswith(b"qwen2") else 0)  # the value's type comes first
    raw[begin : begin + 4] = struct.pack("<I", value)
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=named) as caught:
        served(file)
    assert str(file) in str(caught.value)


def test_tensors_that_lie_over_each_other_are_refused(tmp_path: Path, checkpoint: Checkpoints) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    raw = bytearray(file.read_bytes())
    end = raw.index(b"blk.1.attn_q.weight") + len(b"blk.1.attn_q.weight") + 4 + 16 + 4  # dimensions and type
    raw[end : end + 8] = bytes(8)
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"tensor blk\.1\.attn_q\.weight .* does not begin where it should"):
        served(file)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"qwen2.expert_count": 8}, "experts"),
        ({"qwen2.rope.scaling.type": "longrope"}, "longrope"),
        ({"tokenizer.ggml.pre": "viking"}, "viking"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    metadata: dict[str, Any], named: str, tmp_path: Path, checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf", checkpoint("qwen2"))
    reader = gguf.GGUFReader

    class Changed(reader):  # type: ignore[misc, valid-type]
        """The file with other metadata, which the writer does not write twice."""

        def __init__(self, path: Path) -> None:
            super().__init__(path)
            for key, value in metadata.items():
                self.fields[key] = type("Field", (), {"contents": lambda self, value=value: value})()

    monkeypatch.setattr(gguf, "GGUFReader", Changed)
    with pytest.raises(CheckpointError, match=named) as caught:
        served(file)
    assert str(file) in str(caught.value)
