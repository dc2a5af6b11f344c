"""Which class runs which architecture. Adding a family is one file and one line here."""

from __future__ import annotations

import importlib

import torch

from langport.errors import CheckpointError
from langport.models.base import Model
from langport.models.checkpoint import Checkpoint

FAMILIES: dict[str, str] = {
    "BartForConditionalGeneration": "bart.BART",
    "BertForMaskedLM": "bert.Bert",
    "BertModel": "bert.Bert",
    "BloomForCausalLM": "bloom.Bloom",
    "FalconForCausalLM": "falcon.Falcon",
    "GPT2LMHeadModel": "gpt2.GPT2",
    "GPTBigCodeForCausalLM": "gpt2.GPTBigCode",
    "GPTJForCausalLM": "gptj.GPTJ",
    "GPTNeoForCausalLM": "gpt_neo.GPTNeo",
    "GPTNeoXForCausalLM": "gpt_neox.GPTNeoX",
    "LlamaForCausalLM": "llama.Llama",
    "MBartForConditionalGeneration": "bart.MBart",
    "MistralForCausalLM": "llama.Mistral",
    "MT5ForConditionalGeneration": "t5.T5",
    "OPTForCausalLM": "opt.OPT",
    "Qwen2ForCausalLM": "llama.Qwen2",
    "Qwen3ForCausalLM": "llama.Qwen3",
    "RobertaForMaskedLM": "bert.Roberta",
    "RobertaModel": "bert.Roberta",
    "T5ForConditionalGeneration": "t5.T5",
    "XLMRobertaForMaskedLM": "bert.Roberta",
    "XLMRobertaModel": "bert.Roberta",
}


def build_model(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint on torch's meta device: its shape, without weights.

    Raises: CheckpointError for an architecture that no family runs, or a configuration without a needed field.
    """
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        raise CheckpointError(
            f"{checkpoint.path}: LangPort does not run {checkpoint.architecture}; it runs {', '.join(sorted(FAMILIES))}"
        )
    module_name, class_name = family.split(".")
    module = importlib.import_module(f"langport.models.{module_name}")
    model_class: type[Model] = getattr(module, class_name)
    try:
        with torch.device("meta"):
            return model_class(checkpoint.config)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path}: config.json lacks {error.args[0]!r}") from error
