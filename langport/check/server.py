"""The server that is checked, over http.client: whole answers, streams of events, and streams left early."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from langport.errors import ConfigError


class Failed(Exception):
    """A rule is broken: what was expected, and what came."""


class Skipped(Exception):
    """A rule cannot be tried on this server, and why."""


@dataclass
class Answer:
    """A whole answer. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Raises: Failed when the body is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"expected JSON, got {shown(self.body.decode('utf-8', 'replace'))}") from None

    def succeeded(self) -> Any:
        """The JSON object of an answer with status 200. Raises: Failed."""
        if self.status != 200:
            raise Failed(f"expected status 200, got {self.status}: {shown(self.body.decode('utf-8', 'replace'))}")
        if not isinstance(self.json, dict):
            raise Failed(f"expected a JSON object, got {shown(self.json)}")
        return self.json

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event. Raises: Failed when the answer is no stream of them."""
        if self.status != 200:
            self.succeeded()
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            raise Failed(f"expected content-type text/event-stream, got {self.headers.get('content-type')}")
        blocks = self.body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n\n")
        data = [[line[5:].lstrip() for line in block.split("\n") if line.startswith("data:")] for block in blocks]
        return ["\n".join(lines) for lines in data if lines]


@dataclass
class Server:
    """Where to ask, as whom, and for which models."""

    url: str
    """The base URL, /v1 included."""
    api_key: str | None = None
    models: dict[str, str | None] = field(default_factory=dict)
    """By what they are for: chat, completion, embedding."""
    timeout_s: float = 120.0

    def get(self, path: str, **headers: str) -> Answer:
        """Raises: Failed when nothing comes back."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Send a body (bytes as they are, else as JSON). Raises: Failed when nothing comes back."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, data, headers)

    def leave(self, path: str, body: object) -> None:
        """Start a stream and hang up after its first bytes. Raises: Failed when none come."""
        connection = self._connect()
        try:
            connection.request("POST", self._path(path), json.dumps(body).encode(), self._headers({}))
            response = connection.getresponse()
            if response.status != 200 or not response.read1(1):
                raise Failed(f"expected a stream, got status {response.status}")
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"expected a stream, got {type(error).__name__}: {error}") from None
        finally:
            connection.close()

    def model(self, purpose: str) -> str:
        """Raises: Skipped when there is none for it."""
        name = self.models.get(purpose)
        if not name:
            raise Skipped(f"no --{purpose}-model given, and none found")
        return name

    def _ask(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connect()
        try:
            connection.request(method, self._path(path), data, self._headers(headers))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        except (OSError, http.client.HTTPException) as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise Failed(f"expected an answer to {method} {path}, got {what}") from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.netloc, timeout=self.timeout_s, context=context)
        return http.client.HTTPConnection(parts.netloc, timeout=self.timeout_s)

    def _path(self, path: str) -> str:
        return urlsplit(self.url).path.rstrip("/") + path

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"Content-Type": "application/json", **more}
        if self.api_key:
            headers.setdefault("Authorization", f"Bearer {self.api_key}")
        return headers


def base_url(given: str) -> str:
    """A base URL as users write it: with or without http:// and /v1. Raises: ConfigError."""
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        has_place = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        has_place = False
    if not has_place:
        raise ConfigError(f"{given!r} is no address of a server; write http://HOST:PORT or https://HOST/v1.")
    return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + "/v1"


def shown(value: object, most: int = 160) -> str:
    """A value in one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
