"""Train `langport-demo-embed`, a tiny BERT that maps sentences to vectors.

    python -m langport.demo.train_embed --out DIR [--seed 0]

Takes about 10 minutes on one CPU core, downloads nothing, and ends by printing how often a held-out sentence
finds its paraphrase among 200. Contrastive loss with in-batch negatives (van den Oord et al. 2018) at several
sizes of the vector at once (Matryoshka, Kusupati et al. 2022); the files follow sentence-transformers: mean
pooling, then normalizing.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from langport.demo.checkpoints import Progress, linear_schedule, save_checkpoint
from langport.demo.embed_data import (
    Pair,
    corpus,
    document_pairs,
    held_out_pairs,
    paraphrases,
    topic_pairs,
)

MATRYOSHKA_SIZES = (16, 32, 64, 128)
MAX_SEQ_LENGTH = 256
MAX_POSITIONS = 512
TEMPERATURE = 0.05
TOPIC_TEMPERATURE = 0.1
TOPIC_WEIGHT = 0.3
POOL_SIZE = 200
NUM_POOLS = 10
NUM_CHUNKS = 5
CORPUS_PAIRS = 60_000
MIN_WORD_COUNT = 8
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SENTENCE_TRANSFORMERS_FILES: dict[str, object] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": MATRYOSHKA_SIZES[-1],
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "sentence_bert_config.json": {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False},
    "config_sentence_transformers.json": {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Lower-casing WordPiece over bytes: unknown words become pieces, at worst single bytes, never [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(), normalizers.ByteLevel()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("Ġ", "removed"),  # the byte-level sign for a space
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(".{1,64}"), "isolated"),  # WordPiece gives up past 100
        ]
    )
    tokenizer.model = models.WordPiece(_vocabulary(tokenizer, vocab_size), unk_token="[UNK]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Special tokens, every byte as head and as tail of a word, the common words, and their commonest pieces.

    The trainer of the tokenizers library breaks ties by the order of a hash table; this gives the same ids in
    every run.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(f"##{letter}" for letter in alphabet)]
    counts: Counter[str] = Counter()
    for text in corpus(seed=0, count=CORPUS_PAIRS):
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    words = sorted(word for word, count in counts.items() if count >= MIN_WORD_COUNT)
    pieces = Counter(piece for word in words for piece in _pieces(word))
    common = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    ordered = dict.fromkeys([*SPECIAL_TOKENS, *letters, *words, *common])
    return {piece: index for index, piece in enumerate(islice(ordered, vocab_size))}


def _pieces(word: str) -> Iterator[str]:
    for length in range(2, min(len(word), 7)):
        yield word[:length]
        yield from (f"##{word[start : start + length]}" for start in range(1, len(word) - length + 1))


def build_model(vocab_size: int) -> BertModel:
    """About 1.5 million weights: three layers of width 128."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=MATRYOSHKA_SIZES[-1],
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        is_matryoshka=True,
        matryoshka_dimensions=list(MATRYOSHKA_SIZES),
        dtype="float32",
    )
    return BertModel(config)


def embed(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], first_position: int = 0
) -> torch.Tensor:
    """Mean of the last hidden states over all tokens, not yet normalized: (len(texts), hidden_size)."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=MAX_SEQ_LENGTH, return_tensors="pt")
    positions = first_position + torch.arange(batch.input_ids.shape[1])[None]
    hidden = model(**batch, position_ids=positions).last_hidden_state.float()  # (batch, length, hidden_size)
    mask = batch.attention_mask[..., None]
    mean: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1)
    return mean


def embed_in_chunks(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], first_position: int = 0
) -> torch.Tensor:
    """As `embed`, with short texts apart from long ones, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    step = -(-len(texts) // NUM_CHUNKS)
    chunks = [order[start : start + step] for start in range(0, len(texts), step)]
    vectors = [embed(model, tokenizer, [texts[index] for index in chunk], first_position) for chunk in chunks]
    return torch.cat(vectors)[torch.tensor(order).argsort()]


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, pairs: list[Pair], temperature: float) -> torch.Tensor:
    """Each text must find its partner among all others, in both directions, at every Matryoshka size.

    `first` and `second` are (len(pairs), hidden_size); pairs of the same key are no negatives.
    """
    numbers = {pair.key: number for number, pair in enumerate(pairs)}
    keys = torch.tensor([numbers[pair.key] for pair in pairs])
    same = (keys[:, None] == keys) & ~torch.eye(len(pairs), dtype=torch.bool)
    targets = torch.arange(len(pairs))
    losses = []
    for size in MATRYOSHKA_SIZES:
        scores = F.normalize(first[:, :size], dim=1) @ F.normalize(second[:, :size], dim=1).T / temperature
        scores = scores.masked_fill(same, float("-inf"))
        losses.append(F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets))
    return torch.stack(losses).mean() / 2


