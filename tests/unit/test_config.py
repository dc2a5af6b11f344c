"""Where settings come from, which wins, and that every problem is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from langport.errors import ConfigError
from langport.settings.load import load_settings
from langport.settings.options import MODEL_OPTIONS, OPTIONS, field_docs
from langport.settings.show import as_yaml
from langport.settings.tree import BUNDLED_MODELS, EngineSettings, Price, Settings
from langport.settings.upstreams import read_secret


def load(
    flags: dict[str, object] | None = None, environment: dict[str, str] | None = None, file: Path | None = None
) -> Settings:
    return load_settings(flags or {}, environment or {}, file)


def problems(*arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return list(caught.value.problems)


def yaml_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "langport.yaml"
    file.write_text(text)
    return file


def test_defaults_serve_the_bundled_models_on_loopback() -> None:
    settings = load()
    assert [model.name for model in settings.models] == list(BUNDLED_MODELS)
    assert all(Path(model.reference).is_absolute() for model in settings.models)
    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.1", 8000, "info")
    assert settings.models[0].engine == EngineSettings()
    assert settings.gateway.max_body_bytes == 32 * 1024 * 1024
    limits = settings.limits
    assert (limits.completion_max_n, limits.completion_max_logprobs) == (128, 5)
    assert (limits.completion_max_tokens, limits.completion_max_prompt) == (None, None)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "host: a.example\nport: 1\nlog_level: error\n")
    settings = load({"host": "c.example"}, {"LANGPORT_HOST": "b.example", "LANGPORT_PORT": "2"}, file)
    assert (settings.host, settings.port, settings.log_level) == ("c.example", 2, "error")


def test_a_list_replaces_the_list_below_it(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "api_key: [one, two]\n")
    assert load(None, None, file).gateway.api_keys == ("one", "two")
    assert load(None, {"LANGPORT_API_KEY": "three, four"}, file).gateway.api_keys == ("three", "four")
    assert load({"api_key": ["fi,ve"]}, {"LANGPORT_API_KEY": "three"}, file).gateway.api_keys == ("fi,ve",)


def test_an_empty_variable_is_not_set() -> None:
    assert load(None, {"LANGPORT_PORT": "", "LANGPORT_API_KEY": ""}) == load()


def test_every_option_can_be_given_in_each_way(tmp_path: Path) -> None:
    """One value per option, as text in flag and variable and in YAML; all give the same settings."""
    samples: dict[str, str] = {option.name: "7" for option in OPTIONS} | {
        "host": "::1",
        "log_level": "debug",
        "device": "cuda:1",
        "dtype": "float16",
        "quantization": "int4",
        "kv_cache_memory": "1.5GiB",
        "kv_cache_dtype": "int8",
        "max_body_size": "10MB",
        "chat_template": "chatml",
        "sampling_defaults": "model",
        "tool_call_parser": "hermes",
        "reasoning_parser": "none",
        "logprobs_mode": "processed",
        "speculation": "ngram",
        "store": "memory",
        "store_on_failure": "refuse",
        "limits_store": "redis://localhost:6379/1",
        "limits_on_failure": "refuse",
        "store_files": "/files",
        "keys_on_failure": "refuse",
        "response_cache_store": "redis://localhost:6379/2",
        "unknown_parameters": "refuse",
        "api_key": "sk-1",
        "admin_key": "sk-2",
        "metrics_without_key": "yes",
        "record_usage": "true",
        "price": "a=b=0.5:2",
        "allowed_origins": "https://a.example",
        "redirect": f"vic:una:{BUNDLED_MODELS[0]}",
        "lora": "polite=./adapter",
        "upstream": "far=http://far.example/v1#big",
        "upstream_key": "env:FAR_KEY",
        "trust_remote_code": "true",
        "load": "on_request",
        "pinned": "yes",
        "allow_adapter_updates": "on",
        "access_log": "json",
        "metrics_by_key": "true",
        "deployment_header": "off",
    }
    as_lists = {"api_key", "allowed_origins", "redirect", "lora", "price", "upstream", "upstream_key"}
    by_flags = load({name: [text] if name in as_lists else text for name, text in samples.items()})
    by_environment = load(None, {option.variable: samples[option.name] for option in OPTIONS})
    by_file = load(None, None, yaml_file(tmp_path, yaml.safe_dump(samples)))
    assert by_flags == by_environment == by_file
    plain = yaml.safe_load(as_yaml(by_flags))
    default = yaml.safe_load(as_yaml(load()))
    assert [name for name in plain if plain[name] == default[name]] == []
    own = {option.name for option in MODEL_OPTIONS}
    assert all(plain["models"][0][name] != default["models"][0][name] for name in own)
    assert by_flags.models[0].engine.kv_cache_memory == 1536 * 1024 * 1024
    assert by_flags.gateway.max_body_bytes == 10_000_000
    assert by_flags.gateway.aliases == {"vic:una": BUNDLED_MODELS[0]}


def test_completion_limits_keep_their_old_variables() -> None:
    names = ["COMPLETION_MAX_N", "COMPLETION_MAX_LOGPROBS", "COMPLETION_MAX_TOKENS", "COMPLETION_MAX_PROMPT"]
    limits = load(None, {name: str(number) for number, name in enumerate(names, 1)}).limits
    assert msgspec.structs.astuple(limits) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024", 1024),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("2GiB", 2 * 1024**3),
        ("2G", 2 * 1000**3),
        ("512 MB", 512 * 1000**2),
        ("0.5TiB", 1024**4 // 2),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert load({"kv_cache_memory": text}).models[0].engine.kv_cache_memory == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "x", "--port: 'x' is not a whole number from 0 to 65535."),
        ("port", "65536", "--port: '65536' is not a whole number from 0 to 65535."),
        ("host", "", "--host: '' is not a text that is not empty (a number in quotes)."),
        ("dtype", "int3", "--dtype: 'int3' is not one of auto, bfloat16, float16, float32."),
        ("device", "gpu", "--device: 'gpu' is not auto, cpu, cuda or cuda:N."),
        ("max_model_len", "0", "--max-model-len: '0' is not a whole number, 1 or more."),
        ("max_num_seqs", "1.5", "--max-num-seqs: '1.5' is not a whole number, 1 or more."),
        (
            "completion_max_logprobs",
            "-1",
            "--completion-max-logprobs: '-1' is not a whole number, 0 or more.",
        ),
        ("allow_adapter_updates", "perhaps", "--allow-adapter-updates: 'perhaps' is not true or false."),
        ("kv_cache_memory", "2Gigs", "--kv-cache-memory: '2Gigs' is not a size such as 512MB or 2GiB."),
        ("kv_cache_memory", "0", "--kv-cache-memory: '0' is not a size such as 512MB or 2GiB."),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(name: str, value: str, expected: str) -> None:
    assert problems({name: value}) == [expected]


def test_a_switch_is_on_or_off(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path, "allow_adapter_updates: true\nmodels: [{model: org/x, trust_remote_code: true}, org/y]\n"
    )
    assert load(None, None, file).gateway.allow_adapter_updates
    assert [model.engine.trust_remote_code for model in load(None, None, file).models] == [True, False]
    assert not load(None, {"LANGPORT_ALLOW_ADAPTER_UPDATES": "0"}, file).gateway.allow_adapter_updates
    assert not load({"allow_adapter_updates": False}, None, file).gateway.allow_adapter_updates


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "prot: 80\nport: many\nmodels: [{name: a, model: ./x, dtyp: auto, dtype: int3}]\n")
    told = problems({"device": "gpu", "redirect": ["x:nothing"]}, {"COMPLETION_MAX_N": "0"}, file)
    for part in (
        "there is no setting 'prot'; did you mean port?",
        "port: 'many' is not",
        "a: a model has no setting 'dtyp'; did you mean dtype?",
        "a: dtype: 'int3' is not",
        "--device: 'gpu'",
        "COMPLETION_MAX_N: '0'",
        "--redirect x:nothing",
    ):
        assert sum(part in problem for problem in told) == 1, part
    assert len(told) == 7


@pytest.mark.parametrize("key", ["", "has space", "(hidden)"])
def test_a_wrong_key_is_refused_and_not_shown(key: str) -> None:
    (told,) = problems({"api_key": ["good-secret", key]})
    assert told.startswith("--api-key:")
    assert "good-secret" not in told


@pytest.mark.parametrize("text", ["port: true", "port: [1]", "host: 5", "kv_cache_memory: yes", "api_key: [5]"])
def test_a_value_of_another_yaml_type_is_refused(tmp_path: Path, text: str) -> None:
    (told,) = problems(None, None, yaml_file(tmp_path, text))
    assert text.partition(":")[0] in told


@pytest.mark.parametrize(
    ("text", "part"), [("port: [", "not valid YAML"), ("- 1", "name: value"), ("\udcff", "not valid YAML")]
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "langport.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    (told,) = problems(None, None, file)
    assert str(file) in told
    assert part in told


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (told,) = problems(None, None, tmp_path / "no.yaml")
    assert str(tmp_path / "no.yaml") in told
    assert "--config" in told


def test_an_empty_file_and_empty_values_are_defaults(tmp_path: Path) -> None:
    assert load(None, None, yaml_file(tmp_path, "# nothing\n")) == load()
    assert load(None, None, yaml_file(tmp_path, "port:\nmodels:\n")) == load()


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some" / "qwen").mkdir(parents=True)
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    models = load(
        {"models": ["org/name@main", "some/qwen", "./some/../other/", "chat=./qwen", "a=b", BUNDLED_MODELS[0]]}
    ).models
    assert [(model.name, model.reference) for model in models[:-1]] == [
        ("org/name@main", "org/name@main"),
        ("qwen", "some/qwen"),
        ("other", "./some/../other/"),
        ("chat", "./qwen"),
        ("a=b", "a=b"),
    ]
    assert models[-1] == load().models[0]


def test_models_from_the_environment() -> None:
    models = load(None, {"LANGPORT_MODELS": "a=org/x, org/y"}).models
    assert [(model.name, model.reference) for model in models] == [("a", "org/x"), ("org/y", "org/y")]


def test_a_models_own_options_win_over_the_general_ones(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path,
        """
