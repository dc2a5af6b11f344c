"""What read_checkpoint reads from small files, and what it says when they are wrong."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from langport.errors import CheckpointError
from langport.models.checkpoint import Checkpoint, Pooling, read_checkpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "torch_dtype": "bfloat16",
}
BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": 48,
    "vocab_size": 200,
    "eos_token_id": 1,
}


def write(path: Path, config: dict[str, Any] | None, **files: Any) -> Path:
    """A checkpoint directory with one small weight file; `files` are further JSON files by their stems."""
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros((2, 3), np.float32)}, path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def pooled(path: Path, modules: list[str], pooling: dict[str, Any] | None = None) -> Path:
    """An embedder with sentence-transformers' files."""
    entries = [
        {
            "idx": index,
            "path": "" if index == 0 else f"{index}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(modules)
    ]
    write(path, BERT, modules=entries)
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def test_reads_a_decoder(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path, LLAMA))
    assert checkpoint == Checkpoint(
        path=tmp_path,
        config=LLAMA,
        generation_config={},
        architecture="LlamaForCausalLM",
        kind="decoder",
        dtype="bfloat16",
        max_model_len=4096,
        eos_token_ids=(2,),
        bos_token_id=1,
        vocab_size=300,
        weight_files=(tmp_path / "model.safetensors",),
        pooling=Pooling(),
        is_matryoshka=False,
        embedding_size=64,
    )


@pytest.mark.parametrize(
    ("architecture", "more", "kind"),
    [
        ("Qwen3ForCausalLM", {}, "decoder"),
        ("GPT2LMHeadModel", {}, "decoder"),
        ("SomethingNewForCausalLM", {}, "decoder"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("T5ForConditionalGeneration", {"model_type": "t5"}, "encoder-decoder"),
        ("BartForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("MBartForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("MarianMTModel", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("T5WithLMHeadModel", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("BertModel", {}, "encoder"),
        ("RobertaModel", {}, "encoder"),
        ("XLMRobertaModel", {}, "encoder"),
        ("MPNetModel", {}, "encoder"),
        ("DistilBertModel", {}, "encoder"),
        ("BertForMaskedLM", {}, "encoder"),
        ("T5EncoderModel", {"is_encoder_decoder": True}, "encoder"),
    ],
)
def test_kind_follows_the_architecture(tmp_path: Path, architecture: str, more: dict[str, Any], kind: str) -> None:
    config = without(LLAMA, "model_type") | {"architectures": [architecture]} | more
    checkpoint = read_checkpoint(write(tmp_path, config))
    assert (checkpoint.architecture, checkpoint.kind) == (architecture, kind)


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("llama", "LlamaForCausalLM", "decoder"),
        ("t5", "T5ForConditionalGeneration", "encoder-decoder"),
        ("xlm-roberta", "XLMRobertaModel", "encoder"),
    ],
)
def test_model_type_stands_in_for_the_architecture(
    tmp_path: Path, model_type: str, architecture: str, kind: str
) -> None:
    config = without(LLAMA, "architectures") | {"model_type": model_type}
    checkpoint = read_checkpoint(write(tmp_path, config))
    assert (checkpoint.architecture, checkpoint.kind) == (architecture, kind)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("DebertaV2ForSequenceClassification", "classifier"),
        ("LlavaForConditionalGeneration", "images or sound"),
        ("LlamaModel", "no head"),
        ("FluxTransformer2D", "not a kind of model"),
    ],
)
def test_refuses_what_it_cannot_serve(tmp_path: Path, architecture: str, reason: str) -> None:
    message = refusal(write(tmp_path, LLAMA | {"architectures": [architecture]}))
    assert "config.json" in message
    assert architecture in message
    assert reason in message


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        (LLAMA, {}, 4096),
        (LLAMA, {"model_max_length": 100}, 4096),
        (without(LLAMA, "max_position_embeddings") | {"n_positions": 1024}, {}, 1024),
        (without(LLAMA, "max_position_embeddings") | {"seq_length": 777}, {}, 777),
        (without(LLAMA, "max_position_embeddings"), {"model_max_length": 8192}, 8192),
        (without(LLAMA, "max_position_embeddings"), {"model_max_length": int(1e30)}, 2048),
        (without(LLAMA, "max_position_embeddings"), {"model_max_length": 1e30}, 2048),
        (without(LLAMA, "max_position_embeddings"), {}, 2048),
        (T5, {}, 512),
        (T5, {"model_max_length": 640}, 640),
        (T5 | {"n_positions": 1000}, {"model_max_length": 640}, 1000),
        (BERT, {}, 512),
        (
            BERT | {"model_type": "roberta", "architectures": ["RobertaModel"], "max_position_embeddings": 514},
            {},
            512,
        ),
        (
            BERT | {"model_type": "mpnet", "max_position_embeddings": 130, "pad_token_id": 3},
            {},
            126,
        ),
    ],
)
def test_context_length(
    tmp_path: Path, config: dict[str, Any], tokenizer_config: dict[str, Any], expected: int
) -> None:
    assert read_checkpoint(write(tmp_path, config, tokenizer_config=tokenizer_config)).max_model_len == expected


