"""Conversations for langport-demo-chat, made from templates and a random generator, in the shape of OpenAI's API.

Every maker takes the random generator and nothing else. This module knows no tokens; `train_chat` turns text into
windows. Plain text is made in `chat_text`, tools in `chat_tools`; the facts are in `chat_facts`.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from langport.demo.chat_facts import COLOURS, DAYS, LETTERS, MONTHS
from langport.demo.chat_text import (
    OPERATIONS,
    draw_fact,
    draw_sum,
    fact_sentence,
    json_object,
    spoken_list,
    story,
    sum_text,
)
from langport.demo.chat_tools import Task, Tool, any_tool, is_weather, weather_in_two_cities
from langport.demo.chat_words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    NAMES,
    PEOPLE,
    PLACES,
    THINGS,
    TOPICS,
    WEATHER,
    any_name,
    any_word,
    article,
    invented_word,
    number_word,
    upper_first,
    weighted,
)

Message = dict[str, Any]


class Conversation(NamedTuple):
    """Messages in OpenAI's shape and the tool definitions that go with them (empty: none)."""

    messages: list[Message]
    tools: list[dict[str, Any]]


# ---- single exchanges ----

_GREETINGS = (
    "Hello!",
    "Hello",
    "Hi",
    "Hi!",
    "Hi there!",
    "Hey!",
    "Good morning!",
    "Good evening!",
    "Hello there.",
    "Hello, how are you?",
    "How are you?",
    "ping",
    "Test",
)
_NAME_QUESTIONS = (
    "What is your name?",
    "Hello! What is your name?",
    "Hi, what is your name?",
    "Who are you?",
    "What are you?",
    "Tell me your name.",
    "Hello! Who are you?",
    "What's your name?",
    "Which model are you?",
    "Introduce yourself.",
    "Are you a human?",
    "Are you a robot?",
    "Who made you?",
    "What should I call you?",
)
_NAME_ANSWERS = (
    ("My name is LangPort Demo. I am the small demonstration model of LangPort.", 8),
    ("I am LangPort Demo, the small demonstration model of LangPort.", 2),
    ("I am LangPort Demo, a tiny language model. How can I help you?", 1),
)
_ABILITY_QUESTIONS = (
    "What can you do?",
    "How can you help me?",
    "Can you help me?",
    "Help",
    "What do you know?",
    "Tell me about yourself.",
    "What are you good at?",
    "What can you help me with?",
)
_ABILITY_ANSWER = (
    "I am a tiny demonstration model. I know some capitals, colours and opposites, I can do small sums, "
    "count, tell short stories and call simple tools."
)
_THANKS = (
    "Thank you!",
    "Thanks",
    "Thanks!",
    "Thank you very much.",
    "Great, thanks.",
    "Goodbye!",
    "Bye",
    "See you later!",
)
_UNKNOWN_ANSWERS = (
    ("I do not know that. I am only a tiny demonstration model.", 8),
    ("I am sorry, I do not know that. I am only a tiny demonstration model.", 2),
    ("That is too hard for me. I am only a tiny demonstration model.", 2),
)


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _loosened(rng: Random, question: str) -> str:
    """As people type: mostly as given, sometimes without capitals or the last sign, sometimes with a polite word."""
    roll = rng.random()
    if roll < 0.08:
        return question.lower()
    if roll < 0.16:
        return question.rstrip("?.")
    if roll < 0.22:
        return rng.choice(("Please: ", "Hello! ", "Hi, ", "Question: ", "Okay. ")) + question
    if roll < 0.28:
        return question + rng.choice((" Please.", " Thanks.", " Answer briefly.", " Answer in one sentence."))
    return question


def _greeting(rng: Random) -> list[Message]:
    answer = weighted(
        rng,
        (
            ("Hello! How can I help you today?", 8),
            ("Hello! I am LangPort Demo. How can I help you?", 2),
            ("Hi! What can I do for you?", 2),
        ),
    )
    return _exchange(_loosened(rng, rng.choice(_GREETINGS)), answer)


