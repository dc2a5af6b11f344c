"""Rerank, score and classify over HTTP, as transformers computes them on the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.checkpoints import save_classifier
from tests.server.process import Server, error_of, running

QUERY = "what is it?"
DOCUMENTS = [f"document {number}, which is {'very ' * number}long" for number in range(12)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    labels = {0: "sad", 1: "neutral", 2: "glad"}
    return {
        "ranker": save_classifier("bert", tmp_path_factory.mktemp("ranker"), num_labels=1),
        "mood": save_classifier("roberta", tmp_path_factory.mktemp("mood"), num_labels=3, id2label=labels),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    with running(*(f"{name}={path}" for name, path in folders.items()), "langport-demo-embed") as server:
        yield server


@torch.inference_mode()
def logits(path: Path, *texts: list[str]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    rows = zip(*texts, strict=True)
    batches = [AutoTokenizer.from_pretrained(path)(*([text] for text in row), return_tensors="pt") for row in rows]
    found: torch.Tensor = torch.cat([model(**batch).logits for batch in batches])
    return found


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_in_the_order_of_transformers_scores(
    server: Server, folders: dict[str, Path], path: str
) -> None:
    scores = logits(folders["ranker"], [QUERY] * len(DOCUMENTS), DOCUMENTS).sigmoid()[:, 0]
    results = server.post(path, model="ranker", query=QUERY, documents=DOCUMENTS, top_n=5)["results"]
    assert [result["index"] for result in results] == scores.argsort(descending=True)[:5].tolist()
    found = [result["relevance_score"] for result in results]
    assert found == pytest.approx(scores.sort(descending=True).values[:5].tolist(), abs=1e-5)
    assert [result["document"]["text"] for result in results] == [DOCUMENTS[result["index"]] for result in results]


def test_scores_of_pairs(server: Server, folders: dict[str, Path]) -> None:
    expected = logits(folders["ranker"], DOCUMENTS, DOCUMENTS[::-1]).sigmoid()[:, 0].tolist()
    data = server.post("/v1/score", model="ranker", text_1=DOCUMENTS, text_2=DOCUMENTS[::-1])["data"]
    assert [entry["score"] for entry in data] == pytest.approx(expected, abs=1e-5)


def test_labels_and_probabilities(server: Server, folders: dict[str, Path]) -> None:
    expected = logits(folders["mood"], DOCUMENTS).softmax(-1)
    answer = server.post("/v1/classify", model="mood", input=DOCUMENTS)
    for entry, row in zip(answer["data"], expected, strict=True):
        assert entry["label"] == ("sad", "neutral", "glad")[int(row.argmax())]
        assert entry["probs"] == pytest.approx(row.tolist(), abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == sum(len(text) + 2 for text in DOCUMENTS)


def test_an_embedder_ranks_by_the_cosine_of_its_vectors(server: Server) -> None:
    documents = ["A kitten rests on the rug.", "Quantum field theory.", "The cat sat on the mat."]
    embed = "langport-demo-embed"
    vectors = [
        torch.tensor(entry["embedding"])
        for entry in server.post("/v1/embeddings", model=embed, input=["A cat sits on a mat.", *documents])["data"]
    ]
    answer = server.post("/v1/rerank", model=embed, query="A cat sits on a mat.", documents=documents)
    assert answer["results"][-1]["index"] == 1
    for result in answer["results"]:
        cosine = torch.cosine_similarity(vectors[0], vectors[1 + result["index"]], dim=0)
        assert result["relevance_score"] == pytest.approx(float(cosine), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/v1/rerank", {"model": "ranker", "query": QUERY, "documents": []}, "documents", None),
        (
            "/v1/rerank",
            {"model": "ranker", "query": QUERY, "documents": ["a " * 300]},
            "documents",
            "context_length_exceeded",
        ),
        ("/v1/score", {"model": "mood", "text_1": "a", "text_2": "b"}, "model", None),
        ("/v1/embeddings", {"model": "mood", "input": "a"}, "model", None),
        ("/v1/chat/completions", {"model": "ranker", "messages": [{"role": "user", "content": "a"}]}, "model", None),
    ],
)
def test_errors_have_openais_form(
    server: Server, path: str, body: dict[str, object], param: str, code: str | None
) -> None:
    response = server.http.post(path, json=body)
    assert error_of(response) == (400, "invalid_request_error", param, code)


def test_the_log_says_the_labels_and_an_example(server: Server) -> None:
    assert "labels: sad, neutral, glad" in server.log
    assert "/v1/rerank -H" in server.log