def test_sentence_bert_config_lowers_an_embedders_context_and_no_other(tmp_path: Path) -> None:
    for name, config, expected in (("embedder", BERT, 256), ("decoder", LLAMA, 4096)):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, config, sentence_bert_config={"max_seq_length": 256})
        assert read_checkpoint(path).max_model_len == expected


TOKENIZER = {
    "added_tokens": [{"id": 7, "content": "<|im_end|>"}, {"id": 8, "content": "<s>"}],
    "model": {"type": "BPE", "vocab": {"a": 0, "</s>": 5}},
}


@pytest.mark.parametrize(
    ("generation_config", "config_eos", "tokenizer_config", "expected"),
    [
        ({"eos_token_id": [9, 10]}, 2, {"eos_token": "<|im_end|>", "chat_template": "x"}, (9, 10)),
        ({"eos_token_id": 9}, 2, {}, (9,)),
        ({}, 2, {"eos_token": "<|im_end|>"}, (2,)),
        ({}, [2, 3], {}, (2, 3)),
        ({}, 2, {"eos_token": "<|im_end|>", "chat_template": "x"}, (2, 7)),
        ({}, 7, {"eos_token": "<|im_end|>", "chat_template": "x"}, (7,)),
        ({}, None, {"eos_token": {"content": "<|im_end|>"}}, (7,)),
        ({}, None, {"eos_token": "</s>"}, (5,)),
        ({}, None, {"eos_token": "<unknown>"}, ()),
        ({}, None, {}, ()),
        ({"eos_token_id": 0}, 2, {}, (0,)),
    ],
)
def test_eos_token_ids(
    tmp_path: Path,
    generation_config: dict[str, Any],
    config_eos: object,
    tokenizer_config: dict[str, Any],
    expected: tuple[int, ...],
) -> None:
    path = write(
        tmp_path,
        LLAMA | {"eos_token_id": config_eos},
        generation_config=generation_config,
        tokenizer_config=tokenizer_config,
        tokenizer=TOKENIZER,
    )
    assert read_checkpoint(path).eos_token_ids == expected


def test_bos_token_comes_from_the_tokenizer_last(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA, tokenizer_config={"bos_token": "<s>"}, tokenizer=TOKENIZER)
    assert read_checkpoint(path).bos_token_id == 1
    write(tmp_path, LLAMA | {"bos_token_id": None})
    assert read_checkpoint(path).bos_token_id == 8
    write(tmp_path, LLAMA, generation_config={"bos_token_id": 4})
    assert read_checkpoint(path).bos_token_id == 4


def test_unigram_vocabulary_gives_ids_by_place(tmp_path: Path) -> None:
    tokenizer = {"added_tokens": [], "model": {"type": "Unigram", "vocab": [["<pad>", 0.0], ["</s>", 0.0]]}}
    path = write(
        tmp_path,
        without(T5, "eos_token_id"),
        tokenizer_config={"eos_token": "</s>"},
        tokenizer=tokenizer,
    )
    assert read_checkpoint(path).eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("named", "stored", "expected"),
    [
        ({"dtype": "float16"}, np.float32, "float16"),
        ({"torch_dtype": "bfloat16"}, np.float32, "bfloat16"),
        ({}, np.float16, "float16"),
        ({}, np.float32, "float32"),
        ({"dtype": "auto"}, np.float16, "float16"),
        ({}, np.int8, "float32"),
    ],
)
def test_dtype(tmp_path: Path, named: dict[str, str], stored: Any, expected: str) -> None:
    write(tmp_path, without(LLAMA, "torch_dtype") | named)
    save_file({"weight": np.zeros((2, 3), stored)}, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).dtype == expected


