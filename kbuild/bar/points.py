"""What the maintainers ask for, point by point: met, not met, or not tested and why, from what is on record."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kbuild.bar.loads import MAX_LINES, judge, loaded
from kbuild.barrecord import BarRecord, BuildOutcome, Met, Parameter, Patch, Point, TipRun, shown
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.record import Record, read_record
from kbuild.seriesrecord import Entry, SeriesRecord

MAX_FILES = 3
"""That are named in a line."""
TESTS, PARAMETERS = "tests", "parameters"
"""What the runs of the last patch are for that are no flavour's."""


@dataclass(frozen=True)
class Evidence:
    """What the points are made from."""

    record: BarRecord
    series: SeriesRecord
    read: Callable[[str], Record] = read_record

    def of(self, patch: str) -> Record | None:
        """The record of a patch's own run."""
        entry = next((one for one in self.series.entries if one.id == patch), None)
        return self._read(entry.run) if entry else None

    def run(self, what: str, patch: Patch) -> Record | None:
        """The record of a run that was made for a purpose."""
        found = next((one for one in self.record.runs if (one.what, one.patch) == (what, patch.id)), None)
        return self._read(found.run) if found and found.over else None

    def why_not(self, what: str) -> str | None:
        """Why there is no such run of the last patch."""
        return next((one.reason for one in self.record.runs if one.what == what and one.patch == self.tip.id), None)

    def _read(self, run: str | None) -> Record | None:
        try:
            return self.read(run) if run else None
        except UserError:
            return None

    @property
    def base(self) -> Patch:
        """What the series stands on."""
        return self.record.patches[0]

    @property
    def tip(self) -> Patch:
        """The last patch that there is as a commit."""
        return commits(self.record)[-1]


def commits(record: BarRecord) -> list[Patch]:
    """The base and the patches that could be applied."""
    return [one for one in record.patches if " " not in one.id]


def points(evidence: Evidence) -> list[Point]:
    """All of them, in the order of the maintainers' own list."""
    found = [_applied(evidence), _least(evidence), *_builds(evidence), _each(evidence), _vendors(evidence)]
    found += [*_areas(evidence), _parameters(evidence), _selftests(evidence), _units(evidence)]
    found += [_flavour(evidence, one) for one in _flavours(evidence.record.runs)]
    found += [_docs(evidence), _based(evidence), _reproducer(evidence), _tests(evidence)]
    return [one for one in found if one is not None]


def verdict(found: Sequence[Point]) -> Status:
    """FAIL where a point is not met; ERROR where one that must be was not tested; else PASS."""
    if any(one.outcome == Met.NOT_MET for one in found):
        return Status.FAIL
    return Status.ERROR if any(one.must and one.outcome == Met.NOT_TESTED for one in found) else Status.PASS


# Builds.


def _applied(evidence: Evidence) -> Point | None:
    missing = [one for one in evidence.record.patches if " " in one.id]
    if not missing:
        return None
    entries = {one.id: one for one in evidence.series.entries}
    first = missing[0]
    return Point(
        id="applies",
        title="the patches apply",
        outcome=Met.NOT_MET,
        why=f"{first.id} ({first.subject}) does not apply; nothing is known of it and of those behind it",
        lines=entries[first.id].evidence[:MAX_LINES] if first.id in entries else [],
        must=True,
        patches=[first.id],
    )


def _least(evidence: Evidence) -> Point:
    """The kernel that is loaded: built by the series, and every patch of it."""
    point = Point(
        id="build",
        title="each patch builds with KVM_INTEL=m KVM_AMD=m KVM_WERROR=y, gcc (a whole kernel)",
        outcome=Met.MET,
        must=True,
    )
    bad: list[Entry] = []
    unknown: list[Entry] = []
    for entry in evidence.series.entries:
        if entry.base or " " in entry.id:
            continue
        status = entry.cells.get("build")
        if status in (Status.FAIL, Status.ERROR) or status is None:
            blamed = any(one.startswith("build:") for one in entry.blamed) or (status is None and not entry.same_as)
            (bad if blamed and entry.status == Status.FAIL else unknown).append(entry)
    if bad:
        point.outcome, point.patches = Met.NOT_MET, [one.id for one in bad]
        point.lines = [line for one in bad for line in one.blamed][:MAX_LINES]
    elif unknown:
        point.outcome = Met.NOT_TESTED
        first = unknown[0]
        point.why = f"{short(first.id)}: {first.reason or 'what it stands on does not build either'}"
    return point


