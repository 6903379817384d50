"""Protects builds from a machine on which the compiler's answers mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.build import toolchain
from kbuild.errors import HarnessError


def test_a_file_in_the_place_of_dev_null_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root a program can put one there; each probe of Kbuild's then fails, and the kernel loses options."""
    file = tmp_path / "null"
    file.write_text("#compdef\n")
    toolchain.find_toolchain()
    monkeypatch.setattr(toolchain, "DEVNULL", file)
    with pytest.raises(HarnessError, match=r"null is no device: .* mknod -m 666 \S+/null c 1 3$"):
        toolchain.find_toolchain()
