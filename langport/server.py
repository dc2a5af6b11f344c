"""Assembly: settings become engines, their APIs, the gateway and a listening server, and end again in order.

The HTTP server is up before the models are: /health answers at once, /ready says what is still loading, and
requests wait for their model.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import os
import shlex
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from langport.api.app import LocalApi
from langport.api.response_runs import Runs
from langport.api.stored import ENDPOINTS, STREAMED_BODIES, NothingStored, StoredApi
from langport.config import LimitSettings, ModelSettings, OverloadSettings, Settings
from langport.engine.client import AdapterEngine, EngineClient
from langport.engine.spawner import Spawner
from langport.errors import (
    CheckpointError,
    ConfigError,
    InvalidRequest,
    LangPortError,
    NotFound,
    StoreUnavailable,
    Unavailable,
)
from langport.figures import Histogram
from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.asgi import Receive, Scope, Send
from langport.gateway.bookkeeping import Bookkeeping, keep_books
from langport.gateway.limits import LimitStore
from langport.gateway.queue import Places
from langport.gateway.service import Endpoint, Service
from langport.gateway.upstream import Upstream
from langport.models.adapter import read_adapter
from langport.models.checkpoint import Checkpoint, read_checkpoint
from langport.models.hub import resolve_model
from langport.openapi import openapi_document
from langport.reload import Reloader
from langport.store.threaded import ThreadedStore, default_store, open_store
from langport.text.answer_format import AnswerFormat
from langport.text.chat_template import ChatTemplate
from langport.text.tokenizer import Tokenizer
from langport.types import Engine, ModelInfo, ModelKind

logger = logging.getLogger("langport")

DRAIN_S = 30
"""How long requests may go on after Ctrl-C or SIGTERM."""
KEEP_ALIVE_S = 75
"""Longer than the pools of common clients and proxies keep a connection, so that they close it and not we."""
BACKLOG = 2048


def serve(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Serve until Ctrl-C or SIGTERM; the process's exit code. SIGHUP reads the settings again with `read_again`.

    Raises: LangPortError when the address cannot be listened on, or a model cannot be read or loaded.
    """
    configure_logging(settings.log_level)
    with listen(settings.host, settings.port) as listener:
        files = read_models(settings.models)
        return _run(_serve(settings, read_again, files, listener))


def configure_logging(level: str) -> None:
    """LangPort's own lines from `level` on and other libraries' warnings, to stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.WARNING, force=True)
    logger.setLevel(level.upper())


def listen(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that a second server cannot take the address meanwhile.

    Raises: LangPortError saying what stands in the way.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LangPortError(f"--host {host} is no address of this machine ({error.strerror}).") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise LangPortError(_why_not_listening(error, host, port)) from None
    return listener


def _why_not_listening(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use, perhaps by another LangPort. Choose another with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this user has. Choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all networks."
    return f"Cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port."


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


def _run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    exit_code: int = uvloop.run(main)
    return exit_code


@dataclass(frozen=True)
class ModelText:
    """What makes tokens of a model's prompts, and answers of its tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    answers: AnswerFormat


