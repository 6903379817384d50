"""What differs between two builds of modules, as a person reads it: takes the `differences` of `inspect --json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kbuild.report.calls import called
from kbuild.report.hazards import hazard_line, hazard_places
from kbuild.report.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {"came": "+", "went": "-"}
STYLES = {"came": "green", "went": "red"}
MAX_SHOWN = 40
"""Lines of one kind; the JSON has all."""


def render_differences(found: dict[str, Any], console: Console) -> None:
    """Print what a reviewer looks at: sizes, symbols, exports and imports, parameters, then findings."""
    same = [module["name"] for module in found["modules"] if module["change"] == "same"]
    for module in found["modules"]:
        if module["change"] != "same":
            _module(module, console)
    if same:
        plain(console, f"\nsame bytes: {', '.join(same)}", style="dim")
    for tree in found["flow"]:
        plain(console, f"\n{_mark(tree)} {tree['function']}()  {tree['module']}, {tree['entry']}", style="bold")
        _calls(tree["calls"], 1, console)
    if found["findings"]:
        plain(console, "\nfindings that differ:", style="bold")
    for one in found["findings"]:
        states = f"{one['before'] or 'none'} → {one['after'] or 'none'}"
        plain(console, f"{_mark(one)} {one['id']}: {states}", style=STYLES.get(one["change"], "yellow"))
    if found.get("hazards"):
        plain(console, "\nhazards that differ:", style="bold")
    for one in found.get("hazards", ()):
        plain(console, f"{_mark(one)} {hazard_line(one)}", style=STYLES[one["change"]])
        for line in hazard_places(one) if one["change"] == "came" else ():
            plain(console, f"    {line}")


def _module(module: dict[str, Any], console: Console) -> None:
    name = module["name"]
    if module["change"] in MARKS:
        plain(console, f"\n{name} {module['change']}", style="bold")
        return
    if module["change"] == "bytes":
        plain(console, f"\n{name}: the bytes differ, and nothing that has a name", style="bold")
        return
    sizes = ", ".join(f"{part} {_sizes(*pair)}" for part, pair in module["bytes"].items())
    plain(console, f"\n{name}{': ' if sizes else ''}{sizes}", style="bold")
    for kind, lines in changes_of(module):
        _lines(kind, lines, console)


def changes_of(module: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Of a module that is there on both sides each kind of change, and its changes: `came`, …, and what, in words."""
    yield "symbols", list(map(_symbol, module["symbols"]))
    yield "functions of the same size with other code", [("changed", name) for name in module.get("code", ())]
    for kind in ("exports", "imports", "parameters", "sections"):
        yield kind, list(_with_properties(module[kind]))
    yield "depends on", [(one["change"], one["name"]) for one in module["depends"]]
    yield "built with", [(one["change"], one["name"]) for one in module["traits"]]


def _calls(calls: Sequence[dict[str, Any]], depth: int, console: Console) -> None:
    """Calls that differ, and those that lead there."""
    for one in calls:
        mark = " " if one["change"] == "same" else _mark(one)
        text, where, rest = call_of(one)
        line = f"{mark} {'  ' * depth}{text}{f'  {where}' if where else ''}{rest}"
        plain(console, line, style=STYLES.get(one["change"], "dim" if mark == " " else "yellow"))
        _calls(one["calls"], depth + 1, console)


def call_of(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a call of a difference what is called and what it was, the module, and what else is to be said."""
    text, before = called(one), one.get("before", {})
    if "arguments" in before:
        text += f", was {called({**one, **before})}"
    text += "".join(f", {key} {before[key]} → {one[key]}" for key in ("section", "how") if key in before)
    rest = f", and {one['below']} more below" if one["change"] in MARKS and one["below"] else ""
    return text, one["module"] or "", rest + (": as above" if one.get("again") else "")


def _lines(kind: str, lines: Sequence[tuple[str, str]], console: Console) -> None:
    if lines:
        plain(console, f"  {kind}")
    for change, text in lines[:MAX_SHOWN]:
        plain(console, f"  {MARKS.get(change, '~')} {text}", style=STYLES.get(change, "yellow"))
    if len(lines) > MAX_SHOWN:
        plain(console, f"    … {len(lines) - MAX_SHOWN} more with --json", style="dim")


def _mark(one: dict[str, Any]) -> str:
    return MARKS.get(one["change"], "~")


def _sizes(before: int, after: int) -> str:
    return f"{before} → {after} ({after - before:+d})"


def _symbol(one: dict[str, Any]) -> tuple[str, str]:
    before, after = one["size"]
    match one["change"]:
        case "resized":
            text = f"{one['name']} ({one['section']}): {_sizes(before, after)}"
        case "moved":
            text = f"{one['name']}: {' → '.join(one['section'])}"
            text += f", {_sizes(before, after)}" if before != after else ""
        case "came":
            text = f"{one['name']} ({one['section']}): {after}" + (f", from {one['from']}" if "from" in one else "")
        case _:
            text = f"{one['name']} ({one['section']}): {before}" + (f", to {one['to']}" if "to" in one else "")
    return one["change"], text


def _with_properties(changes: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for one in changes:
        if one["change"] != "changed":
            yield one["change"], one["name"]
            continue
        before, after = one["before"], one["after"]
        parts = [f"{key} {before[key]} → {after[key]}" for key in after if before[key] != after[key]]
        yield "changed", f"{one['name']}: {', '.join(parts)}"
