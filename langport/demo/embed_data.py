"""Sentence pairs for `langport-demo-embed`, made from the topics of `embed_topics` and a seed.

A frame is a meaning: a shape ("opinion", "how to"), a topic and one concept for each slot. Rendering a frame
twice, with other templates and other synonyms, gives two sentences that mean the same. Whole (shape, topic)
combinations are held out for testing. Nothing here knows about models.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from langport.demo import embed_topics
from langport.demo.text2text_data import say_number

Concept = tuple[str, ...]
"""Phrases with the same meaning."""

_HELD_OUT_ONE_IN = 12
_INVENTED_SHARE = 0.12
_PLURAL_SHARE = 0.2
_FOCUS_SHARE = 0.25
_FOCUS_TOPICS = 6


class Topic(NamedTuple):
    """One block of `embed_topics.TOPICS`."""

    name: str
    things: tuple[Concept, ...]
    actions: tuple[Concept, ...]
    qualities: tuple[Concept, ...]
    sayings: tuple[Concept, ...]


class Frame(NamedTuple):
    """A meaning that can be rendered in several ways; equal `key` means equal meaning."""

    shape: str
    topic: str
    slots: tuple[tuple[str, Concept], ...]

    @property
    def key(self) -> str:
        return "|".join([self.shape, *(concept[0] for _, concept in self.slots)])


class Pair(NamedTuple):
    """Two texts with the same meaning, or about the same topic (`topic_pairs`), which `key` names."""

    first: str
    second: str
    key: str


# The first template of a shape names its slots.
_TEMPLATES: dict[str, Concept] = {
    "opinion": (
        "The {thing} is {quality}.",
        "I find the {thing} {quality}.",
        "What a {quality} {thing}!",
        "This {thing} seems {quality} to me.",
        "That {thing} is really {quality}.",
        "Everyone says that the {thing} was {quality}.",
    ),
    "denial": (
        "The {thing} is not {quality}.",
        "I don't think that this {thing} is {quality}.",
        "That is no {quality} {thing}.",
        "The {thing} isn't {quality} at all.",
    ),
    "how to": (
        "How do I {action}?",
        "What is the best way to {action}?",
        "Can you show me how to {action}?",
        "I want to learn how to {action}.",
        "Tips for {gerund}.",
        "A short guide to {gerund}.",
        "How can somebody {action}?",
    ),
    "plan": (
        "{person} will {action} {time}.",
        "{time} {person} would like to {action}.",
        "{person} plans to {action} {time}.",
        "{time}, {person} is going to {action}.",
        "{gerund} is what {person} will do {time}.",
    ),
    "hobby": (
        "It is nice to {action}.",
        "{gerund} is fun.",
        "I really enjoy {gerund}.",
        "I like to {action}.",
        "My favourite thing is {gerund}.",
    ),
    "duty": (
        "You must {action}.",
        "Please {action}.",
        "Don't forget to {action}.",
        "Somebody has to {action}.",
        "We need to {action}.",
        "You should {action}.",
    ),
    "action": (
        "A {someone} has to {action}.",
        "A {someone} is {gerund}.",
        "The {someone} {gerund}.",
        "One can see a {someone} who is {gerund}.",
        "There is a {someone} {gerund}.",
        "A {someone} was {gerund}.",
    ),
    "what": (
        "What is {thing}?",
        "Tell me about {thing}.",
        "{thing}",
        "Explain {thing} to me.",
        "An introduction to {thing}.",
        "I would like to know more about the {thing}.",
    ),
    "where": (
        "Where can I find a {thing}?",
        "I am looking for the {thing}.",
        "Do you know where the {thing} is?",
        "Where is the {thing}?",
        "Is there a {thing} near here?",
    ),
    "relation": (
        "The {thing} and the {other}.",
        "A {thing} with a {other}.",
        "There is a {other} and also a {thing}.",
        "What do the {thing} and the {other} have in common?",
        "{other}, {thing}",
    ),
    "list": (
        "{thing}, {other} and {third}.",
        "We have {third}, {thing} and {other}.",
        "It needs {other}, {third} and {thing}.",
        "The list: {other}; {thing}; {third}.",
    ),
    "scene": (
        "The {thing} {doing} {placing} the {place}.",
        "A {thing} {doing} {placing} a {place}.",
        "{placing} the {place}, the {thing} {doing}.",
        "There the {thing} {doing}, {placing} the {place}.",
    ),
    "attitude": (
        "{person} {attitude} the {thing}.",
        "{person} really {attitude} this {thing}.",
        "It is the {thing} that {person} {attitude}.",
        "The {thing}: {person} {attitude} it.",
    ),
    "number": (
        "{number} {thing}",
        "Number {number} of the {thing}.",
        "There are {number} of them in the {thing}.",
        "The {thing} has the number {number}.",
    ),
}
_WEIGHTS = {
    "opinion": 3,
    "how to": 2,
    "what": 3,
    "scene": 3,
    "attitude": 2,
    "list": 2,
    "plan": 2,
    "action": 2,
}
_CAPITAL_TEMPLATES: Concept = (
    "What is the capital of {country}?",
    "{city} is the capital of {country}.",
    "The capital of {country} is {city}.",
    "Which city is the capital of {country}?",
    "{city} is the seat of the government of {country}.",
    "{country} has the capital {city}.",
)
_TOPIC_TEMPLATES: Concept = (
    "{topic}",
    "This text is about {topic}.",
    "Something on {topic}.",
    "Topic: {topic}.",
)


def _concepts(text: str) -> tuple[Concept, ...]:
    return tuple(tuple(phrase.strip() for phrase in item.split("/")) for item in text.replace("\n", " ").split(","))


def _parse_topic(block: str) -> Topic:
    lines = block.strip().replace("\n  ", " ").splitlines()
    fields = dict(line.split(": ", 1) for line in lines[1:] if not line.startswith("="))
    sayings = tuple(tuple(text.strip() for text in line[1:].split(" = ")) for line in lines if line.startswith("="))
    return Topic(
        lines[0].strip(),
        _concepts(fields["things"]),
        _concepts(fields["actions"]),
        _concepts(fields["qualities"]),
        sayings,
    )


TOPICS = {topic.name: topic for topic in map(_parse_topic, re.split(r"^# ", embed_topics.TOPICS, flags=re.M)[1:])}
_PEOPLE = _concepts(embed_topics.PEOPLE)
_SOMEONE = _concepts(embed_topics.SOMEONE)
_TIMES = _concepts(embed_topics.TIMES)
_ATTITUDES = _concepts(embed_topics.ATTITUDES)
_QUALITIES = _concepts(embed_topics.QUALITIES)
_DOINGS = _concepts(embed_topics.DOINGS)
_PLACINGS = _concepts(embed_topics.PLACINGS)
_CAPITALS = tuple(tuple(item.split(":")) for (item,) in _concepts(embed_topics.CAPITALS))
_WORDS = sorted(set(re.findall(r"[a-z]{4,}", embed_topics.TOPICS.lower())))
_SHAPES = tuple(_TEMPLATES)


def is_held_out(shape: str, topic: str) -> bool:
    """Whether sentences of this shape about this topic are kept for testing."""
    digest = hashlib.sha256(f"{shape}|{topic}".encode()).digest()
    return int.from_bytes(digest[:4]) % _HELD_OUT_ONE_IN == 0


def paraphrases(rng: random.Random, count: int) -> list[Pair]:
    """`count` training pairs; one batch in four keeps to a few topics, so that telling them apart is hard."""
    focus = rng.sample(sorted(TOPICS), _FOCUS_TOPICS) if rng.random() < _FOCUS_SHARE else sorted(TOPICS)
    return [_training_pair(rng, TOPICS[rng.choice(focus)]) for _ in range(count)]


def topic_pairs(rng: random.Random) -> list[Pair]:
    """One pair for each topic: two sentences about it that mean different things."""
    return [Pair(_about(rng, topic), _about(rng, topic), topic.name) for topic in TOPICS.values()]


def document_pairs(rng: random.Random, count: int) -> list[Pair]:
    """A sentence or short text, and a longer text that holds the same meaning among others of its topic."""
    return [_document_pair(rng, rng.choice(list(TOPICS.values()))) for _ in range(count)]


def held_out_pairs(count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of different meanings whose (shape, topic) training never sees."""
    rng = random.Random(f"test {seed}")
    combinations = [(s, t) for s in _SHAPES for t in TOPICS if is_held_out(s, t)]
    found: dict[str, Pair] = {}
    while len(found) < count:
        shape, topic = rng.choice(combinations)
        pair = _render_pair(rng, _frame(rng, shape, TOPICS[topic]))
        found[pair.key] = pair
    return list(found.values())


