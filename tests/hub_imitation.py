"""A small imitation of the Hugging Face hub's HTTP API, enough for `huggingface_hub.snapshot_download`.

It knows model info, the file tree, and files with ETag, commit and ranges; missing, gated and private models;
and it can break a download in the middle. Facts about the API: https://huggingface.co/docs/hub/api and
huggingface_hub's source.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubModel:
    """One model repository at one commit."""

    files: dict[str, bytes]
    needs_token: str | None = None
    """Only requests with this token may read it."""
    is_gated: bool = False
    """Without the token it is refused as gated, not as missing."""
    revisions: tuple[str, ...] = ("main", COMMIT)


@dataclass(frozen=True)
class HubRequest:
    method: str
    path: str
    token: str | None


@dataclass
class Hub:
    """The imitation's state: what it has and what it was asked."""

    url: str
    models: dict[str, HubModel]
    requests: list[HubRequest] = field(default_factory=list)
    cut_once: set[str] = field(default_factory=set)
    """Files whose next download stops in the middle of the body."""


@contextmanager
def running_hub(models: dict[str, HubModel]) -> Iterator[Hub]:
    """The imitation on a free local port, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", models)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.requests.append(HubRequest(self.command, path, token))
        try:
            if path.startswith("/api/models/"):
                self._api(hub, path.removeprefix("/api/models/"), token)
            else:
                self._file(hub, path.removeprefix("/"), token)
        except _Refused as refused:
            self._answer(refused.status, b"{}", {"X-Error-Code": refused.code})

    do_HEAD = do_GET

    def _api(self, hub: Hub, rest: str, token: str | None) -> None:
        for part in ("/tree/", "/revision/", ""):
            name, _, revision = rest.partition(part) if part else (rest, "", "main")
            if name != rest or not part:
                break
        model = _open(hub, name, revision, token)
        if part == "/tree/":
            answer: object = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in model.files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in model.files]
            answer = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, hub: Hub, path: str, token: str | None) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        model = _open(hub, name, revision, token)
        if file not in model.files:
            raise _Refused(404, "EntryNotFound")
        content = model.files[file]
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        is_cut = self.command == "GET" and file in hub.cut_once
        hub.cut_once -= {file} if is_cut else set()
        self._answer(206 if start else 200, content[start:], headers, is_cut=is_cut)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        self.close_connection = self.close_connection or is_cut

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the requests are in `Hub.requests`."""


def _open(hub: Hub, name: str, revision: str, token: str | None) -> HubModel:
    """The model, or the refusal that the hub gives; strangers cannot tell a missing from a private one."""
    model = hub.models.get(name)
    if model is not None and model.needs_token in (None, token):
        if revision not in model.revisions:
            raise _Refused(404, "RevisionNotFound")
        return model
    if model is not None and model.is_gated:
        raise _Refused(403 if token else 401, "GatedRepo")
    raise _Refused(404 if token else 401, "RepoNotFound")


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
