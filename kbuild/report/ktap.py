"""A run as KTAP, version 1 (Documentation/dev-tools/ktap.rst): hosts, in these orders, in these steps.

`tools/testing/kunit/kunit.py parse` reads it, and counts only what has no subtests. So what an order, or a run, did not
pass for a reason of its own has a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.outcome import Finding, Status, worst
from kbuild.report import clean, gist

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import StepResult, Transcript

MAX_LOG = 60
"""Lines of a step's log, or of evidence."""
_END = re.compile(r"List of all partitions(?=:)|Kernel panic - not syncing(?=: VFS:)|reboot(?=: System halted)")
"""At these words kunit.py takes the log for ended, wherever they stand."""

_SKIP = re.compile(r"#(?=\s*SKIP)", re.IGNORECASE)
"""Behind it kunit.py takes what failed for skipped, wherever it stands in the line."""


@dataclass(frozen=True)
class Test:
    """A line of its own, with its subtests."""

    name: str
    status: Status
    said: str = ""
    """Behind the name, for a person; of one that was skipped the reason."""
    lines: Sequence[str] = ()
    tests: Sequence[Test] = ()


def render_ktap(record: Record) -> str:
    """All lines."""
    tests = [Test("stages", worst_of(stages := [*_stages(record)]), tests=stages)] if record.stages else []
    tests += [Test(f"rules of {name}", worst_of(rules), tests=rules) for name, rules in _rules(record).items()]
    tests += [Test(host, worst_of(orders), tests=orders) for host, orders in _hosts(record)]
    if (more := gist.unexplained(record, worst_of(tests))) is not None:
        tests.append(Test("verdict", *more))
    head = [
        f"run {record.id}: {gist.verdict_of(record)[0]}",
        f"{gist.asked(record)}; kernel {record.kernel or 'none'}",
        record.command,
    ]
    return document(head, tests)


def document(head: Sequence[str], tests: Sequence[Test]) -> str:
    """The lines of these tests, with what is said of all before them."""
    lines = ["KTAP version 1", f"1..{len(tests)}", *map(_diagnostic, head)]
    for number, test in enumerate(tests, 1):
        lines += _lines(number, test)
    return "".join(f"{_END.sub(_broken, line)}\n" for line in lines)


def _broken(match: re.Match[str]) -> str:
    return f"{match[0]}_"


def worst_of(tests: Sequence[Test]) -> Status:
    """Their worst outcome."""
    return worst(test.status for test in tests)


def _lines(number: int, test: Test) -> Iterator[str]:
    """A test: its subtests, what is to be said of it, and its result."""
    name = _name(test.name)
    if test.tests:
        inner = ["KTAP version 1", f"# Subtest: {name}", f"1..{len(test.tests)}"]
        for one, subtest in enumerate(test.tests, 1):
            inner += _lines(one, subtest)
        yield from (f"    {line}" for line in inner)
    for line in clean.lines(test.lines, MAX_LOG):
        yield _diagnostic(line)
    said = _SKIP.sub("#_", clean.one_line(test.said))
    if test.status == Status.SKIP:
        yield f"ok {number} {name} # SKIP {said}".rstrip()
    elif test.status.counts:
        yield f"not ok {number} {name} # {test.status} {said}".rstrip()
    else:
        yield f"ok {number} {name}{f' # {said}' if said else ''}"


def _name(text: str) -> str:
    """A `#` begins a directive, a result's number comes first, and blanks at the end are lost."""
    return clean.one_line(text).replace("#", "_").strip() or "_"


def _diagnostic(line: str) -> str:
    """A line that is no result, whatever a guest put into it."""
    return f"# | {clean.one_line(line)}".rstrip()


def _stages(record: Record) -> Iterator[Test]:
    for one in gist.stages(record):
        evidence = [line for finding in one.found for line in told(finding)]
        yield Test(one.stage.name, one.status, one.said, evidence or [one.stage.summary])


def _rules(record: Record) -> dict[str, list[Test]]:
    found: dict[str, list[Test]] = {}
    for one in gist.rule_findings(record):
        status = Status.SKIP if one.known is not None else one.status
        said = (
            f"known: {one.known}" if one.known is not None else one.answer if one.status == Status.PASS else one.message
        )
        evidence = told(one) if one.status.counts else []
        found.setdefault(one.module or "", []).append(Test(gist.rule_name(one), status, said or "", evidence))
    return found


def _hosts(record: Record) -> Iterator[tuple[str, list[Test]]]:
    for host in gist.hosts(record):
        yield host, [_order(one) for one in record.transcripts if one.host == host]


def _order(one: Transcript) -> Test:
    steps = [_step(one, step) for step in one.steps]
    if one.status.counts and one.steps and not worst_of(steps).counts:
        whole = gist.open_findings(gist.findings_of(one, None))
        said = one.reason or (whole[0].message if whole else "the order as a whole")
        steps.append(Test("the whole order", one.status, said, [line for each in whole for line in told(each)]))
    again = [f"again: {one.reproduce}"] if one.status.counts and one.reproduce else []
    return Test(one.order, one.status, one.reason or "", again, steps)


def _step(one: Transcript, step: StepResult) -> Test:
    status, known = gist.step_outcome(one, step)
    found = gist.open_findings(gist.findings_of(one, step))
    said = f"known: {known}" if known is not None else step.reason or (found[0].message if found else "")
    log = [line.text for line in step.log]
    return Test(f"{step.number}. {gist.step_title(step)}", status, said, [*log, *_ids(found)])


def _ids(found: Sequence[Finding]) -> list[str]:
    return [f"{one.status}: {one.message}; id {one.id}" for one in found]


def told(finding: Finding) -> list[str]:
    """A finding in lines."""
    return [*_ids([finding]), *clean.lines(finding.witness or finding.evidence, MAX_LOG)]
