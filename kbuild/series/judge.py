"""A series, judged: one gate for each entry; while one is loaded, the next one is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kbuild import log
from kbuild.elf.differences import compare
from kbuild.elf.essence import essence
from kbuild.elf.inspect import Inspection, find_modules, inspect
from kbuild.errors import KbuildError, UserError
from kbuild.gate.judging import Judging
from kbuild.gate.request import GateRequest
from kbuild.outcome import Finding, Status, worst
from kbuild.progress import Reporter
from kbuild.record import Record, Run, read_record, runs_home
from kbuild.seriesrecord import Entry, Series
from kbuild.transcript import Transcript

JUDGED = ("inspect", "load")
"""Stages whose answer depends on nothing but the kernel and its modules."""

_MODULE = re.compile(r"\.ko(?:\.(?:xz|zst|gz))?$")


@dataclass
class Judge:
    """Goes through a series. `run()` is called once, from the main thread."""

    series: Series
    request: Callable[[Entry], GateRequest]
    """What to ask of an entry."""
    reporter: Callable[[Entry], Reporter]
    tell: Callable[[Entry], None]
    """Called when an entry begins, and when it is over."""
    stop: bool = False
    """End at the first entry that is to blame for a FAIL."""
    _cancelled: bool = False
    _essences: dict[str, str] = field(default_factory=dict)
    """Of the modules of a kernel, to the id of the first entry that has them."""
    _inspections: dict[str, Inspection] = field(default_factory=dict)
    """By entry; the last ones."""

    def run(self) -> None:
        """Judge what has not been judged yet. What interrupts it is raised on, and the series can go on from there."""
        loading: tuple[Judging, Future[None]] | None = None
        entries = self.series.record.entries
        with ThreadPoolExecutor(1, "series-load") as loader:
            try:
                for entry in entries:
                    if self.stop and any(one.status == Status.FAIL and not one.base for one in entries):
                        break
                    if entry.over:
                        self._remember(entry)
                        continue
                    self.tell(entry)
                    judging = self._build(entry)
                    if loading:
                        loading[1].result()
                    loading = judging, loader.submit(log.carried(self._judge), entry, judging)
                if loading:
                    loading[1].result()
            except BaseException:
                self._cancelled = True
                if loading:
                    loading[0].cancel()
                raise
        for entry in entries:
            if not entry.over:
                entry.status = Status.SKIP
                entry.reason = entry.reason or "an earlier one is to blame, and --stop was given"
        self.series.finish()

    def one(self, entry: Entry) -> Record:
        """Judge one entry, alone. Returns its run's record."""
        if entry.verdict is None or entry.run is None:
            self.tell(entry)
            judging = self._build(entry)
            self._finish(entry, judging)
            entry.verdict, entry.cells = judging.run.record.verdict, _cells(judging.run.record)
            entry.reason = judging.run.record.error
            self.series.save()
        else:
            self._remember(entry)
        return read_record(entry.run or "")

    def _build(self, entry: Entry) -> Judging:
        judging = Judging(self.request(entry), self.reporter(entry))
        entry.run = judging.run.record.id
        self.series.save()
        try:
            judging.__enter__()
            judging.build()
        except UserError:
            # Of what the series stands on the user is told; that a later commit cannot be configured is its own doing.
            if entry.base:
                judging.close()
                raise
        except BaseException:
            judging.close()
            raise
        return judging  # it is closed in the thread that judges

    def _judge(self, entry: Entry, judging: Judging) -> None:
        """In the loader's thread: what is left of an entry's run, and what it means for the series."""
        self._finish(entry, judging)
        if self._cancelled:
            judging.run.interrupt()
            return
        self._conclude(entry, judging.run.record)
        self.series.save()
        self.tell(entry)

    def _finish(self, entry: Entry, judging: Judging) -> None:
        """The rest of an entry's run, or what was found of the same modules before."""
        with closing(judging), suppress(UserError):
            twin = self._twin(entry, judging.run)
            if twin is not None and not judging.over:
                _take_over(judging.run, read_record(twin.run or ""))
                entry.same_as = twin.id
            else:
                judging.judge()

    def _twin(self, entry: Entry, run: Run) -> Entry | None:
        """The entry before this one that has the same kernel and, but for what changes with each build, its modules."""
        same = kernel_key(run.record, run.folder)
        if same is None:
            return None
        first = self._essences.setdefault(same, entry.id)
        if first == entry.id:
            return None
        twin = next(one for one in self.series.record.entries if one.id == first)
        return twin if twin.verdict in (Status.PASS, Status.FAIL) else None

    def _remember(self, entry: Entry) -> None:
        """An entry that was judged before this process began."""
        if entry.run is None or entry.verdict not in (Status.PASS, Status.FAIL) or entry.same_as:
            return
        try:
            same = kernel_key(read_record(entry.run), _folder(entry.run))
            if same is not None:
                self._essences.setdefault(same, entry.id)
        except (UserError, OSError) as error:
            log.get().warning("series.forgotten", entry=entry.id, reason=str(error))

    def _conclude(self, entry: Entry, record: Record) -> None:
        """Hold the entry's run against what came before it."""
        entry.verdict = record.verdict
        entry.cells = _cells(record)
        entry.reason = record.error
        before = self._before(entry)
        counting = _counting(record)
        last = {stage: _counting(other) for stage, other in before.items()}
        new = {
            name: one for name, one in counting.items() if name not in last.get(_stage(one), {}) and _stage(one) in last
        }
        asked = {stage.name for stage in record.stages if stage.status not in (None, Status.SKIP)}
        entry.blamed = sorted({name[0] for name in new})
        entry.mended = sorted(
            {
                name[0]
                for stage, others in last.items()
                if stage in asked
                for name, one in others.items()
                if _stage(one) == stage and name not in counting
            }
        )
        own = [one.status for one in new.values()]
        if record.verdict in (None, Status.MISS) or record.error:
            own.append(record.verdict or Status.ERROR)  # none: it could not be configured, or its files are damaged
        entry.status = worst(own) if own else Status.PASS
        if entry.base:
            entry.blamed, entry.status = [], record.verdict or Status.MISS
        self._compare(entry, record)

    def _before(self, entry: Entry) -> Mapping[str, Record]:
        """Of each stage the record of the last entry before this one in which it said something of the kernel."""
        found: dict[str, Record] = {}
        entries = self.series.record.entries
        for other in reversed(entries[: entries.index(entry)]):
            if other.run is None or other.verdict in (None, Status.MISS):
                continue
            record = read_record(other.run)
            for stage in record.stages:
                if stage.status in (Status.PASS, Status.FAIL, Status.ERROR, Status.DONE):
                    found.setdefault(stage.name, record)
            if {"build", *JUDGED} <= found.keys():
                break
        return found

    def _compare(self, entry: Entry, record: Record) -> None:
        """What differs in the objects, against the last entry that has some."""
        if not record.artifacts:
            return
        entries = self.series.record.entries
        earlier = [
            one
            for one in entries[: entries.index(entry)]
            if one.run and one.cells.get("build", one.verdict) == Status.PASS
        ]
        try:
            now = self._inspection(entry)
            if earlier and entry.same_as != earlier[-1].id:
                entry.changes = dict(compare(self._inspection(earlier[-1]), now))
        except (KbuildError, OSError) as error:
            log.get().warning("series.not-compared", entry=entry.id, reason=str(error))

    def _inspection(self, entry: Entry) -> Inspection:
        if entry.id not in self._inspections:
            assert entry.run is not None
            paths = find_modules(_folder(entry.run) / "artifacts")
            self._inspections[entry.id] = inspect(paths, None, None, flow=True)
            while len(self._inspections) > 2:
                del self._inspections[next(iter(self._inspections))]
        return self._inspections[entry.id]


