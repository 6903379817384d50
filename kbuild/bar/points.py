"""What the maintainers ask for, point by point: met, not met, or not tested and why, from what is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from kbuild.bar.loads import (
    MAX_LINES,
    Judged,
    is_of,
    judge,
    left_out,
    loaded,
    lost_tests,
    order_of,
    ran_guests,
    ran_tests,
    tests_run,
    untested,
)
from kbuild.bar.touched import SELFTESTS
from kbuild.barrecord import (
    NOT_TRIED,
    TRIED,
    BarRecord,
    BuildOutcome,
    Host,
    Met,
    Parameter,
    Patch,
    Point,
    TipRun,
    short,
    shown,
)
from kbuild.configure.conf import read_config
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status
from kbuild.record import Record, read_record, runs_home
from kbuild.seriesrecord import Entry, SeriesRecord

MAX_FILES = 3
"""That are named in a line."""
TESTS, PARAMETERS = "tests", "parameters"
"""What the runs of the last patch are for that are no flavour's."""
PLACES: tuple[tuple[str, ...], ...] = ((), ("x86",), ("x86_64",))
"""Folders in KVM's selftests with tests that are made for x86."""
SHARED_FROM = len(PurePosixPath(SELFTESTS).parts)
"""Parts of a selftest's path that are the same for all."""
LEAST = {"KVM_INTEL": "m", "KVM_AMD": "m", "KVM_WERROR": "y"}
"""Symbols, and the values that each patch has to build with at the very least."""


