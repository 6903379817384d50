"""Types as DWARF (2 to 5) describes them: structs and unions, by name, with their members.

`.debug_info` of a module has tens of MB. The name is looked for among what the relocations fill in, so that only the
units that mention it are read, up to the first that says what it is.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Literal

from kbuild.elf.contents import MalformedError
from kbuild.elf.dwarf import STRING, STRP, Cursor, leb128, units
from kbuild.elf.lines import debug_content
from kbuild.elf.object import ElfObject, cstring
from kbuild.elf.structs import Member, StructLayout, qualified

MAX_SEARCHED = 64 << 20
"""Bytes of units that are read for one name."""
MAX_MEMBERS = 1 << 16
_MAX_DEPTH = 32
_MAX_ATTRIBUTES = 64
_RELOCATION = struct.Struct("<QQq")

_ARRAY, _ENUM, _MEMBER, _POINTER, _STRUCT, _SUBROUTINE, _TYPEDEF, _UNION = 1, 4, 0x0D, 0x0F, 0x13, 0x15, 0x16, 0x17
_SUBRANGE, _CONST, _VOLATILE, _RESTRICT, _ATOMIC = 0x21, 0x26, 0x35, 0x37, 0x47
_KINDS: dict[int, Literal["struct", "union"]] = {_STRUCT: "struct", _UNION: "union"}
_WORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum "}
_QUALIFIERS = {_CONST: "const ", _VOLATILE: "volatile ", _RESTRICT: "", _ATOMIC: "_Atomic "}
_NAME, _BYTE_SIZE, _BIT_OFFSET, _BIT_SIZE, _UPPER_BOUND, _COUNT, _LOCATION = 3, 0x0B, 0x0C, 0x0D, 0x2F, 0x37, 0x38
_DECLARATION, _TYPE, _DATA_BIT_OFFSET = 0x3C, 0x49, 0x6B
_IMPLICIT_CONST, _SDATA, _DATA1 = 0x21, 0x0D, 0x0B
_BLOCKS = {0x0A, 0x18}
"""block1, exprloc"""
_REFERENCES = range(0x11, 0x16)
"""Forms that count from the beginning of the unit."""
_NUMBERS = {0x05, 0x06, 0x07, _DATA1, _SDATA, 0x0F, _IMPLICIT_CONST}
_MASK = (1 << 64) - 1
"""`x[0]` ends at -1."""
_PLUS_UCONST = 0x23
"""The one operation that compilers wrote as a member's place, up to DWARF 3."""
_COMPILE, _PARTIAL = 1, 3


@dataclass(frozen=True, slots=True)
class _Shape:
    """An abbreviation: what entries of a kind are made of."""

    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]
    """Attribute, form, and the value that the form has here."""


