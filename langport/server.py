"""Local models: settings become engines and their APIs, served through `assembly`.

The HTTP server is up before the models are: /health answers at once, /ready says what is still loading, and
requests wait for their model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from langport.api.app import LocalApi
from langport.api.response_runs import Runs
from langport.assembly import Parts, serve_alone
from langport.engine.client import AdapterEngine, AskedEngine, EngineClient
from langport.engine.forker import Forker
from langport.engine.host_memory import free_host_bytes
from langport.engine.spawner import Spawner
from langport.errors import CheckpointError, InvalidRequest, LangPortError, NotFound, OutOfMemory, Unavailable
from langport.figures import Histogram
from langport.gateway.asgi import ASGIApp, Receive, Scope, Send
from langport.gateway.queue import Places
from langport.gateway.remote_models import RemoteModels
from langport.gateway.residence import Residence
from langport.gateway.upstream import Upstream
from langport.http_server import configure_logging, listen, run, until
from langport.manager import ManagedModel, ModelManager
from langport.models.adapter import read_adapter
from langport.models.checkpoint import Checkpoint, read_checkpoint
from langport.models.classification import Classification
from langport.models.hub import resolve_model
from langport.models.identity import identity
from langport.openapi import openapi_document
from langport.settings.tree import LimitSettings, ModelSettings, Settings
from langport.stored import store_of, stored_api
from langport.text.answer_format import AnswerFormat
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from langport.types import Engine, ModelInfo, ModelKind

logger = logging.getLogger("langport")


def serve(settings: Settings, read_again: Callable[[], Settings], forker: Forker | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; the process's exit code. SIGHUP reads the settings again with `read_again`.

    `forker`: the process that engines are forked from, if it was started already.
    Raises: LangPortError when the address cannot be listened on, or a model cannot be read or loaded.
    """
    configure_logging(settings.log_level)
    with listen(settings.host, settings.port) as listener:
        remote = RemoteModels(settings.upstreams)
        files = read_models(settings.models)
        if settings.workers == 1:
            return run(_serve(settings, read_again, files, remote, listener, Spawner(forker)))
        from langport.workers.engines import serve_with_workers

        return serve_with_workers(settings, read_again, files, remote, listener, forker)


@dataclass(frozen=True)
class ModelFiles:
    """What is served under one model's name and its adapters' names."""

    checkpoint: Checkpoint
    adapters: dict[str, Path]


def read_models(models: Sequence[ModelSettings]) -> list[ModelFiles]:
    """The checkpoint and the adapters of each model, downloaded if need be; no weights are loaded yet.

    Raises: CheckpointError with the problems of all models, one per line.
    """
    files: list[ModelFiles] = []
    problems: list[str] = []
    for model in models:
        try:
            checkpoint = read_checkpoint(resolve_model(model.reference, with_code=model.engine.trust_remote_code))
            files.append(ModelFiles(checkpoint, _read_adapters(model, checkpoint)))
        except CheckpointError as error:
            problems.append(f"{model.name}: {error}")
    if problems:
        raise CheckpointError("\n".join(problems))
    return files


def _read_adapters(model: ModelSettings, checkpoint: Checkpoint) -> dict[str, Path]:
    if model.lora and checkpoint.kind != "decoder":
        raise CheckpointError(
            f"LoRA adapters are for decoder-only models, and this one is an {checkpoint.kind}. Name the model that "
            f"{', '.join(model.lora)} belongs to: --lora MODEL:NAME=DIR."
        )
    return {name: read_adapter(resolve_model(reference)).path for name, reference in model.lora.items()}


@dataclass(frozen=True)
class ModelText:
    """What makes tokens of a model's prompts, and answers of its tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    answers: AnswerFormat


class ServedEngine(AskedEngine, Protocol):
    """What a served model asks of its engine, whoever owns that."""

    info: ModelInfo | None
    queue_time: Histogram
    prefill_time: Histogram
    first_token_time: Histogram


class Managed(Residence, Protocol):
    """What a served model knows of its place in memory, whoever decides about that."""

    @property
    def answers_later(self) -> bool: ...

    @property
    def num_loads(self) -> int: ...

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None: ...


class Adapters(Protocol):
    """Who loads LoRA adapters into a model's engine."""

    async def load(self, name: str, path: Path) -> int:
        """The adapter's number. Raises: CheckpointError, Unavailable; nothing has changed then."""
        ...

    def dismiss(self, name: str, number: int) -> None:
        """Clients may not name it any more."""
        ...

    def unload(self, number: int) -> None:
        """No request of this process uses it any more, and none will."""
        ...


