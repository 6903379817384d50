"""A run as a person takes it in at a glance: verdict, stages, host × order, what counts and how to see it again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from kbuild.outcome import Finding, Status
from kbuild.report import gist

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kbuild.record import Record
    from kbuild.transcript import Transcript

STYLES = {
    Status.FAIL: "bold red",
    Status.ERROR: "bold yellow",
    Status.MISS: "bold magenta",
    Status.PASS: "green",
    Status.DONE: "cyan",
    Status.SKIP: "dim",
}
MAX_EVIDENCE = 12
"""Lines of evidence shown for a finding; the record has all."""
WITNESS_HEAD = 2
"""Of these, lines from the beginning of a witness that has more."""
MANY_HOSTS = 4
"""More of them have no room for their names in one line."""
MAX_PLACES = 8
"""Further places shown for a finding that came in several."""


def console_for(stream: IO[str]) -> Console:
    """A console that fits the stream: a file or pipe has no width of its own, and lines there are for grep."""
    from kbuild.report.consoles import console_on

    return console_on(stream, width=None if stream.isatty() else 140)


def render(record: Record, stream: IO[str] | None = None) -> None:
    """Print a run's summary."""
    from kbuild.record import runs_home

    console = console_for(stream or sys.stdout)
    _headline(console, record)
    console.print(_stages(record))
    if record.transcripts:
        from kbuild.report.observed import observed

        console.print(_matrix(record))
        if (seen := observed(record.transcripts)) is not None:
            console.print(seen)
        from kbuild.report.faults import print_sites

        print_sites(console, record.transcripts)
        from kbuild.report.selftests import print_tests

        print_tests(console, record.transcripts)
    _findings(console, record)
    if any(stage.name == "files" for stage in record.stages):
        console.print("\nSHA-256 of the files that were judged:")
        for name, digest in record.artifacts.items():
            plain(console, f"{digest}  {name}", style="dim")
    if not record.abridged:
        plain(console, f"record: {runs_home() / record.id}", style="dim")
        what = "with logs and the init flow" if record.transcripts else "for somebody else"
        plain(console, f"a page {what}: inv report {record.id} --format html --output FILE.html", style="dim")


def plain(console: Console, text: str, style: str | None = None) -> None:
    """Print text that came from elsewhere: nothing in it is markup, and no line is broken."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def table() -> Table:
    """A table without lines: its columns can be cut and sorted in a shell."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))


def word(status: Status | None) -> str:
    """An outcome in its colour, as markup."""
    return f"[{STYLES[status]}]{status}[/]" if status else "[dim]-[/]"


def _headline(console: Console, record: Record) -> None:
    from rich.text import Text

    verdict, status = gist.verdict_of(record)
    what = gist.identity(record)
    parts = [gist.asked(record), f"({what})" if what else "", f"kernel {record.kernel}" if record.kernel else ""]
    console.print(
        Text.assemble((verdict, STYLES[status]), "  ", "  ".join(part for part in parts if part)), soft_wrap=True
    )
    if record.error:
        plain(console, record.error)


def _stages(record: Record) -> Table:
    from rich.markup import escape

    rows = table()
    rows.add_column("stage")
    rows.add_column("outcome")
    rows.add_column("seconds", justify="right")
    rows.add_column("")
    for stage in record.stages:
        rows.add_row(
            stage.name,
            word(stage.status),
            f"{stage.seconds:.1f}",
            escape(gist.short_digests(stage.reason or stage.summary)),
        )
    return rows


def _matrix(record: Record) -> Table:
    """Orders down, hosts across. The runs of an order that has several are one row, and counted."""
    hosts = gist.hosts(record)
    rows = table()
    rows.add_column("\norder", vertical="bottom")
    for host in hosts:
        # Many names beside each other are stacked, and none is cut: most differ in their ends only.
        name = host.replace("-", "-\n") if len(hosts) > MANY_HOSTS else host
        rows.add_column(f"\n{name}", overflow="fold")
    for order, row in gist.cells(record).items():
        rows.add_row(order, *(_cell(row.get(host, [])) for host in hosts))
    return rows


