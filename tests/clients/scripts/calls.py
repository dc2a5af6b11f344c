"""What every script of a client begins and ends with: what it is given, its calls by name, and what they brought.

A script prints one JSON object: the version of its package, and under each feature's name what the client made of the
server's answer. Usage: python SCRIPT '{"url": ..., "key_url": ..., "key": ..., "busy_url": ..., ...}'.
"""

import json
import sys

given = json.loads(sys.argv[1])
CHAT, EMBED = given["chat"], given["embed"]
BASE, KEY_BASE, BUSY_BASE = (given[name] + "/v1" for name in ("url", "key_url", "busy_url"))
BUSY_KEY = given["busy_key"]
HELLO = "Hello! What is your name?"
WEATHER = "What is the weather in Oslo?"
TEXTS = ["Hi there!", "Good day!"]
CALLS = {}


def call(function):
    """Make the function one of the script's calls, under its name."""
    CALLS[function.__name__] = function
    return function


def caught(kind, function, *arguments, **fields):
    """The class and the HTTP status of the error of that kind that a call must raise."""
    try:
        function(*arguments, **fields)
    except kind as error:
        return [type(error).__name__, getattr(error, "status_code", None), str(error)]
    return ["no error", None, ""]


def show(version):
    """Make all calls; print what they brought."""
    print(json.dumps({"version": version, **{name: _result(function) for name, function in CALLS.items()}}))


def _result(function):
    try:
        return function()
    except Exception as error:  # the test shows it under the call's name
        return {"failed": f"{type(error).__name__}: {error}"}
