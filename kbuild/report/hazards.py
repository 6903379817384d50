"""Hazards as a person reads them: takes the `hazards` of `inspect --json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kbuild.report.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

IN_FULL = 3
"""Of hazards up to this level both places are shown; the others are one line each."""
SMALL = 1 << 16


def render_hazards(found: dict[str, Any], console: Console) -> None:
    """Print them under a headline for each level."""
    hazards = found["found"]
    plain(console, f"\nhazards: {len(hazards)}, what matters most first; they do not count", style="bold")
    level = 0
    for one in hazards:
        if one["level"] != level:
            level = one["level"]
            plain(console, f"\n{level}. {found['levels'][level - 1]}", style="cyan")
        plain(console, f"  {hazard_line(one)}")
        for line in hazard_places(one) if level <= IN_FULL else ():
            plain(console, f"      {line}", style="dim")
    for place in found["not_followed"]:
        plain(console, f"not all that can happen is known behind {place}", style="yellow")


def hazard_line(one: dict[str, Any]) -> str:
    """`kvm-intel: enable_ept (parameter ept): vmx_init() reads it as 1, hardware_setup() writes 0`."""
    offsets = [f"{offset:#x}" for offset in one["offsets"]]
    where = f" at {', '.join(offsets)}" if offsets != ["0x0"] else ""
    kind = one["kind"] if one["kind"] != "data" else ""
    parameter = f" {one['parameter']}" if one["parameter"] else ""
    of = "" if one["of"] == one["module"] else "the kernel's " if one["of"] is None else f"{one['of']}'s "
    told = f"{one['module']}: {of}{one['object']}{where}" + (f" ({kind}{parameter})" if kind + parameter else "")
    read, written = (_number(one[side]["value"]) for side in ("read", "write"))
    as_number = f" as {read}" if read else ""
    return f"{told}: {one['reader']}() reads it{as_number}, {one['writer']}() writes {written or 'it'}"


def hazard_places(one: dict[str, Any]) -> Iterator[str]:
    """Where it is read and written, each with the calls that led there, from the innermost outwards."""
    for what, side in (("read at", "read"), ("written at", "write")):
        calls = "".join(f" < {place}" for place in reversed(one[side]["chain"]))
        yield f"{what} {one[side]['at']}{calls}"


def _number(value: int | str | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value) if value < SMALL else f"{value:#x}"
