"""What there is: trees, builds, packages, artifacts, runs, with when they were used last and what they take."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kbuild.build.artifacts import store, store_lock
from kbuild.build.kernel import MEMORY, remembered
from kbuild.build.shipped import package_lock
from kbuild.configure.tree import series_lock
from kbuild.paths import cache_home, locked, unheld
from kbuild.record import runs_home

REMOVED = ".removed-"
"""What is being removed is so named first: it is either whole or out of the way, also when the removal is cut off."""

SCRATCH = ".scratch-"
"""In the cache's folder: for who needs files that are hard links to a tree's. He holds it."""


class Kind(StrEnum):
    """The values of `--kind`."""

    TREES = "trees"
    BUILDS = "builds"
    PACKAGES = "packages"
    ARTIFACTS = "artifacts"
    OTHERS = "others"
    """apt's lists, the agent, what `explain` keeps, and the index of runs."""
    LEFTOVERS = "leftovers"
    """Of a removal, a download or a copy that was cut off."""
    RUNS = "runs"


@dataclass(frozen=True)
class Entry:
    """One thing that can be removed by itself."""

    kind: Kind
    name: str
    path: Path
    stamps: tuple[Path, ...]
    """The newest of their times is that of the last use."""
    locks: tuple[Path, ...] = ()
    """Who uses it holds one of these."""
    held: bool = False
    """Who uses it holds the folder itself."""
    about: str = ""
    """What it is, where the name does not tell."""
    orphan: bool = False
    """Of an artifact: no run and no build has it."""

    def last_used(self) -> float:
        """Seconds since the epoch; 0 where it is gone."""
        return max((_time(path) for path in self.stamps), default=0.0)

    @contextlib.contextmanager
    def unused(self, *, probe: bool = False) -> Iterator[bool]:
        """Whether nobody uses it; if so, nobody can begin to until the context ends. `probe`: only to look."""
        with contextlib.ExitStack() as stack:
            # A lock that is not there is held by nobody; but who removes must have it, for it may come now.
            locks = [path for path in self.locks if not probe or path.exists()]
            free = all(stack.enter_context(locked(path, blocking=False)) for path in locks)
            yield free and (not self.held or stack.enter_context(unheld(self.path)))


def inventory(*, runs: bool = True) -> list[Entry]:
    """All entries, kind by kind and name by name."""
    cache = cache_home()
    found = [*_trees(cache / "trees"), *_packages(cache / "packages"), *_others(cache)]
    found += _artifacts([one for one in found if one.kind is Kind.BUILDS])
    if runs:
        found += _runs(runs_home())
    order = list(Kind)
    return sorted(found, key=lambda one: (order.index(one.kind), one.name))


def _trees(trees: Path) -> Iterator[Entry]:
    yield from _leftovers(trees)
    for slot in _folders(trees):
        lock = slot / "lock"
        series = re.match(r"linux-source-(\d+\.\d+)_", slot.name)
        fetching = (series_lock(trees, series[1]),) if series else ()
        # What an unpacking that was cut off left in the slot.
        yield from _leftovers(slot, fetching)
        used: list[Path] = []
        for objects in sorted(slot.glob("obj-*")):
            stamps = (objects, objects / MEMORY, objects / ".config")
            used += stamps
            built = remembered(objects)
            about = built[0].release if built else "not finished"
            yield Entry(Kind.BUILDS, f"{slot.name}/{objects.name}", objects, stamps, (lock,), about=about)
        # A build belongs to its tree, and goes with it: a tree is never older than its builds.
        yield Entry(Kind.TREES, slot.name, slot, (lock, *used), (*fetching, lock))


def _packages(packages: Path) -> Iterator[Entry]:
    for path in packages.glob(".unpack-*"):
        name = path.name.removeprefix(".unpack-").partition("_")[0]
        yield Entry(Kind.LEFTOVERS, path.name, path, (path,), (package_lock(packages, name),))
    yield from _leftovers(packages)
    for folder in _folders(packages):
        lock = package_lock(packages, folder.name.partition("_")[0])
        yield Entry(Kind.PACKAGES, folder.name, folder, (folder,), (lock,))


def _artifacts(builds: Iterable[Entry]) -> Iterator[Entry]:
    wanted: dict[str, tuple[Path, ...]] = {}
    for build in builds:
        for digest in {digest for built in remembered(build.path) for digest in built.files.values()}:
            wanted[digest] = (*wanted.get(digest, ()), *build.stamps)
    for path in store().glob("??/*"):
        if path.name.startswith(".new-"):
            yield Entry(Kind.LEFTOVERS, path.name, path, (path,), (store_lock(),))
            continue
        with contextlib.suppress(FileNotFoundError):
            orphan = path.name not in wanted and path.stat().st_nlink == 1
            stamps = (path, *wanted.get(path.name, ()))
            yield Entry(Kind.ARTIFACTS, path.name, path, stamps, (store_lock(),), orphan=orphan)