def corpus(seed: int, count: int) -> Iterator[str]:
    """Training texts for the tokenizer, and every phrase of the topics once."""
    rng = random.Random(f"corpus {seed}")
    for topic in TOPICS.values():
        for concept in topic.things + topic.actions + topic.qualities + topic.sayings:
            yield from concept
    for pair in paraphrases(rng, count):
        yield pair.first
        yield pair.second


def _training_pair(rng: random.Random, topic: Topic) -> Pair:
    chance = rng.random()
    if chance < 0.08:
        first, second = rng.sample(rng.choice(topic.sayings), 2)
        return Pair(first, second, first)
    if chance < 0.11:
        return _capital_pair(rng)
    return _render_pair(rng, _training_frame(rng, topic))


def _training_frame(rng: random.Random, topic: Topic) -> Frame:
    shapes = [shape for shape in _SHAPES if not is_held_out(shape, topic.name)]
    shape = rng.choices(shapes, weights=[_WEIGHTS.get(shape, 1) for shape in shapes])[0]
    return _frame(rng, shape, topic)


def _capital_pair(rng: random.Random) -> Pair:
    country, city = rng.choice(_CAPITALS)
    first, second = rng.sample(_CAPITAL_TEMPLATES, 2)
    return Pair(first.format(country=country, city=city), second.format(country=country, city=city), country)