class LocalModel:
    """One model of this machine: its engine, its text side and the API over both."""

    def __init__(
        self, settings: ModelSettings, files: ModelFiles, engine: EngineClient, limits: LimitSettings, runs: Runs
    ) -> None:
        self.settings = settings
        self.checkpoint = files.checkpoint
        self.adapters = [
            LocalAdapter(self, name, path, number) for number, (name, path) in enumerate(files.adapters.items())
        ]
        """Those that the settings name."""
        self.engine = engine
        self.info: ModelInfo | None = None
        self._limits = limits
        self._runs = runs
        self._text: ModelText | None = None
        self._api: LocalApi | None = None
        self._is_text_settled = asyncio.Event()
        self._is_closed = False

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def places(self) -> Places:
        """Of the engine, which its adapters share."""
        return Places(self.name, num_places(self.settings.engine.max_num_seqs))

    @property
    def template(self) -> ChatTemplate | None:
        """Of its conversations, once it is read."""
        return self._text.template if self._text else None

    async def load(self) -> None:
        """Start the engine, and load the tokenizer and the chat template while it loads the weights.

        Raises: CheckpointError when something cannot be loaded.
        """
        logger.info("%s: loading %s", self.name, self.checkpoint.path)
        try:
            await self.engine.start()
            self._text = await asyncio.to_thread(self._load_text)
            self._is_text_settled.set()
            self.info = await self.engine.wait_ready()
        except LangPortError as error:
            raise CheckpointError(f"{self.name}: {error}") from error
        template = self.template.source if self.template else None
        logger.info(describe(self.settings, self.checkpoint, self.info, template))

    async def make_api(self, name: str, engine: Engine) -> LocalApi:
        """The API under a public name, as soon as the tokenizer is there. Raises: Unavailable when it never will be."""
        await self._is_text_settled.wait()
        if self._text is None:
            raise Unavailable(f"The model {name} was not loaded: the server is stopping.")
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
        """The API of the model; a request that comes before it is there waits."""
        if self._api is None:
            self._api = await self.make_api(self.name, self.engine)
        await self._api(scope, receive, send)

    async def load_adapter(self, name: str, reference: str) -> Upstream:
        """Load a LoRA adapter beside the requests that run.

        Raises: NotFound (`lora_path`) when there is no such directory or hub id, InvalidRequest (`lora_path`) when it
        holds no adapter of this model, Unavailable while the engine does not run. Nothing has changed then.
        """
        try:
            path = await asyncio.to_thread(resolve_model, reference)
        except CheckpointError as error:
            raise NotFound(str(error), param="lora_path") from error
        try:
            await asyncio.to_thread(read_adapter, path)  # before the engine is disturbed
            number = await self.engine.load_adapter(path)
        except CheckpointError as error:
            raise InvalidRequest(str(error), param="lora_path") from error
        return LocalAdapter(self, name, path, number).upstream()

    async def close(self) -> None:
        """End the engine, and the requests that wait for it; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._is_text_settled.set()
            await self.engine.close()

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
        )
        return [own, *(adapter.upstream() for adapter in self.adapters)]

    def card(self) -> dict[str, Any]:
        """What /v1/models says besides the name."""
        context = self.info.max_model_len if self.info else self.checkpoint.max_model_len
        return {"max_model_len": context, "kind": self.checkpoint.kind}

    def is_ready(self, engine: Engine) -> tuple[bool, str]:
        """Whether the model answers through this engine, its own or one of its adapters', and why not."""
        if self._text is None:
            return False, "its tokenizer is loading"
        health = engine.health()
        return health.is_ready, health.reason

    def stats(self) -> dict[str, float | Histogram]:
        """Figures for /metrics, by the names that `gateway.metrics.ENGINE` gives them."""
        health = self.engine.health()
        totals = health.totals
        found: dict[str, float | Histogram] = {
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
                "queue_time_seconds": self.engine.queue_time,
                "prefill_time_seconds": self.engine.prefill_time,
                "time_to_first_token_seconds": self.engine.first_token_time,
            }
        return found


