"""Real kernels for the tests: Debian's 6.1, built as a gate builds it, from the same cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.configure.tree import Tree, open_tree


@pytest.fixture(scope="session")
def kernel_tree() -> Tree:
    """Debian's 6.1 source. Its slot is not locked: tests run gates of their own, which lock it."""
    with open_tree("debian:6.1") as tree:
        return tree


@pytest.fixture(scope="session")
def kernel_source(kernel_tree: Tree) -> Path:
    """An unpacked 6.1 tree. Only to be read."""
    return kernel_tree.source
