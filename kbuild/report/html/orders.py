"""Orders on hosts: the matrix, each one's timeline with the log at the step that caused it, and how to see it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kbuild.errors import UserError
from kbuild.outcome import Finding, Status
from kbuild.report import clean, gist
from kbuild.report.trace import tree
from kbuild.traces import read_trace

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import LogLine, StepResult, Transcript

MAX_RUNS = 24
"""Of one order on one host that are shown step by step, those that count first."""
MAX_LOG = 160
"""Lines of a step's log."""
MAX_PAGE_LOG = 3 << 20
"""Characters of logs on the page."""
OPEN_LOG = 12
"""Up to so many lines are seen without unfolding, and all of a step that did not pass."""
MAX_TRACE = 600
WIDTH = 1000
"""Of a timeline's picture, in its own units."""
_TOLD = ("file", "kind", "what", "over")
"""Details of a step that its title has, or that lead into the record."""


@dataclass(frozen=True)
class Cell:
    """An order on a host."""

    anchor: str
    counts: tuple[tuple[Status, int], ...]
    """The worst first."""
    runs: bool
    """Whether the order has several."""
    seconds: float


@dataclass(frozen=True)
class Row:
    """An order."""

    order: str
    title: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Line:
    """Of the kernel's log."""

    time: str
    text: str
    level: int | None
    source: str


@dataclass
class Step:
    """One step, as the page shows it."""

    result: StepResult
    title: str
    status: Status
    reason: str
    """Where no finding says the same."""
    at: float
    """Seconds since the first one began; steps alone count."""
    left: float
    width: float
    findings: list[Finding]
    detail: dict[str, str]
    lines: list[Line] = field(default_factory=list)
    cut: int = 0
    """Lines that the page has no room for."""
    open: bool = False
    trace: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """One order on one host."""

    anchor: str
    one: Transcript
    reason: str
    """Where no step says the same."""
    steps: list[Step]
    console: list[str]
    whole: list[Finding]
    """That belong to no step."""
    open: bool


@dataclass(frozen=True)
class Group:
    """The runs of an order on a host; most orders have one."""

    host: str
    order: str
    title: str
    counts: tuple[tuple[Status, int], ...]
    runs: bool
    anchor: str
    shown: list[Timeline]
    left: int


def matrix(record: Record) -> list[Row]:
    """Orders down, hosts across."""
    hosts = gist.hosts(record)
    rows = []
    for order, row in gist.cells(record).items():
        title = next((one.title for runs in row.values() for one in runs if one.title), "")
        rows.append(Row(order, title, tuple(_cell(row.get(host, [])) for host in hosts)))
    return rows


def _cell(runs: Sequence[Transcript]) -> Cell | None:
    if not runs:
        return None
    return Cell(_anchor(runs[0]), _counts(runs), _several(runs), sum(one.seconds for one in runs))


def _several(runs: Sequence[Transcript]) -> bool:
    return [one.order for one in runs] != [*map(gist.order_of, runs)]


def _counts(runs: Sequence[Transcript]) -> tuple[tuple[Status, int], ...]:
    counts = Counter(one.status for one in runs)
    return tuple((status, counts[status]) for status in Status if counts[status])


def _anchor(one: Transcript) -> str:
    """Of an order on a host. Ids of hosts and orders are of a few plain characters."""
    return f"order-{one.host}-{gist.order_of(one)}"


def timelines(record: Record, folder: Path) -> list[Group]:
    """All orders on all hosts, each with the runs that there is room for."""
    room = _Room(MAX_PAGE_LOG)
    every = [runs for row in gist.cells(record).values() for runs in row.values()]
    chosen = [one for runs in every for one in sorted(runs, key=_last)[:MAX_RUNS] if one.status != Status.SKIP]
    # Where there is no room for all logs, there is for those of what counts.
    made = {(one.host, one.order): _timeline(one, folder, room) for one in sorted(chosen, key=_last)}
    groups = []
    for runs in every:
        shown = [made[one.host, one.order] for one in runs if (one.host, one.order) in made]
        left = sum(one.status != Status.SKIP for one in runs) - len(shown)
        first, counts = runs[0], _counts(runs)
        several = _several(runs)
        groups.append(
            Group(first.host, gist.order_of(first), first.title, counts, several, _anchor(first), shown, left)
        )
    return groups


