"""The functions of a module, by where they are: pieces of code that the symbol table gives a size."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import msgspec

from kbuild.elf.names import LOADER_CALLS
from kbuild.elf.object import ElfObject, Part, Symbol

COLD = ".cold"
"""What a compiler puts behind a function's name for the part of it that seldom runs."""
_COLD_SECTIONS = (".text.unlikely", ".text.cold", ".text..unlikely", ".text..cold")
_NO_FUNCTIONS = ("__pfx_", "__cfi_", ".L")
"""Names of what lies before a function, room for the kernel to patch (include/linux/linkage.h; kcfi), and of labels."""


class Function(msgspec.Struct, frozen=True):
    """A function, or a part of one that the compiler has put elsewhere."""

    name: str
    section: str
    part: Part
    size: int
    """In bytes."""

    @property
    def cold(self) -> bool:
        """Whether the compiler thinks that it seldom runs; but for init and exit code, which it thinks of all of."""
        return self.part == "core" and (COLD in self.name or self.section.startswith(_COLD_SECTIONS))


class Piece:
    """A function's place, and who refers to it."""

    __slots__ = ("callers", "end", "function", "section", "start", "static", "stays")

    def __init__(self, function: Function, section: int, start: int, static: bool = True) -> None:
        self.function = function
        self.section = section
        """`Section.index`"""
        self.start = start
        self.end = start + function.size
        self.static = static
        self.stays = False
        """Something refers to it that is no call, or that is not known."""
        self.callers: set[Piece] = set()

    def __str__(self) -> str:
        return f"{self.function.name} ({self.function.section})"


class Pieces:
    """The functions of a module. A function with several names is one, by the name that its source has."""

    def __init__(self, elf: ElfObject) -> None:
        best: dict[tuple[int, int], Symbol] = {}
        for symbol in elf.symbols:
            if symbol.section is None or symbol.kind != "func" or not symbol.size:
                continue
            section = elf.sections[symbol.section]
            if "X" in section.flags and section.part != "not loaded" and not symbol.name.startswith(_NO_FUNCTIONS):
                key = (symbol.section, symbol.value)
                best[key] = min(best.get(key, symbol), symbol, key=lambda one: (one.name in LOADER_CALLS, one.name))
        self._by_section: dict[int, list[Piece]] = {}
        for (index, start), symbol in sorted(best.items(), key=lambda one: one[0]):
            section = elf.sections[index]
            function = Function(symbol.name, section.name, section.part, symbol.size)
            self._by_section.setdefault(index, []).append(Piece(function, index, start, symbol.binding == "local"))

    def __iter__(self) -> Iterator[Piece]:
        return (piece for pieces in self._by_section.values() for piece in pieces)

    def at(self, section: int | None, offset: int) -> Piece | None:
        """The function that a place is in."""
        pieces = self._by_section.get(section or 0, [])
        index = bisect.bisect_right(pieces, offset, key=lambda one: one.start) - 1
        return pieces[index] if index >= 0 and offset < pieces[index].end else None

    def within(self, section: int) -> list[Piece]:
        """Those of a section, ascending."""
        return self._by_section.get(section, [])
