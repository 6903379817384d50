"""What `inv clean` answers: what there is, or what went."""

from __future__ import annotations

import datetime
from typing import Any

from kbuild.cache.inventory import Entry, Kind, Usage, inventory, measure, together
from kbuild.cache.removal import Removal, Selection, select
from kbuild.paths import cache_home
from kbuild.record import runs_home


def show(kinds: tuple[Kind, ...], limit: int) -> dict[str, Any]:
    """What there is (of some kinds, or all), what it takes and whether it is in use. Nothing is removed.

    A file with several names counts once: an artifact that a run keeps, with the run.
    """
    entries = inventory()
    usages = [measure(entry) for entry in entries]
    seen: set[tuple[int, int]] = set()
    sizes: dict[Entry, int] = {}
    for entry, usage in sorted(zip(entries, usages, strict=True), key=lambda one: one[0].kind is Kind.ARTIFACTS):
        sizes[entry] = usage.alone + sum(size for key, (size, _, _) in usage.shared.items() if key not in seen)
        seen |= usage.shared.keys()
    cache = sum(size for entry, size in sizes.items() if entry.kind is not Kind.RUNS)
    runs = sum(size for entry, size in sizes.items() if entry.kind is Kind.RUNS)
    return {
        "cache": str(cache_home()),
        "runs": str(runs_home()),
        "limit_bytes": limit,
        "cache_bytes": cache,
        "runs_bytes": runs,
        "entries": [_facts(entry, sizes[entry]) for entry in entries if not kinds or entry.kind in kinds],
    }


def remove(selection: Selection, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove what is selected and not in use, or say what would go; with what was left and why."""
    entries = select(selection)
    if dry_run:
        going: list[tuple[Entry, int]] = []
        skipped: list[tuple[Entry, str]] = []
        usages: list[Usage] = []
        for entry in entries:
            with entry.unused(probe=True) as unused:
                if not unused:
                    skipped.append((entry, "in use"))
                    continue
            usages.append(measure(entry))
            going.append((entry, usages[-1].freed()))
        freed = together(usages).freed()
    else:
        removal = Removal()
        removal.remove(entries)
        going, skipped, freed = removal.removed, removal.skipped, removal.freed
    return {
        "dry_run": dry_run,
        "removed": [_facts(entry, size, gone=True) for entry, size in going],
        "skipped": [{"kind": entry.kind, "name": entry.name, "reason": reason} for entry, reason in skipped],
        "freed_bytes": freed,
    }


def _facts(entry: Entry, size: int, *, gone: bool = False) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": entry.kind, "name": entry.name, "path": str(entry.path), "bytes": size}
    if not gone:
        when = datetime.datetime.fromtimestamp(entry.last_used(), datetime.UTC)
        with entry.unused(probe=True) as unused:
            facts |= {"last_used": when.isoformat(timespec="seconds"), "in_use": not unused, "about": entry.about}
    return facts
