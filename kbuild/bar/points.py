"""What the maintainers ask for, point by point: met, not met, or not tested and why, from what is on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from kbuild.bar.compiled import builds, least
from kbuild.bar.evidence import MAX_FILES, MAX_LINES, PARAMETERS, TESTS, Evidence, first_of, own_patches, untested
from kbuild.bar.loads import Judged, is_of, judge, left_out, loaded, order_of, ran_guests, why_not_run
from kbuild.bar.selftests import selftests
from kbuild.barrecord import NOT_TRIED, TRIED, BarRecord, Met, Parameter, Point, short, shown
from kbuild.outcome import Finding, Status
from kbuild.record import Record
from kbuild.seriesrecord import Entry


def points(evidence: Evidence) -> list[Point]:
    """All of them, in the order of the maintainers' own list."""
    found = [least(evidence), *builds(evidence), _each(evidence), _vendors(evidence)]
    found += [*_areas(evidence), _parameters(evidence), selftests(evidence), _units(evidence)]
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


# What is loaded.


def _each(evidence: Evidence) -> Point:
    """What the series says: which patch brought what."""
    point = Point(
        id="series", title="no patch breaks what was right before it (rules and loads of each)", outcome=Met.MET
    )
    unsure: list[str] = []
    for patch, entry in own_patches(evidence):
        name = short(patch.id)
        blamed = [one for one in entry.blamed if not one.startswith("build:")] if entry else []
        if entry and entry.status == Status.FAIL and (blamed or not entry.blamed):
            # It got worse, be it that no finding says by what.
            point.outcome = Met.NOT_MET
            point.patches.append(entry.id)
            point.lines += [f"{name}: {one}" for one in blamed or entry.evidence or [entry.reason or "it got worse"]]
        elif (why := _unjudged(evidence, entry)) is not None:
            unsure.append(f"{name} could not be judged: {why}")
    untested(point, first_of(unsure))
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
    return loaded(point, judged, tip, why_not_run(evidence), ran_guests)


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
        loaded(point, judged, tip, why_not_run(evidence))
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
            point.outcome, point.why = Met.NOT_TESTED, "the profile has no [[bar.area]]"
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
    left = [f"{one.full} ({_why_untried(one, tried[one.full])})" for one in own if not _is_tried(one, tried)]
    if any(one.values for one in own):
        loaded(point, judged, tip, why_not_run(evidence, PARAMETERS))
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


def _why_untried(one: Parameter, tried: Sequence[object]) -> str:
    if one.absent:
        return "not in this configuration"
    if not one.module:
        return f"{one.file} is in no module that was built"
    if one.values:
        return f"not with {', '.join(str(value) for value in one.values if value not in tried)}"
    return f"{one.kind}: give values in the profile's [bar.values]"


def _units(evidence: Evidence) -> Point:
    point = Point(id="kvm-unit-tests", title="KVM-unit-tests", outcome=Met.MET)
    units = evidence.record.units
    if units is None:
        point.outcome, point.why = Met.NOT_TESTED, "no checkout was given (--kvm-unit-tests DIR)"
    elif units.failed:
        # Nobody can say here whether the base fails them, too: that takes another boot of this machine.
        point.outcome, point.why = Met.NOT_MET, f"{len(units.failed)} failed; run them on the base, too, and compare"
        point.lines = units.failed[:MAX_LINES]
    elif units.reason or not units.passed:
        point.outcome, point.why = Met.NOT_TESTED, units.reason or "none passed"
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
        return loaded(point, judge(tip, base), tip, why_not_run(evidence, name))
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
