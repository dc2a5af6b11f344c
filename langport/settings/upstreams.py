"""Settings of remote servers: how they are written, what is wrong with them, and how they are shown without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

import msgspec

from langport.errors import ConfigError
from langport.settings.fields import HIDDEN, Count, Flag, Seconds, Text, nearest

UPSTREAM_KEY = "[NAME=]KEY, where KEY is env:VARIABLE, file:PATH or a key without spaces"
UPSTREAM = "[NAME=]URL[#MODEL], e.g. gpt=https://api.openai.com/v1#gpt-4o or http://10.0.0.5:8000"


class UpstreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A remote server that speaks OpenAI's API, and which of its models is served.

    A secret (`key`, the values of `headers`) is the text itself, `env:NAME` (an environment variable) or `file:PATH`.
    """

    url: Text
    """Where its API is: https://api.openai.com/v1, http://10.0.0.5:8000. Credentials in it are sent as HTTP's Basic."""
    name: Text | None = None
    """The public name. Without one, every model is served that the server lists, under its own name."""
    model: Text | None = None
    """What the server calls the model; the public name when not given."""
    api: Literal["auto", "openai", "azure", "anthropic"] = "auto"
    """Whose paths and key header it has. auto goes by the host: Azure OpenAI's, Anthropic's, else OpenAI's."""
    api_version: Text | None = None
    """Azure's api-version; the client's when not given, else 2024-10-21."""
    key: Annotated[Text | None, Flag("[NAME=]KEY", name="upstream_key", form="list", expects=UPSTREAM_KEY)] = None
    """Key for the upstream NAME, or for all where they are one server: env:VARIABLE, file:PATH or the key itself."""
    forward_key: bool = False
    """Send it the client's own key instead, whatever that is, also one of this server's."""
    headers: dict[Text, str] = {}
    """Further headers for it."""
    forward_headers: tuple[Text, ...] = ()
    """Headers of clients that it gets beside the usual ones (accept, user-agent, openai-beta, anthropic-version,
    x-stainless-*, traceparent, ...)."""
    connect_timeout_s: Seconds = 5.0
    """Longest wait for a connection, TLS and proxy included."""
    first_byte_timeout_s: Seconds = 600.0
    """Longest wait for the first byte of an answer. 600 as OpenAI's clients wait: plain answers come only when done."""
    chunk_timeout_s: Seconds = 300.0
    """Longest wait between two pieces of an answer. While a slow client holds it up nothing is counted."""
    total_timeout_s: Seconds | None = None
    """Longest time from the request to the end of the answer; as long as it takes when not given."""
    idle_timeout_s: Seconds = 4.0
    """How long an unused connection is kept. Below the 5 seconds after which uvicorn's servers close theirs."""
    max_idle_connections: Annotated[int, msgspec.Meta(ge=0)] = 256
    """Most unused connections that are kept."""
    max_concurrency: Count | None = None
    """Most requests that it gets at once; further ones wait here."""
    ca_file: Text | None = None
    """Certificate authorities (PEM) that it is checked against, in place of the system's."""
    client_certificate: Text | None = None
    """Certificate (PEM) that this server shows it."""
    client_certificate_key: Text | None = None
    """The certificate's private key, where it is in a file of its own."""
    verify_tls: bool = True
    """Whether its certificate is checked. Without, anybody on the way can read and change everything."""
    proxy: Text | None = None
    """HTTP proxy (http://user:password@host:port) to reach it through, or none. When not given, what the environment
    says: https_proxy, http_proxy and no_proxy; never for this machine's own addresses."""
    refresh_s: Seconds = 60.0
    """Seconds between two looks at its list of models, where that is served."""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Its share of the requests in a route, beside the weights of the other deployments; a weight in the route goes
    before it."""
    prompt_cost: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """What a million prompt tokens cost; --price for the model or deployment goes before it."""
    completion_cost: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """What a million completion tokens cost."""

    def __repr__(self) -> str:  # a settings tree may get into a log
        return f"UpstreamSettings({shown_upstream(self)!r})"


_UPSTREAM = re.compile(r"(?:(?P<name>[^#]+?)=)?(?P<url>https?://[^#\s]+)(?:#(?P<model>\S.*))?", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def parse_upstreams(entries: Iterable[object], place: str, problems: list[str]) -> tuple[UpstreamSettings, ...]:
    """From texts `[NAME=]URL[#MODEL]` and mappings; `place` is where they were written."""
    found = []
    for number, entry in enumerate(entries):
        source = f"{place}[{number}]" if isinstance(entry, dict) else place
        upstream = _upstream_of_fields(entry, source, problems) if isinstance(entry, dict) else None
        if isinstance(entry, str):
            upstream = _upstream_of_text(entry, source, problems)
        elif not isinstance(entry, dict):
            problems.append(f"{source}: {entry!r} is not {UPSTREAM}, or a mapping with url, name, model and the like.")
        if upstream is not None:
            problems.extend(f"{source}: {problem}" for problem in _upstream_problems(upstream))
            found.append(upstream)
    return tuple(found)


def _upstream_of_text(text: str, source: str, problems: list[str]) -> UpstreamSettings | None:
    match = _UPSTREAM.fullmatch(text)
    if match is None:
        problems.append(f"{source}: {_without_credentials(text)!r} is not {UPSTREAM}.")
        return None
    return UpstreamSettings(match["url"], match["name"] or match["model"], match["model"])


def _upstream_of_fields(entry: Mapping[object, object], source: str, problems: list[str]) -> UpstreamSettings | None:
    fields = {str(key).replace("-", "_"): value for key, value in entry.items()}
    hints = get_type_hints(UpstreamSettings, include_extras=True)
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in hints:
            problems.append(f"{source}: an upstream has no setting {name!r}{nearest(name, hints)}")
        elif value is not None:
            try:
                values[name] = msgspec.convert(value, hints[name])
            except msgspec.ValidationError as error:
                problems.append(f"{source}: {name}: {_upstream_fault(error)}")
    if not fields.get("url"):
        problems.append(f"{source}: the upstream has no url, such as https://api.openai.com/v1.")
    return UpstreamSettings(**values) if "url" in values else None


def _upstream_fault(error: msgspec.ValidationError) -> str:
    """What is expected; msgspec never shows the value, which may be secret."""
    return f"{error} (a text such as a number needs quotes)." if "Expected `str" in str(error) else f"{error}."


def _upstream_problems(upstream: UpstreamSettings) -> Iterator[str]:
    """What the types cannot say; never with a secret in it."""
    shown = _without_credentials(upstream.url)
    problem = _url_problem(upstream.url, ("http", "https"))
    if problem:
        yield f"url {shown}: {problem}"
    if upstream.proxy not in (None, "none") and (problem := _url_problem(str(upstream.proxy), ("http",))):
        yield f"proxy {_without_credentials(str(upstream.proxy))}: {problem}"
    if upstream.key and upstream.forward_key:
        yield f"{shown} has a key and forward_key; choose one of them."
    if HIDDEN in (upstream.key, *upstream.headers.values()) or f"{HIDDEN}@" in upstream.url + str(upstream.proxy):
        yield f"{shown} has the {HIDDEN} that `langport config show` prints in place of a secret; write the secret."
    for name in (*upstream.headers, *upstream.forward_headers):
        if not _HEADER_NAME.fullmatch(name):
            yield f"{shown}: {name!r} is no name of a header."
    if upstream.client_certificate_key and not upstream.client_certificate:
        yield f"{shown} has a client_certificate_key without a client_certificate."


def _url_problem(url: str, schemes: tuple[str, ...]) -> str | None:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "its port or address is not valid."
    if parts.scheme not in schemes or not is_complete:
        return f"it must begin with {' or '.join(scheme + '://' for scheme in schemes)} and a host."
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        return "it may have neither a query nor a fragment, spaces or characters that are not ASCII."
    return None


def with_keys(
    upstreams: tuple[UpstreamSettings, ...], keys: Sequence[str] | None, problems: list[str]
) -> tuple[UpstreamSettings, ...]:
    """Give each upstream its key of --upstream-key. A key without a name is never sent to two servers."""
    for text in keys or ():
        name, equals, key = text.partition("=")
        named = [upstream for upstream in upstreams if equals and key and upstream.name == name]
        if not named:
            key, named = text, [upstream for upstream in upstreams if upstream.key is None]
            if len({_origin(upstream.url) for upstream in named}) != 1:
                problems.append(
                    "--upstream-key: there are several servers that have no key of their own, or none; say which one "
                    "is meant with NAME=KEY."
                )
                continue
        upstreams = tuple(
            msgspec.structs.replace(upstream, key=key) if upstream in named else upstream for upstream in upstreams
        )
    return upstreams


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2]


def with_upstreams(names: list[str], upstreams: Iterable[UpstreamSettings], problems: list[str]) -> list[str]:
    """The names that are served, the upstreams' included."""
    remote = [upstream.name for upstream in upstreams if upstream.name is not None]
    for name in dict.fromkeys(remote):
        if name in names or remote.count(name) > 1:
            problems.append(f"The upstream {name!r} has a name that is taken; give it another one: NAME=URL#MODEL.")
    return [*names, *(name for name in dict.fromkeys(remote) if name not in names)]


