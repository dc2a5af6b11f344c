"""`/tokenize` and `/detokenize`, as vLLM's server answers them."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers

from langport.errors import ApiError, InvalidRequest
from langport.testing import BOS, byte_tokenizer
from langport.text.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "Hi"}]


def tokenizer_with_bos() -> Tokenizer:
    backend = byte_tokenizer().backend
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(backend, byte_tokenizer().named_tokens, {})


async def tokens_of(fake: Any, **fields: Any) -> list[int]:
    found: list[int] = (await fake.client.post("/tokenize", {"model": "fake", **fields})).json["tokens"]
    return found


async def test_a_text(serve):
    reply = await serve().client.post("/tokenize", {"prompt": "aé"})
    assert reply.json == {"tokens": [97, 195, 169], "count": 3, "max_model_len": 600, "token_strs": None}


async def test_token_strings_are_the_tokenizers_own(serve):
    reply = await serve().client.post("/tokenize", {"prompt": "a é<s>", "return_token_strs": True})
    assert reply.json["token_strs"] == ["a", "Ġ", "Ã", "©", "<s>"]
    assert reply.json["count"] == 5


async def test_special_tokens_are_added_unless_told_otherwise(serve):
    fake = serve(tokenizer=tokenizer_with_bos())
    assert await tokens_of(fake, prompt="a") == [BOS, 97]
    assert await tokens_of(fake, prompt="a", add_special_tokens=True) == [BOS, 97]
    assert await tokens_of(fake, prompt="a", add_special_tokens=False) == [97]


async def test_a_conversation_is_what_chat_would_send(serve, says):
    fake = serve(says("x"), tokenizer=tokenizer_with_bos())
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = await tokens_of(fake, messages=TALK, tools=tools)
    await fake.chat(tools=tools)
    assert found == fake.engine.requests[0].prompt_token_ids
    assert await tokens_of(fake, messages=TALK, tools=tools, add_special_tokens=True) == [BOS, *found]


async def test_the_end_of_a_conversation(serve):
    fake = serve()

    async def text_of(**fields: Any) -> str:
        return fake.tokenizer.decode(await tokens_of(fake, **fields), skip_special_tokens=False)

    user = "<|im_start|>user\nHi<|im_end|>\n"
    assert await text_of(messages=TALK) == user + "<|im_start|>assistant\n"
    assert await text_of(messages=TALK, add_generation_prompt=False) == user
    begun = [*TALK, {"role": "assistant", "content": "Hel"}]
    for fields in ({}, {"add_generation_prompt": False}):
        found = await text_of(messages=begun, continue_final_message=True, **fields)
        assert found == user + "<|im_start|>assistant\nHel"


async def test_back_to_text_special_tokens_included(serve):
    fake = serve()
    assert (await fake.client.post("/detokenize", {"tokens": [BOS, 97, 195, 169]})).json == {"prompt": "<s>aé"}
    assert (await fake.client.post("/detokenize", {"tokens": []})).json == {"prompt": ""}


async def test_models_that_embed_tokenize_too(serve):
    assert await tokens_of(serve(kind="encoder"), prompt="a") == [97]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": TALK}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        (
            "/tokenize",
            {"messages": TALK, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/tokenize", {"messages": TALK, "chat_template": "x"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [259]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
async def test_what_is_wrong_is_named(serve, path, body, param):
    with pytest.raises(ApiError) as error:
        await serve().client.post(path, body)
    assert (error.value.status, error.value.param) == (400, param)


async def test_a_conversation_without_a_template(serve):
    with pytest.raises(InvalidRequest, match="no chat template"):
        await tokens_of(serve(has_template=False), messages=TALK)
