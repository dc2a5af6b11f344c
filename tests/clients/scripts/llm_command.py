"""What the `llm` command gets from a server, with models of its extra-openai-models.yaml. Usage: see calls.py."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml
from calls import BASE, BUSY_BASE, BUSY_KEY, CHAT, HELLO, KEY_BASE, WEATHER, call, show

LLM = Path(sys.executable).with_name("llm")
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "60")
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Paris"]},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
    },
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
FUNCTION = """
def get_weather(city: str) -> str:
    "Current weather of a city."
    return f"Sunny in {city}."
"""
MODELS = {
    "demo": {"model_name": CHAT, "api_base": BASE, "supports_tools": True, "supports_schema": True},
    "demo-responses": {"model_name": CHAT, "api_base": BASE, "responses": True},
    "missing": {"model_name": "gpt-4", "api_base": BASE},
    "locked": {"model_name": CHAT, "api_base": KEY_BASE, "api_key_name": "wrong"},
    "busy-429": {"model_name": "busy-429", "api_base": BUSY_BASE, "api_key_name": "busy"},
    "busy-503": {"model_name": "busy-503", "api_base": BUSY_BASE, "api_key_name": "busy"},
}


def run(folder, *arguments):
    environment = {**os.environ, "LLM_USER_PATH": folder, "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [LLM, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def llm(*arguments):
    """What the command prints, with a folder of its own for settings, keys and logs."""
    with tempfile.TemporaryDirectory() as folder:
        models = [{"model_id": name, **fields} for name, fields in MODELS.items()]
        Path(folder, "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
        Path(folder, "keys.json").write_text(json.dumps({"wrong": "sk-wrong", "busy": BUSY_KEY}))
        return run(folder, *arguments)


def printed(*arguments):
    done = llm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@call
def chat():
    return printed("-m", "demo", "--no-stream", *GREEDY, HELLO)


@call
def stream():
    return [printed("-m", "demo", *GREEDY, HELLO)]


@call
def tools():
    done = llm("-m", "demo", *GREEDY, "--functions", FUNCTION, "--tools-debug", WEATHER)
    name, arguments = re.search(r"Tool call: (\w+)\((.*)\)", done.stderr).groups()
    return {"name": name, "arguments": ast.literal_eval(arguments), "answer": done.stdout.strip()}


@call
def structured():
    return [json.loads(printed("-m", "demo", "--schema", json.dumps(SCHEMA), *GREEDY, WEATHER))]


@call
def responses():
    return printed("-m", "demo-responses", "-o", "temperature", "0", HELLO)


@call
def errors():
    found = {"missing_model": llm("-m", "missing", HELLO), "wrong_key": llm("-m", "locked", HELLO)}
    found["too_long"] = llm("-m", "demo", "zebra " * 9000)
    return {name: ["Error", done.returncode, done.stderr] for name, done in found.items()}


@call
def retries():
    return [printed("-m", name, "--no-stream", HELLO) for name in ("busy-429", "busy-503")]


show(version("llm"))
