"""Protects the first and the second start: what is missing is said or installed, and later starts need nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.paths import PROJECT

MISSING = "no-such-package-anywhere   no-such-program   host   a test\n"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A checkout that anybody can read, whose gate needs a package that does not exist."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(PROJECT / "scripts", folder / "scripts")
        for file in ("requirements.lock", "tasks.py"):
            shutil.copy(PROJECT / file, folder)
        # The environment itself is the real one: a new one would take a download.
        (folder / ".venv").mkdir()
        for part in ("bin", "lib", "pyvenv.cfg", ".lock"):
            (folder / ".venv" / part).symlink_to(PROJECT / ".venv" / part)
        with (folder / "scripts/packages").open("a") as packages:
            packages.write(MISSING)
        yield folder


def start(folder: Path, *arguments: str, user: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    argv = [*(user or []), str(folder / "scripts/inv"), *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_who_may_not_install_gets_the_line(checkout: Path) -> None:
    done = start(checkout, "gate", user=NOBODY)
    assert done.returncode == 3
    assert done.stderr == "apt-get install --no-install-recommends no-such-package-anywhere\n"


def test_root_without_a_terminal_installs_and_says_when_that_fails(checkout: Path) -> None:
    done = start(checkout, "gate")
    assert done.returncode == 3
    assert "Unable to locate package no-such-package-anywhere" in done.stderr
    assert "By hand: apt-get install --no-install-recommends no-such-package-anywhere" in done.stderr


@pytest.mark.parametrize("name", ["inspect", "explain", "report"])
def test_reading_needs_neither_compiler_nor_emulator(checkout: Path, name: str) -> None:
    done = start(checkout, "--help", name)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_later_start_needs_no_network() -> None:
    argv = ["unshare", "--net", str(PROJECT / "scripts/inv"), "--list"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gate" in done.stdout


def test_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROJECT / "scripts/inv", "--list"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
