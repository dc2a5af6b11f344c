"""README.md's table of clients, made from the record of a run of their tests.

    LANGPORT_COMPATIBILITY=record.json python -m pytest tests/clients
    python -m tests.clients.table record.json

A test marked `shows` stands for features of one client. The record says of each client's features whether all their
tests passed; the table is written only if they did.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made by `make compatibility` -->", "<!-- end of what `make compatibility` made -->"
FEATURES = ("chat", "streams", "tools", "structured", "responses", "embeddings", "errors", "retries")
"""The columns. A test may stand for no other."""

Client = tuple[str, str]
"""A client's name and version."""


@dataclass
class Shown:
    """What one test shows of a client, once it has passed; `has_passed` is None where it did not run."""

    name: str
    version: str
    features: tuple[str, ...]
    has_passed: bool | None = None


def write_record(path: Path, shown: list[Shown]) -> None:
    """One entry for each client's feature: whether all of its tests passed."""
    assert all(feature in FEATURES for one in shown for feature in one.features)
    passed: dict[tuple[str, str, str], list[bool | None]] = {}
    for one in shown:
        for feature in one.features:
            passed.setdefault((one.name, one.version, feature), []).append(one.has_passed)
    entries = [
        {"client": name, "version": version, "feature": feature, "passed": all(outcomes)}
        for (name, version, feature), outcomes in passed.items()
    ]
    path.write_text(json.dumps(entries, indent=1), "utf-8")


def read_record(path: Path) -> dict[Client, dict[str, bool]]:
    """Client -> feature -> whether its tests passed."""
    found: dict[Client, dict[str, bool]] = {}
    for entry in json.loads(path.read_text("utf-8")):
        found.setdefault((entry["client"], entry["version"]), {})[entry["feature"]] = entry["passed"]
    return found


def table(claims: dict[Client, set[str]]) -> str:
    """The table in Markdown, a row for each client in the order of names and ages."""
    lines = [f"| client | version | {' | '.join(FEATURES)} |", "|---" * (len(FEATURES) + 2) + "|"]
    for (name, version), features in sorted(claims.items(), key=_by_name_and_age):
        cells = ("✓" if feature in features else "–" for feature in FEATURES)
        lines.append(f"| {name} | {version} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_name_and_age(row: tuple[Client, set[str]]) -> tuple[str, list[int]]:
    (name, version), _ = row
    return name.lower(), [int(part) for part in version.split(".")]


def committed() -> str:
    """The table that README.md has."""
    text = README.read_text("utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def main(record: str) -> str | None:
    """Write the table; what is wrong instead, where a feature's tests failed or did not run."""
    found = read_record(Path(record))
    missing = [
        f"{' '.join(client)}: {feature}" for client, seen in found.items() for feature in seen if not seen[feature]
    ]
    if missing or not found:
        return f"README.md is as it was. These did not pass: {', '.join(missing) or 'nothing was tested'}."
    text = README.read_text("utf-8")
    before, rest = text[: text.index(BEGIN)], text[text.index(END) :]
    claims = {client: set(seen) for client, seen in found.items()}
    README.write_text(f"{before}{BEGIN}\n{table(claims)}\n{rest}", "utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
