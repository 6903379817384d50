"""A series as a table: commits down, stages and hosts across, and below it who is to blame for what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from kbuild.errors import UserError
from kbuild.outcome import Finding, Status
from kbuild.record import read_record
from kbuild.report.compare import caches
from kbuild.report.terminal import STYLES, console_for, plain, table, word
from kbuild.seriesrecord import Entry, SeriesRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_WITNESS = 8
"""Lines of evidence for a finding that a commit is to blame for; its run has all."""
MAX_EVIDENCE = 40
"""Lines of rejected hunks."""
MAX_NAMES = 6
"""Symbols that are named in a line of what changed."""


def teller(quiet: bool, stream: IO[str] | None = None) -> Callable[[SeriesRecord, Entry], None]:
    """Says of each entry that it begins, and how it ended: a line each."""
    out = stream or sys.stderr

    def tell(record: SeriesRecord, entry: Entry) -> None:
        if quiet:
            return
        place = f"[{record.entries.index(entry) + 1}/{len(record.entries)}]"
        if entry.status is None:
            print(f"{place} {entry.name} {entry.subject}", file=out, flush=True)
        else:
            print(f"{place} {entry.name} {entry.status}{_behind(short_of(entry))}", file=out, flush=True)

    return tell


def render(record: SeriesRecord, stream: IO[str] | None = None) -> None:
    """Print the table, and what a person does next."""
    from rich.text import Text

    console = console_for(stream or sys.stdout)
    verdict = str(record.verdict) if record.verdict else "not finished"
    style = STYLES[record.verdict or Status.ERROR]
    console.print(Text.assemble((verdict, style), "  ", record.source), soft_wrap=True)
    console.print(_table(record))
    for entry in record.entries:
        _explain(console, entry)
    if record.ended is None:
        plain(console, f"\nit did not come to its end, and goes on with: {record.command}")
    else:
        plain(console, f"\na page of it all: inv report {record.id} --format html --output FILE.html", style="dim")


def _table(record: SeriesRecord) -> Table:
    from rich.markup import escape

    columns = list(dict.fromkeys(cell for entry in record.entries for cell in entry.cells))
    rows = table()
    rows.add_column("\n")
    rows.add_column("\noutcome")
    for column in columns:
        rows.add_column(f"\n{escape(column)}")
    rows.add_column("\n")
    for entry in record.entries:
        cells = [word(entry.cells[column]) if column in entry.cells else "" for column in columns]
        base = "[dim]base[/]" if entry.base else word(entry.status)
        rows.add_row(entry.name, base, *cells, escape(f"{entry.subject}{_behind(short_of(entry, record))}"))
    return rows


def short_of(entry: Entry, record: SeriesRecord | None = None) -> str:
    """In a few words what is special about an entry."""
    said = []
    if entry.same_as:
        twin = next((one for one in record.entries if one.id == entry.same_as), None) if record else None
        said.append(f"same modules as {twin.name if twin else entry.same_as[:12]}")
    if entry.blamed:
        said.append(f"to blame for {len(entry.blamed)}")
    if entry.mended:
        said.append(f"mends {len(entry.mended)}")
    if not entry.base and entry.status == Status.PASS and entry.verdict in (Status.FAIL, Status.ERROR):
        said.append("no worse than before it")
    if entry.reason and not entry.blamed:
        said.append(entry.reason)
    return ", ".join(said)


def _behind(text: str) -> str:
    return f": {text}" if text else ""


def _explain(console: Console, entry: Entry) -> None:
    """What an entry is to blame for, mends, and changes in the objects."""
    if not (entry.blamed or entry.mended or entry.evidence or changes_in_words(entry.changes)):
        return
    plain(console, f"\n{entry.name} {entry.subject}", style="bold")
    found = _findings(entry)
    for name in entry.blamed:
        for one in found.get(name, [])[:1]:
            plain(console, f"  {one.status} {one.message}", style=STYLES[one.status])
            hosts = list(dict.fromkeys(other.host for other in found[name] if other.host))
            plain(console, f"    {name}" + (f"  on {', '.join(hosts)}" if hosts else ""), style="dim")
            for line in (one.witness or one.evidence)[:MAX_WITNESS]:
                plain(console, f"    {line}")
            if one.reproduce:
                plain(console, f"    again: {one.reproduce}", style="dim")
    for name in entry.mended:
        plain(console, f"  mends {name}", style="green")
    for line in entry.evidence[:MAX_EVIDENCE]:
        plain(console, f"  {line}")
    for line in changes_in_words(entry.changes):
        plain(console, f"  {line}")


def _findings(entry: Entry) -> dict[str, list[Finding]]:
    if not entry.blamed or entry.run is None:
        return {}
    try:
        record = read_record(entry.run)
    except UserError:
        return {}
    found: dict[str, list[Finding]] = {}
    for one in record.findings:
        found.setdefault(one.id, []).append(one)
    return found


def changes_in_words(changes: dict[str, Any] | None) -> list[str]:
    """A line for each kind of difference in each module."""
    found = changes or {}
    lines = [line for module in found.get("modules") or () for line in _module(module)]
    lines += [f"{one['module']}: {one['entry']} calls otherwise" for one in found.get("flow", ())]
    lines += [f"{name}: {before or 'none'} → {after or 'none'}" for name, before, after in caches(found)]
    return lines + [f"modules cannot be compared: {why}" for why in [found.get("modules_problem")] if why]


def _module(module: dict[str, Any]) -> Iterator[str]:
    name = module["name"]
    if module["change"] in ("came", "went"):
        yield f"{name} {module['change']}"
        return
    for kind in ("symbols", "exports", "imports", "parameters"):
        for change in ("came", "went", "moved", "resized"):
            if names := [_symbol(one) for one in module.get(kind, ()) if one["change"] == change]:
                yield f"{name}: {'' if kind == 'symbols' else f'{kind} '}{change}: {_named(names)}"
    if code := module.get("code"):
        yield f"{name}: other code in {_named(list(code))}"


def _symbol(one: dict[str, Any]) -> str:
    if one["change"] == "moved":
        return f"{one['name']} {one['section'][0]} → {one['section'][1]}"
    return f"{one['name']} {one['size'][0]} → {one['size'][1]}" if one["change"] == "resized" else str(one["name"])


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
