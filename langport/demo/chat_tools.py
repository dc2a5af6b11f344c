"""Tools for the conversations of langport-demo-chat: definitions, requests that need them, calls and results."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from langport.demo.chat_words import WEATHER, any_city, any_name, any_word, weighted


class Task(NamedTuple):
    """One use of a tool: a request, the arguments, what the tool returns, and the sentence for the user."""

    request: str
    arguments: dict[str, Any]
    result: str
    answer: str


class Tool(NamedTuple):
    """A tool's definition as clients send it, and a maker of tasks for it."""

    definition: dict[str, Any]
    ask: Callable[[Random], Task]

    @property
    def name(self) -> str:
        return str(self.definition["function"]["name"])


def _definition(
    rng: Random, name: str, description: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    """Some clients leave out the description or add `strict`."""
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


def _weather(rng: Random) -> Tool:
    key = rng.choice(("city", "city", "location", "location", "place"))
    name = rng.choice(("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "lookup_weather"))
    properties: dict[str, Any] = {key: _text(rng, f"The name of the {key}")}
    has_units = rng.random() < 0.3
    if has_units:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}

    def ask(rng: Random) -> Task:
        city, weather, degrees = any_city(rng), rng.choice(WEATHER), rng.randint(-9, 35)
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
        if has_units and rng.random() < 0.5:
            arguments["unit"] = rng.choice(("celsius", "fahrenheit"))
            request += f" In {arguments['unit']}, please."
        answer = f"It is {weather} in {city}, with {degrees} degrees."
        values = {"temperature": degrees, "condition": weather}
        return Task(request, arguments, _result(rng, values, f"{weather}, {degrees} degrees"), answer)

    description = rng.choice(("Get the weather in a city", "Get the current weather"))
    return Tool(_definition(rng, name, description, properties, [key]), ask)


def is_weather(tool: Tool) -> bool:
    return "weather" in tool.name


def weather_in_two_cities(rng: Random, tool: Tool) -> tuple[str, list[Task]]:
    """One request about two cities, and the two tasks of the weather tool that it takes."""
    key = tool.definition["function"]["parameters"]["required"][0]
    tasks = [task._replace(arguments={key: task.arguments[key]}) for task in (tool.ask(rng), tool.ask(rng))]
    request = rng.choice(("What is the weather in {} and {}?", "Tell me the weather in {} and in {}."))
    return request.format(*(task.arguments[key] for task in tasks)), tasks


def _alarm(rng: Random) -> Tool:
    key = rng.choice(("time", "time", "at"))

    def ask(rng: Random) -> Task:
        time = f"{rng.randrange(24):02}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"
        request = rng.choice(
            ("Set an alarm for {}.", "Wake me at {}.", "Please set an alarm for {}.", "Set my alarm to {}.")
        ).format(time)
        return Task(request, {key: time}, _result(rng, {"status": "ok"}, "ok"), f"Your alarm is set for {time}.")

    return Tool(
        _definition(rng, "set_alarm", "Set an alarm", {key: _text(rng, "The time of the alarm")}, [key]),
        ask,
    )


def _calculator(rng: Random) -> Tool:
    def ask(rng: Random) -> Task:
        a, b = rng.randint(0, 999), rng.randint(0, 999)
        operator, word, result = rng.choice((("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b)))
        request = rng.choice(
            (
                f"What is {a} {operator} {b}?",
                f"Calculate {a} {word} {b}.",
                f"Use the calculator: {a} {operator} {b}",
            )
        )
        text = f"{a} {operator} {b}"
        return Task(request, {"expression": text}, _result(rng, {"result": result}, str(result)), f"{text} = {result}.")

    name = rng.choice(("calculator", "calculate"))
    properties = {"expression": _text(rng, "The expression")}
    return Tool(_definition(rng, name, "Evaluate an expression", properties, ["expression"]), ask)


def _adder(rng: Random) -> Tool:
    def ask(rng: Random) -> Task:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        request = rng.choice((f"Add {a} and {b}.", f"What is {a} plus {b}?", f"What is {a} + {b}?"))
        return Task(request, {"a": a, "b": b}, _result(rng, {"result": a + b}, str(a + b)), f"{a} + {b} = {a + b}.")

    kind = {"type": rng.choice(("number", "integer"))}
    name = rng.choice(("add", "add_numbers"))
    return Tool(_definition(rng, name, "Add two numbers", {"a": kind, "b": kind}, ["a", "b"]), ask)


def _clock(rng: Random) -> Tool:
    key = rng.choice(("city", "location", "timezone"))

    def ask(rng: Random) -> Task:
        city = any_city(rng)
        time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        request = rng.choice(("What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?"))
        return Task(request.format(city), {key: city}, _result(rng, {"time": time}, time), f"It is {time} in {city}.")

    name = rng.choice(("get_time", "get_current_time"))
    return Tool(_definition(rng, name, "Get the time in a city", {key: _text(rng, "The city")}, [key]), ask)


def _search(rng: Random) -> Tool:
    def ask(rng: Random) -> Task:
        query = " ".join(any_word(rng) for _ in range(rng.randint(1, 3)))
        found = f"{any_word(rng)} {any_word(rng)}"
        request = rng.choice(("Search for {}.", "Find {}.", "Look up {}.", "Search the web for {}.")).format(query)
        return Task(request, {"query": query}, _result(rng, {"result": found}, found), f"I found: {found}.")

    name = rng.choice(("search", "web_search", "search_web"))
    properties = {"query": _text(rng, "What to search for")}
    return Tool(_definition(rng, name, "Search the web", properties, ["query"]), ask)


def _mail(rng: Random) -> Tool:
    key = rng.choice(("to", "recipient"))
    text = rng.choice(("text", "message", "body"))

    def ask(rng: Random) -> Task:
        name, word = any_name(rng), any_word(rng)
        request = rng.choice((f"Send {word} to {name}.", f"Write to {name}: {word}", f"Tell {name} {word}."))
        result = _result(rng, {"status": "sent"}, "sent")
        return Task(request, {key: name, text: word}, result, f"I sent the message to {name}.")

    tool = rng.choice(("send_message", "send_email"))
    properties = {key: _text(rng, "Who gets it"), text: _text(rng, "What to say")}
    return Tool(_definition(rng, tool, "Send a message", properties, [key, text]), ask)


def _invented(rng: Random) -> Tool:
    """A tool nobody has heard of, so that names come from the definition and not from memory."""
    name = f"{rng.choice(('get', 'find', 'lookup', 'set', 'make', 'check'))}_{any_word(rng)}"
    key = any_word(rng)

    def ask(rng: Random) -> Task:
        value, found = any_word(rng), any_word(rng)
        request = rng.choice(
            (
                f"Call {name} with {value}.",
                f"Use {name} for {value}.",
                f"Please {name.replace('_', ' ')} {value}.",
            )
        )
        return Task(request, {key: value}, _result(rng, {"result": found}, found), f"The result is {found}.")

    return Tool(_definition(rng, name, f"Call {name}", {key: _text(rng, f"The {key}")}, [key]), ask)


_TOOLS: tuple[tuple[Callable[[Random], Tool], float], ...] = (
    (_weather, 5),
    (_alarm, 1.5),
    (_calculator, 1.5),
    (_adder, 1),
    (_clock, 1.5),
    (_search, 1.5),
    (_mail, 1.5),
    (_invented, 3),
)


def any_tool(rng: Random, renamed_share: float = 0.0) -> Tool:
    maker = weighted(rng, _TOOLS)
    tool = maker(rng)
    return _renamed(rng, tool) if maker is not _invented and renamed_share and rng.random() < renamed_share else tool


def _renamed(rng: Random, tool: Tool) -> Tool:
    """The tool under a name and with keys that no request tells, so that they must be read in the definition."""
    function = tool.definition["function"]
    parameters = function["parameters"]
    keys = {key: _longer(rng, key) for key in parameters["properties"]}
    properties = {keys[key]: value for key, value in parameters["properties"].items()}
    required = [keys[key] for key in parameters["required"]]

    def ask(rng: Random) -> Task:
        task = tool.ask(rng)
        return task._replace(arguments={keys[key]: value for key, value in task.arguments.items()})

    renamed = {
        **function,
        "name": _longer(rng, tool.name),
        "parameters": {**parameters, "properties": properties, "required": required},
    }
    return Tool({**tool.definition, "function": renamed}, ask)


def _longer(rng: Random, name: str) -> str:
    """The name as it is, with a word before or after it, or another word."""
    return rng.choice((name, f"{name}_{any_word(rng)}", f"{any_word(rng)}_{name}", any_word(rng)))
