"""Run a model over what the scheduler chose: one forward pass per step for all sequences together."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from langport.engine.batch import build_batch
from langport.engine.grammar import Grammars
from langport.engine.memory import BLOCK_SIZE
from langport.engine.sampler import Sampler, prompt_logprobs
from langport.engine.scheduler import ScheduledSequence
from langport.engine.sequence import Sequence
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
        inputs = [s.encoder_tokens or [] for s in sequences]
        token_ids, lengths = pad(inputs, self.device)
        states = self.model.encode(token_ids, lengths)
        is_real = torch.arange(token_ids.shape[1], device=self.device) < lengths[:, None]
        flat = states[is_real]  # (sum of lengths, hidden_size)
        slots = [
            s.cross_block_table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE
            for s, tokens in zip(sequences, inputs, strict=True)
            for i in range(len(tokens))
        ]
        slot_index = torch.tensor(slots, device=self.device)
        for layer, cache in enumerate(self.caches):
            cache.write(slot_index, *self.model.cross_key_value(layer, flat))
        for sequence in sequences:
            sequence.is_encoded = True


def _wants_token(sequence: Sequence) -> bool:
    return sequence.num_output_tokens < sequence.sampling.max_tokens


class EncoderRunner:
    """Sentence embedders and classifiers: a padded batch in, one vector per sequence out."""

    def __init__(self, model: EncoderModel, pooling: Pooling, device: str) -> None:
        self.model = model
        self.pooling = pooling
        self.device = device

    @torch.inference_mode()
    def run(self, inputs: list[list[int]], second_text: list[int] | None = None) -> Tensor:
        """Vectors (num_seqs, embedding_size), a classifier's (num_seqs, num_labels), in float32, on the CPU."""
        token_ids, lengths = pad(inputs, self.device)
        starts = None if second_text is None else torch.tensor(second_text, device=self.device)
        hidden = self.model(token_ids, lengths, starts)
        if isinstance(self.model, ClassifierModel):
            return self.model.classify(hidden[:, 0]).float().cpu()
        vectors = pool(hidden.float(), lengths, self.pooling.mode)
        if self.pooling.normalize:
            vectors = F.normalize(vectors, dim=-1)
        return vectors.cpu()


def pool(hidden: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """One vector per sequence from hidden (num_seqs, max_length, hidden_size). Source: sentence-transformers."""
    is_real = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[:, :, None]
    match mode:
        case "cls":
            return hidden[:, 0]
        case "lasttoken":
            return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        case "max":
            return hidden.masked_fill(~is_real, float("-inf")).amax(1)
        case "mean":
            return hidden.masked_fill(~is_real, 0.0).sum(1) / lengths[:, None]
        case "mean_sqrt_len":
            return hidden.masked_fill(~is_real, 0.0).sum(1) / lengths[:, None].sqrt()
        case other:
            raise AssertionError(f"pooling mode {other!r}: read_checkpoint lets only known ones through")


def pad(inputs: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Token ids (num_seqs, max_length), padded with 0, and their lengths (num_seqs,)."""
    width = max(map(len, inputs))
    padded = [tokens + [0] * (width - len(tokens)) for tokens in inputs]
    return torch.tensor(padded, device=device), torch.tensor(list(map(len, inputs)), device=device)
