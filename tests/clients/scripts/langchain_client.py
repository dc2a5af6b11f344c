"""What langchain-openai gets from a server. Usage: see calls.py."""

from importlib.metadata import version
from typing import Literal

import openai
from calls import BASE, BUSY_BASE, BUSY_KEY, CHAT, EMBED, HELLO, KEY_BASE, TEXTS, WEATHER, call, caught, show
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

OPTIONS = {"model": CHAT, "api_key": "EMPTY", "temperature": 0, "max_completion_tokens": 60, "max_retries": 0}
model = ChatOpenAI(base_url=BASE, **OPTIONS)


def get_weather(city: str) -> str:
    """Current weather of a city."""
    return f"Sunny in {city}."


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Paris"]
    degrees: int = Field(ge=-40, le=50)


@call
def chat():
    return model.invoke(HELLO).content


@call
def stream():
    return [piece.content for piece in model.stream(HELLO)]


@call
def tools():
    asked = model.bind_tools([get_weather], tool_choice="required").invoke(WEATHER)
    (found, *_) = asked.tool_calls
    results = [ToolMessage(get_weather(**one["args"]), tool_call_id=one["id"]) for one in asked.tool_calls]
    answer = model.bind_tools([get_weather], tool_choice="none").invoke([HumanMessage(WEATHER), asked, *results])
    return {"name": found["name"], "arguments": found["args"], "answer": answer.content}


@call
def structured():
    return [
        model.with_structured_output(Weather, method=method).invoke(WEATHER).model_dump()
        for method in ("json_schema", "function_calling")
    ]


@call
def responses():
    return ChatOpenAI(base_url=BASE, use_responses_api=True, **OPTIONS).invoke(HELLO).text


@call
def embeddings():
    # By default it sends tokens of OpenAI's own tokenizer, whatever the model.
    return OpenAIEmbeddings(
        base_url=BASE, api_key="EMPTY", model=EMBED, check_embedding_ctx_length=False
    ).embed_documents(TEXTS)


@call
def errors():
    missing = ChatOpenAI(base_url=BASE, **{**OPTIONS, "model": "gpt-4"})
    wrong = ChatOpenAI(base_url=KEY_BASE, **{**OPTIONS, "api_key": "sk-wrong"})
    return {
        "missing_model": caught(openai.APIError, missing.invoke, HELLO),
        "wrong_key": caught(openai.APIError, wrong.invoke, HELLO),
        "too_long": caught(openai.APIError, model.invoke, "zebra " * 9000),
    }


@call
def retries():
    fields = {**OPTIONS, "max_retries": 2}
    return [
        ChatOpenAI(base_url=BUSY_BASE, **{**fields, "api_key": BUSY_KEY, "model": name}).invoke(HELLO).content
        for name in ("busy-429", "busy-503")
    ]


show(version("langchain-openai"))
