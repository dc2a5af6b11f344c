"""The response cache as clients see it: who gets an answer again, who does not, and that it is the same."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from gateway_fakes import Client, FakeUpstream, answer, refuse, stream

from langport.errors import ConfigError, Unavailable
from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.cache import ANSWER_BYTES, MemoryAnswers, ResponseCache, response_cache
from langport.gateway.cache_answer import MAX_ANSWER_BYTES, KeptAnswer
from langport.gateway.remote import RemoteServer
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings, OverloadSettings, TelemetrySettings, UpstreamSettings

CHAT, EMBED, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"
ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
STREAMED = {**ASKED, "stream": True}
EVENTS = [b'data: {"n":%d}\n\n' % number for number in range(50)]
DONE = b"data: [DONE]\n\n"


class Numbered(FakeUpstream):
    """Whose every answer is another one."""

    def __init__(self):
        super().__init__(self._count)

    async def _count(self, receive, send):
        headers = [(b"x-request-cost", b"5"), (b"x-langport-ignored", b"foo"), (b"x-langport-cache", b"theirs")]
        await answer({"id": self.num_calls, "status": "completed"}, headers=headers)(receive, send)


class MemoryStore:
    """A store that several caches share."""

    def __init__(self):
        self.answers = {}
        self.is_closed = False

    async def get(self, key):
        await asyncio.sleep(0)
        return self.answers.get(key)

    async def put(self, key, kept):
        await asyncio.sleep(0)
        self.answers[key] = kept

    async def close(self):
        self.is_closed = True


class Cached(Client):
    """A client of a gateway with a cache whose clock stands still."""

    def __init__(self, app=None, *, max_bytes=1_000_000, ttl_s=60, store=None, upstreams=None, admission=None,
                 telemetry=None, **settings):  # fmt: skip
        self.demo = app if isinstance(app, FakeUpstream) else FakeUpstream(app) if app else Numbered()
        self.now = 1000.0
        self.cache = ResponseCache(max_bytes=max_bytes, ttl_s=ttl_s, store=store, clock=lambda: self.now)
        own = Upstream("demo", self.demo, card=dict, is_ready=lambda: (True, ""))
        self.gateway = Gateway(
            [own, *(upstreams or ())],
            msgspec.convert(settings, GatewaySettings),
            telemetry=telemetry or TelemetrySettings(),
            cache=self.cache,
            admission=admission,
        )
        super().__init__(self.gateway)

    async def results(self, *bodies, path=CHAT, headers=None):
        """What x-langport-cache says to each, one after the other."""
        answers = [await self.post(path, body, headers=headers) for body in bodies]
        return [each.headers["x-langport-cache"] for each in answers]


def unordered(body):
    return json.dumps(dict(reversed(body.items())), indent=2).encode()


async def test_the_same_request_gets_the_same_bytes_and_the_model_is_not_asked():
    client = Cached()
    first = await client.post(CHAT, ASKED)
    client.now += 7.9
    second = await client.post(CHAT, unordered(ASKED))
    assert client.demo.num_calls == 1
    assert second.body == first.body
    assert (first.headers["x-langport-cache"], second.headers["x-langport-cache"]) == ("miss", "hit")
    assert "age" not in first.headers
    assert second.headers["age"] == "7"
    assert second.headers["content-type"] == "application/json"
    assert second.headers["x-langport-ignored"] == "foo"
    assert first.headers["x-request-cost"] == "5"
    assert "x-request-cost" not in second.headers
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_without_a_cache_nothing_is_said_of_one():
    client = Client(Gateway([Upstream("demo", Numbered(), card=dict, is_ready=lambda: (True, ""))], GatewaySettings()))
    bodies = [(await client.post(CHAT, ASKED)) for _ in range(2)]
    assert bodies[0].body != bodies[1].body


@pytest.mark.parametrize("end", [DONE, b"data: [DONE]\r\n\r\n", b"data:[DONE]\n\n"])
async def test_a_stream_comes_again_whole_and_in_order(end):
    client = Cached(stream(*EVENTS, end))
    first = await client.post(CHAT, STREAMED)
    second = await client.post(CHAT, STREAMED)
    assert client.demo.num_calls == 1
    assert second.body == first.body == b"".join(EVENTS) + end
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-langport-cache"] == "hit"
    assert await client.results(ASKED) == ["miss"]


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"temperature": 0.7, "seed": 5}),
        (CHAT, {"temperature": 0.0}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "pay"}}]}),
        (CHAT, {"store": False}),
        ("/v1/completions", {"prompt": "Hi"}),
        (EMBED, {"temperature": None, "input": "Hi"}),
        ("/v1/decisions", {"temperature": None}),
        (RESPONSES, {"store": False}),
        (MESSAGES, {"tools": [{"name": "pay", "input_schema": {}}]}),
    ],
)
async def test_what_is_repeatable_is_kept(path, changes):
    assert await Cached().results(*[{**ASKED, **changes}] * 2, path=path) == ["miss", "hit"]


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"temperature": None}),
        (CHAT, {"temperature": 0.1}),
        (CHAT, {"temperature": False}),
        (CHAT, {"temperature": "0"}),
        (CHAT, {"temperature": 1, "seed": True}),
        (CHAT, {"store": True}),
        (CHAT, {"web_search_options": {"search_context_size": "low"}}),
        (CHAT, {"tools": [{"type": "mcp"}]}),
        (CHAT, {"tools": "none"}),
        (EMBED, {"store": True}),
        (RESPONSES, {}),
        (RESPONSES, {"store": True}),
        (RESPONSES, {"store": False, "background": True}),
        (RESPONSES, {"store": False, "previous_response_id": "resp_1"}),
        (RESPONSES, {"store": False, "conversation": "conv_1"}),
        (RESPONSES, {"store": False, "tools": [{"type": "web_search"}]}),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (MESSAGES, {"mcp_servers": [{"url": "https://example.com"}]}),
        ("/tokenize", {}),
    ],
)
async def test_what_is_not_passes_by(path, changes):
    client = Cached()
    assert await client.results(*[{**ASKED, **changes}] * 2, path=path) == ["bypass", "bypass"]
    assert client.demo.num_calls == 2
    assert len(client.cache.memory) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"max_tokens": 5},
        {"seed": 1},
        {"stream": True},
        {"stream_options": {"include_usage": True}},
        {"cache_salt": "a"},
        {"metadata": {"a": "b"}},
        {"user": 5},
        {"user": "x" * 65},
        {"unknown": None},
    ],
)
async def test_whatever_could_change_the_answer_makes_another_request(changes):
    assert await Cached().results(ASKED, {**ASKED, **changes}) == ["miss", "miss"]


async def test_who_the_end_user_is_changes_no_answer_but_a_response():
    users = [{**ASKED, "user": user, "safety_identifier": user, "prompt_cache_key": user} for user in ("ann", "bob")]
    assert await Cached().results(*users) == ["miss", "hit"]
    assert await Cached().results(*[{**each, "store": False} for each in users], path=RESPONSES) == ["miss", "miss"]


async def test_owners_share_nothing():
    client = Cached(api_keys=["one", "two"])
    one, two = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
    assert await client.results(ASKED, ASKED, headers=one) == ["miss", "hit"]
    assert await client.results(ASKED, ASKED, headers=two) == ["miss", "hit"]
    assert client.demo.num_calls == 2


async def test_clients_of_an_open_server_with_keys_of_an_upstream_share_nothing():
    client = Cached()
    for key in ("one", "two"):
        assert await client.results(ASKED, headers={"authorization": f"Bearer {key}"}) == ["miss"]
        assert await client.results(ASKED, headers={"x-api-key": key}) == ["miss"]


@pytest.mark.parametrize("headers", [{"x-langport-strict": "true"}, {"openai-beta": "x"}, {"anthropic-beta": "x"}])
async def test_headers_that_change_answers_count(headers):
    client = Cached()
    assert await client.results(ASKED) == ["miss"]
    assert await client.results(ASKED, ASKED, headers=headers) == ["miss", "hit"]


async def test_an_alias_and_the_paths_of_older_clients_lead_to_answers_of_their_own_model():
    client = Cached(aliases={"gpt-4": "demo"})
    assert await client.results(ASKED, {**ASKED, "model": "gpt-4"}) == ["miss", "miss"]
    assert await client.results(ASKED, path="/chat/completions") == ["hit"]
    bare = {name: value for name, value in ASKED.items() if name != "model"}
    assert await client.results(bare, bare, path="/openai/deployments/demo/chat/completions?api-version=1") == [
        "miss",
        "hit",
    ]
    assert await client.results(bare, path="/openai/deployments/demo/chat/completions?api-version=2") == ["miss"]


@pytest.mark.parametrize(
    ("control", "results"),
    [
        ("no-store", ["miss", "bypass", "hit"]),
        ("no-cache", ["miss", "miss", "hit"]),
        ("max-age=0, No-Cache", ["miss", "miss", "hit"]),
        ("max-age=9", ["miss", "miss", "hit"]),
        ("max-age=10", ["miss", "hit", "hit"]),
        ("max-age=soon", ["miss", "miss", "hit"]),
        ("no-transform", ["miss", "hit", "hit"]),
    ],
)
async def test_the_clients_cache_control_is_kept_to(control, results):
    client = Cached()
    found = await client.results(ASKED)
    client.now += 10
    found += await client.results(ASKED, headers={"cache-control": control})
    found += await client.results(ASKED)
    assert found == results
    last = await client.post(CHAT, ASKED)
    assert last.json["id"] == (2 if found[1] == "miss" else 1), "a new answer takes the old one's place"


async def test_an_answer_ends_with_its_time():
    client = Cached(ttl_s=60)
    await client.post(CHAT, ASKED)
    client.now += 60
    assert await client.results(ASKED) == ["hit"]
    client.now += 0.1
    assert await client.results(ASKED, ASKED) == ["miss", "hit"]
    client.now -= 3600  # somebody sets the machine's clock back
    assert (await client.post(CHAT, ASKED)).headers["age"] == "0"


BROKEN = [
    stream(*EVENTS),
    stream(*EVENTS, then=RuntimeError("cut")),
    stream(*EVENTS, then=Unavailable("gone")),
    stream(EVENTS[0], b'data: {"error": {"message": "no"}}\n\n', DONE),
    stream(EVENTS[0], b'data: {"object":"error","message":"no"}\n\n', DONE),
    stream(EVENTS[0], b"data: [DONE] or not\n\n"),
    answer({"error": {"message": "no"}}),
    answer({"error": {"message": "no"}}, 500),
    answer({"ok": True}, 201),
    answer({"ok": True}, headers=[(b"content-encoding", b"gzip")]),
    refuse(Unavailable("down")),
    stream(b"text", content_type=b"text/plain"),
    stream(b'{"cut": ', content_type=b"application/json"),
    stream(b'"' + b"x" * MAX_ANSWER_BYTES + b'"', content_type=b"application/json"),
]


@pytest.mark.parametrize("script", BROKEN)
@pytest.mark.parametrize("body", [ASKED, STREAMED])
async def test_only_whole_answers_are_kept(script, body):
    client = Cached(script)
    assert await client.results(body, body) == ["miss", "miss"]
    assert client.demo.num_calls == 2
    assert len(client.cache.memory) == 0
    assert client.cache.memory.num_bytes == 0


@pytest.mark.parametrize(
    ("path", "events", "is_kept"),
    [
        (CHAT, [b'data: {"text": "data: {\\"error\\": 1}\\n\\n"}\n\n', DONE], True),
        (RESPONSES, [b"event: response.completed\ndata: {}\n\n"], True),
        (RESPONSES, [b"event: response.incomplete\ndata: {}\n\n"], True),
        (RESPONSES, [b"event: response.failed\ndata: {}\n\n"], False),
        (RESPONSES, [b"event: response.output_text.delta\ndata: {}\n\n"], False),
        (MESSAGES, [b"event: message_start\ndata: {}\n\n", b"event: message_stop\ndata: {}\n\n"], True),
        (MESSAGES, [b"event: message_start\ndata: {}\n\n", b"event: error\ndata: {}\n\n"], False),
    ],
)
async def test_each_api_ends_its_streams_in_its_way(path, events, is_kept):
    client = Cached(stream(*events))
    body = {**STREAMED, "store": False}
    assert await client.results(body, body, path=path) == ["miss", "hit" if is_kept else "miss"]


@pytest.mark.parametrize(("status", "is_kept"), [("completed", True), ("incomplete", True), ("failed", False)])
async def test_a_response_that_failed_is_not_kept(status, is_kept):
    client = Cached(answer({"status": status, "error": None}))
    body = {**ASKED, "store": False}
    assert await client.results(body, body, path=RESPONSES) == ["miss", "hit" if is_kept else "miss"]


async def test_of_a_stream_whose_client_leaves_nothing_is_kept():
    async def leaves(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    client = Cached(leaves)
    await client.post(CHAT, STREAMED, leave_after=2)
    assert len(client.cache.memory) == 0


class Gate(Numbered):
    """Answers when it is told to."""

    def __init__(self, script=None):
        super().__init__()
        self.open = asyncio.Event()
        self.began = asyncio.Event()
        self._script = script

    async def _count(self, receive, send):
        self.began.set()
        await self.open.wait()
        await (self._script or super()._count)(receive, send)


async def together(client, gate, *requests):
    """The first one reaches the model, then the others come, then the model answers."""
    first = asyncio.create_task(requests[0])
    await gate.began.wait()
    others = [asyncio.create_task(request) for request in requests[1:]]
    for _ in range(20):
        await asyncio.sleep(0)
    gate.open.set()
    return await asyncio.gather(first, *others)


async def test_of_those_who_ask_the_same_at_once_one_asks_the_model():
    gate = Gate()
    client = Cached(gate)
    answers = await together(client, gate, *(client.post(CHAT, ASKED) for _ in range(5)))
    assert gate.num_calls == 1
    assert {each.body for each in answers} == {answers[0].body}
    assert [each.headers["x-langport-cache"] for each in answers] == ["miss", "hit", "hit", "hit", "hit"]


async def test_when_the_one_fails_the_others_ask_all_at_once():
    gate = Gate(answer({"error": "down"}, 503))
    client = Cached(gate)
    answers = await together(client, gate, *(client.post(CHAT, ASKED) for _ in range(5)))
    assert gate.num_calls == 5
    assert [each.status for each in answers] == [503] * 5
    assert not client.cache._flights


@pytest.mark.parametrize(
    ("body", "headers"),
    [(STREAMED, {}), (ASKED, {"x-langport-max-wait": "1"}), (ASKED, {"cache-control": "no-cache"})],
)
async def test_who_will_not_wait_for_another_asks(body, headers):
    gate = Gate()
    client = Cached(gate)
    await together(client, gate, *(client.post(CHAT, body, headers=headers) for _ in range(2)))
    assert gate.num_calls == 2


async def test_who_leaves_while_another_asks_is_gone_and_the_other_goes_on():
    gate = Gate()
    client = Cached(gate)
    answers = await together(client, gate, client.post(CHAT, ASKED), client.post(CHAT, ASKED, leave_after=0))
    assert answers[0].status == 200
    assert not answers[1].started
    assert gate.num_calls == 1


async def test_lines_of_batches_pass_by():
    client = Cached()
    plain = client.app

    async def as_batch(scope, receive, send):
        await plain({**scope, "extensions": {"langport": {"owner": "ann", "priority": 10}}}, receive, send)

    client.app = as_batch
    assert await client.results(ASKED, ASKED) == ["bypass", "bypass"]


async def test_a_hit_takes_no_tokens_no_place_and_no_request_of_a_limit():
    admission = Admission(OverloadSettings(key_requests_per_minute=1))
    client = Cached(api_keys=["one"], admission=admission)
    headers = {"authorization": "Bearer one"}
    assert await client.results(ASKED, ASKED, ASKED, headers=headers) == ["miss", "hit", "hit"]
    refused = await client.post(CHAT, {**ASKED, "seed": 2}, headers=headers)
    assert (refused.status, refused.headers["x-langport-cache"]) == (429, "miss")


async def test_metrics_and_the_access_log_count_hits(tmp_path):
    log = tmp_path / "log"
    client = Cached(stream(*EVENTS, DONE), telemetry=TelemetrySettings(access_log="json", access_log_file=str(log)))
    await client.results(STREAMED, STREAMED, STREAMED, {**ASKED, "temperature": 1})
    text = (await client.get("/metrics")).body.decode()
    for result, count in (("hit", 2), ("miss", 1), ("bypass", 1)):
        assert f'langport_cache_requests_total{{result="{result}"}} {count}.0' in text
    assert f"langport_cache_bytes {float(client.cache.memory.num_bytes)}" in text
    assert f'langport_inter_token_latency_seconds_count{{model="demo",upstream=""}} {2 * len(EVENTS) - 2}.0' in text
    client.gateway.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.get("cache") for line in lines if line["model"]] == ["miss", "hit", "hit", "bypass"]
    assert [line["completion_tokens"] > 0 for line in lines if line["model"]] == [True, False, False, True]


# Who answers.


async def test_what_is_served_anew_under_a_name_gives_no_answers_of_what_was_there_before():
    client = Cached()
    assert await client.results(ASKED, ASKED) == ["miss", "hit"]
    client.gateway._served.put(Upstream("demo", Numbered(), card=dict, is_ready=lambda: (True, "")))
    assert await client.results(ASKED, ASKED) == ["miss", "hit"]


async def test_another_generation_of_the_same_upstream_starts_anew_and_an_old_one_finds_its_answers():
    generation = "a"
    own = Upstream("tuned", Numbered(), card=dict, is_ready=lambda: (True, ""), generation=lambda: generation)
    client = Cached(upstreams=[own])
    body = {**ASKED, "model": "tuned"}
    assert await client.results(body, body) == ["miss", "hit"]
    generation = "b"
    assert await client.results(body, body) == ["miss", "hit"]
    generation = "a"
    assert await client.results(body) == ["hit"]


async def test_headers_that_an_upstream_reads_make_other_requests():
    own = Upstream("tuned", Numbered(), card=dict, is_ready=lambda: (True, ""), read_headers=(b"x-tenant",))
    client = Cached(upstreams=[own], routes={"r": {"deployments": [{"model": "tuned"}]}})
    for model, results in (("tuned", ["miss", "hit"]), ("r", ["miss", "hit"]), ("demo", ["hit", "hit"])):
        body = {**ASKED, "model": model}
        await client.post(CHAT, body)
        assert await client.results(body, body, headers={"x-tenant": "a"}) == results


def test_a_remote_servers_generation_is_its_settings():
    def generation(name="gpt", model=None, **settings):
        server = RemoteServer(UpstreamSettings(name="gpt", **{"url": "http://a.example", **settings}), {})
        return server.upstream(name, model).generation()

    assert generation() == generation()
    others = [generation(), generation(model="gpt-5"), generation(url="http://b.example"), generation(api="azure")]
    assert len(set(others)) == 4
    assert "secret" not in generation(key="secret")
    server = RemoteServer(UpstreamSettings(url="http://a.example", forward_headers=("X-Tenant",)), {})
    assert server.upstream("gpt").read_headers == (b"x-tenant",)


async def test_a_routes_answers_are_kept_and_those_of_its_fallbacks_are_not():
    states = {"a": answer({"error": "down"}, 503), "b": answer({"ok": "b"})}

    def app(name):
        async def script(receive, send):
            await states[name](receive, send)

        return FakeUpstream(script)

    generations = {"a": "1", "b": "1"}
    upstreams = [
        Upstream(
            name, app(name), card=dict, is_ready=lambda: (True, ""), generation=lambda name=name: generations[name]
        )
        for name in states
    ]
    routes = {"r": {"deployments": [{"model": "a"}], "fallbacks": ["b"], "retry": {"attempts": 1}}}
    client = Cached(upstreams=upstreams, routes=routes)
    body = {**ASKED, "model": "r"}
    first = await client.post(CHAT, body)
    assert (first.json, first.headers["x-langport-deployment"]) == ({"ok": "b"}, "b")
    states["a"] = answer({"ok": "a"})
    second = await client.post(CHAT, body)
    assert (second.json, second.headers["x-langport-cache"]) == ({"ok": "a"}, "miss")
    assert (await client.post(CHAT, body)).headers["x-langport-cache"] == "hit"
    generations["a"] = "2"
    assert await client.results(body) == ["miss"]


# Where answers are.


def kept(num_bytes):
    return KeptAnswer((), b"x" * num_bytes, 0.0)


def test_memory_keeps_what_was_used_last_within_its_bounds():
    memory = MemoryAnswers(3 * (ANSWER_BYTES + 100))
    for name in (b"a", b"b", b"c"):
        memory.put(name, kept(100))
    assert memory.get(b"a") is not None
    memory.put(b"d", kept(100))
    assert [memory.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    memory.put(b"d", kept(40))
    assert memory.num_bytes == 3 * ANSWER_BYTES + 240
    memory.put(b"e", kept(3 * (ANSWER_BYTES + 100) - ANSWER_BYTES))
    assert (len(memory), memory.get(b"e") is not None) == (1, True)
    memory.put(b"e", kept(10_000))
    assert (len(memory), memory.num_bytes) == (0, 0)
    memory.remove(b"e")


async def test_servers_with_one_store_give_each_others_answers():
    store = MemoryStore()
    one, other = Cached(store=store, max_bytes=0), Cached(store=store)
    same = {"generation": lambda: "1", "card": dict, "is_ready": lambda: (True, "")}
    for client in (one, other):
        client.gateway._served.put(Upstream("demo", client.demo, **same))
    assert await one.results(ASKED) == ["miss"]
    await one.cache.close()
    assert store.is_closed
    assert await one.results(ASKED) == ["hit"]
    assert len(one.cache.memory) == 0
    assert await other.results(ASKED) == ["hit"]
    store.answers.clear()
    other.now += 5
    assert (await other.post(CHAT, ASKED)).headers["age"] == "5"  # from its memory now
    assert other.demo.num_calls == 0


async def test_a_stores_newer_answer_is_taken_when_the_one_in_memory_is_too_old_for_the_client():
    store = MemoryStore()
    one, other = Cached(store=store), Cached(store=store)
    same = {"generation": lambda: "1", "card": dict, "is_ready": lambda: (True, "")}
    for client in (one, other):
        client.gateway._served.put(Upstream("demo", client.demo, **same))
    await one.post(CHAT, ASKED)
    one.now = other.now = 1050.0
    assert await other.results(ASKED, headers={"cache-control": "no-cache"}) == ["miss"]
    await other.cache.close()
    assert await one.results(ASKED, headers={"cache-control": "max-age=5"}) == ["hit"]


def test_the_settings_say_whether_there_is_a_cache():
    assert response_cache(GatewaySettings()) is None
    cache = response_cache(GatewaySettings(response_cache_bytes=1000))
    assert cache is not None
    with pytest.raises(ConfigError, match=r"--response-cache-store http://x:\(hidden\)@y"):
        response_cache(GatewaySettings(response_cache_store="http://x:secret@y"))


# Requests that nobody should send.


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"demo","temperature":0,"x":1e999}',
        b'{"model":"demo","temperature":0,"x":"' + b"y" * 1_100_000 + b'"}',
    ],
)
async def test_a_body_that_cannot_be_sorted_is_the_same_byte_for_byte(body):
    client = Cached()
    assert await client.results(body, body, body + b" ") == ["miss", "hit", "miss"]


@pytest.mark.parametrize(("name", "value"), [("seed", b"9" * 5000), ("seed", b"1e999"), ("tools", b"[1e999]")])
async def test_fields_that_cannot_be_read_are_left_to_the_model(name, value):
    body = b'{"model":"demo","temperature":0,"%b":%b}' % (name.encode(), value)
    assert await Cached().results(body) == ["bypass"]


async def test_numbers_of_any_size_are_told_apart():
    bodies = [b'{"model":"demo","seed":%d}' % (2**64 + number) for number in range(3)]
    assert await Cached().results(*bodies) == ["miss"] * 3