def num_places(max_num_seqs: int) -> int:
    """Sequences let into an engine: more than fit into a step, so that a place is not empty for long."""
    return max_num_seqs + max(1, max_num_seqs // 8)


class LocalAdapter:
    """A LoRA adapter of a local model. Once unloaded, it goes on until its last request has ended."""

    def __init__(self, model: LocalModel, name: str, path: Path, number: int) -> None:
        """`number`: what the model's engine calls it."""
        self.name = name
        self.path = path
        self._model = model
        self._number = number
        self._api: LocalApi | None = None
        self._num_open = 0
        self._is_wanted = True

    def upstream(self) -> Upstream:
        """As the gateway sees it."""
        engine = AdapterEngine(self._model.engine, self._number)
        return Upstream(
            name=self.name,
            app=partial(self.answer, engine),
            card=lambda: {**self._model.card(), "parent": self._model.name},
            is_ready=partial(self._model.is_ready, engine),
            places=self._model.places,
            is_metered=True,
            unload=self.unload,
        )

    async def answer(self, engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        """The API of the adapter, which stays loaded meanwhile."""
        self._num_open += 1
        try:
            if self._api is None:
                self._api = await self._model.make_api(self.name, engine)
            await self._api(scope, receive, send)
        finally:
            self._num_open -= 1
            self._free_if_unused()

    def unload(self) -> None:
        """No new request will come."""
        self._is_wanted = False
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        if not self._is_wanted and not self._num_open:
            self._model.engine.unload_adapter(self._number)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process before the engines are closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class _Stop:
    """What Ctrl-C and SIGTERM do: the first one drains, a second one ends at once."""

    is_wanted: asyncio.Event
    is_forced: asyncio.Event

    def __call__(self) -> None:
        if self.is_wanted.is_set():
            self.is_forced.set()
        self.is_wanted.set()


class _Hangup:
    """What SIGHUP does: the settings are read again. When it comes because the terminal has gone, the server stops."""

    def __init__(self, reloader: Reloader, stop: Callable[[], None]) -> None:
        self._reloader = reloader
        self._stop = stop
        self._had_terminal = _has_terminal()
        self._reloading: set[asyncio.Task[None]] = set()

    def __call__(self) -> None:
        if self._had_terminal and not _has_terminal():
            self._stop()
            return
        task = asyncio.create_task(self._reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self) -> None:
        with suppress(ConfigError):  # whose problems the log tells
            await self._reloader.reload()


def _has_terminal() -> bool:
    """Whether somebody at a terminal started this process and is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def apply_settings(gateway: Gateway, admission: Admission, settings: Settings) -> None:
    """Put settings into effect that need no restart. Raises: ConfigError; nothing has changed then."""
    gateway.reload(settings.gateway)
    admission.update(settings.overload)
    logger.setLevel(settings.log_level.upper())


async def _serve(
    settings: Settings, read_again: Callable[[], Settings], files: Sequence[ModelFiles], listener: socket.socket
) -> int:
    spawner = Spawner()
    store = None if settings.store.place == "none" else open_store(settings.store.place, default_store())
    stored = stored_api(settings, store)
    books = keep_books(settings, store)
    models = _models(settings, files, spawner, stored.runs)
    upstreams = [upstream for model in models for upstream in model.upstreams()]
    admission = Admission(settings.overload, store=limit_store(settings.overload))
    gateway = Gateway(
        upstreams,
        settings.gateway,
        telemetry=settings.telemetry,
        service=service_of(stored),
        admission=admission,
        books=books,
        openapi=openapi_document,
    )
    server = _Server(_uvicorn_config(gateway))
    stop = _Stop(asyncio.Event(), asyncio.Event())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    reloader = Reloader(settings, read_again, partial(apply_settings, gateway, admission))
    gateway.on_reload = reloader.reload_names
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _Hangup(reloader, stop))
    gateway.checks.start()
    url = _url(settings.host, listener.getsockname()[1])
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _announce_access(settings, books, url)
    try:
        if await _load(models, stop.is_wanted):
            _announce_ready(settings, models, url)
            await stored.start(gateway, lambda: gateway.num_in_flight)
            await _until(serving, stop.is_wanted)
            logger.info("Stopping. Open requests may take up to %d s; Ctrl-C ends them.", DRAIN_S)
    finally:
        server.should_exit = True
        gateway.drain()
        await stored.stop_work()
        await _close([model for model in models if not model.info])  # nobody waits for what never comes
        draining = asyncio.create_task(stored.drain(DRAIN_S))
        await _until(asyncio.ensure_future(asyncio.wait([serving, draining])), stop.is_forced)
        serving.cancel()
        draining.cancel()
        await gateway.checks.close()
        await admission.close()
        await _close(models)
        await spawner.close()
        if books is not None:
            await books.close()
        await stored.close()
        await asyncio.to_thread(gateway.close)
    return 0


def stored_api(settings: Settings, store: ThreadedStore | None) -> StoredApi | NothingStored:
    """What answers for stored objects, files and batches."""
    if store is None:
        return NothingStored()
    max_line_bytes = settings.gateway.max_body_bytes
    return StoredApi(settings.store, default_store(), max_line_bytes=max_line_bytes, store=store)


def limit_store(settings: OverloadSettings) -> LimitStore | None:
    """Where several servers count together; None: each process counts for itself.

    Raises: ConfigError for a wrong address, or without the library.
    """
    if settings.limits_store is None:
        return None
    try:
        from langport.gateway.shared_limits import SharedLimits
    except ImportError:
        raise ConfigError("--limits-store needs the redis package: pip install 'langport[redis]'") from None
    return SharedLimits(settings.limits_store, on_failure=settings.limits_on_failure)


def service_of(stored: StoredApi | NothingStored) -> Service:
    """The same as the gateway takes it."""
    endpoints = [Endpoint(*endpoint, streams_body=endpoint in STREAMED_BODIES) for endpoint in ENDPOINTS]
    return Service(stored, endpoints, stored.recorders)


def _uvicorn_config(app: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _models(settings: Settings, files: Sequence[ModelFiles], spawner: Spawner, runs: Runs) -> list[LocalModel]:
    """Engines that share the memory evenly; only those that generate need a KV cache."""
    num_caches = sum(each.checkpoint.kind != "encoder" for each in files)
    return [
        LocalModel(
            model,
            each,
            EngineClient(
                model.name,
                each.checkpoint.path,
                model.engine,
                kv_cache_share=1 / max(num_caches, 1),
                adapters=tuple(each.adapters.values()),
                spawner=spawner,
            ),
            settings.limits,
            runs,
        )
        for model, each in zip(settings.models, files, strict=True)
    ]


async def _load(models: Sequence[LocalModel], is_stop_wanted: asyncio.Event) -> bool:
    """Load all models at once; False when the stop came first.

    Raises: CheckpointError as soon as a model fails, the others are given up.
    """
    loading = asyncio.create_task(_load_all(models))
    await _until(loading, is_stop_wanted)
    if loading.done():
        await loading
        return True
    loading.cancel()
    await asyncio.wait([loading])
    return False


async def _load_all(models: Sequence[LocalModel]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for model in models:
                group.create_task(model.load())
    except ExceptionGroup as failures:
        expected, unexpected = failures.split(LangPortError)
        if expected is None or unexpected is not None:
            raise
        raise CheckpointError("\n".join(str(failure) for failure in expected.exceptions)) from None


async def _until(task: asyncio.Future[Any], event: asyncio.Event) -> None:
    """Wait until `task` is done or `event` is set; the task goes on, and its error stays in it."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _close(models: Sequence[LocalModel]) -> None:
    await asyncio.gather(*(model.close() for model in models))


# What a person reads at start.


def _url(host: str, port: int) -> str:
    """Where to reach the server from this machine."""
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _announce_access(settings: Settings, books: Bookkeeping | None, url: str) -> None:
    try:
        if books is not None:
            await books.keys.refresh()
    except StoreUnavailable:
        return  # said already, and until it is mended no request goes on
    if settings.gateway.api_keys:
        logger.info("%s needs an API key; %d may be used", url, len(settings.gateway.api_keys))
    elif books is not None and books.keys.has_any:
        logger.info("%s needs an API key; `langport keys list` shows them", url)
    elif _is_loopback(settings.host):
        logger.info("%s is open to everyone on this machine: no --api-key", url)
    else:
        logger.warning(
            "THE SERVER IS OPEN: everyone who can reach %s port %s may use it. Set --api-key to close it.",
            settings.host,
            url.rpartition(":")[2],
        )
    if settings.gateway.allow_adapter_updates:
        who = "every client that has a key" if settings.gateway.api_keys else "EVERY CLIENT"
        logger.warning("--allow-adapter-updates: %s may add and remove LoRA adapters", who)


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
    if info.kind == "encoder":
        facts.append(f"vectors of {info.embedding_size}")
    else:
        facts.append(
            f"KV cache {info.kv_cache_tokens:,} tokens ({info.kv_cache_blocks:,} blocks; "
            f"sequences of full length: {info.kv_cache_sequences:,})"
        )
        facts.append(f"chat template: {template or NO_TEMPLATE[info.kind]}")
    return f"{model.name}: {', '.join(facts)}, from {checkpoint.path}"


def _announce_ready(settings: Settings, models: Sequence[LocalModel], url: str) -> None:
    for model in models:
        for adapter in model.adapters:
            logger.info("%s: a LoRA adapter of %s, from %s", adapter.name, model.name, adapter.path)
    for alias, name in settings.gateway.aliases.items():
        logger.info("%s: an alias of %s", alias, name)
    key = "YOUR_KEY" if settings.gateway.api_keys else None
    example = curl_example(url, models[0].name, models[0].checkpoint.kind, models[0].template is not None, key)
    logger.info("Ready on %s (Ctrl-C stops). Try: %s", url, example)


def curl_example(url: str, name: str, kind: ModelKind, can_chat: bool, key: str | None) -> str:
    """A command to paste into a shell that asks the model for what it does best."""
    body: dict[str, Any] = {"model": name}
    if kind == "encoder":
        path, body["input"] = "/v1/embeddings", "Hello!"
    elif kind == "decoder" and can_chat:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "Hello! What is your name?"}]
    else:
        path, body["prompt"] = "/v1/completions", "Once upon a time"
    authorization = f"-H 'Authorization: Bearer {key}' " if key else ""
    document = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {url}{path} -H 'Content-Type: application/json' {authorization}-d {document}"