class LocalModel:
    """One model of this machine as the gateway sees it: its text side, and the API over that and an engine."""

    managed: Managed
    """Set before the first request."""
    adapter_loader: Adapters
    """The same."""

    def __init__(
        self, settings: ModelSettings, files: ModelFiles, engine: ServedEngine, limits: LimitSettings, runs: Runs
    ) -> None:
        self.settings = settings
        self.checkpoint = files.checkpoint
        self.engine = engine
        self.generation = identity(settings, files.checkpoint.path)
        """Changes with the weights and the settings."""
        self._limits = limits
        self._runs = runs
        self._text: ModelText | None = None
        self._loading_text: asyncio.Task[ModelText] | None = None
        self._api: LocalApi | None = None
        self.known_adapters: dict[int, LocalAdapter] = {}
        """Those that are served, or still used: by the engine's number."""
        for number, (name, path) in enumerate(files.adapters.items()):
            LocalAdapter(self, name, path, number)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def places(self) -> Places:
        """Of the engine, which its adapters share."""
        return Places(self.name, num_places(self.settings.engine.max_num_seqs))

    async def load_text(self) -> str | None:
        """Load the tokenizer and the chat template, once; where the template comes from. Raises: CheckpointError."""
        if self._text is None:
            if self._loading_text is None or self._loading_text.done():
                self._loading_text = asyncio.create_task(asyncio.to_thread(self._load_text))
            self._text = await asyncio.shield(self._loading_text)
        return self._text.template.source if self._text.template else None

    async def have_text(self) -> None:
        """Be able to make prompts; a worker that came later than others may not be yet. Raises: Unavailable."""
        try:
            await self.load_text()
        except CheckpointError as error:
            raise Unavailable(f"The model {self.name} could not be loaded: {error}") from error

    def make_api(self, name: str, engine: Engine) -> LocalApi:
        """The API under a public name, once the model was loaded."""
        assert self._text is not None, "requests enter loaded models only: our bug, please report it"
        return LocalApi(
            name,
            engine,
            self.checkpoint,
            self._text.tokenizer,
            self._text.template,
            self._limits,
            sampling_defaults=self.settings.sampling_defaults,
            answer_format=self._text.answers,
            runs=self._runs,
        )

    def _load_text(self) -> ModelText:
        tokenizer = Tokenizer.from_directory(self.checkpoint.path)
        if self.checkpoint.kind == "encoder":
            return ModelText(tokenizer, None, AnswerFormat())
        template = ChatTemplate.from_checkpoint(
            self.checkpoint.path,
            tokenizer,
            override=self.settings.chat_template,
            name=Path(self.settings.reference).name,
        )
        answers = AnswerFormat.of(
            template, tokenizer, calls=self.settings.tool_call_parser, reasoning=self.settings.reasoning_parser
        )
        return ModelText(tokenizer, template, answers)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The API of the model; a request that comes when it is not loaded waits."""
        await self.managed.answer(self._answer, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._api is None:
            await self.have_text()
            self._api = self.make_api(self.name, self.engine)
        await self._api(scope, receive, send)

    async def load_adapter(self, name: str, reference: str) -> Upstream:
        """Load a LoRA adapter beside the requests that run.

        Raises: NotFound (`lora_path`) when there is no such directory or hub id, InvalidRequest (`lora_path`) when it
        holds no adapter of this model, Unavailable when the model cannot be loaded. Nothing has changed then.
        """
        try:
            path = await asyncio.to_thread(resolve_model, reference)
        except CheckpointError as error:
            raise NotFound(str(error), param="lora_path") from error
        try:
            await asyncio.to_thread(read_adapter, path)  # before the engine is disturbed
            number = await self.adapter_loader.load(name, path)
        except CheckpointError as error:
            raise InvalidRequest(str(error), param="lora_path") from error
        return LocalAdapter(self, name, path, number).upstream

    def upstreams(self) -> list[Upstream]:
        """The model, then its adapters."""
        own = Upstream(
            name=self.name,
            app=self.answer,
            card=self.card,
            is_ready=partial(self.is_ready, self.engine),
            stats=self.stats,
            places=self.places,
            is_metered=True,
            load_adapter=self.load_adapter if self.checkpoint.kind == "decoder" else None,
            generation=lambda: self.generation,
            residence=self.managed,
        )
        return [own, *(adapter.upstream for adapter in self.known_adapters.values())]

    def card(self) -> dict[str, Any]:
        """What /v1/models says besides the name."""
        context = self.engine.info.max_model_len if self.engine.info else self.checkpoint.max_model_len
        return {"max_model_len": context, "kind": self.checkpoint.kind}

    def is_ready(self, engine: Engine) -> tuple[bool, str]:
        """Whether the model answers through this engine, its own or one of its adapters', and why not."""
        if self.managed.answers_later:
            return True, ""
        if self._text is None:
            return False, "its tokenizer is loading"
        health = engine.health()
        return health.is_ready, health.reason

    def stats(self) -> dict[str, float | Histogram]:
        """Figures for /metrics, by the names that `gateway.metrics.ENGINE` gives them."""
        health = self.engine.health()
        totals = health.totals
        found: dict[str, float | Histogram] = {
            "loaded": health.is_ready,
            "loads_total": self.managed.num_loads,
            "num_running": health.num_running,
            "num_waiting": health.num_waiting,
            "kv_cache_usage": health.kv_cache_usage,
            "steps_total": totals.num_steps,
            "computed_tokens_total": totals.num_computed_tokens,
        }
        if self.checkpoint.kind != "encoder":
            found |= {
                "generation_tokens_total": totals.num_generated_tokens,
                "prefix_cache_queries_total": totals.num_queried_tokens,
                "prefix_cache_hits_total": totals.num_cached_tokens,
                "preemptions_total": totals.num_preemptions,
                "draft_tokens_total": totals.num_drafted_tokens,
                "draft_tokens_accepted_total": totals.num_accepted_tokens,
                "queue_time_seconds": self.engine.queue_time,
                "prefill_time_seconds": self.engine.prefill_time,
                "time_to_first_token_seconds": self.engine.first_token_time,
            }
        return found


