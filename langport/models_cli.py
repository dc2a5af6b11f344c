"""`langport pull` and `langport models`: the models on this machine, bundled or downloaded from the hub.

Downloads are the hub library's, in its own cache, which other programs share.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from langport.errors import CheckpointError, ConfigError, LangPortError
from langport.models.checkpoint import read_checkpoint
from langport.models.hub import resolve_model
from langport.settings.fields import nearest
from langport.settings.tree import BUNDLED_MODELS, BUNDLED_MODELS_PATH

_COLUMNS = ("NAME", "KIND", "SIZE", "FROM")
_UNREADABLE = "not served"
"""The kind of what the cache holds beside models that LangPort reads: incomplete ones, and other formats."""


@dataclass(frozen=True)
class ModelOnDisk:
    """One row of `langport models`."""

    name: str
    """As `langport serve` takes it."""
    kind: str
    size_bytes: int
    path: str
    is_bundled: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def pull(arguments: Sequence[str]) -> int:
    """Download models, so that `serve` finds them. Raises: CheckpointError with the problems of all."""
    parser = _Parser(
        prog="langport pull",
        description="Download models from the hub into its cache (HF_HOME), with a bar where there is a terminal.",
        allow_abbrev=False,
    )
    parser.add_argument("ids", metavar="ID", nargs="+", help="a hub id, e.g. Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main")
    parser.add_argument("--trust-remote-code", action="store_true", help="the Python files of the models as well")
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help())
        return 0
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    problems = []
    for name in given.ids:
        try:
            path = resolve_model(name, with_code=given.trust_remote_code)
            print(f"{name}: {read_checkpoint(path).kind}, {size_text(_size_of(path))}, in {path}")
        except CheckpointError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise CheckpointError("\n".join(problems))
    return 0


def models(arguments: Sequence[str]) -> int:
    """List the models on this machine, or remove one. Raises: LangPortError."""
    parser = _Parser(
        prog="langport models",
        description="The models on this machine: those that come with LangPort, those of the hub's cache (HF_HOME).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="list|remove", parser_class=_Parser)
    for at in (parser, commands.add_parser("list", help="list them (the default)", allow_abbrev=False)):
        at.add_argument("--json", action="store_true", help="print JSON instead of a table")
    remove = commands.add_parser("remove", help="delete a hub model from the cache", allow_abbrev=False)
    remove.add_argument("id", metavar="ID", help="its hub id")
    if arguments and set(arguments) <= {"-h", "--help"}:
        print(parser.format_help())
        return 0
    given = parser.parse_args(arguments)
    if given.command == "remove":
        print(_remove(given.id))
    elif given.json:
        print(json.dumps([asdict(model) for model in on_disk()], ensure_ascii=False, indent=2))
    else:
        _print_table(on_disk())
    return 0


def on_disk() -> list[ModelOnDisk]:
    """The bundled models, then those of the hub's cache by name."""
    bundled = [
        ModelOnDisk(name, _kind_of(path), _size_of(path), str(path), is_bundled=True)
        for name, path in ((name, BUNDLED_MODELS_PATH / name) for name in BUNDLED_MODELS)
    ]
    return bundled + sorted(_cached(), key=lambda model: model.name.lower())


def _cached() -> list[ModelOnDisk]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:  # nothing was ever downloaded
        return []
    found = []
    for repository in repositories:
        if repository.repo_type == "model" and repository.revisions:
            newest = max(repository.revisions, key=lambda revision: revision.last_modified)
            kind = _kind_of(newest.snapshot_path)
            path = str(newest.snapshot_path)
            found.append(ModelOnDisk(repository.repo_id, kind, repository.size_on_disk, path, is_bundled=False))
    return found


def _remove(name: str) -> str:
    """Delete all revisions of a hub model; what was freed. Raises: LangPortError when it is not in the cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if name in BUNDLED_MODELS:
        raise LangPortError(f"{name} comes with LangPort and is not removed.")
    try:
        cache = scan_cache_dir()
    except CacheNotFound as error:
        raise LangPortError(f"{name} is not in the hub's cache: there is none at {error.cache_dir}.") from error
    known = {repository.repo_id: repository for repository in cache.repos if repository.repo_type == "model"}
    if name not in known:
        hint = nearest(name, known) or "; `langport models` lists what is"
        raise LangPortError(f"{name} is not in the hub's cache{hint}")
    # Of this repository alone: a copy of it on the hub has the same commits.
    own = replace(cache, repos=frozenset((known[name],)))
    strategy = own.delete_revisions(*(revision.commit_hash for revision in known[name].revisions))
    strategy.execute()
    return f"{name}: removed, {size_text(strategy.expected_freed_size)} freed"


def _kind_of(path: Path) -> str:
    try:
        return read_checkpoint(path).kind
    except CheckpointError:
        return _UNREADABLE


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def size_text(num_bytes: int) -> str:
    """As people read it: 4.1 GB, 730.2 MB, 12.0 kB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def _print_table(found: Sequence[ModelOnDisk]) -> None:
    rows = [_COLUMNS]
    rows += [(m.name, m.kind, size_text(m.size_bytes), "LangPort" if m.is_bundled else "hub") for m in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
