"""`.debug_info` of a module (DWARF 2 to 5) as a tree of entries, and what its values refer to in other sections.

It has tens of MB. A name is looked for among what the relocations fill in, so that only the units that mention it are
read. Nothing is read before it is asked for; all methods raise MalformedError.
Layouts: DWARF 5, 7.4 to 7.6, 7.26 and 7.27; DWARF 4 where the version says so.
"""

from __future__ import annotations

import array
import bisect
import itertools
import struct
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

from kbuild.elf.contents import MAX_BYTES, MalformedError
from kbuild.elf.dwarf import STRING, STRP, Cursor, fixed_size, leb128, units
from kbuild.elf.lines import debug_content
from kbuild.elf.object import ElfObject, cstring

WORD = 8
"""Bytes of an offset at most."""
_MAX_ATTRIBUTES = 64
_RELOCATION = struct.Struct("<QQq")
_R_64 = 1

NAME, SIBLING, INLINE = 3, 1, 0x20
_STRING_OFFSETS_BASE = 0x72
IMPLICIT_CONST, SDATA, DATA1, ADDRESS = 0x21, 0x0D, 0x0B, 0x01
_INDEXED_STRINGS = {0x1A, 0x25, 0x26, 0x27, 0x28}
"""strx, strx1 to strx4"""
INDEXED_ADDRESSES = {0x1B, 0x29, 0x2A, 0x2B, 0x2C}
"""addrx, addrx1 to addrx4"""
REFERENCE4, _REFERENCE_BYTES = 0x13, 4
REFERENCES = range(0x11, 0x16)
"""Forms that count from the beginning of the unit."""
NUMBERS = {0x05, 0x06, 0x07, DATA1, SDATA, 0x0F, IMPLICIT_CONST}
_COMPILE, _PARTIAL = 1, 3


@dataclass(frozen=True, slots=True)
class Shape:
    """An abbreviation: what entries of a kind are made of."""

    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]
    """Attribute, form, and the value that the form has here."""


@dataclass(slots=True)
class Entry:
    """One entry of the tree."""

    start: int
    tag: int
    children: bool
    end: int
    """Where the next one begins, the first child if there are any."""
    values: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By attribute: form, value, and where it stands."""

    def number(self, attribute: int) -> int | None:
        """The value of an attribute that is a plain number."""
        form, value, _ = self.values.get(attribute, (0, 0, 0))
        return value if form in NUMBERS else None


@dataclass(frozen=True, slots=True)
class Unit:
    """A compilation unit; all places are in `.debug_info`."""

    start: int
    entries: int
    end: int
    version: int
    wide: bool
    shapes: dict[int, Shape]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to pass over an entry."""

    size: int | None
    """Bytes of its values; None: that depends on them."""
    sibling: int | None
    """Where among them it says, in four bytes, where the next entry begins that is not below it."""


def _plan(shape: Shape, wide: bool) -> _Plan:
    size, sibling = 0, None
    for attribute, form, _ in shape.attributes:
        if attribute == SIBLING:
            if form != REFERENCE4:
                return _Plan(None, None)
            sibling = size
        more = 0 if form == IMPLICIT_CONST else fixed_size(form, wide)
        if more is None:
            return _Plan(None, None)
        size += more
    return _Plan(size, sibling)


