"""What pydantic-ai gets from a server. Usage: see calls.py."""

from importlib.metadata import version
from typing import Literal

import openai
from calls import BASE, BUSY_BASE, BUSY_KEY, CHAT, EMBED, HELLO, KEY_BASE, TEXTS, WEATHER, call, caught, show
from pydantic import BaseModel, Field
from pydantic_ai import Agent, Embedder, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

SETTINGS = {"temperature": 0, "max_tokens": 60}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = ToolDefinition(name="get_weather", description="Current weather of a city.", parameters_json_schema=CITY)


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Paris"]
    degrees: int = Field(ge=-40, le=50)


def provider(base=BASE, key="EMPTY", max_retries=0):
    # A client for each event loop, which run_sync makes anew.
    return OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=max_retries))


def agent(name=CHAT, output_type=str, **fields):
    return Agent(OpenAIChatModel(name, provider=provider(**fields)), output_type=output_type, model_settings=SETTINGS)


@call
def chat():
    return agent().run_sync(HELLO).output


@call
def stream():
    return list(agent().run_stream_sync(HELLO).stream_text(delta=True, debounce_by=None))


@call
def tools():
    model = OpenAIChatModel(CHAT, provider=provider())

    def ask(talk, choice):
        parameters = ModelRequestParameters(function_tools=[TOOL])
        settings = {**SETTINGS, "tool_choice": choice}
        return model_request_sync(model, talk, model_settings=settings, model_request_parameters=parameters)

    question = ModelRequest.user_text_prompt(WEATHER)
    asked = ask([question], "required")
    assert isinstance(asked, ModelResponse)
    results = [ToolReturnPart(one.tool_name, "Sunny.", one.tool_call_id) for one in asked.tool_calls]
    model = OpenAIChatModel(CHAT, provider=provider())
    answer = ask([question, asked, ModelRequest(parts=results)], "none")
    found = asked.tool_calls[0]
    return {"name": found.tool_name, "arguments": found.args_as_dict(), "answer": answer.text}


@call
def structured():
    kinds = ToolOutput(Weather), NativeOutput(Weather)
    return [agent(output_type=kind).run_sync(WEATHER).output.model_dump() for kind in kinds]


@call
def responses():
    return Agent(OpenAIResponsesModel(CHAT, provider=provider()), model_settings=SETTINGS).run_sync(HELLO).output


@call
def embeddings():
    found = Embedder(OpenAIEmbeddingModel(EMBED, provider=provider())).embed_documents_sync(TEXTS)
    return [list(vector) for vector in found.embeddings]


@call
def errors():
    return {
        "missing_model": caught(ModelHTTPError, agent("gpt-4").run_sync, HELLO),
        "wrong_key": caught(ModelHTTPError, agent(base=KEY_BASE, key="sk-wrong").run_sync, HELLO),
        "too_long": caught(ModelHTTPError, agent().run_sync, "zebra " * 9000),
    }


@call
def retries():
    fields = {"base": BUSY_BASE, "key": BUSY_KEY, "max_retries": 2}
    return [agent(name, **fields).run_sync(HELLO).output for name in ("busy-429", "busy-503")]


show(version("pydantic-ai-slim"))
