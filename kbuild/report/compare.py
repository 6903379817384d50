"""Two runs beside each other, as a person reads it: takes what `inv compare --json` prints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from kbuild.cpus import Cpus
from kbuild.outcome import Status
from kbuild.report import gist
from kbuild.report.differences import render_differences
from kbuild.report.terminal import STYLES, console_for, plain, table, word

if TYPE_CHECKING:
    from rich.console import Console

    from kbuild.record import Record

Difference = tuple[str, str | None, str | None]
"""A name, what it was, and what it is; None: it was not there."""

MAX_SHOWN = 40
"""Lines of one kind; the JSON has all."""
MAX_WORSE = 12
"""Of what got worse, which is told again below."""
MAX_NAMED = 4
"""Further ids in one line."""
_MARKS = {"new": "+", "gone": "-", "changed": "~", "not looked for": "?"}
_STYLES = {"new": "red", "gone": "green", "changed": "yellow", "not looked for": "magenta"}


def render(data: dict[str, Any], stream: IO[str] | None = None) -> None:
    """Print both runs, what got worse, and then all that differs."""
    console = console_for(stream or sys.stdout)
    _runs(data, console)
    status = Status(data["status"])
    if data["worse"]:
        console.print(f"\nworse: {word(status)}")
    else:
        console.print(f"\n{word(status)}  nothing got worse")
    for one in data["worse"][:MAX_WORSE]:
        plain(console, f"  {one['status']} {one['what']}", style=STYLES[Status(one["status"])])
    if left := data["worse"][MAX_WORSE:]:
        counts = Counter(one["status"] for one in left)
        plain(console, f"  … and {', '.join(f'{counts[s]} {s}' for s in Status if counts[s])} more, below", style="dim")
    pairs = pairs_of(data)
    _pairs("stages", pairs["stages"], console)
    _cells(data, console)
    _rules(data, console)
    _findings(data, console)
    _modules(data, console)
    _pairs("slab caches", pairs["slab caches"], console)
    if data["config"] is None:
        plain(console, "\nconfiguration: not kept by both runs", style="dim")
    for title in ("configuration", "tools and hosts", "files of the profile"):
        _pairs(title, pairs[title], console)
    plain(console, "\nside by side on a page: the same with --format html --output FILE.html", style="dim")


def pairs_of(data: Mapping[str, Any], records: Sequence[Record] = ()) -> dict[str, list[Difference]]:
    """What has a name and two values, by what it is. `records`: both, where others than their user are to read it."""
    return {
        "stages": [(one["name"], one["before"], one["after"]) for one in data["stages"]],
        "slab caches": caches(data),
        "configuration": [(one["name"], one["before"] or "n", one["after"] or "n") for one in data["config"] or ()],
        "tools and hosts": [*_tools(data, records)],
        "files of the profile": [_file(one) for one in data["profile"]],
    }


def _runs(data: dict[str, Any], console: Console) -> None:
    rows = table()
    for name in ("", "run", "verdict", "tree", "kernel"):
        rows.add_column(name)
    for side in ("before", "after"):
        from rich.markup import escape

        one = data[side]
        verdict = word(Status(one["verdict"])) if one["verdict"] else "[yellow]none[/]"
        asked = " + ".join(one["tree"][key] for key in ("asked", "patches") if key in one["tree"])
        rows.add_row(side, one["run"], verdict, escape(asked), escape(one["kernel"] or ""))
    console.print(rows)


def _cells(data: dict[str, Any], console: Console) -> None:
    if data["cells"]:
        plain(console, f"\norders on hosts that differ ({data['same_cells']} do not):", style="bold")
    for one in data["cells"][:MAX_SHOWN]:
        after = one["after"] or "not run"
        reason = f": {one['reason']}" if one["reason"] else ""
        style = STYLES[Status(one["after"])] if one["after"] else "magenta"
        plain(console, f"  {one['host']}, {one['order']}: {one['before'] or 'not run'} → {after}{reason}", style=style)
    _more(data["cells"], console)


def _rules(data: dict[str, Any], console: Console) -> None:
    asked = [one for one in data["rules"] if one["after"] is not None]
    gone = Counter(
        "for other kernels" if one["other_kernel"] else "not asked" for one in data["rules"] if one not in asked
    )
    if data["rules"]:
        plain(console, f"\nanswers to rules that differ ({data['same_rules']} do not):", style="bold")
    for why, count in gone.items():
        plain(console, f"  {count} that there were before: {why}", style="dim")
    for one in asked[:MAX_SHOWN]:
        bad = one["status"] is not None and Status(one["status"]).counts and one["known"] is None
        style = STYLES[Status(one["status"])] if bad else None
        plain(
            console, f"  {one['rule']}: {one['module']}: {one['before'] or 'not asked'} → {one['after']}", style=style
        )
        for line in one["witness"][-4:] if bad else ():
            plain(console, f"      {line}")
    _more(asked, console)


def _findings(data: dict[str, Any], console: Console) -> None:
    """Those that say the same of several orders together; the command for the first."""
    if data["findings"]:
        plain(console, f"\nother findings that differ ({data['same_findings']} do not):", style="bold")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in data["findings"]:
        groups.setdefault((one["change"], str(one["before"]), str(one["after"]), one["message"]), []).append(one)
    for one, *more in [*groups.values()][:MAX_SHOWN]:
        states = f"{one['before'] or 'none'} → {one['after'] or 'none'}"
        what = f"{_MARKS[one['change']]} {one['id']}: {states}"
        what += ", but it was not looked for" if one["change"] == "not looked for" else ""
        what += f" on {', '.join(one['worse_on'])}" if one["before"] == one["after"] and one["worse_on"] else ""
        plain(console, f"  {what}", style=_STYLES[one["change"]])
        plain(console, f"      {one['message']}")
        if more:
            names = ", ".join(other["id"] for other in more[:MAX_NAMED])
            left = f" and {len(more) - MAX_NAMED} more" if len(more) > MAX_NAMED else ""
            plain(console, f"      also: {names}{left}")
        if one["expired"]:
            plain(console, f"      was known until {one['expired']}")
        if one["after"] is not None and one["reproduce"]:
            plain(console, f"      again: {one['reproduce']}")
    _more([*groups.values()], console)


def _modules(data: dict[str, Any], console: Console) -> None:
    if data["modules"] is not None:
        render_differences({"modules": data["modules"], "flow": data["flow"], "findings": []}, console)
    elif data["modules_problem"]:
        plain(console, f"\nmodules cannot be compared: {data['modules_problem']}", style="yellow")
    elif data["modules_same"]:
        plain(console, "\nmodules: the same bytes", style="dim")


def caches(data: Mapping[str, Any]) -> list[Difference]:
    """Of what `kbuild.runs.objects` says the slab caches that have another size."""
    return [_cache(one) for one in data.get("caches", ())]


def _cache(one: Mapping[str, Any]) -> Difference:
    sides = (None if one[side] is None else " or ".join(map(str, one[side])) or "?" for side in ("before", "after"))
    before, after = sides
    return f"{one['cache']} ({one['module']}), bytes of an object", before, after


def _file(one: Mapping[str, Any]) -> Difference:
    after = ("other contents" if one["before"] else "there") if one["after"] else None
    return one["name"], "there" if one["before"] else None, after


def _tools(data: Mapping[str, Any], records: Sequence[Record]) -> Iterator[Difference]:
    """With the records it is not said where a machine is that has CPUs of its own."""
    own = [{f"host {name}" for name, one in record.machines.items() if one.cpus_are is Cpus.OWN} for record in records]
    for one in data["tools"]:
        was, now = (one["name"] in hosts for hosts in own or ((), ()))
        before, after = gist.REMOTE if was else one["before"], gist.REMOTE if now else one["after"]
        yield one["name"], before, "another such machine" if was and now else after


def _pairs(title: str, changes: Sequence[Difference], console: Console) -> None:
    if changes:
        plain(console, f"\n{title}:", style="bold")
    for name, before, after in changes[:MAX_SHOWN]:
        plain(console, f"  {name}: {before or 'none'} → {after or 'none'}")
    _more(changes, console)


def _more(some: Sequence[Any], console: Console) -> None:
    if len(some) > MAX_SHOWN:
        plain(console, f"  … {len(some) - MAX_SHOWN} more with --json", style="dim")
