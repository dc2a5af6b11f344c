"""Keys and web origins."""

from __future__ import annotations

import hmac

import pytest
from gateway_fakes import FakeUpstream, make_client

from langport.errors import AuthenticationFailed, ConfigError
from langport.gateway import auth
from langport.gateway.auth import Keyring

KEYS = ["sk-first", "sk-second-ä"]
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, x-stainless-os",
}


@pytest.fixture
def locked():
    return make_client({"demo": FakeUpstream()}, api_keys=KEYS)


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/"])
async def test_probes_need_no_key(locked, path):
    assert (await locked.get(path)).status == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/", "/nothing", "/v1/health", "/health/x"]
)
async def test_everything_else_does(locked, path):
    found = await locked.get(path)
    assert found.status == 401
    assert found.error["code"] == "invalid_api_key"
    assert "Authorization: Bearer" in found.error["message"]
    assert found.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-first"},
        {"authorization": "bearer  sk-first "},
        {"authorization": "Bearer sk-second-ä"},
        {"api-key": "sk-first"},
        {"authorization": "Basic eDp5", "api-key": "sk-first"},
    ],
)
async def test_a_known_key_opens(locked, headers):
    assert (await locked.get("/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-wrong-one"},
        {"authorization": "Bearer sk-firs"},
        {"authorization": "Bearer sk-first2"},
        {"authorization": "Bearer"},
        {"authorization": "sk-first"},
        {"authorization": "Basic sk-first"},
        {"api-key": "SK-FIRST"},
        {"api-key": ""},
        {"authorization": "Bearer sk-first sk-first"},
    ],
)
async def test_another_does_not_and_is_not_repeated(locked, headers):
    found = await locked.get("/v1/models", headers=headers)
    assert (found.status, found.error["code"]) == (401, "invalid_api_key")
    assert b"sk-" not in found.body.lower()
    assert all(key.encode() not in found.body for key in KEYS)


async def test_a_refused_request_is_not_read(locked):
    found = await locked.post("/v1/chat/completions", chunks=[])
    assert found.status == 401


async def test_without_keys_any_key_will_do(client):
    assert (await client.get("/v1/models", headers={"authorization": "Bearer EMPTY"})).status == 200


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_refused_at_start(key):
    with pytest.raises(ConfigError, match="empty"):
        Keyring(["good", key])


class TestOrigins:
    async def test_none_configured_adds_nothing(self, client):
        found = await client.get("/v1/models", headers={"origin": "https://a.example"})
        assert not [name for name in found.headers if name.startswith("access-control") or name == "vary"]
        found = await client.request("OPTIONS", "/v1/models", headers={"origin": "https://a.example", **PREFLIGHT})
        assert found.status == 405

    async def test_any_origin(self):
        client = make_client(allowed_origins=["*"])
        headers = (await client.get("/v1/models", headers={"origin": "https://a.example"})).headers
        assert headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in headers["access-control-expose-headers"]

    async def test_a_listed_origin_is_named_back(self):
        client = make_client(allowed_origins=["https://a.example", "https://b.example/"])
        for origin in ("https://a.example", "https://b.example"):
            headers = (await client.get("/v1/models", headers={"origin": origin})).headers
            assert headers["access-control-allow-origin"] == origin
            assert headers["vary"] == "Origin"

    @pytest.mark.parametrize("origin", ["https://evil.example", "https://a.example.evil", "null", None])
    async def test_another_one_is_not(self, origin):
        client = make_client(allowed_origins=["https://a.example"])
        headers = (await client.get("/v1/models", headers={"origin": origin} if origin else {})).headers
        assert "access-control-allow-origin" not in headers
        assert headers["vary"] == "Origin"

    async def test_errors_and_refusals_carry_the_headers_too(self):
        client = make_client(allowed_origins=["*"], api_keys=KEYS)
        for path in ("/v1/models", "/nothing"):
            found = await client.get(path, headers={"origin": "https://a.example"})
            assert found.status == 401
            assert found.headers["access-control-allow-origin"] == "*"

    async def test_a_preflight_needs_no_key(self):
        client = make_client(allowed_origins=["https://a.example"], api_keys=KEYS)
        found = await client.request(
            "OPTIONS", "/v1/chat/completions", headers={"origin": "https://a.example", **PREFLIGHT}
        )
        assert (found.status, found.body, found.finished) == (204, b"", True)
        assert not {"content-length", "content-type"} & set(found.headers)
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        assert "POST" in found.headers["access-control-allow-methods"]
        assert found.headers["access-control-allow-headers"] == "authorization, x-stainless-os"

    async def test_a_preflight_from_elsewhere_says_why_it_is_refused(self):
        client = make_client(allowed_origins=["https://a.example"])
        found = await client.request("OPTIONS", "/v1/models", headers={"origin": "https://evil.example", **PREFLIGHT})
        assert found.status == 400
        assert "--allowed-origins" in found.error["message"]
        assert "access-control-allow-origin" not in found.headers

    async def test_odd_header_names_are_not_repeated(self):
        client = make_client(allowed_origins=["*"])
        headers = {"origin": "https://a.example", **PREFLIGHT, "access-control-request-headers": "a\x01b"}
        found = await client.request("OPTIONS", "/v1/models", headers=headers)
        assert found.headers["access-control-allow-headers"] == "authorization, content-type"

    async def test_options_without_a_preflights_headers_is_an_ordinary_request(self):
        client = make_client(allowed_origins=["*"])
        assert (await client.request("OPTIONS", "/v1/models")).status == 405


@pytest.mark.parametrize("length", [auth.MAX_CACHED_KEY, auth.MAX_CACHED_KEY + 1])
async def test_keys_that_are_far_too_long_are_not_kept(length):
    auth._cached_digest.cache_clear()
    keyring = auth.Keyring(["a" * length])
    for _ in range(2):
        key = await keyring.find(b"a" * length)
        assert key.id == "static-1"
        with pytest.raises(AuthenticationFailed):
            await keyring.find(b"b" * length)
    assert auth._cached_digest.cache_info().currsize == (2 if length <= auth.MAX_CACHED_KEY else 0)


@pytest.mark.parametrize("given", ["first", "second", "third", "firsT", "other", "f" * 10_000])
async def test_whichever_key_is_given_every_digest_is_compared_in_constant_time(monkeypatch, given):
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(auth, "compare_digest", compare)
    keyring = Keyring(("first", "second", "third"))
    if given in ("first", "second", "third"):
        assert (await keyring.find(given.encode())).id
    else:
        with pytest.raises(AuthenticationFailed):
            await keyring.find(given.encode())
    assert compared == [(32, 32)] * 3
