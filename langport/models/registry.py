"""Which class runs which architecture. Adding a family is one file and one line here."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from langport.errors import CheckpointError
from langport.models.base import Model
from langport.models.checkpoint import Checkpoint
from langport.models.limits import check_modules

log = logging.getLogger("langport.engine")

FAMILIES: dict[str, str] = {
    "BartForConditionalGeneration": "bart.BART",
    "BertForMaskedLM": "bert.Bert",
    "BertForSequenceClassification": "classifier.BertClassifier",
    "BertModel": "bert.Bert",
    "BloomForCausalLM": "bloom.Bloom",
    "CodeGenForCausalLM": "gptj.CodeGen",
    "Cohere2ForCausalLM": "cohere.Cohere2",
    "CohereForCausalLM": "cohere.Cohere",
    "FalconForCausalLM": "falcon.Falcon",
    "Gemma2ForCausalLM": "gemma.Gemma2",
    "Gemma3ForCausalLM": "gemma.Gemma3",
    "GemmaForCausalLM": "gemma.Gemma",
    "GPT2LMHeadModel": "gpt2.GPT2",
    "GPTBigCodeForCausalLM": "gpt2.GPTBigCode",
    "GPTJForCausalLM": "gptj.GPTJ",
    "GPTNeoForCausalLM": "gpt_neo.GPTNeo",
    "GPTNeoXForCausalLM": "gpt_neox.GPTNeoX",
    "GraniteForCausalLM": "granite.Granite",
    "LlamaForCausalLM": "llama.Llama",
    "MBartForConditionalGeneration": "bart.MBart",
    "MistralForCausalLM": "llama.Mistral",
    "MixtralForCausalLM": "mixtral.Mixtral",
    "MPTForCausalLM": "mpt.MPT",
    "MptForCausalLM": "mpt.MPT",
    "MT5ForConditionalGeneration": "t5.T5",
    "Olmo2ForCausalLM": "olmo2.OLMo2",
    "OPTForCausalLM": "opt.OPT",
    "Phi3ForCausalLM": "phi3.Phi3",
    "PhiForCausalLM": "phi.Phi",
    "Qwen2ForCausalLM": "llama.Qwen2",
    "Qwen3ForCausalLM": "llama.Qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe.Qwen3MoE",
    "RobertaForMaskedLM": "bert.Roberta",
    "RobertaForSequenceClassification": "classifier.RobertaClassifier",
    "RobertaModel": "bert.Roberta",
    "SmolLM3ForCausalLM": "smollm3.SmolLM3",
    "StableLmForCausalLM": "stablelm.StableLM",
    "Starcoder2ForCausalLM": "starcoder2.Starcoder2",
    "T5ForConditionalGeneration": "t5.T5",
    "XGLMForCausalLM": "xglm.XGLM",
    "XLMRobertaForMaskedLM": "bert.Roberta",
    "XLMRobertaForSequenceClassification": "classifier.RobertaClassifier",
    "XLMRobertaModel": "bert.Roberta",
}


def build_model(checkpoint: Checkpoint, *, trusts_code: bool = False) -> Model:
    """The model of a checkpoint on torch's meta device: its shape, without weights.

    `trusts_code`: where nothing here and in transformers runs it, code that comes with the checkpoint may.
    Raises: CheckpointError for an architecture that nothing here runs, or a configuration without a needed field.
    """
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        return _build_fallback(checkpoint, trusts_code)
    if checkpoint.config.get("auto_map"):
        log.info("%s comes with code of its own, which is not run: LangPort's own is", checkpoint.path)
    check_modules(checkpoint.config, checkpoint.path / "config.json")
    module_name, class_name = family.split(".")
    module = importlib.import_module(f"langport.models.{module_name}")
    model_class: type[Model] = getattr(module, class_name)
    try:
        with torch.device("meta"), _WithoutNormal():
            return model_class(checkpoint.config)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path}: config.json lacks {error.args[0]!r}") from error
    except (TypeError, ValueError, ArithmeticError, RuntimeError, IndexError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} does not describe a {checkpoint.architecture} ({reason}). Take it "
            "from the original checkpoint."
        ) from error


def _build_fallback(checkpoint: Checkpoint, trusts_code: bool) -> Model:
    if checkpoint.kind != "decoder":
        raise CheckpointError(
            f"{checkpoint.path}: LangPort does not run {checkpoint.architecture}; besides decoders it runs "
            f"{', '.join(sorted(FAMILIES))}"
        )
    # Importing transformers takes seconds, and native families do without it.
    from langport.models.fallback import Fallback

    with torch.device("meta"):
        return Fallback(checkpoint, trusts_code=trusts_code)


class _WithoutNormal(TorchFunctionMode):
    """Leaves out the random numbers that a new nn.Embedding is filled with.

    On the meta device they change nothing, but torch imports its compiler for them: a second and 100 MB per engine.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"] if kwargs else args[0]
        return func(*args, **(kwargs or {}))
