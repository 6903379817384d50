"""KVM's selftests as a table: which passed on which host, and why others did not run."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from kbuild.outcome import RUN_OF, Status, worst
from kbuild.report.terminal import plain, table, word
from kbuild.transcript import Transcript

Row = tuple[str, str]
"""An order and a test."""


def tests(transcripts: Iterable[Transcript]) -> dict[Row, dict[str, list[Status]]]:
    """The outcomes of each test of an order, by host."""
    rows: dict[Row, dict[str, list[Status]]] = {}
    for one in transcripts:
        for step in one.steps:
            if step.action == "selftest" and "test" in step.detail:
                row = rows.setdefault((one.order.partition(RUN_OF)[0], step.detail["test"]), {})
                row.setdefault(one.host, []).append(step.status)
    return rows


def print_tests(console: Console, transcripts: list[Transcript]) -> None:
    """One table for all of a record; nothing where there is none."""
    from rich.markup import escape

    found = tests(transcripts)
    if not found:
        return
    hosts = list(dict.fromkeys(one.host for one in transcripts))
    rows = table()
    for name in ("order", "selftest", *hosts):
        rows.add_column(f"\n{name}")
    for (order, test), outcomes in found.items():
        cells = (word(worst(outcomes[host]) if host in outcomes else None) for host in hosts)
        rows.add_row(order, escape(test), *cells)
    console.print(rows)
    for host in hosts:
        said = (s for one in transcripts if one.host == host for s in one.steps if s.action == "selftest")
        for reason in dict.fromkeys(s.reason for s in said if s.status == Status.SKIP and s.reason):
            plain(console, f"skipped: {host}, {reason}", style="dim")
