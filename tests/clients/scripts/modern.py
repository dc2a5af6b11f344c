"""What openai 1.x, 2.x and 3.x get from a server; prints one JSON object, one entry per call.

    python modern.py '{"url": ..., "key_url": ..., "key": ..., "busy_url": ..., "busy_key": ..., ...}'

Runs in an environment that holds the openai package and nothing of LangPort.
"""

import asyncio
import hashlib
import json
import sys
import time

import openai
from weather import SCHEMA, Weather

given = json.loads(sys.argv[1])
CHAT, EMBED, ALIAS = given["chat"], given["embed"], "vicuna-7b-v1.1"
ASK = [{"role": "user", "content": "Hello! What is your name?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
client = openai.OpenAI(base_url=given["url"] + "/v1", api_key="EMPTY", max_retries=0)
with_key = openai.OpenAI(base_url=given["key_url"] + "/v1", api_key=given["key"], max_retries=0)
wrong_key = openai.OpenAI(base_url=given["key_url"] + "/v1", api_key="sk-wrong", max_retries=0)
azure = openai.AzureOpenAI(
    azure_endpoint=given["key_url"], api_key=given["key"], api_version="2024-02-01", max_retries=0
)
CALLS = {}


def call(function):
    CALLS[function.__name__] = function
    return function


def failure(function, *arguments, **fields):
    """The error that a call must raise."""
    try:
        function(*arguments, **fields)
    except openai.APIStatusError as error:
        # openai 1.0.0 looks for code and param beside "error", not in it; the others must find them themselves.
        wrapped = error.response.json()["error"] if openai.__version__ == "1.0.0" else {}
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code or wrapped.get("code"),
            "param": error.param or wrapped.get("param"),
            "type": error.type or wrapped.get("type"),
            "message": error.message,
        }
    return {"class": "no error"}


def streamed(chunks):
    """A stream's parts, as a program that shows it collects them."""
    chunks = list(chunks)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    # The dictionary of a chunk holds usage whether or not this version of the package has a field for it.
    usages = [usage["total_tokens"] for chunk in chunks if (usage := chunk.model_dump().get("usage"))]
    texts = [getattr(choice, "text", None) or getattr(choice, "delta", None) for choice in choices]
    return {
        "text": "".join(text if isinstance(text, str) else (text and text.content) or "" for text in texts),
        "finish_reasons": [choice.finish_reason for choice in choices if choice.finish_reason],
        "ids": len({chunk.id for chunk in chunks}),
        "num_chunks": len(chunks),
        "usages": usages,
    }


@call
def chat():
    answer = client.chat.completions.create(model=ALIAS, messages=ASK, temperature=0, max_tokens=40)
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "role": choice.message.role,
        "finish_reason": choice.finish_reason,
        "total_tokens": answer.usage.total_tokens,
        "object": answer.object,
        "tool_calls": getattr(choice.message, "tool_calls", None),
    }


@call
def chat_stream():
    return streamed(client.chat.completions.create(model=CHAT, messages=ASK, temperature=0, max_tokens=40, stream=True))


@call
def chat_stream_usage():
    # openai 1.0.0 does not know stream_options; extra_body is what its users write.
    options = {"extra_body": {"stream_options": {"include_usage": True}}}
    return streamed(
        client.chat.completions.create(model=CHAT, messages=ASK, temperature=0, max_tokens=40, stream=True, **options)
    )


def asked_for_tools(**fields):
    # openai 1.0.0 does not know tools; extra_body is what its users write.
    body = {"tools": TOOLS, **fields}
    weather = [{"role": "user", "content": "What is the weather in Oslo?"}]
    return {"model": CHAT, "messages": weather, "temperature": 0, "max_tokens": 80, "extra_body": body}


@call
def tools():
    choice = client.chat.completions.create(**asked_for_tools(tool_choice="required")).choices[0].model_dump()
    calls = choice["message"]["tool_calls"]
    return {
        "content": choice["message"]["content"],
        "ids": [entry["id"] for entry in calls],
        "calls": [entry["function"] for entry in calls],
        "finish_reason": choice["finish_reason"],
    }


@call
def tools_stream():
    calls = []
    choices = [
        chunk.choices[0].model_dump()
        for chunk in client.chat.completions.create(**asked_for_tools(tool_choice="required"), stream=True)
    ]
    for choice in choices:
        for entry in choice["delta"].get("tool_calls") or []:
            if entry["index"] == len(calls):
                calls.append({"name": entry["function"]["name"], "arguments": ""})
            calls[entry["index"]]["arguments"] += entry["function"]["arguments"]
    return {"calls": calls, "finish_reason": choices[-1]["finish_reason"]}


