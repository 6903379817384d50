"""A series with its runs: each entry, what it is to blame for, and what counts in it besides. Takes records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kbuild.cpus import Cpus
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, exit_status
from kbuild.record import Record, read_record, runs_home
from kbuild.report import gist
from kbuild.report.series import changes_in_words, short_of

if TYPE_CHECKING:
    from kbuild.seriesrecord import Entry, SeriesRecord


@dataclass(frozen=True)
class Judged:
    """An entry, and what its run says."""

    entry: Entry
    number: int
    """Of the base, which has no place in the series, 0."""
    name: str
    special: str
    """In a few words."""
    twin: Judged | None
    """The one with the same modules."""
    record: Record | None
    why: str
    """There is no record."""
    blamed: list[list[Finding]]
    """Those that say the same together."""
    before: list[list[Finding]]
    """What counts in it, and did before it."""

    @property
    def status(self) -> Status:
        """What counts for the series; one that was not come to is not one that passed."""
        return self.entry.status or Status.ERROR

    @property
    def package(self) -> bool:
        """Whether it is a version of a package, not a commit."""
        return self.entry.id.startswith(f"{self.entry.subject}=")

    @property
    def subject(self) -> str:
        """What its name does not say."""
        return "" if self.package else self.entry.subject

    @property
    def title(self) -> str:
        """Name and subject."""
        return f"{self.name} {self.subject}".strip()

    @property
    def label(self) -> tuple[str, str]:
        """The shortest name that there is, and what else it is called."""
        if self.package:
            return self.entry.subject, self.entry.id.partition("=")[2]
        return self.name, self.entry.subject

    @property
    def folder(self) -> Path:
        """Of its run."""
        return runs_home() / (self.entry.run or "")

    def cells(self) -> str:
        """`build PASS, inspect FAIL, qemu-svm PASS`."""
        return ", ".join(f"{name} {status}" for name, status in self.entry.cells.items())

    def changes(self) -> list[str]:
        """What it changed in the objects, a line for each kind of change."""
        return changes_in_words(self.entry.changes)


def judged(series: SeriesRecord) -> list[Judged]:
    """All entries, oldest first. A run that is gone is said to be."""
    found: list[Judged] = []
    first = 0 if any(one.base for one in series.entries) else 1
    for number, entry in enumerate(series.entries, first):
        twin = next((one for one in found if one.entry.id == entry.same_as), None)
        record, why = _read(entry)
        counting = gist.counting(record) if record else []
        found.append(
            Judged(
                entry,
                number,
                entry.name,
                short_of(entry, series),
                twin,
                record,
                why,
                gist.groups([one for one in counting if one.id in entry.blamed]),
                gist.groups([one for one in counting if one.id not in entry.blamed]),
            )
        )
    return found


def _read(entry: Entry) -> tuple[Record | None, str]:
    if entry.run is None:
        return None, entry.reason or "it was not judged"
    try:
        return read_record(entry.run), ""
    except UserError as error:
        return None, str(error)


def verdict_of(series: SeriesRecord) -> tuple[str, Status]:
    """In a word, with the outcome that it is shown as: a series that did not come to its end is not one that passed."""
    return (str(series.verdict), series.verdict) if series.verdict else ("not finished", Status.ERROR)


def unexplained(series: SeriesRecord, shown: Status) -> tuple[Status, str] | None:
    """Where all entries are no worse than `shown`: outcome and reason of a series that did not pass."""
    word, status = verdict_of(series)
    if exit_status(status) == 0 or shown.counts:
        return None
    said = "nothing was judged" if status == Status.SKIP else word
    return (status if status.counts else Status.ERROR), said


def what_of(some: list[Judged]) -> str:
    """What the entries are, as a word."""
    return "version" if some and all(one.package for one in some) else "commit"


def hosts_of(some: list[Judged]) -> dict[str, str]:
    """Each host that was there, with its emulator's own words."""
    return {host: said for one in some if one.record for host, said in one.record.hosts.items()}


def cpus_of(some: list[Judged]) -> dict[str, Cpus]:
    """Of each host on which something was run: what its CPUs are."""
    return {host: cpus for one in some if one.record for host, cpus in gist.cpus_of(one.record).items()}
