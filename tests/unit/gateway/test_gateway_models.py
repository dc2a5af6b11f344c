"""The admin API over models that come and go."""

from __future__ import annotations

import pytest
from gateway_fakes import FakeUpstream, make_client

from langport.errors import CheckpointError
from langport.gateway.residence import ModelStatus
from langport.gateway.upstream import Upstream

ADMIN = {"authorization": "Bearer admin-secret"}


class FakeResidence:
    """Implements `gateway.residence.Residence`."""

    def __init__(self, error=None):
        self.state = "unloaded"
        self.error = error

    async def load(self):
        if self.error is not None:
            raise self.error
        self.state = "ready"

    def unload(self):
        self.state = "unloading"

    async def report(self):
        return ModelStatus(
            state=self.state,
            is_pinned=False,
            num_requests=0,
            num_waiting=0,
            num_loads=3,
            memory_bytes=5,
            idle_s=None,
            problem=None,
        )


def upstream(name, residence):
    return Upstream(name, FakeUpstream(), card=dict, is_ready=lambda: (True, ""), residence=residence)


@pytest.fixture
def client():
    broken = FakeResidence(CheckpointError("broken: model.safetensors is cut short"))
    rows = {"org/a": FakeResidence(), "broken": broken, "remote": None}
    upstreams = {name: upstream(name, residence) for name, residence in rows.items()}
    return make_client(upstreams, admin_key="admin-secret", aliases={"short": "org/a"})


async def test_models_are_listed_loaded_and_unloaded_by_name_and_alias(client):
    listed = (await client.get("/admin/models", headers=ADMIN)).json
    assert listed["object"] == "list"
    assert [(model["id"], model["state"], model["num_loads"]) for model in listed["data"]] == [
        ("org/a", "unloaded", 3),
        ("broken", "unloaded", 3),
    ]
    for name, action, state in (("org%2Fa", "load", "ready"), ("short", "unload", "unloading")):
        answer = await client.post(f"/admin/models/{name}/{action}", headers=ADMIN)
        assert answer.status == 200
        assert (answer.json["id"], answer.json["object"]) == ("org/a", "model.residence")
        assert answer.json["state"] == state


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("broken", 503, "could not be loaded: broken: model.safetensors is cut short"),
        ("nobody", 404, "is not served here"),
        ("remote", 400, "Those that are: org/a, broken."),
    ],
)
async def test_what_cannot_be_loaded_is_told(client, name, status, words):
    answer = await client.post(f"/admin/models/{name}/load", headers=ADMIN)
    assert answer.status == status
    assert words in answer.json["error"]["message"]


async def test_nobody_else_may(client):
    assert (await client.post("/admin/models/broken/load")).status == 401
    assert (await client.get("/admin/models", headers={"authorization": "Bearer other"})).status == 403
