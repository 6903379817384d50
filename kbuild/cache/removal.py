"""Removing entries: safe against who begins to use them in the same moment, and against being cut off in the middle."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from kbuild.build.artifacts import store_lock
from kbuild.cache.inventory import REMOVED, Entry, Kind, inventory
from kbuild.errors import UserError
from kbuild.paths import locked

_AGE = re.compile(r"(\d+)([dh])")
_SECONDS = {"d": 86400, "h": 3600}


@dataclass(frozen=True)
class Selection:
    """What to remove; what is given has to hold together. Runs only where `kinds` names them."""

    kinds: tuple[Kind, ...] = ()
    """Empty: all but runs."""
    names: tuple[str, ...] = ()
    """Globs, of which one has to match; empty: any name."""
    older_than: float = 0.0
    """Seconds since the last use."""

    def __contains__(self, entry: Entry) -> bool:
        wanted = entry.kind in self.kinds if self.kinds else entry.kind is not Kind.RUNS
        named = not self.names or any(fnmatchcase(entry.name, name) for name in self.names)
        return wanted and named and (not self.older_than or time.time() - entry.last_used() > self.older_than)


def read_age(text: str) -> float:
    """Seconds of an age such as `14d` or `12h`. Raises UserError for anything else."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise UserError(f"--older-than {text}: write days or hours, such as 14d or 12h")
    return float(int(match[1]) * _SECONDS[match[2]])


def read_kind(text: str) -> Kind:
    """A kind by its name. Raises UserError where there is none."""
    try:
        return Kind(text)
    except ValueError:
        raise UserError(f"--kind {text}: no such kind; there are {', '.join(Kind)}") from None


def select(selection: Selection) -> list[Entry]:
    """What there is of it, in the order in which it is removed: a tree takes its builds along, and goes after them."""
    every = inventory()
    trees = {entry.path for entry in every if entry.kind is Kind.TREES and entry in selection}
    chosen = [
        entry for entry in every if entry in selection or (entry.kind is Kind.BUILDS and entry.path.parent in trees)
    ]
    return sorted(chosen, key=lambda entry: entry.kind is Kind.TREES)


@dataclass
class Removal:
    """What went and what did not."""

    removed: list[tuple[Entry, int]] = field(default_factory=list)
    """With the bytes that the disk has again."""
    skipped: list[tuple[Entry, str]] = field(default_factory=list)
    """With the reason."""

    @property
    def freed(self) -> int:
        """Bytes that the disk has again."""
        return sum(size for _, size in self.removed)

    def remove(self, entries: Iterable[Entry], *, unused_since: float | None = None) -> None:
        """Remove entries that nobody uses or has used since, and artifacts that no run and no build has any more then.

        `unused_since`: seconds since the epoch, by default now.
        """
        since = time.time() if unused_since is None else unused_since
        for entry in entries:
            self._remove(entry, since)
        if self.removed:
            self._remove_orphans()

    def _remove(self, entry: Entry, since: float) -> None:
        try:
            if not os.path.lexists(entry.path):
                return  # somebody else was faster
            with entry.unused() as unused:
                if not unused or entry.last_used() >= since:
                    self.skipped.append((entry, "in use"))
                    return
                aside = entry.path
                if entry.kind is not Kind.LEFTOVERS:
                    aside = entry.path.with_name(f"{REMOVED}{entry.path.name}-{secrets.token_hex(4)}")
                    os.rename(entry.path, aside)
            # From here on nobody can come to it, and what a kill leaves behind is found by the next clean-up.
            self.removed.append((entry, delete(aside)))
        except OSError as error:
            self.skipped.append((entry, f"{error.filename}: {error.strerror}"))

    def _remove_orphans(self) -> None:
        with locked(store_lock(), blocking=False) as unused:
            # Only now it can be said which they are: nobody is on his way from a build to a run.
            for entry in inventory(runs=False) if unused else ():
                if entry.orphan:
                    self.removed.append((entry, delete(entry.path)))


def delete(path: Path) -> int:
    """Remove a file, or a folder with all that is in it; returns the bytes that the disk has again."""
    freed = 0

    def remove(name: str | Path, folder: int | None = None) -> None:
        nonlocal freed
        with contextlib.suppress(FileNotFoundError):  # somebody else removes the same leftover
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
                if status.st_nlink > 1:
                    return
            freed += status.st_blocks * 512

    if path.is_dir() and not path.is_symlink():
        for _, folders, files, handle in os.fwalk(path, topdown=False):
            for name in (*files, *folders):
                remove(name, handle)
    remove(path)
    return freed
