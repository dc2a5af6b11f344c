"""What litellm gets from a server. Usage: see calls.py."""

import json
import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices while it is imported

import litellm
from calls import BASE, BUSY_BASE, BUSY_KEY, CHAT, EMBED, HELLO, KEY_BASE, TEXTS, WEATHER, call, caught, show
from pydantic import BaseModel, Field

litellm.suppress_debug_info = True  # else it prints advice beside the results
OPTIONS = {"api_base": BASE, "api_key": "EMPTY", "temperature": 0, "max_tokens": 60}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=12)
    degrees: int = Field(ge=-40, le=50)


def ask(text=HELLO, **fields):
    talk = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return litellm.completion(**{"model": f"openai/{CHAT}", "messages": talk, **OPTIONS, **fields})


@call
def chat():
    return ask().choices[0].message.content


@call
def stream():
    return [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]


@call
def tools():
    message = ask(WEATHER, tools=[TOOL], tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "Sunny."} for one in message.tool_calls]
    talk = [{"role": "user", "content": WEATHER}, message.model_dump(), *results]
    answer = ask(talk, tools=[TOOL], tool_choice="none").choices[0].message.content
    found = message.tool_calls[0].function
    return {"name": found.name, "arguments": json.loads(found.arguments), "answer": answer}


@call
def structured():
    answer = ask(WEATHER, response_format=Weather).choices[0].message.content
    return [Weather.model_validate_json(answer).model_dump()]


@call
def responses():
    fields = {name: OPTIONS[name] for name in ("api_base", "api_key", "temperature")}
    return litellm.responses(model=f"openai/{CHAT}", input=HELLO, **fields).output[0].content[0].text


@call
def embeddings():
    found = litellm.embedding(model=f"openai/{EMBED}", input=TEXTS, api_base=BASE, api_key="EMPTY")
    return [entry["embedding"] for entry in found.data]


@call
def errors():
    kind = litellm.exceptions.APIError, litellm.BadRequestError, litellm.NotFoundError, litellm.AuthenticationError
    return {
        "missing_model": caught(kind, ask, model="openai/gpt-4"),
        "wrong_key": caught(kind, ask, api_base=KEY_BASE, api_key="sk-wrong"),
        "too_long": caught(kind, ask, "zebra " * 9000),
    }


@call
def retries():
    fields = {"api_base": BUSY_BASE, "api_key": BUSY_KEY, "num_retries": 2}
    return [ask(model=f"openai/{name}", **fields).choices[0].message.content for name in ("busy-429", "busy-503")]


show(version("litellm"))
