"""The step loop's body: take requests, run one step, say what it brought. Knows no sockets and no HTTP."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from langport.engine.messages import Embedded, FirstToken, FromEngine, RequestFailed, Step
from langport.engine.rng import mix
from langport.engine.runners import DecoderRunner, EncoderRunner, StepResult
from langport.engine.scheduler import ScheduledSequence, Scheduler
from langport.engine.sequence import Sequence, SequenceStatus
from langport.errors import CheckpointError
from langport.models.vocabulary import GrammarError
from langport.types import Delta, EmbedRequest, EngineTotals, FinishReason, GenerateRequest, Grammar, ModelInfo

if TYPE_CHECKING:
    from langport.engine.grammar import Compiled, Matcher

COMPILE_WAIT_S = 0.01
"""So long an idle engine waits for a grammar before it looks for messages again."""
EMBED_SORT_WINDOW = 512
"""How many waiting inputs are sorted by length to make batches with little padding, where there is padding."""


class EngineCore(Protocol):
    """What the worker drives, whatever the kind of model."""

    @property
    def has_work(self) -> bool: ...

    def add(self, request: GenerateRequest | EmbedRequest) -> RequestFailed | None:
        """Queue a request, or say why it can never run here."""
        ...

    def abort(self, request_id: str, index: int | None) -> None:
        """Forget a sequence or a request and free what it holds."""
        ...

    def step(self) -> list[FromEngine]:
        """One forward pass and what it brought."""
        ...

    def fail_all(self, message: str) -> list[FromEngine]:
        """Give up on every request, after a step went wrong in a way that may concern all of them."""
        ...

    def open_requests(self) -> set[str]:
        """Ids of those that have not ended."""
        ...

    def report(self) -> Step:
        """How full it is, where no step says so."""
        ...

    def load_adapter(self, number: int, path: Path) -> None:
        """Add the LoRA adapter of a directory, for requests that name its number.

        Raises: CheckpointError naming the file and what of it does not fit; nothing has changed then.
        """
        ...

    def unload_adapter(self, number: int) -> None:
        """Take no more requests for an adapter, and free it once those it has are done. Unknown ones are ignored."""
        ...


class GenerationEngine:
    """Decoder-only and encoder-decoder models: continuous batching."""

    def __init__(self, info: ModelInfo, scheduler: Scheduler, runner: DecoderRunner, decoder_start: int | None) -> None:
        self.info = info
        self.scheduler = scheduler
        self.runner = runner
        self.decoder_start = decoder_start
        """The first token of an encoder-decoder's decoder; None for decoder-only models."""
        self.sequences: dict[tuple[str, int], Sequence] = {}
        self.compiling: list[tuple[GenerateRequest, Future[Compiled]]] = []
        """Requests that wait for their grammar, oldest first."""
        self.leaving_adapters: set[int] = set()
        """Unloaded, but still used by a sequence."""
        self._num_steps = 0
        self._num_computed_tokens = 0
        self._num_generated_tokens = 0
        self._first_tokens: list[FirstToken] = []
        """Of the step that runs."""

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self.compiling)

    def add(self, request: GenerateRequest | EmbedRequest) -> RequestFailed | None:
        if isinstance(request, EmbedRequest):
            return RequestFailed(request.request_id, "this model generates text and has no embeddings")
        if request.lora is not None and not self._has_adapter(request.lora):
            return RequestFailed(request.request_id, f"the adapter number {request.lora} is not loaded")
        grammar = request.sampling.grammar
        if grammar is None:
            self._start(request, None)
        else:
            self.compiling.append((request, self.runner.grammars.compile(grammar)))
        return None

    def _start(self, request: GenerateRequest, compiled: Compiled | None) -> None:
        """Make a request's sequences and queue them."""
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        leader: Sequence | None = None
        for index in range(request.n):
            matcher = self._matcher(request.sampling.grammar, compiled)
            sequence = self._new_sequence(request, index, mix(seed & (1 << 64) - 1, index), leader, matcher)
            leader = leader or sequence
            self.sequences[request.request_id, index] = sequence
            self.scheduler.add(sequence)

    def _matcher(self, grammar: Grammar | None, compiled: Compiled | None) -> Matcher | None:
        return None if grammar is None or compiled is None else self.runner.grammars.matcher(compiled, grammar)

    def _start_compiled(self) -> list[RequestFailed]:
        """Start what has its grammar now; say whose cannot be compiled."""
        failed: list[RequestFailed] = []
        waiting = self.compiling
        are_done = [future.done() for _, future in waiting]  # asked once: one that is done meanwhile waits for its turn
        self.compiling = [each for each, is_done in zip(waiting, are_done, strict=True) if not is_done]
        for (request, future), is_done in zip(waiting, are_done, strict=True):
            if is_done:
                try:
                    self._start(request, future.result())
                except (GrammarError, CheckpointError) as error:
                    failed.append(RequestFailed(request.request_id, f"the grammar cannot be followed: {error}"))
        return failed

    def _new_sequence(
        self, request: GenerateRequest, index: int, seed: int, leader: Sequence | None, matcher: Matcher | None
    ) -> Sequence:
        prompt = list(request.prompt_token_ids)
        if self.decoder_start is None:
            # A prompt of one block is not worth waiting for: its last token is computed in any case.
            is_long = len(prompt) > self.scheduler.pool.block_size
            # One that goes on was here before, and its prompt's blocks with it.
            waits = is_long and not request.outputs
            return Sequence(request, index, seed, tokens=prompt, leader=leader if waits else None, matcher=matcher)
        start = [self.decoder_start]
        return Sequence(request, index, seed, tokens=start, encoder_tokens=prompt, matcher=matcher)

    def abort(self, request_id: str, index: int | None) -> None:
        if index is None:
            self.compiling = [waiting for waiting in self.compiling if waiting[0].request_id != request_id]
        keys = [key for key in self.sequences if key[0] == request_id and index in (None, key[1])]
        for key in keys:
            self.scheduler.finish(self.sequences.pop(key))
        self._free_adapters()

    def step(self) -> list[FromEngine]:
        failed = self._start_compiled()
        step = self.scheduler.schedule()
        if not step and (failed or self.compiling):
            wait([future for _, future in self.compiling], COMPILE_WAIT_S, FIRST_COMPLETED)
            return [*failed, self._report([])]
        assert step, "work is waiting, but the scheduler chose none of it: our bug, please report it"
        num_rows = sum(scheduled.num_rows for scheduled in step)
        rounds = self.runner.run(step)
        with self.scheduler.measure(step):
            first = next(rounds)
        self._num_steps += 1
        self._num_computed_tokens += num_rows
        deltas: list[Delta] = []
        for results in chain([first], rounds):
            for result in results:
                sequence = result.scheduled.sequence
                if sequence.status is SequenceStatus.FINISHED:
                    continue  # another sequence of its request has failed
                problem = None if sequence.matcher is None else sequence.matcher.problem
                if problem is None:
                    deltas += self._advance(result)
                else:
                    message = f"the answer cannot follow its grammar: {problem}"
                    failed.append(RequestFailed(sequence.request_id, message))
                    self.abort(sequence.request_id, None)
        self.scheduler.settle(step)
        self._free_adapters()
        drafts = [scheduled for scheduled in step if scheduled.draft is not None]
        return [*failed, self._report(_joined(deltas, drafts) if drafts else deltas)]

    def fail_all(self, message: str) -> list[FromEngine]:
        failed = [RequestFailed(request_id, message) for request_id in self.open_requests()]
        self.compiling.clear()
        for sequence in self.sequences.values():
            self.scheduler.finish(sequence)
        self.sequences.clear()
        self._free_adapters()
        return [*failed, self._report([])]

    def report(self) -> Step:
        return self._report([])

    def open_requests(self) -> set[str]:
        return {request.request_id for request, _ in self.compiling} | {key[0] for key in self.sequences}

    def load_adapter(self, number: int, path: Path) -> None:
        self.runner.adapters.load(number, path)

    def unload_adapter(self, number: int) -> None:
        if number in self.runner.adapters:
            self.leaving_adapters.add(number)
            self._free_adapters()

    def _has_adapter(self, number: int) -> bool:
        return number in self.runner.adapters and number not in self.leaving_adapters

    def _free_adapters(self) -> None:
        if self.leaving_adapters:
            used = {sequence.lora for sequence in self.sequences.values()} | {r.lora for r, _ in self.compiling}
            for number in self.leaving_adapters - used:
                self.runner.adapters.remove(number)
                self.leaving_adapters.discard(number)

    def _report(self, deltas: list[Delta]) -> Step:
        scheduler = self.scheduler
        pool = scheduler.pool
        usage = 1 - pool.num_free / pool.num_usable
        totals = EngineTotals(
            self._num_steps,
            self._num_computed_tokens,
            self._num_generated_tokens,
            scheduler.num_queried_tokens,
            scheduler.num_cached_tokens,
            scheduler.num_preemptions,
            *((0, 0) if scheduler.drafter is None else (scheduler.drafter.num_drafted, scheduler.drafter.num_accepted)),
        )
        first_tokens, self._first_tokens = self._first_tokens, []
        return Step(deltas, len(scheduler.running), len(scheduler.waiting), usage, totals, first_tokens)

    def _advance(self, result: StepResult) -> list[Delta]:
        """Move a sequence on by what its step computed; its deltas, if there is something to say."""
        sequence = result.scheduled.sequence
        if sequence.wants_prompt_logprobs:
            sequence.keep_prompt_logprobs(result.prompt_logprobs)
        is_complete = sequence.num_pending_tokens == result.num_tokens
        self.scheduler.computed(sequence, result.num_tokens)
        if not is_complete:
            return []
        is_first = sequence.num_output_tokens == 0
        if is_first and sequence.index == 0 and not sequence.sampling.is_beam:
            now_s, started_s = self.scheduler.clock(), sequence.started_s
            first = FirstToken(sequence.request_id, started_s - sequence.arrived_s, now_s - started_s)
            self._first_tokens.append(first)
        if result.token is not None:
            self._num_generated_tokens += 1
            self.scheduler.append(sequence, result.token)
        reason = self._finish_reason(sequence, result.token)
        has_ended = reason is None and sequence.matcher is not None and sequence.matcher.has_ended
        if reason is not None or has_ended:
            del self.sequences[sequence.request_id, sequence.index]
            self.scheduler.finish(sequence)
        delta = Delta(
            request_id=sequence.request_id,
            index=sequence.index,
            token_ids=[] if result.token is None else [result.token],
            finish_reason=reason,
            logprobs=None if result.logprob is None else [result.logprob],
            prompt_logprobs=sequence.prompt_logprobs if is_first and sequence.wants_prompt_logprobs else None,
            cached_tokens=(sequence.num_cached_tokens or 0) if is_first else 0,
        )
        if not has_ended:
            return [delta]
        # The last token is shown, so the end, for which the model has no token, comes after it.
        return [delta, Delta(sequence.request_id, sequence.index, [], "stop")]

    def _finish_reason(self, sequence: Sequence, token: int | None) -> FinishReason | None:
        sampling = sequence.sampling
        eos = self.info.eos_token_ids
        if sampling.is_beam:
            return "length"
        if token in eos and sequence.matcher is not None and sequence.matcher.has_begun:
            return "stop"  # drawn too early only where the grammar left nothing else
        stops = sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *eos)
        if token in stops and sequence.num_output_tokens >= sampling.min_tokens:
            return "stop"
        # The token that an encoder-decoder's decoder starts from is nobody's prompt or completion.
        num_starting = 0 if self.decoder_start is None else 1
        is_full = len(sequence.tokens) - num_starting >= self.info.max_model_len
        return "length" if is_full or sequence.num_output_tokens >= sampling.max_tokens else None


