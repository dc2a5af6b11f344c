"""The gateway alone, and the server with a model of its own, both in front of one remote server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.upstream import Upstream, upstream_server
from tests.security.raw import ADMIN_KEY, KEY
from tests.server.process import Server, running

OPTIONS = ("--api-key", KEY, "--admin-key", ADMIN_KEY, "--max-body-size", "1MiB")


@pytest.fixture(scope="package")
def upstream() -> Iterator[Upstream]:
    with upstream_server() as found:
        yield found


@pytest.fixture(scope="package", params=["gateway", "serve"])
def server(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[Server]:
    """Its key is KEY, and what it has beside models of its own is `far`."""
    models = ["langport-demo-embed"] if request.param == "serve" else []
    arguments = (*models, "--upstream", f"far={upstream.url}/v1#big", *OPTIONS)
    with running(*arguments, command=request.param) as found:
        yield found
