"""Figures of several processes shown as those of one."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from langport.figures import Histogram
from langport.gateway.metrics import (
    CPU,
    DURATION,
    ENGINE,
    IN_FLIGHT,
    MODEL_READY,
    REQUESTS,
    STARTED,
    UPSTREAM_HEALTHY,
    Block,
    Metric,
    render,
)
from langport.gateway.summing import Packed, add, lasting, pack, unpack

CHAT = ("/v1/chat/completions", "m", "", "200")
STEPS, FIRST = ENGINE["steps_total"], ENGINE["time_to_first_token_seconds"]


def process(requests: float, duration_s: float, *, is_healthy: bool = True, started_s: float = 10.0) -> list[Block]:
    durations, first = Histogram(DURATION.bounds), Histogram(FIRST.bounds)
    durations.observe(duration_s)
    first.observe(duration_s)
    return [
        Block(REQUESTS, [(CHAT, requests)]),
        Block(IN_FLIGHT, [((), 1)]),
        Block(DURATION, [(CHAT[:3], durations)]),
        Block(MODEL_READY, [(("m",), True)]),
        Block(UPSTREAM_HEALTHY, [(("m", "a"), is_healthy)]),
        Block(STEPS, [(("m",), 7)]),
        Block(FIRST, [(("m",), first)]),
        Block(CPU, [((), 2.5)]),
        Block(STARTED, [((), started_s)]),
    ]


def sent(packed: Packed) -> Packed:
    """As another process gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Packed)


def values(blocks: list[Block]) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(render(blocks).decode())
    return {(sample.name, sample.labels.get("le", "")): sample.value for each in families for sample in each.samples}


def test_counters_and_histograms_are_added_and_gauges_as_they_mean() -> None:
    one, other = process(3, 0.2), process(4, 40.0, is_healthy=False, started_s=8.0)
    found = values(unpack(add([sent(pack(one)), sent(pack(other))]), one))
    assert found["langport_requests_total", ""] == 7
    assert found["langport_requests_in_flight", ""] == 2
    assert found["langport_request_duration_seconds_count", ""] == 2
    assert found["langport_request_duration_seconds_sum", ""] == 40.2
    assert found["langport_request_duration_seconds_bucket", "1.0"] == 1
    assert found["langport_request_duration_seconds_bucket", "60.0"] == 2
    assert found["langport_model_ready", ""] == 1
    assert found["langport_upstream_healthy", ""] == 0, "one of them does not send it requests"
    assert found["langport_engine_steps_total", ""] == 7, "of one engine, whoever tells of it"
    assert found["langport_engine_time_to_first_token_seconds_count", ""] == 2, "each counts its own requests"
    assert found["process_cpu_seconds_total", ""] == 5
    assert found["process_start_time_seconds", ""] == 8


def test_one_process_alone_is_shown_as_before() -> None:
    one = process(3, 0.2)
    assert render(unpack(add([sent(pack(one))]), one)) == render(one)


def test_of_a_process_that_has_ended_what_was_counted_stays() -> None:
    past = lasting(sent(pack(process(3, 0.2))))
    now = process(1, 0.2)
    found = values(unpack(add([pack(now), past]), now))
    assert found["langport_requests_total", ""] == 4
    assert found["langport_engine_time_to_first_token_seconds_count", ""] == 2
    assert found["process_cpu_seconds_total", ""] == 5
    assert found["langport_requests_in_flight", ""] == 1
    assert found["langport_engine_steps_total", ""] == 7
    assert "langport_requests_in_flight" not in past


def test_labels_that_only_one_has_and_metrics_of_no_table_are_shown() -> None:
    more = Metric("langport_engine_dreams", "gauge", "Of the engine.", ("model",))
    one = [Block(REQUESTS, [((*CHAT, "key a"), 1)], ("key",)), Block(more, [(("m",), 2)])]
    other = [Block(REQUESTS, [((*CHAT, "key b"), 5)], ("key",)), Block(more, [(("m",), 3)])]
    text = render(unpack(add([pack(one), pack(other)]), one)).decode()
    assert 'status="200",key="key a"} 1.0' in text
    assert 'status="200",key="key b"} 5.0' in text
    assert 'langport_engine_dreams{model="m"} 3.0' in text