class DwarfInfo:
    """The entries of one module."""

    def __init__(self, elf: ElfObject) -> None:
        self.elf = elf
        self.info = self.section(".debug_info")
        self._units: dict[int, Unit | None] = {}
        self._shapes_at: dict[int, dict[int, Shape]] = {}
        self._sections: dict[str, bytes] = {}
        self._tables: dict[str, bytes] = {}
        self._string_bases: dict[int, int] = {}

    def section(self, name: str) -> bytes:
        """A section's bytes; none where there is no such section."""
        return debug_content(self.elf, self.elf.by_name.get(name))

    def once(self, name: str) -> bytes:
        """The same of a section that is read more often: it is kept."""
        if name not in self._sections:
            self._sections[name] = self.section(name)
        return self._sections[name]

    @cached_property
    def strings(self) -> bytes:
        """`.debug_str`"""
        return self.section(".debug_str")

    # Where names are.

    @cached_property
    def starts(self) -> list[int]:
        """Where the units begin."""
        return units(self.info)

    def mentions(self, names: Collection[bytes]) -> dict[int, set[int]]:
        """Places where one of some names stands or is filled in, by units.

        None of them in a unit that has its names by numbers: it may have one.
        """
        texts = [name + b"\0" for name in names]
        wanted = {place for text in texts for place in occurrences(self.strings, text)}
        places: list[int] = []
        found: dict[int, set[int]] = {}
        if wanted:
            places = self._filled_with(".debug_info", wanted)
            numbered = self._filled_with(".debug_str_offsets", wanted)
            found = {start: set() for start in self._units_with(numbered)}
        # A short name stands where it is used: one that takes no more room than what would say where it is.
        in_place = texts if "M" not in self._strings_flags else [text for text in texts if len(text) <= WORD]
        places += [place for text in in_place for place in occurrences(self.info, text)]
        for place in places:
            index = bisect.bisect_right(self.starts, place) - 1
            if index >= 0:
                found.setdefault(self.starts[index], set()).add(place)
        return dict(sorted(found.items()))

    @property
    def _strings_flags(self) -> str:
        section = self.elf.by_name.get(".debug_str")
        return section.flags if section is not None else ""

    def _filled_with(self, name: str, wanted: Set[int]) -> list[int]:
        """Places of a section that a relocation fills with one of some offsets."""
        numbers = array.array("Q", self.table(name))  # Three for each: place, symbol and type, addend.
        return [*itertools.compress(numbers[::3], map(wanted.__contains__, numbers[2::3]))]

    def _units_with(self, numbered: Collection[int]) -> Iterator[int]:
        """The units that one of some places of `.debug_str_offsets` belongs to."""
        based = sorted((base, start) for start in self.starts if numbered and (base := self._string_base(start)))
        places = sorted(numbered)
        for number, (base, start) in enumerate(based):
            end = based[number + 1][0] if number + 1 < len(based) else MAX_BYTES
            first = bisect.bisect_left(places, base)
            if first < len(places) and places[first] < end:
                yield start

    def is_named(self, unit: Unit, entry: Entry, name: str, places: Collection[int]) -> bool:
        """Whether an entry has a name, with what `mentions` said of its unit."""
        form, _, place = entry.values.get(NAME, (0, 0, 0))
        return place in places or (form in _INDEXED_STRINGS and self.name(unit, entry) == name)

    # What relocations fill in.

    def table(self, name: str) -> bytes:
        """The relocations of a section, which compilers and linkers write in order."""
        table = self._tables.get(name)
        if table is None:
            section = self.elf.by_name.get(name)
            tables = [one for one in self.elf.sections if one.kind == "RELA" and section and one.info == section.index]
            content = b"".join(map(self.elf.content, tables))
            table = self._tables[name] = content[: len(content) // _RELOCATION.size * _RELOCATION.size]
        return table

    def filled(self, place: int, otherwise: int, name: str = ".debug_info") -> int:
        """The number that a relocation puts at a place."""
        found = self._relocation(name, place)
        return otherwise if found is None else found[2]

    def is_filled(self, place: int, name: str) -> bool:
        """Whether a relocation says what stands at a place."""
        return self._relocation(name, place) is not None

    def address(self, place: int, name: str = ".debug_info") -> tuple[int, int] | None:
        """Section and offset of the address at a place; None: of nothing that is left, or a plain number."""
        found = self._relocation(name, place)
        if found is None or found[0] != _R_64 or found[1] is None:
            return None
        return found[1], found[2]

    def _relocation(self, name: str, place: int) -> tuple[int, int | None, int] | None:
        """Type, section of the symbol, and the number."""
        table, size = self.table(name), _RELOCATION.size
        index = bisect.bisect_left(
            range(len(table) // size), place, key=lambda one: int(_RELOCATION.unpack_from(table, one * size)[0])
        )
        if index >= len(table) // size:
            return None
        offset, info, addend = _RELOCATION.unpack_from(table, index * size)
        if offset != place:
            return None
        if info >> 32 >= len(self.elf.symbols):
            raise MalformedError(f"section {name} refers to a symbol that is not there")
        symbol = self.elf.symbols[info >> 32]
        return info & 0xFFFFFFFF, symbol.section, symbol.value + addend

    # Units and entries.

    def unit(self, start: int) -> Unit | None:
        """The unit that begins there; None: of a kind that has no types of C."""
        if start not in self._units:
            self._units[start] = self._read_unit(start)
        return self._units[start]

    def _read_unit(self, start: int) -> Unit | None:
        cursor = Cursor(self.info, start, len(self.info))
        end = cursor.unit()
        cursor.end = end
        version = cursor.number(2)
        if not 2 <= version <= 5:
            raise MalformedError(f"debug information of version {version}")
        if version == 5:
            if cursor.number(1) not in (_COMPILE, _PARTIAL):
                return None
            cursor.number(1)
        place = cursor.position
        table = self.filled(place, cursor.number(8 if cursor.wide else 4))
        if version < 5:
            cursor.number(1)
        if table not in self._shapes_at:
            self._shapes_at[table] = self._shapes(table)
        return Unit(start, cursor.position, end, version, cursor.wide, self._shapes_at[table])

    @cached_property
    def _abbreviations(self) -> bytes:
        return self.section(".debug_abbrev")

    def _shapes(self, start: int) -> dict[int, Shape]:
        data, position, end = self._abbreviations, max(start, 0), len(self._abbreviations)

        def leb() -> int:
            nonlocal position
            # There are ten thousands of them, nearly all of one byte.
            if position < end and data[position] < 0x80:
                position += 1
                return data[position - 1]
            value, position = leb128(data, position, end)
            return value

        shapes: dict[int, Shape] = {}
        while code := leb():
            tag, children = leb(), bool(leb())
            attributes: list[tuple[int, int, int]] = []
            while True:
                attribute, form, value = leb(), leb(), 0
                if not form and not attribute:
                    break
                if form == IMPLICIT_CONST:
                    at = position
                    value = leb()
                    value = _signed(value, position - at)
                attributes.append((attribute, form, value))
                if len(attributes) > _MAX_ATTRIBUTES:
                    raise MalformedError("the debug information has an entry of too many attributes")
            shapes[code] = Shape(tag, children, tuple(attributes))
        return shapes

    def entry(self, unit: Unit, place: int) -> Entry | None:
        """The entry at a place; None: the end of a list of children."""
        cursor = Cursor(self.info, place, unit.end)
        cursor.wide = unit.wide
        code = cursor.leb()
        if not code:
            return None
        shape = unit.shapes.get(code)
        if shape is None:
            raise MalformedError("the debug information has an entry of a kind that is not declared")
        entry = Entry(place, shape.tag, shape.children, 0)
        for attribute, form, value in shape.attributes:
            at = cursor.position
            if form != IMPLICIT_CONST:
                value = cursor.form(form)
            if form == SDATA:
                value = _signed(value, cursor.position - at)
            entry.values[attribute] = form, value, at
        entry.end = cursor.position
        return entry

    def entries(self, unit: Unit, place: int) -> Iterator[Entry]:
        """All entries from a place to the unit's end."""
        while place < unit.end:
            entry = self.entry(unit, place)
            place = entry.end if entry else place + 1
            if entry is not None:
                yield entry

    def walk(self, unit: Unit, tags: Collection[int], wanted: Sequence[int] | None = ()) -> Iterator[Entry]:
        """Entries of some kinds. Left out is what is below one that says how far that goes, and has none of `wanted`.

        `wanted`: places, ascending; None: nothing is left out.
        """
        info, place, number = self.info, unit.entries, 0
        plans: dict[int, _Plan] = {}
        while place < unit.end:
            code = info[place]
            if not code:
                place += 1
                continue
            size = 1
            if code >= 0x80:
                code, behind = leb128(info, place, unit.end)
                size = behind - place
            shape = unit.shapes.get(code)
            if shape is None:
                raise MalformedError("the debug information has an entry of a kind that is not declared")
            plan = plans.get(code)
            if plan is None:
                plan = plans[code] = _plan(shape, unit.wide)
            start, sibling = place, 0
            if plan.size is not None and shape.tag not in tags:
                if plan.sibling is not None:
                    at = place + size + plan.sibling
                    sibling = unit.start + int.from_bytes(info[at : at + _REFERENCE_BYTES], "little")
                place += size + plan.size
            else:
                entry = self.entry(unit, place)
                assert entry is not None
                sibling = self.referred(unit, entry, SIBLING) or 0
                place = entry.end
                if shape.tag in tags:
                    yield entry
            if wanted is not None and sibling > place:
                while number < len(wanted) and wanted[number] < start:
                    number += 1
                if number == len(wanted) or wanted[number] >= sibling:
                    place = sibling

    def children(self, unit: Unit, entry: Entry) -> Iterator[Entry]:
        """The entries right below one."""
        place, depth = entry.end, int(entry.children)
        while depth and place < unit.end:
            child = self.entry(unit, place)
            if child is None:
                depth, place = depth - 1, place + 1
                continue
            if depth == 1:
                yield child
            depth, place = depth + child.children, child.end

    def referred(self, unit: Unit, entry: Entry, attribute: int) -> int | None:
        """Where the entry is that an attribute names; None: nowhere, or not in this unit."""
        form, value, _ = entry.values.get(attribute, (0, 0, 0))
        return unit.start + value if form in REFERENCES else None

    def name(self, unit: Unit, entry: Entry) -> str:
        """An entry's name; empty: it has none."""
        form, value, place = entry.values.get(NAME, (0, 0, 0))
        if form == STRING:
            return cstring(self.info, value)
        size = 8 if unit.wide else 4
        if form in _INDEXED_STRINGS:
            offsets = self.once(".debug_str_offsets")
            place = self._string_base(unit.start) + size * value
            stands = int.from_bytes(offsets[place : place + size], "little")
            return cstring(self.strings, self.filled(place, stands, ".debug_str_offsets"))
        if form != STRP:
            return ""
        stands = int.from_bytes(self.info[place : place + size], "little")
        return cstring(self.strings, self.filled(place, stands))

    def offset(self, unit: Unit, entry: Entry, attribute: int) -> int | None:
        """What an attribute says that is an offset into another section; None: it does not say."""
        if attribute not in entry.values:
            return None
        place = entry.values[attribute][2]
        return self.filled(place, int.from_bytes(self.info[place : place + (8 if unit.wide else 4)], "little"))

    def _string_base(self, start: int) -> int:
        """Where in `.debug_str_offsets` a unit's are; 0: it has none."""
        base = self._string_bases.get(start)
        if base is None:
            unit = self.unit(start)
            top = self.entry(unit, unit.entries) if unit is not None else None
            base = self.offset(unit, top, _STRING_OFFSETS_BASE) if unit is not None and top is not None else None
            base = self._string_bases[start] = base or 0
        return base


def _signed(value: int, size: int) -> int:
    """A number that was read as an unsigned LEB128 of so many bytes, as a signed one."""
    return value - (1 << 7 * size) if value >> (7 * size - 1) & 1 else value


def occurrences(data: bytes, wanted: bytes) -> Iterator[int]:
    """Where some bytes are."""
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
