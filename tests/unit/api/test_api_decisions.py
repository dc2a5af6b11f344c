"""`POST /v1/decisions` over fakes: probabilities are those that the model gives, and add up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from langport.api.candidates import score_candidates, softmax
from langport.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from langport.testing import EOS, FakeEngine, _logits, byte_tokenizer
from langport.types import EmbedRequest, ModelInfo

ANGRY = {"type": "predicate", "name": "angry", "instructions": "The customer is angry."}
TOPIC = {
    "type": "choice",
    "instructions": [{"type": "input_text", "text": "What is it about?"}],
    "choices": [{"value": "bill", "description": "money"}, {"value": "billing"}, {"value": True}],
}
URGENCY = {"type": "score", "name": "u", "instructions": "How urgent?", "levels": [{"label": "low"}, {"label": "high"}]}


def probability(context: list[int], token: int) -> float:
    """What the fake engine gives a token after these."""
    logits = _logits(context[-3:], byte_tokenizer().vocab_size)
    return float(math.exp(logits[token] - logits.max()) / sum(math.exp(v - logits.max()) for v in logits))


def whole(prompt: list[int], answer: str) -> float:
    """The probability of an answer and its end, token by token."""
    tokens = [*answer.encode(), EOS]
    return math.prod(probability([*prompt, *tokens[:i]], token) for i, token in enumerate(tokens))


async def test_scores_are_the_models_own_probabilities():
    engine = FakeEngine(ModelInfo("decoder", "Fake", 100, byte_tokenizer().vocab_size, eos_token_ids=(EOS,)))
    prompt = list(b"abcdef")
    answers = ["no", "not", "yes", ""]
    scored = await score_candidates(
        engine, prompt, [list(a.encode()) for a in answers], end_token_ids=(EOS,), request_id="r"
    )
    for answer, logprob in zip(answers, scored.logprobs, strict=True):
        assert math.exp(logprob) == pytest.approx(whole(prompt, answer))
    assert [len(request.outputs) for request in engine.requests] == [0, 6]
    assert scored.num_tokens == 7


async def test_the_ends_of_a_model_add_up_and_one_without_any_is_asked_for_the_answers_alone():
    engine = FakeEngine(ModelInfo("decoder", "Fake", 100, byte_tokenizer().vocab_size))
    prompt = list(b"abc")
    two = await score_candidates(engine, prompt, [[65]], end_token_ids=(66, 67), request_id="r")
    ends = sum(probability([*prompt, 65], end) for end in (66, 67))
    assert math.exp(two.logprobs[0]) == pytest.approx(probability(prompt, 65) * ends)
    none = await score_candidates(engine, prompt, [[65]], end_token_ids=(), request_id="r")
    assert math.exp(none.logprobs[0]) == pytest.approx(probability(prompt, 65))


async def test_many_answers_are_asked_for_in_parts():
    engine = FakeEngine(ModelInfo("decoder", "Fake", 100, byte_tokenizer().vocab_size, eos_token_ids=(EOS,)))
    prompt = list(b"abc")
    answers = [f"{number:03d}" for number in range(200)]
    scored = await score_candidates(
        engine, prompt, [list(a.encode()) for a in answers], end_token_ids=(EOS,), request_id="r"
    )
    assert math.exp(scored.logprobs[137]) == pytest.approx(whole(prompt, "137"))
    assert max(request.n for request in engine.requests) == 64


def test_softmax_of_nothing_possible():
    assert softmax([-math.inf, -math.inf]) == [0.5, 0.5]


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
async def test_a_model_that_generates(serve, kind):
    served = serve(kind=kind, has_template=kind == "decoder", cached_tokens=3)
    reply = await served.decide("I was billed twice.", ANGRY, TOPIC, URGENCY)
    angry, topic, urgency = reply.json["answers"]
    assert reply.json["model"] == "fake"

    prompts = {served.tokenizer.decode(r.prompt_token_ids): r.prompt_token_ids for r in served.engine.requests}
    assert len(prompts) == 3
    assert all("I was billed twice.\n\n" in text for text in prompts)
    prompt = next(ids for text, ids in prompts.items() if "Yes or No" in text)
    yes, no = whole(prompt, "Yes"), whole(prompt, "No")
    assert angry == {"type": "predicate", "name": "angry", "probability": pytest.approx(yes / (yes + no))}

    prompt = next(ids for text, ids in prompts.items() if "- bill: money\n- billing\n- true" in text)
    chances = [whole(prompt, answer) for answer in ("bill", "billing", "true")]
    assert topic["name"] is None
    assert [entry["value"] for entry in topic["probabilities"]] == ["bill", "billing", True]
    found = [entry["probability"] for entry in topic["probabilities"]]
    assert found == pytest.approx([chance / sum(chances) for chance in chances])
    assert (topic["confidence"], topic["choice"]) == max(zip(found, ("bill", "billing", True), strict=True))

    high = urgency["probabilities"][1]
    assert (high["label"], high["value"]) == ("high", 1)
    assert urgency["score"] == pytest.approx(high["probability"])
    assert urgency["confidence"] == max(entry["probability"] for entry in urgency["probabilities"])
    usage = reply.json["usage"]
    assert usage["input_tokens"] == sum(map(len, prompts.values()))
    assert usage["input_tokens_details"]["cached_tokens"] == 9
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_an_embedder(serve):
    served = serve(kind="encoder")
    reply = await served.decide("I was billed twice.", ANGRY, TOPIC, URGENCY)
    angry, topic, _ = reply.json["answers"]
    text, statement, opposite, *rest = served.engine.embed_requests[0].inputs
    assert served.tokenizer.decode(text) == "I was billed twice."
    data = await served.engine.embed(EmbedRequest("r", [text, statement, opposite, *rest[:3]]))
    vectors = [np.frombuffer(vector, dtype="<f4").tolist() for vector in data]
    cosines = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
    assert angry["probability"] == pytest.approx(softmax([20 * c for c in cosines[:2]])[0])
    expected = softmax([20 * c for c in cosines[2:5]])
    assert [entry["probability"] for entry in topic["probabilities"]] == pytest.approx(expected)
    assert reply.json["usage"]["output_tokens"] == 0


async def test_a_conversation_is_read_as_a_record_of_it(serve):
    served = serve()
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_json", "data": {"a": [1, None]}}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "4"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Four."}]},
    ]
    await served.decide(conversation, ANGRY)
    assert (
        'system: Be kind.\nuser: {"a":[1,null]}\nassistant calls f: {}\nf answers: 4\nassistant: Four.\n\nIs the'
    ) in served.prompt_text()


async def test_an_option_and_a_boolean_of_the_same_text(serve):
    served = serve()
    question = {"type": "choice", "instructions": "?", "choices": [{"value": "true"}, {"value": True}]}
    reply = await served.decide("x", question)
    assert '- "true"\n- true' in served.prompt_text()
    assert [entry["value"] for entry in reply.json["answers"][0]["probabilities"]] == ["true", True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"questions": None}, "questions"),
        ({"questions": []}, "questions"),
        ({"questions": [{"type": "essay"}]}, "questions[0].type"),
        ({"questions": [{**TOPIC, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**TOPIC, "choices": [{"value": "a"}, {"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**TOPIC, "choices": [{"value": "a"}, {"value": ""}]}]}, "questions[0]"),
        ({"questions": [{**URGENCY, "levels": [{"label": "a"}, {"label": "a"}]}]}, "questions[0].levels"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields, param):
    served = serve()
    with pytest.raises(InvalidRequest) as refused:
        await served.client.post("/v1/decisions", {"model": "fake", "input": "x", "questions": [ANGRY], **fields})
    assert refused.value.param == param
    assert not served.engine.requests


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
async def test_an_input_that_is_too_long(serve, kind):
    with pytest.raises(ContextLengthExceeded):
        await serve(kind=kind).decide("x" * 700, ANGRY)


async def test_a_failing_engine(serve):
    served = serve(error=EngineFailed("broken"))
    with pytest.raises(EngineFailed, match="broken"):
        await served.decide("x", ANGRY, TOPIC)
    assert served.engine.num_open == 0
