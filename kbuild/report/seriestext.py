"""A series in plain text, fit for a reply on a mailing list: which patch is to blame for what, and what was run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kbuild.cpus import Cpus
from kbuild.outcome import Status
from kbuild.report import clean, gist
from kbuild.report.entries import Judged, cpus_of, hosts_of, judged, verdict_of, what_of
from kbuild.report.mail import commanded, labelled, listed, mail, quoted, section, wrapped
from kbuild.report.text import failure

if TYPE_CHECKING:
    from kbuild.seriesrecord import SeriesRecord

MAX_FINDINGS = 12
"""Of one commit; findings that say the same are one."""
MAX_CHANGES = 12
"""Lines for what one commit changed in the objects."""
MAX_EVIDENCE = 40


def render_series_text(series: SeriesRecord) -> str:
    """The whole summary."""
    entries = judged(series)
    mine = [one for one in entries if not one.entry.base]
    parts = [
        _head(series),
        section(f"{what_of(mine).capitalize()}s, oldest first, each held against the one before it", _table(entries)),
        section("Loaded on", _hosts(entries)),
        *(_blame(one) for one in entries if one.entry.blamed or one.entry.reason),
        section("Mended", _mended(entries)),
        section("What changed in the modules", _changes(entries)),
        _evidence(series, entries),
    ]
    return mail(parts)


def _head(series: SeriesRecord) -> Iterator[str]:
    yield from wrapped(f"kvm-kbuild series of {clean.one_line(series.source)}: {verdict_of(series)[0]}")


def _table(entries: Sequence[Judged]) -> Iterator[str]:
    for one in entries:
        outcome = "base" if one.entry.base else str(one.status)
        yield from wrapped(clean.one_line(f"{outcome:5} {one.title}"), "  ", "        ")
        told = "; ".join(part for part in (one.cells(), one.special) if part)
        yield from wrapped(clean.one_line(told), "        ") if told else ()


def _hosts(entries: Sequence[Judged]) -> Iterator[str]:
    hosts = hosts_of([*entries])
    cpus = cpus_of([*entries])
    for host, said in hosts.items():
        yield from labelled(host, gist.emulator(said, cpus.get(host, Cpus.EMULATED)))
    for line in gist.hardware(cpus):
        yield from wrapped(clean.one_line(line), "  ")


def _blame(one: Judged) -> Iterator[str]:
    """What a commit is to blame for; of one without a run, why."""
    what = f", {len(one.entry.blamed)} in all" if one.entry.blamed else ""
    yield from wrapped(clean.one_line(f"Blamed on {one.title}{what}:" if one.blamed else f"{one.title}:"), "", "  ")
    if one.entry.reason:
        yield from wrapped(clean.one_line(one.entry.reason), "  ")
    for line in clean.lines(one.entry.evidence, MAX_EVIDENCE):
        yield from quoted(line)
    for group in one.blamed[:MAX_FINDINGS]:
        yield ""
        yield from failure(group, one.folder)
    if len(one.blamed) > MAX_FINDINGS:
        yield f"  and {len(one.blamed) - MAX_FINDINGS} more, which are in the record"
    if one.blamed:
        yield f"  ($RUN is the folder of run {one.entry.run}.)"


def _mended(entries: Sequence[Judged]) -> Iterator[str]:
    return listed(f"{name}, by {one.name}" for one in entries for name in one.entry.mended)


def _changes(entries: Sequence[Judged]) -> Iterator[str]:
    for one in entries:
        lines = one.changes()
        if lines:
            yield from wrapped(clean.one_line(one.title), "  ", "    ")
        for line in lines[:MAX_CHANGES]:
            yield from wrapped(clean.one_line(line), "    ", "      ")
        if len(lines) > MAX_CHANGES:
            yield f"    and {len(lines) - MAX_CHANGES} more, which are in the record"


def _evidence(series: SeriesRecord, entries: Sequence[Judged]) -> Iterator[str]:
    """The line for a changelog, where there is something to testify; the tester's name is the tester's to give."""
    ran = _passed(entries)
    if series.verdict == Status.PASS and ran:
        names = gist.testified(ran, cpus_of([*entries]))
        yield from wrapped(f"Tested-by: NAME <ADDRESS> # {names}", "", "  ")
        yield from wrapped("That line stands for the hosts named PASS above, and for nothing else.", "")
    else:
        yield from wrapped("This series is no ground for a Tested-by line.")
    yield from wrapped(f"Series {series.id}, {series.started[:19]} UTC. All of it again:", "")
    yield from commanded(series.command, Path("/nowhere"))


def _passed(entries: Sequence[Judged]) -> dict[str, str]:
    """The hosts on which each commit of the series passed."""
    mine = [one.entry for one in entries if not one.entry.base]
    hosts = hosts_of([*entries])
    return {
        host: said for host, said in hosts.items() if mine and all(one.cells.get(host) == Status.PASS for one in mine)
    }
