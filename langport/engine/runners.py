"""Run a model over what the scheduler chose: one forward pass per step for all sequences together."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from langport.engine.batch import build_batch
from langport.engine.grammar import Grammars
from langport.engine.memory import BLOCK_SIZE
from langport.engine.sampler import Sampler, prompt_logprobs
from langport.engine.scheduler import ScheduledSequence
from langport.engine.sequence import Sequence
from langport.layers.encoder import EncoderBatch
from langport.models.base import ClassifierModel, DecoderModel, EncoderDecoderModel, EncoderModel
from langport.models.checkpoint import Pooling
from langport.models.lora import Adapters
from langport.ops.attention import LayerCache
from langport.types import TokenLogprob


@dataclass(frozen=True)
class StepResult:
    """What one step found out about one scheduled sequence."""

    scheduled: ScheduledSequence
    token: int | None
    """The sampled token; None while the prompt is not computed whole, or when max_tokens is 0."""
    logprob: TokenLogprob | None
    prompt_logprobs: list[TokenLogprob]
    """Of the prompt tokens that follow the ones computed in this step."""


class DecoderRunner:
    """Decoder-only and encoder-decoder models."""

    def __init__(
        self,
        model: DecoderModel,
        caches: list[LayerCache],
        sampler: Sampler,
        adapters: Adapters,
        grammars: Grammars,
        device: str,
    ) -> None:
        self.model = model
        self.caches = caches
        self.adapters = adapters
        self.sampler = sampler
        self.grammars = grammars
        self.device = device

    @torch.inference_mode()
    def run(self, step: Seq[ScheduledSequence]) -> list[StepResult]:
        """Compute the scheduled tokens, and sample where a sequence's last known token was among them."""
        new = [s.sequence for s in step if s.sequence.encoder_tokens and not s.sequence.is_encoded]
        if new:
            self._encode(new)
        batch = build_batch(step, self.caches, BLOCK_SIZE, self.device, self.model.kernels)
        self.adapters.use([s.sequence.lora for s in step], [s.num_tokens for s in step], len(batch.token_ids))
        ends = torch.tensor([s.num_tokens for s in step]).cumsum(0).tolist()
        sampled = [(end, s) for end, s in zip(ends, step, strict=True) if s.is_sampled and _wants_token(s.sequence)]
        masks = self.grammars.masks([s.sequence for _, s in sampled])
        hidden = self.model(batch)
        drawn: dict[int, tuple[int, TokenLogprob | None]] = {}
        if sampled:
            logits = self.model.logits(hidden[[end - 1 for end, _ in sampled]])
            tokens = self.sampler.sample(logits, [s.sequence for _, s in sampled], masks)
            drawn = dict(zip((end for end, _ in sampled), tokens, strict=True))
        results = []
        for end, scheduled in zip(ends, step, strict=True):
            token, logprob = drawn.get(end, (None, None))
            scores = self._score_prompt(scheduled, hidden[end - scheduled.num_tokens : end])
            results.append(StepResult(scheduled, token, logprob, scores))
        return results

    def _score_prompt(self, scheduled: ScheduledSequence, hidden: Tensor) -> list[TokenLogprob]:
        """Log-probabilities of the prompt tokens that this step's hidden states (num_tokens, hidden_size) predict."""
        sequence = scheduled.sequence
        count, has_ranks = sequence.sampling.prompt_logprobs, sequence.sampling.ranks_prompt
        begin = sequence.num_computed_tokens + 1
        end = min(begin + scheduled.num_tokens, sequence.num_prompt_tokens)
        if count is None or not sequence.wants_prompt_logprobs or begin >= end:
            return []
        logits = self.model.logits(hidden[: end - begin])
        return prompt_logprobs(logits, sequence.tokens[begin:end], count, has_ranks=has_ranks)

    def _encode(self, sequences: list[Sequence]) -> None:
        """Run the encoder over new sequences and store every decoder layer's cross keys and values."""
        assert isinstance(self.model, EncoderDecoderModel)
        batch = EncoderBatch.of([s.encoder_tokens or [] for s in sequences], self.device, self.model.kernels)
        states = self.model.encode(batch)
        slots = [
            (np.array(s.cross_block_table)[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).flatten()[:length]
            for s, length in zip(sequences, batch.lengths, strict=True)
        ]
        slot_index = torch.from_numpy(np.concatenate(slots)).to(self.device)
        for layer, cache in enumerate(self.caches):
            cache.write(slot_index, *self.model.cross_key_value(layer, states))
        for sequence in sequences:
            sequence.is_encoded = True


def _wants_token(sequence: Sequence) -> bool:
    return sequence.num_output_tokens < sequence.sampling.max_tokens


class EncoderRunner:
    """Sentence embedders and classifiers: sequences in, one vector of each out."""

    def __init__(self, model: EncoderModel, pooling: Pooling, device: str) -> None:
        self.model = model
        self.pooling = pooling
        self.device = device

    @property
    def pads(self) -> bool:
        """Whether sequences of like length are computed faster together."""
        return self.model.kernels is None

    @torch.inference_mode()
    def run(self, inputs: list[list[int]], second_text: list[int] | None = None) -> Tensor:
        """Vectors (num_seqs, embedding_size), a classifier's (num_seqs, num_labels), in float32, on the CPU."""
        batch = EncoderBatch.of(inputs, self.device, self.model.kernels, second_text)
        hidden = self.model(batch)
        if isinstance(self.model, ClassifierModel):
            first = torch.from_numpy(batch.offsets[:-1]).to(self.device)
            return self.model.classify(hidden[first]).float().cpu()
        # One by one: torch picks its order of addition by the shape of what it adds up.
        vectors = [pool(states.float(), self.pooling.mode) for states in hidden.split(batch.lengths)]
        if self.pooling.normalize:
            vectors = [F.normalize(vector, dim=0) for vector in vectors]
        return torch.stack(vectors).cpu()


def pool(hidden: Tensor, mode: str) -> Tensor:
    """The vector (hidden_size,) of a sequence from its states (length, hidden_size). Source: sentence-transformers."""
    match mode:
        case "cls":
            return hidden[0]
        case "lasttoken":
            return hidden[-1]
        case "max":
            return hidden.amax(0)
        case "mean":
            return hidden.sum(0) / len(hidden)
        case "mean_sqrt_len":
            return hidden.sum(0) / len(hidden) ** 0.5
        case other:
            raise AssertionError(f"pooling mode {other!r}: read_checkpoint lets only known ones through")
