"""A run in plain text, fit for a reply on a mailing list: 72 columns, and nothing that was not run."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kbuild.outcome import Finding, Status
from kbuild.report import clean, faults, gist

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import Transcript

WIDTH = 72
MAX_FINDINGS = 40
"""Told of those that count, and of each list of others; findings that say the same are one."""
MAX_EVIDENCE = 24
"""Lines of evidence told of a finding."""
MAX_PLACES = 8
_LABEL = 12


def render_text(record: Record, folder: Path) -> str:
    """The whole summary. `folder`: of the run."""
    parts = [
        _head(record),
        _section("What was judged", _judged(record)),
        _section("Loaded on", _machines(record)),
        _section("Stages", _stages(record)),
        _section("Load orders", _orders(record)),
        _section("Failing allocations", _faults(record)),
        _section("Rules over the init code", _rules(record)),
        *_failures(record, folder),
        _section("Known, and not counted", _known(record)),
        _section("Not judged", _skipped(record)),
        _evidence(record, folder),
    ]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def _head(record: Record) -> Iterator[str]:
    word, _ = gist.verdict_of(record)
    what = clean.one_line(gist.asked(record)) or "a run"
    yield from _wrapped(f"kvm-kbuild {record.task} of {what}: {word}")
    if record.error:
        yield from _wrapped(clean.one_line(record.error), "  ")


def _section(title: str, body: Iterable[str]) -> list[str]:
    lines = list(body)
    return [f"{title}:", *lines] if lines else []


def _listed(entries: Iterable[str]) -> Iterator[str]:
    """Each entry in lines of its own, and no more of them than anybody reads."""
    every = list(entries)
    for entry in every[:MAX_FINDINGS]:
        yield from _wrapped(clean.one_line(entry), "  ", "    ")
    if len(every) > MAX_FINDINGS:
        yield f"  and {len(every) - MAX_FINDINGS} more, which are in the record"


def _judged(record: Record) -> Iterator[str]:
    tree = record.tree
    yield from _row("tree" if "version" in tree else "files", tree.get("identity", ""))
    yield from _row("commit", tree.get("commit", ""))
    yield from _row("patches", tree.get("patches", ""))
    yield from _row("kernel", record.kernel or "")
    profile = Path(record.profile).stem if record.profile else ""
    if profile:
        yield from _row("profile", profile + (f", flavour {record.flavour}" if record.flavour else ""))
    if "config" in record.artifacts:
        yield from _row(".config", "SHA-256")
        yield f"    {record.artifacts['config']}"
    for tool in ("gcc", "clang", "ld"):
        yield from _row(tool, record.tools.get(tool, ""))
    if any(stage.name == "files" for stage in record.stages):
        for name, digest in record.artifacts.items():
            yield from _wrapped(clean.one_line(name), "  ")
            yield f"    {digest}"


def _machines(record: Record) -> Iterator[str]:
    for host in gist.hosts(record):
        emulator = record.hosts.get(host, "not there")
        facts = record.machines.get(host)
        said = f"{emulator}, CPU model {facts.cpu}, {facts.cpus} CPU, {facts.memory_mb} MB" if facts else emulator
        yield from _row(host, said)
    if record.transcripts:
        yield "  All CPUs are emulated: nothing here ran on real hardware."


def _stages(record: Record) -> Iterator[str]:
    for stage in record.stages:
        said = gist.short_digests(stage.reason or stage.summary)
        yield from _row(stage.name, f"{stage.status or 'not finished'}: {said}")


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
                yield from _wrapped(f"{status} {total}: {', '.join(map(clean.one_line, names))}", "    ", "      ")


def _faults(record: Record) -> Iterator[str]:
    """Of each sweep how much of it was done; what went wrong is a finding."""
    rows = faults.sites(record.transcripts)
    for host, order in dict.fromkeys((row.host, row.order) for row in rows):
        mine = [row for row in rows if (row.host, row.order) == (host, order)]
        points = sum(row.points for row in mine)
        answers = ", ".join(sorted({answer for row in mine for answer in row.answers}))
        said = f"{order} on {host}: {points} failed, one at a time, at {len(mine)} call sites; the load gave {answers}"
        yield from _wrapped(clean.one_line(said), "  ", "    ")


def _rules(record: Record) -> Iterator[str]:
    if record.rules is None:
        return
    answers = ", ".join(f"{count} {word}" for word, count in record.rules["answers"].items())
    others = len(record.rules["other_kernels"])
    more = f"; {others} are for other kernels and were not asked" if others else ""
    yield from _wrapped(f"{record.rules['asked']} asked: {answers or 'no answer'}{more}", "  ")
    seen = Counter(one.seen for transcript in record.transcripts for one in transcript.observed)
    if seen:
        said = ", ".join(f"{count} times {word}" for word, count in seen.items())
        yield from _wrapped(f"held against traces of what ran: {said}", "  ")


def _failures(record: Record, folder: Path) -> Iterator[list[str]]:
    found = [[*_failure(group, folder)] for group in gist.groups(gist.counting(record))]
    found += [[*_untold(runs, folder)] for runs in gist.alike(gist.untold(record))]
    yield from found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        yield [f"And {len(found) - MAX_FINDINGS} more, which are in the record."]


def _failure(group: Sequence[Finding], folder: Path) -> Iterator[str]:
    finding = group[0]
    yield from _wrapped(f"{finding.status}: {clean.one_line(gist.title(finding))}", "", "  ")
    if len(group) > 1:
        places = [gist.place(one) for one in group[1 : MAX_PLACES + 1]]
        more = [f"and {len(group) - 1 - MAX_PLACES} more"] if len(group) - 1 > MAX_PLACES else []
        yield from _wrapped(f"also: {clean.one_line('; '.join([*places, *more]))}", "  ", "    ")
    yield from _wrapped(f"id: {clean.one_line(finding.id)}", "  ", "    ")
    if finding.expired:
        yield from _wrapped(clean.one_line(f"was known until {finding.expired}"), "  ", "    ")
    for line in clean.lines(finding.witness or gist.telling(finding.evidence), MAX_EVIDENCE):
        yield from _quoted(line)
    yield from _again(finding.reproduce, folder)


def _untold(runs: Sequence[Transcript], folder: Path) -> Iterator[str]:
    one = runs[0]
    more = f" and {len(runs) - 1} more of its runs" if len(runs) > 1 else ""
    said = f"{one.status}: {one.host}, {one.order}{more}: {one.reason or 'no reason given'}"
    yield from _wrapped(clean.one_line(said), "", "  ")
    yield from _again(one.reproduce, folder)


def _known(record: Record) -> Iterator[str]:
    known = Counter((one.id, one.known) for one in record.findings if one.known)
    told = [f"{name}{f' ({count} times)' if count > 1 else ''}: {why}" for (name, why), count in known.items()]
    unseen = record.known_not_seen
    told += [f"did not occur, although it is declared: {one.finding} ({one.why})" for one in unseen]
    return _listed(told)


def _skipped(record: Record) -> Iterator[str]:
    told = []
    for runs in gist.alike(one for one in record.transcripts if one.status == Status.SKIP):
        what = runs[0].order if len(runs) == 1 else f"{len(runs)} runs of {gist.order_of(runs[0])}"
        told.append(f"{what} on {runs[0].host}: {runs[0].reason}")
    for why, count in gist.skipped_rules(record).items():
        told.append(f"{count} {'rule' if count == 1 else 'rules'}: {why}")
    return _listed(told)


def _evidence(record: Record, folder: Path) -> Iterator[str]:
    """The line for a changelog, where there is something to testify; the tester's name is the tester's to give."""
    ran = [host for host in gist.hosts(record) if _passed(record, host)]
    if record.verdict == Status.PASS and ran:
        names = ", ".join(f"{host} ({record.hosts.get(host, '?').partition(' (')[0]})" for host in ran)
        yield from _wrapped(f"Tested-by: NAME <ADDRESS> # emulated: {names}", "", "  ")
        yield from _wrapped("That line stands for the orders named PASS above, and for nothing else.", "")
    else:
        yield from _wrapped("This run is no ground for a Tested-by line.")
    yield from _wrapped(f"Run {record.id}, {record.started[:19]} UTC; $RUN stands for its folder. All of it again:", "")
    yield from _command(record.command, folder)


def _passed(record: Record, host: str) -> bool:
    return any(one.host == host and one.status == Status.PASS for one in record.transcripts)


def _again(command: str | None, folder: Path) -> Iterator[str]:
    if command is not None:
        yield "  again:"
        yield from _command(command, folder)


def _command(command: str, folder: Path) -> Iterator[str]:
    """The command, one option to a line where it is too long for one; a word that is longer stays whole."""
    try:
        words = [clean.visible(word.replace(str(folder), "$RUN")) for word in shlex.split(command)]
    except ValueError:
        yield from _quoted(clean.one_line(command))
        return
    if not words:
        return
    if words[0].endswith("/inv"):
        words[0] = "inv"
    line = "    " + words[0]
    for part in _parts(words[1:]):
        if len(line) + len(part) + 3 > WIDTH:
            yield f"{line} \\"
            line = "        " + part
        else:
            line += " " + part
    yield line


def _parts(words: Sequence[str]) -> list[str]:
    """The words quoted, each option with its value."""
    parts: list[str] = []
    waiting = False
    for word in words:
        quoted = word if word.startswith("$RUN/") else shlex.quote(word)
        if waiting and not word.startswith("-"):
            parts[-1] += f" {quoted}"
        else:
            parts.append(quoted)
        waiting = word.startswith("--") and "=" not in word and parts[-1] == quoted
    return parts


def _row(label: str, text: str) -> Iterator[str]:
    if text:
        # A label that fills its column still has a blank behind it.
        yield from _wrapped(clean.one_line(text), f"  {label:{_LABEL - 1}} ", " " * (_LABEL + 2))


def _quoted(line: str) -> Iterator[str]:
    """A line of evidence: its own blanks stay, and what does not fit goes on further to the right."""
    line = line.expandtabs(8)
    first = "    " + line[: len(line) - len(line.lstrip())][:16]
    yield from _wrapped(line.strip(), first, first + "    ")


def _wrapped(text: str, first: str = "", later: str | None = None) -> list[str]:
    later = first if later is None else later
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return lines or [first.rstrip()]
