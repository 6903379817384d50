"""Runs and the history of findings, as a person reads them: takes what `inv runs --json` prints."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

from kbuild.outcome import Status
from kbuild.report.cache import size_text
from kbuild.report.terminal import console_for, plain, table, word

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_RUNS = 30
"""Shown; `--all` and `--json` have every one."""
MAX_FLAKY = 4
"""Places shown at which a finding comes and goes."""
MAX_NAMED = 6
"""Runs named in one line."""


def render(data: dict[str, Any], *, in_full: bool = False, stream: IO[str] | None = None) -> None:
    """Print a line for each run, newest first, and before them what was asked of findings."""
    console = console_for(stream or sys.stdout)
    findings = data.get("findings")
    if findings is not None:
        _findings(findings, console)
        if not findings:
            return
        console.print()
    shown = data["runs"] if in_full else data["runs"][:MAX_RUNS]
    console.print(_table(shown))
    for one in shown:
        if one["problem"]:
            plain(console, f"damaged: {one['problem']}", style="yellow")
    if not data["runs"]:
        plain(console, f"no such runs in {data['folder']}")
    if left := len(data["runs"]) - len(shown):
        plain(console, f"… and {left} older ones: --all", style="dim")
    shared = max((one["shared_bytes"] for one in data["runs"]), default=0)
    if shared:
        plain(
            console, "size: without kernels and modules, which the cache and runs of the same build share", style="dim"
        )
    plain(
        console,
        "show: inv report RUN; two: inv compare RUN RUN; remove: inv clean --kind runs --older-than 90d",
        style="dim",
    )


def _findings(findings: list[dict[str, Any]], console: Console) -> None:
    if not findings:
        plain(console, "no run has such a finding")
    for one in findings:
        console.print(f"{word(Status(one['status']))} ", end="")
        plain(console, one["id"], style="bold")
        plain(console, f"  {one['message']}")
        if one["known"]:
            plain(console, f"  known: {one['known']}", style="dim")
        plain(console, f"  found in {one['found']} of {one['looked_for']} runs that looked for it; {_how(one)}")
        plain(console, f"  since {_when(one['first'])}")
        last = one["last"]["run"]
        if last != one["last_looked_for"]["run"]:
            plain(console, f"  last in {_when(one['last'])}; looked for since, last in {_when(one['last_looked_for'])}")
        elif last != one["first"]["run"]:
            plain(console, f"  last in {_when(one['last'])}, the last that looked for it")
        where = [f"kernels: {', '.join(one['kernels'])}"] if one["kernels"] else []
        where += [f"hosts: {', '.join(one['hosts'])}"] if one["hosts"] else []
        if where:
            plain(console, f"  {'; '.join(where)}")
        for group in one["flaky"][:MAX_FLAKY]:
            place = ", ".join(part for part in (group["host"], group["order"]) if part)
            what = f"the same kernel and modules{', ' + place if place else ''}"
            plain(console, f"  flaky: {what}: found in {_named(group['found'])}; not in {_named(group['not_found'])}")
        if len(one["flaky"]) > MAX_FLAKY:
            plain(console, f"  … and in {len(one['flaky']) - MAX_FLAKY} more places, with --json", style="dim")


def _how(one: dict[str, Any]) -> str:
    return {
        "flaky": "flaky",
        "steady": "steady: where kernel, modules, host and order were the same, so was this",
        "not repeated": "nobody has looked twice with the same kernel, modules, host and order",
    }[one["steadiness"]]


def _table(shown: list[dict[str, Any]]) -> Table:
    """Where there is no room for all, the tree gives way: an id or verdict that is cut is no use to anybody."""
    from rich.text import Text

    every = [
        (
            one["run"],
            (one["started"] or "")[:16].replace("T", " "),
            _escaped(one["task"]),
            word(Status(one["verdict"])) if one["verdict"] else f"[dim]{one['state']}[/]",
            _escaped(one["tree"]),
            _escaped(one["kernel"]),
            "" if one["seconds"] is None else f"{one['seconds']:.1f}",
            size_text(one["bytes"]),
        )
        for one in shown
    ]
    rows = table()
    for number, name in enumerate(("run", "started", "task", "verdict", "tree", "kernel", "seconds", "size")):
        least = (
            None if name == "tree" else max((Text.from_markup(cells[number]).cell_len for cells in every), default=0)
        )
        rows.add_column(name, justify="right" if name in ("seconds", "size") else "left", no_wrap=True, min_width=least)
    for cells in every:
        rows.add_row(*cells)
    return rows


def _when(one: dict[str, Any]) -> str:
    kernel = f", kernel {one['kernel']}" if one["kernel"] else ""
    return f"{one['started'][:16].replace('T', ' ')} ({one['run']}{kernel})"


def _named(runs: list[str]) -> str:
    more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
    return ", ".join(runs[-MAX_NAMED:]) + more


def _escaped(text: str | None) -> str:
    from rich.markup import escape

    return escape(text or "")
