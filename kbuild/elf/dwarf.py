"""What DWARF 2 to 5 is made of: units, numbers, values of attributes, and the folder that a unit was compiled in.

A unit is read when it is asked for, every count is held against the bytes that are there, and a number is no longer
than its field.
Layouts: DWARF 5, 7.4 to 7.6; DWARF 4 where the version says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kbuild.elf.contents import MalformedError

MAX_UNITS = 1 << 16
MAX_ABBREVIATIONS = 1 << 16
"""Bytes of one unit's. A file of KVM has 2,500."""
_MAX_LEB = 10
"""Bytes that 64 bits need in LEB128."""
_LENGTH64 = 0xFFFFFFFF

STRING, STRP, LINE_STRP = 0x08, 0x0E, 0x1F
_OFFSETS = {STRP, LINE_STRP, 0x10, 0x17}
"""Four bytes, or eight in a unit of the 64-bit format: strp, line_strp, ref_addr, sec_offset."""
_OF_SIZE = {
    0: (0x19, 0x21),
    1: (0x0B, 0x0C, 0x11, 0x25, 0x29),
    2: (0x05, 0x12, 0x26, 0x2A),
    3: (0x27, 0x2B),
    4: (0x06, 0x13, 0x28, 0x2C),
    8: (0x01, 0x07, 0x14, 0x20),
    16: (0x1E,),
}
_FIXED = {form: size for size, forms in _OF_SIZE.items() for form in forms}
NO_BYTES = _OF_SIZE[0]
_LEBS = {0x0D, 0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23}
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
"""Bytes of the length that stands before a block; in 0x09 (block) and 0x18 (exprloc) that is an LEB128."""
_COMPILATION_DIRECTORY = 0x1B


class Cursor:
    """Reads numbers from `position` on. Raises MalformedError rather than go past `end`."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = min(end, len(data))
        self.wide = False
        """Whether offsets have eight bytes: the 64-bit format of DWARF."""

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin, which are passed over."""
        start = self.position
        if size > self.end - start:
            raise MalformedError("the debug information ends in the middle of an entry")
        self.position = start + size
        return start

    def number(self, size: int) -> int:
        """An unsigned number of so many bytes."""
        start = self.take(size)
        return int.from_bytes(self.data[start : start + size], "little")

    def leb(self) -> int:
        """An unsigned LEB128."""
        value, self.position = leb128(self.data, self.position, self.end)
        return value

    def string(self) -> int:
        """Where the string begins that stands here, which is passed over."""
        start = self.position
        end = self.data.find(b"\0", start, self.end)
        self.take(end + 1 - start if end >= 0 else self.end - start + 1)
        return start

    def form(self, form: int) -> int:
        """One attribute's value: a number, or of what is no number where it begins."""
        if form in _OFFSETS:
            start = self.take(8 if self.wide else 4)
            return start if form in (STRP, LINE_STRP) else 0
        if form in _FIXED:
            size = _FIXED[form]
            return self.number(size) if size <= 8 else self.take(size)
        if form in _LEBS:
            return self.leb()
        if form == STRING:
            return self.string()
        if form in _BLOCKS:
            return self.take(self.number(_BLOCKS[form]))
        if form in (0x09, 0x18):
            return self.take(self.leb())
        raise MalformedError(f"the debug information has a value of the unknown form {form:#x}")

    def unit(self) -> int:
        """Where the unit ends whose length stands here."""
        length = self.number(4)
        if length == _LENGTH64:
            self.wide = True
            length = self.number(8)
        if length > self.end - self.position:
            raise MalformedError("a unit of the debug information goes past its section")
        return self.position + length


def fixed_size(form: int, wide: bool) -> int | None:
    """Bytes of a value, whatever it is; None: that depends on it."""
    return (8 if wide else 4) if form in _OFFSETS else _FIXED.get(form)


def units(data: bytes) -> list[int]:
    """Where the units of `.debug_line` or `.debug_info` begin."""
    cursor = Cursor(data, 0, len(data))
    found: list[int] = []
    while cursor.position < len(data):
        if len(found) >= MAX_UNITS:
            raise MalformedError(f"debug information of more than {MAX_UNITS} units, which is the limit here")
        found.append(cursor.position)
        cursor.position = cursor.unit()
    return found


@dataclass(frozen=True, slots=True)
class Text:
    """Where a string is: `form` says in which section, or for `LINE_STRP` and `STRP` where the offset of it stands."""

    form: int
    position: int
    wide: bool


def leb128(data: bytes, position: int, end: int) -> tuple[int, int]:
    """An unsigned number at a position, and where it ends."""
    value = 0
    for shift in range(0, 7 * _MAX_LEB, 7):
        if position >= end:
            raise MalformedError("the debug information ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedError("the debug information has a number of more than 64 bits")


def compilation_directory(
    info: bytes, start: int, abbreviations: bytes, filled: Callable[[int, int], int]
) -> Text | None:
    """The folder that the compiler ran in, as the unit of `.debug_info` at `start` says, up to DWARF 4.

    `filled` gives the number that a relocation puts at a position of `info`, or else the second argument.
    """
    cursor = Cursor(info, start, len(info))
    cursor.end = cursor.unit()
    if not 2 <= cursor.number(2) <= 4:
        return None
    place = cursor.position
    table = filled(place, cursor.number(8 if cursor.wide else 4))
    cursor.number(1)
    code = cursor.leb()
    declared = Cursor(abbreviations, max(table, 0), table + MAX_ABBREVIATIONS)
    while found := declared.leb():
        declared.leb(), declared.number(1)  # tag, and whether it has children
        while (pair := (declared.leb(), declared.leb())) != (0, 0):
            attribute, form = pair
            if found != code:
                continue
            place = cursor.position
            value = cursor.form(form)
            if attribute == _COMPILATION_DIRECTORY and form in (STRING, STRP):
                return Text(form, value if form == STRING else place, cursor.wide)
        if found == code:
            break
    return None
