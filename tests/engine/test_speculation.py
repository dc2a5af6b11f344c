"""Drafts never change an answer: tokens, log-probabilities and ends are bit for bit those without speculation."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import msgspec
import pytest

from langport.engine.drafts import Chance, Draft, Drafter, RowCost
from langport.engine.engine import GenerationEngine
from langport.engine.messages import Step
from langport.engine.sequence import Sequence
from langport.ops import native
from langport.text.grammar import regex_grammar
from langport.types import Delta, GenerateRequest, SamplingParams
from tests.engine.families_a import CONFIGS
from tests.engine.inprocess import Stream, collect, load, run
from tests.engine.parity import save_random

Checkpoints = Callable[[str], Path]
Key = tuple[str, int]
FAMILIES = ("llama", "qwen3", "mistral", "gpt2")
"""Mistral's every layer has a window here."""
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"seed": 11},
    {"seed": 12, "temperature": 0.8, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": 0.4, "presence_penalty": 0.1},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logit_bias": {7: 1.5}, "min_tokens": 12, "ignore_eos": False},
    {"seed": 13, "bad_words": ((40, 41), (50,)), "stop_token_ids": (60, 61, 62), "ignore_eos": False},
    {"seed": 14, "grammar": regex_grammar("([a-c]{1,3}=[0-9]{2};){3,9}"), "ignore_eos": False, "temperature": 1.4},
    {"seed": 15, "n": 2},
    {"temperature": 0.0, "prompt_logprobs": 2},
)

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


class Cheap(RowCost):
    """Rows cost hardly anything, whatever the clock says."""

    @property
    def share(self) -> float:
        return 0.01


class Oracle(Drafter):
    """Drafts what is going to be drawn, more or less: it has seen the answers, and misspells some."""

    def __init__(self, answers: dict[Key, Stream], rng: random.Random, max_model_len: int) -> None:
        super().__init__(9, max_model_len=max_model_len)
        self.answers = answers
        self.rng = rng

    def draft(self, sequences: Seq[Sequence], room: int) -> list[Draft | None]:
        drafts: list[Draft | None] = []
        for sequence in sequences:
            count = min(self.rng.randrange(10), self._most(sequence), room)
            answer = self.answers.get((sequence.request_id, sequence.index))
            truth = [] if answer is None else answer.tokens[sequence.num_output_tokens :][: max(0, count)]
            tokens = [token if self.rng.random() < 0.85 else self.rng.randrange(3, 250) for token in truth]
            room -= len(tokens)
            chance = Chance(0.5)
            drafts.append(Draft(tokens, chance, chance, is_predicted=sequence.index == 0) if tokens else None)
        return drafts


def engine(path: Path, **settings: object) -> GenerationEngine:
    core = load(path, **{"max_model_len": 160, "dtype": "bfloat16", **settings})
    assert isinstance(core, GenerationEngine)
    if core.scheduler.drafter is not None:
        core.scheduler.drafter.cost = Cheap()
    return core


def requests(family: str) -> list[GenerateRequest]:
    """One of every kind, with prompts that repeat themselves."""
    made = []
    for number, kind in enumerate(KINDS):
        if family == "t5" and "prompt_logprobs" in kind:
            continue
        sampling = {"max_tokens": 40, "ignore_eos": True, "logprobs": 3, **{k: v for k, v in kind.items() if k != "n"}}
        rng = random.Random(number)
        phrase = [rng.randrange(3, 250) for _ in range(rng.randrange(4, 12))]
        made.append(GenerateRequest(f"r{number}", phrase * 4, SamplingParams(**sampling), kind.get("n", 1)))
    return made


_plain: dict[str, dict[Key, Stream]] = {}


@pytest.fixture
def plain(checkpoint: Checkpoints, family: str) -> dict[Key, Stream]:
    """The answers without speculation; computed once."""
    if family not in _plain:
        core = engine(checkpoint(family), speculation="off")
        assert core.scheduler.drafter is None
        _plain[family] = {key: stream for request in requests(family) for key, stream in run(core, [request]).items()}
    return _plain[family]


def check(streams: dict[Key, Stream], plain: dict[Key, Stream]) -> None:
    assert streams.keys() == plain.keys()
    for key, expected in plain.items():
        found = streams[key]
        assert found.tokens == expected.tokens, key
        assert found.logprobs == expected.logprobs, key
        assert found.prompt_logprobs == expected.prompt_logprobs, key
        assert found.finish_reason == expected.finish_reason, key


def totals(core: GenerationEngine) -> tuple[int, int]:
    """Drafted and accepted tokens."""
    figures = core._report([]).totals
    return figures.num_drafted_tokens, figures.num_accepted_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_together(checkpoint: Checkpoints, family: str, plain: dict[Key, Stream]) -> None:
    core = engine(checkpoint(family))
    check(run(core, requests(family)), plain)
    drafted, accepted = totals(core)
    assert drafted > accepted > 0