def _joined(deltas: list[Delta], drafts: list[ScheduledSequence]) -> list[Delta]:
    """One delta for all tokens of a sequence, which counts those of its prediction; an end without a token is apart."""
    joined: list[Delta] = []
    by_sequence: dict[tuple[str, int], Delta] = {}
    for delta in deltas:
        key = delta.request_id, delta.index
        first = by_sequence.get(key)
        if first is None or not delta.token_ids:
            joined.append(delta)
            by_sequence.setdefault(key, delta)
            continue
        first.token_ids += delta.token_ids
        first.finish_reason = delta.finish_reason
        if first.logprobs is not None and delta.logprobs is not None:
            first.logprobs += delta.logprobs
    for scheduled in drafts:
        sequence, draft = scheduled.sequence, scheduled.draft
        found = by_sequence.get((sequence.request_id, sequence.index))
        if found is not None and draft is not None and draft.is_predicted:
            found.accepted_prediction_tokens = draft.num_accepted
            found.rejected_prediction_tokens = len(draft.tokens) - draft.num_accepted
    return joined


class EmbeddingEngine:
    """Encoders: batches what is waiting, up to a token budget."""

    def __init__(self, runner: EncoderRunner, max_num_batched_tokens: int) -> None:
        self.runner = runner
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[tuple[str, int]] = deque()
        """(request id, number of the input), oldest first."""
        self.requests: dict[str, EmbedRequest] = {}
        self.vectors: dict[str, dict[int, bytes]] = {}
        self._num_steps = 0
        self._num_computed_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, request: GenerateRequest | EmbedRequest) -> RequestFailed | None:
        if isinstance(request, GenerateRequest):
            return RequestFailed(request.request_id, "this model makes embeddings and generates no text")
        self.requests[request.request_id] = request
        self.vectors[request.request_id] = {}
        self.waiting.extend((request.request_id, number) for number in range(len(request.inputs)))
        return None

    def abort(self, request_id: str, index: int | None) -> None:
        if self.requests.pop(request_id, None) is not None:
            del self.vectors[request_id]
            self.waiting = deque(item for item in self.waiting if item[0] != request_id)

    def step(self) -> list[FromEngine]:
        batch = self._take_batch()
        inputs = [self.requests[request_id].inputs[number] for request_id, number in batch]
        vectors = self.runner.run(inputs, self._second_texts(batch))
        self._num_steps += 1
        self._num_computed_tokens += sum(map(len, inputs))
        rows = vectors.numpy().astype("<f4")
        for (request_id, number), row in zip(batch, rows, strict=True):
            self.vectors[request_id][number] = row.tobytes()
        done = [*self._finished({request_id for request_id, _ in batch})]
        return [*done, self.report()]

    def fail_all(self, message: str) -> list[FromEngine]:
        failed: list[FromEngine] = [RequestFailed(request_id, message) for request_id in self.requests]
        self.requests.clear()
        self.vectors.clear()
        self.waiting.clear()
        return failed

    def report(self) -> Step:
        return Step([], 0, len(self.waiting), 0.0, EngineTotals(self._num_steps, self._num_computed_tokens))

    def open_requests(self) -> set[str]:
        return set(self.requests)

    def load_adapter(self, number: int, path: Path) -> None:
        raise CheckpointError(f"{path}: LoRA adapters are for decoder-only models; this one makes embeddings")

    def unload_adapter(self, number: int) -> None:
        """It has none."""

    def _take_batch(self) -> list[tuple[str, int]]:
        """The oldest waiting inputs within the token budget; one at least."""
        if self.runner.pads:
            return self._take_like_lengths()
        batch: list[tuple[str, int]] = []
        num_tokens = 0
        while self.waiting:
            num_tokens += self._length(self.waiting[0])
            if batch and num_tokens > self.max_num_batched_tokens:
                break
            batch.append(self.waiting.popleft())
        return batch

    def _take_like_lengths(self) -> list[tuple[str, int]]:
        """The oldest waiting input and those nearest to it in length, within the token budget when padded."""
        window = [self.waiting[i] for i in range(min(len(self.waiting), EMBED_SORT_WINDOW))]
        oldest = self._length(window[0])
        window.sort(key=lambda item: abs(self._length(item) - oldest))
        batch: list[tuple[str, int]] = []
        longest = 0
        for item in window:
            longest = max(longest, self._length(item))
            if batch and longest * (len(batch) + 1) > self.max_num_batched_tokens:
                break
            batch.append(item)
        taken = set(batch)
        self.waiting = deque(item for item in self.waiting if item not in taken)
        return batch

    def _length(self, item: tuple[str, int]) -> int:
        request_id, number = item
        return len(self.requests[request_id].inputs[number])

    def _second_texts(self, batch: list[tuple[str, int]]) -> list[int] | None:
        """Where each input's second text begins; None when no input has one."""
        starts = [
            request.second_text[number] if request.second_text else len(request.inputs[number])
            for request, number in ((self.requests[request_id], number) for request_id, number in batch)
        ]
        return starts if any(self.requests[request_id].second_text for request_id, _ in batch) else None

    def _finished(self, request_ids: set[str]) -> Iterator[Embedded]:
        for request_id in request_ids:
            vectors = self.vectors[request_id]
            if len(vectors) == len(self.requests[request_id].inputs):
                yield Embedded(request_id, [vectors[number] for number in range(len(vectors))])
                del self.requests[request_id], self.vectors[request_id]