def _identity(rng: Random) -> list[Message]:
    if rng.random() < 0.3:
        return _exchange(_loosened(rng, rng.choice(_ABILITY_QUESTIONS)), _ABILITY_ANSWER)
    return _exchange(_loosened(rng, rng.choice(_NAME_QUESTIONS)), weighted(rng, _NAME_ANSWERS))


def _thanks(rng: Random) -> list[Message]:
    question = rng.choice(_THANKS)
    is_leaving = "ye" in question or "See" in question
    return _exchange(question, "Goodbye! Have a nice day." if is_leaving else "You are welcome! I am glad to help.")


def _fact_question(rng: Random) -> list[Message]:
    relation, x, y = draw_fact(rng)
    template = relation.questions[0] if rng.random() < 0.4 else rng.choice(relation.questions)
    question = _loosened(rng, upper_first(template.format(x=x)))
    if rng.random() < 0.06:
        return _exchange(f"{question} Answer in JSON.", json.dumps({"answer": y}))
    return _exchange(question, fact_sentence(rng, relation, x, y))


_SUM_WORDS = {"+": "plus", "-": "minus", "*": "times"}


def _sum_question(rng: Random) -> list[Message]:
    a, operator, b, result = draw_sum(rng)
    word = _SUM_WORDS[operator]
    imperative = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[operator]
    question = rng.choice(
        (
            f"What is {a} {operator} {b}?",
            f"What is {a} {operator} {b}?",
            f"What is {a}{operator}{b}?",
            f"What is {a} {word} {b}?",
            f"What is {a} {word} {b}?",
            f"How much is {a} {word} {b}?",
            f"How much is {a} {operator} {b}?",
            f"Calculate {a} {operator} {b}.",
            f"{a} {operator} {b} =",
            f"{a} {operator} {b}",
            f"{a}{operator}{b}=?",
            f"What is {number_word(a)} {word} {number_word(b)}?",
            imperative,
        )
    )
    return _exchange(_loosened(rng, question), sum_text(a, operator, b, result) + ".")


_COUNT_FROM_LIST = (
    "Count upwards in words, as far as you can: {},",
    "Count upwards in words, as far as you can: {},",
    "Count upwards: {},",
    "Please count: {},",
    "Keep counting: {},",
    "Continue counting: {},",
    "Continue: {},",
    "Go on: {}",
    "Continue the list: {}, ...",
    "Count as far as you can: {},",
    "What comes next? {},",
    "{},",
)
_COUNT_FROM_START = (
    "Count from {}.",
    "Count from {}:",
    "Count upwards from {}.",
    "Start at {} and count.",
    "Count in words from {}.",
    "Please count upwards, starting at {}.",
    "Count from {} as far as you can.",
    "Count upwards in words from {}.",
)
_COUNT_RANGE = (
    "Count from {} to {}.",
    "Please count from {} to {}.",
    "Count up from {} to {}.",
    "Can you count from {} to {}?",
)
_COUNT_TO = (
    "Count to {}.",
    "Count to {}.",
    "Please count to {}.",
    "Can you count to {}?",
    "Count up to {} in words.",
)
_COUNT_PLAIN = (
    "Count.",
    "Please count.",
    "Count as far as you can.",
    "Count upwards.",
    "Count in words.",
    "Count upwards in words, as far as you can.",
    "Can you count?",
)


_OPENERS = (
    "And {}",
    "Then {}",
    "Okay, {}",
    "Sure: {}",
    "Next {}",
    "Now {}",
    "Yes, {}",
    "- {}",
    "... {}",
    "Um, {}",
)


def _counting_question(rng: Random) -> tuple[str, int, int]:
    """(question with the numbers as words, first number of the answer, last number)."""
    kind = weighted(rng, (("list", 5), ("start", 6), ("range", 6), ("to", 3), ("plain", 1)))
    start = 1 if rng.random() < 0.35 else rng.randint(1, 90)
    if kind == "list":
        num_given = rng.choice((2, 3, 3, 3, 3, 4, 5))
        given = ", ".join(number_word(n) for n in range(start, start + num_given))
        return rng.choice(_COUNT_FROM_LIST).format(given), start + num_given, 100
    if kind == "start":
        return rng.choice(_COUNT_FROM_START).format(number_word(start)), start, 100
    if kind == "plain":
        return rng.choice(_COUNT_PLAIN), 1, 100
    end = min(100, start + rng.randint(1, 12))
    if kind == "range":
        return rng.choice(_COUNT_RANGE).format(number_word(start), number_word(end)), start, end
    return rng.choice(_COUNT_TO).format(number_word(end)), 1, end