@pytest.mark.parametrize(
    ("field", "mode"),
    [
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_lasttoken", "lasttoken"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"),
    ],
)
def test_pooling_of_sentence_transformers(tmp_path: Path, field: str, mode: str) -> None:
    settings = {
        "word_embedding_dimension": 32,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_cls_token": False,
    }
    path = pooled(tmp_path, ["Transformer", "Pooling"], settings | {field: True})
    assert read_checkpoint(path).pooling == Pooling(mode=mode, normalize=False)  # type: ignore[arg-type]


def test_pooling_named_in_one_field(tmp_path: Path) -> None:
    path = pooled(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "cls"})
    assert read_checkpoint(path).pooling == Pooling(mode="cls")


def test_normalize_module(tmp_path: Path) -> None:
    path = pooled(tmp_path, ["Transformer", "Pooling", "Normalize"], {"pooling_mode_cls_token": True})
    assert read_checkpoint(path).pooling == Pooling(mode="cls", normalize=True)


@pytest.mark.parametrize(
    ("modules", "pooling", "names"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, ["modules.json", "Dense"]),
        (["Transformer", "Pooling"], None, ["1_Pooling/config.json", "missing"]),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_weightedmean_tokens": True},
            ["1_Pooling/config.json", "weightedmean"],
        ),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ["cls and mean"],
        ),
        (["Transformer", "Pooling"], {}, ["1_Pooling/config.json"]),
    ],
)
def test_refuses_pooling_it_cannot_do(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any] | None, names: list[str]
) -> None:
    message = refusal(pooled(tmp_path, modules, pooling))
    for name in names:
        assert name in message


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"is_matryoshka": True}, True),
        ({"matryoshka_dimensions": [16, 32]}, True),
        ({"matryoshka_dimensions": []}, False),
        ({"is_matryoshka": False}, False),
        ({}, False),
    ],
)
def test_is_matryoshka(tmp_path: Path, more: dict[str, Any], expected: bool) -> None:
    assert read_checkpoint(write(tmp_path, BERT | more)).is_matryoshka is expected


@pytest.mark.parametrize("name", ["hidden_size", "d_model", "n_embd", "n_embed", "dim"])
def test_embedding_size_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    assert read_checkpoint(write(tmp_path, without(BERT, "hidden_size") | {name: 96})).embedding_size == 96


def test_shards_in_the_order_of_the_index(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    shards = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    for shard in shards:
        save_file({shard: np.zeros(3, np.float32)}, tmp_path / shard)
    weight_map = {"a": shards[0], "b": shards[1], "c": shards[0]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert read_checkpoint(tmp_path).weight_files == tuple(tmp_path / shard for shard in shards)

    (tmp_path / shards[0]).unlink()
    message = refusal(tmp_path)
    assert shards[0] in message
    assert "1 of 2" in message


@pytest.mark.parametrize("weight_map", [None, {}, {"a": 5}, {"a": "../../secret.safetensors"}, ["a"]])
def test_damaged_weight_index(tmp_path: Path, weight_map: object) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../x", "../x.safetensors", "/etc/passwd", "..", "a\0.safetensors", "C:\\x.safetensors"]
)
def test_an_index_reaches_nothing_outside_its_directory(tmp_path: Path, name: str) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"some.weight": name}}))
    message = refusal(tmp_path)
    assert str(tmp_path / "model.safetensors.index.json") in message
    assert f"some.weight in {name!r}" in message


