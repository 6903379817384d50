"""Where the bytes of the modules are: parts, sections and the largest functions, as bars; and what was otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kbuild.report.html.changes import Delta, deltas

MAX_SECTIONS = 12
MAX_FUNCTIONS = 15
PARTS = ("text", "data", "init", "exit")


@dataclass(frozen=True)
class Bar:
    """A length with a name."""

    name: str
    size: int
    share: float
    """Of the longest one, in percent."""
    part: str
    """One of PARTS: its colour."""


@dataclass(frozen=True)
class Module:
    """One module."""

    name: str
    total: int
    parts: tuple[Bar, ...]
    """Shares of the largest module."""
    sections: tuple[Bar, ...]
    functions: tuple[Bar, ...]
    init_functions: tuple[Bar, ...]
    more_sections: int
    more_functions: int
    could_go: int
    """Bytes of functions that only init or exit code reaches, and that stay."""
    before: Before | None
    """Where it is held against another run that has it."""


@dataclass(frozen=True)
class Before:
    """What was otherwise in another run."""

    by: int
    """Bytes that the module has more now."""
    sections: tuple[Delta, ...]
    functions: tuple[Delta, ...]
    """Also those that came and went."""


def modules(found: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] = ()) -> list[Module]:
    """All modules, largest first. `before`: those of the run that they are held against."""
    old = {one["name"]: one for one in before}
    totals = [sum(section["size"] for section in one["sections"]) for one in found]
    longest = max(totals, default=0) or 1
    made = [_module(one, total, longest, old.get(one["name"])) for one, total in zip(found, totals, strict=True)]
    return sorted(made, key=lambda one: -one.total)


def _module(one: Mapping[str, Any], total: int, longest: int, old: Mapping[str, Any] | None) -> Module:
    sizes = dict.fromkeys(PARTS, 0)
    for section in one["sections"]:
        sizes[_part(section)] += section["size"]
    parts = tuple(Bar(name, size, 100 * size / longest, name) for name, size in sizes.items() if size)
    sections = sorted(one["sections"], key=lambda each: -each["size"])
    functions = sorted(one["functions"], key=lambda each: (-each["size"], each["name"]))
    init = [each for each in functions if each["part"] == "init"]
    return Module(
        one["name"],
        total,
        parts,
        _bars([(each["name"], each["size"], _part(each)) for each in sections[:MAX_SECTIONS]]),
        _bars([(each["name"], each["size"], _of_function(each)) for each in functions[:MAX_FUNCTIONS]]),
        _bars([(each["name"], each["size"], "init") for each in init[:MAX_FUNCTIONS]]),
        max(len(sections) - MAX_SECTIONS, 0),
        max(len(functions) - MAX_FUNCTIONS, 0),
        sum(each["frees"] for each in one["candidates"]),
        _before(old, one) if old is not None else None,
    )


def _before(old: Mapping[str, Any], new: Mapping[str, Any]) -> Before:
    by = sum(one["size"] for one in new["sections"]) - sum(one["size"] for one in old["sections"])
    return Before(by, _deltas(old["sections"], new["sections"]), _deltas(old["functions"], new["functions"]))


def _deltas(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> tuple[Delta, ...]:
    """By name; of several of one name all together."""
    sides: list[dict[str, int]] = []
    for side in (old, new):
        sizes: dict[str, int] = {}
        for one in side:
            sizes[one["name"]] = sizes.get(one["name"], 0) + one["size"]
        sides.append(sizes)
    was, now = sides
    return deltas(
        (name, was.get(name, 0), now.get(name, 0), "came" if name not in was else "went" if name not in now else "")
        for name in {**now, **was}
    )


def _bars(rows: Sequence[tuple[str, int, str]]) -> tuple[Bar, ...]:
    longest = max((size for _, size, _ in rows), default=0) or 1
    return tuple(Bar(name, size, 100 * size / longest, part) for name, size, part in rows)


def _part(section: Mapping[str, Any]) -> str:
    if section["part"] in ("init", "exit"):
        return str(section["part"])
    return "text" if "X" in section["flags"] else "data"


def _of_function(function: Mapping[str, Any]) -> str:
    return str(function["part"]) if function["part"] in ("init", "exit") else "text"
