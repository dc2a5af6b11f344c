"""Trains langport-demo-chat, the bundled decoder-only demo model: a Llama of 3.5 million parameters, on generated text.

    python -m langport.demo.train_chat --out DIR [--seed 0]

Nothing is downloaded: `chat_text` and `chat_data` make all text from templates and the seed. About 70 minutes on one
core of a recent server processor, 45 on two. Two kinds of windows are mixed: a stream of plain documents, which
knows no end-of-turn token, and packed conversations. What the model is meant to do is checked by `check_chat`.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from langport.demo import chat_data, chat_text
from langport.demo.checkpoints import Progress, linear_schedule, save_checkpoint

BOS, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, TURN_START, TURN_END)
VOCABULARY_SIZE = 2048
CONTEXT = 4096
MODEL_FOLDER = Path(__file__).parent / "models" / "langport-demo-chat"
TEMPLATE = MODEL_FOLDER / "chat_template.jinja"

NUM_STEPS = 3600
BATCH_TOKENS = 4096
WINDOW_LENGTHS = ((256, 4), (512, 12), (1024, 4), (2048, 1))
"""Lengths of the windows of a batch, in tokens, and how often each comes."""
CHAT_SHARE = 0.65
"""Share of the windows that hold conversations."""
PHRASE_SHARE = 0.15
"""Share of the plain documents that are a phrase again and again: without them the model learns to copy much later."""
FOREIGN_SHARE = 0.16
"""Share of the plain documents with something before them that is read but not learnt: noise, or a user's words."""
LEARNING_RATE = 8e-3
NUM_ASCII_SIGNS = 96
"""The first tokens of the vocabulary: printable ASCII, newline and space."""
BABBLE_WEIGHT = 0.75
"""Share of the loss for tokens drawn at random, of which nothing can be learnt but that they are."""
CONTEXT_WEIGHT = 0.1
"""Share of the loss for tokens of system, user and tool turns; the assistant's own tokens count 1. The end of others'
turns counts nothing: the model ends its own turns only, so plain text in a user's words goes on."""


class Mixture(NamedTuple):
    """What a stage of the training reads, and how much it counts."""

    tool_share: float = chat_data.TOOL_SHARE
    """Share of the conversations that have tools."""
    renamed_share: float = 0.0
    """Share of the known tools that have names and keys which only their definitions tell."""
    call_weight: float = 1.0
    """What a token of a tool call counts, where other tokens of answers count 1."""
    babble_share: float = 0.0
    """Share of the conversations and plain documents that go over into tokens drawn at random."""


MIXTURES = {
    "text": Mixture(),
    "finish": Mixture(tool_share=0.35, renamed_share=0.35, call_weight=3.0, babble_share=0.15),
}


class Piece(NamedTuple):
    """Consecutive tokens and the weight of each as a target of the loss."""

    token_ids: list[int]
    weights: list[float]


# ---- tokenizer ----


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=TURN_END,
        pad_token=BOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE.read_text()
    return wrapped


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _corpus(rng: Random) -> Iterator[str]:
    """Text for the tokenizer: documents, and conversations as the template writes them, cut at special tokens."""
    renderer = _wrapped(_byte_level(models.BPE()))
    for _ in range(6000):
        yield chat_text.document(rng)
        yield from re.split(r"<\|\w+\|>", render(renderer, chat_data.conversation(rng)))


def build_tokenizer(rng: Random) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: plain ASCII signs first, then merges, other bytes, and special tokens last."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(rng), trainer)
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda entry: (_is_odd_byte(entry[0]), entry[1]))
    vocabulary = {token: i for i, (token, _) in enumerate(ordered)}
    final = _byte_level(models.BPE(vocab=vocabulary, merges=_merges(tokenizer)))
    final.add_special_tokens(list(SPECIAL_TOKENS))
    return _wrapped(final)


def _is_odd_byte(token: str) -> bool:
    """Is this the sign of a single byte that is neither printable ASCII nor a space or newline?"""
    return len(token) == 1 and not token.isascii() and token not in "ĠĊ"


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


# ---- windows ----