def test_a_shard_whose_name_no_file_can_have(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    weight_map = {"a": "a" * 5000 + ".safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "lacks aaa" in refusal(tmp_path)
    assert len(refusal(tmp_path)) < 500


def test_absurd_and_deeply_nested_configs_are_named(tmp_path: Path) -> None:
    write(tmp_path, LLAMA | {"num_attention_heads": 0})
    assert "num_attention_heads is 0" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"a":' + "[" * 200_000)
    assert "config.json is nested too deeply" in refusal(tmp_path)


def test_bin_files_serve_where_there_are_no_safetensors(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert read_checkpoint(tmp_path).weight_files == (tmp_path / "model.safetensors",)
    (tmp_path / "model.safetensors").unlink()
    assert read_checkpoint(tmp_path).weight_files == (tmp_path / "pytorch_model.bin",)
    (tmp_path / "pytorch_model.bin").unlink()
    for index, wrong in (("pytorch_model.bin", "a.safetensors"), ("model.safetensors", "a.bin")):
        (tmp_path / f"{index}.index.json").write_text(json.dumps({"weight_map": {"a": wrong}}))
        assert wrong in refusal(tmp_path)
        (tmp_path / f"{index}.index.json").unlink()


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "not a directory" in refusal(tmp_path / "nowhere")
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert "GGUF" in refusal(tmp_path)
    (tmp_path / "model.gguf").unlink()
    (tmp_path / "README.md").touch()
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    assert "LoRA" in refusal(tmp_path)


def test_a_directory_above_the_checkpoint_says_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", LLAMA)
    assert str(tmp_path / "inner") in refusal(tmp_path)


@pytest.mark.parametrize("name", ["training_args.bin", "q4.gguf", "tf_model.h5"])
def test_weights_in_another_format_must_be_converted(tmp_path: Path, name: str) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    assert "no weights" in refusal(tmp_path)
    (tmp_path / name).touch()
    message = refusal(tmp_path)
    assert name in message
    assert "safetensors" in message


def test_quantized_checkpoints_are_refused_by_method(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "gptq" in message


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\u0000", '{"architectures": ["LlamaForCausalLM"]}'])
def test_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, None)
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["generation_config", "tokenizer_config"])
def test_damaged_side_files_are_named(tmp_path: Path, name: str) -> None:
    assert f"{name}.json" in refusal(write(tmp_path, LLAMA, **{name: "{"}))


@pytest.mark.parametrize("config", [without(LLAMA, "architectures", "model_type"), LLAMA | {"architectures": []}])
def test_a_config_without_architectures(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, config | {"model_type": "unheard-of"})
    message = refusal(tmp_path)
    assert "unheard-of" in message
    assert "architectures" in message


def damaged_weights() -> dict[str, bytes]:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(16)
    return {
        "empty": b"",
        "short length": whole[:5],
        "short header": whole[:20],
        "short data": whole[:-1],
        "huge length": struct.pack("<Q", 2**60) + whole[8:],
        "not json": struct.pack("<Q", len(header)) + b"x" * len(header) + bytes(16),
        "no offsets": struct.pack("<Q", 18) + b'{"w":{"dtype":"a"}}'[:18] + bytes(16),
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n",
    }


@pytest.mark.parametrize("damage", damaged_weights())
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").write_bytes(damaged_weights()[damage])
    message = refusal(tmp_path)
    assert str(tmp_path / "model.safetensors") in message
    assert "again" in message or "lfs" in message


def test_random_damage_is_always_a_checkpoint_error(tmp_path: Path) -> None:
    """Any JSON value in any place is read or refused; no other exception escapes."""
    chance = random.Random(0)
    values = [None, True, -1, 0, 3, 1e30, "", "x", [], [None], ["x"], [[1]], {}, {"x": 1}, {"content": 5}]
    files: dict[str, dict[str, Any]] = {
        "config": BERT | {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0},
        "generation_config": {"eos_token_id": 1, "bos_token_id": 0},
        "tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>", "model_max_length": 5},
        "tokenizer": TOKENIZER,
        "sentence_bert_config": {"max_seq_length": 100},
    }
    write(tmp_path, None)
    outcomes = set()
    for _ in range(600):
        changed = {name: dict(content) for name, content in files.items()}
        for _ in range(chance.randint(1, 3)):
            content = changed[chance.choice(list(files))]
            content[chance.choice(list(content))] = chance.choice(values)
        for name, content in changed.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        try:
            read_checkpoint(tmp_path)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys, langport.models.checkpoint, langport.models.hub;"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