def _without_credentials(url: str) -> str:
    """A URL as it may be shown; also a text that is none."""
    return re.sub(r"(?<=//)[^/#?]*@", f"{HIDDEN}@", url)


def shown_upstream(upstream: UpstreamSettings) -> dict[str, Any]:
    """The settings of an upstream with its secrets hidden; where they are kept is none."""
    default = UpstreamSettings("x")
    fields = {
        name: value
        for name in UpstreamSettings.__struct_fields__
        if (value := getattr(upstream, name)) != getattr(default, name)
    }
    fields["url"] = _without_credentials(upstream.url)
    if upstream.key is not None:
        fields["key"] = _shown_secret(upstream.key)
    if upstream.headers:
        fields["headers"] = {name: _shown_secret(value) for name, value in upstream.headers.items()}
    if upstream.proxy is not None:
        fields["proxy"] = _without_credentials(upstream.proxy)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _shown_secret(text: str) -> str:
    return text if text.startswith(("env:", "file:")) else HIDDEN


def read_secret(text: str, environment: Mapping[str, str], what: str) -> str:
    """The secret that a setting names. Raises: ConfigError, naming `what` and the place, never the secret."""
    kind, colon, place = text.partition(":")
    if not colon or kind not in ("env", "file"):
        secret = text
    elif kind == "env":
        secret = environment.get(place, "").strip()
        if not secret:
            raise ConfigError(f"{what}: the environment variable {place} is not set.")
    else:
        try:
            secret = Path(place).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what}: {place} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if not secret.isascii() or not secret.isprintable() or not secret:
        raise ConfigError(f"{what}: it is empty, or has characters that no header can have (line breaks, say).")
    return secret
