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
MAX_PAGE_LINES = 40_000
MAX_PAGE_CALLS = 30_000
"""On one page, which may have a thousand differences."""
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


class Room:
    """For changes, of which there may be any number: one page has so many lines and calls."""

    def __init__(self, lines: int = MAX_PAGE_LINES, calls: int = MAX_PAGE_CALLS) -> None:
        self._lines, self._calls = lines, calls

    def lines(self, count: int) -> int:
        """How many of so many lines there is room for."""
        taken = max(min(count, MAX_LINES, self._lines), 0)
        self._lines -= taken
        return taken

    def calls(self) -> int:
        """How many calls one difference may have."""
        return max(min(MAX_CALLS, self._calls), 0)

    def took(self, calls: int) -> None:
        """So many calls are on the page."""
        self._calls -= calls


def changes(found: Mapping[str, Any] | None, whole: Room | None = None) -> Changes:
    """`found`: what `kbuild.runs.objects` says, or None. `whole`: the room that all differences of a page have."""
    found = found or {}
    whole = whole or Room()
    modules = found.get("modules") or ()
    room = _Calls(whole.calls())
    made = _changes(found, modules, room, whole)
    whole.took(room.taken)
    return made


def _changes(found: Mapping[str, Any], modules: Sequence[Mapping[str, Any]], room: _Calls, whole: Room) -> Changes:
    return Changes(
        tuple(_module(one, whole) for one in modules if one["change"] != "same"),
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


def _module(one: Mapping[str, Any], whole: Room) -> Module:
    if one["change"] in MARKS or one["change"] == "bytes":
        return Module(one["name"], one["change"], (), (), ())
    parts = chart([(part, pair[0], pair[1], "") for part, pair in one["bytes"].items()])
    sizes = [(each["name"], *_sizes(each), _where(each)) for each in one["symbols"]]
    kinds = []
    for title, lines in changes_of(one):
        if lines:
            shown = whole.lines(len(lines))
            kinds.append(Lines(title, tuple(lines[:shown]), len(lines) - shown, len(lines)))
    return Module(one["name"], one["change"], parts, deltas(sizes), tuple(kinds))


def _sizes(symbol: Mapping[str, Any]) -> tuple[int, int]:
    before, after = symbol["size"]
    return before or 0, after or 0


def _where(symbol: Mapping[str, Any]) -> str:
    section = symbol["section"]
    where = section if isinstance(section, str) else " → ".join(map(str, section))
    return where if symbol["change"] == "resized" else f"{symbol['change']}, {where}"


class _Calls:
    """Of one difference."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def take(self) -> bool:
        """Whether there is room for one more."""
        if self.taken >= self._most:
            return False
        self.taken += 1
        return True


def _tree(one: Mapping[str, Any], room: _Calls) -> Tree:
    calls, left = _calls(one["calls"], room)
    root = Call(one["change"], f"{one['function']}()", one["module"], "", calls, left)
    return Tree(f"{one['module']}: {one['entry']}", one["change"], root)


def _calls(some: Sequence[Mapping[str, Any]], room: _Calls) -> tuple[tuple[Call, ...], int]:
    found: list[Call] = []
    for one in some:
        if not room.take():
            break
        calls, left = _calls(one["calls"], room)
        found.append(Call(one["change"], *call_of(one), calls, left))
    return tuple(found), len(some) - len(found)
