"""An inspection of module files, as a person reads it: takes what `inspect --json` prints."""

from __future__ import annotations

import io
import sys
from typing import IO, Any

from kbuild.outcome import Status
from kbuild.report.answers import render_answers, render_findings
from kbuild.report.differences import render_differences
from kbuild.report.flow import render_flow, render_summary
from kbuild.report.hazards import render_hazards
from kbuild.report.layout import render_layout, render_structs
from kbuild.report.terminal import console_for, plain, table, word


def render(
    data: dict[str, Any],
    stream: IO[str] | None = None,
    *,
    flow: bool = False,
    full: bool = False,
    by_rules: bool = False,
) -> None:
    """Print modules with their sizes and what they import and export, what else was asked for, and the findings.

    `flow`: the init flow as trees, too, folded to what rules mention (`by_rules`) or leads on, or in full.
    """
    console = console_for(stream or sys.stdout)
    sizes = table()
    for name in ("module", "text", "data", "init", "exit", "exports", "imports", "params", "from", "needs"):
        numeric = name not in ("module", "needs", "from")
        sizes.add_column(name, justify="right" if numeric else "left", no_wrap=name == "module")
    for module in data["modules"]:
        size = module["bytes"]
        providers = sorted({one["provider"] or one["by"] for one in module["imports"]})
        counts = [
            f"{sum((one['provider'] or one['by']) == name for one in module['imports'])} {name}" for name in providers
        ]
        sizes.add_row(
            module["name"],
            *(str(size[part]) for part in ("text", "data", "init", "exit")),
            *(str(len(module[key])) for key in ("exports", "imports", "parameters")),
            ", ".join(counts),
            ", ".join(module["dependencies"]) or "-",
        )
    console.print(sizes)
    magics = {module["vermagic"] for module in data["modules"]}
    for magic in sorted(map(str, magics)):
        plain(console, f"vermagic: {magic}", style="dim")
    for traits in sorted({tuple(module["traits"]) for module in data["modules"]}):
        names = [module["name"] for module in data["modules"] if tuple(module["traits"]) == traits]
        whose = "all" if len(names) == len(data["modules"]) else ", ".join(names)
        plain(console, f"{whose}: {', '.join(traits) or 'nothing out of the ordinary'}", style="dim")
    if "hazards" in data:
        render_hazards(data["hazards"], console)
    for module in data["modules"]:
        if "layout" in module:
            render_layout(console, module)
    render_structs(console, data["modules"])
    if "differences" in data:
        render_differences(data["differences"], console)
    if flow:
        console.print()
        render_flow(data["flow"], console, full=full, by_rules=by_rules)
    if data["flow"]:
        console.print()
        render_summary(data["flow"], console)
    render_answers(data["findings"], console)
    render_findings(data["findings"], console)
    console.print(f"\n{word(Status(data['verdict']))}")


def prepare() -> None:
    """Load what rendering takes, while there is nothing to show yet."""
    render({"modules": [], "findings": [], "flow": None, "verdict": Status.PASS}, io.StringIO())
