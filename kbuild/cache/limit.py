"""The cache's limit: what was not used for longest goes when a run has made it too large."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kbuild import log
from kbuild.cache.inventory import Entry, Kind, inventory, measure
from kbuild.cache.removal import Removal
from kbuild.errors import HarnessError, UserError
from kbuild.paths import cache_home, make_folder, write_atomically

GIGABYTE = 10**9
_DEFAULT = 40 * GIGABYTE
_DEFAULT_PART = 0.2
"""Of the disk."""
_A_DAY = 86400.0


def cache_limit(gigabytes: float | str | None) -> int:
    """The limit in bytes; without a number 40 GB, or a fifth of the disk where that is less.

    Raises UserError for what is no positive number.
    """
    if gigabytes in (None, ""):
        return min(_DEFAULT, int(shutil.disk_usage(make_folder(cache_home())).total * _DEFAULT_PART))
    try:
        limit = float(gigabytes or 0)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UserError(f"kbuild.cache_gb = {gigabytes}: write how many gigabytes the cache may take, such as 40")
    return int(limit * GIGABYTE)


def trim(limit: int, *, spare_since: float) -> None:
    """Remove what was not used for longest until the cache takes at most `limit` bytes, and log what went.

    Never what is in use, or was used since `spare_since` (seconds since the epoch). Files that runs have too take
    nothing of the cache. A clean-up that fails is logged; the run's verdict stands.
    """
    try:
        with log.timed("cache.trim"):
            entries = inventory(runs=False)
            over = sum(_sizes(entries)) - limit
            if over <= 0:
                return
            removal = Removal()
            # First what nobody can use any more.
            removal.remove(one for one in entries if one.kind is Kind.LEFTOVERS or one.orphan)
            for entry in sorted(entries, key=lambda one: (one.last_used(), one.kind is Kind.TREES)):
                if removal.freed >= over:
                    break
                # Of artifacts the rest is used through a build, and goes with it.
                if entry.kind not in (Kind.LEFTOVERS, Kind.ARTIFACTS):
                    removal.remove([entry], unused_since=spare_since)
            _say(removal, limit, over)
    except (OSError, HarnessError) as error:
        log.get().warning("the cache could not be brought below its limit", reason=str(error))


def _say(removal: Removal, limit: int, over: int) -> None:
    gone: dict[str, None] = {}
    for entry, _ in removal.removed:
        gone[entry.kind if entry.kind in (Kind.LEFTOVERS, Kind.ARTIFACTS) else f"{entry.kind} {entry.name}"] = None
    log.get().warning(
        "the cache was over its limit" if removal.freed >= over else "the cache is over its limit: the rest is in use",
        limit_gb=round(limit / GIGABYTE, 1),
        removed=", ".join(gone) or "nothing",
        freed_gb=round(removal.freed / GIGABYTE, 1),
    )


class _Size(msgspec.Struct, array_like=True):
    used: float
    """The time of the last use when it was measured."""
    bytes: int
    measured: float


def _sizes(entries: Iterable[Entry]) -> list[int]:
    """What each entry takes. Measured anew only where it was used since: a tree has 80,000 files."""
    path = cache_home() / "sizes.json"
    known = _read(path)
    new: dict[str, _Size] = {}
    sizes: list[int] = []
    now = time.time()
    for entry in entries:
        if entry.kind in (Kind.LEFTOVERS, Kind.ARTIFACTS):
            # Runs come and go without a trace of it here.
            sizes.append(measure(entry).freed())
            continue
        name = str(entry.path.relative_to(cache_home()))
        size, used = known.get(name), entry.last_used()
        # A source changes with each use, but hardly its size.
        fresh = size and (size.used == used or (entry.kind is Kind.TREES and now - size.measured < _A_DAY))
        # Trees may share files: one that was patched with the one that it is made of.
        new[name] = size if size and fresh else _Size(used, measure(entry).part(), now)
        sizes.append(new[name].bytes)
    if new != known:
        write_atomically(path, msgspec.json.encode(new))
    return sizes


def _read(path: Path) -> dict[str, _Size]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Size])
    except (OSError, msgspec.DecodeError):
        return {}
