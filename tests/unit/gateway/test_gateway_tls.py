"""Servers behind TLS and behind proxies.

`tls/server.pem` is a certificate of localhost with its (worthless) key, signed by `tls/ca.pem`; both last a century.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
from gateway_fakes import Client
from raw_server import gateway_to, plain, raw_server, says

from langport.errors import ConfigError
from langport.gateway.http_client import HttpClient
from langport.gateway.remote import RemoteServer
from langport.settings.upstreams import UpstreamSettings

TLS = Path(__file__).parent / "tls"
OK = plain(b'{"ok":true}')
SECRET = "sesame-0003"


def tls_server(script, *, wants_certificate: bool = False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    if wants_certificate:
        context.load_verify_locations(TLS / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return raw_server(script, ssl=context)


def https(server) -> str:
    return f"https://localhost:{server.port}"


async def ask(gateway):
    return await Client(gateway).post("/v1/chat/completions", {"model": "far", "messages": []})


async def test_a_certificate_is_checked():
    async with tls_server(says(OK)) as server:
        async with gateway_to(https(server), ca_file=str(TLS / "ca.pem")) as (gateway, _):
            assert (await ask(gateway)).json == {"ok": True}
            assert (await ask(gateway)).json == {"ok": True}
            assert server.num_connections == 1
        async with gateway_to(https(server)) as (gateway, _):
            found = await ask(gateway)
            assert found.status == 502
            assert "certificate that is not trusted" in found.error["message"]
        wrong_name = https(server).replace("localhost", "127.0.0.2")
        async with gateway_to(wrong_name, ca_file=str(TLS / "ca.pem")) as (gateway, _):
            assert (await ask(gateway)).status == 502
        async with gateway_to(https(server), verify_tls=False) as (gateway, _):
            assert (await ask(gateway)).json == {"ok": True}
    assert len(server.requests) == 3


async def test_a_certificate_is_shown():
    own = {"ca_file": str(TLS / "ca.pem"), "client_certificate": str(TLS / "server.pem")}
    async with tls_server(says(OK), wants_certificate=True) as server:
        async with gateway_to(https(server), **own) as (gateway, _):
            assert (await ask(gateway)).json == {"ok": True}
        async with gateway_to(https(server), ca_file=own["ca_file"]) as (gateway, _):
            assert (await ask(gateway)).status == 502


@pytest.mark.parametrize("field", ["ca_file", "client_certificate"])
def test_a_certificate_that_cannot_be_read_is_named_at_start(tmp_path, field):
    for path in (tmp_path / "missing.pem", tmp_path / "wrong.pem"):
        (tmp_path / "wrong.pem").write_text("no certificate")
        with pytest.raises(ConfigError, match=r"https://a.example.*\.pem\) cannot be used"):
            RemoteServer(UpstreamSettings(url="https://a.example", **{field: str(path)}), {})


async def test_a_server_without_tls_is_an_error():
    async def serve(reader, writer):
        writer.write(plain(b"{}", "400 Bad Request"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with gateway_to(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (gateway, _):
        found = await ask(gateway)
    server.close()
    assert found.status == 502
    assert "cannot be reached" in found.error["message"]


# Proxies.


def proxy_to(port: int, said: list[str], answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"):
    """Accepts CONNECT, then hands bytes on to a port of this machine."""

    async def serve(reader, writer):
        said.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        if b" 200 " not in answer:
            writer.close()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source, target):
            try:
                while data := await source.read(65536):
                    target.write(data)
            except ConnectionError:
                pass
            finally:
                target.close()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    return asyncio.start_server(serve, "127.0.0.1", 0)


async def test_https_goes_through_a_tunnel_that_sees_no_key(caplog):
    caplog.set_level(logging.DEBUG, "langport")
    said: list[str] = []
    async with tls_server(says(OK)) as server:
        proxy = await proxy_to(server.port, said)
        url = f"http://me:{SECRET}@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with gateway_to(https(server), key=SECRET, proxy=url, ca_file=str(TLS / "ca.pem")) as (gateway, _):
            assert (await ask(gateway)).json == {"ok": True}
            assert (await ask(gateway)).json == {"ok": True}
        proxy.close()
    (head,) = said
    assert head.startswith(f"CONNECT localhost:{server.port} HTTP/1.1\r\n")
    assert "proxy-authorization: Basic bWU6c2VzYW1lLTAwMDM=" in head
    assert SECRET not in head + caplog.text
    assert "proxy-authorization" not in server.requests[0].named


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 No\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nmore"])
async def test_a_proxy_that_refuses_is_named_without_its_password(answer):
    proxy = await proxy_to(1, [], answer.replace(b" 200 ", b" 2xx "))
    origin = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    url = origin.replace("//", f"//me:{SECRET}@")
    async with gateway_to("https://a.example", proxy=url) as (gateway, _):
        found = await ask(gateway)
    proxy.close()
    assert found.status == 502
    assert origin in found.error["message"]
    assert SECRET not in found.error["message"]


async def test_http_is_asked_of_the_proxy_with_the_whole_address():
    async with raw_server(says(OK)) as proxy:
        url = proxy.url.replace("//", "//me:pw@")
        async with gateway_to("http://a.example:81/v1", proxy=url) as (gateway, _):
            assert (await ask(gateway)).json == {"ok": True}
    request = proxy.requests[0]
    assert request.line == "POST http://a.example:81/v1/chat/completions HTTP/1.1"
    assert (request.named["host"], request.named["proxy-authorization"]) == ("a.example:81", "Basic bWU6cHc=")


async def test_a_proxy_that_is_not_there_is_named():
    async with raw_server(says(OK)) as proxy:
        url = proxy.url
    async with gateway_to("http://a.example", proxy=url) as (gateway, _):
        found = await ask(gateway)
    assert f"cannot be reached through the proxy {url}: Connection refused" in found.error["message"]


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://a.example", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("http://a.example", {"https_proxy": "http://p:1"}, None),
        ("http://a.example", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("http://a.example", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "b.example, .a.example"}, None),
        ("https://x.a.example", {"https_proxy": "http://p:1", "NO_PROXY": "a.example"}, None),
        ("https://xa.example", {"https_proxy": "http://p:1", "no_proxy": "a.example"}, "http://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "*"}, None),
        ("http://127.0.0.1:5", {"http_proxy": "http://p:1"}, None),
        ("http://localhost:5", {"http_proxy": "http://p:1"}, None),
    ],
)
def test_the_environment_names_a_proxy(url, environment, expected):
    client = HttpClient(UpstreamSettings(url=url), environment)
    assert (client._proxy and client._proxy.origin) == expected
    assert HttpClient(UpstreamSettings(url=url, proxy="none"), environment)._proxy is None
