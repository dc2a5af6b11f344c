"""docs/routes.md: its example is a file that the server takes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

import langport
from langport.settings.load import load_settings
from langport.settings.tree import HealthSettings, RetrySettings

PAGE = (Path(langport.__file__).parents[1] / "docs" / "routes.md").read_text("utf-8")


def test_the_example_loads(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "langport.yaml"
    file.write_text(example)
    gateway = load_settings({}, {}, file).gateway
    assert list(gateway.routes) == ["chat", "embed", "both"]
    assert gateway.routes["chat"].strategy == "prefix-aware"
    assert gateway.aliases == {"gpt-4o": "chat"}


def test_every_setting_and_its_default_is_there():
    tables = PAGE[PAGE.index("| `retry:`") :]
    shown = {}
    for names, defaults in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", tables, re.MULTILINE):
        shown |= dict(zip(re.findall(r"\w+", names), defaults.replace("`", "").strip().split(", "), strict=True))
    for kind in (RetrySettings, HealthSettings):
        for field in msgspec.structs.fields(kind):
            default = field.default
            assert shown.pop(field.name) == (default if isinstance(default, str) else f"{default:g}")
    assert not shown
