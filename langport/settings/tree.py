"""Settings: defaults < YAML file < environment < command line, merged once into one frozen tree.

A field that carries a `Flag` is an option: `--name` on the command line, `name` in the file and
`LANGPORT_NAME` in the environment (COMPLETION_MAX_* keep the names they always had). The string under a field
is its documentation and its `--help`. Nothing here looks at a checkpoint or contacts a hub.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml

from langport.errors import ConfigError
from langport.settings.fields import HIDDEN, Count, Flag, Key, Seconds, Text, nearest
from langport.settings.upstreams import (
    UPSTREAM,
    UpstreamSettings,
    parse_upstreams,
    shown_upstream,
    with_keys,
    with_upstreams,
)

SECRETS = frozenset(("api_key", "upstream_key", "admin_key"))
"""Options whose values are shown nowhere."""
KEYS = "a key without spaces (and not the (hidden) that `langport config show` prints)"
MONEY = 10**9
"""Parts in which money is counted: billionths of the operator's unit."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's tokens cost, in any unit of money, per million."""

    input: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    """Prompt tokens."""
    output: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    """Completion tokens."""


PRICE = "MODEL=INPUT:OUTPUT with what a million tokens of each cost (in the file also `MODEL: {input: 1, output: 2}`)"
Place = Annotated[str, msgspec.Meta(pattern=r"^(?!.*\(hidden\))(postgres(ql)?(\+psycopg)?://.+|(?!.*://).+)$")]
PLACE = "a file, postgresql://USER:PASSWORD@HOST/DATABASE, memory or none"
LORA = "NAME=DIRECTORY or MODEL:NAME=DIRECTORY (in the file also `NAME: DIRECTORY`)"
Device = Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]


ToolCallParser = Literal[
    "auto", "none", "template", "hermes", "llama3_json", "mistral", "granite", "command_a", "jamba", "deepseek", "kimi",
    "pythonic", "llama4_pythonic", "lfm2", "qwen3_coder", "glm", "minimax", "json",
]  # fmt: skip
ReasoningParser = Literal["auto", "none", "think", "mistral", "seed_oss", "command_a", "kimi"]


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one model's engine uses the machine."""

    device: Annotated[Device, Flag("DEVICE", expects="auto, cpu, cuda or cuda:N")] = "auto"
    """Where the model runs: auto, cpu, cuda or cuda:N. auto takes a GPU when PyTorch sees one."""
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], Flag("DTYPE")] = "auto"
    """Format of weights and activations: auto, bfloat16, float16 or float32. auto is the checkpoint's own."""
    quantization: Annotated[Literal["none", "int8", "int4"], Flag("BITS")] = "none"
    """Hold linear layers in fewer bits than dtype: none, int8 (one scale per row) or int4 (one per 128 values). On a
    CPU their inputs become 8-bit numbers, too, with a scale per 128, and the layer that makes logits has int8 in both;
    elsewhere it stays in dtype."""
    max_model_len: Annotated[Count | None, Flag("N")] = None
    """Longest context in tokens; a checkpoint made for less keeps its own. A smaller one saves memory."""
    max_num_seqs: Annotated[Count, Flag("N")] = 64
    """Most sequences in one step, 1 or more; further ones wait. 64 keeps a step short and the device busy."""
    max_num_batched_tokens: Annotated[Count | None, Flag("N")] = None
    """Most tokens in one step, of prompts and completions together. When not given, a CPU's steps are kept at about a
    quarter of a second by their measured speed, with 32 to 256 tokens; a GPU's have up to 4,096."""
    kv_cache_memory: Annotated[Count | None, Flag("SIZE", form="size")] = None
    """Memory of each model's KV cache, e.g. 2GiB or 512MB. Half of the free memory is shared if unset."""
    logprobs_mode: Annotated[Literal["raw", "processed"], Flag("MODE")] = "raw"
    """What log-probabilities describe: raw, the model's own distribution, or processed, the one that is drawn from:
    after penalties, bias and temperature. raw is what evaluations and OpenAI's documentation expect."""
    speculation: Annotated[Literal["auto", "ngram", "off"], Flag("HOW")] = "auto"
    """Draft tokens that repeat the prompt, the answer or its prediction, and let one step confirm several: ngram, off,
    or auto, which is ngram where no answer can change by it, that is with the native CPU kernels."""
    speculation_tokens: Annotated[Count, Flag("N")] = 15
    """Most tokens drafted for a sequence in a step, 1 or more. Fewer are where more would cost more than they bring."""
    num_threads: Annotated[Count | None, Flag("N")] = None
    """CPU threads of each model's engine. When not given all cores, or one for a model too small to gain from more."""
    trust_remote_code: Annotated[bool, Flag(form="switch")] = False
    """Run Python code that comes with a checkpoint (its auto_map), with all rights of this server, where LangPort and
    transformers have no code of their own for the model. Only for checkpoints whose authors you trust."""


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest values a request may ask for; one above is refused with 400."""

    completion_max_n: Annotated[Count, Flag("N", environment="COMPLETION_MAX_N")] = 128
    """Most choices per prompt (`n`), 1 or more. 128 as OpenAI has it."""
    completion_max_logprobs: Annotated[
        Annotated[int, msgspec.Meta(ge=0)], Flag("N", environment="COMPLETION_MAX_LOGPROBS")
    ] = 5
    """Most log-probabilities per token in completions, 0 or more. 5 as OpenAI has it."""
    completion_max_tokens: Annotated[Count | None, Flag("N", environment="COMPLETION_MAX_TOKENS")] = None
    """Most completion tokens a request may ask for; the model's context when not given."""
    completion_max_prompt: Annotated[Count | None, Flag("N", environment="COMPLETION_MAX_PROMPT")] = None
    """Longest prompt in tokens; the model's context when not given."""


class DeploymentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the models behind a route."""

    model: Text
    """A name under which something is served: a local model, an adapter or a remote one."""
    weight: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Its share of the requests, beside the weights of the others. When not given that of the remote server, else 1."""
    priority: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0 is asked first; a larger number only while none of a smaller one is healthy."""


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a request is asked again, all only while its client has been sent nothing."""

    attempts: Count = 3
    """Most tries among the route's own deployments, the first included; 1 never retries."""
    within_s: Seconds = 30.0
    """Seconds after which a request is not asked again."""
    backoff_s: Annotated[float, msgspec.Meta(ge=0)] = 0.05
    """Longest pause before a deployment that failed is asked once more, doubled with each further failure. The pause is
    drawn evenly from 0 to that. Another deployment is asked without any."""
    max_backoff_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """Longest pause there is."""
    budget: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    """Failed retries as a share of all requests: more are not made, but for ten. 0 allows none at all."""


class HealthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a deployment is left alone, and for how long."""

    max_failures: Count = 3
    """Failures in a row that are too many."""
    failure_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Share of failures among the latest 20 requests that is too large; ten of them must be there."""
    cooldown_s: Seconds = 1.0
    """Seconds that it is left alone; doubled each time that the request which tries it then fails."""
    max_cooldown_s: Seconds = 60.0
    """Most seconds that it is left alone for failures. What a 429's Retry-After says is kept to, up to an hour."""
    check_interval_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Seconds between two looks at whether it lives, where it is a remote one; 0 never looks."""
    when_down: Literal["try", "refuse"] = "try"
    """What a request gets while all are cooling down: try asks them all the same, each once, so that a wrong suspicion
    loses nothing; refuse answers 503 at once with Retry-After."""


class RouteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several deployments behind one public name."""

    deployments: Annotated[tuple[DeploymentSettings, ...], msgspec.Meta(min_length=1)]
    """Who answers."""
    strategy: Literal["weighted", "least-loaded", "prefix-aware", "sticky"] = "weighted"
    """How one is chosen among the healthy ones of the same priority: weighted, by the weights alone; least-loaded, who
    has the least to do; prefix-aware, who saw the beginning of the conversation last, and has it cached; sticky, always
    the same for the same `prompt_cache_key` or `user`."""
    load_factor: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    """With prefix-aware: how many times busier than the least loaded one the chosen may be."""
    fallbacks: tuple[Text, ...] = ()
    """Other models or routes, asked in this order when none of the deployments answered."""
    retry: RetrySettings = RetrySettings()
    """How often a request is asked again."""
    health: HealthSettings = HealthSettings()
    """When a deployment is left alone."""
    hedge: bool = False
    """Ask a second deployment for embeddings when the first takes longer than 95 % of the latest did, and take the
    answer that comes first."""


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the HTTP side accepts, and from whom."""

    api_keys: Annotated[tuple[Key, ...], Flag("KEY", name="api_key", form="list", expects=KEYS)] = ()
    """A key that clients must send as bearer token; repeat it for several. Without one the server is open."""
    admin_key: Annotated[Key | None, Flag("KEY", expects=KEYS)] = None
    """A key that opens /admin, where keys are made and usage is read. Without one there is no /admin."""
    record_usage: Annotated[bool, Flag(form="switch")] = False
    """Record what requests use even where no key was made (`langport keys create`) and there is no --admin-key."""
    metrics_without_key: Annotated[bool, Flag(form="switch")] = False
    """Let /metrics be read without a key, as /health is."""
    prices: Annotated[dict[str, Price], Flag("MODEL=IN:OUT", name="price", form="list", expects=PRICE)] = {}
    """What a million prompt and completion tokens of a model cost, in any unit of money; usage and budgets count it."""
    allowed_origins: Annotated[tuple[Text, ...], Flag("ORIGIN", form="list")] = ()
    """Web origins whose pages may call this server (CORS), e.g. https://chat.example.org, or * for all."""
    max_body_bytes: Annotated[Count, Flag("SIZE", name="max_body_size", form="size")] = 32 * 1024 * 1024
    """Largest request body, e.g. 64MiB; a larger one gets 413. 32 MiB holds a long batch of embeddings."""
    aliases: Annotated[dict[str, str], Flag("FROM:TO", name="redirect", form="list")] = {}
    """Serve the model TO under the name FROM as well; repeat it for several."""
    allow_adapter_updates: Annotated[bool, Flag(form="switch")] = False
    """Let clients add and remove LoRA adapters while serving (POST /v1/load_lora_adapter and /v1/unload_lora_adapter).
    They name directories of this machine or hub ids, so allow it only where every client may."""
    routes: dict[str, RouteSettings] = {}
    """Public names that stand for several models; only in the file."""
    deployment_header: Annotated[bool, Flag(form="switch")] = True
    """Tell in the header x-langport-deployment which of a route's deployments answered."""
    response_cache_bytes: Annotated[Count | None, Flag("SIZE", name="response_cache", form="size")] = None
    """Give repeatable requests (temperature 0, a seed, embeddings) the answer that the same key got before, from so
    much memory of this server, e.g. 256MiB. Off unless set, or --response-cache-store is."""
    response_cache_ttl_s: Annotated[Count, Flag("SECONDS", name="response_cache_ttl")] = 3600
    """Seconds for which a kept answer is given again."""
    response_cache_store: Annotated[Text | None, Flag("URL")] = None
    """Redis or Valkey server in which several servers keep their answers, e.g. redis://localhost:6379/1 (needs
    `pip install langport[redis]`), behind the memory of --response-cache if that is set, too."""
    unknown_parameters: Annotated[Literal["report", "refuse"], Flag("WHAT")] = "report"
    """What becomes of request fields that nobody documents: report lists them in the answer's x-langport-ignored
    header, refuse answers 400. A request may choose with the header x-langport-strict: true or false."""


class OverloadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is admitted, and what becomes of more than that."""

    max_queue_s: Annotated[Annotated[int, msgspec.Meta(ge=0)], Flag("SECONDS", name="max_queue_wait")] = 30
    """Most seconds that a request waits for its turn; one that could not start by then is refused at once with 503. 0
    never waits. A client may say less with the header x-langport-max-wait."""
    max_queued_tokens: Annotated[Count, Flag("N")] = 500_000
    """Most tokens that wait for one model, as estimated; further requests get 503. 500,000 is half a minute of a fast
    GPU, and bounds the memory that waiting takes."""
    max_held_bodies_bytes: Annotated[Count, Flag("SIZE", name="max_held_bodies", form="size")] = 1024 * 1024 * 1024
    """Most memory that the bodies of all open requests take, e.g. 512MiB; further ones get 503 while they are read.
    1 GiB is 32 of the largest, or a quarter of a million of 4 KiB."""
    max_connections: Annotated[Count | None, Flag("N")] = None
    """Most connections of clients; when there are more, those end first that wait for a request. Half of the files that
    the process may open, if unset."""
    client_timeout_s: Annotated[Count, Flag("SECONDS", name="client_timeout")] = 60
    """Most seconds that a client may take for the head of a request, let its body stand still or leave its answer
    unread. 60 as other servers have it."""
    key_requests_per_minute: Annotated[Count | None, Flag("N")] = None
    """Requests per minute of each key that has no limit of its own; more get 429. Not limited if unset."""
    key_tokens_per_minute: Annotated[Count | None, Flag("N")] = None
    """Prompt and completion tokens per minute of each key that has no limit of its own. Not limited if unset."""
    key_max_concurrency: Annotated[Count | None, Flag("N")] = None
    """Requests at once of each key that has no limit of its own. Not limited if unset."""
    model_requests_per_minute: Annotated[Count | None, Flag("N")] = None
    """Requests per minute to each model, of all keys together. Not limited if unset."""
    model_tokens_per_minute: Annotated[Count | None, Flag("N")] = None
    """Prompt and completion tokens per minute of each model, of all keys together. Not limited if unset."""
    limits_store: Annotated[Text | None, Flag("URL")] = None
    """Redis or Valkey server in which several servers count together, e.g. redis://localhost:6379/0 (rediss:// for TLS,
    unix:///path for a socket; needs `pip install langport[redis]`). When not given each server counts for itself."""
    limits_on_failure: Annotated[Literal["answer", "refuse"], Flag("WHAT")] = "answer"
    """What new requests with limits get while the limits' store cannot be used: answer, and each process counts for
    itself, or refuse, a 503. Those that run are not touched."""


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What outlives a request: stored chat completions, responses, files and batches."""

    place: Annotated[Place | None, Flag("PATH|URL|memory|none", name="store", expects=PLACE)] = None
    """File that keeps stored chat completions, responses, files, batches, keys and usage, or a PostgreSQL database by
    its URL (postgresql://user:password@host/database); memory forgets them, none keeps nothing. When not given
    langport/store.db in $XDG_STATE_HOME (~/.local/state), made when something is stored first."""
    files: Annotated[Text | None, Flag("DIR", name="store_files")] = None
    """Folder with the contents of uploaded files. When not given it is beside the store's file; servers that share a
    database must share it."""
    retention_days: Annotated[Annotated[int, msgspec.Meta(ge=0)], Flag("DAYS", name="store_retention_days")] = 30
    """Days after which stored chat completions, responses, batches and their files are removed; 0 keeps them. 30 as
    OpenAI has."""
    on_failure: Annotated[Literal["answer", "refuse"], Flag("WHAT", name="store_on_failure")] = "answer"
    """What a request with `store: true` gets while the store cannot be used: answer, its answer, which is not kept, or
    refuse, a 503 before the model is asked. An answer that has begun is never lost either way."""
    keys_on_failure: Annotated[Literal["answer", "refuse"], Flag("WHAT")] = "answer"
    """What requests with keys get while the store of keys cannot be used: answer, as the keys and budgets were last
    known, with usage written down later; or refuse, a 503. Before they were read once it is always a 503."""
    max_file_bytes: Annotated[Count, Flag("SIZE", name="max_file_size", form="size")] = 512 * 1024 * 1024
    """Largest uploaded file, e.g. 64MiB; 512 MiB as OpenAI has it, and never more than the disk has room for."""
    batch_concurrency: Annotated[Count, Flag("N")] = 8
    """Most lines of batches answered at once, 1 or more; a quarter of it while other requests are being answered."""


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator sees of requests, beside the log of the server itself."""

    access_log: Annotated[Literal["text", "json", "off"], Flag("FORM")] = "text"
    """One line a request: text, for people, with the server's own log; json, with tokens and times, to
    --access-log-file; or off. Neither ever holds a key or what was asked."""
    access_log_file: Annotated[Text, Flag("PATH|stdout|stderr")] = "stderr"
    """Where the json access log goes. A file is appended to, and made anew when it was moved away, at most a second
    after that."""
    metrics_by_key: Annotated[bool, Flag(form="switch")] = False
    """Count requests and tokens in /metrics for each key's name as well. Off, since every key adds time series."""
    otlp_traces_endpoint: Annotated[Text | None, Flag("URL")] = None
    """Send OpenTelemetry traces to this OTLP/HTTP address, e.g. http://localhost:4318/v1/traces. Needs the extra otel;
    OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and the like are honoured."""


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One served model."""

    name: str
    """The name that clients use."""
    reference: str
    """A local directory, or a hub id with an optional @revision."""
    engine: EngineSettings = EngineSettings()
    """This model's share of the machine."""
    chat_template: Annotated[Text | None, Flag("FILE|NAME")] = None
    """A Jinja file, or the name of a built-in template, for models without one or in place of theirs."""
    tool_call_parser: Annotated[ToolCallParser, Flag("NAME")] = "auto"
    """How the model writes calls of tools: the way of a family (hermes, llama3_json, mistral, deepseek, pythonic, ...),
    json (no marks), template (as its chat template shows), or none: calls stay in the text. auto finds it out."""
    reasoning_parser: Annotated[ReasoningParser, Flag("NAME")] = "auto"
    """The marks around the model's reasoning: think (<think>), mistral, seed_oss, command_a or kimi, or none: it stays
    in the text. auto finds it out."""
    sampling_defaults: Annotated[Literal["openai", "model"], Flag("WHOSE")] = "openai"
    """Whose defaults apply to what a request leaves out: openai's, or the model's generation_config.json."""
    load: Annotated[Literal["start", "on_request"], Flag("WHEN")] = "start"
    """When the model is loaded: start, with the server, or on_request, when it is asked for first."""
    pinned: Annotated[bool, Flag(form="switch")] = False
    """Once loaded the model stays loaded, idle or not, whatever other models need."""
    idle_unload_s: Annotated[Annotated[int, msgspec.Meta(ge=0)], Flag("SECONDS", name="idle_unload")] = 0
    """Seconds without a request after which the model is unloaded; the next request loads it again. 0: never."""
    lora: Annotated[dict[str, str], Flag("[MODEL:]NAME=DIR", form="list", expects=LORA)] = {}
    """Serve the LoRA adapter in DIR (or of a hub id) as the model NAME; of the first model unless one is named."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `langport serve` is told."""

    host: Annotated[Text, Flag("ADDRESS")] = "127.0.0.1"
    """Address to listen on. 127.0.0.1 is this machine only; 0.0.0.0 is every network it is on."""
    port: Annotated[Annotated[int, msgspec.Meta(ge=0, le=65535)], Flag("PORT")] = 8000
    """TCP port, 1 to 65535; 0 takes a free one."""
    workers: Annotated[Annotated[int, msgspec.Meta(ge=1, le=256)], Flag("N")] = 1
    """Processes that answer HTTP on this port, 1 to 256; limits, metrics and models are one for all of them. One does
    for most: it relays thousands of requests a second, and engines have processes of their own."""
    models: tuple[ModelSettings, ...] = ()
    """The served models of this machine, in the order of /v1/models."""
    upstreams: Annotated[
        tuple[UpstreamSettings, ...], Flag("[NAME=]URL[#MODEL]", name="upstream", form="list", expects=UPSTREAM)
    ] = ()
    """Serve a remote server's model MODEL as NAME as well; without NAME all models that it lists. Repeat it for
    several; keys, timeouts, TLS and more are set in the file, under upstreams."""
    max_loaded_models: Annotated[Count | None, Flag("N")] = None
    """Most models in memory at once; another one that is asked for takes the place of the one that was not used for
    longest, when its requests have ended. At start the first N are loaded, pinned ones before others. All if unset."""
    gateway: GatewaySettings = GatewaySettings()
    """What the HTTP side accepts."""
    limits: LimitSettings = LimitSettings()
    """The largest values a request may ask for."""
    overload: OverloadSettings = OverloadSettings()
    """What is admitted, and what becomes of more than that."""
    store: StoreSettings = StoreSettings()
    """What outlives a request."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """What an operator sees of requests."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Flag("LEVEL")] = "info"
    """How much is logged: debug, info, warning or error."""


# The options, as read from the fields above.


@dataclass(frozen=True)
class Option:
    """One field that a user can set, and how."""

    name: str
    """As in the file: api_key. --api-key and LANGPORT_API_KEY are made from it."""
    section: type[msgspec.Struct]
    field: str
    type: Any
    flag: Flag

    @property
    def switch(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return self.flag.environment or f"LANGPORT_{self.name.upper()}"


_SECTIONS = (
    Settings, GatewaySettings, EngineSettings, ModelSettings, LimitSettings, OverloadSettings, StoreSettings,
    TelemetrySettings, UpstreamSettings,
)  # fmt: skip


def _options() -> Iterator[Option]:
    for section in _SECTIONS:
        for field, hint in get_type_hints(section, include_extras=True).items():
            for flag in getattr(hint, "__metadata__", ()):
                if isinstance(flag, Flag):
                    yield Option(flag.name or field, section, field, hint, flag)


OPTIONS = tuple(_options())
"""Every option, in the order of the help."""
MODEL_OPTIONS = tuple(option for option in OPTIONS if option.section in (EngineSettings, ModelSettings))
"""Those that an entry under `models:` may set for its model alone; there they win over the general ones."""
GATEWAY_OPTIONS = tuple(
    option
    for option in OPTIONS
    if option not in MODEL_OPTIONS and option.section is not LimitSettings and option.name != "max_loaded_models"
)
"""Those that mean something where there are no local models."""
_LOCAL_OPTIONS = tuple(option for option in OPTIONS if option not in GATEWAY_OPTIONS)
LOCAL_NAMES = frozenset(("models", *(option.name for option in _LOCAL_OPTIONS)))
LOCAL_VARIABLES = frozenset(("LANGPORT_MODELS", *(option.variable for option in _LOCAL_OPTIONS)))
"""The others, as they are called in the file and in the environment."""


def field_docs() -> dict[Option, str]:
    """The string under each option's field. Reads the settings' source, so only --help asks for it."""
    docs: dict[tuple[str, str], str] = {}
    sources = [inspect.getsource(sys.modules[name]) for name in {section.__module__ for section in _SECTIONS}]
    for node in (node for source in sources for node in ast.parse(source).body):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(doc))),
                    ):
                        docs[node.name, name] = doc
    return {option: docs[option.section.__name__, option.field] for option in OPTIONS}


