"""The tool as its users start it, with records of its own, and what is left running when it has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kbuild.paths import PROJECT
from tests.integration.guest import Guest, Image, make_image, running

MARK = "KVM_KBUILD_TEST"
Changes = Mapping[str, Mapping[str, str]]
"""Of files of the kernel: what is there once, and what comes in its place."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """`scripts/inv` with a state folder of its own. Its cache is everybody's: kernels take minutes to build."""

    environment: dict[str, str]
    runs: Path

    def run(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a task to its end."""
        return subprocess.run(
            self.argv(*arguments), env={**self.environment, **more}, capture_output=True, text=True, timeout=3000
        )

    def start(self, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start a task and go on."""
        return subprocess.Popen(
            self.argv(*arguments),
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def argv(*arguments: str | Path) -> list[str]:
        """The command line."""
        return [str(PROJECT / "scripts/inv"), *map(str, arguments)]

    def latest(self) -> Path:
        """The folder of the newest run."""
        return max(self.runs.iterdir())

    def record(self) -> dict[str, Any]:
        """What the newest run's record says."""
        data: dict[str, Any] = json.loads((self.latest() / "record.json").read_text())
        return data

    def transcript(self) -> dict[str, Any]:
        """Of the newest run's only order."""
        (one,) = self.record()["transcripts"]
        found: dict[str, Any] = one
        return found

    def processes(self) -> dict[int, str]:
        """Everything that lives and was started from here: process id to program."""
        found: dict[int, str] = {}
        wanted = f"{MARK}={self.environment[MARK]}".encode()
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
            except OSError:
                continue  # it ended meanwhile, or is a kernel thread
        return found


@pytest.fixture(scope="session")
def all_kernels(request: pytest.FixtureRequest) -> None:
    """What takes minutes. Of the session: else what a test needs of that scope, such as a kernel, is made before it."""
    if not request.config.getoption("--all-kernels"):
        pytest.skip("takes minutes: only with --all-kernels")


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    """The tool with no runs yet."""
    yield from make_tool(tmp_path)


@pytest.fixture(scope="session")
def shared_tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """The tool with the runs of the whole session: what one gate learned of a host, the next one knows."""
    yield from make_tool(tmp_path_factory.mktemp("shared"))


def make_tool(folder: Path) -> Iterator[Tool]:
    """A tool whose processes can be told from all others; those that are left at the end are ended."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), MARK: uuid.uuid4().hex}
    tool = Tool(environment, folder / "state/kvm-kbuild/runs")
    yield tool
    for pid in tool.processes():
        os.kill(pid, signal.SIGKILL)


LONG = "twenty-cycles"
"""An order that is not over before something happens to it."""
MIDDLE = 3
"""Answers of the agent: the state, and a first module."""


@contextlib.contextmanager
def at_work(tool: Tool, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run that has come to the middle of its first order."""
    before = set(tool.runs.glob("*"))
    process = tool.start(*words)

    def logs() -> Iterator[Path]:
        return (log for run in set(tool.runs.glob("*")) - before for log in run.glob("hosts/*/boot-*/agent.log"))

    try:
        wait_for(lambda: any(log.read_bytes().count(b'"ev":"result"') >= MIDDLE for log in logs()), process)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def image() -> Image:
    """Made once for all machines."""
    return make_image()


@pytest.fixture(scope="session")
def guest(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One machine for all tests: each has to leave it as it was."""
    # A socket's path is at most 107 bytes long.
    with running(image, tmp_path_factory.mktemp("g")) as machine:
        yield machine


def write_patch(source: Path, changes: Changes, patch: Path) -> Path:
    """Write a patch that makes these changes to a kernel's source. Each has to be possible in one place only."""
    lines: list[str] = []
    for path, some in changes.items():
        old = new = (source / path).read_text()
        for before, after in some.items():
            assert new.count(before) == 1, (path, before)
            new = new.replace(before, after)
        lines += difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    patch.write_text("".join(lines))
    return patch


@pytest.fixture
def patched(kernel_source: Path, tmp_path: Path) -> Callable[[Changes], Path]:
    """Writes a patch that makes these changes to the kernel under test."""
    return lambda changes: write_patch(kernel_source, changes, tmp_path / "design.patch")


@pytest.fixture
def built(shared_tool: Tool, patched: Callable[[Changes], Path]) -> Callable[[Changes], Path]:
    """Builds a kernel with such changes, and gives the folder that it and its modules are in."""

    def build(changes: Changes) -> Path:
        done = shared_tool.run("build", "--patch", patched(changes))
        assert done.returncode == 0, done.stdout + done.stderr
        return shared_tool.latest() / "artifacts"

    return build


def build_modules(
    folder: Path,
    sources: Collection[Path],
    kernel_source: Path,
    kernel_build: Path,
    local_version: str = "-kbuild",
) -> Path:
    """The folder, with modules of these sources, built out of the tree of the kernel under test."""
    for source in sources:
        shutil.copy(source, folder)
    objects = " ".join(f"{source.stem}.o" for source in sources)
    (folder / "Makefile").write_text(f"obj-m := {objects}\n")
    where = [f"O={kernel_build}", f"M={folder}", f"LOCALVERSION={local_version}"]
    argv = ["make", "-s", "-C", str(kernel_source), *where, "modules"]
    subprocess.run(argv, check=True, capture_output=True)
    return folder


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait until something can be seen of a running task. Fails where the task ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended first: {process.communicate()}"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


PROFILE = """
title = "{title}"

[configure]
fragments = [{fragments}]

[build]
local_version = "{local_version}"

[load]
orders = ["vendor-alone"]
hosts = ["qemu-svm", "bochs-vmx"]
command_line = ["quiet", "panic=-1", "nokaslr", "slab_nomerge", "printk.devkmsg=on"]
"""


def write_profile(folder: Path, local_version: str, fragment: str = "") -> Path:
    """A profile like the default one, with its own object folder and perhaps a fragment more."""
    fragments = '"base", "kvm"'
    if fragment:
        (folder / "more.config").write_text(fragment)
        fragments += ', "./more.config"'
    path = folder / "profile.toml"
    path.write_text(PROFILE.format(title="a test", fragments=fragments, local_version=local_version))
    return path
