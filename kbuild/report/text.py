"""A run in plain text, fit for a reply on a mailing list: 72 columns, and nothing that was not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kbuild.outcome import Finding, Status
from kbuild.report import clean, faults, gist
from kbuild.report.mail import again, commanded, labelled, listed, mail, quoted, section, wrapped

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import Transcript

MAX_FINDINGS = 40
"""Told of those that count; findings that say the same are one."""
MAX_EVIDENCE = 24
"""Lines of evidence told of a finding."""
MAX_PLACES = 8


def render_text(record: Record, folder: Path) -> str:
    """The whole summary. `folder`: of the run."""
    parts = [
        _head(record),
        section("What was judged", _judged(record)),
        section("Loaded on", _machines(record)),
        section("Stages", _stages(record)),
        section("Load orders", _orders(record)),
        section("Failing allocations", _faults(record)),
        section("Rules over the init code", _rules(record)),
        *_failures(record, folder),
        section("Known, and not counted", _known(record)),
        section("Not judged", _skipped(record)),
        _evidence(record, folder),
    ]
    return mail(parts)


def _head(record: Record) -> Iterator[str]:
    word, _ = gist.verdict_of(record)
    what = clean.one_line(gist.asked(record)) or "a run"
    yield from wrapped(f"kvm-kbuild {record.task} of {what}: {word}")
    if record.error:
        yield from wrapped(clean.one_line(record.error), "  ")


def _judged(record: Record) -> Iterator[str]:
    tree = record.tree
    yield from labelled("tree" if "version" in tree else "files", tree.get("identity", ""))
    yield from labelled("commit", tree.get("commit", ""))
    yield from labelled("patches", tree.get("patches", ""))
    yield from labelled("kernel", record.kernel or "")
    profile = Path(record.profile).stem if record.profile else ""
    if profile:
        yield from labelled("profile", profile + (f", flavour {record.flavour}" if record.flavour else ""))
    if "config" in record.artifacts:
        yield from labelled(".config", "SHA-256")
        yield f"    {record.artifacts['config']}"
    for tool in ("gcc", "clang", "ld"):
        yield from labelled(tool, record.tools.get(tool, ""))
    if any(stage.name == "files" for stage in record.stages):
        for name, digest in record.artifacts.items():
            yield from wrapped(clean.one_line(name), "  ")
            yield f"    {digest}"


def _machines(record: Record) -> Iterator[str]:
    for host in gist.hosts(record):
        yield from labelled(host, gist.machine(record.hosts.get(host, "not there"), record.machines.get(host)))
    for line in gist.hardware(gist.cpus_of(record)):
        yield from wrapped(clean.one_line(line), "  ")


def _stages(record: Record) -> Iterator[str]:
    for stage in record.stages:
        said = gist.short_digests(stage.reason or stage.summary)
        yield from labelled(stage.name, f"{stage.status or 'not finished'}: {said}")


def _orders(record: Record) -> Iterator[str]:
    """Of each host, by outcome, the worst first."""
    for host in gist.hosts(record):
        yield f"  {host}"
        mine = [one for one in record.transcripts if one.host == host]
        for status in Status:
            counts = Counter(gist.order_of(one) for one in mine if one.status == status)
            several = {gist.order_of(one) for one in mine if one.order != gist.order_of(one)}
            names = [f"{order} ({count} runs)" if order in several else order for order, count in counts.items()]
            if names:
                total = sum(counts.values())
                yield from wrapped(f"{status} {total}: {', '.join(map(clean.one_line, names))}", "    ", "      ")


def _faults(record: Record) -> Iterator[str]:
    """Of each sweep how much of it was done; what went wrong is a finding."""
    rows = faults.sites(record.transcripts)
    for host, order in dict.fromkeys((row.host, row.order) for row in rows):
        mine = [row for row in rows if (row.host, row.order) == (host, order)]
        points = sum(row.points for row in mine)
        answers = ", ".join(sorted({answer for row in mine for answer in row.answers}))
        said = f"{order} on {host}: {points} failed, one at a time, at {len(mine)} call sites; the load gave {answers}"
        yield from wrapped(clean.one_line(said), "  ", "    ")


def _rules(record: Record) -> Iterator[str]:
    if record.rules is None:
        return
    answers = ", ".join(f"{count} {word}" for word, count in record.rules["answers"].items())
    others = len(record.rules["other_kernels"])
    more = f"; {others} are for other kernels and were not asked" if others else ""
    yield from wrapped(f"{record.rules['asked']} asked: {answers or 'no answer'}{more}", "  ")
    seen = Counter(one.seen for transcript in record.transcripts for one in transcript.observed)
    if seen:
        said = ", ".join(f"{count} times {word}" for word, count in seen.items())
        yield from wrapped(f"held against traces of what ran: {said}", "  ")


def _failures(record: Record, folder: Path) -> Iterator[list[str]]:
    found = [[*failure(group, folder)] for group in gist.groups(gist.counting(record))]
    found += [[*_untold(runs, folder)] for runs in gist.alike(gist.untold(record))]
    yield from found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        yield [f"And {len(found) - MAX_FINDINGS} more, which are in the record."]


def failure(group: Sequence[Finding], folder: Path) -> Iterator[str]:
    """Findings that say the same: what happened, where, what shows it, and the command for it."""
    finding = group[0]
    yield from wrapped(f"{finding.status}: {clean.one_line(gist.title(finding))}", "", "  ")
    if len(group) > 1:
        places = [gist.place(one) for one in group[1 : MAX_PLACES + 1]]
        more = [f"and {len(group) - 1 - MAX_PLACES} more"] if len(group) - 1 > MAX_PLACES else []
        yield from wrapped(f"also: {clean.one_line('; '.join([*places, *more]))}", "  ", "    ")
    yield from wrapped(f"id: {clean.one_line(finding.id)}", "  ", "    ")
    if finding.expired:
        yield from wrapped(clean.one_line(f"was known until {finding.expired}"), "  ", "    ")
    for line in clean.lines(finding.witness or gist.telling(finding.evidence), MAX_EVIDENCE):
        yield from quoted(line)
    yield from again(finding.reproduce, folder)


def _untold(runs: Sequence[Transcript], folder: Path) -> Iterator[str]:
    one = runs[0]
    more = f" and {len(runs) - 1} more of its runs" if len(runs) > 1 else ""
    said = f"{one.status}: {one.host}, {one.order}{more}: {one.reason or 'no reason given'}"
    yield from wrapped(clean.one_line(said), "", "  ")
    yield from again(one.reproduce, folder)


def _known(record: Record) -> Iterator[str]:
    known = Counter((one.id, one.known) for one in record.findings if one.known is not None)
    told = [f"{name}{f' ({count} times)' if count > 1 else ''}: {why}" for (name, why), count in known.items()]
    unseen = record.known_not_seen
    told += [f"did not occur, although it is declared: {one.finding} ({one.why})" for one in unseen]
    return listed(told)


def _skipped(record: Record) -> Iterator[str]:
    told = []
    for runs in gist.alike(one for one in record.transcripts if one.status == Status.SKIP):
        what = runs[0].order if len(runs) == 1 else f"{len(runs)} runs of {gist.order_of(runs[0])}"
        told.append(f"{what} on {runs[0].host}: {runs[0].reason}")
    for why, count in gist.skipped_rules(record).items():
        told.append(f"{count} {'rule' if count == 1 else 'rules'}: {why}")
    return listed(told)


def _evidence(record: Record, folder: Path) -> Iterator[str]:
    """The line for a changelog, where there is something to testify; the tester's name is the tester's to give."""
    ran = [host for host in gist.hosts(record) if _passed(record, host)]
    if record.verdict == Status.PASS and ran:
        names = gist.testified({host: record.hosts.get(host, "?") for host in ran}, gist.cpus_of(record))
        yield from wrapped(f"Tested-by: NAME <ADDRESS> # {names}", "", "  ")
        yield from wrapped("That line stands for the orders named PASS above, and for nothing else.", "")
    else:
        yield from wrapped("This run is no ground for a Tested-by line.")
    yield from wrapped(f"Run {record.id}, {record.started[:19]} UTC; $RUN stands for its folder. All of it again:", "")
    yield from commanded(record.command, folder)


def _passed(record: Record, host: str) -> bool:
    return any(one.host == host and one.status == Status.PASS for one in record.transcripts)
