"""Where a module's bytes are, as a person reads it: takes what `inspect --json` says of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kbuild.report.terminal import plain, table

if TYPE_CHECKING:
    from rich.console import Console

MAX_FUNCTIONS = 10
"""The largest; all are in the data."""
MAX_CANDIDATES = 20


def render_layout(console: Console, module: dict[str, Any]) -> None:
    """Print a module's parts, its largest functions, and what could be freed with its init part."""
    size, layout = module["bytes"], module["layout"]
    parts = [f"{part} {size[part]}" for part in ("text", "data", "init", "exit")]
    parts[0] += f" ({layout['cold']} of it cold)"
    plain(console, f"\n{module['name']}: {', '.join(parts)}")
    functions = sorted(layout["functions"], key=lambda one: (-one["size"], one["name"]))
    rows = table()
    for name in ("largest functions", "bytes", "section"):
        rows.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for one in functions[:MAX_FUNCTIONS]:
        rows.add_row(one["name"], str(one["size"]), one["section"])
    if functions:
        console.print(rows)
    if len(functions) > MAX_FUNCTIONS:
        plain(console, f"… {len(functions) - MAX_FUNCTIONS} more functions with --json", style="dim")
    _candidates(console, layout["candidates"])


def _candidates(console: Console, candidates: list[dict[str, Any]]) -> None:
    if not candidates:
        return
    freed = sum(one["frees"] for one in candidates)
    plain(console, f"reached from init or exit code only ({freed} bytes would be freed when init has returned):")
    rows = table()
    for name in ("function", "bytes", "section", "could be", "referenced from"):
        rows.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for one in candidates[:MAX_CANDIDATES]:
        could_be = one["could_be"] + (" *" if one["static"] else "")
        callers = ", ".join(one["referenced_from"])
        rows.add_row(one["name"], str(one["size"]), one["section"], could_be, callers)
    console.print(rows)
    if len(candidates) > MAX_CANDIDATES:
        plain(console, f"… {len(candidates) - MAX_CANDIDATES} more with --json", style="dim")
    if any(one["static"] for one in candidates):
        text = "* this copy; a static function may be inlined elsewhere too, which its machine code does not tell"
        plain(console, text, style="dim")
