"""Orders of the last patch, held against the same ones of the base, as a point says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kbuild.bar.evidence import MAX_LINES, Evidence, untested
from kbuild.barrecord import Met, Point
from kbuild.outcome import RUN_OF, Finding, Status, finding_id, place_of, worst
from kbuild.record import Record
from kbuild.transcript import Transcript

VENDORS = ("intel", "amd")


@dataclass(frozen=True)
class Judged:
    """Orders of the last patch, held against the base's."""

    rows: tuple[Transcript, ...]
    """That were not skipped."""
    skipped: tuple[Transcript, ...]
    new: tuple[Finding, ...]
    """That the base does not have, or not as bad, or not where the last patch has them."""
    failed: tuple[Finding, ...]
    """Of the new ones: the kernel's."""
    old: tuple[Finding, ...]
    """That the base has too."""
    cut: str
    """Why the run did not come to its end; empty where it did."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """On which something was run."""
        return tuple(dict.fromkeys(one.host for one in self.rows))

    @property
    def unjudged(self) -> tuple[Finding, ...]:
        """Where the machine or the test failed: they say nothing of the kernel, be it that the base has them too."""
        return tuple(one for one in (*self.new, *self.old) if one.status != Status.FAIL and one not in self.failed)


def judge(tip: Record | None, base: Record | None, wanted: Callable[[Transcript], bool] | None = None) -> Judged:
    """The orders that are wanted, on all hosts; without `wanted` all of them."""
    chosen = [one for one in tip.transcripts if wanted is None or wanted(one)] if tip else []
    rows = tuple(one for one in chosen if one.status != Status.SKIP)
    found = [one for row in rows for one in _findings(row)]
    old = [one for one in found if base is not None and _has_too(base, one)]
    new = tuple(one for one in found if one not in old)
    return Judged(
        rows,
        tuple(one for one in chosen if one.status == Status.SKIP),
        new,
        tuple(one for one in new if _is_the_kernels(one, base)),
        tuple(old),
        _why_cut(tip) if tip else "",
    )


def _findings(row: Transcript) -> list[Finding]:
    """What counts in an order; one that did not pass, and has nothing that says why, is a finding itself."""
    found = [one for one in row.findings if one.counts]
    if found or not row.status.counts:
        return found
    name = finding_id("load", "order", row.order, "not-told")
    message = row.reason or str(row.status)
    return [Finding(id=name, status=row.status, message=message, host=row.host, order=row.order)]


def _has_too(base: Record, finding: Finding) -> bool:
    """Whether the base shows the very same, no less grave. Where it passes that order, it does not."""
    same = [
        one.status
        for row in base.transcripts
        if row.host == finding.host
        for one in _findings(row)
        if one.id == finding.id
    ]
    return bool(same) and worst((finding.status, *same)) == worst(same) and not passed_in(base, finding)


def _is_the_kernels(finding: Finding, base: Record | None) -> bool:
    """Whether a new finding is the kernel's fault: what nobody could judge is, where the base passes.

    Not where the machine failed, which it may do at any time.
    """
    if finding.status == Status.FAIL:
        return True
    return finding.status == Status.ERROR and base is not None and passed_in(base, finding)


def passed_in(base: Record, finding: Finding) -> bool:
    """Whether the base passes what this finding is about: then the host is no excuse."""
    place = (finding.host, place_of(finding.order or ""))
    rows = [one for one in base.transcripts if (one.host, place_of(one.order)) == place]
    test = finding.id.split(":")[2]
    tests = [step.status for row in rows for step in row.steps if step.detail.get("test") == test]
    said = tests or [row.status for row in rows]
    return bool(said) and all(one == Status.PASS for one in said)


def _why_cut(record: Record) -> str:
    if record.error:
        return record.error
    if record.interrupted:
        return f"it was interrupted in {record.interrupted}"
    return "" if record.ended else "it did not come to its end"


def order_of(transcript: Transcript) -> str:
    """The order's id without the name of its run."""
    return transcript.order.partition(RUN_OF)[0]


def is_of(transcript: Transcript, orders: Sequence[str]) -> bool:
    """Whether it is one of these orders (`ORDER`), or of their runs (`ORDER@RUN`)."""
    return transcript.order in orders or order_of(transcript) in orders


