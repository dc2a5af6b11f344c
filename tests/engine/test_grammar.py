"""Answers that follow a grammar: of any model, with any seed and temperature, alone, in a batch, after preemption."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import torch

import langport
from langport.api.beam import BeamParams, beam_search
from langport.engine import grammar as engine_grammar
from langport.engine.engine import GenerationEngine
from langport.engine.grammar import Grammars, Masks, unpack, unpack_on_device
from langport.engine.messages import RequestFailed, Step
from langport.ops import native
from langport.text.grammar import (
    ANY_OBJECT,
    choice_grammar,
    ebnf_grammar,
    grammar,
    json_schema_between,
    json_schema_grammar,
    literal,
    regex_grammar,
)
from langport.text.tokenizer import Tokenizer
from langport.types import Delta, Engine, GenerateRequest, Grammar, SamplingParams
from tests.engine.inprocess import Stream, collect, load, run

Checkpoints = Callable[[str], Path]
DEMO = Path(langport.__file__).parent / "demo" / "models"
BYTE_EOS = 2
"""Of the tiny checkpoints."""

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "colour": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,5}$"}, "maxItems": 3},
        "home": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
        "born": {"type": "string", "format": "date"},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.25},
    },
    "required": ["name", "age", "colour", "tags", "home", "born", "share"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "is_old": {"type": "boolean"}},
            "required": ["city", "is_old"],
            "additionalProperties": False,
        }
    },
}
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"v": {"enum": [1, "two", None]}, "kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
    "required": ["v", "kids"],
    "additionalProperties": False,
}
LEAF: dict[str, Any] = {**TREE, "properties": {**TREE["properties"], "kids": {"type": "array", "maxItems": 0}}}
TEMPERATURES = (0.0, 0.7, 1.0, 1.5, 2.0)


def follows(schema: dict[str, Any], text: str) -> bool:
    """Raises what is wrong with the text."""
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))
    return True


def ask(made: Grammar, number: int, prompt: list[int], n: int = 1, **sampling: Any) -> GenerateRequest:
    params = {"max_tokens": 400, "seed": number, "temperature": TEMPERATURES[number % 5], **sampling}
    return GenerateRequest(f"r{number}", prompt, SamplingParams(grammar=made, **params), n)


@pytest.fixture(scope="module")
def chat() -> GenerationEngine:
    core = load(DEMO / "langport-demo-chat")
    assert isinstance(core, GenerationEngine)
    return core


@pytest.fixture(scope="module")
def chat_tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(DEMO / "langport-demo-chat")


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tests.checkpoints import byte_tokenizer as make

    path = tmp_path_factory.mktemp("tokenizer")
    make().save_pretrained(path)
    return Tokenizer.from_directory(path)


@pytest.fixture
def tiny(checkpoint: Checkpoints) -> Callable[..., GenerationEngine]:
    def make(family: str = "llama", **settings: object) -> GenerationEngine:
        core = load(checkpoint(family), **settings)
        assert isinstance(core, GenerationEngine)
        return core

    return make


@pytest.mark.parametrize("schema", [PERSON, TREE])
def test_every_answer_of_the_chat_model_follows_its_schema(
    chat: GenerationEngine, chat_tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    prompt = chat_tokenizer.encode("<|im_start|>user\nDescribe Ann.<|im_end|>\n<|im_start|>assistant\n")
    streams = run(
        chat,
        [
            ask(json_schema_grammar(schema), number, prompt, n=2)
            for number in range(20)[:: 1 if schema is PERSON else 2]
        ],
    )
    ended = [stream for stream in streams.values() if stream.finish_reason == "stop"]
    assert len(ended) >= (40 if schema is PERSON else 10)  # a tree may grow for ever
    for stream in ended:
        assert stream.tokens[-1] in chat.info.eos_token_ids
        assert follows(schema, chat_tokenizer.decode(stream.tokens))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "mbart"])
def test_every_answer_of_a_random_model_follows_its_schema(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer, family: str
) -> None:
    streams = run(tiny(family), [ask(json_schema_grammar(PERSON), number, [5, 6, 7], n=2) for number in range(10)])
    texts = [byte_tokenizer.decode(stream.tokens) for stream in streams.values()]
    assert all(stream.finish_reason == "stop" for stream in streams.values())
    assert all(follows(PERSON, text) for text in texts)
    assert len(set(texts)) > 14


FORMS: list[tuple[Grammar, str]] = [
    (regex_grammar(r"[a-f]{3,6}-\d{2}(é|ß)?"), r"[a-f]{3,6}-\d{2}(é|ß)?"),
    (choice_grammar(["yes", "no", "not yet", 'Ünder/\\"']), r"yes|no|not yet|Ünder/\\\""),
    (ebnf_grammar('start: item ("," item)~0..4\nitem: /[0-9]/ | "(" item ")"'), r"[(]*\d[)]*(,[(]*\d[)]*){0,4}"),
    (ebnf_grammar('root ::= "x" y{2,3}\ny ::= [ab] | "c"'), r"x[abc]{2,3}"),
    (
        grammar(json_schema_between('<call>{"name": "f", "arguments": ', LEAF, "}</call>")),
        r'<call>\{"name": "f", "arguments": \{[\s\S]*\}\}</call>',
    ),
]


@pytest.mark.parametrize(("made", "pattern"), FORMS)
def test_other_forms(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer, made: Grammar, pattern: str
) -> None:
    streams = run(tiny(), [ask(made, number, [9, 8], n=2) for number in range(10)])
    for stream in streams.values():
        if stream.finish_reason == "stop":
            assert re.fullmatch(pattern, byte_tokenizer.decode(stream.tokens))
    assert sum(stream.finish_reason == "stop" for stream in streams.values()) >= 18


def test_an_answer_that_is_cut_off_is_the_beginning_of_one(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer
) -> None:
    whole = run(tiny(), [ask(json_schema_grammar(PERSON), 2, [5])])["r2", 0]
    cut = run(tiny(), [ask(json_schema_grammar(PERSON), 2, [5], max_tokens=30)])["r2", 0]
    assert (cut.finish_reason, cut.tokens) == ("length", whole.tokens[:30])


def test_the_last_token_forced_by_the_checkpoint_does_not_end_it(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer
) -> None:
    """BART's configurations force eos where max_tokens leaves room for one more; the answer is not whole then."""
    assert tiny("bart").runner.sampler.rules.forced_eos_token_ids
    stream = run(tiny("bart"), [ask(json_schema_grammar(PERSON), 1, [5, 6], max_tokens=20)])["r1", 0]
    assert (stream.finish_reason, len(stream.tokens)) == ("length", 20)
    assert BYTE_EOS not in stream.tokens


