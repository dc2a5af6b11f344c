"""A real HTTP server in this process: the gateway over two fake models."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from langport.api.app import LocalApi
from langport.gateway.app import Gateway
from langport.gateway.upstream import Upstream
from langport.models.checkpoint import Checkpoint, Pooling
from langport.settings.tree import GatewaySettings, LimitSettings
from langport.testing import BOS, EOS, FakeEngine, byte_tokenizer
from langport.text.chat_template import ChatTemplate, TemplateSource
from langport.types import ModelInfo, ModelKind

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Server:
    """A running server."""

    host: str
    """Address and port."""
    engines: dict[str, FakeEngine]

    @property
    def url(self) -> str:
        return f"http://{self.host}"


def fake_upstream(name: str, kind: ModelKind, context: int) -> tuple[FakeEngine, Upstream]:
    tokenizer = byte_tokenizer()
    size = 32 if kind == "encoder" else 0
    info = ModelInfo(
        kind,
        "Fake",
        context,
        tokenizer.vocab_size,
        eos_token_ids=(EOS,),
        bos_token_id=BOS,
        embedding_size=size,
        is_matryoshka=True,
        is_normalized=True,
    )
    checkpoint = Checkpoint(
        path=Path(),
        config={},
        generation_config={},
        architecture="Fake",
        kind=kind,
        dtype="float32",
        max_model_len=context,
        eos_token_ids=(EOS,),
        bos_token_id=BOS,
        vocab_size=tokenizer.vocab_size,
        weight_files=(),
        pooling=Pooling(),
        is_matryoshka=True,
        embedding_size=size,
    )
    template = ChatTemplate({"default": TemplateSource(CHATML, "test")}, tokenizer.named_tokens)
    engine = FakeEngine(info)
    app = LocalApi(name, engine, checkpoint, tokenizer, template, LimitSettings())
    return engine, Upstream(name, app, lambda: {"max_model_len": context}, lambda: (True, ""))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the models `chat` and `embed`, and the key `secret`."""
    fakes = [fake_upstream("chat", "decoder", 2048), fake_upstream("embed", "encoder", 512)]
    engines = {upstream.name: engine for engine, upstream in fakes}
    app = Gateway([upstream for _, upstream in fakes], GatewaySettings(api_keys=("secret",)))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on")
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Server(f"127.0.0.1:{listener.getsockname()[1]}", engines)
    uvicorn_server.should_exit = True
    thread.join(timeout=10)
    listener.close()
    assert not thread.is_alive()
