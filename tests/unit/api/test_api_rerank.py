"""Rerank, score and classify over the fake engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers

from langport.errors import ApiError, ContextLengthExceeded
from langport.models.classification import Classification
from langport.testing import BOS, EOS, byte_tokenizer
from langport.text.tokenizer import Tokenizer

ONE_LABEL = Classification(("LABEL_0",), "identity")
MOODS = Classification(("sad", "neutral", "glad"), "softmax")


def pair_tokenizer() -> Tokenizer:
    """`<s> A <|im_end|> B <|im_end|>`, the second text of another type."""
    backend = byte_tokenizer().backend
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A <|im_end|>",
        pair="<s> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<s>", BOS), ("<|im_end|>", EOS)],
    )
    return Tokenizer(backend, byte_tokenizer().named_tokens, {"tokenizer_class": "BertTokenizer"})


@pytest.fixture
def cross_encoder(serve):
    return serve(kind="encoder", classification=ONE_LABEL, tokenizer=pair_tokenizer())


@pytest.fixture
def embedder(serve):
    return serve(kind="encoder", tokenizer=pair_tokenizer())


@pytest.fixture
def classifier(serve):
    return serve(kind="encoder", classification=MOODS, tokenizer=pair_tokenizer())


async def post(fake: Any, path: str, **fields: Any) -> Any:
    return (await fake.client.post(path, {"model": "fake", **fields})).json


async def outputs_of(fake: Any, *inputs: list[int]) -> Any:
    """What the fake engine gives for these tokens."""
    from langport.types import EmbedRequest

    return [np.frombuffer(data, "<f4") for data in await fake.engine.embed(EmbedRequest("x", list(inputs)))]


async def test_a_cross_encoder_reads_query_and_document_together(cross_encoder):
    answer = await post(cross_encoder, "/v1/rerank", query="ab", documents=["c", "de", ""])
    (request,) = cross_encoder.engine.embed_requests
    assert request.inputs == [[BOS, 97, 98, EOS, 99, EOS], [BOS, 97, 98, EOS, 100, 101, EOS], [BOS, 97, 98, EOS, EOS]]
    assert request.second_text == [4, 4, 4]
    scores = [float(output[0]) for output in await outputs_of(cross_encoder, *request.inputs)]
    results = answer["results"]
    assert [result["relevance_score"] for result in results] == sorted(scores, reverse=True)
    assert [scores[result["index"]] for result in results] == sorted(scores, reverse=True)
    assert [result["document"]["text"] for result in results] == [["c", "de", ""][r["index"]] for r in results]
    assert answer["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    assert (answer["object"], answer["model"]) == ("list", "fake")


async def test_what_coheres_and_jinas_clients_read_and_leave_out(cross_encoder):
    fields: dict[str, Any] = {"query": "ab", "documents": [{"text": "c"}, {"text": "de"}], "top_n": 1}
    answer = await post(cross_encoder, "/v1/rerank", **fields, return_documents=False)
    assert [result.keys() for result in answer["results"]] == [{"index", "relevance_score"}]
    assert answer["meta"] == {
        "tokens": {"input_tokens": 13, "output_tokens": 0},
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
    }
    assert len((await post(cross_encoder, "/v1/rerank", **{**fields, "top_n": 0}))["results"]) == 2


@pytest.mark.parametrize("document", ["c", ["c"], {"text": "c"}, [{"content": [{"type": "text", "text": "c"}]}]])
async def test_the_shapes_of_documents(cross_encoder, document):
    await post(cross_encoder, "/v1/rerank", query="ab", documents=document)
    assert cross_encoder.engine.embed_requests[0].inputs == [[BOS, 97, 98, EOS, 99, EOS]]


async def test_models_without_token_types_get_none(serve):
    tokenizer = pair_tokenizer()
    tokenizer.has_token_types = False
    fake = serve(kind="encoder", classification=ONE_LABEL, tokenizer=tokenizer)
    await post(fake, "/v1/rerank", query="ab", documents=["c"])
    assert fake.engine.embed_requests[0].second_text == []


async def test_an_embedder_compares_vectors_and_reads_each_text_once(embedder):
    answer = await post(embedder, "/v1/score", text_1=["a", "b", "a"], text_2=["a", "c", "c"])
    inputs = embedder.engine.embed_requests[0].inputs
    assert inputs == [[BOS, 97, EOS], [BOS, 98, EOS], [BOS, 99, EOS]]
    a, b, c = await outputs_of(embedder, *inputs)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([1.0, b @ c, a @ c], abs=1e-6)
    assert [(entry["index"], entry["object"]) for entry in answer["data"]] == [(i, "score") for i in range(3)]
    assert answer["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize(
    ("first", "second"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
async def test_the_names_of_the_texts_and_one_for_all(cross_encoder, first, second):
    answer = await post(cross_encoder, "/v1/score", **{first: "a", second: ["b", "c"]})
    assert [len(ids) for ids in cross_encoder.engine.embed_requests[0].inputs] == [5, 5]
    assert len(answer["data"]) == 2


async def test_classify_says_the_likeliest_label(classifier):
    answer = await post(classifier, "/v1/classify", input=["ab", "c"])
    inputs = classifier.engine.embed_requests[0].inputs
    assert inputs == [[BOS, 97, 98, EOS], [BOS, 99, EOS]]
    for index, outputs in enumerate(await outputs_of(classifier, *inputs)):
        expected = np.exp(outputs) / np.exp(outputs).sum()
        entry = answer["data"][index]
        assert entry["probs"] == pytest.approx(expected.tolist(), abs=1e-6)
        assert entry["label"] == MOODS.labels[int(outputs.argmax())]
        assert (entry["index"], entry["num_classes"]) == (index, 3)
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "total_tokens": 7,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


async def test_token_ids_are_used_as_they_are(classifier):
    await post(classifier, "/v1/classify", input=[[1, 2], [3]])
    await post(classifier, "/v1/classify", input="ab", add_special_tokens=False)
    assert [request.inputs for request in classifier.engine.embed_requests] == [[[1, 2], [3]], [[97, 98]]]


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
async def test_outputs_without_activation(serve, name):
    fake = serve(kind="encoder", classification=Classification(("x",), "sigmoid"), tokenizer=pair_tokenizer())
    (plain,) = (await post(fake, "/v1/classify", input="ab", **{name: False}))["data"][0]["probs"]
    (score,) = (await post(fake, "/v1/classify", input="ab"))["data"][0]["probs"]
    assert score == pytest.approx(1 / (1 + np.exp(-plain)))
    assert plain == float((await outputs_of(fake, [BOS, 97, 98, EOS]))[0][0])


async def test_what_is_too_long_is_cut_where_the_request_says(cross_encoder, classifier, embedder):
    document = "b" * 700
    with pytest.raises(ContextLengthExceeded, match=r"documents\[1\] with the query resulted in 704") as error:
        await post(cross_encoder, "/v1/rerank", query="a", documents=["b", document])
    assert error.value.param == "documents"
    for limit, expected in ((-1, 600), (10, 10)):
        await post(cross_encoder, "/v1/rerank", query="a", documents=[document], truncate_prompt_tokens=limit)
        ids = cross_encoder.engine.embed_requests[-1].inputs[0]
        assert (len(ids), ids[:4], ids[-1]) == (expected, [BOS, 97, EOS, 98], EOS)
    await post(cross_encoder, "/v1/rerank", query="a", documents=[document], max_tokens_per_doc=2)
    assert cross_encoder.engine.embed_requests[-1].inputs == [[BOS, 97, EOS, 98, 98, EOS]]
    await post(
        embedder, "/v1/rerank", query=document, documents=["abcd"], max_tokens_per_doc=2, truncate_prompt_tokens=5
    )
    assert embedder.engine.embed_requests[-1].inputs == [[BOS, 98, 98, 98, EOS], [BOS, 97, 98, EOS]]
    await post(classifier, "/v1/classify", input="abcd", truncate_prompt_tokens=4, truncation_side="left")
    assert classifier.engine.embed_requests[-1].inputs == [[BOS, 99, 100, EOS]]
    await post(classifier, "/v1/classify", input=[1, 2, 3], truncate_prompt_tokens=2)
    assert classifier.engine.embed_requests[-1].inputs == [[1, 2]]
    with pytest.raises(ContextLengthExceeded) as error:
        await post(classifier, "/v1/classify", input=["a", document])
    assert error.value.param == "input"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", {"query": "a"}, "documents"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [5]}, "documents[0]"),
        ("rerank", {"query": "a", "documents": ["a", {"image": "x"}]}, "documents[1]"),
        (
            "rerank",
            {"query": {"content": [{"type": "image_url"}]}, "documents": ["a"]},
            "query.content[0]",
        ),
        ("rerank", {"query": "a", "documents": ["a"] * 2049}, "documents"),
        ("rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("rerank", {"query": "a", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("rerank", {"query": "a", "documents": ["a"], "truncate_prompt_tokens": 601}, "truncate_prompt_tokens"),
        ("rerank", {"query": "a", "documents": ["a"], "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ("rerank", {"query": "a", "documents": ["a"], "truncation_side": "both"}, "truncation_side"),
        ("score", {}, "text_1"),
        ("score", {"text_1": "a"}, "text_2"),
        ("score", {"documents": "a"}, "queries"),
        ("score", {"text_1": "a", "documents": "b"}, "text_1"),
        ("score", {"text_1": "a", "text_2": "b", "queries": "c"}, "text_1"),
        ("score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("score", {"text_1": ["a", "b"], "text_2": "a"}, "text_2"),
        ("score", {"text_1": "a", "text_2": []}, "text_2"),
        ("classify", {}, "input"),
        ("classify", {"input": []}, "input"),
        ("classify", {"input": [300]}, "input"),
        ("classify", {"input": ["a"] * 2049}, "input"),
        ("classify", {"input": "", "add_special_tokens": False}, "input"),
        ("classify", {"input": [1, 2], "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
async def test_refusals_name_the_parameter(cross_encoder, path: str, fields: dict[str, Any], param: str):
    with pytest.raises(ApiError) as error:
        await post(cross_encoder, f"/v1/{path}", **fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert not cross_encoder.engine.embed_requests


@pytest.mark.parametrize(
    ("kind", "classification", "path", "served"),
    [
        ("decoder", None, "rerank", "chat completions"),
        ("decoder", None, "classify", "chat completions"),
        ("encoder", None, "classify", "embeddings, rerank and score"),
        ("encoder", ONE_LABEL, "embeddings", "rerank, score and classify"),
        ("encoder", ONE_LABEL, "decisions", "rerank, score and classify"),
        ("encoder", MOODS, "score", "its 3 labels"),
    ],
)
async def test_what_a_model_cannot_do(serve, kind, classification, path, served):
    fake = serve(kind=kind, classification=classification)
    body = {
        "rerank": {"query": "a", "documents": ["b"]},
        "score": {"text_1": "a", "text_2": "b"},
        "decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "Sure?"}]},
    }.get(path, {"input": "a"})
    with pytest.raises(ApiError, match=served) as error:
        await post(fake, f"/v1/{path}", **body)
    assert (error.value.status, error.value.param) == (400, "model")
