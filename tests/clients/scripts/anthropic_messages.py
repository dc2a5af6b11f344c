"""What the anthropic package gets from a server; prints one JSON object, one entry per call.

Usage: python anthropic_messages.py '{"url": ..., "key_url": ..., "key": ..., "busy_url": ...,
"busy_key": ..., "chat": ..., "embed": ...}'.
"""

import asyncio
import json
import sys

import anthropic
from weather import SCHEMA, Weather

given = json.loads(sys.argv[1])
CHAT, EMBED = given["chat"], given["embed"]
ASK = [{"role": "user", "content": "Hello! What is your name?"}]
FIELDS = {"model": CHAT, "max_tokens": 40, "extra_body": {"temperature": 0}}
TOOL = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object", "properties": {}}}
client = anthropic.Anthropic(base_url=given["url"], api_key="EMPTY", max_retries=0)
with_key = anthropic.Anthropic(base_url=given["key_url"], api_key=given["key"], max_retries=0)
with_token = anthropic.Anthropic(base_url=given["key_url"], auth_token=given["key"], max_retries=0)
CALLS = {}


def call(function):
    CALLS[function.__name__] = function
    return function


def failure(function, **fields):
    """The error that a call must raise."""
    try:
        function(**fields)
    except anthropic.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "type": error.body["error"]["type"],
            "message": error.body["error"]["message"],
            "has_request_id": error.request_id == error.body["request_id"],
        }
    return {"class": "no error"}


def read(message):
    return {
        "text": "".join(block.text for block in message.content if block.type == "text"),
        "types": [block.type for block in message.content],
        "stop_reason": message.stop_reason,
        "stop_sequence": message.stop_sequence,
        "usage": [message.usage.input_tokens, message.usage.output_tokens],
        "role": message.role,
        "model": message.model,
    }


@call
def version():
    return anthropic.__version__


@call
def message():
    found = client.messages.create(messages=ASK, **FIELDS)
    return {**read(found), "id": found.id, "request_id": found._request_id}


@call
def stream_of_events():
    events = list(client.messages.create(messages=ASK, stream=True, **FIELDS))
    return {
        "types": [event.type for event in events],
        "text": "".join(event.delta.text for event in events if event.type == "content_block_delta"),
        "output_tokens": next(event.usage.output_tokens for event in events if event.type == "message_delta"),
    }


@call
def stream_helper():
    with client.messages.stream(messages=ASK, **FIELDS) as stream:
        text = "".join(stream.text_stream)
        return {"streamed": text, **read(stream.get_final_message())}


@call
def beta_message():
    return read(client.beta.messages.create(messages=ASK, betas=["prompt-caching-2024-07-31"], **FIELDS))


@call
def asynchronous():
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=given["url"], api_key="EMPTY") as other:
            return read(await other.messages.create(messages=ASK, **FIELDS))

    return asyncio.run(ask())


@call
def stop_sequence():
    count = [{"role": "user", "content": "Hello! What is your name?"}]
    return read(client.messages.create(messages=count, stop_sequences=["zebra", "Demo"], **FIELDS))


@call
def cut():
    return read(client.messages.create(messages=ASK, **{**FIELDS, "max_tokens": 3}))


@call
def continued():
    talk = [*ASK, {"role": "assistant", "content": "My name is"}]
    return read(client.messages.create(messages=talk, **FIELDS))


@call
def system_and_blocks():
    content = [{"type": "text", "text": "Hello! What is your name?", "cache_control": {"type": "ephemeral"}}]
    talk = [{"role": "user", "content": content}]
    system = [{"type": "text", "text": "You are helpful.", "cache_control": {"type": "ephemeral"}}]
    return read(client.messages.create(messages=talk, system=system, metadata={"user_id": "me"}, **FIELDS))


@call
def tools_that_are_not_used():
    return read(client.messages.create(messages=ASK, tools=[TOOL], tool_choice={"type": "none"}, **FIELDS))


def asked_for_tools():
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "get_weather", "description": "Current weather of a city.", "input_schema": city}
    talk = [{"role": "user", "content": "What is the weather in Oslo?"}]
    return {**FIELDS, "max_tokens": 80, "messages": talk, "tools": [tool], "tool_choice": {"type": "any"}}


@call
def tools():
    fields = asked_for_tools()
    found = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    calls, again = (
        [{"name": block.name, "input": block.input} for block in one.content if block.type == "tool_use"]
        for one in (found, streamed)
    )
    return {"calls": calls, "streamed": again, "stop_reason": found.stop_reason}


@call
def structured():
    talk = [{"role": "user", "content": "What is the weather in Oslo?"}]
    fields = {**FIELDS, "max_tokens": 60}
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return {
        "answer": json.loads(client.messages.create(messages=talk, output_config=output, **fields).content[0].text),
        "parsed": client.messages.parse(messages=talk, output_format=Weather, **fields).parsed_output.model_dump(),
    }


@call
def retries():
    one = anthropic.Anthropic(base_url=given["busy_url"], api_key=given["busy_key"], max_retries=2)
    names = "busy-429", "busy-503"
    return [one.messages.create(messages=ASK, model=name, max_tokens=9).content[0].text for name in names]


@call
def history_with_tools():
    first = client.messages.create(messages=ASK, **FIELDS)
    talk = [
        *ASK,
        first.to_param() if hasattr(first, "to_param") else {"role": "assistant", "content": first.content},
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}]},
    ]
    return read(client.messages.create(messages=talk, tools=[TOOL], **FIELDS))


@call
def counted():
    return client.messages.count_tokens(messages=ASK, model=CHAT).input_tokens


@call
def keys():
    found = [one.messages.create(messages=ASK, **FIELDS).stop_reason for one in (with_key, with_token)]
    wrong = anthropic.Anthropic(base_url=given["key_url"], api_key="wrong", max_retries=0)
    return {"accepted": found, "refused": failure(wrong.messages.create, messages=ASK, **FIELDS)}


@call
def errors():
    ask = client.messages.create
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    return {
        "unknown_model": failure(ask, messages=ASK, **{**FIELDS, "model": "claude-x"}),
        "unknown_model_stream": failure(ask, messages=ASK, stream=True, **{**FIELDS, "model": "claude-x"}),
        "image": failure(ask, messages=[{"role": "user", "content": [image]}], **FIELDS),
        "too_long": failure(ask, messages=[{"role": "user", "content": "zebra " * 9000}], **FIELDS),
        "embedder": failure(ask, messages=ASK, **{**FIELDS, "model": EMBED}),
        "out_of_range": failure(ask, messages=ASK, **{**FIELDS, "extra_body": {"temperature": 3}}),
        "unknown_route": failure(client.messages.batches.list),
    }


print(json.dumps({name: function() for name, function in CALLS.items()}))
