"""The snippets of LangPort's founding document, word for word (`founding.md`), against a server on another port."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parent / "founding.md").read_text("utf-8")
ADDRESS = "localhost:8000"


def snippet(language: str, containing: str, port: int) -> str:
    """The code block that holds a word, with only the port changed."""
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if containing in code]
    assert ADDRESS in found
    return found.replace(ADDRESS, f"localhost:{port}")
