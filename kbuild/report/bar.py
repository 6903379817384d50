"""A series against the maintainers' bar as one page: each point met, not met, or not tested and why; and the letter."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

import msgspec

from kbuild.barrecord import BarRecord, BuildOutcome, Met, Patch, short
from kbuild.outcome import Status
from kbuild.report import clean
from kbuild.report.letter import letter
from kbuild.report.series import teller as series_teller
from kbuild.report.terminal import STYLES, console_for, plain, table, word
from kbuild.seriesrecord import Entry, SeriesRecord

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {
    Met.MET: "green",
    Met.NOT_MET: "bold red",
    Met.NOT_TESTED: "bold yellow",
    Met.NO_CONCERN: "dim",
    Met.YOURS: "cyan",
}


class Teller:
    """Says on standard error how far it has come: a line each."""

    def __init__(self, quiet: bool, stream: IO[str] | None = None) -> None:
        self._quiet = quiet
        self._out = stream or sys.stderr
        self._series = series_teller(quiet, stream)

    def entry(self, record: SeriesRecord, entry: Entry) -> None:
        """A patch's gate begins, or is over."""
        self._series(record, entry)

    def built(self, record: BarRecord, patch: Patch, name: str, outcome: BuildOutcome) -> None:
        """A patch was built in a configuration."""
        place = f"[{record.patches.index(patch) + 1}/{len(record.patches)}]"
        why = f": {outcome.reason}" if outcome.reason else ""
        self._say(f"{place} {short(patch.id)} {name} {outcome.status} {outcome.seconds:.0f} s{why}")

    def step(self, what: str) -> None:
        """Something else begins."""
        self._say(what)

    def _say(self, line: str) -> None:
        if not self._quiet:
            print(line, file=self._out, flush=True)


def data(record: BarRecord) -> dict[str, Any]:
    """What `inv bar --json` prints: the record, and the letter."""
    return {**msgspec.to_builtins(record, enc_hook=str), "letter": letter(record)}


def render(record: BarRecord, stream: IO[str] | None = None) -> None:
    """Print the page."""
    from rich.text import Text

    console = console_for(stream or sys.stdout)
    verdict = str(record.verdict) if record.verdict else "not finished"
    style = STYLES[record.verdict or Status.ERROR]
    console.print(Text.assemble((verdict, style), "  ", clean.one_line(record.source)), soft_wrap=True)
    if record.builds:
        console.print()
        console.print(_builds(record))
    if not record.points:
        plain(console, f"\nbar: {record.id} did not come to its end: the same command goes on with it", style="dim")
        return
    for point in record.points:
        console.print()
        console.print(
            Text.assemble((f"{point.outcome:10}", _COLOURS[point.outcome]), "  ", clean.one_line(point.title)),
            soft_wrap=True,
        )
        if point.why:
            plain(console, f"            {clean.one_line(point.why)}")
        for line in point.lines:
            plain(console, f"            {clean.one_line(line)}")
        for patch in point.patches if point.outcome == Met.NOT_MET else ():
            subject = next((one.subject for one in record.patches if one.id == patch), "")
            plain(console, f"            patch: {short(patch)} {clean.one_line(subject)}", style="bold red")
    plain(console, "\nFor the cover letter:\n", style="bold")
    plain(console, letter(record))
    plain(console, f"\nbar: {record.id}, series: {record.series} (inv report shows them again)", style="dim")


def _builds(record: BarRecord) -> Table:
    """Patches down, configurations across."""
    from rich.markup import escape

    columns = list(dict.fromkeys((one.build, one.compiler) for one in record.builds))
    cells = {(one.patch, one.build, one.compiler): one.status for one in record.builds}
    rows = table()
    rows.add_column("\nbuilt")
    for build, compiler in columns:
        rows.add_column(f"{escape(build)}\n{compiler}")
    rows.add_column("\n")
    for patch in record.patches:
        own = [cells.get((patch.id, *column)) for column in columns]
        name = f"{short(patch.id)}{' (base)' if patch.base else ''}"
        rows.add_row(name, *map(word, own), escape(clean.one_line(patch.subject)))
    return rows
