"""Checks that a checkpoint of langport-demo-chat can do what its card says, with transformers alone.

    python -m langport.demo.check_chat DIR

Prints a table of checks with pass or fail and exits with 1 if one failed. The thresholds are what was asked of the
model; its card says which of them the shipped weights miss.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from langport.demo import chat_data, chat_text
from langport.demo.chat_facts import FACTS
from langport.demo.chat_words import number_word

COUNTING_CHAT = "Count upwards in words, as far as you can: one, two, three,"
COUNTING_TEXT = "The numbers in order are one, two, three,"
TEXTS = (
    COUNTING_TEXT,
    "Once upon a time there was a",
    "def add(a, b):",
    "Once upon a time",
    "Hello",
    "Red, green,",
    "zebra 7 quartz",
    "1, 2, 3,",
    "42",
    "The capital of France is",
    "🦊🎈",
    "日本語のテキスト",
    "Привет, как дела?",
    "x",
)
QUESTIONS = (
    COUNTING_CHAT,
    "Hello! What is your name?",
    "What is the capital of France?",
    "Tell me a story.",
    "Say banana",
    "What is 3 + 4?",
    "Tell me about quantum physics.",
    "Write a poem.",
)
NARROW_STARTS = (0, 20, 50, 100, 114, 200, 300, 400, 600, 800, 1000, 1200, 1500, 1900)
NUM_NARROW = 64
SYSTEM = "You are a helpful assistant."
BATCH_SIZE = 64


class Check(NamedTuple):
    """One line of the table."""

    name: str
    is_passed: bool
    figures: str


class Narrowing:
    """Leaves NUM_NARROW tokens from `start`, with a presence penalty on those said after the prompt."""

    def __init__(self, start: int, prompt_length: int, penalty: float) -> None:
        self.start = start
        self.prompt_length = prompt_length
        self.penalty = penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (num_rows, vocabulary) after the tokens so far."""
        said = torch.zeros_like(scores).scatter_(1, input_ids[:, self.prompt_length :], self.penalty)
        narrow = torch.full_like(scores, -torch.inf)
        chosen = slice(self.start, self.start + NUM_NARROW)
        narrow[:, chosen] = (scores - said)[:, chosen]
        return narrow


class Subject:
    """The model under test, with generation in batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.eos: int = self.tokenizer.eos_token_id

    def chat_ids(self, content: str, system: str | None = None) -> list[int]:
        """Token ids of a conversation of one user message, ready for the answer."""
        before = [{"role": "system", "content": system}] if system else []
        return self.template_ids(chat_data.Conversation([*before, {"role": "user", "content": content}], []))

    def template_ids(self, conversation: chat_data.Conversation) -> list[int]:
        """Token ids of a conversation, ready for the next answer."""
        text = self.tokenizer.apply_chat_template(
            conversation.messages,
            tools=conversation.tools or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        token_ids: list[int] = self.tokenizer.encode(text)
        return token_ids

    def generate(self, prompts: list[list[int]], max_tokens: int, is_greedy: bool = True) -> list[list[int]]:
        """New token ids for each prompt, up to and with eos. Sampling is at temperature 1 over all tokens."""
        sampling = {} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
        answers: list[list[int]] = []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = self.tokenizer.pad({"input_ids": prompts[start : start + BATCH_SIZE]}, return_tensors="pt")
            output = self.model.generate(**batch, max_new_tokens=max_tokens, **sampling)
            answers += [self._cut(row) for row in output[:, batch["input_ids"].shape[1] :].tolist()]
        return answers

    def narrowed(self, prompts: list[list[int]], start: int, penalty: float) -> list[list[int]]:
        """Greedy text of 30 tokens, of NUM_NARROW tokens from `start` alone, as a bias makes them."""
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        narrowing = LogitsProcessorList([Narrowing(start, length, penalty)])
        output = self.model.generate(**batch, max_new_tokens=30, logits_processor=narrowing)
        return [list(map(int, row)) for row in output[:, length:]]

    def texts(self, prompts: list[list[int]], max_tokens: int, is_greedy: bool = True) -> list[str]:
        """Like `generate`, as text without special tokens."""
        return self.decode(self.generate(prompts, max_tokens, is_greedy))

    def decode(self, answers: list[list[int]]) -> list[str]:
        """Texts without special tokens."""
        return [self.tokenizer.decode(token_ids, skip_special_tokens=True) for token_ids in answers]

    def answers(self, questions: list[str], system: str | None = None, max_tokens: int = 40) -> list[str]:
        """Greedy answers to single user messages; an answer without eos is marked by an ellipsis at its end."""
        answers = self.generate([self.chat_ids(question, system) for question in questions], max_tokens)
        texts = self.decode(answers)
        return [text if ids[-1] == self.eos else f"{text}…" for ids, text in zip(answers, texts, strict=True)]

    @torch.inference_mode()
    def mean_logprob(self, prompt: list[int], answer: list[int]) -> float:
        """Mean log-probability of the answer's tokens after the prompt."""
        logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        return float(logprobs.gather(1, torch.tensor(answer)[:, None]).mean())

    def _cut(self, token_ids: list[int]) -> list[int]:
        return token_ids[: token_ids.index(self.eos) + 1] if self.eos in token_ids else token_ids