def kernel_key(record: Record, folder: Path) -> str | None:
    """Equal for kernels that a run would find the same of; None where the run has no kernel, or no modules.

    The kernel counts byte by byte, the modules by their essence, however they are compressed.
    """
    modules = {name.partition(".ko")[0]: name for name in record.artifacts if _MODULE.search(name)}
    kernels = [digest for name, digest in record.artifacts.items() if name.startswith(("bzImage", "vmlinuz"))]
    if not modules or len(kernels) != 1:
        return None
    parts = [f"{module} {essence(folder / 'artifacts' / name)}" for module, name in sorted(modules.items())]
    return "\n".join([*kernels, *parts])


def _folder(run: str) -> Path:
    return runs_home() / run


def _take_over(run: Run, other: Record) -> None:
    """What was found of the same kernel and modules is this run's, too; each stage says whose it is."""
    record = run.record
    record.findings += [one for one in other.findings if one.id.partition(":")[0] in JUDGED]
    record.transcripts, record.rules, record.hosts = other.transcripts, other.rules, other.hosts
    record.known_not_seen, record.kernel = other.known_not_seen, record.kernel or other.kernel
    for stage in other.stages:
        if stage.name in JUDGED:
            with run.stage(stage.name) as own:
                own.status, own.summary = stage.status, f"the same modules as in run {other.id}: {stage.summary}"
    run.finish(worst(stage.status for stage in record.stages if stage.status not in (None, Status.DONE)))


def _counting(record: Record) -> dict[tuple[str, str], Finding]:
    """What counts, by id and host."""
    return {(one.id, one.host or ""): one for one in record.findings if one.status.counts and not one.known}


def _stage(finding: Finding) -> str:
    return finding.id.partition(":")[0]


def _cells(record: Record) -> dict[str, Status]:
    """The table's row: stages, and each host."""
    cells = {stage.name: stage.status for stage in record.stages if stage.status and stage.name in ("build", "inspect")}
    hosts: dict[str, list[Transcript]] = {}
    for one in record.transcripts:
        hosts.setdefault(one.host, []).append(one)
    return cells | {host: worst(one.status for one in some) for host, some in hosts.items()}


def entries_of(base: tuple[str, str] | None, others: Sequence[tuple[str, str]]) -> list[Entry]:
    """Entries from ids and subjects, oldest first."""
    first = [Entry(id=base[0], subject=base[1], base=True)] if base else []
    return first + [Entry(id=name, subject=subject) for name, subject in others]
