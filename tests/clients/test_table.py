"""README.md's table of clients has a row for each pinned client, and its marks are what the tests stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.clients import table
from tests.clients.environments import ROOT, pinned, pinned_packages
from tests.clients.table import Shown


def test_the_table_is_what_the_tests_stand_for(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/clients"]
    done = subprocess.run(
        [*command, "--ignore", __file__],
        cwd=ROOT,
        env={"LANGPORT_COMPATIBILITY": str(record), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    claims = {client: set(features) for client, features in table.read_record(record).items()}
    assert table.committed() == table.table(claims), "run `make compatibility`"


def test_every_pinned_client_has_its_row() -> None:
    rows = [line.split(" | ")[:2] for line in table.committed().splitlines()[2:]]
    versions = [version for _, version in rows]
    expected = [*pinned("OPENAI_VERSIONS"), *pinned("ANTHROPIC_VERSION"), *pinned("INSTRUCTOR_VERSION")]
    expected += pinned_packages("TOOL_VERSIONS").values()
    npm = pinned_packages("NPM_VERSIONS")
    expected += [npm["openai"], npm["ai"]]
    assert sorted(versions) == sorted(expected)


def test_a_feature_is_marked_only_when_all_its_tests_passed(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    outcomes = {"chat": (True, True), "streams": (True, False), "tools": (True, None)}
    shown = [
        Shown("some client", "1.0", (feature,), has_passed) for feature, both in outcomes.items() for has_passed in both
    ]
    table.write_record(record, shown)
    assert table.read_record(record) == {("some client", "1.0"): {"chat": True, "streams": False, "tools": False}}
    complaint = table.main(str(record))
    assert complaint is not None
    assert "some client 1.0: streams, some client 1.0: tools" in complaint
    record.write_text(json.dumps([]))
    assert "nothing was tested" in str(table.main(str(record)))
