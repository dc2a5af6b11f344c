"""Models that are loaded when they are asked for, in a server that has room for one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoints import save_checkpoint
from tests.server.process import DONE, Server, running, until
from tests.server.test_models import CHAT, EMBED

ADMIN = {"authorization": "Bearer admin-secret"}
PATH = "/v1/completions"
NUM_TOKENS = 600


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("small") / "small")


def states(server: Server) -> dict[str, str]:
    return {model["id"]: model["state"] for model in server.get("/admin/models", **ADMIN)["data"]}


def embed(server: Server) -> int:
    return len(server.post("/v1/embeddings", model=EMBED, input="one")["data"])


def test_two_models_take_turns_in_one_place() -> None:
    with running(CHAT, EMBED, "--max-loaded-models", "1", LANGPORT_ADMIN_KEY="admin-secret") as server:
        assert [entry["id"] for entry in server.get("/v1/models")["data"]] == [CHAT, EMBED]
        assert server.get("/ready") == {"status": "ready"}
        assert states(server) == {CHAT: "ready", EMBED: "unloaded"}
        first = server.chat("What is the capital of Norway?")
        assert embed(server) == 1
        assert states(server) == {CHAT: "unloaded", EMBED: "ready"}
        assert server.chat("What is the capital of Norway?") == first
        assert server.metric("langport_engine_loads_total", model=CHAT) == 2
        assert server.metric("langport_engine_loaded", model=EMBED) == 0
        assert server.metric("langport_model_ready", model=EMBED) == 1
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(embed, server) for _ in range(6)]
            asked += [pool.submit(server.chat, "Hello!", max_tokens=4) for _ in range(6)]
            assert all(each.result() for each in asked)
        assert len(server.engines()) == 1
        assert server.get("/health") == {"status": "ok"}
        assert "Traceback" not in server.log


def test_a_stream_goes_on_to_its_end_while_the_other_model_wants_its_place(
    endless_model: Path, small_model: Path
) -> None:
    long = {"model": "endless", "prompt": "Once", "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 1}
    arguments = (str(endless_model), str(small_model), "--max-loaded-models", "1", "--load-on-request")
    with running(*arguments, LANGPORT_ADMIN_KEY="admin-secret") as server:
        assert set(states(server).values()) == {"unloaded"}
        assert server.get("/ready") == {"status": "ready"}
        order: list[str] = []

        def ask_small() -> None:
            server.post(PATH, model="small", prompt="x", max_tokens=2, ignore_eos=True)
            order.append("small")

        with server.stream(PATH, **long) as events:
            received = [next(events)]
            other = threading.Thread(target=ask_small)
            other.start()
            until(lambda: states(server)["endless"] == "draining", "a model that is to be unloaded")
            received += events
            order.insert(0, "endless")
        other.join()
        assert order == ["endless", "small"]
        assert received[-1] == DONE
        assert received[-2]["choices"][0]["finish_reason"] == "length"
        assert states(server) == {"endless": "unloaded", "small": "ready"}
        answer = server.post(PATH, **{**long, "max_tokens": 3})
        assert answer["usage"]["completion_tokens"] == 3


def test_the_admin_api_and_a_checkpoint_that_went_away(small_model: Path, tmp_path: Path) -> None:
    broken = save_checkpoint("llama", tmp_path / "broken")
    arguments = (str(small_model), str(broken), "--load", "on_request")
    with running(*arguments, LANGPORT_ADMIN_KEY="admin-secret") as server:
        loaded = server.post("/admin/models/small/load", ADMIN)
        assert (loaded["id"], loaded["state"], loaded["num_loads"]) == ("small", "ready", 1)
        assert loaded["memory_bytes"] > 1_000_000
        assert server.post("/admin/models/small/unload", ADMIN)["state"] in ("draining", "unloading")
        until(lambda: states(server)["small"] == "unloaded", "an unloaded model")

        weights = broken / "model.safetensors"
        kept = weights.read_bytes()
        weights.write_bytes(kept[:1000])
        for path, body in ((PATH, {"model": "broken", "prompt": "x"}), ("/admin/models/broken/load", {})):
            response = server.http.post(path, json=body, headers=ADMIN)
            assert response.status_code == 503
            assert "The model broken could not be loaded" in response.json()["error"]["message"]
        assert server.get("/ready") == {"status": "ready"}
        weights.write_bytes(kept)
        assert server.post(PATH, model="broken", prompt="x", max_tokens=2, ignore_eos=True)["usage"]
        assert server.http.post("/admin/models/nobody/load", headers=ADMIN).status_code == 404
        assert server.http.get("/admin/models").status_code == 401