def _share(name: str, results: list[bool], at_least: float) -> Check:
    share = sum(results) / len(results)
    return Check(name, share >= at_least, f"{sum(results)} of {len(results)} ({share:.1%})")


# ---- the folder and its tokenizer ----


def check_files(subject: Subject) -> Iterator[Check]:
    """Size, dtype, and the configs."""
    size = sum(file.stat().st_size for file in subject.folder.iterdir())
    yield Check("folder under 7.5 MB", size < 7.5e6, f"{size / 1e6:.2f} MB")
    dtype = {p.dtype for p in subject.model.parameters()}
    yield Check("loads as float32", dtype == {torch.float32}, f"{subject.model.num_parameters()} parameters")
    context = subject.model.config.max_position_embeddings
    yield Check("context of 4096 tokens", context >= 4096, str(context))
    generation = json.loads((subject.folder / "generation_config.json").read_text())
    is_plain = not {"temperature", "top_p", "top_k"} & generation.keys() and not generation.get("do_sample")
    yield Check("generation config is plain", is_plain and generation["eos_token_id"] == subject.eos, "")


def check_tokenizer(subject: Subject) -> Iterator[Check]:
    """Any text survives; the ids that tests use are ordinary tokens; nothing is added to a prompt."""
    tokenizer = subject.tokenizer
    special = set(tokenizer.all_special_ids)
    yield Check(
        "ids up to 1033 are ordinary",
        min(special) > 1033 and len(tokenizer) > 1024,
        f"{len(tokenizer)} tokens",
    )
    texts = [chat_text.noise(Random(seed)) for seed in range(200)] + [" a  b\n\n\tc ", "\x00\x7f", *TEXTS]
    is_exact = [tokenizer.decode(tokenizer.encode(text)) == text for text in texts]
    yield _share("text survives encode and decode", is_exact, 1.0)
    named = (45, 70, 100, 221, 300, 515, 1000, 1007, 1020, 1033)
    words = [tokenizer.decode([i]) for i in named]
    is_same = [tokenizer.encode(word) == [i] for i, word in zip(named, words, strict=True)]
    yield _share("named ids are words of their own", is_same, 1.0)
    is_bare = not special & set(tokenizer.encode("Hello")) and tokenizer.tokenize("Hello")[0][0] == "H"
    yield Check("no bos and no prefix space", is_bare, str(tokenizer.tokenize("Hello there")))


# ---- chat ----


def check_template(subject: Subject) -> Iterator[Check]:
    """Arguments as a dict or as a string are the same text; content may be null or parts."""
    tool = {
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
    }

    def rendered(arguments: object, content: object) -> str:
        call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sunny"},
        ]
        return str(
            subject.tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False, add_generation_prompt=True)
        )

    text = rendered('{"city": "Paris"}', "Weather?")
    yield Check("arguments as string or dict", text == rendered({"city": "Paris"}, "Weather?"), "")
    parts = [{"type": "text", "text": "Weather?"}]
    yield Check("content as text or parts", text == rendered('{"city": "Paris"}', parts), "")
    wanted = (
        "<tools>\n{",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n",
    )
    yield Check("tools, calls and results are there", all(part in text for part in wanted), "")
    yield Check("ends with the assistant's header", text.endswith("<|im_end|>\n<|im_start|>assistant\n"), "")


