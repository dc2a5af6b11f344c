"""One token stream and the states it passes through.

A request with n=2 has two sequences. For a decoder-only model a sequence's tokens begin with the prompt; for an
encoder-decoder they begin with the decoder's start token, and the prompt is the encoder's input.
"""

from __future__ import annotations

import enum
from collections import Counter
from copy import copy
from hashlib import blake2b
from typing import TYPE_CHECKING

from langport.engine.blocks import BlockHash
from langport.types import FinishReason, GenerateRequest, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from langport.engine.drafts import Lookup
    from langport.engine.grammar import Matcher


class SequenceStatus(enum.Enum):
    """Where a sequence stands; `Scheduler` moves it."""

    WAITING = "waiting"
    """In the queue: holds no blocks. New, or preempted and to be computed again."""
    RUNNING = "running"
    """Holds blocks; every step computes some of its tokens."""
    FINISHED = "finished"
    """Ended or aborted: its blocks are given back."""


class Sequence:
    """The state of one token stream inside the engine."""

    def __init__(
        self,
        request: GenerateRequest,
        index: int,
        seed: int,
        *,
        tokens: list[int],
        encoder_tokens: list[int] | None = None,
        leader: Sequence | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        """`tokens`: what the first output token follows; outputs that the request brings along are added to it."""
        self.request_id = request.request_id
        self.index = index
        self.sampling: SamplingParams = request.sampling
        self.seed = seed
        """64-bit key of this sequence's random numbers."""
        self.tokens = tokens
        self.num_prompt_tokens = len(tokens)
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache."""
        self.block_table: list[int] = []
        self.block_hashes: list[BlockHash] = []
        """Of the full blocks of `tokens`, as far as they were needed."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens that needed no computing because their blocks were known; None before the first admission."""
        self.arrived_s = 0.0
        """When it was queued, by the scheduler's clock."""
        self.started_s = 0.0
        """When it was admitted first."""
        self.leader = leader
        """The request's first sequence, whose prompt blocks this one shares."""
        self.matcher = matcher
        """Where it stands in its grammar, if it has one."""
        self.encoder_tokens = encoder_tokens
        self.cross_block_table: list[int] = []
        self.is_encoded = False
        """The encoder has run and its cross keys and values are in the cache."""
        self.priority = request.priority
        self.lora = request.lora
        self.salt = _salt(request)
        """Keeps the cached blocks of different adapters apart (their numbers are never given twice), and those of
        requests that ask for it."""
        self.rank: tuple[float, int] = (0.0, 0)
        """Arrival and priority. When blocks run out the highest one gives way."""
        self.turn: tuple[float, int] = (0.0, 0)
        """Whose prompt is computed next: the lowest one's. The rank, later by the time that the prompt takes."""
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.output_counts: Counter[int] = Counter()
        """How often each token was generated: kept only where a penalty reads it."""
        self.prediction = request.prediction
        self.lookup: Lookup | None = None
        """Where its drafts are found, once one was looked for."""
        self.wants_prompt_logprobs = request.sampling.prompt_logprobs is not None and index == 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        """What is known so far; the first prompt token follows nothing, so it has none."""
        for token in request.outputs[index] if request.outputs else ():
            self.append(token)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that the next steps have to compute before one more can be sampled."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def waits_for_leader(self) -> bool:
        """The blocks it could share are still being computed."""
        leader = self.leader
        return (
            leader is not None
            and leader.status is not SequenceStatus.FINISHED
            and leader.num_computed_tokens < leader.num_prompt_tokens
        )

    @property
    def counts_output(self) -> bool:
        """Whether a penalty needs `output_counts`."""
        sampling = self.sampling
        return bool(sampling.presence_penalty or sampling.frequency_penalty)

    def ends_with(self, tokens: list[int]) -> bool:
        """Whether the last tokens are these; every sequence ends with none."""
        return not tokens or self.tokens[-len(tokens) :] == tokens

    def keep_prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        """Add the entries of the tokens just computed; those of a second pass after preemption are known already."""
        num_known = len(self.prompt_logprobs) - (self.num_computed_tokens + 1)
        self.prompt_logprobs += entries[num_known:]

    def after(self, token: int) -> Sequence:
        """This sequence as it will be with one more token, for the sampler only; the sequence itself stays as it is."""
        later = copy(self)
        later.tokens = [*self.tokens, token]
        if self.matcher is not None:
            later.matcher = self.matcher.after(token)
        if self.counts_output:
            later.output_counts = self.output_counts + Counter((token,))
        return later

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self.tokens.append(token)
        if self.matcher is not None:
            self.matcher.accept(token)
        if self.counts_output:
            self.output_counts[token] += 1


def _salt(request: GenerateRequest) -> bytes:
    if request.lora is None and not request.cache_salt:
        return b""
    return blake2b(repr((request.lora, request.cache_salt)).encode(), digest_size=16).digest()
