"""Write a checkpoint of a public model's shape with random weights, for measuring speed where no model hub is.

    python benchmarks/make_model.py --shape 0.6b DIR
    python benchmarks/make_model.py --shape t5-small DIR

The tokenizer has one token per byte and unused ones up to the vocabulary's size. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
)

VOCAB_SIZE = 32768
SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "head_dim": 32},
    # Qwen3-0.6B and Qwen3-1.7B but for the vocabulary; source: their published config.json.
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128},
}
# The first T5's small one but for the vocabulary; source: Raffel et al. 2019, section 3.8.
T5_SMALL = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6, "num_heads": 8}


def save_tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([f"<unused{i}>" for i in range(VOCAB_SIZE - tokenizer.get_vocab_size())])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1], pad_token=special[0])
    wrapped.save_pretrained(path)


def build(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if shape == "t5-small":
        config = T5Config(vocab_size=VOCAB_SIZE, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0, **T5_SMALL)
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        **SHAPES[shape],
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES, "t5-small"], default="0.6b")
    arguments = parser.parse_args()
    model = build(arguments.shape)
    model.save_pretrained(arguments.path)
    save_tokenizer(arguments.path)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.path}: {size:.0f} M random parameters in {str(model.dtype).removeprefix('torch.')}")


if __name__ == "__main__":
    main()
