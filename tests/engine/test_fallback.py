"""Decoders without a family here: through transformers' code they give what transformers gives, or are refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers import models as families
from transformers.masking_utils import and_masks, causal_mask_function, chunked_overlay, sliding_window_overlay

from langport.errors import CheckpointError
from langport.models import registry
from langport.models.fallback import Fallback
from langport.models.fallback_attention import PagedMask
from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import COMMON, byte_tokenizer
from tests.engine.inprocess import load, run
from tests.engine.parity import BUDGET, PROMPTS, assert_equals_transformers, save_random

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
} | COMMON
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
"""Keys of 24 numbers beside values of 16."""
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
CHUNKS = ["chunked_attention", "full_attention", "chunked_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "olmo": lambda: families.olmo.OlmoConfig(**SIZES, clip_qkv=2.0),
    "olmo3-sliding-window": lambda: families.olmo3.Olmo3Config(**SIZES, sliding_window=24, layer_types=WINDOWS),
    "exaone4-sliding-window": lambda: families.exaone4.Exaone4Config(**SIZES, sliding_window=24, layer_types=WINDOWS),
    "glm4": lambda: families.glm4.Glm4Config(**SIZES, head_dim=16),
    "helium": lambda: families.helium.HeliumConfig(**SIZES, head_dim=16),
    "nemotron": lambda: families.nemotron.NemotronConfig(**SIZES),
    "persimmon": lambda: families.persimmon.PersimmonConfig(**SIZES),
    "biogpt-learned-positions": lambda: families.biogpt.BioGptConfig(**SIZES),
    "ernie4_5": lambda: families.ernie4_5.Ernie4_5Config(**SIZES),
    "granitemoe-scaled-logits": lambda: families.granitemoe.GraniteMoeConfig(
        **SIZES, num_local_experts=4, logits_scaling=3.0
    ),
    "granitemoehybrid-attention-only": lambda: families.granitemoehybrid.GraniteMoeHybridConfig(
        **SIZES, num_local_experts=0, shared_intermediate_size=48, layer_types=["full_attention"] * 3
    ),
    "arcee": lambda: families.arcee.ArceeConfig(**SIZES),
    "dots1-experts": lambda: families.dots1.Dots1Config(**SIZES | EXPERTS),
    "deepseek_v3-latent": lambda: families.deepseek_v3.DeepseekV3Config(**SIZES | EXPERTS | LATENT),
    "gpt_oss-sinks": lambda: families.gpt_oss.GptOssConfig(
        **SIZES,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
        layer_types=WINDOWS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "vaultgemma-soft-caps": lambda: families.vaultgemma.VaultGemmaConfig(
        **SIZES,
        head_dim=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=200.0,
        sliding_window=24,
        layer_types=WINDOWS,
    ),
    "gemma4-differing-heads-shared-keys": lambda: families.gemma4.Gemma4TextConfig(
        **SIZES
        | {
            "num_hidden_layers": 5,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": COMMON["vocab_size"],
        },
        head_dim=16,
        global_head_dim=32,
        num_global_key_value_heads=1,
        num_kv_shared_layers=2,
        sliding_window=24,
        layer_types=[*WINDOWS, "sliding_attention", "full_attention"],
    ),
    "llama4-chunked": lambda: families.llama4.Llama4TextConfig(
        **SIZES,
        head_dim=16,
        num_local_experts=2,
        intermediate_size_mlp=96,
        attention_chunk_size=32,
        layer_types=CHUNKS,
        floor_scale=16,
    ),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "mamba": (lambda: families.mamba.MambaConfig(**SIZES), "recurrent state"),
    "rwkv": (lambda: families.rwkv.RwkvConfig(**SIZES), "recurrent state"),
    "jamba": (lambda: families.jamba.JambaConfig(**SIZES), "recurrent state"),
    "granitemoehybrid": (
        lambda: families.granitemoehybrid.GraniteMoeHybridConfig(
            **SIZES,
            num_local_experts=0,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            mamba_n_heads=4,
            mamba_d_head=32,
        ),
        "recurrent state .layers of the type linear_attention",
    ),
    "lfm2": (
        lambda: families.lfm2.Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
        "conv layers",
    ),
    "openai-gpt": (
        lambda: families.openai.OpenAIGPTConfig(n_embd=64, n_layer=3, n_head=4, **COMMON),
        "AttentionInterface",
    ),
    "doge": (lambda: families.doge.DogeConfig(**SIZES), "attention mask"),
    "bert": (lambda: families.bert.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True), "encoder"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_and_logprobs_equal_transformers(name: str, tmp_path: Path) -> None:
    path = save_random(CONFIGS[name](), tmp_path)

    assert_equals_transformers(path)


def test_a_native_family_gives_the_same_through_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_random(families.llama.LlamaConfig(**SIZES), tmp_path)
    sampling = SamplingParams(max_tokens=12, temperature=0, logprobs=0, prompt_logprobs=0)
    requests = [GenerateRequest(str(i), prompt, sampling) for i, prompt in enumerate(PROMPTS)]
    native = run(load(path, max_num_batched_tokens=BUDGET), requests)
    assert not caplog.records
    monkeypatch.delitem(registry.FAMILIES, "LlamaForCausalLM")

    with caplog.at_level(logging.WARNING, "langport.engine"):
        core = load(path, max_num_batched_tokens=BUDGET)

    assert "LlamaForCausalLM) runs through transformers' own modelling code" in caplog.text
    for key, stream in run(core, requests).items():
        assert stream.tokens == native[key].tokens
        found, expected = ([entry.logprob for entry in s.logprobs] for s in (stream, native[key]))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_window_is_told_from_other_masks() -> None:
    window = and_masks(sliding_window_overlay(24), causal_mask_function)
    chunks = and_masks(chunked_overlay(24, torch.zeros(1, dtype=torch.long)), causal_mask_function)

    assert PagedMask(window, 24).is_window
    assert not PagedMask(window, 25).is_window
    assert not PagedMask(window, 23).is_window
    assert not PagedMask(chunks, 24).is_window
    assert not PagedMask(causal_mask_function, 24).is_window
    assert not PagedMask(causal_mask_function).is_window


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_attention_alone_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make_config, reason = REFUSED[name]
    config = make_config()
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=rf"{config.architectures[0]}.*{reason}"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mistake", [torch.zeros_like, lambda positions: torch.arange(len(positions))])
def test_code_that_does_not_follow_positions_is_refused(
    mistake: Callable[[torch.Tensor], torch.Tensor], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    hidden = Fallback._hidden
    monkeypatch.setattr(Fallback, "_hidden", lambda self, ids, positions: hidden(self, ids, mistake(positions)))

    with pytest.raises(CheckpointError, match=r"OlmoForCausalLM.*gives other logits than alone"):
        load(path, dtype=dtype)


def test_positions_that_only_a_neighbour_reaches_change_nothing(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = families.ministral.MinistralConfig(
        **SIZES, head_dim=16, rope_parameters=rope | {"original_max_position_embeddings": 64}
    )
    path = save_random(config, tmp_path)

    with pytest.raises(CheckpointError, match=r"--max-model-len 64"):
        load(path)
    streams = run(load(path, max_model_len=64), [GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=4))])
    assert len(streams["r", 0].tokens) == 4


def test_weights_keep_the_type_that_is_asked_for(tmp_path: Path) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    request = GenerateRequest("r", PROMPTS[3], SamplingParams(max_tokens=0, prompt_logprobs=0))
    scores = {}
    for dtype in ("float32", "bfloat16"):
        core = load(path, dtype=dtype)
        assert {p.dtype for p in core.runner.model.parameters()} == {getattr(torch, dtype)}  # type: ignore[attr-defined]
        scores[dtype] = [entry.logprob for entry in run(core, [request])["r", 0].prompt_logprobs if entry]
    difference = np.abs(np.subtract(scores["float32"], scores["bfloat16"]))
    assert 0 < difference.mean() < 0.1


def test_a_config_that_transformers_refuses_is_named(tmp_path: Path) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"attention_dropout": "much"}))

    with pytest.raises(CheckpointError, match=r"config\.json: transformers refuses it: .*attention_dropout"):
        load(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(path)


def test_an_unknown_type_says_that_code_in_checkpoints_is_not_run(tmp_path: Path) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "marvin", "architectures": ["MarvinForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "configuration_marvin.MarvinConfig"}
    (path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"MarvinForCausalLM.*'marvin'.*newer transformers"):
        load(path)


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose classes are transformers' Llama under another name, in files beside the weights.

    Each of them writes the file `ran` when it runs; the plain checkpoint of the same weights is beside it.
    """
    llama = families.llama
    for module in ("dynamic_module_utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # which transformers adds that folder to
    save_random(llama.LlamaConfig(**SIZES), tmp_path / "plain")
    path = Path(shutil.copytree(tmp_path / "plain", tmp_path / "marvin"))
    for kind in ("configuration", "modeling"):
        text = Path(llama.__file__).with_name(f"{kind}_llama.py").read_text()
        text = re.sub(r"^from \.\.\.(?=\w)", "from transformers.", text, flags=re.MULTILINE)
        text = re.sub(r"^from \.\.\. ", "from transformers ", text, flags=re.MULTILINE)
        text = text.replace("Llama", "Marvin").replace("configuration_llama", "configuration_marvin")
        text = text.replace('model_type = "llama"', 'model_type = "marvin"')
        (path / f"{kind}_marvin.py").write_text(f"open({str(path / 'ran')!r}, 'w').close()\n{text}")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "marvin", "architectures": ["MarvinForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_marvin.MarvinConfig",
        "AutoModelForCausalLM": "modeling_marvin.MarvinForCausalLM",
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_code_of_a_checkpoint_runs_only_where_it_may(with_code: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match=r"modeling_marvin\.py.*--trust-remote-code"):
        load(with_code)
    assert not (with_code / "ran").exists()
    sampling = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    one = GenerateRequest("a", [5, 6, 7], sampling)
    [expected] = run(load(with_code.parent / "plain"), [one]).values()
    [found] = run(load(with_code, trust_remote_code=True), [one]).values()
    assert (with_code / "ran").exists()
    assert "THE CHECKPOINT'S OWN CODE RUNS (modeling_marvin.py)" in caplog.text
    assert found.tokens == expected.tokens


def test_code_that_nobody_needs_is_not_run(with_code: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LangPort's own class, and transformers', go before the checkpoint's, whatever the setting."""
    file = with_code / "config.json"
    config = json.loads(file.read_text())
    for kind in ("Llama", "Olmo"):
        named = {"model_type": kind.lower(), "architectures": [f"{kind}ForCausalLM"]}
        file.write_text(json.dumps({**config, **named}))
        with caplog.at_level("INFO"):
            load(with_code, trust_remote_code=True)
    assert not (with_code / "ran").exists()
    assert "code of its own, which is not run" in caplog.text


def test_an_architecture_beside_its_type_needs_the_checkpoints_code(with_code: Path) -> None:
    """transformers would build another class for the type than the one that the checkpoint is of."""
    file = with_code / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"MarvinForCausalLM.*--trust-remote-code"):
        load(with_code)


def test_code_that_is_elsewhere_is_not_fetched(with_code: Path) -> None:
    (with_code / "modeling_marvin.py").unlink()
    with pytest.raises(CheckpointError, match=r"modeling_marvin.*not in the directory"):
        load(with_code, trust_remote_code=True)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = save_random(CONFIGS["olmo"](), tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 95}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor .*mlp\.\w+_proj\.weight has shape \["):
        load(path)
