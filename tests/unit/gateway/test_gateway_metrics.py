"""What /metrics says, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import math

import pytest
from gateway_fakes import FakeUpstream, answer, make_client, refuse, stream
from prometheus_client.parser import text_string_to_metric_families

from langport.errors import RateLimited
from langport.figures import Histogram
from langport.gateway.cache import ResponseCache
from langport.gateway.metrics import ENGINE, METRICS, Block, Metric, render
from langport.gateway.queue import Places
from langport.gateway.upstream import Upstream
from langport.settings.tree import TelemetrySettings
from langport.types import TokenUsage

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[]}\n\n'


def parsed(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels, none of them twice."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


async def samples(client):
    return parsed((await client.get("/metrics")).body)


def value(found, name, **labels):
    (match,) = [v for (n, given), v in found.items() if n == name and labels.items() <= dict(given).items()]
    return match


def ready(name, app, **more):
    return Upstream(name, FakeUpstream(app), card=dict, is_ready=lambda: (True, ""), **more)


def metered(*, prompt, completion, events=(EVENT, EVENT, EVENT), estimated=False):
    """An upstream that streams, and counts its tokens itself."""

    async def app(scope, receive, send):
        await receive()
        meter = scope["extensions"]["langport"]["meter"]
        meter(lambda: TokenUsage(prompt, completion, is_estimated=estimated))
        await stream(*events)(receive, send)

    return Upstream("demo", app, card=dict, is_ready=lambda: (True, ""), is_metered=True)


class TestFormat:
    def test_labels_and_help_are_escaped(self):
        metric = Metric("langport_x", "gauge", 'a \\ and a\nline "quoted"', ("model",))
        odd = 'C:\\new "name"\nlangport_x{model="forged"} 1.0'
        text = render([Block(metric, [((odd,), 2), (("plain",), 0.25)])]).decode()
        (family,) = text_string_to_metric_families(text)
        assert family.documentation == metric.help
        assert [(sample.labels["model"], sample.value) for sample in family.samples] == [(odd, 2), ("plain", 0.25)]

    def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket(self):
        histogram = Histogram((0.1, 1.0))
        for seconds in (0.1, 0.5, 1.0, 7.0):
            histogram.observe(seconds)
        metric = Metric("langport_x_seconds", "histogram", "x", ("model",), (0.1, 1.0))
        (family,) = text_string_to_metric_families(render([Block(metric, [(("a",), histogram)])]).decode())
        assert family.type == "histogram"
        buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
        assert buckets == {"0.1": 1, "1.0": 3, "+Inf": 4}
        rest = {sample.name: sample.value for sample in family.samples if not sample.name.endswith("_bucket")}
        assert rest["langport_x_seconds_count"] == 4
        assert math.isclose(rest["langport_x_seconds_sum"], 8.6)

    def test_nothing_is_shown_of_a_metric_without_samples(self):
        assert render([Block(Metric("langport_x", "gauge", "x"), [])]).decode() == ""

    def test_names_are_prometheus_names(self):
        assert len({metric.name for metric in METRICS}) == len(METRICS)
        for metric in METRICS:
            assert metric.name.endswith("_total") == (metric.kind == "counter")
            assert list(metric.bounds) == sorted(set(metric.bounds))

    async def test_everything_that_is_shown_is_in_the_table_with_its_type_and_labels(self):
        figures = {name: Histogram() if metric.kind == "histogram" else 1.0 for name, metric in ENGINE.items()}
        model = metered(prompt=3, completion=4)
        settings = TelemetrySettings(metrics_by_key=True)
        more = ready("more", answer({}), stats=lambda: figures, deployments=lambda: {"first": True})
        cache = ResponseCache(max_bytes=1000, ttl_s=60)
        client = make_client({"demo": model, "more": more}, telemetry=settings, cache=cache)
        await client.post(CHAT, {"model": "demo"})
        found = await client.get("/metrics")
        assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        known = {metric.name: metric for metric in METRICS}
        shown = set()
        for family in text_string_to_metric_families(found.body.decode()):
            name = family.name + ("_total" if family.type == "counter" else "")
            shown.add(name)
            assert family.type == known[name].kind
            for sample in family.samples:
                assert set(sample.labels) - {"le", "key"} == set(known[name].labels)
        never = {"langport_errors_total", "langport_estimated_usage_total"}  # not in these requests
        assert set(known) - shown <= never | {"process_resident_memory_bytes", "process_open_fds"}


class TestRequests:
    async def test_a_stream_is_timed_to_its_first_event_and_between_events(self):
        client = make_client({"demo": stream(b": ping\n\n", EVENT, EVENT, EVENT, b"data: [DONE]\n\n")})
        await client.post(CHAT, {"model": "demo", "stream": True})
        found = await samples(client)
        assert value(found, "langport_time_to_first_token_seconds_count", model="demo") == 1
        assert value(found, "langport_inter_token_latency_seconds_count", model="demo") == 2
        assert value(found, "langport_time_to_first_byte_seconds_count", model="demo") == 1

    @pytest.mark.parametrize("app", [answer({"ok": True}), refuse(RateLimited("Later."))])
    async def test_a_plain_answer_has_no_first_token(self, app):
        client = make_client({"demo": app})
        await client.post(CHAT, {"model": "demo"})
        found = await samples(client)
        assert value(found, "langport_time_to_first_token_seconds_count", model="demo") == 0
        assert value(found, "langport_inter_token_latency_seconds_count", model="demo") == 0

    async def test_tokens_are_counted_per_model_and_per_request(self):
        client = make_client({"demo": metered(prompt=300, completion=5)})
        for _ in range(2):
            await client.post(CHAT, {"model": "demo"})
        found = await samples(client)
        assert value(found, "langport_prompt_tokens_total", model="demo") == 600
        assert value(found, "langport_generation_tokens_total", model="demo") == 10
        assert value(found, "langport_request_prompt_tokens_sum", model="demo") == 600
        assert value(found, "langport_request_prompt_tokens_bucket", model="demo", le="256.0") == 0
        assert value(found, "langport_request_prompt_tokens_bucket", model="demo", le="512.0") == 2
        assert value(found, "langport_time_per_output_token_seconds_count", model="demo") == 2

    async def test_estimates_are_counted_apart_and_make_no_times(self):
        client = make_client({"demo": metered(prompt=3, completion=5, estimated=True)})
        await client.post(CHAT, {"model": "demo"})
        found = await samples(client)
        assert value(found, "langport_estimated_usage_total", model="demo") == 1
        assert value(found, "langport_time_per_output_token_seconds_count", model="demo") == 0

    async def test_tokens_of_work_that_outlives_the_request_are_counted_when_it_has_ended(self):
        work = asyncio.get_running_loop().create_future()
        tokens = [TokenUsage(3, 0)]

        async def app(scope, receive, send):
            await receive()
            scope["extensions"]["langport"]["meter"](lambda: tokens[-1], work)
            await answer({})(receive, send)

        upstream = Upstream("demo", app, card=dict, is_ready=lambda: (True, ""), is_metered=True)
        client = make_client({"demo": upstream})
        await client.post(CHAT, {"model": "demo"})
        assert not [name for name, _ in await samples(client) if name == "langport_generation_tokens_total"]
        tokens.append(TokenUsage(3, 40))
        work.set_result(None)
        await asyncio.sleep(0)
        assert value(await samples(client), "langport_generation_tokens_total", model="demo") == 40

    async def test_errors_are_counted_by_their_codes(self):
        client = make_client({"demo": refuse(RateLimited("Later."))})
        await client.post(CHAT, {"model": "demo"})
        await client.post(CHAT, {"model": "unknown"})
        found = await samples(client)
        assert value(found, "langport_errors_total", model="demo", route=CHAT) == 1
        assert value(found, "langport_errors_total", model="", code="model_not_found") == 1

    async def test_keys_are_a_label_only_where_that_is_set(self):
        for is_by_key in (False, True):
            telemetry = TelemetrySettings(metrics_by_key=is_by_key)
            client = make_client({"demo": metered(prompt=1, completion=2)}, api_keys=["sk-secret"], telemetry=telemetry)
            headers = {"authorization": "Bearer sk-secret"}
            await client.post(CHAT, {"model": "demo"}, headers=headers)
            text = (await client.get("/metrics", headers=headers)).body
            assert b"sk-secret" not in text
            labelled = {name for name, labels in parsed(text) if dict(labels).get("key") == "static-1"}
            names = {"langport_requests_total", "langport_prompt_tokens_total", "langport_generation_tokens_total"}
            assert labelled == (names if is_by_key else set())

    async def test_what_clients_make_up_is_no_label(self):
        client = make_client({"demo": answer({})})
        for number in range(20):
            await client.post(CHAT, {"model": f"made-up-{number}"})
            await client.get(f"/made-up-{number}")
            await client.get(f"/v1/models/made-up-{number}")
        await samples(client)
        before = len(await samples(client))
        await client.post(CHAT, {"model": "made-up-21"})
        assert len(await samples(client)) == before

    async def test_an_upstream_with_several_deployments_says_which_one_answers(self):
        async def app(scope, receive, send):
            await receive()
            scope["extensions"]["langport"]["deployment"] = "second"
            await stream(EVENT, EVENT)(receive, send)

        client = make_client({"demo": Upstream("demo", app, card=dict, is_ready=lambda: (True, ""))})
        await client.post(CHAT, {"model": "demo", "stream": True})
        found = await samples(client)
        for name in ("requests_total", "inter_token_latency_seconds_count", "time_to_first_token_seconds_count"):
            assert value(found, f"langport_{name}", model="demo", upstream="second") == 1


class TestOverhead:
    async def test_every_answer_says_it(self):
        client = make_client({"demo": stream(EVENT)})
        found = [
            await client.post(CHAT, {"model": "demo", "stream": True}),
            await client.post(CHAT, {"model": "unknown"}),
            await client.get("/v1/models"),
            await client.get("/nothing"),
        ]
        for each in found:
            assert 0 <= float(each.headers["x-langport-overhead-ms"]) < 10_000

    async def test_neither_the_upstream_nor_the_client_counts(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("langport.gateway.exchange.time.perf_counter", lambda: now[0])

        async def slow(receive, send):
            now[0] += 50
            await answer({})(receive, send)

        class SlowBody:
            """The body takes its time too."""

            async def __call__(self, scope, receive, send):
                async def slow_receive():
                    now[0] += 20
                    return await receive()

                await client.app(scope, slow_receive, send)

        client = make_client({"demo": slow})
        found = await type(client)(SlowBody()).post(CHAT, {"model": "demo"})
        assert found.headers["x-langport-overhead-ms"] == "0.000"
        assert found.headers["openai-processing-ms"] == "70000"

    async def test_an_upstream_that_knows_its_own_part_better_says_so(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("langport.gateway.exchange.time.perf_counter", lambda: now[0])

        async def script(receive, send):
            now[0] += 3
            await send({"type": "http.response.start", "status": 200, "headers": [], "upstream_s": 2.5})
            await send({"type": "http.response.body", "body": b"{}"})

        client = make_client({"demo": script})
        assert (await client.post(CHAT, {"model": "demo"})).headers["x-langport-overhead-ms"] == "500.000"

    async def test_a_gateway_behind_this_one_does_not_say_it_twice(self):
        client = make_client({"demo": answer({}, headers=[(b"x-langport-overhead-ms", b"99.0")])})
        found = await client.post(CHAT, {"model": "demo"})  # Answer.headers refuses one that repeats
        assert float(found.headers["x-langport-overhead-ms"]) != 99


class TestUpstreams:
    async def test_queues_show_who_waits_and_who_does_not(self):
        entered, may_go = asyncio.Event(), asyncio.Event()

        async def slow(receive, send):
            entered.set()
            await may_go.wait()
            await answer({})(receive, send)

        upstream = ready("demo", slow, places=Places("demo", 1))
        client = make_client({"demo": upstream})
        running = asyncio.create_task(client.post(CHAT, {"model": "demo"}))
        await entered.wait()
        waiting = asyncio.create_task(client.post(CHAT, {"model": "demo"}))
        while value(found := await samples(client), "langport_queued_requests", queue="demo") == 0:
            await asyncio.sleep(0)
        assert value(found, "langport_queued_tokens", queue="demo") > 0
        assert value(found, "langport_places", queue="demo") == 1
        assert value(found, "langport_places_taken", queue="demo") == 1
        may_go.set()
        await asyncio.gather(running, waiting)
        found = await samples(client)
        assert value(found, "langport_queued_requests", queue="demo") == 0
        assert value(found, "langport_queue_time_seconds_count", model="demo") == 2

    async def test_health_of_deployments_and_figures_of_engines(self):
        queue = Histogram()
        queue.observe(0.3)
        engine = ready(
            "a", answer({}), stats=lambda: {"num_running": 2, "preemptions_total": 4, "queue_time_seconds": queue}
        )
        spread = ready("b", answer({}), deployments=lambda: {"one": True, "two": False})
        found = await samples(make_client({"a": engine, "b": spread}))
        assert value(found, "langport_engine_num_running", model="a") == 2
        assert value(found, "langport_engine_preemptions_total", model="a") == 4
        assert value(found, "langport_engine_queue_time_seconds_bucket", model="a", le="0.25") == 0
        assert value(found, "langport_engine_queue_time_seconds_bucket", model="a", le="0.5") == 1
        assert value(found, "langport_upstream_healthy", model="b", upstream="one") == 1
        assert value(found, "langport_upstream_healthy", model="b", upstream="two") == 0
