"""Functions that the compiler has inlined, by name: where their instructions are, as DWARF (2 to 5) says.

Of `.debug_info` only the units are looked at in which one of the names is that of an inlined function.
Layouts: DWARF 5, 2.17, 3.3.8, 7.25 to 7.28; DWARF 4, 2.17 and 7.23.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from kbuild.elf.contents import MalformedError
from kbuild.elf.dwarf import Cursor, fixed_size, leb128
from kbuild.elf.dwarfinfo import (
    ADDRESS,
    IMPLICIT_CONST,
    INDEXED_ADDRESSES,
    INLINE,
    NAME,
    REFERENCE4,
    REFERENCES,
    WORD,
    DwarfInfo,
    Entry,
    Unit,
    occurrences,
)
from kbuild.elf.object import ElfObject

MAX_SEARCHED = 64 << 20
"""Bytes of units that are read."""
MAX_RANGES = 1 << 16
"""Of all bodies; one of KVM has up to some twenty."""
MAX_BODIES = 1 << 12
_SUBPROGRAM, _INLINED = 0x2E, 0x1D
_LOW, _HIGH, _ORIGIN, _ENTRY, _RANGES, _ADDRESS_BASE, _RANGES_BASE = 0x11, 0x12, 0x31, 0x52, 0x55, 0x73, 0x74
_DECLARATION = 0x3C
_ELSEWHERE = {_LOW, _RANGES, _ORIGIN, _DECLARATION, INLINE}
"""What an entry of a function has one of: it says where it is, or is about another entry, or is none of code."""
_WAS_INLINED = (1, 3)
"""DW_INL_inlined, DW_INL_declared_inlined."""
_RANGE_INDEX = 0x23
_SELECTS_BASE = (1 << 64) - 1
_MAX_CODE_BYTES = 5

Place = tuple[int, int]
"""A section's index, and an offset in it."""


@dataclass(frozen=True, slots=True)
class Body:
    """What one call of a function that was inlined has become."""

    name: str
    ranges: tuple[tuple[int, int, int], ...]
    """Section, and from which offset to before which other its instructions are. What it calls is not among them."""
    entry: Place | None
    """Where it begins; None: that is not said."""