def render(tokenizer: PreTrainedTokenizerFast, conversation: chat_data.Conversation) -> str:
    """The text of a whole conversation."""
    return str(tokenizer.apply_chat_template(conversation.messages, tools=conversation.tools or None, tokenize=False))


class Windows:
    """Draws windows of tokens, of plain documents or of conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: Random, mixture: Mixture) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._mixture = mixture
        self._turn_end = tokenizer.eos_token_id
        self._assistant_header = self._encode(f"{TURN_START}assistant\n")
        self._call_start = self._encode("<tool_call>\n")

    def batch(self, length: int, num_windows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, both (num_windows, length)."""
        windows = [
            self._chat(length) if self._rng.random() < CHAT_SHARE else self._plain(length) for _ in range(num_windows)
        ]
        return torch.tensor([w.token_ids for w in windows]), torch.tensor([w.weights for w in windows])

    def _encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return token_ids

    def _plain(self, length: int) -> Piece:
        """Documents with blank lines between them; starts in the middle of one, at its start, or after a bos token."""
        roll = self._rng.random()
        skipped = self._rng.randrange(60) if roll < 0.3 else 0
        window = Piece([], [])
        while len(window.token_ids) < length + skipped:
            self._append_document(window)
        if roll > 0.8:
            window = Piece([self._tokenizer.bos_token_id, *window.token_ids], [0.0, *window.weights])
        return Piece(window.token_ids[skipped : skipped + length], window.weights[skipped : skipped + length])

    def _append_document(self, window: Piece) -> None:
        """Add a document, now and then with words before it that belong to none, or a repeated phrase."""
        separator = "\n\n" if window.token_ids else ""
        if self._rng.random() < PHRASE_SHARE:
            phrase = chat_text.phrase(self._rng)
            self._append(window, separator + phrase, 0.0)
            self._append(
                window,
                self._rng.choice((" ", ", ", "\n")).join(["", *[phrase] * self._rng.randint(1, 4)]),
                1.0,
            )
            return
        if self._rng.random() < FOREIGN_SHARE:
            foreign = self._rng.choice((chat_text.noise, chat_data.user_words))(self._rng)
            self._append(window, separator + foreign, 0.0)
            separator = self._rng.choice((" ", "\n", "\n\n"))
        self._append(window, separator + chat_text.document(self._rng), 1.0)
        if self._is_babbled():
            self._extend(window, self._babble())

    def _append(self, window: Piece, text: str, weight: float) -> None:
        token_ids = self._encode(text)
        self._extend(window, Piece(token_ids, [weight] * len(token_ids)))

    def _extend(self, window: Piece, piece: Piece) -> None:
        window.token_ids.extend(piece.token_ids)
        window.weights.extend(piece.weights)

    def _chat(self, length: int) -> Piece:
        """Conversations one after the other, the first from its start."""
        window = Piece([], [])
        while len(window.token_ids) < length:
            conversation = chat_data.conversation(self._rng, self._mixture.tool_share, self._mixture.renamed_share)
            token_ids = self._encode(render(self._tokenizer, conversation))
            piece = Piece(token_ids, self._chat_weights(token_ids))
            self._extend(window, self._broken_off(piece) if self._is_babbled() else piece)
        return Piece(window.token_ids[:length], window.weights[:length])

    def _is_babbled(self) -> bool:
        return bool(self._mixture.babble_share) and self._rng.random() < self._mixture.babble_share

    def _broken_off(self, conversation: Piece) -> Piece:
        """The conversation up to a place in one of its answers, often the start of it, then babble."""
        weights = conversation.weights
        places = [i for i, weight in enumerate(weights) if weight >= 1.0]
        starts = [i for i in places if weights[i - 1] < 1.0]
        cut = self._rng.choice(starts if self._rng.random() < 0.5 else places)
        broken = Piece(conversation.token_ids[:cut], weights[:cut])
        self._extend(broken, self._babble())
        self._append(broken, f"{TURN_END}\n", 0.0)
        return broken

    def _babble(self) -> Piece:
        """Tokens drawn at random, signs of ASCII or any; the model reads the first and learns that any may follow.

        So it is unsure of text that is not its own, as when a bias or a grammar leaves it few tokens.
        """
        num_kinds = self._rng.choice((NUM_ASCII_SIGNS, VOCABULARY_SIZE - len(SPECIAL_TOKENS)))
        token_ids = [self._rng.randrange(num_kinds) for _ in range(self._rng.randint(8, 40))]
        num_read = self._rng.randint(1, 3)
        return Piece(token_ids, [0.0] * num_read + [BABBLE_WEIGHT] * (len(token_ids) - num_read))

    def _chat_weights(self, token_ids: list[int]) -> list[float]:
        """1 from after each assistant header up to and with the end of the turn, or the weight of calls if it is one;
        elsewhere CONTEXT_WEIGHT, ends 0."""
        header, call_start = self._assistant_header, self._call_start
        weights, is_answer, answer_weight = [], False, 1.0
        for i, token_id in enumerate(token_ids):
            weights.append(answer_weight if is_answer else 0.0 if token_id == self._turn_end else CONTEXT_WEIGHT)
            is_answer = is_answer and token_id != self._turn_end
            if token_ids[i + 1 - len(header) : i + 1] == header:
                is_answer, is_call = True, token_ids[i + 1 : i + 1 + len(call_start)] == call_start
                answer_weight = self._mixture.call_weight if is_call else 1.0
        return weights


