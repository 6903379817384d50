"""A series as one page: what each commit is to blame for, what it changed in the objects, and how to see it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kbuild.outcome import Status
from kbuild.report import gist
from kbuild.report.entries import Judged, judged, verdict_of, what_of
from kbuild.report.html import changes, orders
from kbuild.report.html.findings import told
from kbuild.report.html.frame import render_page

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.seriesrecord import Entry, SeriesRecord

MAX_FINDINGS = 40
"""Groups of findings that one commit is to blame for."""


@dataclass(frozen=True)
class Commit:
    """An entry, as the page shows it."""

    judged: Judged
    blamed: list[dict[str, Any]]
    changes: changes.Changes
    matrix: list[orders.Row]
    hosts: list[str]
    commands: list[tuple[str, str, str]]

    @property
    def entry(self) -> Entry:
        """Of the series."""
        return self.judged.entry

    @property
    def name(self) -> str:
        """Short."""
        return self.judged.name

    @property
    def record(self) -> Record | None:
        """Of its run."""
        return self.judged.record

    @property
    def anchor(self) -> str:
        """Of its section."""
        return anchor_of(self.judged)


def anchor_of(one: Judged) -> str:
    """Of an entry's section."""
    return f"commit-{one.number}"


@dataclass(frozen=True)
class Trail:
    """A finding that some commit brought or mended, and how each commit stands to it."""

    finding: str
    cells: tuple[str, ...]
    """`blamed`, `counts`, `mended`, `absent`, or nothing where it was not judged."""


@dataclass(frozen=True)
class Sizes:
    """The bytes of a module in each commit that has it, against the first of them."""

    module: str
    rows: tuple[changes.Delta, ...]


def render_series_html(record: SeriesRecord) -> str:
    """The page. A run that is gone is said to be."""
    room = changes.Room()
    commits = [_commit(one, room) for one in judged(record)]
    verdict, status = verdict_of(record)
    others = [one for one in commits if not one.entry.base]
    return render_page(
        "series.html",
        record=record,
        commits=commits,
        verdict=verdict,
        status=status,
        anchor_of=anchor_of,
        gist=_gist(others),
        what=what_of([one.judged for one in others]),
        columns=[*dict.fromkeys(cell for one in record.entries for cell in one.cells)],
        trails=_trails(commits),
        sizes=_sizes(commits),
        facts=_facts(commits),
    )


def _commit(one: Judged, room: changes.Room) -> Commit:
    record = one.record
    return Commit(
        one,
        [told(group) for group in one.blamed[:MAX_FINDINGS]],
        changes.changes(one.entry.changes, room),
        orders.matrix(record) if record else [],
        gist.hosts(record) if record else [],
        orders.commands(record) if record else [],
    )


def _gist(commits: Sequence[Commit]) -> list[str]:
    """The series in a line."""
    blamed = [one for one in commits if one.entry.blamed]
    mending = [one for one in commits if one.entry.mended]
    same = [one for one in commits if one.entry.same_as]
    what = what_of([one.judged for one in commits])
    said = [f"{len(commits)} {what if len(commits) == 1 else f'{what}s'} judged, each against the one before it"]
    said += [f"{_names(blamed)} to blame"] if blamed else ["none to blame"]
    said += [f"{_names(mending)} mends what was there"] if mending else []
    said += [f"{_names(same)} with the modules of another one, not loaded again"] if same else []
    return said


def _names(commits: Sequence[Commit]) -> str:
    return ", ".join(one.judged.label[0] for one in commits)


def _facts(commits: Sequence[Commit]) -> list[tuple[str, str]]:
    """With what it was judged: of the first run that was, as all are asked the same."""
    record = next((one.record for one in commits if one.record is not None and one.record.transcripts), None)
    if record is None:
        return []
    said = [("kernel", record.kernel or ""), ("profile", (record.profile or "").rpartition("/")[2])]
    hosts = [(host, gist.machine(about, record.machines.get(host))) for host, about in record.hosts.items()]
    said += [("flavour", record.flavour or ""), ("gcc", record.tools.get("gcc", ""))]
    return [(name, text) for name, text in [*said, *hosts] if text]


def _trails(commits: Sequence[Commit]) -> list[Trail]:
    """Of each finding that the series changed: where it counts."""
    ids = dict.fromkeys(name for one in commits for name in (*one.entry.blamed, *one.entry.mended))
    return [Trail(name, tuple(_stands(commit, name) for commit in commits)) for name in ids]


def _stands(commit: Commit, name: str) -> str:
    if name in commit.entry.blamed:
        return "blamed"
    if name in commit.entry.mended:
        return "mended"
    if commit.record is None or commit.entry.verdict is None:
        return ""
    if any(one.id == name for one in gist.counting(commit.record)):
        return "counts"
    stage = name.partition(":")[0]
    looked = any(one.name == stage and one.status in (Status.PASS, Status.FAIL) for one in commit.record.stages)
    return "absent" if looked else ""


def _sizes(commits: Sequence[Commit]) -> list[Sizes]:
    """Where something differs: the modules whose bytes change within the series."""
    every = [(one, _bytes(one)) for one in commits]
    found = []
    for module in dict.fromkeys(name for _, sizes in every for name in sizes):
        rows = [(one, sizes[module]) for one, sizes in every if module in sizes]
        first = rows[0][1]
        if any(size != first for _, size in rows):
            labels = [(one.judged.label[0], first, size, one.judged.label[1]) for one, size in rows]
            found.append(Sizes(module, changes.chart(labels, [one.anchor for one, _ in rows])))
    return found


def _bytes(commit: Commit) -> Mapping[str, int]:
    """Of each module; of one whose modules are another's, that one's."""
    record = commit.record
    if record is not None and not record.sizes and commit.judged.twin is not None:
        record = commit.judged.twin.record
    return {name: sum(parts.values()) for name, parts in record.sizes.items()} if record is not None else {}
