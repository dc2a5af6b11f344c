"""What openai 0.28 gets from a server; prints one JSON object, one entry per call. Usage as in modern.py."""

import io
import json
import sys

import openai

given = json.loads(sys.argv[1])
CHAT, EMBED, ALIAS = given["chat"], given["embed"], "vicuna-7b-v1.1"
ASK = [{"role": "user", "content": "Hello! What is your name?"}]
COUNT = "The numbers in order are one, two, three,"
openai.api_base = given["url"] + "/v1"
openai.api_key = "EMPTY"
KEY = {"api_base": given["key_url"] + "/v1", "api_key": given["key"]}
AZURE = {"api_type": "azure", "api_base": given["key_url"], "api_version": "2023-05-15", "api_key": given["key"]}
CALLS = {}


def call(function):
    CALLS[function.__name__] = function
    return function


def failure(function, *arguments, **fields):
    """The error that a call must raise."""
    try:
        function(*arguments, **fields)
    except openai.error.OpenAIError as error:
        body = error.json_body["error"]
        return {
            "class": type(error).__name__,
            "status": error.http_status,
            "code": body["code"],
            "param": body["param"],
            "type": body["type"],
            "message": str(error),
        }
    return {"class": "no error"}


def streamed(chunks):
    chunks = list(chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    return {
        "text": "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices),
        "finish_reasons": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "ids": len({chunk["id"] for chunk in chunks}),
        "num_chunks": len(chunks),
        "usages": [],
    }


@call
def chat():
    answer = openai.ChatCompletion.create(model=ALIAS, messages=ASK, temperature=0, max_tokens=40)
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "role": choice.message.role,
        "finish_reason": choice.finish_reason,
        "total_tokens": answer.usage.total_tokens,
        "object": answer.object,
        "tool_calls": choice.message.get("tool_calls"),
        "organization": answer.organization,
        "response_ms": answer.response_ms,
    }


@call
def chat_stream():
    return streamed(openai.ChatCompletion.create(model=CHAT, messages=ASK, temperature=0, max_tokens=40, stream=True))


FUNCTION = {
    "name": "get_weather",
    "description": "Current weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
WEATHER = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
    "functions": [FUNCTION],
    "function_call": {"name": "get_weather"},
    "temperature": 0,
    "max_tokens": 80,
}


@call
def function():
    choice = openai.ChatCompletion.create(**WEATHER).choices[0]
    return {"call": choice.message.function_call.to_dict(), "finish_reason": choice.finish_reason}


@call
def function_stream():
    found = {"name": "", "arguments": ""}
    for chunk in openai.ChatCompletion.create(**WEATHER, stream=True):
        for name, text in chunk.choices[0].delta.get("function_call", {}).items():
            found[name] += text
    return {"call": found, "finish_reason": chunk.choices[0].finish_reason}


@call
def structured():
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Oslo", "Paris"]},
            "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
        },
        "required": ["city", "degrees"],
        "additionalProperties": False,
    }
    answer = openai.ChatCompletion.create(
        model=CHAT,
        messages=WEATHER["messages"],
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": schema}},
        temperature=0,
        max_tokens=60,
    )
    return {"answer": json.loads(answer.choices[0].message.content)}


@call
def busy():
    found = {"refused": [], "later": []}
    for name in ("busy-429", "busy-503"):
        fields = {"api_base": given["busy_url"] + "/v1", "api_key": given["busy_key"], "model": name, "messages": ASK}
        try:
            openai.ChatCompletion.create(**fields)
        except openai.error.OpenAIError as error:
            found["refused"].append([type(error).__name__, error.http_status, error.headers["retry-after"]])
        found["later"].append(openai.ChatCompletion.create(**fields).choices[0].message.content)
    return found


@call
def completion():
    answer = openai.Completion.create(model=CHAT, prompt=COUNT, temperature=0, max_tokens=12, logprobs=2)
    logprobs = answer.choices[0].logprobs
    return {
        "text": answer.choices[0].text,
        "tokens": logprobs.tokens,
        "token_logprobs": logprobs.token_logprobs,
        "object": answer.object,
    }


@call
def completion_stream():
    return streamed(openai.Completion.create(model=CHAT, prompt=COUNT, temperature=0, max_tokens=12, stream=True))


@call
def completion_extras():
    answer = openai.Completion.create(
        model=CHAT, prompt="Once", max_tokens=30, n=2, ignore_eos=True, top_k=3, min_tokens=2
    )
    return {"num_choices": len(answer.choices), "completion_tokens": answer.usage.completion_tokens}


@call
def engine():
    return openai.Completion.create(engine=CHAT, prompt=COUNT, temperature=0, max_tokens=12).choices[0].text


@call
def engine_stream():
    return streamed(openai.Completion.create(engine=CHAT, prompt=COUNT, temperature=0, max_tokens=12, stream=True))


@call
def embeddings():
    fields = {"model": EMBED, "input": ["Hi there!", "Good day!"]}
    base64 = openai.Embedding.create(**fields)
    floats = openai.Embedding.create(**fields, encoding_format="float")
    return {
        "base64": [entry["embedding"] for entry in base64["data"]],
        "floats": [entry["embedding"] for entry in floats["data"]],
        "total_tokens": base64["usage"]["total_tokens"],
    }


@call
def files():
    made = openai.File.create(file=io.BytesIO(b"one\ntwo\n"), purpose="fine-tune", user_provided_filename="lines.txt")
    found = openai.File.retrieve(made.id)
    content = openai.File.download(made.id)
    listed = made.id in [file.id for file in openai.File.list().data]
    deleted = openai.File.delete(made.id)
    return {
        "found": [found.filename, found.bytes, found.purpose, found.object],
        "content": content.decode(),
        "listed": listed,
        "deleted": [deleted.id == made.id, deleted.deleted],
        "gone": failure(openai.File.retrieve, made.id)["class"],
    }


@call
def models():
    return [model.id for model in openai.Model.list().data]


@call
def model():
    found = openai.Model.retrieve(CHAT)
    return {"id": found.id, "object": found.object, "owned_by": found.owned_by}


@call
def missing_model():
    return failure(openai.ChatCompletion.create, model="gpt-4", messages=ASK)


@call
def missing_model_with_a_slash():
    return failure(openai.Model.retrieve, "org/name")


@call
def missing_model_stream():
    return failure(openai.Completion.create, model="gpt-4", prompt="x", stream=True)


@call
def too_long():
    return failure(openai.ChatCompletion.create, model=CHAT, messages=[{"role": "user", "content": "zebra " * 9000}])


@call
def out_of_range():
    return failure(openai.ChatCompletion.create, model=CHAT, messages=ASK, temperature=3)


@call
def wrong_key_is_refused():
    return failure(openai.Model.list, api_base=KEY["api_base"], api_key="sk-wrong")


@call
def key_is_accepted():
    return [model.id for model in openai.Model.list(**KEY).data]


@call
def azure_chat():
    answer = openai.ChatCompletion.create(engine=CHAT, messages=ASK, temperature=0, max_tokens=40, **AZURE)
    return {"text": answer.choices[0].message.content}


@call
def azure_embeddings():
    return len(openai.Embedding.create(engine=EMBED, input="Hi there!", **AZURE)["data"][0]["embedding"])


def result(function):
    try:
        return function()
    except Exception as error:  # the test shows it under the call's name
        return {"failed": f"{type(error).__name__}: {error}"}


print(json.dumps({"version": openai.__version__, **{name: result(function) for name, function in CALLS.items()}}))