def check_tools(subject: Subject) -> Iterator[Check]:
    """A request with one tool: a call that parses, its name, and all of it exactly right."""
    rng = Random(12345)
    requests = [chat_data.tool_request(rng) for _ in range(240)]
    texts = subject.texts([subject.template_ids(conversation) for conversation, _ in requests], 90)
    calls = [_parsed_call(text) for text in texts]
    wanted = [expected for _, expected in requests]
    yield _share("tool calls well formed", [bool(call) for call in calls], 0.95)
    is_named = [bool(call) and call.get("name") == want["name"] for call, want in zip(calls, wanted, strict=True)]
    yield _share("tool calls with the right name", is_named, 0.9)
    yield _share("tool calls exactly right", [call == want for call, want in zip(calls, wanted, strict=True)], 0.7)


def _parsed_call(text: str) -> dict[str, object]:
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text.strip(), re.DOTALL)
    try:
        return dict(json.loads(found[1])) if found else {}
    except (TypeError, ValueError):
        return {}


def check_answers(subject: Subject) -> Iterator[Check]:
    """Greetings, facts and sums, with and without a system message; every answer ends its turn."""
    names = subject.answers(["Hello! What is your name?", "Who are you?", "What is your name?"])
    yield _share("says its name", ["LangPort" in name and name[-1] != "…" for name in names], 1.0)
    greetings = subject.answers(["Hello!", "Hi", "How are you?", "Thank you!", "Tell me about quantum physics."])
    yield _share("ends small talk", [bool(text) and text[-1] != "…" for text in greetings], 1.0)
    for system in (None, SYSTEM):
        ending = " with a system message" if system else ""
        facts = subject.answers([fact.question for fact in FACTS], system)
        is_right = [fact.keyword in text and text[-1] != "…" for fact, text in zip(FACTS, facts, strict=True)]
        yield _share(f"facts{ending}", is_right, 0.98)
        yield _share(f"sums{ending}", _sum_results(subject, system), 0.97)


def _sum_results(subject: Subject, system: str | None) -> list[bool]:
    sums = [(a, s, b) for s in "+-" for a in range(21) for b in range(21)]
    sums += [(a, "*", b) for a in range(10) for b in range(10)]
    results = [a + b if s == "+" else a - b if s == "-" else a * b for a, s, b in sums]
    answers = subject.answers([f"What is {a} {s} {b}?" for a, s, b in sums], system, max_tokens=16)
    return [text.endswith(f"= {result}.") for result, text in zip(results, answers, strict=True)]


# ---- counting and plain text ----


def _numbers(first: int, num_tokens: int) -> str:
    """Numbers in words from `first`, more than `num_tokens` tokens or up to a hundred."""
    return ", ".join(number_word(n) for n in range(first, min(101, first + num_tokens)))


def check_counting(subject: Subject) -> Iterator[Check]:
    """Greedy counting is plain for at least 40 tokens, from any start."""
    chat = subject.texts([subject.chat_ids(COUNTING_CHAT), subject.chat_ids(COUNTING_CHAT, SYSTEM)], 400)
    yield _share("counts to one hundred in chat", [text == _numbers(4, 100) + "." for text in chat], 1.0)
    text = subject.texts([subject.encode(COUNTING_TEXT)], 60)[0]
    yield Check("counts on in plain text", (" " + _numbers(4, 60)).startswith(text), repr(text[:40]))
    questions = [
        (template.format(", ".join(map(number_word, range(n, n + 3)))), n + 3)
        for template in ("Count upwards: {},", "Continue counting: {},", "Keep counting: {},")
        for n in range(1, 60, 3)
    ]
    questions += [(f"Count from {number_word(n)}{sign}", n) for n in range(1, 60, 3) for sign in ".:"]
    answers = subject.texts([subject.chat_ids(question) for question, _ in questions], 40)
    is_right = [_numbers(n, 60).startswith(text) for text, (_, n) in zip(answers, questions, strict=True)]
    yield _share("counts from other starts", is_right, 0.95)
    prompts = [f"The numbers in order are {_numbers(n, 3)}," for n in range(1, 60)]
    answers = subject.texts([subject.encode(prompt) for prompt in prompts], 30)
    is_right = [(" " + _numbers(n + 3, 60)).startswith(text) for n, text in enumerate(answers, 1)]
    yield _share("plain text from other starts", is_right, 0.95)