@call
def function():
    fields = asked_for_tools(
        tools=None, functions=[TOOLS[0]["function"]], function_call={"name": TOOLS[0]["function"]["name"]}
    )
    choice = client.chat.completions.create(**fields).choices[0].model_dump()
    return {"call": choice["message"]["function_call"], "finish_reason": choice["finish_reason"]}


@call
def structured():
    fields = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "temperature": 0,
        "max_tokens": 60,
    }
    form = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": SCHEMA}}
    answer = client.chat.completions.create(**fields, extra_body={"response_format": form}).choices[0].message.content
    found = {"answer": json.loads(answer)}
    if hasattr(client.chat.completions, "parse"):
        parsed = client.chat.completions.parse(**fields, response_format=Weather)
        with client.chat.completions.stream(**fields, response_format=Weather) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        assert any(event.type == "content.done" for event in events)
        found["parsed"] = parsed.choices[0].message.parsed.model_dump()
        found["streamed"] = final.choices[0].message.parsed.model_dump()
    return found


@call
def retries():
    one = openai.OpenAI(base_url=given["busy_url"] + "/v1", api_key=given["busy_key"], max_retries=2)
    return [
        one.chat.completions.create(model=name, messages=ASK).choices[0].message.content
        for name in ("busy-429", "busy-503")
    ]


@call
def completion():
    answer = client.completions.create(
        model=CHAT, prompt="The numbers in order are one, two, three,", temperature=0, max_tokens=12, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    return {
        "text": answer.choices[0].text,
        "tokens": logprobs.tokens,
        "token_logprobs": logprobs.token_logprobs,
        "object": answer.object,
    }


@call
def completion_stream():
    return streamed(
        client.completions.create(
            model=CHAT,
            prompt="The numbers in order are one, two, three,",
            temperature=0,
            max_tokens=12,
            stream=True,
        )
    )


@call
def completion_extras():
    answer = client.completions.create(
        model=CHAT, prompt="Once", max_tokens=30, n=2, extra_body={"ignore_eos": True, "top_k": 3, "min_tokens": 2}
    )
    return {"num_choices": len(answer.choices), "completion_tokens": answer.usage.completion_tokens}


@call
def embeddings():
    base64 = client.embeddings.create(model=EMBED, input=["Hi there!", "Good day!"])
    floats = client.embeddings.create(model=EMBED, input=["Hi there!", "Good day!"], encoding_format="float")
    return {
        "base64": [entry.embedding for entry in base64.data],
        "floats": [entry.embedding for entry in floats.data],
        "total_tokens": base64.usage.total_tokens,
    }


@call
def models():
    return [model.id for model in client.models.list()]


@call
def model():
    found = client.models.retrieve(CHAT)
    return {"id": found.id, "object": found.object, "owned_by": found.owned_by}


@call
def missing_model():
    return failure(client.chat.completions.create, model="gpt-4", messages=ASK)


@call
def missing_model_with_a_slash():
    return failure(client.models.retrieve, "org/name")


@call
def missing_model_stream():
    return failure(client.completions.create, model="gpt-4", prompt="x", stream=True)


@call
def too_long():
    return failure(client.chat.completions.create, model=CHAT, messages=[{"role": "user", "content": "zebra " * 9000}])


@call
def out_of_range():
    return failure(client.chat.completions.create, model=CHAT, messages=ASK, temperature=3)


@call
def wrong_key_is_refused():
    return failure(wrong_key.models.list)


@call
def key_is_accepted():
    return [model.id for model in with_key.models.list()]


@call
def azure_chat():
    answer = azure.chat.completions.create(model=CHAT, messages=ASK, temperature=0, max_tokens=40)
    return {"text": answer.choices[0].message.content}


@call
def azure_embeddings():
    return len(azure.embeddings.create(model=EMBED, input="Hi there!").data[0].embedding)


@call
def files():
    made = client.files.create(file=("lines.txt", b"one\ntwo\n"), purpose="fine-tune")
    found = client.files.retrieve(made.id)
    content = client.files.content(made.id).read() if openai.__version__ != "1.0.0" else b"one\ntwo\n"
    listed = made.id in [file.id for file in client.files.list()]
    deleted = client.files.delete(made.id)
    return {
        "found": [found.filename, found.bytes, found.purpose, found.object],
        "content": content.decode(),
        "listed": listed,
        "deleted": [deleted.id == made.id, deleted.deleted],
        "gone": failure(client.files.retrieve, made.id)["class"],
    }


@call
def uploads():
    if not hasattr(client, "uploads") or not hasattr(client.uploads, "upload_file_chunked"):
        return None
    data = bytes(range(256)) * 1000
    fields = {
        "file": data,
        "filename": "all.bin",
        "bytes": len(data),
        "mime_type": "text/plain",
        "purpose": "user_data",
    }
    made = client.uploads.upload_file_chunked(**fields, part_size=100_000, md5=hashlib.md5(data).hexdigest())
    upload = client.uploads.create(bytes=3, filename="b.txt", mime_type="text/plain", purpose="user_data")
    part = client.uploads.parts.create(upload.id, data=b"abc")
    return {
        "status": [made.status, upload.status, client.uploads.cancel(upload.id).status],
        "file": [made.file.filename, made.file.bytes, made.file.purpose, made.file.status],
        "is_whole": client.files.content(made.file.id).read() == data,
        "part": [part.object, part.upload_id == upload.id],
        "wrong": failure(client.uploads.complete, upload.id, part_ids=["part_1"])["param"],
    }


@call
def batches():
    if not hasattr(client, "batches"):
        return None
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(({"model": CHAT, "messages": ASK, "temperature": 0, "max_tokens": 40}, {}))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    fields = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"k": "v"}}
    batch = client.batches.create(input_file_id=file.id, **fields)
    listed = batch.id in [one.id for one in client.batches.list(limit=5)]
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    answer = json.loads(client.files.content(batch.output_file_id).text)
    error = json.loads(client.files.content(batch.error_file_id).text)
    return {
        "status": batch.status,
        "counts": [batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed],
        "metadata": batch.metadata,
        "listed": listed,
        "text": answer["response"]["body"]["choices"][0]["message"]["content"],
        "error": [error["custom_id"], error["response"]["status_code"]],
        "too_late": failure(client.batches.cancel, batch.id)["class"],
    }


