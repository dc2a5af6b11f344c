"""Settings that are read again: what holds, what waits for a restart, and that a problem changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest

from langport import http_server as server
from langport.errors import ConfigError
from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.remote_models import RemoteModels
from langport.gateway.upstream import Upstream
from langport.reload import FIXED, Reloader, apply_settings, merge
from langport.settings.tree import (
    DeploymentSettings,
    EngineSettings,
    GatewaySettings,
    LimitSettings,
    ModelSettings,
    OverloadSettings,
    Price,
    RouteSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
)
from langport.settings.upstreams import UpstreamSettings
from langport.testing import AsgiClient

change = msgspec.structs.replace


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """What is reloaded is the process's."""
    level = server.logger.level
    yield
    server.logger.setLevel(level)


def test_every_setting_is_either_changed_or_named() -> None:
    """Nothing is dropped: whatever differs is told, and holds unless it waits."""
    old = Settings(models=(ModelSettings("a", "./a"),))
    route = RouteSettings((DeploymentSettings("a"),))
    wanted = Settings(
        host="0.0.0.0",
        port=1,
        workers=2,
        models=(ModelSettings("a", "./a", EngineSettings(device="cpu")),),
        max_loaded_models=1,
        gateway=GatewaySettings(
            api_keys=("k",), allowed_origins=("*",), max_body_bytes=1, aliases={"b": "a"}, allow_adapter_updates=True,
            routes={"r": route}, deployment_header=False, unknown_parameters="refuse", admin_key="k",
            metrics_without_key=True, prices={"a": Price(1.0, 1.0)}, record_usage=True,
            response_cache_bytes=1, response_cache_ttl_s=1, response_cache_store="redis://a",
        ),
        limits=LimitSettings(completion_max_n=1),
        overload=OverloadSettings(max_queue_s=1, max_queued_tokens=2),
        store=StoreSettings(place="none"),
        telemetry=TelemetrySettings(access_log="off"),
        upstreams=(UpstreamSettings("http://far"),),
        log_level="debug",
    )  # fmt: skip
    for section in (old, old.gateway):
        twin = wanted if section is old else wanted.gateway
        assert [name for name in section.__struct_fields__ if getattr(section, name) == getattr(twin, name)] == []
    found = merge(old, wanted)
    assert found.changed == (
        "upstream", "api_key", "admin_key", "metrics_without_key", "allowed_origins", "max_body_size",
        "redirect", "allow_adapter_updates", "routes", "deployment_header", "unknown_parameters", "max_queue_wait",
        "max_queued_tokens", "log_level",
    )  # fmt: skip
    assert found.need_restart == (
        "host", "port", "workers", "models", "max_loaded_models", "record_usage", "price", "response_cache",
        "response_cache_ttl", "response_cache_store", "limits", "store", "telemetry",
    )  # fmt: skip
    holds = found.settings
    assert (holds.host, holds.port, holds.models, holds.store) == (old.host, old.port, old.models, old.store)
    assert (holds.gateway.routes, holds.overload, holds.log_level) == ({"r": route}, wanted.overload, "debug")
    assert merge(holds, wanted).changed == ()
    assert merge(holds, wanted).need_restart == found.need_restart, "it is told again until there is a restart"


def test_the_table_names_fields_that_there_are() -> None:
    for section, fields in FIXED.items():
        assert fields <= set(section.__struct_fields__)