def config_of(run: str) -> Mapping[str, str]:
    """The configuration of a run's kernel. Raises UserError where it is gone."""
    path = runs_home() / run / "artifacts/config"
    try:
        return read_config(path.read_text("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@dataclass(frozen=True)
class Evidence:
    """What the points are made from."""

    record: BarRecord
    series: SeriesRecord
    read: Callable[[str], Record] = read_record
    config: Callable[[str], Mapping[str, str]] = config_of
    """Of a run's kernel: symbols to values."""

    def entry(self, patch: str) -> Entry | None:
        """What the series says of a patch."""
        return next((one for one in self.series.entries if one.id == patch), None)

    def of(self, patch: str) -> Record | None:
        """The record of a patch's own run."""
        entry = self.entry(patch)
        return self._read(entry.run) if entry else None

    def made(self, what: str, patch: Patch) -> TipRun | None:
        """A run that was made for a purpose, or why there is none."""
        return next((one for one in self.record.runs if (one.what, one.patch) == (what, patch.id) and one.over), None)

    def run(self, what: str, patch: Patch) -> Record | None:
        """Its record."""
        found = self.made(what, patch)
        return self._read(found.run) if found else None

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
    found = [_least(evidence), *_builds(evidence), _each(evidence), _vendors(evidence)]
    found += [*_areas(evidence), _parameters(evidence), _selftests(evidence), _units(evidence)]
    found += [_flavour(evidence, one) for one in _flavours(evidence.record)]
    found.append(_docs(evidence))
    if (applied := _applied(evidence)) is not None:
        # All of them are asked of the whole series, and a part of it is not there.
        for one in found:
            untested(one, f"{applied.patches[0]} does not apply")
        found.insert(0, applied)
    found += [_based(evidence), *_reproducer(evidence), _tests(evidence)]
    return found


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
    first = missing[0]
    entry = evidence.entry(first.id)
    return Point(
        id="applies",
        title="the patches apply",
        outcome=Met.NOT_MET,
        why=f"{first.id} ({first.subject}) does not apply; nothing is known of it and of those behind it",
        lines=entry.evidence[:MAX_LINES] if entry else [],
        must=True,
        patches=[first.id],
    )


def _own(evidence: Evidence) -> list[tuple[Patch, Entry | None]]:
    """The patches that could be applied, without what they stand on."""
    return [(one, evidence.entry(one.id)) for one in commits(evidence.record) if not one.base]


def _least(evidence: Evidence) -> Point:
    """The kernel that is loaded: built by the series, and every patch of it."""
    asked = " ".join(f"{name}={value}" for name, value in LEAST.items())
    point = Point(id="build", title=f"each patch builds with {asked}, gcc (a whole kernel)", outcome=Met.MET, must=True)
    unsure: list[str] = []
    for patch, entry in _own(evidence):
        status = entry.cells.get("build") if entry else None
        blamed = [one for one in entry.blamed if one.startswith("build:")] if entry else []
        if status == Status.FAIL and blamed:
            point.outcome = Met.NOT_MET
            point.patches.append(patch.id)
            point.lines += blamed
            continue
        why: str | None = "what it stands on does not build either" if status == Status.FAIL else "it was not built"
        if entry and status == Status.PASS:
            why = _other_configuration(evidence, entry)
        elif entry and entry.reason:
            why = entry.reason
        unsure += [f"{short(patch.id)}: {why}"] if why else []
    untested(point, _first(unsure))
    point.lines = point.lines[:MAX_LINES]
    return point


def _first(reasons: Sequence[str]) -> str:
    """Of the reasons why something was not tested, each a patch's, what there is room for."""
    more = f"; and {len(reasons) - 1} more of the patches" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}" if reasons else ""


def _other_configuration(evidence: Evidence, entry: Entry) -> str | None:
    """Why a kernel that was built is not the one that is asked for: a profile of the user's may have another one."""
    try:
        values = evidence.config(entry.run or "")
    except UserError as error:
        return f"its configuration cannot be read: {error}"
    other = [f"{name}={values.get(name, 'n')}" for name, value in LEAST.items() if values.get(name) != value]
    return f"it was built with {' '.join(other)}" if other else None


def _builds(evidence: Evidence) -> Iterator[Point]:
    record = evidence.record
    keys = list(dict.fromkeys((one.build, one.compiler) for one in record.builds))
    for build, compiler in keys:
        outcomes = [one for one in record.builds if (one.build, one.compiler) == (build, compiler)]
        yield _build(record, build, compiler, outcomes)
    for build in [one for one in record.titles if not any(one == other for other, _ in keys)]:
        title = f"each patch builds with {record.titles[build]} (KVM's objects)"
        must = build in record.musts
        yield Point(id=f"build:{build}", title=title, outcome=Met.NOT_TESTED, why="it was not built", must=must)


def _build(record: BarRecord, build: str, compiler: str, outcomes: Sequence[BuildOutcome]) -> Point:
    by_patch = {one.patch: one for one in outcomes}
    patches = commits(record)
    point = Point(
        id=f"build:{build}-{compiler}",
        title=f"each patch builds with {record.titles.get(build, build)}, {compiler} (KVM's objects)",
        outcome=Met.MET,
        must=build in record.musts,
    )
    if all(one.id in by_patch and by_patch[one.id].status == Status.SKIP for one in patches):
        untested(point, by_patch[patches[0].id].reason or "there is no such configuration")
        return point
    before = _Before()
    unsure = [why for one in patches if (why := _hold(point, one, by_patch.get(one.id), before)) is not None]
    untested(point, _first(unsure))
    base = by_patch.get(patches[0].id)
    if point.outcome == Met.MET and base is not None:
        point.why = " ".join(f"{name}={value}" for name, value in base.values.items())
        if base.status == Status.FAIL:
            point.why = f"each patch does, and the base does not ({base.reason})"
    point.lines = point.lines[:MAX_LINES]
    return point


@dataclass
class _Before:
    """What was said of a configuration before a patch."""

    errors: set[str] | None = None
    """Ids, as far as nothing was built since; None: nothing could be judged yet."""


def _hold(point: Point, patch: Patch, outcome: BuildOutcome | None, before: _Before) -> str | None:
    """Hold a patch's build against what came before it. Returns why it cannot be told how it does."""
    name = short(patch.id)
    if outcome is None or outcome.status not in (Status.PASS, Status.FAIL):
        # Nobody knows whether the machine or the patch is at fault, be it that the base has it too.
        why = (outcome.reason or f"it is {outcome.status}") if outcome else "it was not built"
        return None if patch.base else f"{name}: {why}"
    if outcome.status == Status.PASS:
        before.errors = set()
        return None
    told = {one.id: one.message for one in outcome.findings if one.counts} or {"": outcome.reason or "make failed"}
    new = {one: message for one, message in told.items() if before.errors is None or one not in before.errors}
    blamed, before.errors = before.errors is not None, (before.errors or set()) | told.keys()
    if patch.base:
        return None
    if not new:
        return f"{name} does not build, and neither does what it stands on ({outcome.reason})"
    point.outcome = Met.NOT_MET
    point.lines += [f"{name}: {message}" for message in new.values()]
    if blamed:
        point.patches.append(patch.id)
    else:
        point.why = "nothing before it could be built, so whose it is cannot be told"
    return None


# What is loaded.


def _each(evidence: Evidence) -> Point:
    """What the series says: which patch brought what."""
    point = Point(
        id="series", title="no patch breaks what was right before it (rules and loads of each)", outcome=Met.MET
    )
    unsure: list[str] = []
    for patch, entry in _own(evidence):
        name = short(patch.id)
        blamed = [one for one in entry.blamed if not one.startswith("build:")] if entry else []
        if entry and entry.status == Status.FAIL and (blamed or not entry.blamed):
            # It got worse, be it that no finding says by what.
            point.outcome = Met.NOT_MET
            point.patches.append(entry.id)
            point.lines += [f"{name}: {one}" for one in blamed or entry.evidence or [entry.reason or "it got worse"]]
        elif (why := _unjudged(evidence, entry)) is not None:
            unsure.append(f"{name} could not be judged: {why}")
    untested(point, _first(unsure))
    point.lines = point.lines[:MAX_LINES]
    return point


def _unjudged(evidence: Evidence, entry: Entry | None) -> str | None:
    """Why nobody can say that a patch breaks nothing; None: it was judged, and does not."""
    if entry is None or entry.status is None:
        return "the series has not come to it"
    if entry.cells.get("build") == Status.FAIL:
        return "it does not build"
    if entry.status != Status.PASS:
        return entry.reason or ", ".join(entry.blamed) or "it does not say why"
    tip = evidence.of(entry.id)
    if tip is None:
        return f"the record of run {entry.run} is gone"
    judged = judge(tip, evidence.of(evidence.base.id))
    unsure = [*judged.unjudged, *(one for one in tip.findings if one.host is None and _untold(one))]
    if unsure:
        return f"{unsure[0].message}; of the base it cannot be told either"
    return judged.cut or None


def _untold(finding: Finding) -> bool:
    return finding.counts and finding.status != Status.FAIL


def _vendors(evidence: Evidence) -> Point:
    touched = evidence.record.touched
    of_areas = [order for area in (touched.areas if touched else ()) for order in area.orders]
    tip, base = evidence.of(evidence.tip.id), evidence.of(evidence.base.id)
    judged = judge(tip, base, lambda one: not is_of(one, of_areas))
    point = Point(
        id="vendors", title="both vendors' modules load, run guests and unload (last patch)", outcome=Met.MET, must=True
    )
    return loaded(point, judged, tip, _why_not_run(evidence), ran_guests)


def _why_not_run(evidence: Evidence, what: str | None = None) -> str:
    """Why there is nothing to be judged of the last patch, in its own run or in one with a purpose."""
    made = evidence.made(what, evidence.tip) if what else None
    if made is not None:
        run = evidence.run(made.what, evidence.tip)
        gone = f"the record of run {made.run} is gone" if made.run and run is None else None
        return made.reason or gone or (run.error if run else None) or "nothing was loaded"
    entry = evidence.entry(evidence.tip.id)
    if entry is not None and entry.cells.get("build") == Status.FAIL:
        return "the last patch does not build"
    if entry is not None and entry.run and evidence.of(entry.id) is None:
        return f"the record of run {entry.run} is gone"
    return (entry.reason if entry else None) or "it was not among what was asked for"


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
        judged = judge(tip, base, partial(is_of, orders=area.orders))
        loaded(point, judged, tip, _why_not_run(evidence))
        if tip is not None and judged.rows and point.outcome == Met.MET:
            # Each of them is there for something that the others do not do.
            for why in left_out(judged, tip, area.orders):
                untested(point, why)
        yield point
    if touched is not None and not touched.areas:
        point = Point(
            id="area",
            title="TDP off where the MMU is changed",
            outcome=Met.NO_CONCERN,
            why="no file of the MMU is touched",
        )
        if not evidence.record.areas:
            point.outcome, point.why = Met.NOT_TESTED, f"{evidence.record.profile} has no [[bar.area]]"
        yield point


def _parameters(evidence: Evidence) -> Point:
    touched = evidence.record.touched
    point = Point(id="parameters", title="parameters of the touched files, each pair of settings", outcome=Met.MET)
    own = [one for one in touched.parameters if not one.gone] if touched else []
    if not own:
        point.outcome, point.why = Met.NO_CONCERN, "the touched files define no module parameter"
        return point
    tip, base = evidence.run(PARAMETERS, evidence.tip), evidence.run(PARAMETERS, evidence.base)
    judged = judge(tip, base)
    given = _given(judged)
    tried = {one.full: [value for value in one.values if (one.full, str(value)) in given] for one in own}
    left = [f"{one.full} ({_why_untried(evidence, one, tried[one.full])})" for one in own if not _is_tried(one, tried)]
    if any(one.values for one in own):
        loaded(point, judged, tip, _why_not_run(evidence, PARAMETERS))
        if tip is not None and point.outcome == Met.MET:
            for run in left_out(judged, tip, list(dict.fromkeys(map(order_of, (*judged.rows, *judged.skipped))))):
                untested(point, run)
    else:
        point.outcome, point.why = Met.NOT_TESTED, "no values to give"
    if any(tried.values()):
        said = " ".join(f"{name}={','.join(map(str, values))}" for name, values in tried.items() if values)
        point.lines = [*point.lines, f"{TRIED}{said}"]
    if left:
        point.lines = [*point.lines, f"{NOT_TRIED}{', '.join(left)}"]
        if point.outcome == Met.MET:
            untested(point, f"{_count(len(left), 'parameter')} not tried")
    return point


def _given(judged: Judged) -> set[tuple[str, str]]:
    """The parameters that modules were loaded with, and their values, where something could be told of that."""
    return {
        (f"{(step.module or '').replace('-', '_')}.{name}", value)
        for row in judged.rows
        if row.status in (Status.PASS, Status.FAIL)
        for step in row.steps
        for name, value in step.params.items()
    }


def _is_tried(one: Parameter, tried: Mapping[str, Sequence[object]]) -> bool:
    return bool(one.values) and len(tried[one.full]) == len(one.values)


def _why_untried(evidence: Evidence, one: Parameter, tried: Sequence[object]) -> str:
    if one.absent:
        return "not in this configuration"
    if not one.module:
        return f"{one.file} is in no module that was built"
    if one.values:
        return f"not with {', '.join(str(value) for value in one.values if value not in tried)}"
    return f"{one.kind}: give values in [bar.values] of {evidence.record.profile}"


def _selftests(evidence: Evidence) -> Point:
    orders = ", ".join(evidence.record.tests) or "none"
    point = Point(id="selftests", title=f"KVM selftests (last patch, order: {orders})", outcome=Met.MET)
    tip, base = evidence.run(TESTS, evidence.tip), evidence.run(TESTS, evidence.base)
    judged = judge(tip, base)
    told = "; ".join(text for one in evidence.record.hosts if (text := _counted(one)))
    loaded(point, judged, tip, _why_not_run(evidence, TESTS), ran_tests, told)
    lines = []
    for one in lost_tests(tip, base):
        passed = one.before == Status.PASS
        if base is None and not one.compiles:
            untested(point, f"{one.test}: {one.why}")
        elif not one.compiles and one.before != Status.SKIP:
            point.outcome = Met.NOT_MET
            lines.append(f"{one.host}, {one.test}: {one.why}")
        elif passed:
            untested(point, f"{one.test} passes on {one.host} with the base, and skips itself now")
    point.lines = [*dict.fromkeys([*lines, *point.lines])][:MAX_LINES]
    ran = tests_run(tip)
    if left := [one for one in _changed_tests(evidence) if one not in ran]:
        untested(point, f"{', '.join(left[:MAX_FILES])}, which the series changes: not run")
    return point


def _changed_tests(evidence: Evidence) -> list[str]:
    """Names of the selftests that the series changes or brings; what they share is none."""
    touched = evidence.record.touched
    paths = [PurePosixPath(one) for one in (touched.tests if touched else ())]
    return [one.stem for one in paths if one.suffix == ".c" and one.parts[SHARED_FROM:-1] in PLACES]


def _counted(host: Host) -> str:
    """Of the tests on a host, how they ended; empty where there were none."""
    counts = {
        "passed": host.tests_passed,
        "failed": host.tests_failed,
        "could not be judged": host.tests_unjudged,
        "skipped": host.tests_skipped,
    }
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count or word in ("passed", "failed"))
    return f"{said} on {host.id}" if any(counts.values()) else ""


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
    elif not units.passed:
        point.outcome = Met.NOT_TESTED
        point.why = f"none was run: {_count(units.skipped, 'test')} skipped"
    else:
        point.why = f"{units.passed} passed, {units.skipped} skipped"
    return point


