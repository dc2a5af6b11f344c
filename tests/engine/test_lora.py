"""LoRA adapters against checkpoints into which they were merged."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from langport.engine.engine import GenerationEngine
from langport.engine.load import load_engine
from langport.engine.messages import Load, RequestFailed
from langport.errors import CheckpointError
from langport.layers.lora import LoraLinear
from langport.models.checkpoint import read_checkpoint
from langport.settings.tree import EngineSettings
from langport.types import GenerateRequest, SamplingParams
from tests.engine.inprocess import Stream, collect, run
from tests.engine.test_weights import logprobs, mixtral
from tests.lora import merge, write_adapter

Checkpoints = Callable[[str], Path]
PROMPT = [20, 21, 22, 9] * 12
NUMBERS: defaultdict[str, int] = defaultdict(itertools.count().__next__)
"""What an engine calls the adapters that the tests give names."""
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(path: Path, adapters: dict[str, Path] | None = None, **settings: object) -> GenerationEngine:
    torch.set_num_threads(1)
    message = Load("test", str(path), EngineSettings(**settings), kv_cache_share=0.1)  # type: ignore[arg-type]
    core, _ = load_engine(read_checkpoint(path), message, lambda share: None)
    assert isinstance(core, GenerationEngine)
    for name, directory in (adapters or {}).items():
        core.load_adapter(NUMBERS[name], directory)
    return core


def request(lora: str | None, prompt: list[int] = PROMPT, **sampling: Any) -> GenerateRequest:
    params = {"max_tokens": 10, "temperature": 0, "logprobs": 0, "prompt_logprobs": 0, "ignore_eos": True} | sampling
    number = None if lora is None else NUMBERS[lora]
    return GenerateRequest(lora or "base", prompt, SamplingParams(**params), lora=number)


def answer(core: GenerationEngine, *loras: str | None, **sampling: Any) -> dict[str, Stream]:
    return {name: stream for (name, _), stream in run(core, [request(lora, **sampling) for lora in loras]).items()}


def assert_same(found: Stream, expected: Stream, tolerance: float = 1e-3) -> None:
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(logprobs(found), logprobs(expected), atol=tolerance)


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("llama", (LLAMA, ("q_proj", "v_proj"), ("k_proj", "down_proj"))),
        ("qwen3", (LLAMA, ("up_proj",), ("v_proj",))),
        ("gpt2", (("c_attn", "c_fc"), ("attn.c_proj",), ("mlp.c_proj",))),
        ("mistral", (LLAMA, ("o_proj",), ("q_proj", "gate_proj"))),
    ],
)
def test_several_adapters_in_one_batch_equal_their_merged_checkpoints(
    family: str, ends: tuple[tuple[str, ...], ...], checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base, is_conv = checkpoint(family), family == "gpt2"
    adapters = {
        f"adapter-{seed}": write_adapter(
            tmp_path / str(seed), base, targets, seed=seed, rank=2 << seed, is_conv=is_conv, use_rslora=seed == 1
        )
        for seed, targets in enumerate(ends)
    }
    core = load(base, adapters, max_num_batched_tokens=32, max_num_seqs=8)
    together = answer(core, None, *adapters)
    assert_same(together["base"], answer(load(base), None)["base"])
    for name, adapter in adapters.items():
        merged = merge(tmp_path / f"merged-{name}", base, adapter, is_conv=is_conv)
        expected = answer(load(merged), None)["base"]
        assert_same(together[name], expected)
        assert_same(answer(core, name)[name], expected)
        assert np.abs(np.subtract(logprobs(expected)[:40], logprobs(together["base"])[:40])).max() > 0.1


def test_an_alpha_of_its_own_for_some_modules(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    pattern = {"k_proj": 16, "mlp.up_proj": 2}
    adapter = write_adapter(tmp_path / "a", base, LLAMA, seed=5, alpha_pattern=pattern)
    merged = merge(tmp_path / "merged", base, adapter)
    assert_same(answer(load(base, {"a": adapter}), "a")["a"], answer(load(merged), None)["base"])


def test_the_prefix_cache_is_not_shared_between_adapters(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    adapters = {name: write_adapter(tmp_path / name, base, LLAMA, seed=i) for i, name in enumerate("ab")}
    core = load(base, adapters)
    fresh = {lora: answer(load(base, adapters), lora, prompt_logprobs=None) for lora in ("a", "b", None)}
    for lora in ("a", None, "b"):
        streams = answer(core, lora, prompt_logprobs=None)
        [stream] = streams.values()
        assert stream.cached_tokens == 0
        assert streams == fresh[lora]
        [again] = answer(core, lora, prompt_logprobs=None).values()
        assert again.cached_tokens == 32
        assert again.tokens == stream.tokens


def test_a_step_without_adapters_does_nothing_for_them(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint("llama")
    core = load(base, {"a": write_adapter(tmp_path, base, LLAMA, seed=0)})
    layers = [module for module in core.runner.model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 12
    seen: list[bool] = []
    monkeypatch.setattr(LoraLinear, "forward", lambda self, x: (seen.append(bool(self.active.gates)), self.base(x))[1])
    answer(core, None)
    assert not any(seen)
    monkeypatch.setattr(core.runner.model, "step", None)  # which would do without these modules
    answer(core, None)
    assert seen
    assert not any(seen)
    answer(core, "a")
    assert seen[-1]


def test_adapters_on_quantized_weights(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path / "a", base, ("q_proj", "down_proj"), seed=1)
    merged = answer(load(merge(tmp_path / "merged", base, adapter)), None, max_tokens=1)["base"]
    quantized = answer(load(base, {"a": adapter}, quantization="int8"), "a", None, max_tokens=1)
    away = np.abs(np.subtract(logprobs(quantized["base"])[:40], logprobs(merged)[:40])).mean()
    near = np.abs(np.subtract(logprobs(quantized["a"])[:40], logprobs(merged)[:40])).mean()
    assert near < away / 4


def test_adapters_in_bfloat16(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path / "a", base, LLAMA, seed=1)
    exact = answer(load(base, {"a": adapter}), "a", max_tokens=1)["a"]
    rounded = answer(load(base, {"a": adapter}, dtype="bfloat16"), "a", max_tokens=1)["a"]
    assert np.abs(np.subtract(logprobs(rounded)[:40], logprobs(exact)[:40])).mean() < 0.1


def test_adapters_of_a_model_that_runs_through_the_fallback(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langport.models.registry import FAMILIES

    monkeypatch.delitem(FAMILIES, "LlamaForCausalLM")
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path / "a", base, LLAMA, seed=1)
    streams = answer(load(base, {"a": adapter}), "a", None)
    merged = answer(load(merge(tmp_path / "merged", base, adapter)), None)["base"]
    assert_same(streams["a"], merged)
    assert streams["base"].tokens != merged.tokens


def test_an_unknown_adapter_fails_its_request_only(checkpoint: Checkpoints) -> None:
    core = load(checkpoint("llama"))
    refused = core.add(request("nobody"))
    assert isinstance(refused, RequestFailed)
    assert f"number {NUMBERS['nobody']} is not loaded" in refused.message
    assert not core.has_work


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"lora_alpha": "much"}, "adapter_config.json"),
        ({"alpha_pattern": {"(": 1}}, "adapter_config.json"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "repeats too much"),
        ({"rank_pattern": {"a*a*a*a*b": 1}}, "repeats too much"),
        ({"r": 0}, "adapter_config.json"),
        ({"r": 5}, "has the rank 4, but adapter_config.json says 5"),
        ({"rank_pattern": {"k_proj": 2}}, "k_proj has the rank 4, but adapter_config.json says 2"),
    ],
)
def test_adapters_that_change_more_are_refused_by_name(
    config: dict[str, Any], named: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path, base, LLAMA, seed=0, **config)
    with pytest.raises(CheckpointError, match=named) as caught:
        load(base, {"a": adapter})
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 65)),
        ("model.layers.0.self_attn.k_proj.lora_B.weight", (64, 4)),
        ("model.layers.0.self_attn.q_proj.lora_B.weight", (64, 5)),
        ("model.layers.9.self_attn.q_proj.lora_B.weight", (64, 4)),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (64,)),
        ("model.embed_tokens.lora_embedding_A", (4, 384)),
        ("lm_head.lora_A.weight", (4, 64)),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", ()),
        ("model.layers.0.self_attn.q_proj.lora_B.weight", (64, 4, 2)),
        ("layers.0.self_attn.q_proj.lora_A.weight", (4, 64)),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (4, 64)),
    ],
)
def test_a_matrix_that_does_not_fit_is_named_with_its_file(
    name: str, shape: tuple[int, ...], checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path, base, LLAMA, seed=0)
    file = adapter / "adapter_model.safetensors"
    more = {f"base_model.model.{name}": torch.zeros(shape)}
    for start, num_out in (("lm_head", 384), ("layers.0.self_attn.q_proj", 64)):
        if name.startswith(start):
            more[f"base_model.model.{start}.lora_B.weight"] = torch.zeros(num_out, 4)
    save_file(load_file(file) | more, file)
    with pytest.raises(CheckpointError) as caught:
        load(base, {"a": adapter})
    assert str(file) in str(caught.value)
    assert name.partition(".lora_")[0] in str(caught.value)


def test_experts_and_encoder_decoders_take_no_adapters(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = mixtral(tmp_path / "mixtral")
    fine = write_adapter(tmp_path / "fine", base, ("q_proj",), seed=0)
    assert answer(load(base, {"a": fine}), "a")["a"].tokens
    down, up = torch.zeros(2, 64), torch.zeros(4, 2)
    module = "base_model.model.model.layers.0.block_sparse_moe.gate"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, fine / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="gate"):
        load(base, {"a": fine})
    with pytest.raises(CheckpointError, match="decoder-only"):
        load(checkpoint("t5"), {"a": fine})


@pytest.mark.parametrize(
    ("side", "change"),
    [
        ("lora_A", lambda tensor: tensor.index_fill(0, torch.tensor([1]), float("nan"))),
        ("lora_B", lambda tensor: tensor * float("inf")),
        ("lora_B", lambda tensor: tensor.to(torch.int8)),
    ],
)
def test_numbers_that_would_spoil_others_are_refused(
    side: str, change: Callable[[torch.Tensor], torch.Tensor], checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    adapter = write_adapter(tmp_path, base, LLAMA, seed=0)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.model.layers.1.mlp.down_proj.{side}.weight"
    save_file({**tensors, name: change(tensors[name])}, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj") as caught:
        load(base, {"a": adapter})
    assert str(file) in str(caught.value)


def num_wrapped(core: GenerationEngine) -> int:
    return sum(isinstance(module, LoraLinear) for module in core.runner.model.modules())


def test_one_is_added_and_another_removed_while_requests_run(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Each answers as in an engine that had it from the start, whatever comes and goes beside it."""
    base = checkpoint("llama")
    adapters = {name: write_adapter(tmp_path / name, base, LLAMA, seed=i) for i, name in enumerate(("a", "b", "c"))}
    expected = answer(load(base, adapters), None, *adapters, max_tokens=30)
    core = load(base, {name: adapters[name] for name in "ab"}, max_num_batched_tokens=32)
    streams: dict[tuple[str, int], Stream] = {}
    for lora in (None, "a", "b"):
        assert core.add(request(lora, max_tokens=30)) is None
    while len(streams.get(("a", 0), Stream()).tokens) < 5:
        collect(core, streams)
    core.load_adapter(NUMBERS["c"], adapters["c"])
    assert core.add(request("c", max_tokens=30)) is None
    core.unload_adapter(NUMBERS["a"])
    assert isinstance(core.add(request("a")), RequestFailed)
    assert NUMBERS["a"] in core.runner.adapters
    while core.has_work:
        collect(core, streams)
    assert NUMBERS["a"] not in core.runner.adapters
    assert NUMBERS["b"] in core.runner.adapters
    for (name, _), stream in streams.items():
        assert_same(stream, expected[name])
    assert [len(module.adapters) for module in core.runner.model.modules() if isinstance(module, LoraLinear)] == [
        2
    ] * 12


