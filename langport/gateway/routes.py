"""From method and path to a handler.

Every path may come without `/v1`, or under `/openai` as Azure's clients have it; a slash at the end is
tolerated. Clients of openai-python 0.28 (`engine=`) and of Azure name the model in the path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Route(Generic[H]):
    """One row of the table."""

    method: str
    path: str
    """In its full form, as upstreams and metrics see it."""
    handler: H


class WrongMethod(MethodNotAllowed):
    """Knows what the `Allow` header must say."""

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(f"{method} is not possible on {path[:200]}; it takes {self.allowed}.")


class Routes(Generic[H]):
    """The table. HEAD is answered wherever GET is."""

    def __init__(self, routes: Iterable[Route[H]]) -> None:
        self._table: dict[tuple[str, str], Route[H]] = {}
        self._methods: dict[str, list[str]] = {}
        for route in routes:
            for path in _spellings(route.path):
                for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                    self._table[method, path] = route
                    self._methods.setdefault(path, []).append(method)

    def match(self, scope: Scope) -> tuple[Route[H], str | None]:
        """The route, and the model's name where the path holds it. Raises: NotFound, WrongMethod."""
        method, path = scope["method"], plain_path(scope)
        route = self._table.get((method, path))
        if route is not None:
            return route, None
        model = None
        if path not in self._methods:
            path, model = _split_model(_raw_path(scope))
            route = self._table.get((method, path))
        if route is not None:
            return route, model
        if path in self._methods:
            raise WrongMethod(method, plain_path(scope), self._methods[path])
        raise NotFound(
            f"There is nothing at {method} {plain_path(scope)[:200]}. The API is under /v1, for example "
            "POST /v1/chat/completions; GET /docs describes every path."
        )


def plain_path(scope: Scope) -> str:
    """The decoded path below the app's mount point, without a slash at the end."""
    path: str = _below_root(scope["path"], scope)
    return path if path == "/" or not path.endswith("/") else path.rstrip("/") or "/"


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
    return [path, tail, "/openai" + path, "/openai" + tail]


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
