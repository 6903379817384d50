"""Two runs beside each other in plain text, fit for a mail: what got worse, and what differs, in 72 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbuild.report import clean, gist
from kbuild.report.compare import pairs_of
from kbuild.report.differences import MARKS, call_of, changes_of
from kbuild.report.mail import commanded, labelled, listed, mail, quoted, section, wrapped

if TYPE_CHECKING:
    from kbuild.record import Record

MAX_WITNESS = 12
MAX_CALLS = 40
"""Of one init or exit."""
MAX_LINES = 12
"""Of one kind of change in one module."""


def render_compare_text(found: Mapping[str, Any], runs: Sequence[tuple[Path, Record]], command: str) -> str:
    """The whole summary. `found`: as `inv compare --json` prints it."""
    records = [record for _, record in runs]
    parts = [
        _head(found),
        *(_side(name, record) for name, record in zip(("Before", "After"), records, strict=True)),
        section("Worse", listed(f"{one['status']} {one['what']}" for one in found["worse"])),
        section("Orders on hosts", _cells(found, records)),
        section("Answers to rules that differ", _rules(found)),
        section("Other findings that differ", _findings(found)),
        section("What init and exit call", _flow(found)),
        section("Modules", _modules(found)),
        *(section(title.capitalize(), _pairs(rows)) for title, rows in pairs_of(found, records).items()),
        _again(command),
    ]
    return mail(parts)


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    said = f"{found['status']}, something got worse" if found["worse"] else "nothing got worse"
    yield from wrapped(f"kvm-kbuild compare of two runs: {said}")


def _side(name: str, record: Record) -> Iterator[str]:
    yield from wrapped(clean.one_line(f"{name}: {gist.verdict_of(record)[0]}  {gist.asked(record) or record.task}"))
    yield from labelled("kernel", record.kernel or "")
    yield from labelled("source", gist.identity(record))
    yield from labelled("run", record.id)


def _cells(found: Mapping[str, Any], records: Sequence[Record]) -> Iterator[str]:
    """Those that differ; of the others that there are some, and on which emulators."""
    yield from listed(
        f"{one['host']}, {one['order']}: {one['before'] or 'not run'} → {one['after'] or 'not run'}"
        + (f": {one['reason']}" if one["reason"] else "")
        for one in found["cells"]
    )
    if found["same_cells"]:
        yield f"  {found['same_cells']} {'has' if found['same_cells'] == 1 else 'have'} the same outcome in both"
    for line in gist.hardware({host: cpus for one in records for host, cpus in gist.cpus_of(one).items()}):
        yield from wrapped(clean.one_line(line), "  ")


def _rules(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found["rules"]:
        said = f"{one['rule']}: {one['module']}: {one['before'] or 'not asked'} → {one['after'] or 'not asked'}"
        yield from wrapped(clean.one_line(said), "  ", "    ")
        for line in [*clean.lines(one["witness"], MAX_WITNESS)] if one["status"] == "FAIL" and one["witness"] else ():
            yield from quoted(line)
    if found["same_rules"]:
        yield f"  {found['same_rules']} {'has' if found['same_rules'] == 1 else 'have'} the same answer in both"


def _findings(found: Mapping[str, Any]) -> Iterator[str]:
    return listed(
        f"{one['change']}: {one['message']} ({one['id']}: {one['before'] or 'none'} → {one['after'] or 'none'})"
        for one in found["findings"]
    )


def _flow(found: Mapping[str, Any]) -> Iterator[str]:
    """Calls that came and went, and those that lead there, as a tree."""
    for tree in found["flow"]:
        lines = [*_calls(tree["calls"], 1)]
        yield from wrapped(clean.one_line(f"{tree['module']}, {tree['entry']}: {tree['function']}()"), "  ", "    ")
        yield from (line for one in lines[:MAX_CALLS] for line in one)
        if len(lines) > MAX_CALLS:
            yield f"    and {len(lines) - MAX_CALLS} more, which are on the page"


def _calls(calls: Sequence[Mapping[str, Any]], depth: int) -> Iterator[list[str]]:
    for one in calls:
        text, _, rest = call_of(one)
        mark = " " if one["change"] == "same" else MARKS.get(one["change"], "~")
        indent = "  " * min(depth, 12)
        yield wrapped(clean.one_line(f"{text}{rest}"), f"  {mark} {indent}", f"    {indent}    ")
        yield from _calls(one["calls"], depth + 1)


def _modules(found: Mapping[str, Any]) -> Iterator[str]:
    if found["modules_problem"]:
        yield from wrapped(clean.one_line(f"cannot be compared: {found['modules_problem']}"), "  ", "    ")
    elif found["modules_same"]:
        yield "  the same bytes"
    for module in found["modules"] or ():
        if module["change"] in ("same", "bytes", "came", "went"):
            said = {"same": "the same bytes", "bytes": "the bytes differ, and nothing that has a name"}
            yield from wrapped(
                clean.one_line(f"{module['name']}: {said.get(module['change'], module['change'])}"), "  "
            )
            continue
        sizes = ", ".join(f"{part} {now - was:+d}" for part, (was, now) in module["bytes"].items())
        yield from wrapped(clean.one_line(f"{module['name']}: {sizes or 'no part has another size'}"), "  ", "    ")
        for kind, changes in changes_of(module):
            for change, text in changes[:MAX_LINES]:
                yield from wrapped(clean.one_line(f"{MARKS.get(change, '~')} {text}"), "    ", "      ")
            if len(changes) > MAX_LINES:
                yield f"    and {len(changes) - MAX_LINES} more {kind}"


def _pairs(rows: Sequence[tuple[str, str | None, str | None]]) -> Iterator[str]:
    return listed(f"{name}: {was or 'none'} → {now or 'none'}" for name, was, now in rows)


def _again(command: str) -> Iterator[str]:
    yield "All of it again:"
    yield from commanded(command, Path("/nowhere"))
