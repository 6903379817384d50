"""Where the bytes of the modules are: parts, sections and the largest functions, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def modules(found: Sequence[Mapping[str, Any]]) -> list[Module]:
    """All modules, largest first."""
    totals = [sum(section["size"] for section in one["sections"]) for one in found]
    longest = max(totals, default=0) or 1
    made = [_module(one, total, longest) for one, total in zip(found, totals, strict=True)]
    return sorted(made, key=lambda one: -one.total)


def _module(one: Mapping[str, Any], total: int, longest: int) -> Module:
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
