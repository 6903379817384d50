"""The smallest kernel trees that there can be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MAKEFILE = "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 7\nEXTRAVERSION =\n"


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest folder that is a kernel tree with KVM for x86."""
    tree = tmp_path / "linux"
    (tree / "arch/x86/kvm").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "arch/x86/kvm/x86.c").write_text("int x;\n")
    return tree


def git(folder: Path, *arguments: str) -> str:
    """What git says."""
    who = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(folder: Path) -> Path:
    """The same, in git."""
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("*.o\n.config\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def snapshot(folder: Path, without: str = "") -> dict[str, tuple[int, bytes]]:
    """Every file of a folder, git's own included, with time and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and without not in path.relative_to(folder).parts
    }