def _flavours(record: BarRecord) -> list[str]:
    """Those that were asked for, whether there is a run of them or not."""
    made = (one.what for one in record.runs if one.what not in (TESTS, PARAMETERS))
    return list(dict.fromkeys([*record.flavours, *made]))


def _flavour(evidence: Evidence, name: str) -> Point:
    tip, base = evidence.run(name, evidence.tip), evidence.run(name, evidence.base)
    point = Point(id=f"flavour:{name}", title=f"loads with the {name} kernel (last patch)", outcome=Met.MET)
    reason = _why_unbuilt(tip)
    if reason is None:
        return loaded(point, judge(tip, base), tip, _why_not_run(evidence, name))
    # The base that does build is what makes it the series' fault.
    if base is not None and base.artifacts:
        point.outcome, point.why = Met.NOT_MET, f"it does not build, and the base does: {reason}"
    elif _why_unbuilt(base) is not None:
        point.outcome, point.why = Met.NOT_TESTED, f"the base does not build either: {reason}"
    else:
        point.outcome, point.why = Met.NOT_TESTED, f"it does not build; whether the base does is not known: {reason}"
    return point


def _why_unbuilt(record: Record | None) -> str | None:
    """What the compiler says of a kernel that does not build; None where it says nothing."""
    stages = record.stages if record else ()
    return next((one.reason or "" for one in stages if one.name == "build" and one.status == Status.FAIL), None)


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


def _reproducer(evidence: Evidence) -> Iterator[Point]:
    fixes = [one for one in evidence.record.patches if one.fixes]
    if not fixes:
        return
    named = ", ".join(f"{short(one.id)} ({one.subject})" for one in fixes[:3])
    yield Point(
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