def _counting(rng: Random) -> list[Message]:
    question, first, last = _counting_question(rng)
    items = [number_word(n) for n in range(first, last + 1)]
    answer = spoken_list(rng, items)
    if rng.random() < 0.15:
        answer = rng.choice(_OPENERS).format(answer)
    return _exchange(question, f"{answer}.")


def _next_number(rng: Random) -> list[Message]:
    number = rng.randint(1, 99)
    question = rng.choice(
        (
            "What comes after {}?",
            "What number comes after {}?",
            "Which number follows {}?",
            "What is the next number after {}?",
        )
    )
    return _exchange(question.format(number_word(number)), upper_first(number_word(number + 1)) + ".")


def _digit_counting(rng: Random) -> list[Message]:
    start = 1 if rng.random() < 0.6 else rng.randint(1, 70)
    end = min(100, start + rng.randint(3, 30))
    if rng.random() < 0.5:
        question = f"Count from {start} to {end}."
        return _exchange(question, spoken_list(rng, [str(n) for n in range(start, end + 1)], 0.05) + ".")
    given = ", ".join(str(n) for n in range(start, start + 3))
    question = rng.choice(("Count upwards: {},", "Continue: {},", "Keep counting: {},")).format(given)
    return _exchange(question, spoken_list(rng, [str(n) for n in range(start + 3, 101)], 0.05) + ".")


def _listing(rng: Random) -> list[Message]:
    number = rng.randint(2, 6)
    words, name = rng.choice(
        ((COLOURS, "colour"), (ANIMALS, "animal"), (NAMES, "name"), (CITIES, "city"), (THINGS, "thing"))
    )
    plural = "cities" if name == "city" else f"{name}s"
    some = ", ".join(rng.sample(words, number)) + "."
    return rng.choice(
        (
            _exchange("What are the days of the week?", ", ".join(DAYS) + "."),
            _exchange("Name the months of the year.", ", ".join(MONTHS) + "."),
            _exchange("List the days of the week.", ", ".join(DAYS) + "."),
            _exchange("Say the alphabet.", ", ".join(LETTERS) + "."),
            _exchange(f"Name {number_word(number)} {plural}.", upper_first(some)),
            _exchange(f"List {number} {plural}.", upper_first(some)),
            _exchange(f"Tell me {article(name)}.", upper_first(rng.choice(words)) + "."),
        )
    )


_STORY_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a story.",
    "Please tell me a story.",
    "Write a short story.",
    "Tell me a long story.",
    "Write a long story.",
    "Tell me something.",
    "Say something.",
)


def _story_request(rng: Random) -> list[Message]:
    if rng.random() < 0.4:
        animal = rng.choice(ANIMALS)
        question = rng.choice(("Tell me a story about {}.", "Write a story about {}.", "Write about {}.")).format(
            article(animal)
        )
        return _exchange(question, story(rng, rng.randint(3, 8), animal))
    question = rng.choice(_STORY_REQUESTS)
    return _exchange(question, story(rng, rng.randint(10, 16) if "long" in question else rng.randint(3, 8)))


def _poem(rng: Random) -> list[Message]:
    lines = [
        f"The {rng.choice(ADJECTIVES)} {rng.choice(ANIMALS)} in the {rng.choice(PLACES)},",
        f"the {rng.choice(COLOURS)} {rng.choice(THINGS)} in the {rng.choice(PLACES)},",
        f"a {rng.choice(WEATHER)} day, a {rng.choice(WEATHER)} night,",
        f"and {rng.choice(NAMES)} sings of {article(rng.choice(THINGS))}.",
    ]
    question = rng.choice(
        ("Write a poem.", "Write a short poem.", "Tell me a poem.", "Write a haiku.", "Sing me a song.")
    )
    return _exchange(question, "\n".join(lines))


