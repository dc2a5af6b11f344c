"""An engine without its process, stepped by the test, and transformers' answers to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from langport.engine.engine import EngineCore, GenerationEngine
from langport.engine.load import load_engine
from langport.engine.messages import Embedded, Load, RequestFailed, Step
from langport.models.checkpoint import read_checkpoint
from langport.settings.tree import EngineSettings
from langport.types import EmbedRequest, FinishReason, GenerateRequest, TokenLogprob
from tests.checkpoints import DECODERS


@dataclass
class Stream:
    """What came for one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


def load(path: Path, **settings: object) -> EngineCore:
    """The engine of a checkpoint, in this process. Its steps do not follow the clock, unless the test says so."""
    torch.set_num_threads(1)
    engine = EngineSettings(**{"max_num_batched_tokens": 256, **settings})  # type: ignore[arg-type]
    message = Load("test", str(path), engine, kv_cache_share=0.1)
    core, _ = load_engine(read_checkpoint(path), message, lambda share: None)
    return core


def collect(core: EngineCore, streams: dict[tuple[str, int], Stream]) -> None:
    """One step, its deltas added to `streams`, the scheduler's books checked."""
    for message in core.step():
        assert not isinstance(message, RequestFailed), message
        if isinstance(message, Step):
            for delta in message.deltas:
                stream = streams.setdefault((delta.request_id, delta.index), Stream())
                stream.tokens += delta.token_ids
                stream.logprobs += delta.logprobs or []
                stream.prompt_logprobs += delta.prompt_logprobs or []
                stream.finish_reason = delta.finish_reason
                stream.cached_tokens += delta.cached_tokens
    if isinstance(core, GenerationEngine):
        core.scheduler.check_integrity()


def run(core: EngineCore, requests: list[GenerateRequest]) -> dict[tuple[str, int], Stream]:
    """All requests at once, to their end."""
    streams: dict[tuple[str, int], Stream] = {}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        collect(core, streams)
    return streams


def embed(core: EngineCore, inputs: list[list[int]]) -> list[NDArray[np.float32]]:
    return embed_request(core, EmbedRequest("e", inputs))


def embed_request(core: EngineCore, request: EmbedRequest) -> list[NDArray[np.float32]]:
    assert core.add(request) is None
    vectors: list[bytes] = []
    while core.has_work:
        for message in core.step():
            if isinstance(message, Embedded):
                vectors = message.vectors
    return [np.frombuffer(vector, "<f4") for vector in vectors]


class Reference:
    """transformers on the same checkpoint."""

    def __init__(self, family: str, path: Path) -> None:
        self.is_decoder = family in DECODERS
        kind = AutoModelForCausalLM if self.is_decoder else AutoModelForSeq2SeqLM
        self.model = kind.from_pretrained(path).eval()

    @torch.inference_mode()
    def greedy(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], list[float]]:
        """Generated tokens and their log-probabilities under the raw logits."""
        # use_cache=False: with it, 5.23 fails on models with more decoder than encoder layers.
        out = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, len(prompt) if self.is_decoder else 1 :].tolist()
        scores = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(out.logits, tokens, strict=True)]
        return tokens, scores

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: list[int]) -> list[float]:
        """Of every prompt token but the first."""
        logprobs = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        return [logprobs[i, token].item() for i, token in enumerate(prompt[1:])]


@torch.inference_mode()
def mean_pooled(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    """transformers' states of one sequence, averaged."""
    model = AutoModel.from_pretrained(path).eval()
    vector: NDArray[np.float32] = model(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
    return vector