class EngineModel:
    """One model whose engine this process owns: what comes into memory and leaves it; see `manager.Loadable`."""

    def __init__(
        self,
        settings: ModelSettings,
        files: ModelFiles,
        engine: EngineClient,
        load_text: Callable[[], Awaitable[str | None]],
    ) -> None:
        """`load_text` has what makes the model's prompts loaded, and says where the chat template comes from."""
        self.settings = settings
        self.checkpoint = files.checkpoint
        self.adapters = files.adapters
        """Those that the settings name."""
        self.engine = engine
        self.template: str | None = None
        """Where that of its conversations comes from, once it is known."""
        self.managed: ManagedModel
        self._load_text = load_text
        self._needed_bytes = 0

    @property
    def name(self) -> str:
        return self.settings.name

    async def load(self) -> None:
        """Start the engine, and load the tokenizer and the chat template while it loads the weights.

        Raises: CheckpointError when something cannot be loaded, OutOfMemory where more memory would help.
        """
        logger.info("%s: loading %s", self.name, self.checkpoint.path)
        try:
            await self.engine.start()
            self.template = await self._load_text()
            info = await self.engine.wait_ready()
        except LangPortError as error:
            kind = OutOfMemory if isinstance(error, OutOfMemory) else CheckpointError
            raise kind(f"{self.name}: {error}") from error
        logger.info(describe(self.settings, self.checkpoint, info, self.template))

    async def unload(self) -> None:
        """End the engine's process; what is known of the model stays."""
        self._needed_bytes = max(self._needed_bytes, self.engine.memory_bytes())
        await self.engine.stop()

    def needed_bytes(self) -> int:
        """What it took when it was loaded last, else by the size of its weights; 0 on a GPU."""
        info = self.engine.info
        if self.settings.engine.device.startswith("cuda") or (info and info.device != "cpu"):
            return 0
        weights = sum(path.stat().st_size for path in self.checkpoint.weight_files if path.exists())
        return self._needed_bytes or int(weights * LOADED_BYTES_PER_BYTE)

    def memory_bytes(self) -> int:
        """Of the engine's process."""
        return self.engine.memory_bytes()


class EngineAdapters:
    """Loads adapters into an engine of this process; see `Adapters`."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model

    async def load(self, name: str, path: Path) -> int:
        await self._model.managed.enter()
        try:
            return await self._model.engine.load_adapter(path)
        finally:
            self._model.managed.leave()

    def dismiss(self, name: str, number: int) -> None:
        pass

    def unload(self, number: int) -> None:
        self._model.engine.unload_adapter(number)


LOADED_BYTES_PER_BYTE = 1.25
"""Memory that a model takes while it loads, for each byte of its weights' files, before that was measured."""


