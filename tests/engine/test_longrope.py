"""Phi-3's longrope: sequences on both sides of the trained length, in one step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from langport.engine.batch import build_batch
from langport.engine.memory import BLOCK_SIZE, allocate_caches
from langport.engine.scheduler import ScheduledSequence
from langport.engine.sequence import Sequence
from langport.models.base import DecoderModel
from langport.models.checkpoint import read_checkpoint
from langport.models.registry import build_model
from langport.models.weights import load_weights
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.engine.families_a import CONFIGS
from tests.engine.inprocess import load, run
from tests.engine.parity import save_random

TRAINED = 256
PROMPTS = [list(range(3, 40)), [5, 6, 7] * 100, [9, 8, 7, 6] * 64, [11] + [12, 13] * 128]
"""Below, above, just at and just above the trained length."""


@torch.inference_mode()
def test_each_sequence_is_turned_by_its_own_length(tmp_path: Path) -> None:
    path = save_random(CONFIGS["phi3-longrope-short"](), tmp_path)
    checkpoint = read_checkpoint(path)
    model = build_model(checkpoint)
    assert isinstance(model, DecoderModel)
    load_weights(model, checkpoint.weight_files, dtype=torch.float32, device="cpu")
    model.prepare("cpu", checkpoint.max_model_len)
    caches = allocate_caches(model.cache_spec, 1 + 20 * len(PROMPTS), torch.float32, "cpu")
    step = []
    for number, prompt in enumerate(PROMPTS):
        request = GenerateRequest(str(number), prompt, SamplingParams(max_tokens=0))
        sequence = Sequence(request, 0, 0, tokens=list(prompt))
        sequence.block_table = list(range(1 + 20 * number, 1 + 20 * number + -(-len(prompt) // BLOCK_SIZE)))
        step.append(ScheduledSequence(sequence, len(prompt)))
    counts = torch.tensor([len(prompt) for prompt in PROMPTS])
    assert (counts > TRAINED).tolist() == [False, True, False, True]

    batch = build_batch(step, caches, BLOCK_SIZE, "cpu")
    logits = model.logits(model(batch)).split(counts.tolist())

    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    for prompt, found in zip(PROMPTS, logits, strict=True):
        expected = reference(torch.tensor([prompt]), use_cache=False).logits[0]
        torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-3, rtol=0)


def test_generation_across_the_trained_length_equals_transformers(tmp_path: Path) -> None:
    path = save_random(CONFIGS["phi3-longrope-short"](), tmp_path)
    sampling = SamplingParams(max_tokens=24, temperature=0, logprobs=0, ignore_eos=True)
    prompts = [[5, 6, 7] * 83, [5, 6, 7] * 84 + [9], [5, 6, 7] * 100, list(range(3, 60))]
    requests = [GenerateRequest(str(i), prompt, sampling) for i, prompt in enumerate(prompts)]

    core = load(path, max_num_batched_tokens=48, max_num_seqs=8)
    streams = run(core, requests)

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    for number, prompt in enumerate(prompts):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[],
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert streams[str(number), 0].tokens == out.sequences[0, len(prompt) :].tolist()
        expected = [logits[0].log_softmax(-1).max().item() for logits in out.logits]
        found = [entry.logprob for entry in streams[str(number), 0].logprobs]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    # The beginning of a longer text, asked for after it: nothing of the long one may be used.
    request = GenerateRequest("short", prompts[2][:200], sampling)
    after, alone = run(core, [request])["short", 0], run(load(path), [request])["short", 0]
    assert after.tokens == alone.tokens
    if native.kernels() is not None:
        assert after.logprobs == alone.logprobs
    # torch's operators add in another order for another number of rows; what was kept of the long text is far off.
    found, expected = ([entry.logprob for entry in stream.logprobs] for stream in (after, alone))
    assert found == pytest.approx(expected, abs=1e-4)