@pytest.mark.parametrize("family", [*FAMILIES, "t5"])  # what T5's encoder computes depends on its batch
def test_one_by_one_with_the_answer_for_a_prediction(
    checkpoint: Checkpoints, family: str, plain: dict[Key, Stream]
) -> None:
    """The whole answer but for a word in the middle: fewer steps than tokens, and the same answer."""
    core = engine(checkpoint(family))
    for request in requests(family):
        answer = plain[request.request_id, 0].tokens
        prediction = [*answer[:15], 99, 98, *answer[17:]]
        before = core._num_steps
        streams = run(core, [msgspec.structs.replace(request, prediction=prediction)])
        check(streams, {key: stream for key, stream in plain.items() if key[0] == request.request_id})
        longest = max(len(stream.tokens) for stream in streams.values())
        if request.n == 1 and longest > 20:
            assert core._num_steps - before < longest / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_good_and_bad_drafts_at_random_with_aborts_and_small_pools(
    checkpoint: Checkpoints, family: str, seed: int, plain: dict[Key, Stream]
) -> None:
    rng = random.Random(seed)
    size = 9 if family == "mistral" else 15
    block_bytes = sum(c.keys[0].nbytes + c.values[0].nbytes for c in engine(checkpoint(family)).runner.caches)
    core = engine(
        checkpoint(family),
        max_model_len=160,
        max_num_seqs=5,
        max_num_batched_tokens=rng.choice([17, 40]),
        kv_cache_memory=size * block_bytes,
    )
    core.scheduler.drafter = Oracle(plain, rng, 160)
    arriving = [
        *requests(family),
        *(msgspec.structs.replace(r, request_id=f"x{r.request_id}") for r in requests(family)),
    ]
    rng.shuffle(arriving)
    streams: dict[Key, Stream] = {}
    while arriving or core.has_work:
        while arriving and rng.random() < 0.4:
            assert core.add(arriving.pop()) is None
        if core.has_work:
            collect(core, streams)
        if rng.random() < 0.1:
            core.abort(f"xr{rng.randrange(len(KINDS))}", rng.choice([None, 0]))
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable
    assert core.sequences == {}
    check({key: stream for key, stream in streams.items() if not key[0].startswith("x")}, plain)
    drafted, accepted = totals(core)
    assert drafted > accepted > 0
    # What the cache keeps is what it would keep without drafts.
    check(run(core, requests(family)), plain)


def test_no_draft_crosses_the_length_from_which_a_sequence_is_computed_anew(tmp_path: Path) -> None:
    path = save_random(CONFIGS["phi3-longrope-short"](), tmp_path)
    sampling = SamplingParams(max_tokens=40, temperature=0.0, logprobs=1, ignore_eos=True)
    asked = [GenerateRequest(f"r{number}", [5, 6, 7] * 79, sampling) for number in range(2)]
    plain = run(engine(path, max_model_len=512, speculation="off"), asked)
    core = engine(path, max_model_len=512)
    assert core.scheduler.trained_length == 256
    core.scheduler.drafter = Oracle(plain, random.Random(1), 512)
    core.scheduler.drafter.trained_length = 256
    check(run(core, asked), plain)
    assert totals(core)[1] > 10
    core = engine(path, max_model_len=512)
    check(run(core, asked), plain)
    assert totals(core)[1] > 10


def test_tokens_of_a_prediction_are_counted(checkpoint: Checkpoints) -> None:
    core = engine(checkpoint("llama"))
    request = GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=30, seed=3, ignore_eos=True))
    answer = run(core, [request])["r", 0].tokens

    def counted(prediction: list[int]) -> tuple[int, int]:
        core.add(msgspec.structs.replace(request, prediction=prediction))
        deltas: list[Delta] = []
        while core.has_work:
            for message in core.step():
                deltas += message.deltas if isinstance(message, Step) else []
        assert [token for delta in deltas for token in delta.token_ids] == answer
        return tuple(  # type: ignore[return-value]
            sum(getattr(delta, name) for delta in deltas)
            for name in ("accepted_prediction_tokens", "rejected_prediction_tokens")
        )

    accepted, rejected = counted(answer)
    assert accepted > 20
    assert rejected == 0
    accepted, rejected = counted([99] * 20)
    assert accepted < 3
    assert 0 < rejected < 40
    assert counted([]) == (0, 0)


def test_beams_and_single_tokens_draft_nothing(checkpoint: Checkpoints) -> None:
    core = engine(checkpoint("llama"))
    prompt = [5, 6, 7, 8] * 6
    run(
        core,
        [GenerateRequest("b", prompt, SamplingParams(max_tokens=9, temperature=0.0, is_beam=True, logprobs=4), n=3)],
    )
    run(core, [GenerateRequest("s", prompt, SamplingParams(max_tokens=1, temperature=0.0))])
    run(core, [GenerateRequest("z", prompt, SamplingParams(max_tokens=0, prompt_logprobs=1))])
    assert totals(core) == (0, 0)


def test_on_by_default_only_where_rows_do_not_depend_on_each_other(
    checkpoint: Checkpoints, without_kernels: None
) -> None:
    assert engine(checkpoint("llama")).scheduler.drafter is None
    core = engine(checkpoint("llama"), speculation="ngram", dtype="float32")
    request = GenerateRequest("r", [5, 6, 7] * 4, SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    plain = run(engine(checkpoint("llama"), dtype="float32"), [request])
    check(run(core, [request]), plain)
    assert totals(core)[1] > 0
