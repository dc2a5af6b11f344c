"""Over HTTP: beam search finds what transformers finds with the same folders, and prompts are ranked as there."""

from __future__ import annotations

import pytest
import torch

from tests.server.process import Server, until
from tests.server.test_models import CHAT, TEXT2TEXT
from tests.server.test_parity import reference, tokenizer

PROMPTS = {CHAT: "The numbers in order are one, two, three,", TEXT2TEXT: "say 4207"}


@pytest.mark.parametrize("model", PROMPTS)
def test_beams(demo_server: Server, model: str) -> None:
    ids = tokenizer(model)(PROMPTS[model]).input_ids
    with torch.inference_mode():
        found = reference(model).model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=16,
            num_beams=4,
            num_return_sequences=2,
            length_penalty=0.5,
            do_sample=False,
            use_cache=False,
        )
    sequences = found[:, len(ids) if reference(model).is_decoder else 1 :].tolist()
    texts = [tokenizer(model).decode(tokens, skip_special_tokens=True) for tokens in sequences]

    fields = {"prompt": PROMPTS[model], "max_tokens": 16, "n": 2, "best_of": 4, "length_penalty": 0.5}
    reply = demo_server.post("/v1/completions", model=model, use_beam_search=True, **fields)

    assert [choice["text"].lstrip(" ") for choice in reply["choices"]] == [text.lstrip(" ") for text in texts]
    until(lambda: demo_server.metric("langport_engine_kv_cache_usage", model=model) == 0, "an empty cache")


def test_ranks_of_the_prompt(demo_server: Server) -> None:
    ids = tokenizer(CHAT)(PROMPTS[CHAT]).input_ids
    with torch.inference_mode():
        logprobs = reference(CHAT).model(torch.tensor([ids])).logits[0].log_softmax(-1)
    reply = demo_server.post("/v1/completions", model=CHAT, prompt=PROMPTS[CHAT], max_tokens=0, prompt_logprobs=3)
    first, *places = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    for place, row, token in zip(places, logprobs, ids[1:], strict=False):
        own = place[str(token)]
        assert own["logprob"] == pytest.approx(row[token].item(), abs=1e-3)
        assert own["rank"] == int((row > row[token]).sum()) + 1
        assert {int(name) for name in place} == {token, *row.topk(3).indices.tolist()}
