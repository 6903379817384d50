"""The call sites of a sweep as a table: how often each allocation failed, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbuild.outcome import RUN_OF, Status, worst

if TYPE_CHECKING:
    from rich.console import Console

    from kbuild.transcript import Transcript


@dataclass
class SiteRow:
    """A call site on one host, in one order."""

    host: str
    order: str
    site: str
    points: int = 0
    statuses: list[Status] = field(default_factory=list)
    answers: set[str] = field(default_factory=set)
    """What the load returned: `ENOMEM`, `success`."""
    tolerated: str = ""
    after: Status | None = None
    """Of what was done once behind such a failure: everything unloaded, each file read, power-off."""

    @property
    def worst(self) -> Status:
        """Of all its points."""
        return worst(self.statuses)


def sites(transcripts: Iterable[Transcript]) -> list[SiteRow]:
    """The rows of all sweeps, in the order in which their loads come to them."""
    rows: dict[tuple[str, str, str], SiteRow] = {}
    for one in transcripts:
        order, _, run = one.order.partition(RUN_OF)
        for step in one.steps:
            if step.action != "inject" or "site" not in step.detail or one.status == Status.SKIP:
                continue
            site = step.detail["site"]
            row = rows.setdefault((one.host, order, site), SiteRow(one.host, order, site))
            if "allocation" not in step.detail or run == site:
                row.after = one.status
                continue
            row.points += 1
            row.statuses.append(one.status)
            row.answers.add(step.errno or "success")
            row.tolerated = step.detail.get("tolerated", row.tolerated)
    return [row for row in rows.values() if row.points]


def print_sites(console: Console, transcripts: Iterable[Transcript]) -> None:
    """One table for all sweeps of a record; nothing where there is none."""
    from rich.markup import escape

    from kbuild.report.terminal import plain, table, word

    found = sites(transcripts)
    if not found:
        return
    rows = table()
    for name in ("host", "order", "fails in", "points", "load", "outcome", "afterwards"):
        rows.add_column(f"\n{name}", justify="right" if name == "points" else "left", overflow="fold")
    for row in found:
        rows.add_row(
            row.host,
            row.order,
            escape(row.site),
            str(row.points),
            ", ".join(sorted(row.answers)),
            word(row.worst),
            word(row.after),
        )
    console.print(rows)
    for site, why in dict.fromkeys((row.site, row.tolerated) for row in found if row.tolerated):
        plain(console, f"tolerated: {site}: {why}", style="dim")
