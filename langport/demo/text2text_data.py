"""Numbers and dates in words: the task of `langport-demo-text2text`, its reference answers and its examples.

`say` is the definition of the task; the model is right when it answers exactly what `say` answers. Style: no
"and", a hyphen in twenty-one to ninety-nine, "minus" for negative numbers, no commas. Nothing here knows
about models.
"""

import datetime
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_NUMBER = 999_999_999
"""Largest absolute value that can be said."""

FIRST_DATE = datetime.date(1900, 1, 1)
LAST_DATE = datetime.date(2099, 12, 31)

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("", " thousand", " million")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_PREFIXES = ("say ", "say ", "say ", "", "Say ")
_HELD_OUT_ONE_IN = 20
_ALWAYS_TRAINED_BELOW = 100


class Example(NamedTuple):
    """One input of the model, the answer it should give, and the kind of input (for the accuracy table)."""

    source: str
    target: str
    kind: str


def say_number(number: int) -> str:
    """Cardinal words: 4207 gives "four thousand two hundred seven". Raises: ValueError past `MAX_NUMBER`."""
    if abs(number) > MAX_NUMBER:
        raise ValueError(f"only numbers up to {MAX_NUMBER} can be said, got {number}")
    if number < 0:
        return "minus " + say_number(-number)
    if number == 0:
        return _SMALL[0]
    groups = []
    for scale in _SCALES:
        number, group = divmod(number, 1000)
        if group:
            groups.append(_say_below_thousand(group) + scale)
    return " ".join(reversed(groups))


def _say_below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_SMALL[hundreds]} hundred"] if hundreds else []
    if rest:
        words.append(_say_below_hundred(rest))
    return " ".join(words)


def _say_below_hundred(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return f"{_TENS[tens]}-{_SMALL[ones]}" if ones else _TENS[tens]


def say_date(date: datetime.date) -> str:
    """Words of a date: 2024-03-17 gives "the seventeenth of March two thousand twenty-four".

    Years of the 1900s are said in pairs ("nineteen hundred", "nineteen oh five", "nineteen eighty-four"),
    later ones as numbers. Raises: ValueError outside 1900 to 2099.
    """
    if not FIRST_DATE <= date <= LAST_DATE:
        raise ValueError(f"only dates from {FIRST_DATE} to {LAST_DATE} can be said, got {date}")
    return f"the {_say_ordinal(date.day)} of {_MONTHS[date.month - 1]} {_say_year(date.year)}"


def _say_ordinal(number: int) -> str:
    head, hyphen, last = _say_below_hundred(number).rpartition("-")
    return head + hyphen + _ORDINALS.get(last, last + "th")


def _say_year(year: int) -> str:
    if year >= 2000:
        return say_number(year)
    rest = year - 1900
    if rest == 0:
        return "nineteen hundred"
    return f"nineteen oh {_SMALL[rest]}" if rest < 10 else f"nineteen {_say_below_hundred(rest)}"


def say(request: str) -> str:
    """The right answer to a request such as "say 4207", "say -1,250,000", "2024-03-17".

    Raises: ValueError where the request is none of the documented kinds.
    """
    text = re.sub(r"^[Ss]ay ", "", request)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return say_date(datetime.date.fromisoformat(text))
    if re.fullmatch(r"-?(0|[1-9]\d*|[1-9]\d{0,2}(,\d{3})+)", text):
        return say_number(int(text.replace(",", "")))
    raise ValueError(f"not a number or a date: {request!r}")


def is_held_out(value: str) -> bool:
    """Whether an unsigned plain number or an ISO date is kept for testing, in whatever form it is written.

    Numbers below 100 are vocabulary rather than grammar, so all of them are for training.
    """
    if value.isdigit() and int(value) < _ALWAYS_TRAINED_BELOW:
        return False
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:4]) % _HELD_OUT_ONE_IN == 0


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of examples that never shows a held-out value."""
    return _examples(random.Random(f"train {seed}"), lambda value: not is_held_out(value))


def held_out_examples(count: int, seed: int = 0) -> list[Example]:
    """`count` different examples of values that training never sees."""
    found: dict[str, Example] = {}
    for example in _examples(random.Random(f"test {seed}"), is_held_out):
        found[example.source] = example
        if len(found) == count:
            break
    return list(found.values())


def _examples(rng: random.Random, wanted: Callable[[str], bool]) -> Iterator[Example]:
    while True:
        is_date = rng.random() < 0.25
        value = _random_date(rng) if is_date else _random_number(rng)
        if not wanted(value):
            continue
        kind, text = ("date", value) if is_date else _write_number(rng, int(value))
        yield Example(rng.choice(_PREFIXES) + text, say(text), kind)


def _random_date(rng: random.Random) -> str:
    days = (LAST_DATE - FIRST_DATE).days
    return (FIRST_DATE + datetime.timedelta(days=rng.randint(0, days))).isoformat()


def _random_number(rng: random.Random) -> str:
    """A number of 1 to 9 digits, every length alike, one third of them rich in zeros."""
    num_digits = rng.randint(1, 9)
    zero_share = rng.choice((0.0, 0.0, 0.5))
    digits = [str(rng.randint(0, 9)) if rng.random() >= zero_share else "0" for _ in range(num_digits)]
    return str(int("".join(digits)))


def _write_number(rng: random.Random, number: int) -> tuple[str, str]:
    sign = "-" if number and rng.random() < 0.15 else ""
    grouped = number >= 1000 and rng.random() < 0.35
    kind = "negative" if sign else "grouped" if grouped else "plain"
    return kind, sign + (f"{number:,}" if grouped else str(number))