def _cell(runs: Sequence[Transcript]) -> str:
    """An outcome; of several runs how many had which, the worst first."""
    if [one.order for one in runs] in ([], [*map(gist.order_of, runs)]):
        return word(runs[0].status if runs else None)
    counts = Counter(one.status for one in runs)
    return ", ".join(f"{word(status)} {counts[status]}" for status in Status if counts[status])


def _findings(console: Console, record: Record) -> None:
    for group in gist.groups(gist.counting(record)):
        _finding(console, group)
    for runs in gist.alike(gist.untold(record)):
        transcript = runs[0]
        console.print(f"\n{word(transcript.status)} ", end="")
        more = f" and {len(runs) - 1} more of its runs" if len(runs) > 1 else ""
        plain(console, f"{transcript.host}, {transcript.order}{more}: {transcript.reason or 'no reason given'}")
        if transcript.reproduce:
            plain(console, f"  again: {transcript.reproduce}")
    for runs in gist.alike([one for one in record.transcripts if one.status == Status.SKIP]):
        what = runs[0].order if len(runs) == 1 else f"{len(runs)} runs of {gist.order_of(runs[0])}"
        plain(console, f"skipped: {what} on {runs[0].host}: {runs[0].reason}", style="dim")
    for why, count in gist.skipped_rules(record).items():
        plain(console, f"skipped: {count} {'rule' if count == 1 else 'rules'}: {why}", style="dim")
    known: dict[tuple[str, str], list[Finding]] = {}
    for finding in record.findings:
        if finding.known is not None:
            stage, kind, _, *cause = [*finding.id.split(":"), "", "", ""]
            known.setdefault((f"{stage}:{kind}:{':'.join(cause)}", finding.known), []).append(finding)
    for (_, reason), group in known.items():
        names = Counter(one.id for one in group)
        name, *others = names
        first = group[0]
        often = f", {names[name]} times" if names[name] > 1 else ""
        said = first.message if first.answer is None else gist.why(first)
        also = f"; also of {', '.join(other.split(':')[2] for other in others)}" if others else ""
        plain(console, f"known{often}: {name}: {said} ({reason}){also}", style="dim")
    for finding in record.findings:
        if finding.known is None and finding.status == Status.DONE:
            plain(console, f"for information: {finding.message}", style="dim")
    for unseen in record.known_not_seen:
        plain(console, f"known, but did not occur: {unseen.finding} ({unseen.reason})", style="yellow")


def _finding(console: Console, group: Sequence[Finding]) -> None:
    """What happened, its evidence or witness and the command for the first place; the other places by name."""
    finding = group[0]
    console.print(f"\n{word(finding.status)} ", end="")
    plain(console, gist.title(finding))
    if len(group) > 1:
        places = [gist.place(one) for one in group[1 : MAX_PLACES + 1]]
        more = [f"and {len(group) - 1 - MAX_PLACES} more"] if len(group) - 1 > MAX_PLACES else []
        plain(console, f"  also: {'; '.join([*places, *more])}")
    plain(console, f"  id: {finding.id}", style="dim")
    if finding.expired:
        plain(console, f"  was known until {finding.expired}", style="yellow")
    evidence(console, finding.evidence, finding.witness, "in the record")
    if finding.reproduce:
        plain(console, f"  again: {finding.reproduce}")


def evidence(console: Console, lines: Sequence[str], witness: Sequence[str], where: str) -> None:
    """Evidence from its beginning, a witness from both ends, for it ends with what happened too early; not all of it.

    `where`: where the rest is.
    """
    told = witness or gist.telling(lines)
    left = len(witness or lines) - min(len(told), MAX_EVIDENCE)
    head = WITNESS_HEAD if witness and left else MAX_EVIDENCE
    for line in told[:head]:
        plain(console, f"    {line}")
    if left:
        plain(console, f"    … {left} more lines {where}", style="dim")
    for line in told[len(told) - (MAX_EVIDENCE - head) :]:
        plain(console, f"    {line}")
