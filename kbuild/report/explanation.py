"""Why a Kconfig symbol has its value, as a person reads it: takes what `explain --json` prints."""

from __future__ import annotations

import sys
from typing import IO, Any

from kbuild.report.terminal import console_for, plain


def render(data: dict[str, Any], stream: IO[str] | None = None) -> None:
    """Print the answer first, then what it rests on."""
    console = console_for(stream or sys.stdout)
    plain(console, data["answer"], style="bold")
    plain(console, f"CONFIG_{data['symbol']}={data['value']}  ({data['type']})")
    if data["requested"]:
        plain(console, f"requested: {data['requested']['value']} at {_place(data['requested']['place'])}")
    for definition in data["definitions"]:
        prompt = f'"{definition["prompt"]}"' if definition["prompt"] else "no prompt: a person cannot set it"
        plain(console, f"\ndefined at {_place(definition['place'])}: {prompt}")
        for part in definition["depends"]:
            holds = part["value"] != "n"
            plain(console, f"  {part['word']} {part['expression']}: {part['value']}", style=None if holds else "red")
            for operand in part["operands"]:
                where = _place(operand["place"]) if operand.get("place") else "defined nowhere"
                plain(console, f"      {operand['name']}={operand['value']}  ({where})", style="dim")
    for title, key in (("selected by", "selected_by"), ("implied by", "implied_by")):
        for one in data[key]:
            if one["value"] != "n":
                condition = f" if {one['condition']}" if one["condition"] not in ("", "y") else ""
                plain(console, f"{title} {one['symbol']}{condition} ({_place(one['place'])})")
        others = ", ".join(one["symbol"] for one in data[key] if one["value"] == "n")
        if others:
            plain(console, f"not {title}, though it could be: {others}", style="dim")
    for one in data["defaults"]:
        if one["active"]:
            plain(console, f"default {one['value']}" + (f" if {one['condition']}" if one["condition"] else ""))
            break
    for one in data["ranges"]:
        if one["active"]:
            plain(console, f"range {one['low']} to {one['high']}")
            break
    if data["choice"]:
        plain(console, f"one of a choice: {', '.join(data['choice'])}; chosen: {data['choice_selection']}")
    if data["note"]:
        plain(console, f"\n{data['note']}", style="yellow")
    if data["help"]:
        plain(console, f"\n{data['help']}", style="dim")


def _place(place: dict[str, Any] | None) -> str:
    return f"{place['file']}:{place['line']}" if place else "unknown place"
