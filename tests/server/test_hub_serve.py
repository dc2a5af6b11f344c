"""`langport serve org/model`: a model from a hub, here a local imitation of it, downloaded and served."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import save_checkpoint
from tests.hub_imitation import HubModel, running_hub
from tests.server.process import running

TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"


def test_a_model_of_the_hub_is_downloaded_and_answers(tmp_path: Path) -> None:
    path = save_checkpoint("qwen3", tmp_path / "tiny", shard_size="100KB")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 1

    with running_hub({"org/tiny": HubModel(files, needs_token="hf_secret")}) as hub:
        hub_settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_secret"}
        with running("org/tiny", **hub_settings) as server:
            entry = server.get("/v1/models/org/tiny")
            assert entry == server.get("/v1/models/org%2Ftiny")
            assert entry["id"] == "org/tiny"
            assert entry["max_model_len"] == 512

            message = {"role": "user", "content": "Hi"}
            fields = {"model": "org/tiny", "max_tokens": 4, "ignore_eos": True}
            answer = server.post("/v1/chat/completions", messages=[message], **fields)
            assert answer["model"] == "org/tiny"
            assert answer["usage"]["prompt_tokens"] == len("[user] Hi\n")
            assert answer["usage"]["completion_tokens"] == 4
            in_path = server.post("/v1/engines/org/tiny/completions", prompt="x", max_tokens=2, ignore_eos=True)
            assert in_path["usage"]["completion_tokens"] == 2
            assert "hf_secret" not in server.log