def sentence_loss(model: BertModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random, count: int) -> torch.Tensor:
    """Loss of `count` paraphrases, plus a weaker pull between sentences of one topic."""
    same, about = paraphrases(rng, count), topic_pairs(rng)
    pairs = same + about
    vectors = embed_in_chunks(model, tokenizer, [p.first for p in pairs] + [p.second for p in pairs])
    first, second = vectors.chunk(2)
    loss = contrastive_loss(first[:count], second[:count], same, TEMPERATURE)
    return loss + TOPIC_WEIGHT * contrastive_loss(first[count:], second[count:], about, TOPIC_TEMPERATURE)


def document_loss(model: BertModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random, count: int) -> torch.Tensor:
    """Loss of `count` longer texts, placed anywhere in the context so that every position is trained."""
    pairs = document_pairs(rng, count)
    start = rng.randrange(MAX_POSITIONS - MAX_SEQ_LENGTH)
    vectors = embed_in_chunks(model, tokenizer, [p.first for p in pairs] + [p.second for p in pairs], start)
    first, second = vectors.chunk(2)
    return contrastive_loss(first, second, pairs, TEMPERATURE)


def train(model: BertModel, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """AdamW, one step in eight on longer texts; `model` is changed in place."""
    rng = random.Random(f"train {args.seed}")
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = linear_schedule(optimizer, args.steps, num_warmup=args.steps // 20)
    progress = Progress(args.steps)
    model.train()
    for step in range(1, args.steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if step % 8 == 0:
                loss = document_loss(model, tokenizer, rng, args.batch_size // 4)
            else:
                loss = sentence_loss(model, tokenizer, rng, args.batch_size)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.update(step, loss.item())


@torch.no_grad()
def retrieval_accuracy(folder: Path) -> dict[int, float]:
    """For each vector size, how often a held-out sentence is nearest to its paraphrase among 200."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = held_out_pairs(POOL_SIZE * NUM_POOLS)
    right = dict.fromkeys(MATRYOSHKA_SIZES, 0)
    for start in range(0, len(pairs), POOL_SIZE):
        pool = pairs[start : start + POOL_SIZE]
        first = embed(model, tokenizer, [pair.first for pair in pool])
        second = embed(model, tokenizer, [pair.second for pair in pool])
        for size in MATRYOSHKA_SIZES:
            scores = F.normalize(first[:, :size], dim=1) @ F.normalize(second[:, :size], dim=1).T
            right[size] += int((scores.argmax(1) == torch.arange(len(pool))).sum())
    return {size: count / len(pairs) for size, count in right.items()}


def save_sentence_transformers_files(folder: Path) -> None:
    """The files that tell how token vectors become one sentence vector."""
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Train, save, and print the held-out accuracy of what was saved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.vocab_size)
    model = build_model(len(tokenizer))
    print(f"vocabulary {len(tokenizer)}, weights {model.num_parameters():,}", flush=True)
    train(model, tokenizer, args)
    save_checkpoint(model, tokenizer, args.out)
    save_sentence_transformers_files(args.out)
    for size, share in retrieval_accuracy(args.out).items():
        print(f"held-out nearest-neighbour accuracy among {POOL_SIZE}, {size} dimensions: {share:.2%}")


if __name__ == "__main__":
    main()