def _builds(evidence: Evidence) -> Iterator[Point]:
    record = evidence.record
    keys = list(dict.fromkeys((one.build, one.compiler) for one in record.builds))
    for build, compiler in keys:
        outcomes = [one for one in record.builds if (one.build, one.compiler) == (build, compiler)]
        yield _build(record, build, compiler, outcomes)


def _build(record: BarRecord, build: str, compiler: str, outcomes: Sequence[BuildOutcome]) -> Point:
    by_patch = {one.patch: one for one in outcomes}
    patches = [one for one in commits(record) if one.id in by_patch]
    point = Point(
        id=f"build:{build}-{compiler}",
        title=f"each patch builds with {record.titles.get(build, build)}, {compiler} (KVM's objects)",
        outcome=Met.MET,
        must=build in record.musts,
    )
    base = by_patch[patches[0].id]
    skipped = [one for one in patches if by_patch[one.id].status == Status.SKIP]
    if len(skipped) == len(patches):
        point.outcome, point.why = Met.NOT_TESTED, base.reason or ""
        return point
    if missing := [one for one in commits(record) if one.id not in by_patch]:
        point.outcome, point.why = Met.NOT_TESTED, f"{short(missing[0].id)} was not built"
        return point
    known = {one.id for one in base.findings}
    before = known
    for one in patches[1:]:
        outcome = by_patch[one.id]
        ids = {finding.id for finding in outcome.findings}
        new = [finding for finding in outcome.findings if finding.id not in before]
        if outcome.status == Status.FAIL and not outcome.findings:
            point.patches.append(one.id)
            point.lines.append(f"{short(one.id)}: {outcome.reason}")
        elif new and any(finding.status == Status.FAIL for finding in new):
            point.patches.append(one.id)
        point.lines += [f"{short(one.id)}: {finding.message}" for finding in new]
        if outcome.status != Status.SKIP:
            before = known | ids
    if point.patches:
        point.outcome = Met.NOT_MET
    elif point.lines:
        point.outcome, point.why = Met.NOT_TESTED, "it cannot be told whether this is an error"
    elif base.status == Status.FAIL:
        still = [one for one in patches[1:] if by_patch[one.id].status == Status.FAIL]
        if still:
            point.outcome = Met.NOT_TESTED
            point.why = f"the base does not build either ({base.reason}); the patches add nothing to that"
    elif skipped:
        point.outcome = Met.NOT_TESTED
        point.why = f"{short(skipped[0].id)}: {by_patch[skipped[0].id].reason}"
    elif known:
        point.why = f"the base says {_count(len(known), 'thing')} of the same kind without the patches"
    else:
        point.why = " ".join(f"{name}={value}" for name, value in base.values.items())
    point.lines = point.lines[:MAX_LINES]
    return point


# What is loaded.


def _each(evidence: Evidence) -> Point:
    """What the series says: which patch brought what."""
    point = Point(
        id="series", title="no patch breaks what was right before it (rules and loads of each)", outcome=Met.MET
    )
    unjudged: list[Entry] = []
    for entry in evidence.series.entries:
        if entry.base or " " in entry.id:
            continue
        blamed = [one for one in entry.blamed if not one.startswith("build:")]
        if entry.status == Status.FAIL and blamed:
            point.outcome = Met.NOT_MET
            point.patches.append(entry.id)
            point.lines += [f"{short(entry.id)}: {one}" for one in blamed]
        elif entry.status in (Status.ERROR, Status.MISS, Status.SKIP):
            unjudged.append(entry)
    if point.outcome == Met.MET and unjudged:
        first = unjudged[0]
        point.outcome = Met.NOT_TESTED
        point.why = f"{short(first.id)} could not be judged: {first.reason or ', '.join(first.blamed) or 'no reason'}"
    point.lines = point.lines[:MAX_LINES]
    return point