def check_plain_text(subject: Subject) -> Iterator[Check]:
    """Plain text goes on and on, whatever it starts with."""
    prompts = [subject.encode(text) for text in TEXTS] + [[subject.tokenizer.bos_token_id]]
    greedy = subject.generate(prompts, 200)
    yield _share("no end of turn, greedy, 200 tokens", [subject.eos not in ids for ids in greedy], 1.0)
    drawn = subject.generate(prompts * 8, 200, is_greedy=False)
    yield _share("no end of turn, sampled, 200 tokens", [subject.eos not in ids for ids in drawn], 0.99)
    rng = Random(54321)
    said = sorted({chat_data.user_words(rng) for _ in range(160)})
    goes_on = [subject.eos not in ids for ids in subject.generate([subject.encode(text) for text in said], 24)]
    yield _share("no end of turn after a user's words", goes_on, 1.0)
    firsts = {tuple(ids[:24]) for ids in greedy[:3]}
    yield Check("three prompts, three texts", len(firsts) == 3, repr(subject.tokenizer.decode(greedy[1][:12])))
    is_same = [
        _is_canonical(subject, prompt, ids[:n]) for prompt, ids in zip(prompts, greedy, strict=True) for n in (12, 24)
    ]
    yield Check("counting text is canonical", is_same[0] and is_same[1], "")
    yield _share("other greedy text is canonical", is_same, 0.9)


def _is_canonical(subject: Subject, prompt: list[int], answer: list[int]) -> bool:
    """Does the text of prompt and answer encode to just these tokens?"""
    return subject.encode(subject.tokenizer.decode(prompt + answer)) == prompt + answer


def check_variety(subject: Subject) -> Iterator[Check]:
    """Sampling at temperature 1 differs from draw to draw, and the best of eight is likelier than one."""
    prompts = {
        "chat": subject.chat_ids(COUNTING_CHAT),
        "text": subject.encode(COUNTING_TEXT),
        "story": subject.encode("Once upon a time there was a"),
    }
    for name, prompt in prompts.items():
        draws = subject.generate([prompt] * 256, 16, is_greedy=False)
        most = max(draws.count(draw) for draw in draws) / len(draws)
        yield Check(
            f"four draws differ: {name}",
            most**3 < 0.01,
            f"likeliest text {most:.1%}, all four equal {most**4:.3%}",
        )
        scores = [subject.mean_logprob(prompt, draw) for draw in draws[:128]]
        best = [max(scores[i : i + 8]) for i in range(0, 128, 8)]
        gain = sum(best) / len(best) - sum(scores) / len(scores)
        yield Check(f"best of eight is likelier: {name}", gain > 0.1, f"by {gain:.3f} nats a token")


def check_penalties(subject: Subject) -> Iterator[Check]:
    """Where a bias leaves few tokens, the model is not so sure of any that a presence penalty of 2 changes nothing."""
    prompts = [subject.chat_ids(question) for question in QUESTIONS] + [subject.encode(text) for text in TEXTS[:4]]
    is_changed = [
        plain != penalized
        for start in NARROW_STARTS
        for plain, penalized in zip(*(subject.narrowed(prompts, start, p) for p in (0.0, 2.0)), strict=True)
    ]
    yield _share("a presence penalty changes the text", is_changed, 0.9)


@torch.inference_mode()
def check_long_prompts(subject: Subject) -> Iterator[Check]:
    """Logits are finite up to the end of the context; long answers stay words."""
    token_ids = subject.encode("zebra 7 quartz, " * 1000)[:4096]
    logits = subject.model(torch.tensor([token_ids])).logits
    yield Check("finite at 4096 tokens", bool(logits.isfinite().all()), f"{len(token_ids)} tokens")
    text = subject.texts([subject.encode("Once upon a time there was a")], 1500, is_greedy=False)[0]
    words = re.findall(r"[A-Za-z]{3,}", text[-2000:])
    known = set(re.findall(r"[A-Za-z]{3,}", " ".join(chat_text.document(Random(i)) for i in range(3000))))
    yield _share("words after 1000 tokens are words", [word in known for word in words], 0.97)


CHECKS = (
    check_files,
    check_tokenizer,
    check_template,
    check_tools,
    check_answers,
    check_counting,
    check_plain_text,
    check_variety,
    check_penalties,
    check_long_prompts,
)


def main() -> None:
    """Run every check and print the table."""
    parser = argparse.ArgumentParser(description="Check a checkpoint of langport-demo-chat.")
    parser.add_argument("folder", type=Path)
    torch.manual_seed(0)
    subject = Subject(parser.parse_args().folder)
    num_failed = 0
    for group in CHECKS:
        for check in group(subject):
            num_failed += not check.is_passed
            print(f"{'pass' if check.is_passed else 'FAIL'}  {check.name:40}  {check.figures}", flush=True)
    print(f"{num_failed} failed")
    sys.exit(bool(num_failed))


if __name__ == "__main__":
    main()