# Reading them.

BUNDLED_MODELS_PATH = Path(__file__).parent / "demo" / "models"
BUNDLED_MODELS = ("langport-demo-chat", "langport-demo-text2text", "langport-demo-embed")
"""Served when no model is named; each name also works as a reference."""

SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
SIZE_UNITS |= {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class _Given:
    """A value as the user wrote it, and where."""

    value: object
    source: str


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
    *,
    with_models: bool = True,
) -> Settings:
    """Merge defaults < `file` < `environment` < `flags` into one tree; a list replaces the list below it.

    Without models only upstreams are served, and what concerns local models is refused.

    `flags` maps option names, and `models`, to what was given on the command line. An entry under `models:`
    in the file may override engine and model options for its model; there it wins over the general value.
    Raises: ConfigError with all problems at once.
    """
    problems: list[str] = []
    content = _read_file(file, problems) if file else {}
    if not with_models:
        problems.extend(
            f"{file}: {name!r} concerns models of this machine, and `langport gateway` serves none; "
            "take it out, or use `langport serve`."
            for name in content
            if name in LOCAL_NAMES
        )
        environment = {name: value for name, value in environment.items() if name not in LOCAL_VARIABLES}
    given = {
        **_from_file(content, file, problems),
        **_from_environment(environment),
        **{name: _Given(value, _flag_source(name)) for name, value in flags.items()},
    }
    values = {option: _parse(option, given[option.name], problems) for option in OPTIONS if option.name in given}
    adapters = values.pop(_option("lora"), None) or {}
    models = _with_adapters(_models(given.get("models"), values, problems), adapters, problems) if with_models else ()
    _check_pinned(models, values.get(_option("max_loaded_models")), problems)
    upstreams = with_keys(values.pop(_option("upstream"), ()) or (), values.pop(_option("upstream_key"), ()), problems)
    served = [name for model in models for name in (model.name, *model.lora)]
    served = with_upstreams(served, upstreams, problems)
    lists_models = any(upstream.name is None for upstream in upstreams)
    routes = _routes(content.get("routes"), f"{file}: routes", served, problems, is_open=lists_models)
    redirects = values.pop(_option("redirect"), ())
    aliases = _aliases(redirects, [*served, *routes], problems, is_open=lists_models)
    if problems:
        raise ConfigError(*problems)
    return Settings(
        **_fields(Settings, values),
        models=models,
        upstreams=upstreams,
        gateway=GatewaySettings(**_fields(GatewaySettings, values), aliases=aliases, routes=routes),
        limits=LimitSettings(**_fields(LimitSettings, values)),
        overload=OverloadSettings(**_fields(OverloadSettings, values)),
        store=StoreSettings(**_fields(StoreSettings, values)),
        telemetry=TelemetrySettings(**_fields(TelemetrySettings, values)),
    )