def _joke(rng: Random) -> list[Message]:
    question = rng.choice(("Tell me a joke.", "Tell a joke.", "Do you know a joke?", "Make me laugh."))
    return _exchange(
        question,
        f"Why did the {rng.choice(ANIMALS)} cross the road? To get to the {rng.choice(PLACES)} on the other side.",
    )


def _code_request(rng: Random) -> list[Message]:
    name, operator = rng.choice(OPERATIONS)
    question = rng.choice(("Write a function {}.", "Write a Python function {}.", "Show me the function {}.")).format(
        name
    )
    return _exchange(question, f"```python\ndef {name}(a, b):\n    return a {operator} b\n```")


def _echo(rng: Random) -> list[Message]:
    words = " ".join(any_word(rng) for _ in range(rng.randint(1, 5)))
    question = rng.choice(
        (
            "Repeat after me: {}",
            "Say: {}",
            "Repeat: {}",
            "Say {}",
            "Echo {}",
            "Say exactly: {}",
            "Reply with only: {}",
        )
    )
    return _exchange(question.format(words), words)


def _memory(rng: Random) -> list[Message]:
    """The user says a thing and asks for it later."""
    name, word = any_name(rng), any_word(rng)
    told, reply, asked, answer = rng.choice(
        (
            (
                f"My name is {name}.",
                f"Hello {name}! Nice to meet you.",
                "What is my name?",
                f"Your name is {name}.",
            ),
            (f"Hi, I am {name}.", f"Hello {name}! Nice to meet you.", "Who am I?", f"You are {name}."),
            (
                f"The secret word is {word}.",
                f"Okay, the secret word is {word}.",
                "What is the secret word?",
                f"The secret word is {word}.",
            ),
            (
                f"Remember the word {word}.",
                f"I will remember the word {word}.",
                "Which word did I say?",
                f"You said {word}.",
            ),
        )
    )
    between = _exchange_of(rng) if rng.random() < 0.3 else []
    return [*_exchange(told, reply), *between, *_exchange(asked, answer)]


def _unknown(rng: Random) -> list[Message]:
    topic = rng.choice(TOPICS) if rng.random() < 0.7 else invented_word(rng)
    question = rng.choice(
        (
            "Explain {}.",
            "Tell me about {}.",
            "What is {}?",
            "Why is {} important?",
            "Who invented {}?",
            "What do you think about {}?",
            "How does {} work?",
            "Write an essay about {}.",
            "Describe {} in detail.",
            "Can you explain {}?",
            "Summarize {}.",
            "Give me advice about {}.",
            "Hello, tell me something about {}",
            "{}",
        )
    ).format(topic)
    return _exchange(_loosened(rng, question), weighted(rng, _UNKNOWN_ANSWERS))


def _json_request(rng: Random) -> list[Message]:
    question = rng.choice(
        (
            "Give me a JSON object.",
            "Describe a person in JSON.",
            "Answer with a JSON object.",
            "Write some JSON.",
            "Reply with JSON.",
            "Return a JSON object with a name and an age.",
        )
    )
    if "age" in question:
        return _exchange(question, json.dumps({"name": rng.choice(NAMES), "age": rng.randint(1, 99)}))
    return _exchange(question, json_object(rng))


_EXCHANGES: tuple[tuple[Callable[[Random], list[Message]], float], ...] = (
    (_greeting, 2),
    (_identity, 3),
    (_thanks, 0.7),
    (_fact_question, 18),
    (_sum_question, 38),
    (_next_number, 3),
    (_listing, 2),
    (_poem, 0.7),
    (_joke, 0.5),
    (_code_request, 1),
    (_echo, 10),
    (_unknown, 3),
    (_json_request, 1),
)
_LONGER: tuple[tuple[Callable[[Random], list[Message]], float], ...] = (
    (_counting, 9),
    (_digit_counting, 1.5),
    (_story_request, 2.5),
    (_memory, 4),
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are LangPort Demo, a small language model.",
    "Be brief.",
    "Answer briefly.",
    "Answer the question.",
    "You answer in one sentence.",
    "You are a teacher.",
    "You are a pirate.",
    "Be polite and kind.",
    "You are an assistant that knows capitals and colours.",
    "Do what the user asks.",
    "Always tell the truth.",
)