dtype: float16
models:
  - org/plain
  - name: own
    model: org/other
    dtype: float32
    kv-cache-memory: 1MiB
    chat_template: vicuna
    sampling_defaults: model
""",
    )
    plain, own = load({"max_num_seqs": "3"}, None, file).models
    assert plain.engine == EngineSettings(dtype="float16", max_num_seqs=3)
    assert (plain.chat_template, plain.sampling_defaults) == (None, "openai")
    assert own.engine == EngineSettings(dtype="float32", max_num_seqs=3, kv_cache_memory=1024 * 1024)
    assert (own.chat_template, own.sampling_defaults) == ("vicuna", "model")


@pytest.mark.parametrize(
    ("models", "part"),
    [
        (["a=org/x", "a=org/y"], "2 models are named 'a'"),
        (["=org/x"], "nothing before the ="),
        (["a="], "names no model"),
        ([""], "names no model"),
        ([{"name": "a"}], "names no model"),
        ([5], "names no model"),
        ([], "the list is empty"),
    ],
)
def test_wrong_models(models: list[object], part: str) -> None:
    (told,) = problems({"models": models})
    assert part in told


def test_adapters_belong_to_the_model_they_name_or_to_the_first(tmp_path: Path) -> None:
    flags = {"models": ["a=org/x", "b:1=org/y"], "lora": ["one=./1", "b:1:two=org/2@main", "a:three=3,four=4"]}
    first, second = load(flags).models
    assert first.lora == {"one": "./1", "three": "3", "four": "4"}
    assert second.lora == {"two": "org/2@main"}
    text = """
        models:
          - {name: a, model: org/x, lora: {one: ./1}}
          - {name: b, model: org/y, lora: [two=./2]}
        lora: {b:three: ./3}
        redirect: [alias:two]
    """
    settings = load(None, None, yaml_file(tmp_path, text))
    assert [model.lora for model in settings.models] == [{"one": "./1"}, {"three": "./3", "two": "./2"}]
    assert settings.gateway.aliases == {"alias": "two"}
    assert load(None, None, yaml_file(tmp_path, as_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        (["one"], "NAME=DIRECTORY"),
        (["=dir"], "NAME=DIRECTORY"),
        (["one="], "NAME=DIRECTORY"),
        (["a:=dir"], "no name"),
        (["a=dir"], "2 models are named 'a'"),
        (["one=x", "b:one=y"], "2 models are named 'one'"),
    ],
)
def test_wrong_adapters_are_named(texts: list[str], part: str) -> None:
    [problem] = problems({"models": ["a=org/x", "b=org/y"], "lora": texts})
    assert part in problem


def test_redirects_split_where_a_model_is_named() -> None:
    flags = {"models": ["b:c=org/x", "m=org/y"], "redirect": ["a:b:c", "gpt:4:m", "plain:m"]}
    assert load(flags).gateway.aliases == {"a": "b:c", "gpt:4": "m", "plain": "m"}


def test_redirects_as_a_mapping(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "models: [m=org/y]\nredirect: {'gpt:4': m, other: m}\n")
    assert load(None, None, file).gateway.aliases == {"gpt:4": "m", "other": "m"}


@pytest.mark.parametrize(
    ("redirect", "part"),
    [
        ("a:unknown", "TO is a served model (model-one)"),
        ("a:model-on", "did you mean model-one?"),
        ("model-one:model-one", "already the name of a served model"),
        (":model-one", "write FROM:TO"),
        ("model-one", "write FROM:TO"),
    ],
)
def test_wrong_redirects(redirect: str, part: str) -> None:
    (told,) = problems({"models": ["model-one=org/x"], "redirect": [redirect]})
    assert part in told
    assert redirect in told


def test_an_alias_with_two_targets_is_refused() -> None:
    flags = {"models": ["m=org/x", "k=org/y"], "redirect": ["a:m", "a:m", "a:k"]}
    assert problems(flags) == ["--redirect a:k: 'a' already leads to 'm'."]


def test_every_option_has_a_doc() -> None:
    docs = field_docs()
    assert set(docs) == set(OPTIONS)
    assert [option.name for option, doc in docs.items() if len(doc) < 20] == []


def test_shown_settings_hide_the_keys_and_load_again(tmp_path: Path) -> None:
    flags = {"models": ["a=org/x"], "redirect": ["b:a"], "kv_cache_memory": "1MiB", "dtype": "float16"}
    assert "sk-secret" not in as_yaml(load({**flags, "api_key": ["sk-secret"]}))
    settings = load(flags)
    assert load(None, None, yaml_file(tmp_path, as_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:secret@localhost:6379/0", "redis://user:(hidden)@localhost:6379/0"),
        ("rediss://localhost?password=secret", "rediss://localhost?password=(hidden)"),
    ],
)
@pytest.mark.parametrize("option", ["limits_store", "response_cache_store"])
def test_the_password_of_a_shared_store_is_not_shown(option, url, shown):
    text = as_yaml(load_settings({option: url}, {}))
    assert yaml.safe_load(text)[option] == shown
    assert "secret" not in text


def test_prices(tmp_path):
    expected = {"chat": Price(0.5, 2.0), "a=b": Price(0.0, 1.0)}
    assert load({"price": ["chat=0.5:2,a=b=0:1"]}).gateway.prices == expected
    file = yaml_file(tmp_path, "price: {chat: {input: 0.5, output: 2}, a=b: {output: 1}}")
    assert load(None, None, file).gateway.prices == expected


@pytest.mark.parametrize("text", ["chat", "chat=1", "chat=1:x", "=1:2", "chat=-1:2"])
def test_prices_that_are_none(text):
    (told,) = problems({"price": [text]})
    assert "--price" in told
    assert "MODEL=INPUT:OUTPUT" in told


def test_secrets_are_in_no_message_and_not_shown():
    shown = as_yaml(load({"admin_key": "geheim", "store": "postgresql://me:geheim@host/db?password=geheim"}))
    assert "geheim" not in shown
    assert "postgresql://me:(hidden)@host/db" in shown
    for flags in ({"admin_key": "ge heim"}, {"store": "mysql://me:geheim@host/db"}):
        (told,) = problems(flags)
        assert "heim" not in told.replace("(hidden)", "")


@pytest.mark.parametrize("place", ["mysql://host/db", "sqlite:///file", "postgresql://me:(hidden)@host/db"])
def test_places_that_are_no_store(place):
    (told,) = problems({"store": place})
    assert "postgresql://USER:PASSWORD@HOST/DATABASE" in told


class TestRoutes:
    MODELS = "models: [{name: a, model: ./a}, {name: b, model: ./b}]\n"

    def test_they_are_read_from_the_file(self, tmp_path: Path) -> None:
        text = """
