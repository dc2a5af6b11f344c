"""Settings: one frozen tree, merged from defaults < YAML file < environment < command line by `settings.load`.

A field that carries a `Flag` is an option: `--name` on the command line, `name` in the file and
`LANGPORT_NAME` in the environment (COMPLETION_MAX_* keep the names they always had). The string under a field
is its documentation and its `--help`. Nothing here looks at a checkpoint or contacts a hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from langport.settings.fields import Count, Flag, Key, Seconds, Text
from langport.settings.upstreams import UPSTREAM, UpstreamSettings

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
    kv_cache_dtype: Annotated[Literal["auto", "int8"], Flag("DTYPE")] = "auto"
    """Format of keys and values in the KV cache: auto, that of the activations, or int8 with a scale for each token and
    head, in about half the memory. Not the default, since it changes answers a little."""
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


BUNDLED_MODELS_PATH = Path(__file__).parents[1] / "demo" / "models"
BUNDLED_MODELS = ("langport-demo-chat", "langport-demo-text2text", "langport-demo-embed")
"""Served when no model is named; each name also works as a reference."""
