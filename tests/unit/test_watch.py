"""Protects `inv gate --watch`: each way to save a source file begins anew, what is none does not, a save in the middle
ends what is at work first, and nothing is left at the end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.watch import WATCHED, watch

# Each run says so in a pipe, and when it is ended; the second argument says whether it stays at work.
COMMAND = """
import os, signal, sys
pipe = os.open(sys.argv[1], os.O_WRONLY)
def end(*_):
    os.write(pipe, b"ended\\n")
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
os.write(pipe, f"begun {os.getpid()}\\n".encode())
if sys.argv[2] == "stay":
    signal.pause()
"""
WATCH = """
import sys
from kbuild.watch import watch
try:
    watch(sys.argv[1], [sys.executable, *sys.argv[2:]], lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


class Watching:
    """A process that watches a tree, and what its commands say."""

    def __init__(self, tree: Path, mode: str) -> None:
        self.tree = tree
        pipe = tree / "pipe"
        os.mkfifo(pipe)
        self._pipe = os.open(pipe, os.O_RDWR)
        (tree / "command.py").write_text(COMMAND)
        argv = [sys.executable, "-c", WATCH, *map(str, (tree, tree / "command.py", pipe)), mode]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE)

    def said(self) -> str:
        """The next line of a command."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._pipe], [], [], 60)[0], "nothing happened"
            line += os.read(self._pipe, 1)
        return line.decode().strip()

    def is_quiet(self) -> bool:
        """Whether a command says nothing: waits for longer than a save takes."""
        return not select.select([self._pipe], [], [], 0.5)[0]

    def wait_idle(self) -> None:
        """Until the command has come to its end."""
        assert self.process.stdout is not None
        line = b""
        # Not by readline(): that waits for ever where nothing comes.
        while not (line.startswith(b"exit status") and line.endswith(b"\n")):
            line = b"" if line.endswith(b"\n") else line
            assert select.select([self.process.stdout], [], [], 60)[0], "the command does not come to its end"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, "the watcher is gone"
            line += byte

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in WATCHED:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "arch/x86/kvm/x86.c").write_text("int x;\n")
    (tmp_path / "other.c").write_text("int x;\n")
    return tmp_path


@pytest.fixture
def watching(tree: Path) -> Iterator[Callable[[str], Watching]]:
    made: list[Watching] = []

    def begin(mode: str) -> Watching:
        made.append(Watching(tree, mode))
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def written(file: Path) -> None:
    file.write_text("int y;\n")


def renamed_to(file: Path) -> None:
    """As vim and git do it."""
    new = file.with_name(f".{file.name}.swp")
    new.write_text("int y;\n")
    new.rename(file)


def removed(file: Path) -> None:
    file.unlink()


def in_a_new_folder(file: Path) -> None:
    folder = file.parent / "new"
    folder.mkdir()
    (folder / "new.c").write_text("int y;\n")


def folder_moved_in(file: Path) -> None:
    elsewhere = file.parents[3] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "new.h").write_text("int y;\n")
    elsewhere.rename(file.parent / "new")


@pytest.mark.parametrize("save", [written, renamed_to, removed, in_a_new_folder, folder_moved_in])
def test_each_save_begins_anew(watching: Callable[[str], Watching], tree: Path, save: Callable[[Path], None]) -> None:
    one = watching("go")
    assert one.said().startswith("begun")
    one.wait_idle()
    save(tree / "arch/x86/kvm/x86.c")
    assert one.said().startswith("begun")
    one.wait_idle()
    assert one.is_quiet(), "once for each save"
    assert one.interrupt() == 130


def test_what_is_no_save_of_a_source_file_begins_nothing(watching: Callable[[str], Watching], tree: Path) -> None:
    one = watching("go")
    one.said()
    one.wait_idle()
    kvm = tree / "arch/x86/kvm"
    for name in (".x86.c.swp", "x86.c~", "x86.o", "4913", "tags"):
        (kvm / name).write_text("x")
    (kvm / "x86.c").read_text()
    (kvm / "empty").mkdir()
    (tree / "other.c").write_text("int z;\n")
    assert one.is_quiet()
    assert one.interrupt() == 130


def test_many_files_at_once_are_one_save(watching: Callable[[str], Watching], tree: Path) -> None:
    one = watching("go")
    one.said()
    one.wait_idle()
    for number in range(200):
        (tree / f"virt/kvm/file{number}.c").write_text("int y;\n")
    assert one.said().startswith("begun")
    one.wait_idle()
    assert one.is_quiet()


def test_a_save_in_the_middle_ends_what_is_at_work_first(watching: Callable[[str], Watching], tree: Path) -> None:
    one = watching("stay")
    first = int(one.said().split()[1])
    written(tree / "arch/x86/kvm/x86.c")
    assert one.said() == "ended"
    second = int(one.said().split()[1])
    assert not Path(f"/proc/{first}").exists()
    assert one.interrupt() == 130
    assert one.said() == "ended"
    assert not Path(f"/proc/{second}").exists()


def test_killed_it_leaves_nothing_behind(watching: Callable[[str], Watching]) -> None:
    one = watching("stay")
    pid = int(one.said().split()[1])
    handle = os.pidfd_open(pid)
    one.process.kill()
    try:
        assert select.select([handle], [], [], 60)[0], "the command is still there"
    finally:
        os.close(handle)


@pytest.mark.parametrize("name", ["debian:6.1", "/nowhere", "bare"])
def test_what_nobody_edits_is_refused(tree: Path, name: str) -> None:
    shutil.rmtree(tree / "virt")
    where = str(tree) if name == "bare" else name
    with pytest.raises(UserError, match="give the one you edit"):
        watch(where, ["true"], lambda line: None)  # noqa: ARG005
