"""Types as DWARF (2 to 5) describes them: structs and unions, by name, with their members.

Only the units that mention the name are read, up to the first that says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from kbuild.elf.contents import MalformedError
from kbuild.elf.dwarf import leb128
from kbuild.elf.dwarfinfo import DATA1, NUMBERS, DwarfInfo, Entry, Unit
from kbuild.elf.object import ElfObject
from kbuild.elf.structs import Member, StructLayout, qualified

MAX_SEARCHED = 64 << 20
"""Bytes of units that are read for one name."""
MAX_MEMBERS = 1 << 16
_MAX_DEPTH = 32

_ARRAY, _ENUM, _MEMBER, _POINTER, _STRUCT, _SUBROUTINE, _TYPEDEF, _UNION = 1, 4, 0x0D, 0x0F, 0x13, 0x15, 0x16, 0x17
_SUBRANGE, _CONST, _VOLATILE, _RESTRICT, _ATOMIC = 0x21, 0x26, 0x35, 0x37, 0x47
_KINDS: dict[int, Literal["struct", "union"]] = {_STRUCT: "struct", _UNION: "union"}
_WORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum "}
_QUALIFIERS = {_CONST: "const ", _VOLATILE: "volatile ", _RESTRICT: "", _ATOMIC: "_Atomic "}
_BYTE_SIZE, _BIT_OFFSET, _BIT_SIZE, _UPPER_BOUND, _COUNT, _LOCATION = 0x0B, 0x0C, 0x0D, 0x2F, 0x37, 0x38
_DECLARATION, _TYPE, _DATA_BIT_OFFSET = 0x3C, 0x49, 0x6B
_BLOCKS = {0x0A, 0x18}
"""block1, exprloc"""
_MASK = (1 << 64) - 1
"""`x[0]` ends at -1."""
_PLUS_UCONST = 0x23
"""The one operation that compilers wrote as a member's place, up to DWARF 3."""


class DwarfTypes:
    """The types of one module. Its methods raise MalformedError."""

    def __init__(self, elf: ElfObject) -> None:
        self._dwarf = DwarfInfo(elf)

    def struct(self, name: str) -> StructLayout | None:
        """A struct or union of that name, as the first unit that has more than a declaration of it says."""
        searched = 0
        for start, places in self._dwarf.mentions([name.encode()]).items():
            unit = self._dwarf.unit(start)
            if unit is None:
                continue
            searched += unit.end - unit.start
            if searched > MAX_SEARCHED:
                raise MalformedError(f"{name} is in more than {MAX_SEARCHED >> 20} MiB of debug information")
            for entry in self._dwarf.entries(unit, unit.entries):
                kind, size = _KINDS.get(entry.tag), entry.number(_BYTE_SIZE)
                if kind and size is not None and self._dwarf.is_named(unit, entry, name, places):
                    members = tuple(islice(self._members(unit, entry), MAX_MEMBERS))
                    return StructLayout(name, "DWARF", kind, size, members)
        return None

    def _type(self, unit: Unit, entry: Entry) -> Entry | None:
        """What an entry is of; None: void, or not in this unit."""
        place = self._dwarf.referred(unit, entry, _TYPE)
        return self._dwarf.entry(unit, place) if place is not None else None

    # What they say.

    def _members(self, unit: Unit, entry: Entry, start: int = 0, depth: int = 0) -> Iterator[Member]:
        """Also those of structs and unions without a name, behind each. `start`: where the struct begins, in bits."""
        if depth > _MAX_DEPTH:
            raise MalformedError("the debug information has a struct that is within itself")
        for child in self._dwarf.children(unit, entry):
            if child.tag != _MEMBER:
                continue
            of = self._type(unit, child)
            size = self._size(unit, of)
            offset, bits = start + self._offset(child, size), child.number(_BIT_SIZE)
            name = self._dwarf.name(unit, child)
            bit = offset % 8 if bits is not None else None
            yield Member(name, self._name(unit, of), offset // 8, size, bit, bits)
            if not name and of is not None and of.tag in _KINDS:
                yield from self._members(unit, of, offset, depth + 1)

    def _offset(self, member: Entry, size: int | None) -> int:
        """In bits, from the beginning of the struct."""
        at = member.number(_DATA_BIT_OFFSET)
        if at is not None:
            return at
        form, location, _ = member.values.get(_LOCATION, (DATA1, 0, 0))
        if form in _BLOCKS and self._dwarf.info[location : location + 1] == bytes([_PLUS_UCONST]):
            location = leb128(self._dwarf.info, location + 1, len(self._dwarf.info))[0]
        elif form not in NUMBERS:
            raise MalformedError("the debug information says where a member is in a way that is not known here")
        bit, bits = member.number(_BIT_OFFSET), member.number(_BIT_SIZE)
        if bit is None or bits is None:
            return 8 * location
        # Up to DWARF 3 counted from the highest bit of what holds it.
        holds = member.number(_BYTE_SIZE) or size or 0
        return 8 * location + 8 * holds - bit - bits

    def _name(self, unit: Unit, entry: Entry | None, depth: int = 0) -> str:
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
        return _WORDS.get(entry.tag, "") + (self._dwarf.name(unit, entry) or "{…}")

    def _counts(self, unit: Unit, entry: Entry) -> list[int]:
        counts = []
        for child in self._dwarf.children(unit, entry):
            if child.tag == _SUBRANGE:
                count, highest = child.number(_COUNT), child.number(_UPPER_BOUND)
                counts.append(count if count is not None else 0 if highest is None else highest + 1 & _MASK)
        return counts

    def _size(self, unit: Unit, entry: Entry | None) -> int | None:
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