class InlinedFunctions:
    """Of one module. Raises MalformedError."""

    def __init__(self, elf: ElfObject) -> None:
        self._dwarf = DwarfInfo(elf)
        self._read = 0
        self.undescribed: dict[str, set[str]] = {}
        """Functions of which it is not said where they are, with those that may be inlined in them: gcc does that where
        it takes another function's body because it is the same (`-fipa-icf`)."""

    def find(self, patterns: Collection[str]) -> dict[str, list[Body]]:
        """Names and globs of functions to where these were inlined; without those that were inlined nowhere.

        An empty list: it was, and no instruction of it is left.
        """
        there = set(self._dwarf.strings.split(b"\0"))
        names = {name: None for pattern in patterns for name in self._names(pattern)}
        names = {name: None for name in names if len(name) < WORD or name.encode() in there}
        found: dict[str, list[Body]] = {}
        searched = 0
        for start, places in self._dwarf.mentions([name.encode() for name in names]).items():
            unit = self._dwarf.unit(start)
            if unit is None or not self._may_declare(unit, places):
                continue
            searched += unit.end - unit.start
            if searched > MAX_SEARCHED:
                raise MalformedError(
                    f"more than {MAX_SEARCHED >> 20} MiB of debug information are about these functions"
                )
            origins, placeless = self._functions(unit, names)
            for name in origins.values():
                found.setdefault(name, [])
            for name in placeless if origins else ():
                self.undescribed.setdefault(name, set()).update(origins.values())
            for name, body in self._bodies(unit, origins):
                found[name].append(body)
                if len(found[name]) > MAX_BODIES:
                    raise MalformedError(f"{name} is inlined in more than {MAX_BODIES} places, which is the limit here")
        return found

    def _names(self, pattern: str) -> Iterator[str]:
        """Names of anything that a glob fits; a name is one."""
        literal = re.match(r"[^*?[]*", pattern)
        prefix = literal[0] if literal is not None else ""
        if prefix == pattern:
            yield pattern
            return
        strings, fits = self._dwarf.strings, re.compile(fnmatch.translate(pattern)).match
        for start in occurrences(strings, b"\0" + prefix.encode()):
            name = strings[start + 1 : strings.find(b"\0", start + 1)].decode("utf-8", "replace")
            if fits(name):
                yield name

    # Which functions.

    def _may_declare(self, unit: Unit, places: Collection[int]) -> bool:
        """Whether a name at one of some places can be that of an inlined function: most are those of members."""
        if not places:
            return True
        before: dict[int, set[int]] = {}
        for code, shape in unit.shapes.items():
            if shape.tag != _SUBPROGRAM or all(attribute != INLINE for attribute, _, _ in shape.attributes):
                continue
            size = 0
            for attribute, form, _ in shape.attributes:
                if attribute == NAME:
                    break
                more = 0 if form == IMPLICIT_CONST else fixed_size(form, unit.wide)
                if more is None:
                    return True
                size += more
            before.setdefault(size, set()).add(code)
        return any(self._has_code(place - size, codes, unit) for place in places for size, codes in before.items())

    def _has_code(self, end: int, codes: Collection[int], unit: Unit) -> bool:
        """Whether one of some abbreviations' codes ends there."""
        for size in range(1, _MAX_CODE_BYTES + 1):
            begin = end - size
            if begin < unit.entries:
                return False
            if size > 1 and self._dwarf.info[begin] < 0x80:
                return False
            code, after = leb128(self._dwarf.info, begin, unit.end)
            if after == end and code in codes:
                return True
        return False

    def _functions(self, unit: Unit, names: Collection[str]) -> tuple[dict[int, str], set[str]]:
        """Where a unit says of some functions that they were inlined; and those that it defines without a place."""
        inlined: dict[int, str] = {}
        placeless: set[str] = set()
        for entry in self._dwarf.walk(unit, (_SUBPROGRAM,)):
            if entry.number(INLINE) in _WAS_INLINED:
                name = self._dwarf.name(unit, entry)
                if name in names:
                    inlined[entry.start] = name
            elif entry.values.keys().isdisjoint(_ELSEWHERE):
                placeless.add(self._dwarf.name(unit, entry))
        return inlined, placeless

    # Where they are.

    def _bodies(self, unit: Unit, origins: dict[int, str]) -> Iterator[tuple[str, Body]]:
        if not origins:
            return
        top = self._dwarf.entry(unit, unit.entries)
        if top is None:
            return
        for entry in self._dwarf.walk(unit, (_INLINED,), self._references(unit, origins)):
            origin = self._dwarf.referred(unit, entry, _ORIGIN)
            if origin in origins:
                ranges = tuple(self._ranges(unit, top, entry))
                if ranges:
                    yield origins[origin], Body(origins[origin], ranges, self._entry(unit, top, entry, ranges))

    def _references(self, unit: Unit, origins: Collection[int]) -> list[int] | None:
        """Where these may be referred to, ascending; None: it cannot be told."""
        for shape in unit.shapes.values():
            if shape.tag == _INLINED:
                for attribute, form, _ in shape.attributes:
                    if attribute == _ORIGIN and form in REFERENCES and form != REFERENCE4:
                        return None
        info = self._dwarf.info[unit.start : unit.end]
        numbers = [(origin - unit.start).to_bytes(4, "little") for origin in origins]
        return sorted(unit.start + place for number in numbers for place in occurrences(info, number))

    def _entry(self, unit: Unit, top: Entry, entry: Entry, ranges: Sequence[tuple[int, int, int]]) -> Place | None:
        offset = entry.number(_ENTRY)
        if offset is not None:
            return ranges[0][0], ranges[0][1] + offset
        return self._address(unit, top, entry, _ENTRY)

    def _address(self, unit: Unit, top: Entry, entry: Entry, attribute: int) -> Place | None:
        form, value, place = entry.values.get(attribute, (0, 0, 0))
        if form == ADDRESS:
            return self._dwarf.address(place)
        return self._indexed(unit, top, value) if form in INDEXED_ADDRESSES else None

    def _indexed(self, unit: Unit, top: Entry, index: int) -> Place | None:
        base = self._dwarf.offset(unit, top, _ADDRESS_BASE) or 0
        return self._dwarf.address(base + 8 * index, ".debug_addr")

    def _ranges(self, unit: Unit, top: Entry, entry: Entry) -> Iterator[tuple[int, int, int]]:
        """Sections, starts and ends that are not empty."""
        if _RANGES in entry.values:
            read = self._list if unit.version >= 5 else self._old_list
            for section, start, end in read(unit, top, entry):
                if end > start:
                    yield section, start, end
            return
        low = self._address(unit, top, entry, _LOW)
        size = entry.number(_HIGH)
        high = self._address(unit, top, entry, _HIGH) if size is None else None
        if low is not None and (size or (high is not None and high[0] == low[0] and high[1] > low[1])):
            yield low[0], low[1], low[1] + size if size else high[1] if high is not None else 0

    def _one_more(self) -> bool:
        self._read += 1
        if self._read > MAX_RANGES:
            raise MalformedError(
                f"these functions are inlined in more than {MAX_RANGES} pieces, which is the limit here"
            )
        return True

    def _old_list(self, unit: Unit, top: Entry, entry: Entry) -> Iterator[tuple[int, int, int]]:
        """`.debug_ranges`, up to DWARF 4."""
        section = ".debug_ranges"
        data, base = self._dwarf.once(section), self._address(unit, top, top, _LOW)
        cursor = Cursor(data, self._dwarf.offset(unit, entry, _RANGES) or 0, len(data))
        while self._one_more():
            place = cursor.position
            start, end = cursor.number(8), cursor.number(8)
            if self._dwarf.is_filled(place, section) or self._dwarf.is_filled(place + 8, section):
                first, last = self._dwarf.address(place, section), self._dwarf.address(place + 8, section)
                if start == _SELECTS_BASE:
                    base = last
                elif first is not None and last is not None and first[0] == last[0]:
                    yield first[0], first[1], last[1]
            elif not start and not end:
                return
            elif start == _SELECTS_BASE:
                base = None
            elif base is not None:
                yield base[0], base[1] + start, base[1] + end

    def _list(self, unit: Unit, top: Entry, entry: Entry) -> Iterator[tuple[int, int, int]]:
        """`.debug_rnglists`, DWARF 5, 7.25."""
        section = ".debug_rnglists"
        data, base = self._dwarf.once(section), self._address(unit, top, top, _LOW)
        form, index, _ = entry.values[_RANGES]
        begin = self._dwarf.offset(unit, entry, _RANGES) or 0
        if form == _RANGE_INDEX:
            size = 8 if unit.wide else 4
            begin = self._dwarf.offset(unit, top, _RANGES_BASE) or 0
            begin += Cursor(data, begin + size * index, len(data)).number(size)
        cursor = Cursor(data, begin, len(data))

        def address() -> Place | None:
            return self._dwarf.address(cursor.take(8), section)

        while self._one_more() and (kind := cursor.number(1)):
            first: Place | None
            last: Place | None = None
            if kind in (1, 5):  # base_addressx, base_address
                base = self._indexed(unit, top, cursor.leb()) if kind == 1 else address()
                continue
            if kind == 4:  # offset_pair
                start, end = cursor.leb(), cursor.leb()
                first = (base[0], base[1] + start) if base is not None else None
                size = end - start
            elif kind in (2, 6):  # startx_endx, start_end
                first = self._indexed(unit, top, cursor.leb()) if kind == 2 else address()
                last = self._indexed(unit, top, cursor.leb()) if kind == 2 else address()
                size = last[1] - first[1] if first is not None and last is not None and first[0] == last[0] else 0
            elif kind in (3, 7):  # startx_length, start_length
                first = self._indexed(unit, top, cursor.leb()) if kind == 3 else address()
                size = cursor.leb()
            else:
                raise MalformedError(f"the debug information has a range of the unknown kind {kind}")
            if first is not None:
                yield first[0], first[1], first[1] + size
