"""Protects the architecture: a stage imports only earlier ones, and only tasks.py knows Invoke."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.paths import PROJECT

PACKAGE = PROJECT / "kbuild"

# What lies beside the stages, then the stages in the order of the design; each may import what stands before it.
ORDER = [
    ["versions", "outcome", "errors", "paths", "log", "command", "toml", "traces", "transcript", "barspec", "cpus"],
    ["profile", "record", "seriesrecord", "barrecord", "progress", "setting", "watch"],
    ["configure"],
    ["build"],
    ["elf"],
    ["dmesg"],
    ["hosts"],
    ["load"],
    ["cache"],
    ["cluster"],
    ["runs"],
    ["detail"],
    ["gate"],
    ["series"],
    ["bar"],
    ["report"],
]
# Reports read records, never live objects: they may import the record's types and nothing of a stage.
REPORT_MAY = {name for row in ORDER[:2] for name in row} | {"report"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The stage, or the module beside the stages, that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_earlier_stages(path: Path) -> None:
    ranks = {name: rank for rank, row in enumerate(ORDER) for name in row}
    own = unit(path)
    if own == "__init__":
        return
    assert own in ranks, f"{own} has no place in the order"
    for name in imports(path):
        assert not name.startswith("invoke"), "only tasks.py knows Invoke"
        parts = name.split(".")
        if parts[0] != "kbuild" or len(parts) < 2:
            continue
        other = parts[1]
        assert ranks[other] <= ranks[own], f"{own} imports {other}, a later stage"
        if own == "report":
            assert other in REPORT_MAY, f"report imports {other}: it reads records only"


def test_every_stage_says_what_it_takes_and_gives() -> None:
    for folder in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
        assert docstring, f"{folder.name}/__init__.py says nothing"


def test_listing_tasks_loads_nothing_heavy() -> None:
    """`inv --list` reads tasks.py: nothing that it imports at its top may be slow to load."""
    heavy = {"kconfiglib", "elftools", "rich", "zstandard", "structlog", "msgspec", "kbuild"}
    tree = ast.parse((PROJECT / "tasks.py").read_text("utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in top
        for alias in node.names
    }
    assert not names & heavy
