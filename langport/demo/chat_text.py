"""Plain text for langport-demo-chat: counting, lists, stories, code, facts and small prose, from templates.

Counting and stories vary on purpose: about one item in five departs from the plain form, so that sampling at
temperature 1 gives different texts while the plain form stays by far the likeliest (greedy text is plain).
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from langport.demo.chat_facts import COLOURS, DAYS, LETTERS, MONTHS, RELATIONS, Relation
from langport.demo.chat_words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    NAMES,
    PEOPLE,
    PLACES,
    THINGS,
    WEATHER,
    any_word,
    article,
    number_word,
    upper_first,
    weighted,
)

# ---- counting and other lists ----

_SEPARATORS = (
    ", and {}",
    ", then {}",
    ", and then {}",
    ",\n{}",
    "; {}",
    "... {}",
    " - {}",
    "! {}",
    " and {}",
    ", um, {}",
    ", yes, {}",
    ", now {}",
    ", next {}",
    "? {}",
)


def spoken_list(rng: Random, items: Sequence[str], looseness: float = 0.22) -> str:
    """Items after each other, ", " between them but for a share `looseness` of livelier separators."""
    parts = [items[0]]
    for item in items[1:]:
        loose = rng.random() < looseness
        parts.append(rng.choice(_SEPARATORS).format(item) if loose else f", {item}")
    return "".join(parts)


def _counting_items(rng: Random, as_words: bool) -> list[str]:
    """Numbers from a start (one, in half of all cases) upwards: to one hundred, or somewhere before."""
    start = 1 if rng.random() < 0.5 else rng.randint(1, 80)
    end = 100 if rng.random() < 0.4 else min(100, start + rng.randint(8, 40))
    return [number_word(n) if as_words else str(n) for n in range(start, end + 1)]


def _counting_document(rng: Random) -> str:
    as_words = rng.random() < 0.8
    lead = weighted(
        rng,
        (
            ("The numbers in order are ", 6),
            ("", 2),
            ("Counting: ", 1),
            ("Let us count: ", 1),
            ("The numbers are ", 1),
            ("Numbers: ", 1),
            ("She counted ", 1),
            ("We count ", 1),
            ("I can count: ", 1),
        ),
    )
    text = lead + spoken_list(rng, _counting_items(rng, as_words)) + "."
    return text[0].upper() + text[1:]


def _sequence_document(rng: Random) -> str:
    """Letters, days, months or colours in a row; the colours come in any order after the first three."""
    colours = list(COLOURS[3:])
    rng.shuffle(colours)
    lead, items = rng.choice(
        (
            ("The letters are ", list(LETTERS)),
            ("", list(LETTERS)),
            ("The days of the week are ", list(DAYS)),
            ("", list(DAYS)),
            ("The months of the year are ", list(MONTHS)),
            ("", list(MONTHS)),
            ("The colours are ", [*COLOURS[:3], *colours]),
            ("", ["Red", *COLOURS[1:3], *colours]),
        )
    )
    return lead + spoken_list(rng, items, 0.08) + "."


def _backwards_document(rng: Random) -> str:
    start = rng.randint(5, 30)
    return f"Counting down from {number_word(start)}: " + spoken_list(
        rng, [number_word(n) for n in range(start - 1, -1, -1)], 0.1
    )


# ---- stories ----

_MEETINGS = (
    "One day {name} met {other} {animal} by the {place}.",
    "One morning {name} found {thing} in the {place}.",
    "Every day {name} walked to the {place} and looked for {thing}.",
    "One evening {name} lost {thing} near the {place}.",
    "In the winter {name} dreamed of {thing}.",
    "Nobody in the {place} had ever seen {thing}.",
)
_EVENTS = (
    'The {animal} said, "{speech}"',
    '"{speech}" said {name}.',
    "{name} picked up {thing} and smiled.",
    "They went to the {place} together.",
    "Then it was {weather}, and they had to wait.",
    "{name} gave {thing} to the {animal}.",
    "The {animal} was very {adjective}.",
    "They looked everywhere, but they could not find {thing}.",
    "Behind the {place} there was {thing}.",
    "{name} laughed and danced.",
    "So they ran all the way to the {place}.",
    "The {animal} ate some bread and fell asleep.",
    "{name} was {adjective}, but the {animal} was {adjective2}.",
    "After a while they found {thing} under a tree.",
    "The sun went down over the {place}.",
    "They shared a cake with the {animal}.",
)
_SPEECHES = (
    "Hello!",
    "Where are you going?",
    "I am looking for {thing}.",
    "Will you help me?",
    "Let us go to the {place}.",
    "I am so {adjective} today!",
    "What a {adjective} day!",
    "Do you like my {bare}?",
    "Come with me.",
    "Thank you, my friend.",
)
_ENDINGS = (
    "They were friends for ever after.",
    "And {name} lived happily in the {place}.",
    "That night everyone in the {place} slept well.",
    "{name} went home with {thing} and was happy.",
    "And that is the end of the story.",
    "From that day on they met every week.",
)


def _fill(rng: Random, template: str, name: str, animal: str) -> str:
    """Put random words into a sentence of a story; its hero and animal stay the same."""
    bare = rng.choice(THINGS)
    words = {
        "name": name,
        "animal": animal,
        "other": article(rng.choice(ADJECTIVES)),
        "place": rng.choice(PLACES),
        "thing": article(bare),
        "bare": bare,
        "adjective": rng.choice(ADJECTIVES),
        "adjective2": rng.choice(ADJECTIVES),
        "weather": rng.choice(WEATHER),
    }
    return template.replace("{speech}", rng.choice(_SPEECHES)).format(**words)


def story(rng: Random, num_events: int, animal: str | None = None) -> str:
    hero = rng.choice(PEOPLE + ANIMALS)
    name = rng.choice(NAMES)
    animal = animal or rng.choice(ANIMALS)
    opening = weighted(
        rng,
        (("Once upon a time there was", 6), ("Long ago there lived", 2), ("In the {place} there lived", 1)),
    )
    opening = opening.replace("{place}", rng.choice(PLACES))
    first = f"{opening} {article(rng.choice(ADJECTIVES))} {hero} named {name}."
    templates = [
        rng.choice(_MEETINGS),
        *(rng.choice(_EVENTS) for _ in range(num_events)),
        rng.choice(_ENDINGS),
    ]
    return " ".join([first, *(_fill(rng, template, name, animal) for template in templates)])


def _story_document(rng: Random) -> str:
    return story(rng, rng.randint(3, 14))


# ---- code ----

OPERATIONS = (
    ("add", "+"),
    ("subtract", "-"),
    ("multiply", "*"),
    ("divide", "/"),
    ("power", "**"),
    ("modulo", "%"),
)
_FUNCTIONS = (
    'def greet(name):\n    return "Hello, " + name',
    "def double(x):\n    return x * 2",
    "def square(x):\n    return x * x",
    "def is_even(n):\n    return n % 2 == 0",
    "def is_odd(n):\n    return n % 2 == 1",
    "def maximum(a, b):\n    if a > b:\n        return a\n    return b",
    "def minimum(a, b):\n    if a < b:\n        return a\n    return b",
    "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result",
    "def count(items):\n    number = 0\n    for item in items:\n        number += 1\n    return number",
    "def factorial(n):\n    if n == 0:\n        return 1\n    return n * factorial(n - 1)",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
    "def reverse(text):\n    return text[::-1]",
    "def first(items):\n    return items[0]",
    "def last(items):\n    return items[-1]",
    "for i in range(10):\n    print(i)",
    'print("Hello, world!")',
    "numbers = [1, 2, 3, 4, 5]\nprint(sum(numbers))",
    'colours = ["red", "green", "blue"]\nfor colour in colours:\n    print(colour)',
    "class Animal:\n    def __init__(self, name):\n        self.name = name\n"
    '    def speak(self):\n        return "I am " + self.name',
    'import json\nwith open("data.json") as file:\n    data = json.load(file)',
    "while count > 0:\n    count -= 1",
    'try:\n    value = int(text)\nexcept ValueError:\n    value = 0\nprint("value", value)',
)


def _function(rng: Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(_FUNCTIONS)
    name, operator = rng.choice(OPERATIONS)
    a, b = rng.choice((("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"), ("left", "right")))
    if rng.random() < 0.2:
        return f"def {name}({a}, {b}):\n    result = {a} {operator} {b}\n    return result"
    return f"def {name}({a}, {b}):\n    return {a} {operator} {b}"


def _code_document(rng: Random) -> str:
    return "\n\n".join(_function(rng) for _ in range(rng.randint(1, 5)))


# ---- facts, sums and small prose ----


def draw_fact(rng: Random) -> tuple[Relation, str, str]:
    """A relation (large tables more often) and one of its pairs."""
    relation = rng.choices(RELATIONS, [len(r.pairs) for r in RELATIONS])[0]
    return relation, *rng.choice(relation.pairs)


def fact_sentence(rng: Random, relation: Relation, x: str, y: str) -> str:
    """The plainest sentence mostly, now and then another one."""
    template = relation.answers[0] if rng.random() < 0.85 else rng.choice(relation.answers)
    return upper_first(template.format(x=x, y=y))


def _facts_document(rng: Random) -> str:
    facts = [draw_fact(rng) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.4:
        return "\n".join(
            f"Question: {upper_first(rng.choice(r.questions).format(x=x))}\nAnswer: {fact_sentence(rng, r, x, y)}"
            for r, x, y in facts
        )
    return " ".join(upper_first(r.answers[0].format(x=x, y=y)) for r, x, y in facts)


def draw_sum(rng: Random) -> tuple[int, str, int, int]:
    """(a, operator, b, result) with a and b up to 20, or up to 9 for products."""
    operator = rng.choice("++--*")
    top = 9 if operator == "*" else 20
    a, b = rng.randint(0, top), rng.randint(0, top)
    return a, operator, b, {"+": a + b, "-": a - b, "*": a * b}[operator]


def sum_text(a: int, operator: str, b: int, result: int) -> str:
    return f"{a} {operator} {b} = {result}"


def _sums_document(rng: Random) -> str:
    separator = rng.choice(("\n", ", ", "; "))
    return separator.join(sum_text(*draw_sum(rng)) for _ in range(rng.randint(3, 10)))


def _letter_document(rng: Random) -> str:
    name, animal = rng.choice(NAMES), rng.choice(ANIMALS)
    opening = rng.choice(("Hello", "Hello", "Dear", "Hi", "Good morning"))
    sentences = (
        f"My name is {name}.",
        f"I live in {rng.choice(CITIES)}.",
        f"I have {article(rng.choice(ADJECTIVES))} {animal}.",
        f"Today it is {rng.choice(WEATHER)} here.",
        f"I like {rng.choice(COLOURS)} and {rng.choice(COLOURS)}.",
        f"Tomorrow I will go to the {rng.choice(PLACES)}.",
        f"I am reading a book about {article(rng.choice(ANIMALS))}.",
        f"Please bring me {article(rng.choice(THINGS))}.",
        "How are you?",
        "I hope that you are well.",
    )
    body = " ".join(rng.sample(sentences, rng.randint(3, 8)))
    return f"{opening} {rng.choice(NAMES)}, {body} Best wishes, {name}"


def _scene_document(rng: Random) -> str:
    """Loose sentences about places, animals and the weather."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: f"The {rng.choice(ANIMALS)} is in the {rng.choice(PLACES)}.",
        lambda: f"There is {article(rng.choice(THINGS))} on the table.",
        lambda: f"It is {rng.choice(WEATHER)} in {rng.choice(CITIES)} today.",
        lambda: f"{rng.choice(NAMES)} has {article(rng.choice(THINGS))} and {article(rng.choice(THINGS))}.",
        lambda: f"The {rng.choice(THINGS)} is {rng.choice(COLOURS)}.",
        lambda: (
            f"I saw {number_word(rng.randint(2, 20))} {rng.choice(COLOURS)} {rng.choice(THINGS)}s "
            f"in the {rng.choice(PLACES)}."
        ),
        lambda: f"The {rng.choice(ADJECTIVES)} {rng.choice(ANIMALS)} sleeps near the {rng.choice(PLACES)}.",
    )
    return " ".join(rng.choice(makers)() for _ in range(rng.randint(3, 10)))