def _others(cache: Path) -> Iterator[Entry]:
    yield from _leftovers(cache)
    for path in cache.glob(f"{SCRATCH}*"):
        yield Entry(Kind.LEFTOVERS, path.name, path, (path,), held=True)
    if (agent := cache / "agent").is_dir():
        lock = agent_lock()
        yield Entry(Kind.OTHERS, "agent", agent, (agent, lock), (lock,))
    for folder in _folders(cache / "apt"):
        yield Entry(Kind.OTHERS, f"apt/{folder.name}", folder, (folder, folder / "apt.conf"), held=True)
    for folder in _folders(cache / "explain"):
        yield Entry(Kind.OTHERS, f"explain/{folder.name}", folder, (folder,), (folder.with_suffix(".lock"),))
    for index in (cache / "runs").glob("*.sqlite"):
        yield Entry(Kind.OTHERS, f"runs/{index.name}", index, (index,), (index.with_suffix(".lock"),))
    yield from _leftovers(cache / "runs")
    for folder in _folders(cache / "series"):
        yield Entry(Kind.OTHERS, f"series/{folder.name}", folder, (folder,), (folder.with_suffix(".lock"),))
    yield from _leftovers(cache / "apt")
    yield from _leftovers(cache / "explain")


def _runs(runs: Path) -> Iterator[Entry]:
    yield from _leftovers(runs)
    for folder in _folders(runs):
        yield Entry(Kind.RUNS, folder.name, folder, (folder, folder / "record.json"), held=True)


def agent_lock() -> Path:
    """Shared by those who take the agent from the cache. Its time is that of the last use."""
    return cache_home() / "agent.lock"


def _leftovers(folder: Path, unpacking: tuple[Path, ...] = ()) -> Iterator[Entry]:
    """What was put aside to be removed; with the locks that an unpacking holds, what that left, too."""
    for path in folder.glob(f"{REMOVED}*"):
        yield Entry(Kind.LEFTOVERS, path.name, path, (path,))
    for path in folder.glob(".unpack-*") if unpacking else ():
        yield Entry(Kind.LEFTOVERS, path.name, path, (path,), unpacking)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True)
class Usage:
    """What files take on the disk, in bytes."""

    alone: int
    """Of files that have one name."""
    shared: dict[tuple[int, int], tuple[int, int, int]]
    """Of a file with several names, by device and inode: its bytes, its names, how many of them are here."""

    def freed(self) -> int:
        """What is free again when all of this is removed."""
        return self.alone + sum(size for size, names, here in self.shared.values() if here >= names)

    def part(self) -> int:
        """With the part of each shared file that its names here are of all: these add up, wherever the others are."""
        return self.alone + sum(size * here // names for size, names, here in self.shared.values())


def together(usages: Iterable[Usage]) -> Usage:
    """Several as one."""
    alone = 0
    shared: dict[tuple[int, int], tuple[int, int, int]] = {}
    for usage in usages:
        alone += usage.alone
        for key, (size, names, here) in usage.shared.items():
            shared[key] = (size, names, here + shared.get(key, (0, 0, 0))[2])
    return Usage(alone, shared)


def measure(entry: Entry) -> Usage:
    """What an entry takes; of a tree without its builds, which are entries of their own."""
    alone = 0
    shared: dict[tuple[int, int], tuple[int, int, int]] = {}

    def add(status: os.stat_result) -> None:
        nonlocal alone
        if not status.st_nlink:
            return  # removed while we look
        size = status.st_blocks * 512
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            alone += size
            return
        key = (status.st_dev, status.st_ino)
        shared[key] = (size, status.st_nlink, 1 + shared.get(key, (0, 0, 0))[2])

    waiting = [entry.path]
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError):  # it goes away while we look
            add(path.lstat())
            if path.is_symlink() or not path.is_dir():
                continue
            with os.scandir(path) as listing:
                for one in listing:
                    if path == entry.path and entry.kind is Kind.TREES and one.name.startswith(("obj-", ".")):
                        continue
                    if one.is_dir(follow_symlinks=False):
                        waiting.append(path / one.name)
                    else:
                        add(one.stat(follow_symlinks=False))
    return Usage(alone, shared)
