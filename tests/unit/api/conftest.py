"""`LocalApi` over a fake engine and a byte-level tokenizer, called without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from langport.api.app import LocalApi
from langport.api.response_runs import Runs
from langport.models.checkpoint import Checkpoint, Pooling
from langport.models.classification import Classification
from langport.settings.tree import LimitSettings
from langport.testing import BOS, EOS, AsgiClient, FakeEngine, Script, byte_tokenizer
from langport.text.chat_template import ChatTemplate, TemplateSource
from langport.text.tokenizer import Tokenizer
from langport.types import ModelInfo, ModelKind

CHATML = (
    "{% for tool in tools or [] %}<|im_start|>tool {{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 600


class FakeServed:
    """A served model and the fakes beneath it."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        kind: ModelKind = "decoder",
        has_template: bool = True,
        limits: LimitSettings | None = None,
        generation_config: dict[str, Any] | None = None,
        sampling_defaults: str = "openai",
        is_matryoshka: bool = True,
        template: str = CHATML,
        special_tokens: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        runs: Runs | None = None,
        classification: Classification | None = None,
        **engine_options: Any,
    ) -> None:
        self.tokenizer = tokenizer or byte_tokenizer(*special_tokens)
        size = 8 if kind == "encoder" and classification is None else 0
        self.info = ModelInfo(
            kind,
            "Fake",
            CONTEXT,
            self.tokenizer.vocab_size,
            eos_token_ids=(EOS,),
            bos_token_id=BOS,
            embedding_size=size,
            is_matryoshka=is_matryoshka,
            is_normalized=classification is None,
            num_labels=len(classification.labels) if classification else 0,
        )
        self.engine = FakeEngine(self.info, script, **engine_options)
        checkpoint = Checkpoint(
            path=Path(),
            config={},
            generation_config=generation_config or {},
            architecture="Fake",
            kind=kind,
            dtype="float32",
            max_model_len=CONTEXT,
            eos_token_ids=(EOS,),
            bos_token_id=BOS,
            vocab_size=self.tokenizer.vocab_size,
            weight_files=(),
            pooling=Pooling(),
            is_matryoshka=is_matryoshka,
            embedding_size=size,
            classification=classification,
        )
        source = TemplateSource(template, "test")
        chat_template = ChatTemplate({"default": source}, self.tokenizer.named_tokens)
        self.app = LocalApi(
            "fake",
            self.engine,
            checkpoint,
            self.tokenizer,
            chat_template if has_template else None,
            limits or LimitSettings(),
            sampling_defaults=sampling_defaults,  # type: ignore[arg-type]
            runs=runs,
        )
        self.client = AsgiClient(self.app)

    async def chat(self, content: Any = "Hi", **fields: Any) -> Any:
        body = {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post("/v1/chat/completions", body)

    async def respond(self, input: Any = "Hi", *, owner: str = "", **fields: Any) -> Any:
        body = {"model": "fake", "input": input, **fields}
        return await self.client.post("/v1/responses", body, extension={"owner": owner})

    async def decide(self, input: Any, *questions: Any) -> Any:
        return await self.client.post("/v1/decisions", {"model": "fake", "input": input, "questions": questions})

    async def complete(self, **fields: Any) -> Any:
        return await self.client.post("/v1/completions", {"model": "fake", "prompt": "abc", **fields})

    async def embed(self, **fields: Any) -> Any:
        return await self.client.post("/v1/embeddings", {"model": "fake", **fields})

    def prompt_text(self, number: int = -1) -> str:
        """The text of a prompt that reached the engine, special tokens shown."""
        ids = self.engine.requests[number].prompt_token_ids
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture
def serve() -> Callable[..., FakeServed]:
    """Make a served fake model; the arguments are those of `FakeServed`."""
    return FakeServed


@pytest.fixture
def says() -> Callable[..., Script]:
    """A script that says these texts, one per sequence (the last for all further ones), and ends with eos.

    Numbers among the bytes are token ids, such as those of special tokens.
    """

    def make(*texts: str | bytes | list[int], ends: bool = True) -> Script:
        replies = [[*(t.encode() if isinstance(t, str) else t), *([EOS] if ends else [])] for t in texts]
        return lambda request, index: replies[min(index, len(replies) - 1)]

    return make