def _option(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def _fields(section: type[msgspec.Struct], values: Mapping[Option, Any]) -> dict[str, Any]:
    return {option.field: value for option, value in values.items() if option.section is section}


def _read_file(file: Path, problems: list[str]) -> dict[str, object]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        problems.append(f"{file} cannot be read: {error.strerror}. Check what --config names.")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{file} is not valid YAML: {' '.join(str(error).split())}.")
        return {}
    if content is not None and not isinstance(content, dict):
        problems.append(f"{file} must hold `name: value` lines, such as `port: 8000`.")
        return {}
    return {str(key).replace("-", "_"): value for key, value in (content or {}).items()}


def _from_file(content: Mapping[str, object], file: Path | None, problems: list[str]) -> dict[str, _Given]:
    content = dict(content)
    if "upstreams" in content:
        content.setdefault("upstream", content.pop("upstreams"))
    options = [option.name for option in OPTIONS] + ["models"]
    known = [*options, "upstreams", "routes"]
    problems.extend(
        f"{file}: there is no setting {name!r}{nearest(name, known)}" for name in content if name not in known
    )
    return {
        name: _Given(value, f"{file}: {name}")
        for name, value in content.items()
        if name in options and value is not None
    }


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    """An empty variable is one that is not set."""
    variables = {option.name: option.variable for option in OPTIONS} | {"models": "LANGPORT_MODELS"}
    return {
        name: _Given(environment[variable], variable)
        for name, variable in variables.items()
        if environment.get(variable)
    }


def _flag_source(name: str) -> str:
    return "the models on the command line" if name == "models" else _option(name).switch


def _parse(option: Option, given: _Given, problems: list[str]) -> Any:
    """The field's value; a wrong one is noted among the problems and gives None."""
    try:
        if option.name == "redirect":
            return _parse_redirects(given.value)
        if option.name == "lora":
            return _parse_adapters(given.value)
        if option.name == "price":
            return _parse_prices(given.value)
        if option.name == "upstream":
            return parse_upstreams(_parse_list(given.value), given.source, problems)
        if option.name == "upstream_key":
            return msgspec.convert(given.value if isinstance(given.value, list) else [given.value], list[Key])
        if option.flag.form == "list":
            is_whole = option.name == "api_key" and not isinstance(given.value, str)  # a key may hold a comma
            return msgspec.convert(given.value if is_whole else _parse_list(given.value), option.type)
        if option.flag.form == "switch":
            return SWITCH_WORDS[str(given.value).strip().lower()]
        value = _parse_size(given.value) if option.flag.form == "size" else given.value
        if isinstance(value, bool):
            raise ValueError("True is no number and no text")
        return msgspec.convert(value, option.type, strict=False)
    except (ValueError, KeyError):  # msgspec.ValidationError is a ValueError
        shown = "the value" if option.name in SECRETS else hide_password(repr(given.value))
        problems.append(f"{given.source}: {shown} is not {_expectation(option)}.")
        return None


def _parse_list(value: object) -> list[object]:
    """The items of a YAML list or a repeated flag, or of text; commas separate further ones in each."""
    items = value if isinstance(value, list | tuple) else [value]
    parts = [item.split(",") if isinstance(item, str) else [item] for item in items]
    return [part.strip() if isinstance(part, str) else part for group in parts for part in group]


def _parse_redirects(value: object) -> list[str | tuple[str, str]]:
    """Texts as they are, since only the models' names say where to split; a YAML mapping's pairs as pairs."""
    if isinstance(value, dict):
        return [(str(alias), str(target)) for alias, target in value.items()]
    return list(msgspec.convert(_parse_list(value), list[Text]))


def _parse_adapters(value: object) -> dict[str, str]:
    """What is left and right of each `=`, or a YAML mapping."""
    if isinstance(value, dict):
        return msgspec.convert(value, dict[Text, Text])
    pairs = [text.partition("=") for text in msgspec.convert(_parse_list(value), list[Text])]
    return msgspec.convert({name: directory for name, _, directory in pairs}, dict[Text, Text])


def _parse_prices(value: object) -> dict[str, Price]:
    """MODEL=INPUT:OUTPUT, or a YAML mapping to prices."""
    if isinstance(value, dict):
        return msgspec.convert(value, dict[Text, Price])
    prices = {}
    for text in msgspec.convert(_parse_list(value), list[Text]):
        model, _, price = text.rpartition("=")
        given, _, made = price.partition(":")
        prices[model] = {"input": float(given), "output": float(made)}
    return msgspec.convert(prices, dict[Text, Price])


def _parse_size(value: object) -> object:
    """Bytes: a number, or text such as 512MB, 2GiB or 2G (GB is 1000**3, GiB 1024**3)."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?i?)b?", value.strip().lower())
    if not match or match[2] not in SIZE_UNITS:
        raise ValueError(value)
    return int(float(match[1]) * SIZE_UNITS[match[2]])


def _expectation(option: Option) -> str:
    """What a valid value is, in words."""
    if option.flag.expects:
        return option.flag.expects
    if option.name == "redirect":
        return "FROM:TO"
    if option.flag.form == "list":
        return "a list of texts, none of them empty (numbers in quotes)"
    if option.flag.form == "switch":
        return "true or false"
    if option.flag.form == "size":
        return "a size such as 512MB or 2GiB"
    match msgspec.inspect.type_info(option.type):
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case msgspec.inspect.IntType(ge=low, le=high) if high is not None:
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.IntType(ge=low) | msgspec.inspect.UnionType(types=(msgspec.inspect.IntType(ge=low), *_)):
            return f"a whole number, {low} or more"
    return "a text that is not empty (a number in quotes)"


# Models and their aliases.


def _models(given: _Given | None, values: Mapping[Option, Any], problems: list[str]) -> tuple[ModelSettings, ...]:
    source = given.source if given else "the bundled models"
    entries = _model_entries(given.value) if given else [*BUNDLED_MODELS]
    models = [model for entry in entries if (model := _model(entry, source, values, problems))]
    if not entries:
        problems.append(f"{source}: the list is empty. Leave it out to serve the bundled demo models.")
    return tuple(models)


def _with_adapters(
    models: tuple[ModelSettings, ...], adapters: Mapping[str, str], problems: list[str]
) -> tuple[ModelSettings, ...]:
    """Give each model the adapters that name it, the first one the others; all names must differ."""
    given: dict[str, dict[str, str]] = {model.name: {} for model in models}
    for text, directory in adapters.items():
        colons = [match.start() for match in re.finditer(":", text)]
        base = next((text[:colon] for colon in colons if text[:colon] in given), None)
        name = text if base is None else text[len(base) + 1 :]
        if not name:
            problems.append(f"--lora {text}={directory}: the adapter has no name. Write {LORA}.")
        elif given:
            given[base or models[0].name][name] = directory
    models = tuple(msgspec.structs.replace(model, lora={**given[model.name], **model.lora}) for model in models)
    names = [name for model in models for name in (model.name, *model.lora)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(
                f"{names.count(name)} models are named {name!r}. Give each its own name: NAME=MODEL on the command "
                "line, `name:` in the file; an adapter's is left of its directory."
            )
    return models


def _check_pinned(models: Sequence[ModelSettings], max_loaded: int | None, problems: list[str]) -> None:
    """Pinned models must leave a place for the others."""
    pinned = [model.name for model in models if model.pinned]
    others = len(models) - len(pinned)
    if max_loaded is not None and len(pinned) + (others > 0) > max_loaded:
        rest = f", and {others} others need a place, too" if others else ""
        problems.append(
            f"--max-loaded-models {max_loaded} is too few: {len(pinned)} models are pinned "
            f"({', '.join(pinned)}){rest}. Allow more, or pin fewer."
        )


def _model_entries(value: object) -> list[object]:
    """Texts or mappings; text from the environment is comma separated."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def _model(entry: object, source: str, values: Mapping[Option, Any], problems: list[str]) -> ModelSettings | None:
    """One model from `[NAME=]REFERENCE` or from a mapping with `model:` and its own options."""
    own: dict[Option, Any] = {}
    name = ""
    reference = entry
    if isinstance(entry, dict):
        fields = {str(key).replace("-", "_"): value for key, value in entry.items()}
        name = str(fields.pop("name", ""))
        reference = fields.pop("model", "")
        own = _own_options(fields, f"{source}: {name or reference}", problems)
    elif isinstance(entry, str) and "=" in entry and not Path(entry).expanduser().exists():
        name, _, reference = entry.partition("=")
        if not name:
            problems.append(f"{source}: {entry!r} has nothing before the =. Write NAME=DIRECTORY or NAME=ID.")
            return None
    if not isinstance(reference, str) or not reference:
        problems.append(f"{source}: {entry!r} names no model. Give a directory or a hub id.")
        return None
    merged = {**values, **own}
    return ModelSettings(
        name=name or _name_of(reference),
        reference=str(BUNDLED_MODELS_PATH / reference) if reference in BUNDLED_MODELS else reference,
        engine=EngineSettings(**_fields(EngineSettings, merged)),
        **_fields(ModelSettings, merged),
    )


def _own_options(fields: Mapping[str, object], source: str, problems: list[str]) -> dict[Option, Any]:
    options = {option.name: option for option in MODEL_OPTIONS}
    own = {}
    for name, value in fields.items():
        if name not in options:
            problems.append(f"{source}: a model has no setting {name!r}{nearest(name, [*options, 'name', 'model'])}")
        elif value is not None:
            own[options[name]] = _parse(options[name], _Given(value, f"{source}: {name}"), problems)
    return own


def _name_of(reference: str) -> str:
    """A directory is named by its last part, a hub id is its own name."""
    path = Path(reference).expanduser()
    if reference.startswith((".", "/", "~")) or path.is_dir():
        return path.resolve().name
    return reference


def _aliases(
    redirects: Iterable[str | tuple[str, str]] | None, names: list[str], problems: list[str], *, is_open: bool
) -> dict[str, str]:
    """Public name -> model name. A text is split at the first colon behind which a model is named.

    Open: further models are found later, so one that is not known yet may be meant.
    """
    aliases: dict[str, str] = {}
    for redirect in redirects or ():
        alias, target = redirect if isinstance(redirect, tuple) else _split_redirect(redirect, names)
        shown = redirect if isinstance(redirect, str) else f"{alias}:{target}"
        if not alias or not target or (target not in names and not is_open):
            problems.append(
                f"--redirect {shown}: write FROM:TO, where TO is a served model "
                f"({', '.join(names)}){nearest(target, names)}"
            )
        elif alias in names:
            problems.append(f"--redirect {shown}: {alias!r} is already the name of a served model.")
        elif aliases.setdefault(alias, target) != target:
            problems.append(f"--redirect {shown}: {alias!r} already leads to {aliases[alias]!r}.")
    return aliases


def _split_redirect(text: str, names: list[str]) -> tuple[str, str]:
    for colon in (match.start() for match in re.finditer(":", text)):
        if text[colon + 1 :] in names:
            return text[:colon], text[colon + 1 :]
    alias, _, target = text.partition(":")
    return alias, target


# Routes.


def _routes(
    value: object, source: str, served: Sequence[str], problems: list[str], *, is_open: bool
) -> dict[str, RouteSettings]:
    """The file's `routes:`; a route may be written as the list of its deployments. Open: as for `_aliases`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{source}: must hold a name and settings for each route, such as `chat: [chat-a, chat-b]`.")
        return {}
    routes: dict[str, RouteSettings] = {}
    for name, entry in ((str(name), entry) for name, entry in value.items()):
        fields = dict(entry) if isinstance(entry, dict) else {"deployments": entry}
        deployments = fields.get("deployments")
        if isinstance(deployments, list):
            fields["deployments"] = [{"model": each} if isinstance(each, str) else each for each in deployments]
        route = _struct(RouteSettings, fields, f"{source}.{name}", problems)
        if route is not None:
            routes[name] = route
        if name in served:
            problems.append(f"{source}.{name}: {name!r} is already the name of a served model.")
    for name, route in routes.items():
        problems.extend(_route_problems(name, route, f"{source}.{name}", served, routes, is_open=is_open))
    return routes


def _route_problems(
    name: str, route: RouteSettings, source: str, served: Sequence[str], routes: Iterable[str], *, is_open: bool
) -> Iterator[str]:
    """Names that are not served, or more than once. Open: a name that nobody has yet is taken on trust."""
    own = [deployment.model for deployment in route.deployments]
    others = [other for other in (*served, *routes) if other != name and other not in own]
    for where, names, known in (("deployments", own, served), ("fallbacks", route.fallbacks, others)):
        for number, target in enumerate(names):
            is_trusted = is_open and target not in (*served, *routes)
            if target not in known and not is_trusted:
                yield (
                    f"{source}.{where}[{number}]: {target!r} is none of {', '.join(known) or 'no names at all'}"
                    f"{nearest(target, known)}"
                )
            elif target in names[:number]:
                yield f"{source}.{where}[{number}]: {target!r} is there twice."


S = TypeVar("S", bound=msgspec.Struct)


def _struct(kind: type[S], value: object, source: str, problems: list[str]) -> S | None:
    """A struct of the file, whatever is wrong in it told together; None then."""
    if not isinstance(value, dict):
        problems.append(f"{source}: must hold `name: value` lines, not {value!r}.")
        return None
    num_problems = len(problems)
    fields = {str(key).replace("-", "_"): content for key, content in value.items()}
    hints = get_type_hints(kind, include_extras=True)
    known = list(hints)
    problems.extend(
        f"{source}: there is no setting {name!r}{nearest(name, known)}" for name in fields if name not in known
    )
    found = {
        name: _member(hints[name], content, f"{source}.{name}", problems)
        for name, content in fields.items()
        if name in known and content is not None
    }
    required = msgspec.structs.fields(kind)
    problems.extend(
        f"{source}: {field.name} is missing." for field in required if field.required and field.name not in found
    )
    return kind(**found) if len(problems) == num_problems else None


def _member(hint: Any, value: object, source: str, problems: list[str]) -> Any:
    """One value of a struct."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _struct(bare, value, source, problems)
    inner = get_args(bare)[0] if get_origin(bare) is tuple else None
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, list) and value:
        entries = enumerate(value)
        return tuple(_struct(inner, entry, f"{source}[{number}]", problems) for number, entry in entries)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        problems.append(f"{source}: {value!r} is wrong: {error}.")
        return None


