"""A command that is run again on each save of a source file: told by the kernel (inotify), never by looking again.

A save while the command is at work ends it, and it begins anew: its answer would be one about a file of before.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from inotify_simple import INotify, flags, masks

from kbuild.command import end, leashed
from kbuild.errors import HarnessError, UserError, os_errors

WATCHED = ("arch/x86/kvm", "virt/kvm")
"""Folders of a kernel tree, with all below them."""
QUIET_MS = 100
"""Behind the last event of a save: an editor writes, renames and removes, and git writes many files."""
GRACE = 60.0
"""Seconds that a gate has to end its emulators and to write down that it was interrupted."""

_SOURCE = re.compile(r"(?!\.)(?:.*\.(?:c|h|S)|Makefile.*|Kconfig.*|Kbuild.*)(?<!~)")
_MASK = masks.MOVE | flags.CLOSE_WRITE | flags.CREATE | flags.DELETE


def watch(tree: str, argv: Sequence[str | Path], tell: Callable[[str], None]) -> None:
    """Run the command, and again after each save of a source file in the tree, until something is raised here.

    `tell` gets a line for a person. Whatever ends this ends the command first, by SIGTERM, and waits for its end.
    Raises UserError where the tree is no folder with KVM in it, HarnessError where it cannot be watched.
    """
    folder = Path(tree).expanduser()
    watched = [folder / name for name in WATCHED]
    for one in watched:
        if tree.startswith("debian:") or not one.is_dir():
            raise UserError(f"--watch: --tree {tree} has no folder {one.relative_to(folder)}: give the one you edit")
    with os_errors(f"--watch: {folder} cannot be watched"), contextlib.closing(INotify()) as events:
        saves = _Saves(events, watched)
        while True:
            process = _start(argv)
            try:
                saved = _until_saved(process, saves, tell)
            finally:
                _end(process)
            tell(f"saved: {_named(saved)}")


def _start(argv: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for us, who end it and wait for it."""
    with os_errors(f"'{argv[0]}' cannot be started"):
        return subprocess.Popen(leashed(argv), stdin=subprocess.DEVNULL, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """By a signal to it alone: emulators that got it too would seem to have died, and it ends them itself."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            end(process)


def _until_saved(process: subprocess.Popen[bytes], saves: _Saves, tell: Callable[[str], None]) -> list[str]:
    """Wait for a save; the command may come to its end before."""
    handle = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(saves.fileno(), select.POLLIN)
        poll.register(handle, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if handle in ready:
                poll.unregister(handle)
                tell(f"exit status {process.wait()}; waiting for a save below {' or '.join(WATCHED)}, Ctrl-C ends")
            if saves.fileno() in ready and (saved := saves.read()):
                if process.poll() is None:
                    tell("a source file was saved: this one is ended, and a new one begins")
                return saved
    finally:
        os.close(handle)


class _Saves:
    """The saves of source files in some folders, and in those that are made there."""

    def __init__(self, events: INotify, folders: Sequence[Path]) -> None:
        self._events = events
        self._folders = folders
        self._names: dict[int, Path] = {}
        self._add()

    def fileno(self) -> int:
        """Can be read where something happened."""
        return int(self._events.fileno())

    def read(self) -> list[str]:
        """The files of the saves that are over, by their paths in the tree; none where something else happened."""
        found: dict[str, None] = {}
        timeout = 0
        while batch := [*self._events.read(timeout=timeout)]:
            for event in batch:
                if event.mask & flags.Q_OVERFLOW:
                    found["more files than were counted"] = None
                elif event.wd in self._names and _is_save(event.mask) and _SOURCE.fullmatch(event.name):
                    found[str(self._names[event.wd] / event.name)] = None
            if any(event.mask & (flags.ISDIR | flags.IGNORED) for event in batch):
                found |= dict.fromkeys(self._add())
            timeout = QUIET_MS if found else 0
        return [*found]

    def _add(self) -> list[str]:
        """Watch each folder; the sources that are in new ones are new."""
        came: list[str] = []
        for top in self._folders:
            for folder, _, names in os.walk(top):
                try:
                    number = self._events.add_watch(folder, _MASK | flags.ONLYDIR)
                except FileNotFoundError:
                    continue  # it went meanwhile
                except OSError as error:
                    raise HarnessError(f"--watch: {folder} cannot be watched: {error.strerror}") from None
                if number not in self._names:
                    self._names[number] = Path(folder)
                    came += [str(Path(folder) / name) for name in names if _SOURCE.fullmatch(name)]
        return came


def _is_save(mask: int) -> bool:
    """Of a file. What is only made is written next, and then closed."""
    return not mask & flags.ISDIR and bool(mask & (_MASK & ~flags.CREATE))


def _named(saved: Sequence[str]) -> str:
    """The first few of them."""
    more = f" and {len(saved) - 3} more" if len(saved) > 3 else ""
    return ", ".join(saved[:3]) + more
