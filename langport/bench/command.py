"""`langport bench`: its options, and what is done with them one after the other."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from langport.errors import ConfigError, LangPortError

if TYPE_CHECKING:
    from langport.bench.client import Client
    from langport.bench.figures import Level, Report
    from langport.bench.prompts import Lengths
    from langport.bench.table import Table
    from langport.check.server import Server

T = TypeVar("T")

ENDPOINTS = {"chat": "chat", "completions": "completion", "embeddings": "embedding"}
"""What each needs a model for, in the words of `langport check`."""
_EPILOG = """\
examples:
  langport bench http://127.0.0.1:8000                                        1, 8 and 32 clients
  langport bench localhost:8000 --rate 1,2,4 --requests 200                   arrivals at random
  langport bench localhost:8000 --prompt-tokens 64-512 --shared-prefix 1000   one beginning for all
  langport bench localhost:8000 --json new.json --compare old.json            beside an earlier run

Exit code 0: every request was answered as asked; 1: some were not; 2: the options are wrong. docs/benchmarks.md says
how to measure so that the figures mean something."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="langport bench",
        description="Measure how fast a server that speaks OpenAI's API answers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="its base URL; without a path, /v1 is added")
    add("--model", metavar="NAME", help="the first of /v1/models that answers, if not given")
    add("--api-key", metavar="K", help="sent as a bearer token")
    add("--endpoint", choices=list(ENDPOINTS), default="chat", help="what is asked; default chat")

    load = parser.add_argument_group("load")
    load.add_argument(
        "--concurrency", metavar="N,...", help="closed loop: so many clients, one run for each number; default 1,8,32"
    )
    load.add_argument(
        "--rate", metavar="R,...", help="open loop: so many arrivals a second at random (Poisson), one run for each"
    )
    load.add_argument(
        "--requests",
        metavar="N",
        help="of each run; default 4 for each client and at least 8, or 30 seconds of arrivals and at least 20",
    )
    load.add_argument("--warmup", metavar="N", default="1", help="requests before the first run; default 1")
    load.add_argument("--seed", metavar="N", default="0", help="of lengths and arrivals; default 0")
    load.add_argument("--timeout", metavar="SECONDS", default="600", help="for one answer; default 600")

    asked = parser.add_argument_group("what is asked")
    length = "a number, or a range such as 64-512"
    asked.add_argument("--prompt-tokens", metavar="N", default="128", help=f"{length}; default 128")
    asked.add_argument("--output-tokens", metavar="N", default="128", help=f"{length}; default 128")
    asked.add_argument(
        "--shared-prefix", metavar="N", default="0", help="tokens before the prompt's own, the same for all requests"
    )
    asked.add_argument("--batch", metavar="N", default="1", help="texts of each embeddings request; default 1")
    asked.add_argument("--temperature", metavar="T", default="1", help="default 1")
    asked.add_argument(
        "--no-extras", action="store_true", help="do not ask with ignore_eos, for servers that do not take it"
    )
    asked.add_argument(
        "--allow-short", action="store_true", help="an answer with fewer tokens than asked for is no error"
    )
    asked.add_argument(
        "--body", metavar="JSON", default="{}", help="an object of further fields of each request; null removes one"
    )

    results = parser.add_argument_group("results")
    results.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    results.add_argument("--plot", metavar="FILE.png", type=Path, help="draw them (pip install 'langport[plot]')")
    results.add_argument("--compare", metavar="OLD.json", type=Path, help="print ratios to an earlier --json")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Measure, print, write; the exit code. Raises: ConfigError, and LangPortError when there is nothing to measure."""
    parser = _parser()
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help())
        return 0
    given = parser.parse_args(arguments)

    import asyncio

    from langport.bench.plot import check_plotting, plot
    from langport.bench.table import comparison, failures, notes
    from langport.check.server import Server, base_url

    server = Server(base_url(given.url), given.api_key, timeout_s=_positive("--timeout", given.timeout))
    work = _Work(given, server)
    old = _old_report(given.compare) if given.compare else None
    for option, path in (("--json", given.json), ("--plot", given.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no directory {path.parent}.")
    if given.plot is not None:
        check_plotting()

    work.prepare()
    report = asyncio.run(work.measure())
    for line in notes(report.levels):
        print(line)
    if old is not None:
        print("\n".join(comparison(report, old)))
    if given.json is not None:
        _write(given.json, report)
    if given.plot is not None:
        plot(report, given.plot)
    if lines := failures(report.levels):
        hints = (work.hint(kind) for level in report.levels for kind in level.errors)
        hint = next((hint for hint in hints if hint), "")
        raise LangPortError("\n".join(lines) + hint)
    return 0


class _Work:
    """The options, read and checked, and what they ask for."""

    def __init__(self, given: argparse.Namespace, server: Server) -> None:
        """Raises: ConfigError with every option that is wrong."""
        from langport.bench.prompts import Plan

        problems: list[str] = []

        def read(parse: Callable[[str, str], T], option: str, text: str, instead: T) -> T:
            try:
                return parse(option, text)
            except ConfigError as error:
                problems.extend(error.problems)
                return instead

        self._given, self._server = given, server
        if given.rate and given.concurrency:
            problems.append("--rate is an open loop and --concurrency a closed one: give one of them.")
        self.is_open = bool(given.rate)
        no_levels: list[float] = []
        if self.is_open:
            self.levels = read(_rates, "--rate", given.rate, no_levels)
        else:
            self.levels = read(_counts, "--concurrency", given.concurrency or "1,8,32", no_levels)
        self.num_requests = read(_count, "--requests", given.requests, 1) if given.requests else None
        self.num_warmups = read(_whole, "--warmup", given.warmup, 0)
        self.seed = read(_whole, "--seed", given.seed, 0)
        one = _lengths("", "1")
        self.plan = Plan(
            given.endpoint,
            given.model or "",
            read(_lengths, "--prompt-tokens", given.prompt_tokens, one),
            read(_lengths, "--output-tokens", given.output_tokens, one),
            read(_whole, "--shared-prefix", given.shared_prefix, 0),
            read(_count, "--batch", given.batch, 1),
            read(_number, "--temperature", given.temperature, 1.0),
            not given.no_extras,
            given.allow_short,
            read(_fields, "--body", given.body, {}),
        )
        if problems:
            raise ConfigError(*problems)

    def prepare(self) -> None:
        """Find the model, and what its tokens are. Raises: LangPortError when no model answers."""
        from dataclasses import replace

        from langport.bench.prompts import Words, count_words

        model = self.plan.model or self._find_model()
        self.plan = replace(self.plan, model=model)
        costs, self._is_counted = count_words(self._server, model)
        self._words = Words(costs)
        self._prefix = self._words.text(self.plan.shared_prefix) if self.plan.shared_prefix else ""

    def _find_model(self) -> str:
        from langport.check.command import first_that_answers, model_names
        from langport.check.server import Failed

        try:
            self._server.get("/models")
        except Failed as failed:
            raise LangPortError(f"{self._server.url} cannot be measured: {failed}.") from None
        names = model_names(self._server)
        found = first_that_answers(self._server, ENDPOINTS[self.plan.endpoint], names)
        if found is None:
            listed = ", ".join(names) or "none"
            raise LangPortError(
                f"No model of {self._server.url}/models answers {self.plan.endpoint} (it lists: {listed});"
                " give --model, and --api-key if the server wants one."
            )
        return found

    async def measure(self) -> Report:
        """Raises: LangPortError when not even the warm-up is answered."""
        from datetime import UTC, datetime

        from langport.bench.client import Client
        from langport.bench.figures import Report
        from langport.bench.table import Table

        date = datetime.now(UTC).isoformat(timespec="seconds")
        table = Table("open" if self.is_open else "closed", is_embedding=self.plan.endpoint == "embeddings")
        client = Client(self._server.url, self._given.api_key, self._server.timeout_s)
        try:
            await self._warm_up(client)
            unit = "tokens" if self._is_counted else "words, since the server has no /tokenize"
            print(f"{self.plan.model} at {self._server.url}: {self.plan.endpoint}, {self._asked()} ({unit})")
            print("times in ms: from sending to the first text, from text to the next, from sending to the end")
            table.head()
            levels = [await self._level(client, level, table) for level in self.levels]
        finally:
            client.close()
        return Report(
            date=date,
            url=self._server.url,
            model=self.plan.model,
            endpoint=self.plan.endpoint,
            load=self._load(),
            levels=levels,
        )

    async def _level(self, client: Client, level: float, table: Table) -> Level:
        from langport.bench.figures import summary
        from langport.bench.load import closed_loop, open_loop
        from langport.bench.prompts import make_requests

        num = self.num_requests or default_requests(level, is_open=self.is_open)
        requests = make_requests(self.plan, self._words, self._prefix, num, self.seed)
        counter = table.counter(level, num, client.clock)
        if self.is_open:
            measured = await open_loop(client, requests, level, self.seed, counter)
        else:
            measured = await closed_loop(client, requests, int(level), counter)
        found = summary(measured)
        table.row(found)
        return found

    async def _warm_up(self, client: Client) -> None:
        from langport.bench.load import ask
        from langport.bench.prompts import make_requests

        for request in make_requests(self.plan, self._words, self._prefix, self.num_warmups, self.seed):
            sample = await ask(client, request)
            if sample.error is not None:
                raise LangPortError(
                    f"The first request failed: {sample.error}: {sample.message}{self.hint(sample.error)}"
                )

    def hint(self, error: str) -> str:
        """What to do about a kind of error, if anything is known."""
        if error == "short answer":
            return "; does the server take ignore_eos? --allow-short measures what comes"
        if error in ("status 400", "status 422") and self.plan.has_extras:
            return "; --no-extras leaves out ignore_eos, and --body sets or removes other fields"
        return ""

    def _asked(self) -> str:
        plan = self.plan
        prefix = f"{plan.shared_prefix} shared + " if plan.shared_prefix else ""
        if plan.endpoint == "embeddings":
            return f"{plan.batch} x {prefix}{plan.prompt} in"
        return f"{prefix}{plan.prompt} in, {plan.output} out"

    def _load(self) -> dict[str, str | int | float | bool]:
        plan = self.plan
        common: dict[str, str | int | float | bool] = {
            "prompt_tokens": str(plan.prompt),
            "shared_prefix": plan.shared_prefix,
            "counted_in": "tokens" if self._is_counted else "words",
            "seed": self.seed,
            "body": json.dumps(dict(plan.fields)),
        }
        if plan.endpoint == "embeddings":
            return common | {"batch": plan.batch}
        more: dict[str, str | int | float | bool] = {
            "output_tokens": str(plan.output),
            "temperature": plan.temperature,
            "ignore_eos": plan.has_extras,
        }
        return common | more


def default_requests(level: float, *, is_open: bool) -> int:
    return max(20, math.ceil(30 * level)) if is_open else max(8, 4 * int(level))


def _old_report(path: Path) -> Report:
    import msgspec

    from langport.bench.figures import Report

    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"--compare {path}: {error.strerror}.") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--compare {path} is no report of `langport bench --json`: {error}") from None


def _write(path: Path, report: Report) -> None:
    import msgspec

    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


# What options mean. Each raises ConfigError.


def _whole(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{option} takes a whole number, not {text!r}.")
    return int(text)


def _count(option: str, text: str) -> int:
    number = _whole(option, text)
    if number < 1:
        raise ConfigError(f"{option} is 1 at least.")
    return number


def _counts(option: str, text: str) -> list[float]:
    return [float(_count(option, part.strip())) for part in text.split(",")]


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{option} takes a number, not {text!r}.")
    return number


def _positive(option: str, text: str) -> float:
    number = _number(option, text)
    if number <= 0:
        raise ConfigError(f"{option} is above 0.")
    return number


def _rates(option: str, text: str) -> list[float]:
    return [_positive(option, part.strip()) for part in text.split(",")]


def _lengths(option: str, text: str) -> Lengths:
    from langport.bench.prompts import Lengths

    low, dash, high = text.partition("-")
    first = _count(option, low)
    last = _count(option, high) if dash else first
    if last < first:
        raise ConfigError(f"{option} {text}: the range ends before it begins.")
    return Lengths(first, last)


def _fields(option: str, text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{option} takes a JSON object, such as '{{\"top_k\": 20}}'.")
    return found
