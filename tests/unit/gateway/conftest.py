"""The usual gateway: two models and an alias."""

from __future__ import annotations

import pytest
from gateway_fakes import Client, FakeUpstream, make_client


@pytest.fixture
def demo() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
def client(demo) -> Client:
    return make_client({"demo": demo, "org/name": FakeUpstream()}, aliases={"gpt-4": "demo"})