# ---- model and training ----


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, with the generation config that it is shipped with."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def _optimizers(model: LlamaForCausalLM, learning_rate: float, has_muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms; or AdamW for all.

    Muon's updates are scaled to AdamW's size, so both have one learning rate. Source: Jordan et al. 2024; Liu et al.
    2025, by whose figures it needs about half the steps of AdamW. It computes in bfloat16, which is very slow on
    processors that have none.
    """
    if not has_muon:
        return [
            torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
        ]
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def _loss(model: LlamaForCausalLM, token_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of each next token; both inputs are (num_windows, length)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        logits = model(input_ids=token_ids, use_cache=False).logits  # (num_windows, length, vocabulary)
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), token_ids[:, 1:].flatten(), reduction="none")
    targets = weights[:, 1:].flatten()
    return (losses * targets).sum() / targets.sum()


def train(
    model: LlamaForCausalLM,
    windows: Windows,
    rng: Random,
    num_steps: int,
    learning_rate: float,
    has_muon: bool = True,
) -> None:
    """Train in place, printing progress."""
    optimizers = _optimizers(model, learning_rate, has_muon)
    schedules = [linear_schedule(optimizer, num_steps, num_warmup=min(60, num_steps // 8)) for optimizer in optimizers]
    progress = Progress(num_steps)
    lengths, shares = zip(*WINDOW_LENGTHS, strict=True)
    model.train()
    for step in range(1, num_steps + 1):
        length = rng.choices(lengths, shares)[0]
        loss = _loss(model, *windows.batch(length, BATCH_TOKENS // length))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        progress.update(step, loss.item())


def _blend(model: LlamaForCausalLM, before: dict[str, torch.Tensor], share: float) -> None:
    """Go from the weights before the training only a share of the way: what was learnt counts more than what was lost.

    Source: WiSE-FT, Wortsman et al. 2022.
    """
    after = model.state_dict()
    model.load_state_dict({name: torch.lerp(before[name], after[name], share) for name in after})


def _fresh(rng: Random) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    tokenizer = build_tokenizer(rng)
    return tokenizer, build_model(tokenizer)


def _loaded(folder: Path) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    return AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)


def main() -> None:
    """Build the tokenizer, train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train langport-demo-chat.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--start", type=Path, help="checkpoint to train further, with another seed")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="the highest; it falls to zero")
    parser.add_argument("--mixture", choices=MIXTURES, default="text", help="what is read; finish: for the last stage")
    parser.add_argument("--adamw", action="store_true", help="train the layers with AdamW instead of Muon")
    parser.add_argument("--blend", type=float, default=1.0, help="share of what was trained; the rest is --start's")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng = Random(arguments.seed)
    tokenizer, model = _loaded(arguments.start) if arguments.start else _fresh(rng)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    windows = Windows(tokenizer, rng, MIXTURES[arguments.mixture])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, windows, rng, arguments.steps, arguments.learning_rate, not arguments.adamw)
    _blend(model, before, arguments.blend)
    save_checkpoint(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
