"""What lies on the disk, as a person reads it: takes what `inv clean --json` prints."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import IO, Any

from kbuild.report.terminal import console_for, plain, table

MANY = 12
"""Entries of one kind above which they share a line."""


def render(data: dict[str, Any], *, in_full: bool = False, stream: IO[str] | None = None) -> None:
    """Print what there is, a line for each thing, or (unless `in_full`) for each kind that has many."""
    console = console_for(stream or sys.stdout)
    rows = table()
    for name in ("kind", "name", "size", "used", ""):
        rows.add_column(name, justify="right" if name in ("size", "used") else "left", no_wrap=name != "")
    for kind in dict.fromkeys(one["kind"] for one in data["entries"]):
        entries = [one for one in data["entries"] if one["kind"] == kind]
        if len(entries) > MANY and not in_full:
            last = max(one["last_used"] for one in entries)
            busy = any(one["in_use"] for one in entries)
            size = sum(one["bytes"] for one in entries)
            rows.add_row(kind, f"{len(entries)} of them", size_text(size), _age(last, busy), "")
            continue
        for one in entries:
            rows.add_row(
                kind, one["name"], size_text(one["bytes"]), _age(one["last_used"], one["in_use"]), one["about"]
            )
    console.print(rows)
    plain(
        console,
        f"\ncache: {size_text(data['cache_bytes'])} of at most {size_text(data['limit_bytes'])} in {data['cache']}",
    )
    plain(console, f"runs: {size_text(data['runs_bytes'])} in {data['runs']}")
    plain(console, "remove: inv clean --older-than 14d | --name GLOB | --all, each with --kind KIND; --dry-run shows")
    plain(console, "runs are evidence, and go with --kind runs only", style="dim")


def render_removal(data: dict[str, Any], *, stream: IO[str] | None = None) -> None:
    """Print what went and what did not."""
    console = console_for(stream or sys.stdout)
    verb = "would remove" if data["dry_run"] else "removed"
    for line in _lines([(one["kind"], one["name"], one["bytes"]) for one in data["removed"]]):
        plain(console, f"{verb} {line}")
    for reason in dict.fromkeys(one["reason"] for one in data["skipped"]):
        for line in _lines([(one["kind"], one["name"], None) for one in data["skipped"] if one["reason"] == reason]):
            plain(console, f"left {line}: {reason}")
    if not data["removed"] and not data["skipped"]:
        plain(console, "nothing of that kind, name and age is there; inv clean shows what is")
    else:
        along = ", and the artifacts that neither a build nor a run has then" if data["dry_run"] else ""
        plain(console, f"{'would free' if data['dry_run'] else 'freed'} {size_text(data['freed_bytes'])}{along}")


def _lines(entries: Sequence[tuple[str, str, int | None]]) -> list[str]:
    """A line for each, or for all of a kind that has many."""
    lines: list[str] = []
    for kind in dict.fromkeys(kind for kind, _, _ in entries):
        of_kind = [(name, size) for one, name, size in entries if one == kind]
        if len(of_kind) > MANY:
            of_kind = [(f"({len(of_kind)} of them)", sum(size for _, size in of_kind if size) or None)]
        lines += [f"{kind} {name}" + (f", {size_text(size)}" if size is not None else "") for name, size in of_kind]
    return lines


def size_text(count: int) -> str:
    """A number of bytes, in a unit that fits."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count} B"


def _age(when: str, in_use: bool) -> str:
    if in_use:
        return "now"
    seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(when)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "just now"
