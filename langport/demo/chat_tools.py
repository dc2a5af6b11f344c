"""Tools for the conversations of langport-demo-chat: definitions, requests that need them, calls and results."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from langport.demo.chat_words import WEATHER, any_city, any_name, any_word


class Task(NamedTuple):
    """A tool, a request that needs it, the arguments, what the tool returns, and the sentence for the user."""

    tool: dict[str, Any]
    request: str
    arguments: dict[str, Any]
    result: str
    answer: str


def _tool(rng: Random, name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A definition as clients send it; some leave out the description or add `strict`."""
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.2:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": function}


def _text(rng: Random, description: str) -> dict[str, Any]:
    return {"type": "string", "description": description} if rng.random() < 0.5 else {"type": "string"}


def _result(rng: Random, values: dict[str, Any], sentence: str) -> str:
    return json.dumps(values) if rng.random() < 0.6 else sentence


def weather_task(rng: Random) -> Task:
    city, weather, degrees = any_city(rng), rng.choice(WEATHER), rng.randint(-9, 35)
    key = rng.choice(("city", "city", "location", "location", "place"))
    name = rng.choice(("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "lookup_weather"))
    properties: dict[str, Any] = {key: _text(rng, f"The name of the {key}")}
    arguments: dict[str, Any] = {key: city}
    request = rng.choice(
        (
            "What is the weather in {}?",
            "What is the weather in {}?",
            "What's the weather like in {}?",
            "How is the weather in {} today?",
            "Tell me the weather in {}.",
            "Is it raining in {}?",
            "What is the weather like in {} today?",
            "Weather in {}?",
        )
    ).format(city)
    if rng.random() < 0.3:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        if rng.random() < 0.5:
            arguments["unit"] = rng.choice(("celsius", "fahrenheit"))
            request += f" In {arguments['unit']}, please."
    tool = _tool(rng, name, rng.choice(("Get the weather in a city", "Get the current weather")), properties, [key])
    answer = f"It is {weather} in {city}, with {degrees} degrees."
    values = {"temperature": degrees, "condition": weather}
    return Task(tool, request, arguments, _result(rng, values, f"{weather}, {degrees} degrees"), answer)


def _alarm_task(rng: Random) -> Task:
    time = f"{rng.randrange(24):02}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"
    key = rng.choice(("time", "time", "at"))
    tool = _tool(rng, "set_alarm", "Set an alarm", {key: _text(rng, "The time of the alarm")}, [key])
    request = rng.choice(
        ("Set an alarm for {}.", "Wake me at {}.", "Please set an alarm for {}.", "Set my alarm to {}.")
    ).format(time)
    return Task(tool, request, {key: time}, _result(rng, {"status": "ok"}, "ok"), f"Your alarm is set for {time}.")


def _calculator_task(rng: Random) -> Task:
    a, b = rng.randint(0, 999), rng.randint(0, 999)
    operator, word, result = rng.choice((("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b)))
    request = rng.choice(
        (
            f"What is {a} {operator} {b}?",
            f"Calculate {a} {word} {b}.",
            f"Use the calculator: {a} {operator} {b}",
        )
    )
    tool = _tool(
        rng,
        rng.choice(("calculator", "calculate")),
        "Evaluate an expression",
        {"expression": _text(rng, "The expression")},
        ["expression"],
    )
    text = f"{a} {operator} {b}"
    return Task(
        tool,
        request,
        {"expression": text},
        _result(rng, {"result": result}, str(result)),
        f"{text} = {result}.",
    )


def _add_task(rng: Random) -> Task:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    kind = {"type": rng.choice(("number", "integer"))}
    tool = _tool(rng, rng.choice(("add", "add_numbers")), "Add two numbers", {"a": kind, "b": kind}, ["a", "b"])
    request = rng.choice((f"Add {a} and {b}.", f"What is {a} plus {b}?", f"What is {a} + {b}?"))
    return Task(tool, request, {"a": a, "b": b}, _result(rng, {"result": a + b}, str(a + b)), f"{a} + {b} = {a + b}.")


def _time_task(rng: Random) -> Task:
    city = any_city(rng)
    time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    key = rng.choice(("city", "location", "timezone"))
    tool = _tool(
        rng,
        rng.choice(("get_time", "get_current_time")),
        "Get the time in a city",
        {key: _text(rng, "The city")},
        [key],
    )
    request = rng.choice(("What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?")).format(city)
    return Task(tool, request, {key: city}, _result(rng, {"time": time}, time), f"It is {time} in {city}.")


def _search_task(rng: Random) -> Task:
    query = " ".join(any_word(rng) for _ in range(rng.randint(1, 3)))
    found = f"{any_word(rng)} {any_word(rng)}"
    tool = _tool(
        rng,
        rng.choice(("search", "web_search", "search_web")),
        "Search the web",
        {"query": _text(rng, "What to search for")},
        ["query"],
    )
    request = rng.choice(("Search for {}.", "Find {}.", "Look up {}.", "Search the web for {}.")).format(query)
    return Task(tool, request, {"query": query}, _result(rng, {"result": found}, found), f"I found: {found}.")


def _mail_task(rng: Random) -> Task:
    name, word = any_name(rng), any_word(rng)
    key = rng.choice(("to", "recipient"))
    text = rng.choice(("text", "message", "body"))
    properties = {key: _text(rng, "Who gets it"), text: _text(rng, "What to say")}
    tool = _tool(rng, rng.choice(("send_message", "send_email")), "Send a message", properties, [key, text])
    request = rng.choice((f"Send {word} to {name}.", f"Write to {name}: {word}", f"Tell {name} {word}."))
    return Task(
        tool,
        request,
        {key: name, text: word},
        _result(rng, {"status": "sent"}, "sent"),
        f"I sent the message to {name}.",
    )


def _invented_task(rng: Random) -> Task:
    """A tool nobody has heard of, so that names come from the definition and not from memory."""
    name = f"{rng.choice(('get', 'find', 'lookup', 'set', 'make', 'check'))}_{any_word(rng)}"
    key, value, found = any_word(rng), any_word(rng), any_word(rng)
    tool = _tool(rng, name, f"Call {name}", {key: _text(rng, f"The {key}")}, [key])
    request = rng.choice(
        (
            f"Call {name} with {value}.",
            f"Use {name} for {value}.",
            f"Please {name.replace('_', ' ')} {value}.",
        )
    )
    return Task(tool, request, {key: value}, _result(rng, {"result": found}, found), f"The result is {found}.")


TASKS: tuple[tuple[Callable[[Random], Task], float], ...] = (
    (weather_task, 5),
    (_alarm_task, 1.5),
    (_calculator_task, 1.5),
    (_add_task, 1),
    (_time_task, 1),
    (_search_task, 1.5),
    (_mail_task, 1),
    (_invented_task, 2),
)
