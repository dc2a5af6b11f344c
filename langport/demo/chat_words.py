"""Words for the training text of langport-demo-chat, and the ways to draw them."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from langport.demo.chat_facts import CAPITALS, COLOURS

T = TypeVar("T")


def words_of(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a text, split at the separator or at white space."""
    return tuple(text.split(separator))


_UNITS = words_of(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = words_of("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(number: int) -> str:
    """0 to 100 in words: "forty-two"."""
    if number == 100:
        return "one hundred"
    if number < 20:
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")


NAMES = words_of(
    "Mia Leo Anna Ben Clara Tom Lucy Max Nora Sam Ella Finn Ivy Jack Lily Oscar Rosa Theo Zoe Hugo Ada "
    "Noah Emma Paul Maria Peter Sofia Daniel Alice Bob Carol David Eve Frank Grace Henry Julia Kate Liam "
    "Olivia"
)
ANIMALS = words_of(
    "fox bear cat dog mouse owl rabbit hedgehog duck frog lion tiger turtle bird horse squirrel wolf goat "
    "penguin snail dragon elephant monkey whale"
)
PEOPLE = words_of("girl boy king queen farmer baker sailor teacher painter witch knight robot gardener shepherd")
ADJECTIVES = words_of(
    "little small brave kind clever quiet happy curious old young lonely gentle proud funny hungry sleepy "
    "tiny friendly shy cheerful"
)
PLACES = words_of(
    "forest village garden city castle valley river lake mountain meadow harbour island library kitchen "
    "school market desert cave farm tower"
)
THINGS = words_of(
    "ball book lamp key hat boat bell basket map coin flower stone apple cake kite drum letter mirror box "
    "cup ring feather blanket shell"
)
COMMON = words_of(
    "hello world test yes no okay thanks please good morning python server model token today money house water "
    "music people time year night friend happy birthday one two three seven ten hundred apples tree sun moon star "
    "train plane paper table door window fire snow rain wind Hello OK Yes No A B C foo bar baz banana lemon tomato"
)
WEATHER = words_of("sunny cloudy rainy windy snowy foggy warm cold stormy clear")
CITIES = (
    *(city for _, city in CAPITALS),
    *words_of(
        "New York,San Francisco,Boston,Chicago,Seattle,Milan,Munich,Hamburg,Lyon,Barcelona,Porto,Zurich,Geneva,"
        "Krakow,Prague,Kyoto,Osaka,Shanghai,Sydney,Toronto,Los Angeles,Dallas,Mumbai,Seoul,Singapore,Nice",
        ",",
    ),
)
TOPICS = words_of(
    "quantum physics,the stock market,philosophy,the history of glass,black holes,chemistry,"
    "football results,volcanoes,a good recipe,the law,modern art,poetry,machine learning,politics,"
    "electric cars,the internet,gravity,databases,the weather tomorrow,ancient Rome,music theory,computers,"
    "climate,economics,medicine,the meaning of life,photosynthesis,relativity",
    ",",
)


def invented_word(rng: Random) -> str:
    """A pronounceable word that means nothing, so that the model learns to copy rather than to know."""
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s", "x"))
        for _ in range(rng.randint(1, 3))
    )


def any_word(rng: Random) -> str:
    """A known or an invented word."""
    words = rng.choice((THINGS, ANIMALS, COLOURS, COMMON, COMMON, NAMES, ()))
    return rng.choice(words) if words else invented_word(rng)


def any_name(rng: Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.7 else invented_word(rng).capitalize()


def any_city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.8 else invented_word(rng).capitalize()


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def weighted(rng: Random, table: Sequence[tuple[T, float]]) -> T:
    """One value, drawn in proportion to its weight."""
    return rng.choices([value for value, _ in table], [weight for _, weight in table])[0]


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
