"""What instructor gets from a server: answers of a class, through tools and through a schema. Usage: see calls.py."""

from importlib.metadata import version
from typing import Literal

import instructor
import openai
from calls import BASE, BUSY_BASE, BUSY_KEY, CHAT, HELLO, KEY_BASE, WEATHER, call, caught, show
from instructor.core import InstructorRetryException
from pydantic import BaseModel, ConfigDict, Field

OPTIONS = {"model": CHAT, "temperature": 0, "max_tokens": 60, "max_retries": 0}


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")  # or a small model may go on with fields of its own

    city: Literal["Oslo", "Paris"]
    degrees: int = Field(ge=-40, le=50)


def client(mode=instructor.Mode.TOOLS, base=BASE, key="EMPTY", max_retries=0):
    return instructor.from_openai(openai.OpenAI(base_url=base, api_key=key, max_retries=max_retries), mode=mode)


def ask(one, text=WEATHER, **fields):
    talk = [{"role": "user", "content": text}]
    return one.chat.completions.create(**{"messages": talk, "response_model": Weather, **OPTIONS, **fields})


@call
def chat():
    return ask(client(), HELLO, response_model=None).choices[0].message.content


@call
def stream():
    return [
        piece.model_dump()
        for piece in client(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(
            response_model=Weather, messages=[{"role": "user", "content": WEATHER}], **OPTIONS
        )
    ]


@call
def structured():
    modes = instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA
    return [ask(client(mode)).model_dump() for mode in modes]


@call
def errors():
    def cause(one, text=WEATHER, **fields):
        """instructor wraps the error of the client below it."""
        try:
            return ask(one, text, **fields)
        except InstructorRetryException as error:
            raise error.__cause__ from error

    return {
        "missing_model": caught(openai.APIError, cause, client(), model="gpt-4"),
        "wrong_key": caught(openai.APIError, cause, client(base=KEY_BASE, key="sk-wrong")),
        "too_long": caught(openai.APIError, cause, client(), "zebra " * 9000),
    }


@call
def retries():
    one = client(base=BUSY_BASE, key=BUSY_KEY, max_retries=2)
    return [
        ask(one, HELLO, response_model=None, model=name).choices[0].message.content for name in ("busy-429", "busy-503")
    ]


show(version("instructor"))
