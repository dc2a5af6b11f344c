"""Chat completions over the fake engine: what reaches the engine, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from langport.errors import ApiError, ContextLengthExceeded, InvalidRequest
from langport.settings.tree import LimitSettings

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def allowed(mode: str, name: str) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": name}}
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool]}}


def contains_tool() -> dict[str, Any]:
    """A tool with a keyword that no grammar follows."""
    return {"type": "function", "function": {"name": "f", "parameters": {"contains": {}}}}


async def test_a_top_k_of_any_size_reaches_the_engine_as_one_that_it_can_hold(serve):
    fake = serve()
    for given in (10**6, 2**64, 10**30):
        assert (await fake.chat(top_k=given, max_tokens=1)).status == 200
        assert fake.engine.requests[-1].sampling.top_k == fake.info.vocab_size


async def test_plain_answer(serve, says):
    fake = serve(says("Hello"), cached_tokens=7)
    reply = await fake.chat()
    answer = reply.json
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"content": "Hello", "role": "assistant", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = len(fake.engine.requests[0].prompt_token_ids)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 6, prompt + 6)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 7
    assert fake.prompt_text() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def test_the_answer_carries_the_public_name(serve, says):
    fake = serve(says("x"))
    body = {"messages": [USER]}
    reply = await fake.client.post("/v1/chat/completions", body, extension={"model": "alias", "request_id": "r1"})
    assert reply.json["model"] == "alias"
    assert fake.engine.requests[0].request_id.startswith("r1-")


async def test_equal_request_ids_of_clients_do_not_collide(serve, says):
    fake = serve(says("x"))
    for _ in range(2):
        await fake.client.post("/v1/chat/completions", {"messages": [USER]}, extension={"request_id": "same"})
    assert len({request.request_id for request in fake.engine.requests}) == 2


async def test_sampling_parameters_reach_the_engine_once(serve, says):
    fake = serve(says("x"))
    await fake.chat(
        temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, seed=9, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.5, logit_bias={"65": -100}, max_tokens=50, max_completion_tokens=20, min_tokens=2,
        ignore_eos=True, stop_token_ids=[3], logprobs=True, top_logprobs=4, n=2,
    )  # fmt: skip
    request = fake.engine.requests[0]
    sampling = request.sampling
    assert request.n == 2
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 7, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert sampling.logit_bias == {65: -100}
    assert (sampling.max_tokens, sampling.min_tokens, sampling.seed) == (20, 2, 9)
    assert sampling.ignore_eos
    assert sampling.stop_token_ids == (3,)
    assert sampling.logprobs == 4


async def test_priority_and_salt_reach_the_engine(serve, says):
    fake = serve(says("x"))
    await fake.chat(priority=3, cache_salt="tenant")
    await fake.chat(cache_salt=None)
    await fake.client.post("/v1/completions", {"prompt": "x", "cache_salt": "tenant"})
    salts = [(request.priority, request.cache_salt) for request in fake.engine.requests]
    assert salts == [(3, "tenant"), (0, ""), (0, "tenant")]


async def test_nulls_mean_the_defaults(serve, says):
    fake = serve(says("x"))
    names = (
        "temperature", "top_p", "n", "stream", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
        "stream_options", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "tools", "tool_choice",
        "audio", "metadata", "store", "response_format", "web_search_options", "structured_outputs", "top_k",
    )  # fmt: skip
    await fake.chat(**dict.fromkeys(names))
    await fake.chat()
    first, second = fake.engine.requests
    assert first.sampling == second.sampling
    assert first.n == 1


async def test_without_a_limit_chat_runs_to_the_end_of_the_context(serve, says):
    fake = serve(says("x"))
    await fake.chat()
    request = fake.engine.requests[0]
    assert request.sampling.max_tokens == 600 - len(request.prompt_token_ids)


async def test_a_limit_beyond_the_context_is_cut(serve, says):
    fake = serve(says("x"))
    reply = await fake.chat(max_tokens=10**30)
    request = fake.engine.requests[0]
    assert request.sampling.max_tokens == 600 - len(request.prompt_token_ids)
    assert reply.status == 200


async def test_seeds_of_any_size_travel_in_64_bits(serve, says):
    fake = serve(says("x"))
    for seed in (2**63 - 1, -(2**63)):
        await fake.chat(seed=seed)
    for seed in (2**63, 10**40, -(10**40)):  # OpenAI bounds those of chats alone
        await fake.complete(seed=seed)
    seeds = [request.sampling.seed for request in fake.engine.requests]
    assert seeds[:2] == [2**63 - 1, -(2**63)]
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


async def test_the_checkpoints_sampling_defaults_apply_when_asked_for(serve, says):
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "min_p": None}
    fake = serve(says("x"), generation_config=config, sampling_defaults="model")
    await fake.chat()
    await fake.chat(temperature=1, top_k=0)
    first, second = (request.sampling for request in fake.engine.requests)
    assert (first.temperature, first.top_p, first.top_k, first.repetition_penalty) == (0.6, 0.9, 20, 1.1)
    assert (second.temperature, second.top_k) == (1, 0)
    openai = serve(says("x"), generation_config=config)
    await openai.chat()
    assert openai.engine.requests[0].sampling.temperature == 1


async def test_unknown_fields_are_listed(serve, says):
    fake = serve(says("x"))
    reply = await fake.chat(colour="red", **{"gr\u00f6\u00dfe\n": 1})
    assert reply.headers["x-langport-ignored"] == "colour, gr\\xf6\\xdfe\\n"
    assert "x-langport-ignored" not in (await fake.chat(user="me")).headers
    many = await fake.chat(**{f"field{number}": 1 for number in range(1000)})
    assert len(many.headers["x-langport-ignored"]) < 1100


async def test_streamed_answer(serve, says):
    fake = serve(says("Hé"))
    reply = await fake.chat(stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = reply.events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, usage]}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "H"},
        {"content": "é"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


async def test_obfuscation_pads_every_chunk(serve, says):
    reply = await serve(says("Hello")).chat(stream=True, stream_options={"include_obfuscation": True})
    *chunks, _ = reply.events
    assert all(chunk["obfuscation"] for chunk in chunks)


async def test_service_tier_is_answered_with_the_one_used(serve, says):
    fake = serve(says("x"))
    assert (await fake.chat(service_tier="flex")).json["service_tier"] == "default"
    assert "service_tier" not in (await fake.chat()).json
    streamed = await fake.chat(service_tier="auto", stream=True)
    assert all(chunk["service_tier"] == "default" for chunk in streamed.events[:-1])


async def test_roles_parts_and_calls_reach_the_template(serve, says):
    fake = serve(says("x"))
    await fake.client.post(
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "4"},
                {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "{}"}},
                {"role": "function", "name": "g", "content": "5"},
            ],
            "tools": [TOOL],
        },
    )
    text = fake.prompt_text()
    assert "<|im_start|>system\nBe\nbrief<|im_end|>" in text
    assert '"name": "f"' in text
    assert '"parameters"' in text
    assert '"x": 1' in text
    assert "<|im_start|>tool\n4" in text
    assert '"name": "g"' in text
    assert "<|im_start|>tool\n5" in text


async def test_tool_definitions_count_and_tool_choice_none_hides_them(serve, says):
    fake = serve(says("x"))
    bare = (await fake.chat()).json["usage"]["prompt_tokens"]
    assert (await fake.chat(tools=[TOOL])).json["usage"]["prompt_tokens"] > bare
    functions = await fake.chat(functions=[TOOL["function"]], function_call="auto")
    assert functions.json["usage"]["prompt_tokens"] > bare
    assert (await fake.chat(tools=[TOOL], tool_choice="none")).json["usage"]["prompt_tokens"] == bare


async def test_the_last_message_can_be_continued(serve, says):
    fake = serve(says("x"))
    messages = [USER, {"role": "assistant", "content": "The answer"}]
    await fake.client.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True})
    assert fake.prompt_text().endswith("<|im_start|>assistant\nThe answer")


async def test_template_variables(serve, says):
    fake = serve(says("x"))
    await fake.chat(chat_template_kwargs={"flag": True}, add_generation_prompt=False)
    assert fake.prompt_text().endswith("<|im_end|>\n")
    with pytest.raises(InvalidRequest) as error:
        await fake.chat(chat_template_kwargs={"messages": []})
    assert error.value.param == "chat_template_kwargs"


async def test_an_encoder_decoder_reads_the_texts_of_the_messages(serve, says):
    fake = serve(says("eins"), kind="encoder-decoder", has_template=False)
    messages = [
        {"role": "system", "content": "translate"},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
    ]
    reply = await fake.client.post("/v1/chat/completions", {"messages": messages})
    assert fake.prompt_text() == "translate\none"
    assert reply.json["choices"][0]["message"]["content"] == "eins"
    assert fake.engine.requests[0].sampling.max_tokens == 600


async def test_a_decoder_without_a_template_says_how_to_get_one(serve):
    with pytest.raises(InvalidRequest, match="--chat-template") as error:
        await serve(has_template=False).chat()
    assert error.value.param == "messages"


async def test_an_embedder_does_not_chat(serve):
    with pytest.raises(InvalidRequest, match="embeddings") as error:
        await serve(kind="encoder").chat()
    assert error.value.param == "model"


async def test_the_last_tokens_of_a_long_prompt_can_be_kept(serve, says):
    fake = serve(says("x"))
    await fake.chat("long " * 500, truncate_prompt_tokens=20)
    assert len(fake.engine.requests[0].prompt_token_ids) == 20
    await fake.chat("long " * 500, truncate_prompt_tokens=-1)
    assert len(fake.engine.requests[1].prompt_token_ids) == 599


async def test_a_prompt_must_leave_room_for_one_token(serve, says):
    fake = serve(says("x", ends=False))
    overhead = (await fake.chat("", max_tokens=1)).json["usage"]["prompt_tokens"]
    fits = await fake.chat("a" * (599 - overhead))
    assert fits.json["choices"][0]["finish_reason"] == "length"
    for stream in (False, True):
        with pytest.raises(ContextLengthExceeded) as error:
            await fake.chat("a" * (600 - overhead), stream=stream)
        assert (error.value.param, error.value.code) == ("messages", "context_length_exceeded")


async def test_limits_of_the_server(serve, says):
    limits = LimitSettings(completion_max_n=2, completion_max_tokens=10, completion_max_prompt=40)
    fake = serve(says("x"), limits=limits)
    await fake.chat()
    assert fake.engine.requests[0].sampling.max_tokens == 10
    for fields, param in (
        ({"n": 3}, "n"),
        ({"max_tokens": 11}, "max_tokens"),
        ({"max_completion_tokens": 11}, "max_completion_tokens"),
        ({"min_tokens": 11}, "min_tokens"),
        ({"content": "a" * 40}, "messages"),
    ):
        with pytest.raises(InvalidRequest) as error:
            await fake.chat(**fields)
        assert error.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 129}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": []}, "stop"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"259": 1}}, "logit_bias"),
        ({"stop_token_ids": [259]}, "stop_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"moderation": {}}, "moderation"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
        ({"seed": 2**63}, "seed"),
        ({"prompt_cache_options": {"mode": "x"}}, "prompt_cache_options.mode"),
        ({"messages": [USER, {"role": "function", "content": "x"}]}, "messages[1].name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]}, "tool_choice.allowed_tools"),
        ({"tool_choice": allowed("auto", "nope"), "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": allowed("auto", "f")}, "tool_choice"),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
        ({"tools": [contains_tool()], "tool_choice": "required"}, "tools"),
        ({"functions": [contains_tool()["function"]], "function_call": {"name": "f"}}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}, "tools": [TOOL]}, "tool_choice"),
        ({"functions": [TOOL["function"]], "function_call": {"name": "g"}}, "function_call"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": "4"}]}, "messages[1].tool_call_id"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"typical_p": 0}, "typical_p"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"priority": "high"}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields: dict[str, Any], param: str):
    fake = serve()
    with pytest.raises(ApiError) as error:
        await fake.client.post("/v1/chat/completions", {"messages": [USER], **fields})
    assert (error.value.status, error.value.param) == (400, param)
    assert error.value.message
    assert fake.engine.requests == []
