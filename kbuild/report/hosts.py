"""Hosts, as a person reads them: takes what `inv host.list --json` and `inv host.check --json` print."""

from __future__ import annotations

import sys
from typing import IO, Any

from kbuild.report import clean
from kbuild.report.terminal import console_for, plain, table


def render(data: dict[str, Any], *, stream: IO[str] | None = None) -> None:
    """Print a line for each host and, where they were asked, what keeps each from its work, and from more."""
    from rich.markup import escape

    console = console_for(stream or sys.stdout)
    asked = data["asked"]
    rows = table()
    for name in ("host", "kind", "gives", *(("use", "what it is") if asked else ("file",))):
        rows.add_column(name, no_wrap=name in ("host", "kind", "use"))
    for one in data["hosts"]:
        last = ("no" if one["hindrances"] else "yes", one["what"]) if asked else (one["file"],)
        cells = (one["host"], one["kind"], " ".join(one["gives"]), *last)
        rows.add_row(*(escape(clean.one_line(cell)) for cell in cells))
    console.print(rows)
    if not asked:
        plain(console, "what can be used now: inv host.check", style="dim")
    for one in data["hosts"]:
        for reason in one.get("hindrances", ()):
            plain(console, clean.one_line(f"{one['host']}: {reason}"), style="yellow")
        for lack in one.get("missing", ()):
            plain(console, clean.one_line(f"{one['host']}: for more: {lack}"))