# Showing them.


def as_yaml(settings: Settings) -> str:
    """The settings as a file that --config reads, with the keys hidden."""
    content = _plain(settings, Settings)
    content |= _plain(settings.gateway, GatewaySettings) | _plain(settings.limits, LimitSettings)
    content |= _plain(settings.overload, OverloadSettings) | _plain(settings.store, StoreSettings)
    content |= _plain(settings.telemetry, TelemetrySettings)
    content["api_key"] = [HIDDEN for _ in settings.gateway.api_keys]
    content["admin_key"] = HIDDEN if settings.gateway.admin_key else None
    if settings.store.place is not None:
        content["store"] = hide_password(settings.store.place)
    if settings.overload.limits_store:
        content["limits_store"] = hide_password(settings.overload.limits_store)
    if settings.gateway.response_cache_store:
        content["response_cache_store"] = hide_password(settings.gateway.response_cache_store)
    if settings.gateway.routes:
        content["routes"] = msgspec.to_builtins(settings.gateway.routes)
    del content["upstream"]
    content["upstreams"] = [shown_upstream(upstream) for upstream in settings.upstreams]
    content["models"] = [
        {"name": model.name, "model": model.reference}
        | _plain(model, ModelSettings)
        | _plain(model.engine, EngineSettings)
        for model in settings.models
    ]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def hide_password(text: str) -> str:
    """A text with a URL in it as it may be shown."""
    text = re.sub(r"(?<=://)([^:/@]*):.*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?<=password=)[^&'\"]*", HIDDEN, text)


def _plain(struct: msgspec.Struct, section: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        option.name: msgspec.to_builtins(getattr(struct, option.field))
        for option in OPTIONS
        if option.section is section
    }
