"""Every route of the admin API, in every spelling, without the admin key."""

from __future__ import annotations

import pytest

from langport.gateway.app import Gateway
from langport.gateway.key_admin import ROUTES as KEY_ROUTES
from langport.gateway.model_admin import ROUTES as MODEL_ROUTES
from langport.settings.tree import GatewaySettings
from tests.security.raw import ADMIN_KEY, KEY, ask, request
from tests.server.process import Server

ROUTES = (*KEY_ROUTES, *MODEL_ROUTES, ("POST", "/admin/reload"))
SPELLINGS = (
    "{}",
    "{}/",
    "{}?key=" + ADMIN_KEY,
    "/%61dmin{}",
    "/admin%2F{}",
    "http://127.0.0.1{}",
    "//{}",
    "/v1{}",
    "/openai{}",
    "/v1/..{}",
    "/./{}",
    "/v1/models/..%2f..{}",
)
WRONG = (b"", f"Authorization: Bearer {KEY}".encode(), b"Authorization: Bearer ", b"X-Admin-Key: " + ADMIN_KEY.encode())


def spelled(spelling: str, path: str) -> str:
    path = path.format(key_id="key_1", name="far")
    if spelling.startswith(("/%61dmin", "/admin%2F")):
        return spelling.format(path.removeprefix("/admin") if "%61" in spelling else path.removeprefix("/admin/"))
    return spelling.format(path.removeprefix("/") if spelling in ("//{}", "/./{}") else path)


def test_these_are_all_routes_of_the_admin_api() -> None:
    gateway = Gateway([], GatewaySettings())
    served = {route.path for route in gateway._routes._table.values() if "admin" in route.path}
    assert served == {path for _, path in ROUTES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_none_opens_without_the_admin_key(server: Server, method: str, path: str, spelling: str) -> None:
    for key in WRONG:
        answer = ask(server.port, request(method, spelled(spelling, path), body=b"{}", key=key))
        assert answer.status in (401, 403, 404, 405)
        assert answer.message
        assert ADMIN_KEY not in str(answer)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_admin_key_opens_it(server: Server, method: str, path: str) -> None:
    """So that the refusals above are not those of paths that are not there."""
    key = f"Authorization: Bearer {ADMIN_KEY}".encode()
    answer = ask(server.port, request(method, spelled("{}", path), body=b'{"no_such_field": 1}', key=key))
    assert answer.status in (200, 400, 404)
    assert "--admin-key" not in str(answer.body)
    assert "nothing at" not in str(answer.body)


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/files", "/openapi.json"])
def test_the_admin_key_opens_nothing_else(server: Server, path: str) -> None:
    answer = ask(server.port, request("GET", path, key=f"Authorization: Bearer {ADMIN_KEY}".encode()))
    assert answer.status == 401
