"""What is said of KVM's selftests: how each ended, and which are lost since the base."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kbuild.bar.evidence import MAX_FILES, MAX_LINES, TESTS, Evidence, untested
from kbuild.bar.loads import judge, loaded, why_not_run
from kbuild.barrecord import Host, Met, Point
from kbuild.build.selftests import NOT_COMPILED, test_of
from kbuild.load.selftests import SKIPPED_ITSELF
from kbuild.outcome import Status
from kbuild.record import Record
from kbuild.transcript import StepResult, Transcript

_FIRST = re.compile(r"selftest (\S+): ")


def selftests(evidence: Evidence) -> Point:
    orders = ", ".join(evidence.record.tests) or "none"
    point = Point(id="selftests", title=f"KVM selftests (last patch, order: {orders})", outcome=Met.MET)
    tip, base = evidence.run(TESTS, evidence.tip), evidence.run(TESTS, evidence.base)
    judged = judge(tip, base)
    told = "; ".join(text for one in evidence.record.hosts if (text := _counted(one)))
    loaded(point, judged, tip, why_not_run(evidence, TESTS), ran_tests, told)
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
    return [name for path in (touched.tests if touched else ()) if (name := test_of(path)) is not None]


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


@dataclass(frozen=True)
class Lost:
    """A selftest that the last patch skips on a host, and might not."""

    host: str
    test: str
    why: str
    compiles: bool
    before: Status | None
    """With the base; None: it has no such test, or none was run."""


def lost_tests(tip: Record | None, base: Record | None) -> Iterator[Lost]:
    """Tests that do not compile, and those that skip themselves: the base alone tells whether they always did."""
    before = {key: step.status for key, step in _tests(base)}
    for (host, test), step in _tests(tip):
        reason = (step.reason or "").removeprefix(f"selftest {test}: ")
        compiles = not reason.startswith(NOT_COMPILED)
        if step.status == Status.SKIP and (not compiles or reason.startswith(SKIPPED_ITSELF)):
            yield Lost(host, test, reason, compiles, before.get((host, test)))


def _tests(record: Record | None) -> Iterator[tuple[tuple[str, str], StepResult]]:
    """Hosts and tests, each as it ended."""
    for row in record.transcripts if record else ():
        yield from (((row.host, step.detail["test"]), step) for step in row.steps if "test" in step.detail)
        # An order of which there is no test at all is not begun, and its reason names the first.
        if not row.steps and row.status == Status.SKIP and (first := _FIRST.match(row.reason or "")):
            detail = {"test": first[1]}
            step = StepResult(number=0, action="selftest", status=row.status, reason=row.reason, detail=detail)
            yield (row.host, first[1]), step


def tests_run(record: Record | None) -> set[str]:
    """The tests of which something can be told."""
    return {test for (_, test), step in _tests(record) if step.status in (Status.PASS, Status.FAIL)}


def ran_tests(transcript: Transcript) -> bool:
    """Whether one of KVM's selftests passed, whatever became of the others."""
    return any(step.action == "selftest" and step.status == Status.PASS for step in transcript.steps)
