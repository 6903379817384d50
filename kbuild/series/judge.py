"""A series, judged: one gate for each entry; while one is loaded, the next one is built."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbuild import log
from kbuild.build.artifacts import file_digest
from kbuild.elf.essence import essence
from kbuild.elf.image import file_module_name
from kbuild.elf.inspect import Inspection
from kbuild.errors import KbuildError, UserError
from kbuild.gate.judging import Judging
from kbuild.gate.request import GateRequest
from kbuild.outcome import Status, worst
from kbuild.progress import Reporter
from kbuild.record import Record, Run, read_record, runs_home
from kbuild.runs.compare import JUDGED, changed_ids, compare_records
from kbuild.runs.objects import compare_objects, inspect_kept, module_files
from kbuild.series.held import NOTHING, bring_up_to_date
from kbuild.seriesrecord import Entry, Series
from kbuild.transcript import Transcript


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
    ahead: int = 1
    """Entries that are loaded side by side, while the next one is built."""
    _cancelled: bool = False
    _essences: dict[str, str] = field(default_factory=dict)
    """Of the modules of a kernel, to the id of the first entry that has them."""
    _loads: dict[str, Future[None]] = field(default_factory=dict)
    """By entry; what is left of its run."""
    _inspections: dict[str, Inspection] = field(default_factory=dict)
    """By run; the last ones."""
    _held: Record = field(default_factory=lambda: NOTHING)
    """What was said last."""
    _last: Record | None = None
    """Of the last entry that has modules."""
    _kind: str = ""
    """Of which both are."""

    def run(self) -> None:
        """Judge what has not been judged yet. What interrupts it is raised on, and the series can go on from there."""
        loading: deque[tuple[Judging, Future[None]]] = deque()
        entries = self.series.record.entries
        with ThreadPoolExecutor(self.ahead, "series-load") as loader:
            try:
                for place, entry in enumerate(entries):
                    if self._stops_before(place):
                        break
                    if entry.over:
                        _wait_until(loading, 0)
                        if self._remember(entry):
                            continue
                    self.tell(entry)
                    judging = self._build(entry)
                    try:
                        _wait_until(loading, 0 if self.stop else self.ahead - 1)
                        if self._stops_before(place):
                            self._leave(entry, judging)
                            break
                        twin = self._twin(entry, judging.run)
                        before = loading[-1][1] if loading else None
                        work = loader.submit(log.carried(self._judge), entry, judging, twin, before)
                    except BaseException:
                        judging.close()  # no thread does
                        raise
                    self._loads[entry.id] = work
                    loading.append((judging, work))
                _wait_until(loading, 0)
            except BaseException:
                self._cancelled = True
                for judging, _ in loading:
                    judging.cancel()
                raise
        for entry in entries:
            if not entry.over:
                entry.status = Status.SKIP
                entry.reason = entry.reason or "an earlier one is to blame, and --stop was given"
        self.series.finish()

    def _stops_before(self, place: int) -> bool:
        """Whether one before that is to blame, and the rest is not to be judged."""
        before = self.series.record.entries[:place]
        return self.stop and any(one.status == Status.FAIL and not one.base for one in before)

    @staticmethod
    def _leave(entry: Entry, judging: Judging) -> None:
        """Of one that was built while the one before it was loaded: there is no run of it."""
        judging.close()
        if not judging.over:
            judging.run.interrupt()
        entry.run = None

    def one(self, entry: Entry) -> Record:
        """Judge one entry, alone. Returns its run's record."""
        if entry.verdict is None or entry.run is None or not self._remember(entry):
            self.tell(entry)
            judging = self._build(entry)
            self._finish(entry, judging, self._twin(entry, judging.run))
            entry.verdict, entry.cells = judging.run.record.verdict, _cells(judging.run.record)
            entry.reason = judging.run.record.error
            self.series.save()
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

    def _judge(self, entry: Entry, judging: Judging, twin: Entry | None, before: Future[None] | None) -> None:
        """In a thread: what is left of an entry's run, and, behind the one before it, what it means for the series."""
        self._finish(entry, judging, twin)
        if before is not None:
            before.result()
        if self._cancelled:
            judging.run.interrupt()
            return
        self._conclude(entry, judging.run.record)
        self.series.save()
        self.tell(entry)

    def _finish(self, entry: Entry, judging: Judging, twin: Entry | None) -> None:
        """The rest of an entry's run, or what was found of the same modules before."""
        with closing(judging), suppress(UserError):
            found = self._found_of(twin) if twin is not None and not judging.over else None
            if twin is not None and found is not None:
                judging.take_over(found, _folder(found.id))
                entry.same_as = twin.id
            else:
                judging.judge()

    def _found_of(self, twin: Entry) -> Record | None:
        """The record of an entry before this one, as soon as it is there; None where something was left open in it."""
        if (work := self._loads.get(twin.id)) is not None:
            wait([work])
        record = read_record(twin.run) if twin.run else None
        return record if record is not None and is_whole(record) else None

    def _twin(self, entry: Entry, run: Run) -> Entry | None:
        """The entry before this one that has the same kernel and, but for what changes with each build, its modules."""
        same = kernel_key(run.record, run.folder)
        if same is None:
            return None
        twin = next((one for one in self.series.record.entries if one.id == self._essences.get(same)), None)
        if twin is not None and twin is not entry:
            work = self._loads.get(twin.id)
            # One that is not over yet may turn out to be whole.
            if (work is not None and not work.done()) or self._found_of(twin):
                return twin
        self._essences[same] = entry.id
        return None

    def _remember(self, entry: Entry) -> bool:
        """Take up an entry that was judged before this process began. False: its run is gone, and it is judged anew."""
        self._change_kind(entry)
        if entry.run is None:
            return True  # it does not apply, or comes after one that does not
        try:
            record = read_record(entry.run)
        except UserError as error:
            log.get().warning("series.forgotten", entry=entry.id, reason=str(error))
            entry.status = entry.verdict = entry.same_as = None
            return False
        self._held = bring_up_to_date(self._held, record)
        self._last = record if module_files(record) else self._last
        try:
            if is_whole(record) and (same := kernel_key(record, _folder(entry.run))) is not None:
                self._essences.setdefault(same, entry.same_as or entry.id)
        except (KbuildError, OSError) as error:
            log.get().warning("series.not-reused", entry=entry.id, reason=str(error))
        return True

    def _conclude(self, entry: Entry, record: Record) -> None:
        """Hold the entry's run against what came before it."""
        self._change_kind(entry)
        entry.verdict = record.verdict
        entry.cells = _cells(record)
        entry.changes = self._changes(record)
        if entry.base:
            entry.status, entry.reason = record.verdict or Status.MISS, record.error
        else:
            conclude(entry, self._held, record)
        self._held = bring_up_to_date(self._held, record)

    def _change_kind(self, entry: Entry) -> None:
        """Nothing came before the first one of its kind."""
        if entry.kind != self._kind:
            self._held, self._last, self._kind = NOTHING, None, entry.kind

    def _changes(self, record: Record) -> dict[str, Any] | None:
        """What differs in the objects, against the last entry that has some; None where nothing does."""
        if not module_files(record):
            return None
        before, self._last = self._last, record
        if before is None:
            return None
        folders, records = [_folder(one.id) for one in (before, record)], (before, record)
        found = compare_objects(folders, records, self._inspected)
        differs = any(one["change"] != "same" for one in found["modules"] or ())
        return found if differs or any(found[key] for key in ("flow", "caches", "modules_problem")) else None

    def _inspected(self, folder: Path, record: Record) -> Inspection:
        """Of each run once: it is held against two others."""
        if record.id not in self._inspections:
            self._inspections[record.id] = inspect_kept(folder, record)
            while len(self._inspections) > 2:
                del self._inspections[next(iter(self._inspections))]
        return self._inspections[record.id]


