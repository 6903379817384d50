"""What is said of the builds: the kernel of each patch, and KVM's objects in each configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kbuild.bar.evidence import MAX_LINES, Evidence, commits, first_of, own_patches, untested
from kbuild.barrecord import LEAST, BarRecord, BuildOutcome, Met, Patch, Point, least_asked, short
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.seriesrecord import Entry


def least(evidence: Evidence) -> Point:
    """The kernel that is loaded: built by the series, and every patch of it."""
    title = f"each patch builds with {least_asked()}, gcc (a whole kernel)"
    point = Point(id="build", title=title, outcome=Met.MET, must=True)
    unsure: list[str] = []
    base = evidence.entry(evidence.base.id)
    failed = base is not None and base.cells.get("build") == Status.FAIL
    for patch, entry in own_patches(evidence):
        status = entry.cells.get("build") if entry else None
        failed = failed and status != Status.PASS
        blamed = [one for one in entry.blamed if one.startswith("build:")] if entry else []
        if status == Status.FAIL and blamed:
            point.outcome = Met.NOT_MET
            point.patches.append(patch.id)
            point.lines += blamed
            if failed:
                # make ends at the first errors: what it would have said of the base behind that is not known.
                point.why = "the base does not build either, and tells only its first errors: it may have these, too"
            continue
        why: str | None = "what it stands on does not build either" if status == Status.FAIL else "it was not built"
        if entry and status == Status.PASS:
            why = _other_configuration(evidence, entry)
        elif entry and entry.reason:
            why = entry.reason
        unsure += [f"{short(patch.id)}: {why}"] if why else []
    untested(point, first_of(unsure))
    point.lines = point.lines[:MAX_LINES]
    return point


def _other_configuration(evidence: Evidence, entry: Entry) -> str | None:
    """Why a kernel that was built is not the one that is asked for: a profile of the user's may have another one."""
    try:
        values = evidence.config(entry.run or "")
    except UserError as error:
        return f"its configuration cannot be read: {error}"
    other = [f"{name}={values.get(name, 'n')}" for name, value in LEAST.items() if values.get(name) != value]
    return f"it was built with {' '.join(other)}" if other else None


def builds(evidence: Evidence) -> Iterator[Point]:
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
    untested(point, first_of(unsure))
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
