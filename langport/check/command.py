"""Runs the checks, and prints them as a table or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from langport.check.checks import CHATS, CHECKS, COMPLETIONS, EMBEDDINGS, Check
from langport.check.server import Answer, Failed, Server, Skipped

Outcome = Literal["pass", "fail", "skip"]
_COLORS: dict[Outcome, str] = {"pass": "\x1b[32m", "fail": "\x1b[31m", "skip": "\x1b[33m"}
_PLAIN = "\x1b[0m"
_SHORTEST: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHATS, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
    "completion": (COMPLETIONS, {"prompt": "Hi", "max_tokens": 1}),
    "embedding": (EMBEDDINGS, {"input": "Hi"}),
}
"""What a model is asked to see what it is for."""


@dataclass(frozen=True)
class Result:
    check: Check
    outcome: Outcome
    why: str = ""
    """What was expected and what came, or why it was skipped."""


def run(server: Server, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """Run all checks and print each result as it comes; the exit code, 1 where one failed or none passed."""
    out = out or sys.stdout
    find_models(server)
    results = []
    if not as_json:
        print(f"{'group':12}{'check':22}{'':6}why", file=out)
    for result in run_checks(server, CHECKS):
        results.append(result)
        if not as_json:
            print(_row(result, has_color=_has_color(out)), file=out, flush=True)
    counts = Counter(result.outcome for result in results)
    is_good = not counts["fail"] and counts["pass"] > 0
    if as_json:
        print(json.dumps(_report(server, results, counts), indent=2, ensure_ascii=False), file=out)
    else:
        models = ", ".join(f"{purpose}: {name or 'none'}" for purpose, name in server.models.items())
        print(f"\n{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped ({models})", file=out)
    return 0 if is_good else 1


def run_checks(server: Server, checks: Iterable[Check]) -> Iterator[Result]:
    """The result of each, as it comes."""
    for check in checks:
        try:
            check.run(server)
        except Failed as failed:
            yield Result(check, "fail", str(failed))
        except Skipped as skipped:
            yield Result(check, "skip", str(skipped))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            # An answer of a shape that the check did not expect anywhere.
            yield Result(check, "fail", f"expected an answer of another shape, got {type(error).__name__}: {error}")
        else:
            yield Result(check, "pass")


def find_models(server: Server) -> None:
    """Fill in the models that were not given: the first of /models that answers for it."""
    purposes = [purpose for purpose in ("chat", "completion", "embedding") if not server.models.get(purpose)]
    server.models = {**dict.fromkeys(("chat", "completion", "embedding")), **server.models}
    if not purposes:
        return
    names = model_names(server)
    for purpose in purposes:
        server.models[purpose] = first_that_answers(server, purpose, names)
    if not server.models["chat"]:
        # Nothing answers as it should; the checks say how, on the first model or under some name.
        server.models["chat"] = names[0] if names else "default"


def model_names(server: Server) -> list[str]:
    """Those of /models; none when it does not answer as it should."""
    try:
        return [str(model["id"]) for model in server.get("/models").succeeded()["data"]]
    except (Failed, KeyError, TypeError):
        return []


def first_that_answers(server: Server, purpose: str, names: Iterable[str]) -> str | None:
    """The first of the models that is for it: chat, completion or embedding."""
    return next((name for name in names if _answers(server, purpose, name)), None)


def _answers(server: Server, purpose: str, name: str) -> bool:
    path, fields = _SHORTEST[purpose]
    try:
        answer: Answer = server.post(path, {"model": name, **fields})
    except Failed:
        return False
    return answer.status == 200


def _row(result: Result, *, has_color: bool) -> str:
    check, outcome = result.check, result.outcome
    word = f"{_COLORS[outcome]}{outcome}{_PLAIN}" if has_color else outcome
    line = f"{check.group:12}{check.name:22}{word}"
    if outcome == "fail":
        return f"{line}  {result.why}\n{'':40}the rule: {check.rule}"
    return f"{line}  {result.why}".rstrip()


def _has_color(out: TextIO) -> bool:
    return out.isatty() and "NO_COLOR" not in os.environ


def _report(server: Server, results: list[Result], counts: Counter[Outcome]) -> dict[str, Any]:
    return {
        "url": server.url,
        "models": server.models,
        "passed": counts["pass"],
        "failed": counts["fail"],
        "skipped": counts["skip"],
        "checks": [
            {
                "group": result.check.group,
                "check": result.check.name,
                "outcome": result.outcome,
                "why": result.why or None,
                "rule": result.check.rule,
            }
            for result in results
        ],
    }