def _wait_until(loading: deque[tuple[Judging, Future[None]]], count: int) -> None:
    """Until so many are at work. What one of them raised is raised, the oldest first."""
    while len(loading) > count:
        loading[0][1].result()
        loading.popleft()


def conclude(entry: Entry, held: Record, record: Record) -> None:
    """What an entry's run means for the series, held against what was said before it: outcome, blame, what is mended.

    Worse is what `inv compare` calls so. What was not judged at all does not pass, be it that it was not before either.
    """
    compared = compare_records(held, record)
    entry.blamed, entry.mended = changed_ids(compared)
    # Of what it is to blame for the findings tell.
    worse = [one["what"] for one in compared["worse"] if not entry.blamed or one["status"] == Status.MISS]
    outcomes = [Status(compared["status"])]
    missed = _missed(record)
    if missed and Status.MISS not in [one["status"] for one in compared["worse"]]:
        worse.append(missed)
    if missed or record.verdict == Status.MISS or record.error:
        outcomes.append(Status.ERROR if record.verdict in (None, Status.ERROR) else Status.MISS)
    load = next((stage.status for stage in record.stages if stage.name == "load"), None)
    if load is None:
        outcomes.append(Status.MISS)
        worse.append("nothing of it was loaded")
    entry.status = worst(outcomes)
    if entry.status == Status.PASS and load == Status.SKIP:
        entry.status = Status.SKIP
        worse.append("nothing of it was judged: each order was skipped")
    if not entry.blamed:
        more = f" and {len(worse) - 1} more" if len(worse) > 1 else ""
        entry.reason = record.error or (f"{worse[0]}{more}" if worse else None)
    entry.evidence = worse


def _missed(record: Record) -> str | None:
    """What the machine failed at, in one line: a FAIL elsewhere, be it of the base, hides it from the verdict."""
    for cell in record.transcripts:
        if cell.status == Status.MISS:
            return f"{cell.host}, {cell.order}: {cell.reason or Status.MISS}"
    stages = (f"stage {one.name}: {one.reason or Status.MISS}" for one in record.stages if one.status == Status.MISS)
    return next(stages, None)


def kernel_key(record: Record, folder: Path) -> str | None:
    """Equal for kernels that a run would find the same of; None where the run has no kernel, or no modules.

    The kernel counts byte by byte, the modules by their essence, however they are compressed; and the selftests that
    were built with them, which come from the same tree and are run there.
    """
    modules = {file_module_name(Path(name)): folder / "artifacts" / name for name in module_files(record)}
    if not modules or record.kernel_file is None:
        return None
    parts = [f"{name} {essence(path)}" for name, path in sorted(modules.items(), key=str)]
    selftests = [f"{path.name} {file_digest(path)}" for path in sorted((folder / "selftests").glob("*"))]
    return "\n".join([record.artifacts[record.kernel_file], *parts, *selftests])


def is_whole(record: Record) -> bool:
    """Whether nothing of it was left open: another run with its kernel and modules would find the same."""
    stages = all(stage.status in (*JUDGED, Status.DONE) for stage in record.stages)
    cells = all(one.status in (*JUDGED, Status.SKIP) for one in record.transcripts)
    return record.verdict in JUDGED and stages and cells


def _folder(run: str) -> Path:
    return runs_home() / run


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
