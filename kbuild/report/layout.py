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
    from rich.markup import escape

    rows = table()
    for name in ("largest functions", "bytes", "section"):
        rows.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for one in functions[:MAX_FUNCTIONS]:
        rows.add_row(escape(one["name"]), str(one["size"]), escape(one["section"]))
    if functions:
        console.print(rows)
    if len(functions) > MAX_FUNCTIONS:
        plain(console, f"… {len(functions) - MAX_FUNCTIONS} more functions with --json", style="dim")
    _candidates(console, layout["candidates"])


def _candidates(console: Console, candidates: list[dict[str, Any]]) -> None:
    if not candidates:
        return
    from rich.markup import escape

    freed = sum(one["frees"] for one in candidates)
    plain(console, f"reached from init or exit code only ({freed} bytes would be freed when init has returned):")
    rows = table()
    for name in ("function", "bytes", "section", "could be", "referenced from"):
        rows.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for one in candidates[:MAX_CANDIDATES]:
        could_be = one["could_be"] + (" *" if one["static"] else "")
        callers = ", ".join(one["referenced_from"])
        rows.add_row(escape(one["name"]), str(one["size"]), escape(one["section"]), could_be, escape(callers))
    console.print(rows)
    if len(candidates) > MAX_CANDIDATES:
        plain(console, f"… {len(candidates) - MAX_CANDIDATES} more with --json", style="dim")
    if any(one["static"] for one in candidates):
        text = "* this copy; a static function may be inlined elsewhere too, which its machine code does not tell"
        plain(console, text, style="dim")


def render_structs(console: Console, modules: list[dict[str, Any]]) -> None:
    """Print each struct that was asked for once for all modules in which it is the same."""
    for number in range(len(modules[0]["structs"]) if modules else 0):
        same: list[tuple[dict[str, Any], list[str]]] = []
        for module in modules:
            one = module["structs"][number]
            names = next((names for other, names in same if other == one), None)
            if names is None:
                same.append((one, names := []))
            names.append(module["name"])
        known = [(one, names) for one, names in same if one["source"]]
        for one, names in known:
            _struct(console, one, ", ".join(names))
        for one, names in same if not known else ():
            plain(console, f"\n{one['name']}: {one['why']} ({', '.join(names)})")


def _struct(console: Console, one: dict[str, Any], modules: str) -> None:
    plain(console, f"\n{one['kind']} {one['name']}: {one['size']} bytes ({modules}; from {one['source']})")
    from rich.markup import escape

    rows = table()
    for name in ("offset", "bytes", "member", "type"):
        rows.add_column(name, justify="right" if name in ("offset", "bytes") else "left", overflow="fold")
    for member in one["members"]:
        bits = f":{member['bits']}" if member["bits"] is not None else ""
        offset = f"{member['offset']}.{member['bit']}" if bits and member["bit"] else str(member["offset"])
        size = "-" if bits or member["size"] is None else str(member["size"])
        rows.add_row(offset, size, escape((member["name"] or "-") + bits), escape(member["type"]))
    console.print(rows)
