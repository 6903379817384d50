"""Disks that are full, read-only or hidden, for one test alone: mounts that nobody else sees."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import Tool

NAMESPACE = ["unshare", "--mount", "--propagation", "private"]


class Mounts:
    """A mount namespace and the tool in it. All of its mounts go with the last process in it, however that ends."""

    def __init__(self, holder: int, tool: Tool) -> None:
        self._enter = ["nsenter", f"--target={holder}", "--mount", "--"]
        self._root = Path(f"/proc/{holder}/root")
        self._tool = tool

    def sh(self, script: str, *arguments: str | Path) -> str:
        """Run a shell script there; what it printed."""
        argv = [*self._enter, "sh", "-euc", script, "sh", *map(str, arguments)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def disk(self, folder: Path, size: str) -> Path:
        """Put an empty disk of this size (as for tmpfs: `4k`, `100m`) at a folder, which is made."""
        self.sh('mkdir -p "$1"; mount -t tmpfs -o "size=$2" none "$1"', folder, size)
        return folder

    def resize(self, folder: Path, size: str) -> None:
        """Give a disk another size, not below what is on it."""
        self.sh('mount -o "remount,size=$2" "$1"', folder, size)

    def over(self, folder: Path, scratch: Path) -> Path:
        """Whatever is written to `folder` from here on goes to a disk of its own, which is returned."""
        self.disk(scratch, "1g")
        options = f"lowerdir={folder},upperdir={scratch}/upper,workdir={scratch}/work"
        self.sh('mkdir "$1/upper" "$1/work"; mount -t overlay -o "$2" overlay "$3"', scratch, options, folder)
        return scratch

    def leave(self, disk: Path, kilobytes: int) -> None:
        """Shrink a disk until this much of it is free."""
        used = int(self.sh('df --output=used -k "$1" | tail -n 1', disk))
        self.resize(disk, f"{used + kilobytes}k")

    def seen(self, path: Path) -> Path:
        """Where a path of the namespace is found from outside."""
        return self._root / path.relative_to("/")

    def run(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a task of the tool there to its end."""
        return subprocess.run(
            [*self._enter, *self._tool.argv(*arguments)],
            env={**self._tool.environment, **more},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def start(self, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start a task there and go on."""
        return subprocess.Popen(
            [*self._enter, *self._tool.argv(*arguments)],
            env={**self._tool.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def own_mounts(tool: Tool) -> Iterator[Mounts]:
    """A namespace for a test. Skips the test where this user may have none."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    holding = ["sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen([*NAMESPACE, "--", *holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Mounts(holder.pid, tool)
        # The end of its input ends it.