def _vendors(evidence: Evidence) -> Point:
    of_areas = [order for area in _touched_areas(evidence) for order in area]
    tip, base = evidence.of(evidence.tip.id), evidence.of(evidence.base.id)
    judged = judge(tip, base, lambda order: not _among(order, of_areas))
    point = Point(
        id="vendors", title="both vendors' modules load, run guests and unload (last patch)", outcome=Met.MET, must=True
    )
    return loaded(point, judged, tip, _why_not_run(evidence))


def _why_not_run(evidence: Evidence) -> str:
    entry = next((one for one in evidence.series.entries if one.id == evidence.tip.id), None)
    if entry is not None and entry.cells.get("build") not in (Status.PASS, None):
        return "the last patch does not build"
    return (entry.reason if entry else None) or "they were not among the orders that were asked for"


def _touched_areas(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    touched = evidence.record.touched
    for area in touched.areas if touched else ():
        yield area.orders


def _among(order: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(order, glob) for glob in globs)


def _areas(evidence: Evidence) -> Iterator[Point]:
    touched = evidence.record.touched
    tip, base = evidence.of(evidence.tip.id), evidence.of(evidence.base.id)
    for area in touched.areas if touched else ():
        more = f" and {len(area.files) - MAX_FILES} more" if len(area.files) > MAX_FILES else ""
        files = ", ".join(map(shown, area.files[:MAX_FILES])) + more
        point = Point(
            id=f"area:{area.name}",
            title=f"{area.name} ({files}): {', '.join(area.orders)}",
            outcome=Met.MET,
            must=area.must,
        )
        judged = judge(tip, base, lambda order, area=area: _among(order, area.orders))  # type: ignore[misc]
        yield loaded(point, judged, tip, _why_not_run(evidence))
    if touched is not None and not touched.areas:
        yield Point(
            id="area",
            title="TDP off where the MMU is changed",
            outcome=Met.NO_CONCERN,
            why="no file of the MMU is touched",
        )


def _parameters(evidence: Evidence) -> Point:
    touched = evidence.record.touched
    point = Point(id="parameters", title="parameters of the touched files, each pair of settings", outcome=Met.MET)
    own = [one for one in touched.parameters if not one.gone] if touched else []
    if not own:
        point.outcome, point.why = Met.NO_CONCERN, "the touched files define no module parameter"
        return point
    tip, base = evidence.run(PARAMETERS, evidence.tip), evidence.run(PARAMETERS, evidence.base)
    judged = judge(tip, base)
    tried = [f"{one.full}={','.join(map(str, one.values))}" for one in own if one.values]
    left = [f"{one.full} ({_why_untried(evidence, one)})" for one in own if not one.values]
    if tried:
        loaded(point, judged, tip, _why_not_run(evidence))
        point.lines = [*point.lines, f"tried: {' '.join(tried)}"]
    else:
        point.outcome = Met.NOT_TESTED
    if left:
        point.lines = [*point.lines, f"not tried: {', '.join(left)}"]
        if point.outcome == Met.MET:
            point.outcome = Met.NOT_TESTED
            point.why += f"; {_count(len(left), 'parameter')} not tried"
        elif not point.why:
            point.why = "no values to give"
    return point


def _why_untried(evidence: Evidence, one: Parameter) -> str:
    if one.absent:
        return "not in this configuration"
    if not one.module:
        return f"{one.file} is in no module that was built"
    return f"{one.kind}: give values in [bar.values] of {evidence.record.profile}"


def _selftests(evidence: Evidence) -> Point:
    point = Point(id="selftests", title="KVM selftests of the tree (last patch)", outcome=Met.MET)
    tip, base = evidence.run(TESTS, evidence.tip), evidence.run(TESTS, evidence.base)
    if tip is None:
        point.outcome, point.why = Met.NOT_TESTED, _why_not_run(evidence)
        return point
    judged = judge(tip, base)
    loaded(point, judged, tip, _why_not_run(evidence))
    if judged.rows:
        told = [
            f"{one.tests_passed} passed, {one.tests_failed} failed, {one.tests_skipped} skipped on {one.id}"
            for one in evidence.record.hosts
            if one.tests_passed or one.tests_failed or one.tests_skipped
        ]
        point.why = "; ".join(told) or point.why
    return point


def _units(evidence: Evidence) -> Point:
    point = Point(id="kvm-unit-tests", title="KVM-unit-tests", outcome=Met.MET)
    units = evidence.record.units
    if units is None:
        point.outcome, point.why = Met.NOT_TESTED, "no checkout was given (--kvm-unit-tests DIR)"
    elif units.failed:
        # Nobody can say here whether the base fails them, too: that takes another boot of this machine.
        point.outcome, point.why = Met.NOT_MET, f"{len(units.failed)} failed; run them on the base, too, and compare"
        point.lines = units.failed[:MAX_LINES]
    elif units.reason:
        point.outcome, point.why = Met.NOT_TESTED, units.reason
    else:
        point.why = f"{units.passed} passed, {units.skipped} skipped"
    return point


def _flavours(runs: Sequence[TipRun]) -> list[str]:
    return list(dict.fromkeys(one.what for one in runs if one.what not in (TESTS, PARAMETERS)))


def _flavour(evidence: Evidence, name: str) -> Point:
    tip, base = evidence.run(name, evidence.tip), evidence.run(name, evidence.base)
    point = Point(id=f"flavour:{name}", title=f"loads with the {name} kernel (last patch)", outcome=Met.MET)
    if tip is None:
        point.outcome, point.why = Met.NOT_TESTED, evidence.why_not(name) or _why_not_run(evidence)
        return point
    stage = next((one for one in tip.stages if one.name == "build" and one.status == Status.FAIL), None)
    if stage is None:
        return loaded(point, judge(tip, base), tip, tip.error or "nothing was loaded")
    # The base that does build is what makes it the series' fault.
    point.outcome, point.why = Met.NOT_TESTED, f"the base does not build either: {stage.reason}"
    if base is not None and base.artifacts:
        point.outcome, point.why = Met.NOT_MET, f"it does not build, and the base does: {stage.reason}"
    return point


# What is no build and no load.


def _docs(evidence: Evidence) -> Point:
    point = Point(id="htmldocs", title="htmldocs without new warnings", outcome=Met.MET)
    touched, docs = evidence.record.touched, evidence.record.docs
    if not touched or not touched.docs:
        point.outcome, point.why = Met.NO_CONCERN, "no .rst file is changed"
    elif docs is None or docs.reason:
        point.outcome, point.why = Met.NOT_TESTED, (docs.reason if docs else None) or "it was not made"
    else:
        where = ", ".join(docs.folders) or "all of Documentation"
        point.why = f"{where}, {docs.sphinx}: {len(docs.new)} new, {len(docs.before)} with the base"
        point.outcome = Met.NOT_MET if docs.new else Met.MET
        point.lines = docs.new[:MAX_LINES]
    return point


def _based(evidence: Evidence) -> Point:
    base = evidence.base
    said = evidence.record.base_from == "base-commit"
    return Point(
        id="base",
        title="the patches carry their base",
        outcome=Met.MET if said else Met.YOURS,
        why=f"base-commit: {base.id}"
        if said
        else f"send them with git format-patch --base={short(base.id)} ({base.subject})",
    )


def _reproducer(evidence: Evidence) -> Point | None:
    fixes = [one for one in evidence.record.patches if one.fixes]
    if not fixes:
        return None
    named = ", ".join(f"{short(one.id)} ({one.subject})" for one in fixes[:3])
    return Point(
        id="reproducer",
        title="a bug fix comes with a reproducer",
        outcome=Met.YOURS,
        why=f"Fixes: is in {named}",
        patches=[one.id for one in fixes],
    )


def _tests(evidence: Evidence) -> Point:
    touched = evidence.record.touched
    tests = touched.tests if touched else ()
    why = (
        f"the series changes {', '.join(map(shown, tests[:MAX_FILES]))}"
        if tests
        else "the series changes no KVM selftest"
    )
    return Point(id="tests", title="a new feature comes with tests", outcome=Met.YOURS, why=why)


def short(name: str) -> str:
    """A commit's id as it is shown."""
    return name if " " in name else name[:12]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