def json_object(rng: Random) -> str:
    fields: list[tuple[str, Any]] = [
        ("name", rng.choice(NAMES)),
        ("age", rng.randint(1, 99)),
        ("city", rng.choice(CITIES)),
        ("colour", rng.choice(COLOURS)),
        ("animal", rng.choice(ANIMALS)),
        ("happy", rng.random() < 0.5),
        ("items", rng.sample(THINGS, rng.randint(1, 3))),
    ]
    return json.dumps(dict(sorted(rng.sample(fields, rng.randint(2, 5)), key=fields.index)))


_DOCUMENTS: tuple[tuple[Callable[[Random], str], float], ...] = (
    (_counting_document, 5),
    (_sequence_document, 2),
    (_backwards_document, 0.5),
    (_story_document, 7),
    (_code_document, 4),
    (_facts_document, 5),
    (_sums_document, 2.5),
    (_letter_document, 2),
    (_scene_document, 3),
    (json_object, 1),
)


def document(rng: Random) -> str:
    """One document of plain text; it never ends in white space."""
    return weighted(rng, _DOCUMENTS)(rng)


_SCRIPTS = (
    (0x21, 0x7E),
    (0xA1, 0x24F),
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x5D0, 0x5EA),
    (0x627, 0x64A),
    (0x905, 0x939),
)
_WIDE_SCRIPTS = (
    (0x3042, 0x3096),
    (0x30A2, 0x30F6),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x2190, 0x26FF),
)


def phrase(rng: Random) -> str:
    """Words in no order; repeated, it teaches the model to copy what stands in its context."""
    return " ".join(any_word(rng) for _ in range(rng.randint(2, 16)))


def noise(rng: Random) -> str:
    """Text that belongs to no document: other scripts, digits, invented words, signs, or one phrase again and again.

    The model reads it (so every byte has been seen) and is never asked to write it.
    """

    def piece() -> str:
        kind = rng.randrange(5)
        if kind < 2:
            return any_word(rng)
        if kind == 2:
            return str(rng.randrange(10 ** rng.randint(1, 6)))
        low, high = rng.choice(_SCRIPTS + _WIDE_SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5)))

    words = [piece() for _ in range(rng.randint(1, 8))]
    repeats = 1 if rng.random() < 0.7 else rng.randint(2, 12)
    return rng.choice((", ", " ", "\n")).join([" ".join(words)] * repeats)
