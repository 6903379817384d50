"""Protects the tutorial: its patches apply to Debian's 6.1 as it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kbuild.paths import PROJECT

PATCHES = sorted((PROJECT / "docs/patches").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_patch_of_the_docs_applies(kernel_source: Path, patch: Path) -> None:
    argv = ["git", "apply", "--check", f"--directory={kernel_source.name}", str(patch)]
    above = {**os.environ, "GIT_CEILING_DIRECTORIES": str(kernel_source.parent.parent)}
    done = subprocess.run(argv, cwd=kernel_source.parent, env=above, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Out of a repository git passes over what does not apply to any file there; each file is one.
    listed = subprocess.run(["git", "apply", "--numstat", str(patch)], capture_output=True, text=True, check=True)
    files = [line.split("\t")[2] for line in listed.stdout.splitlines()]
    assert files
    assert all((kernel_source / name).is_file() for name in files)


def test_there_are_patches() -> None:
    assert len(PATCHES) == 3
