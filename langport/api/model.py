"""A served model as the handlers see it: engine, checkpoint, text and limits side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from langport.api.structured import GrammarChecker
from langport.errors import CheckpointError, ContextLengthExceeded, InvalidRequest, Unavailable
from langport.models.checkpoint import Checkpoint
from langport.settings.tree import LimitSettings
from langport.text.answer_format import AnswerFormat
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from langport.types import Engine, ModelInfo

Task = Literal["generate", "embed", "rank", "classify"]
_TASKS: dict[Task, str] = {
    "generate": "generate text",
    "embed": "make embeddings",
    "rank": "rank or score texts",
    "classify": "classify",
}
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ServedModel:
    """Everything that answers for one model."""

    name: str
    engine: Engine
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    template: ChatTemplate | None
    limits: LimitSettings
    grammars: GrammarChecker
    answer_format: AnswerFormat
    sampling_defaults: Literal["openai", "model"] = "openai"

    async def ready(self) -> ModelInfo:
        """What the loaded model is; waits while it is still loading.

        Raises: Unavailable when it cannot be loaded or was stopped.
        """
        try:
            return await self.engine.wait_ready()
        except CheckpointError as error:
            raise Unavailable(f"The model {self.name} could not be loaded: {error}") from error

    def require(self, model: str, task: Task) -> None:
        """Refuse what this kind of model cannot do.

        Raises: InvalidRequest naming `model`, saying what it can do.
        """
        tasks, served = _abilities(self.checkpoint)
        if task not in tasks:
            raise InvalidRequest(f"The model {model} cannot {_TASKS[task]}; it serves {served}.", param="model")

    def default(self, name: str, openai: float) -> float:
        """What a sampling parameter is when the request leaves it out: OpenAI's value or the checkpoint's."""
        assert name in _SAMPLING_KEYS
        if self.sampling_defaults == "openai":
            return openai
        value: Any = self.checkpoint.generation_config.get(name)
        return value if isinstance(value, int | float) else openai

    def completion_room(self, num_prompt_tokens: int, wanted: int | None, info: ModelInfo, param: str) -> int:
        """How many tokens may follow a prompt: as many as wanted (None: all there is room for), if they fit.

        Raises: ContextLengthExceeded naming `param` when the prompt is too long for that.
        """
        limit = self.limits.completion_max_prompt
        if limit is not None and num_prompt_tokens > limit:
            raise ContextLengthExceeded(
                f"This server takes prompts of up to {limit} tokens. However, your {param} resulted in "
                f"{num_prompt_tokens} tokens. Please reduce the length of the {param}.",
                param=param,
            )
        context = info.max_model_len
        is_shared = info.kind == "decoder"
        least = 1 if is_shared and wanted != 0 else 0
        if num_prompt_tokens + least > context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, your {param} resulted in "
                f"{num_prompt_tokens} tokens{', which leaves no room for an answer' if least else ''}. "
                f"Please reduce the length of the {param}.",
                param=param,
            )
        room = context - num_prompt_tokens if is_shared else context
        return room if wanted is None else min(wanted, room)


def _abilities(checkpoint: Checkpoint) -> tuple[tuple[Task, ...], str]:
    """What a model can do, and what serves it."""
    if checkpoint.kind != "encoder":
        return ("generate",), "chat completions and completions"
    if checkpoint.classification is None:
        return ("embed", "rank"), "embeddings, rerank and score"
    num_labels = len(checkpoint.classification.labels)
    if num_labels == 1:
        return ("rank", "classify"), "rerank, score and classify"
    return ("classify",), f"classify, with its {num_labels} labels (one that ranks has a single one)"


def check_vocabulary(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises: InvalidRequest naming `param` when the model has no such token."""
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        raise InvalidRequest(
            f"{param} holds the token id {largest}; this model's ids go up to {vocab_size - 1}.", param=param
        )
