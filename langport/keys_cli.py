"""`langport keys`: the API keys of a server, made and ended in its store, whether or not it runs.

A running server knows within a second. Secrets go to stdout alone, so that a script can take them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import msgspec

from langport.errors import ConfigError, InvalidRequest, LangPortError
from langport.gateway.key_admin import shown_key
from langport.gateway.key_book import KeyBook, Permissions, status_of
from langport.gateway.keys import Budget, KeyLimits, Per
from langport.settings.load import load_settings
from langport.settings.tree import MONEY
from langport.store.base import KeyRecord, UsageQuery
from langport.store.threaded import ThreadedStore, default_store, open_store
from langport.wire.keys import KeyObject

EXAMPLES = """\
examples:
  langport keys create Anna                                  prints the secret, once
  langport keys create ci --expires 30d --models chat,embed --requests-per-minute 60
  langport keys create team --token-budget 1000000/day --money-budget 20/month --metadata owner=Anna
  langport keys rotate Anna --grace 24h                      a new secret; the old one is good for a day
  langport keys revoke key_2f0c5a9e01b34d77                  ends it, within a second in every server"""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_PERIODS: dict[str, Per] = {"day": "day", "month": "month"}
_LIST_COLUMNS = ("ID", "NAME", "SECRET", "STATUS", "EXPIRES", "MODELS")


@dataclass(frozen=True)
class _Call:
    """What a command works with."""

    given: argparse.Namespace
    store: ThreadedStore
    book: KeyBook
    now_s: float


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def run(arguments: Sequence[str]) -> int:
    """Run one command. Raises: ConfigError, LangPortError."""
    parser = _parser()
    if not arguments:
        raise ConfigError(f"langport keys takes one of {', '.join(COMMANDS)}")
    given = parser.parse_args(arguments)
    place = _place(given)
    return asyncio.run(_run(given, open_store(place, default_store())))


async def _run(given: argparse.Namespace, store: ThreadedStore) -> int:
    try:
        call = _Call(given, store, KeyBook(store), time.time())
        await COMMANDS[given.command](call)
    except InvalidRequest as error:
        raise ConfigError(error.message) from error
    finally:
        await store.close()
    return 0


def _place(given: argparse.Namespace) -> str | None:
    """The store that `serve` with the same settings would have. Raises: ConfigError."""
    file = given.config or os.environ.get("LANGPORT_CONFIG")
    flags = {"store": given.store} if given.store else {}
    place = load_settings(flags, os.environ, Path(file).expanduser() if file else None).store.place
    if place in ("memory", "none"):
        raise ConfigError(
            f"keys live in the store, and --store {place} outlives no command. Name a file or a database; keys of a "
            "running server without one are made by its admin API (POST /admin/keys)."
        )
    return place


# The commands.


async def _create(call: _Call) -> None:
    given = call.given
    limits = KeyLimits(given.requests_per_minute, given.tokens_per_minute, given.max_concurrency)
    permissions = Permissions(given.models, limits, (*given.token_budget, *given.money_budget), dict(given.metadata))
    record, secret = await call.book.create(given.name, permissions, given.expires and given.expires(call.now_s))
    _tell(call, record, secret, f"The key {record.id} ({record.name}) was made. This is its secret, shown only now:")


async def _list(call: _Call) -> None:
    records = [record for record in await call.book.list() if call.given.all or record.revoked_at is None]
    if call.given.json:
        _print_json([shown_key(record, call.now_s) for record in records])
        return
    rows = [_LIST_COLUMNS, *(_row(shown_key(record, call.now_s)) for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(key: KeyObject) -> tuple[str, ...]:
    models = "all" if key.models is None else ",".join(key.models)
    return key.id, key.name, key.hint + "...", key.status, _day(key.expires_at), models


async def _show(call: _Call) -> None:
    record = await _find(call)
    key = shown_key(record, call.now_s)
    today = int(call.now_s) // _SECONDS["d"]
    first = int(Budget("month").begins(call.now_s).timestamp()) // _SECONDS["d"]
    query = UsageQuery(first_day=first, last_day=today, key_id=record.id, groups=("model",))
    used = await call.store.usage(query)
    if call.given.json:
        _print_json(key)
        return
    for name, value in msgspec.to_builtins(key).items():
        if name != "object":
            shown = _time(value) if name.endswith("_at") else value
            print(f"{name + ':':22}{'-' if shown in (None, [], {}) else shown}")
    print("used this month:" if used else "used this month:      nothing")
    for one in used:
        tokens = f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
        print(f"  {one.model}: {one.num_requests:,} requests, {tokens}, {one.cost_nano / MONEY:,.4f} of money")


async def _revoke(call: _Call) -> None:
    record = await call.book.revoke((await _find(call)).id)
    if call.given.json:
        _print_json(shown_key(record, call.now_s))
    else:
        print(f"The key {record.id} ({record.name}) is revoked.")


async def _rotate(call: _Call) -> None:
    record, secret = await call.book.rotate((await _find(call)).id, call.given.grace)
    until = f"until {_time(record.previous_until)}" if call.given.grace else "no more"
    _tell(call, record, secret, f"The old secret of {record.id} ({record.name}) is good {until}. The new one:")


COMMANDS: dict[str, Callable[[_Call], Awaitable[None]]] = {
    "create": _create,
    "list": _list,
    "show": _show,
    "revoke": _revoke,
    "rotate": _rotate,
}


async def _find(call: _Call) -> KeyRecord:
    """By id, or by a name that one key alone has which was not revoked. Raises: LangPortError."""
    wanted: str = call.given.key
    records = await call.book.list()
    found = [record for record in records if record.id == wanted]
    named = [record for record in records if record.name == wanted]
    found = found or [record for record in named if status_of(record, call.now_s) != "revoked"] or named
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(one.id for one in found)
        raise LangPortError(f"{len(found)} keys are named {wanted!r}: {ids}. Give an id.")
    raise LangPortError(f"There is no key {wanted!r}; `langport keys list` shows those there are.")


def _tell(call: _Call, record: KeyRecord, secret: str, what: str) -> None:
    if call.given.json:
        _print_json(shown_key(record, call.now_s, secret))
        return
    print(what, file=sys.stderr)
    print(secret)


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def _day(seconds: int | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


# What is typed.


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="settings in YAML, as serve reads them [LANGPORT_CONFIG]")
    common.add_argument("--store", metavar="PATH|URL", help="the store of the server [LANGPORT_STORE]")
    common.add_argument("--json", action="store_true", help="answer in JSON, as the admin API does")
    parser = _Parser(
        prog="langport keys",
        description="The API keys of a server, in its store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))

    create = commands.add_parser("create", parents=[common], allow_abbrev=False, help="make a key and print its secret")
    create.add_argument("name", metavar="NAME", help="what people call it")
    create.add_argument("--expires", metavar="30d|2026-12-31", type=_expiry, help="when it ends (UTC); else never")
    create.add_argument("--models", metavar="NAME,NAME", type=_names, help="the models it may use; all if not given")
    for flag, meaning in (
        ("--requests-per-minute", "most requests in a minute"),
        ("--tokens-per-minute", "most prompt and completion tokens in a minute"),
        ("--max-concurrency", "most requests at once"),
    ):
        create.add_argument(flag, metavar="N", type=_count, help=meaning)
    create.add_argument("--token-budget", metavar="N/day|N/month", type=_token_budget, action="append", default=[],
                        help="prompt and completion tokens in a day or month of UTC")  # fmt: skip
    create.add_argument("--money-budget", metavar="X/day|X/month", type=_money_budget, action="append", default=[],
                        help="money in the unit of --price")  # fmt: skip
    create.add_argument("--metadata", metavar="KEY=VALUE", type=_pair, action="append", default=[],
                        help="your own notes on it")  # fmt: skip

    listing = commands.add_parser("list", parents=[common], allow_abbrev=False, help="all keys")
    listing.add_argument("--all", action="store_true", help="those that were revoked, too")
    for name, meaning in (
        ("show", "one key, and what it used this month"),
        ("revoke", "end a key"),
        ("rotate", "give a key a new secret and print it"),
    ):
        command = commands.add_parser(name, parents=[common], allow_abbrev=False, help=meaning)
        command.add_argument("key", metavar="ID|NAME", help="which key")
        if name == "rotate":
            command.add_argument("--grace", metavar="24h", type=_duration, default=0,
                                 help="how long the old secret is still good; not at all if not given")  # fmt: skip
    return parser


def _duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 15m, 24h or 30d")
    return int(match[1]) * _SECONDS[match[2]]


def _expiry(text: str) -> Callable[[float], int]:
    """From now on so long, or the beginning of a day, or a time of it; in UTC unless it says otherwise."""
    if re.fullmatch(r"[0-9]+[smhd]", text):
        duration = _duration(text)
        return lambda now_s: int(now_s) + duration
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a day such as 2026-12-31 nor 30d or 12h") from None
    seconds = int(when.replace(tzinfo=when.tzinfo or UTC).timestamp())
    return lambda now_s: seconds


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def _token_budget(text: str) -> Budget:
    amount, _, per = text.partition("/")
    return Budget(_per(per, text), tokens=_count(amount.replace("_", "")))


def _money_budget(text: str) -> Budget:
    amount, _, per = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", amount) or not float(amount):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount and a period such as 20/month or 0.50/day")
    return Budget(_per(per, text), money=float(amount))


def _per(per: str, text: str) -> Per:
    if per in _PERIODS:
        return _PERIODS[per]
    raise argparse.ArgumentTypeError(f"{text!r} does not end in /day or /month")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