def num_places(max_num_seqs: int) -> int:
    """Sequences let into an engine: more than fit into a step, so that a place is not empty for long."""
    return max_num_seqs + max(1, max_num_seqs // 8)


class LocalAdapter:
    """A LoRA adapter of a local model. Once unloaded, it goes on until its last request has ended."""

    def __init__(self, model: LocalModel, name: str, path: Path, number: int) -> None:
        """`number`: what the model's engine calls it."""
        self.name = name
        self.path = path
        self.generation = identity(model.settings, model.checkpoint.path, path)
        self._model = model
        self._number = number
        self._api: LocalApi | None = None
        self._num_open = 0
        self._is_wanted = True
        engine = AdapterEngine(model.engine, number)
        self.upstream = Upstream(
            name=name,
            app=partial(self.answer, engine),
            card=lambda: {**model.card(), "parent": model.name},
            is_ready=partial(model.is_ready, engine),
            places=model.places,
            is_metered=True,
            unload=self.unload,
            generation=lambda: self.generation,
        )
        """As the gateway sees it."""
        model.known_adapters[number] = self

    async def answer(self, engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        """The API of the adapter, which stays loaded meanwhile."""
        self._num_open += 1
        try:
            await self._model.managed.answer(partial(self._answer, engine), scope, receive, send)
        finally:
            self._num_open -= 1
            self._free_if_unused()

    async def _answer(self, engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        if self._api is None:
            await self._model.have_text()
            self._api = self._model.make_api(self.name, engine)
        await self._api(scope, receive, send)

    def unload(self) -> None:
        """No new request will come, to no process of this server."""
        self._model.adapter_loader.dismiss(self.name, self._number)
        self.leave()

    def leave(self) -> None:
        """No new request will come to this process."""
        self._is_wanted = False
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        if not self._is_wanted and not self._num_open:
            self._model.known_adapters.pop(self._number, None)
            self._model.adapter_loader.unload(self._number)


async def _serve(
    settings: Settings,
    read_again: Callable[[], Settings],
    files: Sequence[ModelFiles],
    remote: RemoteModels,
    listener: socket.socket,
    spawner: Spawner,
) -> int:
    store = store_of(settings)
    stored = stored_api(settings, store)
    parts = Parts.alone(
        settings,
        store,
        remote=remote,
        models=LocalModels(settings, files, remote, spawner, stored.runs),
        stored=stored,
        openapi=openapi_document,
    )
    return await serve_alone(parts, read_again, listener)


class LocalModels:
    """The models of this machine and the processes of their engines; see `assembly.Models`."""

    def __init__(
        self, settings: Settings, files: Sequence[ModelFiles], remote: RemoteModels, spawner: Spawner, runs: Runs
    ) -> None:
        self._settings = settings
        self._remote = remote
        self._spawner = spawner
        self._models: list[LocalModel] = []
        self._owned: list[EngineModel] = []
        for model, each, engine in zip(settings.models, files, engines_of(settings, files, spawner), strict=True):
            served = LocalModel(model, each, engine, settings.limits, runs)
            owned = EngineModel(model, each, engine, served.load_text)
            served.adapter_loader = EngineAdapters(owned)
            self._models.append(served)
            self._owned.append(owned)
        self._manager = manage(settings, self._owned)
        for served, owned in zip(self._models, self._owned, strict=True):
            served.managed = owned.managed

    def upstreams(self) -> Sequence[Upstream]:
        return [upstream for model in self._models for upstream in model.upstreams()]

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        return await load_at_start(self._manager, is_stop_wanted)

    def announce(self, url: str) -> None:
        announce_ready(self._settings, self._owned, self._remote, url)

    async def stop(self) -> None:
        await self._manager.stop()

    async def close(self) -> None:
        await asyncio.gather(*(model.engine.close() for model in self._owned))
        await self._spawner.close()


def manage(settings: Settings, models: Sequence[EngineModel]) -> ModelManager:
    """Who decides which of them are in memory."""
    manager = ModelManager(settings.max_loaded_models, free_host_bytes)
    starting = models_at_start(settings)
    for model in models:
        model.managed = manager.add(
            model,
            is_pinned=model.settings.pinned,
            starts=model.name in starting,
            idle_unload_s=model.settings.idle_unload_s,
        )
    return manager


def engines_of(
    settings: Settings, files: Sequence[ModelFiles], spawner: Spawner, doors: Iterator[str] | None = None
) -> list[EngineClient]:
    """One for each model, not started; `doors`: see there. Engines share the memory evenly; only those that generate,
    and are loaded at once, need a KV cache."""
    num_caches = sum(each.checkpoint.kind != "encoder" for each in files)
    num_caches = min(num_caches, settings.max_loaded_models or num_caches)
    return [
        EngineClient(
            model.name,
            each.checkpoint.path,
            model.engine,
            kv_cache_share=1 / max(num_caches, 1),
            adapters=tuple(each.adapters.values()),
            spawner=spawner,
            doors=doors,
        )
        for model, each in zip(settings.models, files, strict=True)
    ]


def models_at_start(settings: Settings) -> set[str]:
    """Names of those that are loaded with the server: as many as may be, pinned ones first."""
    wanted = [model for model in settings.models if model.load == "start"]
    wanted.sort(key=lambda model: not model.pinned)
    return {model.name for model in wanted[: settings.max_loaded_models]}


async def load_at_start(manager: ModelManager, is_stop_wanted: asyncio.Event) -> bool:
    """Load all models that are to be loaded with the server, at once; False when the stop came first.

    Raises: CheckpointError as soon as a model fails, the others are given up.
    """
    loading = asyncio.create_task(_load_all(manager))
    await until(loading, is_stop_wanted)
    if loading.done():
        await loading
        return True
    loading.cancel()
    await asyncio.wait([loading])
    return False


async def _load_all(manager: ModelManager) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for model in manager.models:
                if model.starts:
                    group.create_task(manager.start(model))
    except ExceptionGroup as failures:
        expected, unexpected = failures.split(LangPortError)
        if expected is None or unexpected is not None:
            raise
        raise CheckpointError("\n".join(str(failure) for failure in expected.exceptions)) from None


# What a person reads at start.


SHOWN_LABELS = 5
NO_TEMPLATE: dict[ModelKind, str] = {
    "decoder": "none, so chat is refused; give one with --chat-template",
    "encoder-decoder": "none, chat takes the messages' text as the encoder's input",
}


def describe(model: ModelSettings, checkpoint: Checkpoint, info: ModelInfo, template: str | None) -> str:
    """One line on a loaded model; `template` says where its chat template comes from."""
    facts = [
        f"{info.architecture} ({info.kind})",
        f"{info.num_parameters / 1e6:,.1f} M parameters in {info.dtype} on {info.device}",
        f"context {info.max_model_len:,} tokens",
    ]
    if checkpoint.classification is not None:
        facts.append(f"labels: {_shown_labels(checkpoint.classification)}")
    elif info.kind == "encoder":
        facts.append(f"vectors of {info.embedding_size}")
    else:
        in_int8 = " in int8" if info.kv_cache_dtype == "int8" else ""
        facts.append(
            f"KV cache {info.kv_cache_tokens:,} tokens{in_int8} ({info.kv_cache_blocks:,} blocks; "
            f"sequences of full length: {info.kv_cache_sequences:,})"
        )
        facts.append(f"chat template: {template or NO_TEMPLATE[info.kind]}")
    return f"{model.name}: {', '.join(facts)}, from {checkpoint.path}"


def _shown_labels(classification: Classification) -> str:
    labels = classification.labels
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(labels[:SHOWN_LABELS]) + more


def announce_ready(settings: Settings, models: Sequence[EngineModel], remote: RemoteModels, url: str) -> None:
    """Log what is served, and how to try it."""
    for model in models:
        if not model.managed.starts:
            logger.info("%s: loaded when it is asked for", model.name)
        for name, path in model.adapters.items():
            logger.info("%s: a LoRA adapter of %s, from %s", name, model.name, path)
    for line in remote.lines():
        logger.info(line)
    for alias, name in settings.gateway.aliases.items():
        logger.info("%s: an alias of %s", alias, name)
    key = "YOUR_KEY" if settings.gateway.api_keys else None
    first, checkpoint = models[0], models[0].checkpoint
    can_chat = first.template is not None
    example = curl_example(url, first.name, checkpoint.kind, checkpoint.classification, can_chat, key)
    logger.info("Ready on %s (Ctrl-C stops). Try: %s", url, example)


def curl_example(
    url: str, name: str, kind: ModelKind, classification: Classification | None, can_chat: bool, key: str | None
) -> str:
    """A command to paste into a shell that asks the model for what it does best."""
    body: dict[str, Any] = {"model": name}
    if classification is not None and len(classification.labels) == 1:
        path = "/v1/rerank"
        body |= {"query": "Who are you?", "documents": ["I am a cat.", "It will rain."]}
    elif classification is not None:
        path, body["input"] = "/v1/classify", "Hello!"
    elif kind == "encoder":
        path, body["input"] = "/v1/embeddings", "Hello!"
    elif kind == "decoder" and can_chat:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "Hello! What is your name?"}]
    else:
        path, body["prompt"] = "/v1/completions", "Once upon a time"
    authorization = f"-H 'Authorization: Bearer {key}' " if key else ""
    document = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {url}{path} -H 'Content-Type: application/json' {authorization}-d {document}"