class Rig:
    """A gateway over one fake model, and a reloader of it."""

    def __init__(self, **settings: Any) -> None:
        model = Upstream("demo", self.answer, card=dict, is_ready=lambda: (True, ""))
        self.settings = self.wanted = Settings(gateway=GatewaySettings(**settings))
        self.admission = Admission(self.settings.overload)
        self.gateway = Gateway([model], self.settings.gateway, admission=self.admission)
        apply = partial(apply_settings, self.gateway, self.admission, RemoteModels(()))
        self.reloader = Reloader(self.settings, self.read, apply)

    async def answer(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def read(self) -> Settings:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    def want(self, **settings: Any) -> None:
        self.wanted = change(self.settings, gateway=change(self.settings.gateway, **settings))

    async def status(self, model: str, key: str = "") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return (await AsgiClient(self.gateway).post("/v1/completions", {"model": model}, headers=headers)).status


async def test_names_keys_and_limits_hold_from_the_next_request_on() -> None:
    rig = Rig()
    assert [await rig.status("demo"), await rig.status("chat"), await rig.status("gpt")] == [200, 404, 404]
    rig.want(routes={"chat": RouteSettings((DeploymentSettings("demo"),))}, aliases={"gpt": "chat"}, api_keys=("k",))
    rig.wanted = change(rig.wanted, overload=OverloadSettings(key_requests_per_minute=2), port=1)
    found = await rig.reloader.reload()
    assert found.changed == ("api_key", "redirect", "routes", "key_requests_per_minute")
    assert found.need_restart == ("port",)
    assert await rig.status("demo") == 401
    assert [await rig.status("chat", "k"), await rig.status("gpt", "k"), await rig.status("demo", "k")] == [
        200,
        200,
        429,
    ]
    rig.want(routes={}, aliases={})
    await rig.reloader.reload()
    assert [await rig.status("chat"), await rig.status("demo")] == [404, 200]


async def test_all_problems_are_told_together_and_the_running_settings_stay(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(aliases={"gpt": "demo"}, api_keys=("k",))
    rig.want(
        routes={"demo": RouteSettings((DeploymentSettings("other"),), fallbacks=("third",))},
        aliases={"x": "nowhere"},
        api_keys=(" ",),
    )
    with pytest.raises(ConfigError) as caught:
        await rig.reloader.reload()
    assert len(caught.value.problems) == 5
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 5
    assert all(line.startswith("Settings not reloaded, the running ones stay: ") for line in told)
    assert any("'other' is not served; a model of this machine is only after a restart" in line for line in told)
    assert [await rig.status("gpt", "k"), await rig.status("demo"), await rig.status("x", "k")] == [200, 401, 404]
    rig.want(api_keys=("k2",))
    assert (await rig.reloader.reload()).changed == ("api_key",)
    assert [await rig.status("gpt", "k2"), await rig.status("gpt", "k")] == [200, 401]


async def test_a_file_that_cannot_be_read_changes_nothing() -> None:
    rig = Rig()
    rig.wanted = ConfigError("one", "two")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="one\ntwo"):
        await rig.reloader.reload()
    assert await rig.status("demo") == 200


async def test_adapters_that_were_added_meanwhile_stay() -> None:
    rig = Rig()
    adapter = replace(rig.gateway.models[0], name="polite", unload=lambda: None)
    rig.gateway._served.put(adapter)
    rig.want(routes={"chat": RouteSettings((DeploymentSettings("polite"),))})
    await rig.reloader.reload()
    assert [await rig.status("polite"), await rig.status("chat")] == [200, 200]
    assert [model.name for model in rig.gateway.models] == ["demo", "polite"]


async def test_routes_that_stay_keep_what_they_know() -> None:
    chat = RouteSettings((DeploymentSettings("demo"),))
    rig = Rig(routes={"chat": chat, "other": chat})
    before = {upstream.name: upstream.app for upstream in rig.gateway._served.upstreams}
    rig.want(routes={"chat": chat, "other": change(chat, strategy="sticky")})
    await rig.reloader.reload()
    after = {upstream.name: upstream.app for upstream in rig.gateway._served.upstreams}
    assert after["chat"] is before["chat"]
    assert after["other"] is not before["other"]


@pytest.mark.parametrize(
    ("had_terminal", "has_terminal", "stops"), [(True, True, False), (True, False, True), (False, False, False)]
)
async def test_a_hangup_stops_the_server_only_when_its_terminal_has_gone(
    monkeypatch: pytest.MonkeyPatch, had_terminal: bool, has_terminal: bool, stops: bool
) -> None:
    rig = Rig()
    rig.want(api_keys=("k",))
    stopped: list[bool] = []
    monkeypatch.setattr(server, "_has_terminal", lambda: had_terminal)
    hangup = server.Hangup(rig.reloader, lambda: stopped.append(True))
    monkeypatch.setattr(server, "_has_terminal", lambda: has_terminal)
    hangup()
    for task in list(hangup._reloading):
        await task
    assert bool(stopped) == stops
    assert await rig.status("demo") == (200 if stops else 401)