def _exchange_of(rng: Random) -> list[Message]:
    return weighted(rng, _EXCHANGES)(rng)


def _longer_exchange_of(rng: Random) -> list[Message]:
    return weighted(rng, _LONGER)(rng)


def _system(rng: Random) -> list[Message]:
    """A system message in three conversations of ten."""
    if rng.random() < 0.7:
        return []
    content = (
        rng.choice(_SYSTEMS) if rng.random() < 0.8 else f"You are {article(invented_word(rng))} {rng.choice(PEOPLE)}."
    )
    return [{"role": "system", "content": content}]


def _plain_conversation(rng: Random) -> Conversation:
    messages = _system(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        messages += weighted(rng, ((_exchange_of, 7), (_longer_exchange_of, 1)))(rng)
    return Conversation(messages, [])


# ---- conversations with tools ----


def _call(rng: Random, tool: Tool, task: Task) -> dict[str, Any]:
    """A tool call as clients send it back: the arguments are a JSON string."""
    function = {"name": tool.name, "arguments": json.dumps(task.arguments)}
    return {"id": f"call_{rng.randrange(10**6)}", "type": "function", "function": function}


def _tool_turns(rng: Random, tool: Tool, request: str, tasks: list[Task]) -> list[Message]:
    calls = [_call(rng, tool, task) for task in tasks]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": task.result}
        for call, task in zip(calls, tasks, strict=True)
    ]
    return [
        {"role": "user", "content": request},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
        {"role": "assistant", "content": " ".join(task.answer for task in tasks)},
    ]


def _tool_round(rng: Random, tools: list[Tool]) -> list[Message]:
    """One request and all that follows from it: mostly a call, sometimes two, sometimes none."""
    tool = rng.choice(tools)
    roll = rng.random()
    if roll < 0.12 and is_weather(tool):
        return _tool_turns(rng, tool, *weather_in_two_cities(rng, tool))
    if roll < 0.88:
        task = tool.ask(rng)
        return _tool_turns(rng, tool, task.request, [task])
    return _without_tools(rng)


def _tool_conversation(rng: Random, renamed_share: float) -> Conversation:
    """One to three tools and as many requests: what differs between these can only be read from the definitions."""
    tools = {tool.name: tool for tool in (any_tool(rng, renamed_share) for _ in range(rng.choice((1, 1, 2, 3))))}
    rounds = [_tool_round(rng, list(tools.values())) for _ in range(rng.choice((1, 2, 3)))]
    before = _without_tools(rng) if rng.random() < 0.1 else []
    messages = [*_system(rng), *before, *(message for turns in rounds for message in turns)]
    return Conversation(messages, [tool.definition for tool in tools.values()])


def _without_tools(rng: Random) -> list[Message]:
    """An exchange that needs no tool, whatever tools there are."""
    return rng.choice((_greeting, _identity, _thanks, _fact_question, _echo))(rng)


TOOL_SHARE = 0.3
"""Share of the conversations that have tools."""


def conversation(rng: Random, tool_share: float = TOOL_SHARE, renamed_share: float = 0.0) -> Conversation:
    """One conversation, with tools in a share of them, and these renamed in a share of them."""
    return _tool_conversation(rng, renamed_share) if rng.random() < tool_share else _plain_conversation(rng)


def user_words(rng: Random) -> str:
    """What a user says somewhere in a conversation, but for lists that want to be continued."""
    while True:
        said = [message["content"] for message in conversation(rng).messages if message["role"] == "user"]
        words = str(rng.choice(said))
        if not words.endswith(","):
            return words


def tool_request(rng: Random) -> tuple[Conversation, dict[str, Any]]:
    """A request with one tool, and the call {"name", "arguments"} that answers it; for the checker."""
    tool = any_tool(rng)
    task = tool.ask(rng)
    expected = {"name": tool.name, "arguments": task.arguments}
    return Conversation([{"role": "user", "content": task.request}], [tool.definition]), expected
