"""Orders of the last patch, held against the same ones of the base, as a point says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kbuild.barrecord import Met, Point
from kbuild.outcome import RUN_OF, Finding, Status
from kbuild.record import Record
from kbuild.transcript import Transcript

MAX_LINES = 6
"""Of a point; the record of the run has all."""
VENDORS = ("intel", "amd")


@dataclass(frozen=True)
class Judged:
    """Orders of the last patch, held against the base's."""

    rows: tuple[Transcript, ...]
    """That were not skipped."""
    skipped: tuple[Transcript, ...]
    new: tuple[Finding, ...]
    """That the base does not have."""
    failed: bool
    """Whether one of the new ones is the kernel's."""
    old: tuple[Finding, ...]
    """That the base has too."""
    hosts: tuple[str, ...]
    unknown: tuple[Transcript, ...]
    """That could not be judged, for the machine or the test failed, and say nothing of the kernel."""


def judge(tip: Record | None, base: Record | None, wanted: Callable[[str], bool] | None = None) -> Judged:
    """The orders with such ids on all hosts; without `wanted` all of them."""
    chosen = [one for one in tip.transcripts if wanted is None or wanted(order_of(one))] if tip else []
    rows = tuple(one for one in chosen if one.status != Status.SKIP)
    counting = [one for row in rows for one in row.findings if one.status.counts and not one.known]
    before = {(one.id, one.host) for one in base.findings if one.status.counts and not one.known} if base else set()
    new = tuple(one for one in counting if (one.id, one.host) not in before)
    return Judged(
        rows,
        tuple(one for one in chosen if one.status == Status.SKIP),
        new,
        any(one.status == Status.FAIL or (base is not None and passed_in(base, one)) for one in new),
        tuple(one for one in counting if (one.id, one.host) in before),
        tuple(dict.fromkeys(one.host for one in rows)),
        tuple(one for one in rows if one.status in (Status.ERROR, Status.MISS) and not one.findings),
    )


def passed_in(base: Record, finding: Finding) -> bool:
    """Whether the base passes what this finding is about: then the machine is no excuse."""
    rows = [one for one in base.transcripts if (one.host, one.order) == (finding.host, finding.order)]
    test = finding.id.split(":")[2]
    for row in rows:
        steps = [step for step in row.steps if step.detail.get("test") == test]
        if any(step.status == Status.PASS for step in steps) or (not steps and row.status == Status.PASS):
            return True
    return False


def order_of(transcript: Transcript) -> str:
    """The order's id without the name of its run."""
    return transcript.order.partition(RUN_OF)[0]


def loaded(point: Point, judged: Judged, tip: Record | None, unrun: str) -> Point:
    """What became of orders, said in a point."""
    if not judged.rows:
        reasons = list(dict.fromkeys(one.reason or "skipped" for one in judged.skipped))
        point.outcome, point.why = Met.NOT_TESTED, "; ".join(reasons[:2]) or unrun
        return point
    assert tip is not None
    told = []
    for host in judged.hosts:
        own = [one for one in judged.rows if one.host == host]
        told.append(f"{sum(one.status == Status.PASS for one in own)} of {len(own)} passed on {host}")
    point.why = ", ".join(told)
    old = list(dict.fromkeys(one.message for one in judged.old))
    point.lines = [f"the base has it too: {one}" for one in old]
    if judged.new:
        point.outcome = Met.NOT_MET if judged.failed else Met.NOT_TESTED
        fresh = list(dict.fromkeys(f"{one.host}, {one.order}: {one.message}" for one in judged.new))
        point.lines = [*fresh, *point.lines]
    elif judged.unknown:
        point.outcome = Met.NOT_TESTED
        point.lines = [f"{one.host}, {one.order}: {one.reason or one.status}" for one in judged.unknown]
    else:
        point.outcome = Met.MET
        gives = {vendor for host in judged.hosts if host in tip.machines for vendor in tip.machines[host].gives}
        if missing := [one for one in VENDORS if one not in gives]:
            point.outcome = Met.NOT_TESTED
            point.why += f"; not on {' and '.join(missing)}: {_why_missing(judged)}"
    point.lines = point.lines[:MAX_LINES]
    return point


def _why_missing(judged: Judged) -> str:
    return next((one.reason for one in judged.skipped if one.reason), "no host of the profile gives it")