@dataclass(slots=True)
class _Entry:
    """One entry of the tree."""

    tag: int
    children: bool
    end: int
    """Where the next one begins, the first child if there are any."""
    values: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By attribute: form, value, and where it stands."""

    def number(self, attribute: int) -> int | None:
        """The value of an attribute that is a plain number."""
        form, value, _ = self.values.get(attribute, (0, 0, 0))
        return value if form in _NUMBERS else None


@dataclass(frozen=True, slots=True)
class _Unit:
    start: int
    entries: int
    end: int
    wide: bool
    shapes: dict[int, _Shape]


class DwarfTypes:
    """The types of one module. Its methods raise MalformedError."""

    def __init__(self, elf: ElfObject) -> None:
        self._elf = elf
        self._info = debug_content(elf, elf.by_name.get(".debug_info"))
        self._units: dict[int, _Unit | None] = {}

    def struct(self, name: str) -> StructLayout | None:
        """A struct or union of that name, as the first unit that has more than a declaration of it says."""
        searched = 0
        for start, places in self._mentions(name).items():
            unit = self._unit(start)
            if unit is None:
                continue
            searched += unit.end - unit.start
            if searched > MAX_SEARCHED:
                raise MalformedError(f"{name} is in more than {MAX_SEARCHED >> 20} MiB of debug information")
            for entry in self._entries(unit, unit.entries):
                kind, size = _KINDS.get(entry.tag), entry.number(_BYTE_SIZE)
                if kind and size is not None and entry.values.get(_NAME, (0, 0, 0))[2] in places:
                    members = tuple(islice(self._members(unit, entry), MAX_MEMBERS))
                    return StructLayout(name, "DWARF", kind, size, members)
        return None

    # Where names are.

    def _mentions(self, name: str) -> dict[int, set[int]]:
        """Places where a name stands or is filled in, by units."""
        text = name.encode() + b"\0"
        wanted = set(_occurrences(self._strings, text))
        places = list(_occurrences(self._info, text))  # What is short stands where it is used.
        if wanted:
            places += [offset for offset, addend in struct.iter_unpack("<Q8xq", self._table) if addend in wanted]
        starts = units(self._info)
        found: dict[int, set[int]] = {}
        for place in sorted(places):
            index = bisect.bisect_right(starts, place) - 1
            if index >= 0:
                found.setdefault(starts[index], set()).add(place)
        return found

    @cached_property
    def _strings(self) -> bytes:
        return debug_content(self._elf, self._elf.by_name.get(".debug_str"))

    @cached_property
    def _abbreviations(self) -> bytes:
        return debug_content(self._elf, self._elf.by_name.get(".debug_abbrev"))

    @cached_property
    def _table(self) -> bytes:
        """The relocations of `.debug_info`, which compilers and linkers write in order."""
        section = self._elf.by_name.get(".debug_info")
        tables = [one for one in self._elf.sections if one.kind == "RELA" and section and one.info == section.index]
        content = b"".join(map(self._elf.content, tables))
        return content[: len(content) // _RELOCATION.size * _RELOCATION.size]

    def _filled(self, place: int, otherwise: int) -> int:
        """The number that a relocation puts at a place."""
        table, size = self._table, _RELOCATION.size
        index = bisect.bisect_left(range(len(table) // size), place, key=lambda one: self._relocation(one)[0])
        if index >= len(table) // size or self._relocation(index)[0] != place:
            return otherwise
        _, info, addend = self._relocation(index)
        if info >> 32 >= len(self._elf.symbols):
            raise MalformedError("section .debug_info refers to a symbol that is not there")
        return self._elf.symbols[info >> 32].value + addend

    def _relocation(self, index: int) -> tuple[int, int, int]:
        offset, info, addend = _RELOCATION.unpack_from(self._table, index * _RELOCATION.size)
        return offset, info, addend

    # Units and entries.

    def _unit(self, start: int) -> _Unit | None:
        """The unit that begins there; None: of a kind that has no types of C."""
        if start not in self._units:
            self._units[start] = self._read_unit(start)
        return self._units[start]

    def _read_unit(self, start: int) -> _Unit | None:
        cursor = Cursor(self._info, start, len(self._info))
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
        table = self._filled(place, cursor.number(8 if cursor.wide else 4))
        if version < 5:
            cursor.number(1)
        return _Unit(start, cursor.position, end, cursor.wide, self._shapes(table))

    def _shapes(self, start: int) -> dict[int, _Shape]:
        cursor = Cursor(self._abbreviations, max(start, 0), len(self._abbreviations))
        shapes: dict[int, _Shape] = {}
        while code := cursor.leb():
            tag, children = cursor.leb(), bool(cursor.number(1))
            attributes: list[tuple[int, int, int]] = []
            while (pair := (cursor.leb(), cursor.leb())) != (0, 0):
                at = cursor.position
                value = _signed(cursor.leb(), cursor.position - at) if pair[1] == _IMPLICIT_CONST else 0
                attributes.append((*pair, value))
                if len(attributes) > _MAX_ATTRIBUTES:
                    raise MalformedError("the debug information has an entry of too many attributes")
            shapes[code] = _Shape(tag, children, tuple(attributes))
        return shapes

    def _entry(self, unit: _Unit, place: int) -> _Entry | None:
        """The entry at a place; None: the end of a list of children."""
        cursor = Cursor(self._info, place, unit.end)
        cursor.wide = unit.wide
        code = cursor.leb()
        if not code:
            return None
        shape = unit.shapes.get(code)
        if shape is None:
            raise MalformedError("the debug information has an entry of a kind that is not declared")
        entry = _Entry(shape.tag, shape.children, 0)
        for attribute, form, value in shape.attributes:
            at = cursor.position
            if form != _IMPLICIT_CONST:
                value = cursor.form(form)
            if form == _SDATA:
                value = _signed(value, cursor.position - at)
            entry.values[attribute] = form, value, at
        entry.end = cursor.position
        return entry

    def _entries(self, unit: _Unit, place: int) -> Iterator[_Entry]:
        """All entries from a place to the unit's end."""
        while place < unit.end:
            entry = self._entry(unit, place)
            place = entry.end if entry else place + 1
            if entry is not None:
                yield entry

    def _children(self, unit: _Unit, entry: _Entry) -> Iterator[_Entry]:
        place, depth = entry.end, int(entry.children)
        while depth and place < unit.end:
            child = self._entry(unit, place)
            if child is None:
                depth, place = depth - 1, place + 1
                continue
            if depth == 1:
                yield child
            depth, place = depth + child.children, child.end

    def _type(self, unit: _Unit, entry: _Entry) -> _Entry | None:
        """What an entry is of; None: void, or not in this unit."""
        form, value, _ = entry.values.get(_TYPE, (0, 0, 0))
        return self._entry(unit, unit.start + value) if form in _REFERENCES else None

    def _text(self, unit: _Unit, entry: _Entry) -> str:
        form, value, place = entry.values.get(_NAME, (0, 0, 0))
        if form == STRING:
            return cstring(self._info, value)
        if form != STRP:
            return ""
        stands = int.from_bytes(self._info[place : place + (8 if unit.wide else 4)], "little")
        return cstring(self._strings, self._filled(place, stands))

    # What they say.

    def _members(self, unit: _Unit, entry: _Entry, start: int = 0, depth: int = 0) -> Iterator[Member]:
        """Also those of structs and unions without a name, behind each. `start`: where the struct begins, in bits."""
        if depth > _MAX_DEPTH:
            raise MalformedError("the debug information has a struct that is within itself")
        for child in self._children(unit, entry):
            if child.tag != _MEMBER:
                continue
            of = self._type(unit, child)
            size = self._size(unit, of)
            offset, bits = start + self._offset(child, size), child.number(_BIT_SIZE)
            name = self._text(unit, child)
            bit = offset % 8 if bits is not None else None
            yield Member(name, self._name(unit, of), offset // 8, size, bit, bits)
            if not name and of is not None and of.tag in _KINDS:
                yield from self._members(unit, of, offset, depth + 1)

    def _offset(self, member: _Entry, size: int | None) -> int:
        """In bits, from the beginning of the struct."""
        at = member.number(_DATA_BIT_OFFSET)
        if at is not None:
            return at
        form, location, _ = member.values.get(_LOCATION, (_DATA1, 0, 0))
        if form in _BLOCKS and self._info[location : location + 1] == bytes([_PLUS_UCONST]):
            location = leb128(self._info, location + 1, len(self._info))[0]
        elif form not in _NUMBERS:
            raise MalformedError("the debug information says where a member is in a way that is not known here")
        bit, bits = member.number(_BIT_OFFSET), member.number(_BIT_SIZE)
        if bit is None or bits is None:
            return 8 * location
        # Up to DWARF 3 counted from the highest bit of what holds it.
        holds = member.number(_BYTE_SIZE) or size or 0
        return 8 * location + 8 * holds - bit - bits

    def _name(self, unit: _Unit, entry: _Entry | None, depth: int = 0) -> str:
        """A type as C writes it, more or less."""
        if entry is None:
            return "void"
        if depth > _MAX_DEPTH:
            raise MalformedError("the debug information has a type that goes in a circle")
        if entry.tag in _QUALIFIERS:
            return qualified(_QUALIFIERS[entry.tag], self._name(unit, self._type(unit, entry), depth + 1))
        if entry.tag == _POINTER:
            inner = self._name(unit, self._type(unit, entry), depth + 1)
            return f"{inner}*" if inner.endswith("*") else f"{inner} *"
        if entry.tag == _ARRAY:
            counts = "".join(f"[{count}]" for count in self._counts(unit, entry))
            return self._name(unit, self._type(unit, entry), depth + 1) + counts
        if entry.tag == _SUBROUTINE:
            return f"{self._name(unit, self._type(unit, entry), depth + 1)} ()"
        return _WORDS.get(entry.tag, "") + (self._text(unit, entry) or "{…}")

    def _counts(self, unit: _Unit, entry: _Entry) -> list[int]:
        counts = []
        for child in self._children(unit, entry):
            if child.tag == _SUBRANGE:
                count, highest = child.number(_COUNT), child.number(_UPPER_BOUND)
                counts.append(count if count is not None else 0 if highest is None else highest + 1 & _MASK)
        return counts

    def _size(self, unit: _Unit, entry: _Entry | None) -> int | None:
        """Bytes; None: not known, as of a type that is declared only."""
        factor = 1
        for _ in range(_MAX_DEPTH):
            if entry is None:
                return None
            size = entry.number(_BYTE_SIZE)
            if size is not None:
                return factor * size
            if entry.tag == _ARRAY:
                for count in self._counts(unit, entry):
                    factor *= count
            elif entry.tag != _TYPEDEF and entry.tag not in _QUALIFIERS:
                return None
            entry = self._type(unit, entry)
        raise MalformedError("the debug information has a type that goes in a circle")


def _signed(value: int, size: int) -> int:
    """A number that was read as an unsigned LEB128 of so many bytes, as a signed one."""
    return value - (1 << 7 * size) if value >> (7 * size - 1) & 1 else value


def _occurrences(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
