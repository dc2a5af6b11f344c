"""Text that a grammar forces is drafted, and answers stay bit for bit those without it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import langport
from langport.engine.engine import GenerationEngine
from langport.engine.forced import MAX_TEXT, Forecast, Guide
from langport.engine.messages import RequestFailed, Step
from langport.engine.sequence import Sequence
from langport.models.checkpoint import read_checkpoint
from langport.models.vocabulary import Vocabulary
from langport.ops import native
from langport.text.grammar import grammar, json_schema_grammar, literal, regex_grammar, sequence, token
from langport.types import GenerateRequest, Grammar, SamplingParams
from tests.engine.inprocess import Stream, collect, load, run

DEMO = Path(langport.__file__).parent / "demo" / "models"
CHAT = DEMO / "langport-demo-chat"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "colour": {"enum": ["red", "green"]},
    },
    "required": ["name", "age", "home", "colour"],
    "additionalProperties": False,
}
JSON = json_schema_grammar(SCHEMA)
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"seed": 1, "n": 3},
    {"seed": 2, "logprobs": 3, "temperature": 0.7, "top_p": 0.9},
    {"seed": 3, "frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.2, "logprobs": 1},
    {"seed": 4, "min_tokens": 60, "bad_words": ((260, 261), (300,))},
    {"seed": 5, "max_tokens": 17},
    {"seed": 6, "grammar": regex_grammar("(id=[0-9]{3}; name=[a-z]{2,5}; ){4}end"), "stop_token_ids": (9,)},
    {"seed": 7, "grammar": None},
    {"temperature": 0.0, "frequency_penalty": 1.0, "grammar": regex_grammar("(x[x-z]){20}")},
    {"seed": 8, "grammar": grammar(literal("There is nothing to choose in this text, which is always the same."))},
)

needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


def engine(path: Path, **settings: object) -> GenerationEngine:
    core = load(path, **{"max_model_len": 256, "dtype": "float32", **settings})
    assert isinstance(core, GenerationEngine)
    return core


def requests() -> list[GenerateRequest]:
    """One of every kind."""
    made = []
    for number, kind in enumerate(KINDS):
        prompt = [random.Random(number).randrange(50, 250) for _ in range(9 + 4 * number)]
        fields = {"max_tokens": 90, "grammar": JSON, **{name: value for name, value in kind.items() if name != "n"}}
        made.append(GenerateRequest(f"r{number}", prompt, SamplingParams(**fields), kind.get("n", 1)))
    return made


_plain: dict[str, dict[tuple[str, int], Stream]] = {}


@pytest.fixture
def plain(name: str) -> dict[tuple[str, int], Stream]:
    """The answers one by one without drafts; computed once."""
    if name not in _plain:
        core = engine(DEMO / name, speculation="off")
        _plain[name] = {key: stream for request in requests() for key, stream in run(core, [request]).items()}
    return _plain[name]


def check(streams: dict[tuple[str, int], Stream], plain: dict[tuple[str, int], Stream]) -> None:
    assert streams.keys() == plain.keys()
    for key, expected in plain.items():
        found = streams[key]
        assert found.tokens == expected.tokens, key
        assert found.logprobs == expected.logprobs, key
        assert found.finish_reason == expected.finish_reason, key


@needs_kernels
@pytest.mark.parametrize("name", ["langport-demo-chat"])
def test_together_with_others_and_again(name: str, plain: dict[tuple[str, int], Stream]) -> None:
    core = engine(DEMO / name)
    check(run(core, requests()), plain)
    check(run(core, requests()[::-1]), plain)  # by now it has seen how the model writes the keys
    totals = core.report().totals
    assert totals.num_drafted_tokens >= totals.num_accepted_tokens > 100
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable


@needs_kernels
@pytest.mark.parametrize("name", ["langport-demo-chat", "langport-demo-text2text"])
def test_one_by_one(name: str, plain: dict[tuple[str, int], Stream]) -> None:
    """An encoder-decoder, too; what its encoder computes depends on its batch."""
    core = engine(DEMO / name)
    for request in requests():
        before = core.report().totals
        streams = run(core, [request])
        check(streams, {key: stream for key, stream in plain.items() if key[0] == request.request_id})
        num_steps = core.report().totals.num_steps - before.num_steps
        assert num_steps <= max(len(stream.tokens) for stream in streams.values()) + 1
    assert core.report().totals.num_accepted_tokens > 50


@needs_kernels
@pytest.mark.parametrize("name", ["langport-demo-chat"])
def test_in_a_small_pool(name: str, plain: dict[tuple[str, int], Stream]) -> None:
    """Sequences give way to others in the middle."""
    cache = engine(DEMO / name).runner.caches
    block_bytes = sum(each.keys[0].nbytes + each.values[0].nbytes for each in cache)
    core = engine(DEMO / name, kv_cache_memory=18 * block_bytes, max_num_seqs=6, max_num_batched_tokens=33)
    streams: dict[tuple[str, int], Stream] = {}
    for request in requests():
        assert core.add(request) is None
    while core.has_work:
        collect(core, streams)
    assert core.scheduler.num_preemptions
    check(streams, plain)
    assert core.report().totals.num_accepted_tokens > 20


@needs_kernels
def test_keys_take_no_steps_of_their_own() -> None:
    core = engine(CHAT)
    request = requests()[0]
    run(core, [request])
    before = core.report().totals
    [stream] = run(core, [msgspec.structs.replace(request, request_id="again")]).values()
    after = core.report().totals
    assert after.num_steps - before.num_steps < 0.7 * len(stream.tokens)
    assert after.num_accepted_tokens - before.num_accepted_tokens > 0.3 * len(stream.tokens)


@needs_kernels
def test_nothing_is_asked_where_speculation_is_off() -> None:
    core = engine(CHAT, speculation="off")
    compiled = core.runner.grammars.compile(JSON).result()
    assert compiled.forecast is None
    assert core.runner.grammars.matcher(compiled, JSON).forced(9) == ([], [])


def test_a_text_that_cannot_be_spelled_fails_as_without_drafts(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    """The tokenizer has no z, which the grammar asks for after a text that it forces."""
    path = checkpoint("llama")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = tokenizer["model"]["vocab"].pop("z")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    sampling = SamplingParams(max_tokens=40, seed=1, grammar=regex_grammar("[ab]{3}cdefghzy"))
    messages = []
    for speculation in ("off", "ngram"):
        core = engine(tmp_path, speculation=speculation)
        core.add(GenerateRequest("r", [5, 6], sampling))
        failures: list[str] = []
        tokens: list[int] = []
        while core.has_work:
            for message in core.step():
                if isinstance(message, RequestFailed):
                    failures.append(message.message)
                elif isinstance(message, Step):
                    tokens += [token_id for delta in message.deltas for token_id in delta.token_ids]
        messages.append((failures, tokens))
        assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable
    assert len(messages[0][0]) == 1
    assert messages[0] == messages[1]


def test_a_text_too_long_to_be_looked_through_is_written_as_without_drafts() -> None:
    """More bytes than the lexer may have states: looking for all that is forced uses these up."""
    made = grammar(literal("ab" * 32_000))
    streams = []
    for speculation in ("off", "ngram"):
        core = engine(CHAT, speculation=speculation)
        for request_id in ("first", "again"):
            sampling = SamplingParams(max_tokens=12, temperature=0.0, grammar=made)
            [stream] = run(core, [GenerateRequest(request_id, [5, 6], sampling)]).values()
            streams.append((stream.tokens, stream.finish_reason))
    assert streams == [streams[0]] * 4
    assert (len(streams[0][0]), streams[0][1]) == (12, "length")


def test_a_later_place_is_as_if_the_tokens_had_come() -> None:
    sampling = SamplingParams(max_tokens=9, frequency_penalty=0.5)
    now, come = (Sequence(GenerateRequest("r", [5, 6], sampling), 0, 1, tokens=[5, 6]) for _ in range(2))
    for token_id in (7, 8, 7):
        now.append(token_id)
        come.append(token_id)
    later = now.after(7).after(9)
    come.append(7)
    come.append(9)
    assert (later.tokens, later.output_counts) == (come.tokens, come.output_counts)
    assert (later.num_output_tokens, now.num_output_tokens) == (5, 3)
    assert (now.tokens, now.output_counts) == ([5, 6, 7, 8, 7], {7: 2, 8: 1})


# --- guides


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    found = read_checkpoint(CHAT)
    return Vocabulary.of(found, 2048, (2047,))


def guide(vocabulary: Vocabulary, made: Grammar) -> Guide:
    forecast = Forecast(vocabulary, made)
    forecast.prepare()
    return Guide(forecast)


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(map(vocabulary.token_bytes, tokens)).decode()


def write(subject: Guide, vocabulary: Vocabulary, text: str) -> None:
    for token_id in vocabulary._tokenizer.encode(text, add_special_tokens=False):
        subject.accept(token_id)


def test_what_is_forced_with_the_spaces_that_are_usual(vocabulary: Vocabulary) -> None:
    subject = guide(vocabulary, JSON)
    tokens, shares = subject.forced(20)
    assert text_of(vocabulary, tokens) == '{"name": "'
    assert len(shares) == len(tokens)
    assert subject.forced(2)[0] == tokens[:2]
    write(subject, vocabulary, '{"name": "Ann')
    assert subject.forced(20) == ([], [])
    write(subject, vocabulary, '"')
    assert text_of(vocabulary, subject.forced(20)[0]) == ', "age": '


def test_after_other_spaces_than_the_usual_only_what_has_to_follow(vocabulary: Vocabulary) -> None:
    subject = guide(vocabulary, JSON)
    write(subject, vocabulary, '{"name":"Ann"')
    assert text_of(vocabulary, subject.forced(20)[0]) == ","
    write(subject, vocabulary, ',"a')
    assert text_of(vocabulary, subject.forced(20)[0]) == 'ge":'
    write(subject, vocabulary, "nothing like it")
    assert subject.forced(20) == ([], [])


def test_the_spelling_of_the_model_is_learnt(vocabulary: Vocabulary) -> None:
    made = grammar(sequence(literal("Colour: blue. "), "/[0-9]+/"))  # type: ignore[arg-type]
    forecast = Forecast(vocabulary, made)
    forecast.prepare()
    letters = [vocabulary.first_token(letter.encode()) for letter in "Colour: blue. "]
    first = Guide(forecast)
    usual, shares = first.forced(20)
    assert text_of(vocabulary, usual) == "Colour: blue. "
    assert len(usual) < len(letters)
    for _ in range(12):
        one = Guide(forecast)
        for letter in letters:
            one.forced(20)
            assert letter is not None
            one.accept(letter)
        one.forced(1)
    spelled, learnt = Guide(forecast).forced(20)
    assert spelled == letters
    assert learnt[0] > shares[0] / 2
    # It is forgotten again when the model writes otherwise.
    for _ in range(60):
        one = Guide(forecast)
        for token_id in usual:
            one.forced(20)
            one.accept(token_id)
        one.forced(1)
    assert Guide(forecast).forced(20)[0] == usual


def test_special_tokens_are_forced_too(vocabulary: Vocabulary) -> None:
    special = min(vocabulary._special - {2047})
    made = grammar(sequence(literal("So: "), token(special), literal("x"), "/[ab]/"))  # type: ignore[arg-type]
    subject = guide(vocabulary, made)
    tokens, _ = subject.forced(20)
    assert tokens[-2] == special
    for token_id in tokens:
        subject.accept(token_id)
    assert subject.forced(20) == ([], [])


def test_long_texts_are_spelled_as_far_as_asked(vocabulary: Vocabulary) -> None:
    text = "word " * 100 + "ünd 日本"
    subject = guide(vocabulary, grammar(literal(text)))
    tokens, _ = subject.forced(15)
    assert len(tokens) == 15
    assert text.startswith(text_of(vocabulary, tokens))
    whole, _ = subject.forced(1000)
    assert text_of(vocabulary, whole) == text
    assert all(len(key) <= MAX_TEXT for key in subject._forecast._spellings)