def _frame(rng: random.Random, shape: str, topic: Topic) -> Frame:
    names = re.findall(r"{(\w+)}", _TEMPLATES[shape][0])
    return Frame(shape, topic.name, tuple((name, _concept(rng, name, topic)) for name in names))


def _concept(rng: random.Random, slot: str, topic: Topic) -> Concept:
    if slot in ("thing", "other", "third"):
        return _invented(rng) if rng.random() < _INVENTED_SHARE else rng.choice(topic.things)
    if slot == "number":
        number = rng.choice((rng.randint(0, 20), rng.randint(0, 100), rng.randint(0, 3000)))
        return (str(number), say_number(number))
    if slot == "place":
        return rng.choice(rng.choice(list(TOPICS.values())).things)
    if slot == "quality":
        return rng.choice(rng.choice((topic.qualities, _QUALITIES)))
    concepts = {
        "action": topic.actions,
        "person": _PEOPLE,
        "someone": _SOMEONE,
        "time": _TIMES,
        "attitude": _ATTITUDES,
        "doing": _DOINGS,
        "placing": _PLACINGS,
    }
    return rng.choice(concepts[slot])


def _invented(rng: random.Random) -> Concept:
    """A word nobody knows, so that the model learns to match unknown words by their pieces."""
    style = rng.random()
    if style < 0.6:
        return (rng.choice(_WORDS)[: rng.randint(2, 5)] + rng.choice(_WORDS)[-rng.randint(2, 5) :],)
    if style < 0.8:
        return ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))),)
    return ("".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 6))),)


def _render_pair(rng: random.Random, frame: Frame) -> Pair:
    first, second = rng.sample(_TEMPLATES[frame.shape], 2)
    return Pair(_render(rng, frame, first), _render(rng, frame, second), frame.key)


def _render(rng: random.Random, frame: Frame, template: str) -> str:
    words = {slot: rng.choice(concept) for slot, concept in frame.slots}
    if "thing" in words and rng.random() < _PLURAL_SHARE:
        words["thing"] = _plural(words["thing"])
    if "action" in words:
        words["gerund"] = gerund(words["action"])
    return template.format(**words)


def _plural(phrase: str) -> str:
    return phrase if phrase.endswith("s") else phrase + "s"


def gerund(phrase: str) -> str:
    """The ing-form of a phrase that starts with a verb: "bake a cake" gives "baking a cake"."""
    verb, space, rest = phrase.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "be", "ye")):
        verb = verb[:-1]
    elif re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb):
        verb += verb[-1]
    return verb + "ing" + space + rest


def _about(rng: random.Random, topic: Topic) -> str:
    chance = rng.random()
    if chance < 0.2:
        return rng.choice(rng.choice(topic.sayings))
    if chance < 0.3:
        return rng.choice(_TOPIC_TEMPLATES).format(topic=topic.name)
    frame = _training_frame(rng, topic)
    return _render(rng, frame, rng.choice(_TEMPLATES[frame.shape]))


def _document_pair(rng: random.Random, topic: Topic) -> Pair:
    core = _training_pair(rng, topic)
    first, second = [core.first], [core.second]
    for _ in range(rng.randint(1, 4)):
        other = _training_pair(rng, topic)
        second.append(other.second)
        if rng.random() < 0.4:
            first.append(other.first)
    rng.shuffle(first)
    rng.shuffle(second)
    return Pair(" ".join(first), " ".join(second), core.key)
