"""What differs between two builds of modules: takes `differences`, gives lists, trees to fold and charts of sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kbuild.report.compare import Difference, caches
from kbuild.report.differences import MARKS, call_of, changes_of

MAX_LINES = 200
"""Of one kind of change in one module."""
MAX_DELTAS = 20
"""Functions and objects in a chart, the largest differences first."""
MAX_CALLS = 1500
"""Of the trees of one difference."""
HALF = 50
"""Percent of a chart's width that a difference has on its side of the middle."""


@dataclass(frozen=True)
class Delta:
    """A size that is another one now: a bar to the right of the middle where it grew, to the left where it shrank."""

    name: str
    before: int
    after: int
    left: float
    width: float
    """Both in percent of the chart's width."""
    note: str = ""
    anchor: str = ""
    """Where on the page there is more."""

    @property
    def by(self) -> int:
        """Bytes."""
        return self.after - self.before


@dataclass(frozen=True)
class Lines:
    """Changes of one kind."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """`came`, `went`, or what else happened, and to what."""
    left: int
    """Of which there is no room for."""
    total: int


@dataclass(frozen=True)
class Module:
    """A module that differs."""

    name: str
    change: str
    parts: tuple[Delta, ...]
    symbols: tuple[Delta, ...]
    kinds: tuple[Lines, ...]


@dataclass(frozen=True)
class Call:
    """A call that came, went or changed, or that leads to one."""

    change: str
    text: str
    where: str
    rest: str
    calls: tuple[Call, ...]
    left: int
    """Calls in it that there is no room for."""


@dataclass(frozen=True)
class Tree:
    """An init or exit."""

    title: str
    change: str
    root: Call


@dataclass(frozen=True)
class Changes:
    """All of it."""

    modules: tuple[Module, ...]
    same: tuple[str, ...]
    flow: tuple[Tree, ...]
    caches: tuple[Difference, ...]
    problem: str
    """Why there is nothing of all that."""

    def __bool__(self) -> bool:
        return bool(self.modules or self.flow or self.caches or self.problem)


def changes(found: Mapping[str, Any] | None) -> Changes:
    """`found`: what `kbuild.runs.objects` says, or None."""
    found = found or {}
    modules = found.get("modules") or ()
    room = _Room(MAX_CALLS)
    return Changes(
        tuple(_module(one) for one in modules if one["change"] != "same"),
        tuple(str(one["name"]) for one in modules if one["change"] == "same"),
        tuple(_tree(one, room) for one in found.get("flow") or ()),
        tuple(caches(found)),
        found.get("modules_problem") or "",
    )


def deltas(rows: Iterable[tuple[str, int, int, str]], limit: int = MAX_DELTAS) -> tuple[Delta, ...]:
    """A chart of `(name, before, after, note)`, the largest difference first; what has none is left out."""
    changed = sorted((row for row in rows if row[1] != row[2]), key=lambda row: (-abs(row[2] - row[1]), row[0]))
    return chart(changed[:limit])


def chart(rows: Sequence[tuple[str, int, int, str]], anchors: Sequence[str] = ()) -> tuple[Delta, ...]:
    """The same in the order that is given, also of what does not differ."""
    longest = max((abs(after - before) for _, before, after, _ in rows), default=0) or 1
    found = []
    for number, (name, before, after, note) in enumerate(rows):
        width = HALF * abs(after - before) / longest
        left = float(HALF) if after >= before else HALF - width
        found.append(Delta(name, before, after, left, width, note, anchors[number] if anchors else ""))
    return tuple(found)


def _module(one: Mapping[str, Any]) -> Module:
    if one["change"] in MARKS or one["change"] == "bytes":
        return Module(one["name"], one["change"], (), (), ())
    parts = chart([(part, pair[0], pair[1], "") for part, pair in one["bytes"].items()])
    sizes = [(each["name"], *_sizes(each), _where(each)) for each in one["symbols"]]
    kinds = tuple(
        Lines(title, tuple(lines[:MAX_LINES]), max(len(lines) - MAX_LINES, 0), len(lines))
        for title, lines in changes_of(one)
        if lines
    )
    return Module(one["name"], one["change"], parts, deltas(sizes), kinds)


def _sizes(symbol: Mapping[str, Any]) -> tuple[int, int]:
    before, after = symbol["size"]
    return before or 0, after or 0


def _where(symbol: Mapping[str, Any]) -> str:
    section = symbol["section"]
    where = section if isinstance(section, str) else " → ".join(map(str, section))
    return where if symbol["change"] == "resized" else f"{symbol['change']}, {where}"


class _Room:
    """For calls, of which there may be any number."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def take(self) -> bool:
        """Whether there is room for one more."""
        self._left -= 1
        return self._left >= 0


def _tree(one: Mapping[str, Any], room: _Room) -> Tree:
    calls, left = _calls(one["calls"], room)
    root = Call(one["change"], f"{one['function']}()", one["module"], "", calls, left)
    return Tree(f"{one['module']}: {one['entry']}", one["change"], root)


def _calls(some: Sequence[Mapping[str, Any]], room: _Room) -> tuple[tuple[Call, ...], int]:
    found: list[Call] = []
    for one in some:
        if not room.take():
            break
        calls, left = _calls(one["calls"], room)
        found.append(Call(one["change"], *call_of(one), calls, left))
    return tuple(found), len(some) - len(found)
