"""What was proved of rules beside what was seen of them in traces, rules down and modules across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kbuild.traces import Observation, Seen

if TYPE_CHECKING:
    from rich.table import Table

    from kbuild.transcript import Transcript

RANK: Sequence[Seen] = ("broken", "kept", "not seen", "incomplete", "not observable")
"""Of several traces, what says most."""
STYLES: dict[Seen, str] = {
    "broken": "bold red",
    "kept": "green",
    "not seen": "cyan",
    "incomplete": "yellow",
    "not observable": "dim",
}


def seen(transcripts: Sequence[Transcript]) -> dict[str, dict[str, Observation]]:
    """Rules, then modules: of all that traces say of them, what says most."""
    found: dict[str, dict[str, Observation]] = {}
    for one in (one for transcript in transcripts for one in transcript.observed):
        row = found.setdefault(one.rule, {})
        row[one.module] = min(row.get(one.module, one), one, key=lambda each: RANK.index(each.seen))
    return found


def observed(transcripts: Sequence[Transcript]) -> Table | None:
    """`proved, kept` in each cell; None where nothing was traced."""
    from kbuild.report.terminal import table

    found = seen(transcripts)
    if not found:
        return None
    modules = sorted({module for row in found.values() for module in row})
    rows = table()
    rows.add_column("\nrule: proved, seen", no_wrap=True)
    for module in modules:
        rows.add_column(f"\n{module}", no_wrap=True)
    for rule, row in found.items():
        rows.add_row(rule, *_cells(row.get(module) for module in modules))
    return rows


def _cells(row: Iterator[Observation | None]) -> Iterator[str]:
    for one in row:
        yield f"{one.answer or '-'}, [{STYLES[one.seen]}]{one.seen}[/]" if one is not None else "-"
