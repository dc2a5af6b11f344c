"""Imports point one way. Read from the source, so that nothing need be installed or run.

The order is that of docs/architecture.md: a package imports only from rows above its own, and what it must never
touch at all (torch in the gateway's process, HTTP in the engine, Ray outside `cluster`) is listed below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import langport

ROWS = [
    {"langport", "direct", "errors", "figures", "frames", "known_head", "types"},
    {"settings"},
    {"wire", "text"},
    {"ops", "store"},
    {"layers"},
    {"models"},
    {"engine"},
    {"api", "gateway"},
    {"cluster"},
    {
        "cli",
        "assembly",
        "bench",
        "check",
        "keys_cli",
        "manager",
        "models_cli",
        "server",
        "gateway_server",
        "http_connection",
        "http_protocol",
        "http_server",
        "stored",
        "workers",
        "reload",
        "openapi",
        "testing",
        "demo",
        "openai_api_gateway",
        "__main__",
    },
]
"""Parts of the package; "langport" is its `__init__`. Members of one row do not import each other, but for the last."""
ROW = {part: number for number, row in enumerate(ROWS) for part in row}
LAST = len(ROWS) - 1

FORBIDDEN = {
    "gateway": {"torch", "transformers", "tokenizers", "langport.engine", "langport.models", "langport.api"},
    "wire": {"torch", "transformers", "tokenizers", "uvicorn"},
    "text": {"torch"},
    "store": {"torch", "uvicorn", "http", "langport.wire", "langport.text"},
    "api": {"torch", "transformers", "uvicorn", "langport.engine"},
    "engine": {"uvicorn", "httptools", "httpx", "http", "langport.wire", "langport.text"},
}
"""What a part never imports, not even inside a function."""
ONLY_IN = {
    "ray": {"cluster"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "uvicorn": {"http_connection", "http_protocol", "http_server"},
    "prometheus_client": set(),
    "opentelemetry": {"gateway"},
    "redis": {"gateway"},
    "httpx": set(),
    "matplotlib": {"bench"},
}
LIGHT = ("langport.gateway", "langport.api", "langport.wire", "langport.text", "langport.cli", "langport.engine.client",
         "langport.models.hub", "langport.models.checkpoint", "langport.openapi", "langport.server",
         "langport.bench")  # fmt: skip
"""What the gateway's process loads: importing it must not load the libraries of the engine's process, or of extras."""
HEAVY = {"torch", "transformers", "sqlalchemy", "alembic", "opentelemetry", "matplotlib"}


@dataclass(frozen=True)
class Import:
    module: str
    """Who imports."""
    target: str
    """A module, or a name in one."""
    is_immediate: bool
    """At import time: not inside a function, not for type checkers only."""
    line: int


class Tree:
    """A package's modules and what they import."""

    def __init__(self, package: Path) -> None:
        self.modules: dict[str, list[Import]] = {}
        for path in sorted(package.rglob("*.py")):
            parts = [package.name, *path.relative_to(package).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.modules[module] = list(_imports(module, is_package, tree, True))

    def all(self) -> Iterator[Import]:
        for imports in self.modules.values():
            yield from imports

    def loaded_by(self, module: str) -> dict[str, tuple[str, ...]]:
        """Every outside library that importing `module` loads, with the chain of modules that leads there."""
        found: dict[str, tuple[str, ...]] = {}
        chains = {name: (name,) for name in self._with_parents(module)}
        waiting = list(chains)
        while waiting:
            name = waiting.pop()
            for imported in self.modules[name]:
                if not imported.is_immediate:
                    continue
                inside = self._with_parents(imported.target)
                if not inside:
                    found.setdefault(imported.target.partition(".")[0], chains[name])
                for further in inside:
                    if further not in chains:
                        chains[further] = (*chains[name], further)
                        waiting.append(further)
        return found

    def _with_parents(self, target: str) -> list[str]:
        parts = target.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return [name for name in names if name in self.modules]


def _imports(module: str, is_package: bool, node: ast.AST, is_immediate: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, is_immediate, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(module, is_package, child)
            for alias in child.names:
                yield Import(module, f"{base}.{alias.name}", is_immediate, child.lineno)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            later = is_function or is_for_types
            yield from _imports(module, is_package, child, is_immediate and not later)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "langport"


def backward(tree: Tree) -> list[str]:
    """Imports that point to the own row's neighbours or to a later row."""
    problems = []
    for found in tree.all():
        if not found.target.startswith("langport."):
            continue
        source, target = part_of(found.module), part_of(found.target)
        if target not in ROW:
            target = "langport"  # a name of the package's own __init__
        if source != target and ROW[target] >= ROW[source] and ROW[source] != LAST:
            problems.append(f"{found.module}:{found.line} imports {found.target}")
    return problems


def forbidden(tree: Tree) -> list[str]:
    """Imports that are listed in FORBIDDEN or ONLY_IN."""
    problems = []
    for found in tree.all():
        part = part_of(found.module)
        library = found.target.partition(".")[0]
        is_listed = any(found.target == name or found.target.startswith(name + ".") for name in FORBIDDEN.get(part, ()))
        if is_listed or (library in ONLY_IN and part not in ONLY_IN[library]):
            problems.append(f"{found.module}:{found.line} imports {found.target}")
    return problems


def heavy(tree: Tree) -> list[str]:
    """Modules of the gateway's process that load the engine's libraries when they are imported."""
    problems = []
    for module in tree.modules:
        if any(module == light or module.startswith(light + ".") for light in LIGHT):
            for library, chain in tree.loaded_by(module).items():
                if library in HEAVY:
                    problems.append(f"{' -> '.join(chain)} -> {library}")
    return problems


@pytest.fixture(scope="module")
def package() -> Tree:
    return Tree(Path(langport.__file__).parent)


def test_every_part_has_a_row(package):
    parts = {part_of(module) for module in package.modules}
    assert parts <= set(ROW), f"give these a place in ROWS: {sorted(parts - set(ROW))}"


@pytest.mark.parametrize("rule", [backward, forbidden, heavy])
def test_the_package_keeps_the_rule(package, rule):
    assert rule(package) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (backward, "wire/a.py", "from langport.api import app"),
        (backward, "wire/a.py", "import langport.text.b"),
        (backward, "engine/a.py", "def f():\n    from langport.api.b import c"),
        (backward, "models/a.py", "from ..engine import b"),
        (backward, "models/__init__.py", "from ..engine import b"),
        (backward, "gateway/a.py", "from langport import server"),
        (backward, "api/a.py", "import typing\nif typing.TYPE_CHECKING:\n    from langport.gateway.b import C"),
        (forbidden, "gateway/a.py", "import torch.nn as nn"),
        (forbidden, "gateway/a.py", "from langport.models.b import C"),
        (forbidden, "engine/a.py", "try:\n    from langport.wire import b\nexcept ImportError:\n    pass"),
        (forbidden, "cli.py", "import ray"),
        (forbidden, "api/a.py", "class A:\n    def f(self):\n        import uvicorn"),
        (heavy, "gateway/a.py", "from torch import nn"),
        (heavy, "api/a.py", "from langport.models.heavy import b"),
        (heavy, "text/a.py", "import langport.models.heavy"),
    ],
)
def test_the_rule_finds_what_breaks_it(tmp_path, rule, path, text):
    root = tmp_path / "langport"
    (root / "models").mkdir(parents=True)
    (root / "models" / "heavy.py").write_text("import torch")
    assert rule(Tree(root)) == []
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).write_text(text)
    assert len(rule(Tree(root))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from langport import __version__",
        "from langport.errors import ApiError",
        "from langport.types import Engine",
        "import langport.api.b",
        "def f():\n    import torch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ],
)
def test_what_is_allowed_passes(tmp_path, text):
    root = tmp_path / "langport"
    root.mkdir()
    (root / "cli.py").write_text(text)
    assert [problem for rule in (backward, forbidden, heavy) for problem in rule(Tree(root))] == []