routes:
  fast: [a, b]
  best:
    deployments: [{model: a, weight: 2}, {model: b, priority: 1}]
    strategy: prefix-aware
    fallbacks: [fast]
    retry: {attempts: 5, backoff_s: 1}
    health: {cooldown-s: 3}
redirect: ["gpt-4o:best"]
"""
        settings = load({}, {}, yaml_file(tmp_path, self.MODELS + text)).gateway
        fast, best = settings.routes["fast"], settings.routes["best"]
        assert [(each.model, each.weight, each.priority) for each in fast.deployments] == [
            ("a", None, 0),
            ("b", None, 0),
        ]
        assert [(each.model, each.weight, each.priority) for each in best.deployments] == [
            ("a", 2, 0),
            ("b", None, 1),
        ]
        assert (best.strategy, best.fallbacks, best.retry.attempts, best.retry.backoff_s) == (
            "prefix-aware",
            ("fast",),
            5,
            1.0,
        )
        assert (best.health.cooldown_s, best.health.max_failures, fast.strategy) == (3.0, 3, "weighted")
        assert settings.aliases == {"gpt-4o": "best"}

    def test_what_is_shown_can_be_read_again(self, tmp_path: Path) -> None:
        text = "routes: {fast: [a, b], best: {deployments: [a], hedge: true, fallbacks: [b]}}\n"
        settings = load({}, {}, yaml_file(tmp_path, self.MODELS + text))
        again = load({}, {}, yaml_file(tmp_path, as_yaml(settings)))
        assert again.gateway.routes == settings.gateway.routes

    def test_all_problems_are_told_with_their_place(self, tmp_path: Path) -> None:
        text = """