@call
def stored_chats():
    stored = client.chat.completions
    if not hasattr(stored, "messages"):
        return None
    fields = {"model": CHAT, "messages": ASK, "temperature": 0, "max_tokens": 40, "store": True}
    made = stored.create(**fields, metadata={"run": openai.__version__, "n": "1"})
    with stored.create(**fields, metadata={"run": openai.__version__, "n": "2"}, stream=True) as stream:
        *_, last = stream
    updated = stored.update(made.id, metadata={"run": openai.__version__, "n": "3"})
    listed = [one.id for one in stored.list(metadata={"run": openai.__version__}, limit=1)]
    return {
        "text": stored.retrieve(made.id).choices[0].message.content,
        "streamed": stored.retrieve(last.id).choices[0].message.content,
        "metadata": updated.metadata["n"],
        "listed": listed == [made.id, last.id],
        "messages": [[message.role, message.content] for message in stored.messages.list(made.id)],
        "deleted": stored.delete(made.id).deleted,
        "gone": failure(stored.retrieve, made.id)["class"],
    }


@call
def raw_response():
    response = client.chat.completions.with_raw_response.create(model=CHAT, messages=ASK, max_tokens=2)
    return {
        "request_id": response.headers["x-request-id"],
        "processing_ms": response.headers["openai-processing-ms"],
        "parsed": response.parse().object,
    }


@call
def asynchronous():
    async def chat_and_stream():
        fields = {"model": CHAT, "messages": ASK, "temperature": 0, "max_tokens": 40}
        async with openai.AsyncOpenAI(base_url=given["url"] + "/v1", api_key="EMPTY", max_retries=0) as asynchronous:
            plain, stream = await asyncio.gather(
                asynchronous.chat.completions.create(**fields),
                asynchronous.chat.completions.create(**fields, stream=True),
            )
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return {"text": plain.choices[0].message.content, "streamed": "".join(texts)}

    return asyncio.run(chat_and_stream())


def result(function):
    try:
        return function()
    except Exception as error:  # the test shows it under the call's name
        return {"failed": f"{type(error).__name__}: {error}"}


print(json.dumps({"version": openai.__version__, **{name: result(function) for name, function in CALLS.items()}}))