def test_removed_ones_leave_the_model_as_it_was(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    core = load(base)
    before = {name: type(module) for name, module in core.runner.model.named_modules()}
    plain = answer(core, None)
    for name in ("a", "b"):
        core.load_adapter(NUMBERS[name], write_adapter(tmp_path / name, base, ("q_proj", "up_proj"), seed=3))
    assert num_wrapped(core) == 6
    core.unload_adapter(NUMBERS["a"])
    core.unload_adapter(NUMBERS["a"])
    assert num_wrapped(core) == 6
    core.unload_adapter(NUMBERS["b"])
    core.unload_adapter(12345)
    assert {name: type(module) for name, module in core.runner.model.named_modules()} == before
    assert answer(core, None) == plain


@pytest.mark.parametrize("how", ["abort", "fail_all"])
def test_an_unloaded_adapter_is_freed_when_its_requests_are_given_up(
    how: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    core = load(base, {"a": write_adapter(tmp_path, base, LLAMA, seed=0)})
    core.add(request("a"))
    core.step()
    core.unload_adapter(NUMBERS["a"])
    assert num_wrapped(core) == 12
    if how == "abort":
        core.abort("a", None)
    else:
        core.fail_all("no more")
    assert num_wrapped(core) == 0


def test_what_does_not_fit_changes_nothing(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Its last tensor is the one at fault, when all others have been read."""
    base = checkpoint("llama")
    core = load(base, {"a": write_adapter(tmp_path / "a", base, ("q_proj",), seed=0)})
    bad = write_adapter(tmp_path / "bad", base, LLAMA, seed=1)
    tensors = load_file(bad / "adapter_model.safetensors")
    save_file({**tensors, "zzz.lora_A.weight": torch.zeros(4, 4)}, bad / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="zzz"):
        core.load_adapter(NUMBERS["bad"], bad)
    assert num_wrapped(core) == 3
    assert NUMBERS["bad"] not in core.runner.adapters
    assert isinstance(core.add(request("bad")), RequestFailed)


def test_a_replaced_adapter_finds_no_blocks_of_its_predecessor(checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = checkpoint("llama")
    old, new = (write_adapter(tmp_path / str(seed), base, LLAMA, seed=seed) for seed in (1, 2))
    core = load(base, {"old": old})
    answer(core, "old", prompt_logprobs=None)
    core.unload_adapter(NUMBERS["old"])
    core.load_adapter(NUMBERS["new"], new)
    [stream] = answer(core, "new", prompt_logprobs=None).values()
    assert stream.cached_tokens == 0
    assert_same(stream, answer(load(base, {"new": new}), "new", prompt_logprobs=None)["new"])


def test_an_embedder_takes_none(checkpoint: Checkpoints, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, checkpoint("llama"), LLAMA, seed=0)
    message = Load("test", str(checkpoint("bert")), EngineSettings(), kv_cache_share=0.1)
    core, _ = load_engine(read_checkpoint(checkpoint("bert")), message, lambda share: None)
    with pytest.raises(CheckpointError, match="decoder-only"):
        core.load_adapter(0, adapter)
    core.unload_adapter(0)


def test_a_folder_without_an_adapter_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        load(checkpoint("llama"), {"a": tmp_path})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load(checkpoint("llama"), {"a": tmp_path})
