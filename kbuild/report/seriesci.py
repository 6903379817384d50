"""A series for programs: JUnit and KTAP with a case for each commit, KCIDB with what each run would send.

A commit fails here by what it is to blame for; what was there before it is said, and does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kbuild.errors import UserError
from kbuild.outcome import Status, to_json, worst
from kbuild.report import junit, ktap
from kbuild.report.entries import Judged, judged, unexplained, verdict_of
from kbuild.report.kcidb import kcidb, unjudged

if TYPE_CHECKING:
    from kbuild.seriesrecord import SeriesRecord

MAX_CHANGES = 40


def render_series_junit(series: SeriesRecord) -> str:
    """The XML document: one suite, with a case for each commit; the base is a property."""
    entries = judged(series)
    suite = junit.Suite("commits", properties={"source": series.source, "command": series.command})
    for one in entries:
        if one.entry.base:
            suite.properties["base"] = f"{one.title}: {one.entry.verdict or 'not judged'}"
            continue
        body = [line for group in one.blamed for line in junit.told(group[0])] + one.entry.evidence
        suite.cases.append(junit.Case(_name(one), "series", _seconds(one), one.status, _why(one), body, [*_said(one)]))
    if (more := unexplained(series, worst(case.status for case in suite.cases))) is not None:
        suite.cases.append(junit.Case("verdict", "series", 0, *more))
    return junit.document(series.id, series.started, [suite], sum(map(_seconds, entries)))


def render_series_ktap(series: SeriesRecord) -> str:
    """All lines: a test for each commit; the base is a diagnostic line."""
    entries = judged(series)
    head = [f"series {series.id}: {verdict_of(series)[0]}", series.source, series.command]
    head += [f"base {one.title}: {one.entry.verdict or 'not judged'}" for one in entries if one.entry.base]
    tests = []
    for one in entries:
        if not one.entry.base:
            lines = [line for group in one.blamed for line in ktap.told(group[0])]
            tests.append(ktap.Test(_name(one), one.status, _why(one), [*lines, *one.entry.evidence, *_said(one)]))
    if (more := unexplained(series, ktap.worst_of(tests))) is not None:
        tests.append(ktap.Test("verdict", *more))
    return ktap.document(head, tests)


def render_series_kcidb(series: SeriesRecord, origin: str) -> str:
    """What each run says, in one object. KCIDB's tests are of a kernel, not of what a patch is to blame for.

    A commit without a run, for its patch does not apply, is a checkout that is not valid.
    """
    whole: dict[str, Any] = {}
    known: set[tuple[str, str]] = set()
    for one in judged(series):
        data = kcidb(one.record, one.folder, origin) if one.record else unjudged(one.title, one.why, series.id, origin)
        for key, value in data.items():
            if key == "version":
                whole[key] = value
                continue
            # Runs of one source have one checkout, and known findings are the same issues.
            mine = [each for each in value if (key, each["id"]) not in known]
            known |= {(key, each["id"]) for each in mine}
            whole.setdefault(key, []).extend(mine)
    if not whole:
        raise UserError(f"{series.id}: there is nothing in it that KCIDB could be told of")
    return to_json(whole).decode() + "\n"


def _name(one: Judged) -> str:
    return f"{one.number}. {one.title}"


def _why(one: Judged) -> str:
    """In a line, why it is what it is."""
    if one.blamed:
        more = f", and {len(one.blamed) - 1} more" if len(one.blamed) > 1 else ""
        return f"{one.blamed[0][0].message}{more}"
    if one.status == Status.PASS:
        return one.special
    return one.entry.reason or one.why or one.special or "it was not judged"


def _said(one: Judged) -> Iterator[str]:
    """What else there is to say."""
    yield from [one.cells()] if one.entry.cells else []
    yield from [one.special] if one.special else []
    yield from (f"mends {name}" for name in one.entry.mended)
    yield from one.changes()[:MAX_CHANGES]


def _seconds(one: Judged) -> float:
    return sum(stage.seconds for stage in one.record.stages) if one.record else 0.0