def passed(transcript: Transcript) -> bool:
    """Whether an order shows that what it is about works."""
    return transcript.status == Status.PASS


def ran_guests(transcript: Transcript) -> bool:
    """Whether a vendor's module was loaded, ran a guest, and was unloaded again."""
    done = [step.action for step in transcript.steps if step.status == Status.PASS]
    return passed(transcript) and {"load", "smoke", "unload"} <= {*done}


def loaded(
    point: Point,
    judged: Judged,
    tip: Record | None,
    unrun: str,
    shows: Callable[[Transcript], bool] = passed,
    counts: str = "",
) -> Point:
    """What became of orders, said in a point.

    `unrun`: why there are none. `shows`: of an order that was run, whether it shows that what it is about works; each
    vendor needs one. `counts`: what is said in place of how many orders passed.
    """
    if not judged.rows or tip is None:
        reasons = list(dict.fromkeys(one.reason or "skipped" for one in judged.skipped))
        point.outcome, point.why = Met.NOT_TESTED, "; ".join(reasons[:2]) or judged.cut or unrun
        return point
    told = []
    for host in judged.hosts:
        own = [one for one in judged.rows if one.host == host]
        told.append(f"{sum(map(passed, own))} of {len(own)} passed on {host}")
    point.why = counts or ", ".join(told)
    point.lines = [*dict.fromkeys(_lines(judged))][:MAX_LINES]
    point.outcome = Met.MET
    if judged.failed:
        point.outcome = Met.NOT_MET
    elif judged.unjudged:
        first = judged.unjudged[0]
        untested(point, f"{first.host}, {first.order} could not be judged")
    elif judged.cut:
        untested(point, judged.cut)
    else:
        for vendor in VENDORS:
            if not any(shows(one) for one in judged.rows if vendor in gives(tip, one.host)):
                untested(point, f"not on {vendor}: {_why_missing(judged, tip, vendor)}")
    return point


def why_not_run(evidence: Evidence, what: str | None = None) -> str:
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


def _lines(judged: Judged) -> Iterator[str]:
    """The new ones first, and of them what is not met."""
    for one in judged.failed:
        yield f"{one.host}, {one.order}: {one.message}"
    for one in judged.new:
        yield f"{one.host}, {one.order}: {one.message}"
    for one in judged.old:
        if one.status == Status.FAIL:
            yield f"the base has it too: {one.message}"
        else:
            yield f"{one.host}, {one.order}: {one.message}; of the base it cannot be told either"


def left_out(judged: Judged, tip: Record, orders: Sequence[str]) -> Iterator[str]:
    """Which of the orders, or of their runs, some vendor did not do, each with the reason."""
    for order in orders:
        rows = [one for one in judged.rows if is_of(one, (order,))]
        skipped = [one for one in judged.skipped if is_of(one, (order,))]
        if not rows and not skipped:
            yield f"{order} was not among the orders that were asked for"
            continue
        for vendor in VENDORS:
            done = {one.order for one in rows if vendor in gives(tip, one.host)}
            if not done:
                yield f"{order} not on {vendor}: {_why_skipped(skipped, tip, vendor)}"
            for one in skipped:
                if done and one.order not in done and vendor in gives(tip, one.host):
                    yield f"{one.order} not on {vendor}: {one.reason or 'skipped'}"


def gives(record: Record, host: str) -> tuple[str, ...]:
    """What a host of a run gives."""
    facts = record.machines.get(host)
    return facts.gives if facts else ()


def _why_missing(judged: Judged, tip: Record, vendor: str) -> str:
    if any(vendor in gives(tip, one.host) for one in judged.rows):
        return "nothing of that passed there"
    return _why_skipped(judged.skipped, tip, vendor)


def _why_skipped(skipped: Sequence[Transcript], tip: Record, vendor: str) -> str:
    # Of a host that could not be used nothing is known but its reason.
    mine = [one for one in skipped if not gives(tip, one.host) or vendor in gives(tip, one.host)]
    return next((one.reason for one in mine if one.reason), "no host of the profile gives it")