routes:
  a: [b]
  x: {deployments: [], strategi: weighted}
  y:
    deployments: [{model: a, weight: -2}, {model: q}, 3, {weight: 1}]
    strategy: fastest
    retry: {attempts: 0, atempts: 3}
    health: soon
  z: [a, a, c]
  w: {deployments: [a], fallbacks: [w, a, zz]}
  v: 3
"""
        found = problems({}, {}, yaml_file(tmp_path, self.MODELS + text))
        places = [problem.partition(": ")[2].partition(": ")[0] for problem in found]
        assert places == [
            "routes.a", "routes.x", "routes.x.deployments", "routes.y.deployments[0].weight",
            "routes.y.deployments[2]", "routes.y.deployments[3]", "routes.y.strategy", "routes.y.retry",
            "routes.y.retry.attempts", "routes.y.health", "routes.v.deployments",
            "routes.z.deployments[1]", "routes.z.deployments[2]", "routes.w.fallbacks[0]", "routes.w.fallbacks[1]",
            "routes.w.fallbacks[2]",
        ]  # fmt: skip
        told = "\n".join(found)
        assert "there is no setting 'strategi'; did you mean strategy?" in told
        assert "'c' is none of a, b" in told
        assert "'zz' is none of b, z; did you mean z?" in told

    def test_no_mapping_at_all(self, tmp_path: Path) -> None:
        (problem,) = problems({}, {}, yaml_file(tmp_path, "routes: [a, b]"))
        assert "a name and settings for each route" in problem

    def test_deployments_may_be_remote(self, tmp_path: Path) -> None:
        text = "upstreams: [{name: far, url: 'http://a.example'}]\nroutes: {x: [a, far], y: [far, fat]}\n"
        (problem,) = problems({}, {}, yaml_file(tmp_path, self.MODELS + text))
        assert "routes.y.deployments[1]: 'fat' is none of a, b, far; did you mean far?" in problem

    def test_a_model_that_a_server_may_list_is_taken_on_trust(self, tmp_path: Path) -> None:
        routes = "{x: {deployments: [a, big], fallbacks: [bigger]}, y: [x, y, big, big]}"
        text = f"upstream: http://a.example\nroutes: {routes}\n"
        found = problems({}, {}, yaml_file(tmp_path, self.MODELS + text))
        places = [problem.partition(": ")[2].partition(": ")[0] for problem in found]
        assert places == [f"routes.y.deployments[{number}]" for number in (0, 1, 3)]


# Remote servers.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a.example:8000", ("http://a.example:8000", None, None)),
        ("far=http://a.example/v1", ("http://a.example/v1", "far", None)),
        ("far=https://a.example/v1#org/m-1", ("https://a.example/v1", "far", "org/m-1")),
        ("org/m:1=x=https://a.example", ("https://a.example", "org/m:1=x", None)),
        ("https://a.example/v1#m", ("https://a.example/v1", "m", "m")),
        ("far=https://a.example/v1#a=http://b", ("https://a.example/v1", "far", "a=http://b")),
    ],
)
def test_an_upstream_is_written_name_url_model(text: str, expected: tuple[str | None, ...]) -> None:
    (upstream,) = load({"upstream": [text]}).upstreams
    assert (upstream.url, upstream.name, upstream.model) == expected


def test_the_file_sets_all_of_an_upstream_under_either_name(tmp_path: Path) -> None:
    entry = "{url: 'http://a.example', name: far, connect-timeout-s: 1, headers: {x-team: blue}, verify_tls: false}"
    found = [
        load(None, None, yaml_file(tmp_path, f"{name}: [{entry}, 'b=http://b.example#m']")).upstreams
        for name in ("upstream", "upstreams")
    ]
    assert found[0] == found[1]
    far, other = found[0]
    assert (far.name, far.connect_timeout_s, far.headers, far.verify_tls) == ("far", 1, {"x-team": "blue"}, False)
    assert (other.name, other.model) == ("b", "m")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("far=ftp://a.example", "--upstream: 'far=ftp://a.example' is not [NAME=]URL[#MODEL]"),
        ("=http://a.example", "is not [NAME=]URL[#MODEL]"),
        ("far=http://user:sesame@a.example:99999", "its port or address is not valid"),
        ("far=http://user:sesame@a.example/v1?x=1", "neither a query"),
        ("far=http://user:sesame@", "a host"),
        ("langport-demo-chat=http://a.example", "'langport-demo-chat' has a name that is taken"),
    ],
)
def test_an_upstream_that_is_wrong_is_named_without_its_credentials(text: str, part: str) -> None:
    (told,) = problems({"upstream": [text]})
    assert part in told
    assert "sesame" not in told


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("{name: far}", "upstream[0]: the upstream has no url"),
        ("{url: 'http://a.example', urk: 1}", "an upstream has no setting 'urk'; did you mean url?"),
        ("{url: 'http://a.example', connect_timeout_s: 0}", "connect_timeout_s: Expected"),
        ("{url: 'http://a.example', key: 5}", "key: Expected"),
        ("{url: 'http://a.example', key: sesame, forward_key: true}", "a key and forward_key; choose one"),
        ("{url: 'http://a.example', key: (hidden)}", "the (hidden) that"),
        ("{url: 'http://(hidden)@a.example'}", "the (hidden) that"),
        ("{url: 'http://a.example', headers: {'x y': sesame}}", "'x y' is no name of a header"),
        ("{url: 'http://a.example', proxy: 'socks5://u:sesame@p'}", "must begin with http://"),
        ("{url: 'http://a.example', client_certificate_key: k.pem}", "without a client_certificate"),
    ],
)
def test_a_wrong_setting_of_an_upstream_is_named_without_its_secrets(tmp_path: Path, entry: str, part: str) -> None:
    (told,) = problems(None, None, yaml_file(tmp_path, f"upstreams: [{entry}]"))
    assert part in told
    assert "sesame" not in told


def test_a_key_on_the_command_line_goes_to_one_server(tmp_path: Path) -> None:
    two = ["a=http://one.example#x", "b=http://one.example#y", "c=http://two.example"]
    assert [u.key for u in load({"upstream": two[:2], "upstream_key": ["env:K"]}).upstreams] == ["env:K", "env:K"]
    named = load({"upstream": two, "upstream_key": ["c=sesame=", "a=k"]}).upstreams
    assert [upstream.key for upstream in named] == ["k", None, "sesame="]
    (told,) = problems({"upstream": two, "upstream_key": ["sesame"]})
    assert "say which one" in told
    assert "sesame" not in told
    (told,) = problems({"upstream": two[:1], "upstream_key": ["(hidden)"]})
    assert "the value is not" in told


def test_what_is_secret_is_never_shown(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path,
        "upstreams: [{url: 'https://user:sesame@a.example/v1', key: sesame, headers: {x-a: sesame, x-b: 'env:B'}, "
        "proxy: 'http://me:sesame@p:1'}, {url: 'http://b.example', name: b, key: 'file:/run/key'}]\n",
    )
    settings = load(None, None, file)
    assert "sesame" not in as_yaml(settings)
    assert "sesame" not in repr(settings)
    assert yaml.safe_load(as_yaml(settings))["upstreams"] == [
        {"url": "https://(hidden)@a.example/v1", "key": "(hidden)", "headers": {"x-a": "(hidden)", "x-b": "env:B"},
         "proxy": "http://(hidden)@p:1"},
        {"url": "http://b.example", "name": "b", "key": "file:/run/key"},
    ]  # fmt: skip


def test_settings_without_secrets_are_shown_as_they_are_read(tmp_path: Path) -> None:
    settings = load({"upstream": ["a=http://one.example#x", "http://two.example"], "upstream_key": ["a=env:K"]})
    assert load(None, None, yaml_file(tmp_path, as_yaml(settings))) == settings


def test_a_secret_is_read_where_the_setting_says(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environment = {"K": " from-variable ", "BAD": "two\r\nlines"}
    assert read_secret("plain:text", environment, "x") == "plain:text"
    assert read_secret("env:K", environment, "x") == "from-variable"
    assert read_secret(f"file:{file}", environment, "x") == "from-file"
    for text, part in (
        ("env:NO", "the environment variable NO is not set"),
        (f"file:{tmp_path}/no", "/no cannot be read: No such file"),
        ("env:BAD", "characters that no header can have"),
    ):
        with pytest.raises(ConfigError, match=part) as caught:
            read_secret(text, environment, "the key of far")
        assert str(caught.value).startswith("the key of far: ")
        assert "lines" not in str(caught.value).replace("line breaks", "")


def test_a_redirect_may_lead_to_a_model_that_is_listed_later() -> None:
    assert load({"upstream": ["http://a.example"], "redirect": ["x:later"]}).gateway.aliases == {"x": "later"}
    (told,) = problems({"upstream": ["b=http://a.example"], "redirect": ["x:later"]})
    assert "--redirect x:later" in told


def test_the_gateway_alone_refuses_what_concerns_local_models(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "models: [a]\ndtype: float32\nupstream: 'far=http://a.example'\n")
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"LANGPORT_DTYPE": "nonsense"}, file, with_models=False)
    assert [problem.split(": ")[1].split()[0] for problem in caught.value.problems] == ["'models'", "'dtype'"]
    settings = load_settings({"upstream": ["far=http://a.example"]}, {"LANGPORT_MODELS": "x"}, with_models=False)
    assert (settings.models, [upstream.name for upstream in settings.upstreams]) == ((), ["far"])


def test_pinned_models_leave_a_place_for_the_others(tmp_path: Path) -> None:
    text = "max_loaded_models: {}\nmodels: [{{model: org/x, pinned: true}}, {{model: org/y, load: on_request}}]\n"
    models = load(None, None, yaml_file(tmp_path, text.format(2))).models
    assert [(model.load, model.pinned) for model in models] == [("start", True), ("on_request", False)]
    with pytest.raises(ConfigError, match=r"--max-loaded-models 1 is too few: 1 models are pinned \(org/x\), and 1"):
        load(None, None, yaml_file(tmp_path, text.format(1)))
    with pytest.raises(ConfigError, match="3 models are pinned"):
        load({"max_loaded_models": "2", "pinned": "true"})
    assert load({"max_loaded_models": "3", "pinned": "true"}).max_loaded_models == 3
