"""Protects the short start: what it leaves out at first is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kbuild.paths import PROJECT

TASKS = """
import asyncio, importlib.metadata, pdb, unittest.mock
from invoke import task

@task
def show(c):
    print(c.config.get("answer"), pdb.Pdb.__name__, unittest.mock.Mock.__name__, importlib.metadata.version("invoke"))
"""


def shown(folder: Path) -> list[str]:
    (folder / "tasks.py").write_text(TASKS)
    argv: list[str | Path] = [sys.executable, PROJECT / "scripts/start", "--search-root", folder, "show"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()


def test_whoever_asks_later_gets_the_real_module(tmp_path: Path) -> None:
    answer, debugger, mock, version = shown(tmp_path)
    assert (answer, debugger, mock) == ("None", "Pdb", "Mock")
    assert version[0].isdigit()


def test_settings_in_yaml_are_read(tmp_path: Path) -> None:
    (tmp_path / "invoke.yaml").write_text("answer: 42\n")
    assert shown(tmp_path)[0] == "42"