def changed(checkpoint: Path, target: Path, **config: Any) -> Path:
    """A copy of a checkpoint with entries of its configuration replaced."""
    shutil.copytree(checkpoint, target)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (target / name).exists():
            (target / name).write_text(json.dumps({**json.loads((target / name).read_text()), **config}))
    return target


def test_a_forced_first_token_is_no_part_of_the_text(
    checkpoint: Checkpoints, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    core = load(changed(checkpoint("mbart"), tmp_path / "forced", forced_bos_token_id=1))
    for stream in run(core, [ask(json_schema_grammar(PERSON), number, [5, 6]) for number in range(5)]).values():
        assert stream.tokens[0] == 1
        assert stream.finish_reason == "stop"
        assert follows(PERSON, byte_tokenizer.decode(stream.tokens))


def test_a_model_without_an_end_token_stops_where_the_grammar_ends(
    checkpoint: Checkpoints, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    core = load(changed(checkpoint("llama"), tmp_path / "endless", eos_token_id=None, eos_token=None))
    assert isinstance(core, GenerationEngine)
    assert core.info.eos_token_ids == ()
    deltas: list[Delta] = []
    assert core.add(ask(json_schema_grammar(PERSON), 3, [5, 6])) is None
    while core.has_work:
        deltas += [delta for message in core.step() if isinstance(message, Step) for delta in message.deltas]
    assert [delta.finish_reason for delta in deltas[-2:]] == [None, "stop"]
    assert deltas[-1].token_ids == []
    assert follows(PERSON, byte_tokenizer.decode([token for delta in deltas for token in delta.token_ids]))


def test_draws_of_one_request_differ(tiny: Callable[..., GenerationEngine]) -> None:
    streams = run(tiny(), [ask(json_schema_grammar(PERSON), 4, [5, 6], n=6)])
    assert len({tuple(stream.tokens) for stream in streams.values()}) == 6


def test_an_answer_goes_on_from_what_was_generated_before(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    made = json_schema_grammar(PERSON)
    whole = run(core, [ask(made, 7, [5, 6])])["r7", 0].tokens
    sampling = SamplingParams(max_tokens=400, seed=7, temperature=TEMPERATURES[7 % 5], grammar=made)
    rest = run(core, [GenerateRequest("again", [5, 6], sampling, outputs=[whole[:25]])])["again", 0].tokens
    assert rest == whole[25:]


def test_log_probabilities_are_those_of_the_unmasked_model(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    stream = run(core, [ask(regex_grammar("[ab]{8}"), 1, [5, 6, 7], logprobs=2)])["r1", 0]
    scored = GenerateRequest("s", [5, 6, 7, *stream.tokens], SamplingParams(max_tokens=0, prompt_logprobs=2))
    expected = run(core, [scored])["s", 0].prompt_logprobs[3:]
    assert len(stream.logprobs) == 9
    for found, wanted in zip(stream.logprobs, expected, strict=True):
        assert wanted is not None
        assert found.token_id == wanted.token_id
        assert found.logprob == pytest.approx(wanted.logprob, abs=1e-3)
        assert [token for token, _ in found.top] == [token for token, _ in wanted.top]


BANS: list[tuple[str, dict[str, Any], str]] = [
    ("abc", {"min_tokens": 10}, "abc"),  # nothing may follow: it ends before its time
    ("abc", {"ignore_eos": True}, "abc"),
    ("a{2,}", {"min_tokens": 6, "temperature": 0.0, "logit_bias": {2: 90.0}}, "aaaaaa"),
    ("a{1,9}", {"ignore_eos": True, "logit_bias": {2: 90.0}}, "aaaaaaaaa"),
    ("[ab]c", {"bad_words": ("a",)}, "bc"),
    ("[ab]c", {"bad_words": ("bc",), "logit_bias": {"b": 90.0, "a": -90.0}}, "bc"),  # after b only c may come
    ("ac", {"bad_words": ("a", "c")}, "ac"),
    ("[ab]c", {"allowed_token_ids": ("b", "x")}, "bc"),
    ("ac", {"logit_bias": {"a": -100.0}}, "ac"),
]


@pytest.mark.parametrize(("pattern", "wishes", "text"), BANS)
def test_where_bans_and_grammar_leave_nothing_the_grammar_counts(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer, pattern: str, wishes: dict[str, Any], text: str
) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(byte_tokenizer.encode(text, add_special_tokens=False))

    sampling = dict(wishes)
    sampling["bad_words"] = tuple(ids(word) for word in wishes.get("bad_words", ()))
    sampling["allowed_token_ids"] = tuple(token for word in wishes.get("allowed_token_ids", ()) for token in ids(word))
    bias = wishes.get("logit_bias", {})
    sampling["logit_bias"] = {ids(key)[0] if isinstance(key, str) else key: value for key, value in bias.items()}
    stream = run(tiny(), [ask(regex_grammar(pattern), 1, [5, 6], **{"temperature": 1.0, **sampling})])["r1", 0]
    assert (byte_tokenizer.decode(stream.tokens), stream.finish_reason) == (text, "stop")


def test_a_stop_token_ends_an_answer_in_the_middle(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer
) -> None:
    (comma,) = byte_tokenizer.encode(",", add_special_tokens=False)
    stream = run(tiny(), [ask(regex_grammar("[ab]{3},c"), 1, [5], stop_token_ids=(comma,))])["r1", 0]
    assert (stream.finish_reason, stream.tokens[-1], len(stream.tokens)) == ("stop", comma, 4)


def test_a_text_that_the_model_cannot_spell_fails_alone(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The tokenizer loses its z: the answer gets to it and no further."""
    path = changed(checkpoint("llama"), tmp_path / "no-z")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = tokenizer["model"]["vocab"].pop("z")
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    core = load(path)
    assert core.add(ask(regex_grammar("[ab]{3}zy"), 1, [5], n=2)) is None
    assert core.add(ask(regex_grammar("[ab]{9}"), 2, [5])) is None
    failures, streams = finish(core)
    assert [failure.request_id for failure in failures] == ["r1"]
    assert "the model has no token for what has to come next" in failures[0].message
    assert (streams["r2", 0].finish_reason, len(streams["r2", 0].tokens)) == ("stop", 10)


def finish(core: Any) -> tuple[list[RequestFailed], dict[tuple[str, int], Stream]]:
    """Step to the end; failures and streams apart."""
    failures: list[RequestFailed] = []
    streams: dict[tuple[str, int], Stream] = {}
    while core.has_work:
        for message in core.step():
            if isinstance(message, RequestFailed):
                failures.append(message)
            for delta in message.deltas if isinstance(message, Step) else ():
                stream = streams.setdefault((delta.request_id, delta.index), Stream())
                stream.tokens += delta.token_ids
                stream.finish_reason = delta.finish_reason
        core.scheduler.check_integrity()
    return failures, streams


def test_a_grammar_that_cannot_be_compiled_fails_alone(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    core.add(ask(Grammar("start: nothing"), 1, [5]))
    core.add(ask(regex_grammar("ab"), 2, [5]))
    core.add(GenerateRequest("free", [5], SamplingParams(max_tokens=3, ignore_eos=True)))
    failures, streams = finish(core)
    assert [failure.request_id for failure in failures] == ["r1"]
    assert "nothing" in failures[0].message
    assert (len(streams["r2", 0].tokens), len(streams["free", 0].tokens)) == (3, 3)


def test_aborts_while_compiling_and_after(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    large = {"properties": {f"p{n}": {"type": "string", "maxLength": n} for n in range(800)}}
    core.add(ask(json_schema_grammar(large), 1, [5], n=2))
    core.add(ask(json_schema_grammar(PERSON), 2, [5], n=2))
    assert core.has_work
    core.abort("r1", None)
    for _ in range(200):
        core.step()
        if len(core.sequences) == 2:
            break
    core.abort("r2", 0)
    failures, streams = finish(core)
    assert failures == []
    assert streams["r2", 1].finish_reason == "stop"
    assert all(key[0] == "r2" for key in streams)
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable


def test_a_step_that_fails_takes_the_waiting_ones_along(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    core.add(ask(regex_grammar("a"), 1, [5]))
    failed = core.fail_all("broken")
    assert [message.request_id for message in failed if isinstance(message, RequestFailed)] == ["r1"]
    assert not core.has_work


def test_without_grammars_there_are_no_masks(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny()
    core.add(GenerateRequest("free", [5], SamplingParams(max_tokens=3)))
    core.step()
    assert core.runner.grammars.masks(list(core.sequences.values())) is None


def test_compiled_grammars_are_kept_up_to_a_number(
    tiny: Callable[..., GenerationEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_grammar, "MAX_COMPILED", 2)
    grammars: Grammars = tiny().runner.grammars
    first = grammars.compile(regex_grammar("a"))
    assert grammars.compile(regex_grammar("a")) is first
    for pattern in ("b", "a", "c", "a"):
        grammars.compile(regex_grammar(pattern))
    assert grammars.compile(regex_grammar("a")) is first  # used last, so it stayed
    grammars.compile(regex_grammar("d"))
    grammars.compile(regex_grammar("e"))
    assert grammars.compile(regex_grammar("a")) is not first


@pytest.mark.parametrize("is_native", [True, False])
def test_masks_hide_tokens_of_their_own_rows_only(is_native: bool, request: pytest.FixtureRequest) -> None:
    if not is_native:
        request.getfixturevalue("without_kernels")
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, size=(3, 7), dtype=np.int32)
    for size in (1, 32, 200, 224):
        allowed = unpack(torch.from_numpy(bits), size)
        logits = torch.randn(5, size)
        for rows in ([0, 2, 3], [1, 2, 4]):
            masks = Masks(rows, lambda: torch.from_numpy(bits))
            hidden = logits.clone()
            masks.hide_(hidden)
            expected = logits.clone()
            expected[rows] = logits[rows].where(allowed, float("-inf"))
            assert torch.equal(hidden, expected)
            assert all(torch.equal(masks.hidden(logits[row], row), expected[row]) for row in range(5))


def test_unpacking_is_the_same_on_any_device() -> None:
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, size=(5, 7), dtype=np.int32)
    for size in (1, 32, 200, 224):
        expected = np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little").astype(bool)
        for unpacked in (unpack, unpack_on_device):
            assert np.array_equal(unpacked(torch.from_numpy(bits), size).numpy(), expected)


# --- the same answer whatever the neighbours


def targets() -> list[GenerateRequest]:
    made = (json_schema_grammar(PERSON), json_schema_grammar(TREE), regex_grammar("[a-z]{20,40}"))
    return [
        ask(made[number], number, prompt(number, length), max_tokens=60, logprobs=2)
        for number, length in enumerate((45, 70, 17))
    ]


def prompt(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 250) for _ in range(length)]


def others() -> list[GenerateRequest]:
    """With grammars and without."""
    draw = random.Random(8)
    made = (None, json_schema_grammar(ANY_OBJECT), grammar(literal("fixed")), None)
    return [
        GenerateRequest(
            f"other{number}",
            prompt(number, draw.randrange(1, 90)),
            SamplingParams(
                max_tokens=draw.randrange(1, 40), temperature=draw.choice([0.0, 1.0]), grammar=draw.choice(made)
            ),
        )
        for number in range(13)
    ]


needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


@pytest.fixture
def alone(tiny: Callable[..., GenerationEngine]) -> dict[tuple[str, int], Stream]:
    return {key: s for target in targets() for key, s in run(tiny(max_model_len=160), [target]).items()}


def check(streams: dict[tuple[str, int], Stream], alone: dict[tuple[str, int], Stream]) -> None:
    for key, expected in alone.items():
        assert streams[key].tokens == expected.tokens
        assert streams[key].logprobs == expected.logprobs
        assert streams[key].finish_reason == expected.finish_reason


@needs_kernels
@pytest.mark.parametrize("short_s", [0.0, 1e9], ids=["in a thread", "without"])
def test_in_a_batch_as_alone(
    tiny: Callable[..., GenerationEngine],
    alone: dict[tuple[str, int], Stream],
    monkeypatch: pytest.MonkeyPatch,
    short_s: float,
) -> None:
    monkeypatch.setattr(engine_grammar, "SHORT_S", short_s)
    company = others()
    check(run(tiny(max_model_len=160), [*company[:6], *targets(), *company[6:]]), alone)


class DoneWhenAskedAgain(Future[Any]):
    """A grammar that is compiled right after the engine has looked whether it is."""

    num_asked = 0

    def done(self) -> bool:
        self.num_asked += 1
        return self.num_asked > 1


def test_what_is_compiled_while_the_engine_looks_is_started_once(tiny: Callable[..., GenerationEngine]) -> None:
    core = tiny(max_model_len=160)
    (request, *_) = targets()
    compiled = core.runner.grammars.compile(request.sampling.grammar).result()
    future = DoneWhenAskedAgain()
    future.set_result(compiled)
    core.compiling.append((request, future))
    for _ in range(3):
        core.step()
    assert len(core.scheduler.running) + len(core.scheduler.waiting) == request.n
    assert not core.compiling


@needs_kernels
def test_after_preemption_in_the_middle(
    tiny: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]
) -> None:
    block_bytes = sum(cache.keys[0].nbytes + cache.values[0].nbytes for cache in tiny().runner.caches)
    core, streams = tiny(max_model_len=160, kv_cache_memory=13 * block_bytes), dict[tuple[str, int], Stream]()
    for request in targets():
        assert core.add(request) is None
    preempted = set()
    while core.has_work:
        collect(core, streams)
        preempted |= {s.request_id for s in core.scheduler.waiting if s.num_output_tokens}
    assert preempted
    check(streams, alone)


# --- beam search


class Stepped:
    """The engine as the API sees it, stepped while somebody waits."""

    def __init__(self, core: GenerationEngine) -> None:
        self.core = core

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        assert self.core.add(request) is None
        while self.core.has_work:
            for delta in self._step():
                yield delta
            await asyncio.sleep(0)

    def _step(self) -> Iterator[Delta]:
        for message in self.core.step():
            assert not isinstance(message, RequestFailed), message
            yield from message.deltas if isinstance(message, Step) else ()


@pytest.mark.parametrize("family", ["llama", "t5"])
async def test_beams_follow_the_grammar(
    tiny: Callable[..., GenerationEngine], byte_tokenizer: Tokenizer, family: str
) -> None:
    words = ["red", "green", "grey", "blue", "blueish", "black"]
    request = GenerateRequest("b", [5, 6], SamplingParams(max_tokens=12, grammar=choice_grammar(words)), n=4)
    engine = cast(Engine, Stepped(tiny(family)))
    found = beam_search(engine, request, BeamParams(8), end_token_ids={BYTE_EOS}, is_stopped=lambda tokens: False)
    deltas = [delta async for delta in found]
    assert [delta.finish_reason for delta in deltas] == ["stop"] * 4
    texts = [byte_tokenizer.decode(delta.token_ids) for delta in deltas]
    assert len(set(texts)) == 4
    assert set(texts) <= set(words)
