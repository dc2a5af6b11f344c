"""Run a model over what the scheduler chose: one forward pass per step for all sequences together."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from langport.engine.batch import build_batch
from langport.engine.grammar import Grammars, Masks
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
    """What one round of a step found out about one scheduled sequence."""

    scheduled: ScheduledSequence
    num_tokens: int
    """How many more of its tokens the cache holds."""
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
    def run(self, step: Seq[ScheduledSequence]) -> Iterator[list[StepResult]]:
        """Compute the scheduled tokens and drafts, and sample where a sequence's last known token was among them.

        The first round is about all of `step`. When the caller has moved the sequences on by what it drew, those whose
        draft goes on with the same token have another round, one token further, until no draft is right any more. Where
        a draft is nearly sure to be right, all of its places are sampled in the first round.
        """
        new = [s.sequence for s in step if s.sequence.encoder_tokens and not s.sequence.is_encoded]
        if new:
            self._encode(new)
        batch = build_batch(step, self.caches, BLOCK_SIZE, self.device, self.model.kernels)
        self.adapters.use([s.sequence.lora for s in step], [s.num_rows for s in step], len(batch.token_ids))
        begins = [*accumulate((s.num_rows for s in step), initial=0)]
        sampled = [
            (begin, s) for begin, s in zip(begins, step, strict=False) if s.is_sampled and _wants_token(s.sequence)
        ]
        firsts = accumulate((1 + len(s.draft_tokens) for _, s in sampled), initial=0)
        open_rows = [(row, s) for row, (_, s) in zip(firsts, sampled, strict=False)]
        places = {row + number: place for row, s in open_rows for number, place in enumerate(s.places())}
        masks = self.grammars.masks([*places.values()])
        hidden = self.model(batch)
        rows = [row for begin, s in sampled for row in range(begin + s.num_tokens - 1, begin + s.num_rows)]
        logits = self.model.logits(hidden[rows]) if rows else hidden
        drawn = self._draw(logits, places, masks)
        row_of = {begin: row for (begin, _), (row, _) in zip(sampled, open_rows, strict=True)}
        results = []
        for begin, scheduled in zip(begins, step, strict=False):
            token, logprob = drawn[row_of[begin]] if begin in row_of else (None, None)
            scores = self._score_prompt(scheduled, hidden[begin:])
            results.append(StepResult(scheduled, scheduled.num_tokens, token, logprob, scores))
        yield results
        while open_rows := [(row + 1, s) for row, s in open_rows if s.accept()]:
            late = {row: s.sequence for row, s in open_rows if row not in places}
            drawn.update(self._draw(logits, late, self.grammars.masks([*late.values()])))
            yield [StepResult(s, 1, *drawn[row], []) for row, s in open_rows]

    def _draw(
        self, logits: Tensor, places: dict[int, Sequence], masks: Masks | None
    ) -> dict[int, tuple[int, TokenLogprob | None]]:
        """The next tokens of sequences, each by its row of the logits (num_rows, vocab_size)."""
        if not places:
            return {}
        if len(places) < len(logits):
            logits = logits[[*places]]
        return dict(zip(places, self.sampler.sample(logits, [*places.values()], masks), strict=True))

    def _score_prompt(self, scheduled: ScheduledSequence, hidden: Tensor) -> list[TokenLogprob]:
        """Log-probabilities of the prompt tokens that the sequence's hidden states, the first of these, predict."""
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
