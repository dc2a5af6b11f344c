"""Tiny random checkpoints of many architectures, written by transformers itself: the reference for parity tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers import models as families

VOCAB = 384
SPECIAL = ["<pad>", "<bos>", "<eos>"]
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus special tokens and unused ones up to VOCAB."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([f"<unused{n}>" for n in range(VOCAB - len(vocab))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )


def _llama_like(config_class: type, **extra: Any) -> Any:
    return config_class(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **COMMON,
        **extra,
    )


def _seq2seq_bart(config_class: type) -> Any:
    return config_class(
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=256,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        **COMMON,
    )


def _bert_like(config_class: type, **extra: Any) -> Any:
    return config_class(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=258,
        **{**COMMON, **extra},
    )


def config_of(family: str) -> Any:
    """A small configuration of the named family."""
    match family:
        case "llama":
            return _llama_like(families.llama.LlamaConfig, tie_word_embeddings=False)
        case "llama3-rope":
            rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
            return _llama_like(families.llama.LlamaConfig, rope_parameters=rope)
        case "mistral":
            return _llama_like(families.mistral.MistralConfig, sliding_window=24)
        case "qwen2":
            return _llama_like(families.qwen2.Qwen2Config)
        case "qwen3":
            return _llama_like(families.qwen3.Qwen3Config, head_dim=32, tie_word_embeddings=True)
        case "gpt2":
            return families.gpt2.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=512, **COMMON)
        case "t5":
            return families.t5.T5Config(
                d_model=64,
                d_kv=16,
                d_ff=96,
                num_layers=2,
                num_decoder_layers=3,
                num_heads=4,
                decoder_start_token_id=0,
                **COMMON,
            )
        case "t5-gated":
            return families.t5.T5Config(
                d_model=64,
                d_kv=24,
                d_ff=96,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                **COMMON,
            )
        case "bart":
            return _seq2seq_bart(families.bart.BartConfig)
        case "mbart":
            return _seq2seq_bart(families.mbart.MBartConfig)
        case "bert":
            return _bert_like(families.bert.BertConfig)
        case "roberta":
            return _bert_like(families.roberta.RobertaConfig, pad_token_id=1, bos_token_id=0, type_vocab_size=1)
        case "xlm-roberta":
            return _bert_like(families.xlm_roberta.XLMRobertaConfig, pad_token_id=1, bos_token_id=0, type_vocab_size=1)
        case other:
            raise ValueError(f"no tiny configuration for {other}")


DECODERS = ("llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2")
ENCODER_DECODERS = ("t5", "t5-gated", "bart", "mbart")
ENCODERS = ("bert", "roberta")
CLASSIFIERS = ("bert", "roberta", "xlm-roberta")


def _spread(model: Any) -> Any:
    """The model with weights far enough apart that its choices are clear."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def model_of(family: str, *, seed: int = 0) -> Any:
    """The family's transformers model with random weights, spread widely enough that greedy choices are clear."""
    kinds = {**dict.fromkeys(DECODERS, AutoModelForCausalLM), **dict.fromkeys(ENCODER_DECODERS, AutoModelForSeq2SeqLM)}
    torch.manual_seed(seed)
    return _spread(kinds.get(family, AutoModel).from_config(config_of(family)))


def save_checkpoint(family: str, path: Path, *, dtype: str = "float32", shard_size: str = "5GB") -> Path:
    """Write an ordinary checkpoint folder."""
    model = model_of(family).to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size=shard_size)
    byte_tokenizer().save_pretrained(path)
    return path


def save_classifier(family: str, path: Path, *, num_labels: int, **config: Any) -> Path:
    """Write the folder of a sequence classifier, or with one label of a cross-encoder; `config` are further settings.

    Its tokenizer puts special tokens around texts, and gives BERT's second text another type.
    """
    settings = config_of(family)
    settings.num_labels = num_labels
    settings.update({"pad_token_id": 0, **config})  # as the tokenizer below has it; RoBERTa counts positions by it
    torch.manual_seed(0)
    _spread(AutoModelForSequenceClassification.from_config(settings)).save_pretrained(path)
    backend = byte_tokenizer().backend_tokenizer
    kind = ":1" if family == "bert" else ""
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair=f"<bos> $A <eos> $B{kind} <eos>{kind}",
        special_tokens=[("<bos>", 1), ("<eos>", 2)],
    )
    names = ["input_ids", *(["token_type_ids"] if family == "bert" else []), "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", model_input_names=names, model_max_length=256
    )
    tokenizer.save_pretrained(path)
    return path
