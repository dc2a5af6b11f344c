"""Tokens per second with and without drafts (`--speculation`), in turns, of a task that copies and of ones that do not.

    python benchmarks/speculation.py --model DIR                 # a real chat model: what it answers is what counts
    python benchmarks/speculation.py --model DIR --dictated      # a model with random weights (make_model.py)
    python benchmarks/speculation.py --model DIR --rows          # what 1, 2, 4, ... rows of one sequence cost

The engine runs in this process, without HTTP, the same for both kinds of turns, and the answers have to be equal bit
for bit. A random model answers noise, so with `--dictated` the tokens that are drawn are replaced by those of one
answer, that of a model which does the task without a mistake: what is measured is then the engine's part, at the speed
of any shape. Without it a model copies as well as it can. Tasks:

- edit: write a file again with a name changed and a function added.
- predicted: the same, and the request brings the old file as its `prediction`, not in its prompt.
- prose: a text that shares little with the prompt, where drafts should cost nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch

from langport.engine.batch import build_batch
from langport.engine.drafts import Chance, Draft
from langport.engine.engine import GenerationEngine
from langport.engine.grammar import Masks
from langport.engine.load import load_engine
from langport.engine.memory import BLOCK_SIZE
from langport.engine.messages import Load, RequestFailed, Step
from langport.engine.sampler import Sampler
from langport.engine.scheduler import ScheduledSequence
from langport.engine.sequence import Sequence
from langport.models.checkpoint import Checkpoint, read_checkpoint
from langport.settings.tree import EngineSettings
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from langport.types import GenerateRequest, SamplingParams, TokenLogprob

FILE = '''"""A shopping basket."""

from dataclasses import dataclass, field


@dataclass
class Item:
    name: str
    price: float
    count: int = 1

    def total(self) -> float:
        return self.price * self.count


@dataclass
class Basket:
    items: list[Item] = field(default_factory=list)

    def add(self, item: Item) -> None:
        if item.count < 1:
            raise ValueError("count must be at least 1")
        self.items.append(item)

    def remove(self, name: str) -> None:
        self.items = [item for item in self.items if item.name != name]

    def total(self) -> float:
        return sum(item.total() for item in self.items)

    def names(self) -> list[str]:
        return sorted(item.name for item in self.items)
'''
EDITED = FILE.replace("count", "quantity").replace(
    "    def names(self)", "    def is_empty(self) -> bool:\n        return not self.items\n\n    def names(self)"
)
PROSE = """\
The harbour lay quiet under a low sky when the first boats came home. Nets were hung along the wall to dry, and two
boys counted the boxes of herring as they were carried up the steps. An old woman who mended sails sat in her doorway
and told anyone who stopped that the wind would turn by evening. Nobody doubted her. She had been right about the
great storm, forty years ago, and about most of the small ones since. By noon the market was over, gulls quarrelled
above the scraps, and the smell of tar drifted across from the yard where a new keel had been laid down. Then rain
began, softly at first, and the street emptied until only a grey cat remained, watching the water from beneath an
upturned dinghy."""

Tokens = list[int]
Answer = tuple[Tokens, list[TokenLogprob]]


@dataclass(frozen=True)
class Task:
    """A request that is asked again and again."""

    prompt: Tokens
    answer: Tokens
    """What a model would say that does it well."""
    prediction: Tokens = field(default_factory=list)

    def requests(self, batch: int, temperature: float) -> list[GenerateRequest]:
        sampling = SamplingParams(max_tokens=len(self.answer), seed=1, temperature=temperature, logprobs=0)
        return [GenerateRequest(str(n), self.prompt, sampling, prediction=self.prediction) for n in range(batch)]


class DictatedSampler(Sampler):
    """Draws as it would, and then says what it was told."""

    answer: Tokens

    def sample(
        self, logits: torch.Tensor, sequences: Seq[Sequence], masks: Masks | None = None
    ) -> list[tuple[int, TokenLogprob | None]]:
        drawn = super().sample(logits, sequences, masks)
        places = [sequence.num_output_tokens for sequence in sequences]
        return [(self.answer[place], logprob) for place, (_, logprob) in zip(places, drawn, strict=True)]


def tasks(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, Task]:
    template = ChatTemplate.from_checkpoint(checkpoint.path, tokenizer)

    def prompt(text: str) -> Tokens:
        if template is None:
            return tokenizer.encode(text)
        rendered = template.render([{"role": "user", "content": text}], tools=None, add_generation_prompt=True)
        return tokenizer.encode(rendered, add_special_tokens=False)

    fence = f"```python\n{FILE}```"
    edit = (
        "Write this file again. Rename `count` to `quantity` everywhere, and give the basket a method `is_empty`. "
        f"Answer with the whole file.\n\n{fence}"
    )
    old, new, prose = (tokenizer.encode(text, add_special_tokens=False) for text in (FILE, EDITED, PROSE))
    return {
        "edit": Task(prompt(edit), new),
        "predicted": Task(prompt("Write a shopping basket in Python."), new, prediction=old),
        "prose": Task(prompt("Tell me a story about a harbour."), prose),
    }


def run(
    core: GenerationEngine, requests: list[GenerateRequest], clock: Callable[[], float]
) -> tuple[float, list[Answer]]:
    """Seconds by the clock from the first token on, and what each request was answered."""
    answers: list[Answer] = [([], []) for _ in requests]
    for request in requests:
        assert core.add(request) is None
    begin = None
    while core.has_work:
        for message in core.step():
            assert not isinstance(message, RequestFailed), message
            for delta in message.deltas if isinstance(message, Step) else ():
                tokens, logprobs = answers[int(delta.request_id)]
                tokens += delta.token_ids
                logprobs += delta.logprobs or []
        if begin is None and all(tokens for tokens, _ in answers):
            begin = clock()
    assert begin is not None
    return clock() - begin, answers


def compare(core: GenerationEngine, name: str, task: Task, batch: int, arguments: argparse.Namespace) -> None:
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    drafter = core.scheduler.drafter
    assert drafter is not None
    speeds: dict[bool, list[float]] = {False: [], True: []}
    answers: list[Answer] = []
    before = drafter.num_drafted, drafter.num_accepted
    for _ in range(arguments.turns):
        for is_on in (False, True):
            core.scheduler.drafter = drafter if is_on else None
            took, found = run(core, task.requests(batch, arguments.temperature), clock)
            assert answers in ([], found), "drafts changed an answer: our bug, please report it"
            answers = found
            speeds[is_on].append(sum(len(tokens) - 1 for tokens, _ in found) / took)
    core.scheduler.drafter = drafter
    ratio = statistics.median(b / a for a, b in zip(speeds[False], speeds[True], strict=True))
    figures = {
        "task": name,
        "batch": batch,
        "tokens": sum(len(tokens) for tokens, _ in answers),
        "tokens/s off": round(statistics.median(speeds[False]), 1),
        "tokens/s on": round(statistics.median(speeds[True]), 1),
        "ratio": round(ratio, 3),
        "drafted": (drafter.num_drafted - before[0]) // arguments.turns,
        "accepted": (drafter.num_accepted - before[1]) // arguments.turns,
        "row": round(drafter.cost.share, 3),
    }
    print(json.dumps(figures), flush=True)


def show_rows(core: GenerationEngine, length: int, arguments: argparse.Namespace) -> None:
    """Seconds of the model for one sequence's last rows, as the clock says."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    tokens = [5 + n % 200 for n in range(length)]
    sequence = Sequence(GenerateRequest("r", tokens, SamplingParams(max_tokens=1)), 0, 0, tokens=tokens)
    core.scheduler.pool.grow(sequence.block_table, length + 64)
    sequence.num_computed_tokens = length - 1
    took: dict[int, list[float]] = {rows: [] for rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
    model = core.runner.model
    with torch.inference_mode():
        for _ in range(arguments.turns):
            for rows, found in took.items():
                step = [ScheduledSequence(sequence, 1, Draft([9] * (rows - 1), Chance(0.5), Chance(0.5)))]
                core.runner.adapters.use([None], [rows], rows)
                begin = clock()
                model.logits(model(build_batch(step, core.runner.caches, BLOCK_SIZE, "cpu", model.kernels)))
                found.append(clock() - begin)
    core.scheduler.pool.release(sequence.block_table)
    one = statistics.median(took[1])
    for rows, found in took.items():
        median = statistics.median(found)
        share = 0.0 if rows == 1 else (median / one - 1) / (rows - 1)
        figures = {"context": length, "rows": rows, "ms": round(1e3 * median, 2), "of one": round(median / one, 2)}
        print(json.dumps({**figures, "a row": round(share, 3)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dictated", action="store_true")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--only", default="", help="tasks whose names hold this")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=15, help="--speculation-tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu", help="wall on a quiet machine")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    settings = EngineSettings(
        num_threads=arguments.threads,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        speculation="ngram",
        speculation_tokens=arguments.tokens,
        kv_cache_memory=1 << 30,
    )
    checkpoint = read_checkpoint(arguments.model)
    core, _ = load_engine(checkpoint, Load("bench", str(arguments.model), settings, 0.5), lambda share: None)
    assert isinstance(core, GenerationEngine)
    if arguments.rows:
        for length in (100, 2000):
            show_rows(core, length, arguments)
        return
    tokenizer = Tokenizer.from_directory(arguments.model)
    for name, task in tasks(checkpoint, tokenizer).items():
        if arguments.dictated:
            sampler = core.runner.sampler
            core.runner.sampler = DictatedSampler(sampler.eos_token_ids, sampler.rules)
            core.runner.sampler.answer = task.answer
        for batch in arguments.batch if arguments.only in name else ():
            compare(core, name, task, batch, arguments)


if __name__ == "__main__":
    main()