def _last(one: Transcript) -> tuple[bool, bool]:
    """What counts comes first, then what something was found in."""
    return not one.status.counts, not one.findings


class _Room:
    """For the logs, which may be of any size."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def take(self, lines: list[Line]) -> tuple[list[Line], int]:
        """The lines that there is room for, and how many there is none for: the middle goes first."""
        kept = lines
        if len(lines) > MAX_LOG:
            kept = [*lines[: MAX_LOG * 3 // 4], *lines[len(lines) - MAX_LOG // 4 :]]
        used = sum(len(line.text) for line in kept)
        if used > self._left:
            return [], len(lines)
        self._left -= used
        return kept, len(lines) - len(kept)


def _timeline(one: Transcript, folder: Path, room: _Room) -> Timeline:
    steps: list[Step] = []
    whole = sum(step.seconds for step in one.steps) or 1
    at = 0.0
    for result in one.steps:
        status, _ = gist.step_outcome(one, result)
        found = gist.findings_of(one, result)
        detail = {key: value for key, value in result.detail.items() if key not in _TOLD}
        place = (at / whole * WIDTH, max(result.seconds / whole * WIDTH, 2))
        reason = _unless(result.reason, {finding.message for finding in found})
        step = Step(result, gist.step_title(result), status, reason, at, *place, found, detail)
        step.lines, step.cut = room.take([*_lines(result.log)])
        step.open = status.counts or len(step.lines) <= OPEN_LOG
        step.trace = _trace(result, folder)
        steps.append(step)
        at += result.seconds
    console = [*clean.lines(one.console, MAX_LOG)] if one.status.counts else []
    told = {one.reason for one in steps} | {finding.message for finding in one.findings}
    reason = _unless(one.reason, told)
    return Timeline(_anchor(one), one, reason, steps, console, gist.findings_of(one, None), one.status.counts)


def _unless(reason: str | None, told: set[str]) -> str:
    return reason if reason and reason not in told else ""


def _lines(log: Sequence[LogLine]) -> Iterator[Line]:
    for line in log:
        time = f"{line.us / 1e6:.6f}" if line.us is not None else ""
        for number, text in enumerate(line.text.split("\n")):
            yield Line("" if number else time, clean.one_line(text), line.level, line.source)


def _trace(step: StepResult, folder: Path) -> list[str]:
    """What was called, where the step was a trace and its file is in the run's folder."""
    if step.action != "trace" or "file" not in step.detail:
        return []
    path = folder / "hosts" / step.detail["file"]
    if not path.resolve().is_relative_to(folder.resolve()):
        return []
    try:
        trace = read_trace(path)
    except UserError as error:
        return [str(error)]
    found: list[str] = []
    for part in trace.parts:
        found.append(f"{part.action} {part.module}: {len(part.calls)} calls{_lost(part.lost)}")
        lines = [*islice(tree(part.calls), MAX_TRACE + 1)]
        found += lines[:MAX_TRACE]
        found += ["… more with: inv report RUN --trace"] if len(lines) > MAX_TRACE else []
    return [clean.one_line(line) for line in found]


def _lost(count: int) -> str:
    return f", {count} events lost" if count else ""


def commands(record: Record) -> list[tuple[str, str, str]]:
    """Host, order and the command that does it again; of an order's runs those that count, and else the first."""
    found = []
    for row in gist.cells(record).values():
        for runs in row.values():
            mine = [one for one in runs if one.status.counts][:MAX_RUNS] or runs[:1]
            found += [(one.host, one.order, one.reproduce) for one in mine if one.reproduce is not None]
    return found
