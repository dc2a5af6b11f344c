"""From method and path to a handler.

Every path may come without `/v1`, or under `/openai` (Anthropic's under `/anthropic`) as Azure's clients have it;
a slash at the end is tolerated. Clients of openai-python 0.28 (`engine=`) and of Azure name the model in the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from langport.errors import MethodNotAllowed, NotFound
from langport.gateway.asgi import Scope

H = TypeVar("H")

MODEL_PATH = "/v1/models/{id}"
_MODEL_KEY = "{id}"  # no request path is spelled like this, having no slash
_MODEL_PREFIXES = ("/v1/models/", "/models/", "/openai/v1/models/", "/openai/models/")
_OPERATION_PREFIXES = ("/v1/engines/", "/engines/", "/openai/deployments/")
_OPERATIONS = ("/chat/completions", "/completions", "/embeddings")
_OTHER_VERSIONS = {"/v1/rerank": "/v2/rerank"}
"""Where a client's second version is served like the first: Cohere's."""
_ANTHROPIC_PATHS = ("/v1/messages", "/messages", "/anthropic/v1/messages", "/anthropic/messages")


@dataclass(frozen=True, slots=True)
class Route(Generic[H]):
    """One row of the table."""

    method: str
    path: str
    """In its full form, as upstreams and metrics see it."""
    handler: H


@dataclass(frozen=True, slots=True)
class Match(Generic[H]):
    """A route, and what the path said beside it."""

    route: Route[H]
    model: str | None = None
    """Where the path names the model."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """What stood for the route's braces, decoded."""


class WrongMethod(MethodNotAllowed):
    """Knows what the `Allow` header must say."""

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(f"{method} is not possible on {path[:200]}; it takes {self.allowed}.")


class Routes(Generic[H]):
    """The table. HEAD is answered wherever GET is."""

    def __init__(self, routes: Iterable[Route[H]]) -> None:
        self._table: dict[tuple[str, str], Route[H]] = {}
        self._matches: dict[tuple[str, str], Match[H]] = {}
        """Of paths that say nothing beside their route."""
        self._methods: dict[str, list[str]] = {}
        self._templates: dict[int, dict[str, list[str]]] = {}
        """By number of parts, the keys of the paths with braces and their parts."""
        for route in routes:
            for path in _spellings(route.path):
                if "{" in path and path != _MODEL_KEY:
                    parts = path.split("/")
                    path = path.removeprefix("/")  # as no request path is spelled
                    self._templates.setdefault(len(parts), {})[path] = parts
                for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                    self._table[method, path] = route
                    self._matches[method, path] = Match(route)
                    self._methods.setdefault(path, []).append(method)

    def match(self, scope: Scope) -> Match[H]:
        """Raises: NotFound, WrongMethod."""
        method, path = scope["method"], plain_path(scope)
        known = self._matches.get((method, path))
        if known is not None:
            return known
        model = None
        ids: dict[str, str] = {}
        if path not in self._methods:
            path, model = _split_model(_raw_path(scope))
        if path not in self._methods:
            path, ids = self._fill_template(path)
        route = self._table.get((method, path))
        if route is not None:
            return Match(route, model, ids)
        if path in self._methods:
            raise WrongMethod(method, plain_path(scope), self._methods[path])
        raise NotFound(
            f"There is nothing at {method} {plain_path(scope)[:200]}. The API is under /v1, for example "
            "POST /v1/chat/completions; GET /docs describes every path."
        )

    def _fill_template(self, path: str) -> tuple[str, dict[str, str]]:
        """The key of the path with braces that this one fills, and what with."""
        given = path.split("/")
        for template, parts in self._templates.get(len(given), {}).items():
            ids: dict[str, str] = {}
            for part, text in zip(parts, given, strict=True):
                if part.startswith("{") and text:
                    ids[part[1:-1]] = unquote(text)
                elif part != text:
                    break
            else:
                return template, ids
        return path, {}


def plain_path(scope: Scope) -> str:
    """The decoded path below the app's mount point, without a slash at the end."""
    path: str = scope["path"]
    if scope.get("root_path"):
        path = _below_root(path, scope)
    return path if path == "/" or not path.endswith("/") else path.rstrip("/") or "/"


def is_anthropic(path: str) -> bool:
    """Whether a path is one of Anthropic's API, or would be if there were anything at it."""
    return "/messages" in path and any(path == own or path.startswith(own + "/") for own in _ANTHROPIC_PATHS)


def _raw_path(scope: Scope) -> str:
    """The same, still percent-encoded where the server tells: an id's %2F is no separator."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return plain_path(scope)
    return _below_root(raw.partition(b"?")[0].decode("latin-1"), scope).rstrip("/")


def _below_root(path: str, scope: Scope) -> str:
    root: Any = scope.get("root_path", "")
    return path[len(root) :] or "/" if root and path.startswith(root) else path


def _spellings(path: str) -> list[str]:
    if path == MODEL_PATH:
        return [_MODEL_KEY]
    if not path.startswith("/v1/"):
        return [path]
    tail = path.removeprefix("/v1")
    cloud = "/anthropic" if is_anthropic(path) else "/openai"
    others = [_OTHER_VERSIONS[path]] if path in _OTHER_VERSIONS else []
    return [path, tail, cloud + path, cloud + tail, *others]


def _split_model(path: str) -> tuple[str, str | None]:
    for prefix in _OPERATION_PREFIXES:
        rest = path.removeprefix(prefix)
        if rest != path:
            for operation in _OPERATIONS:
                model = rest.removesuffix(operation)
                if model and model != rest:
                    return "/v1" + operation, unquote(model)
    for prefix in _MODEL_PREFIXES:
        if path.startswith(prefix):
            return _MODEL_KEY, unquote(path.removeprefix(prefix))
    return path, None
