"""A section as the loader leaves it: relocations applied, page by page, where it is read."""

from __future__ import annotations

import bisect
import operator
import struct
from array import array
from collections.abc import Iterator, Sequence

from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Section

R_64, R_PC32, R_PLT32, R_32, R_32S, R_PC64 = 1, 2, 4, 10, 11, 24
_KNOWN = frozenset({0, R_64, R_PC32, R_PLT32, R_32, R_32S, R_PC64})
_PC_BIAS = 4
"""What a call's addend takes off: it counts from the end of its four bytes."""
_PAGE = 1024
"""Of a large module's code, what rules look at is small: the rest is left as it is in the file."""
_LONGEST = 8
_MASK = (1 << 64) - 1
_put4 = struct.Struct("<I").pack_into
_put8 = struct.Struct("<Q").pack_into
_entry = struct.Struct("<QQq").unpack_from


class LoadedSection:
    """Its methods raise MalformedError where its relocations contradict the file."""

    def __init__(self, elf: ElfObject, section: Section, address: int, symbols: Sequence[int]) -> None:
        """`symbols`: the addresses of the file's symbols, by their numbers."""
        self._section = section
        self._address = address
        self._symbols = symbols
        is_empty = section.kind == "NOBITS"
        self._data = bytearray(section.size) if is_empty else bytearray(elf.view(section))
        # Of the tens of thousands that a large section has few are asked for: none is made an object before.
        self._entries = memoryview(b"" if is_empty else elf.relocation_bytes(section))
        self._offsets = array("Q", self._entries.cast("Q")[::3].tobytes())
        """Ascending."""
        self._order: Sequence[int] | None = None
        """Which entry each of these is of, where the file does not have them in this order."""
        if not all(map(operator.le, self._offsets, self._offsets[1:])):
            self._order = sorted(range(len(self._offsets)), key=self._offsets.__getitem__)
            self._offsets = array("Q", [self._offsets[number] for number in self._order])
        self._done: set[int] = set()
        self._unknown: dict[int, int] = {}
        """Of relocations that are not understood, of what was read: their offsets and types."""

    def read(self, start: int, end: int) -> bytes:
        """Its bytes from an offset to before another, or to its end."""
        if self._offsets:
            for page in range(start // _PAGE, (min(end, len(self._data)) - 1) // _PAGE + 1):
                if page not in self._done:
                    self._done.add(page)
                    self._fill(page * _PAGE)
        return bytes(memoryview(self._data)[start:end])

    def unread(self, start: int, end: int) -> tuple[int, int] | None:
        """The first relocation between two offsets that is not understood: its offset and type; they have been read."""
        if not self._unknown:
            return None
        return min((one for one in self._unknown.items() if start - _LONGEST < one[0] < end), default=None)

    def targets(self) -> Iterator[tuple[int, int]]:
        """Offsets that the loader fills in, ascending, and the addresses that they are about."""
        for offset, info, addend in map(self._entry, range(len(self._offsets))):
            yield offset, self._target(info) + addend + (_PC_BIAS if info & 0xFFFFFFFF == R_PLT32 else 0)

    def _fill(self, start: int) -> None:
        data = self._data
        first = bisect.bisect_right(self._offsets, start - _LONGEST)
        for number in range(first, len(self._offsets)):
            offset, info, addend = self._entry(number)
            if offset >= start + _PAGE and start + _PAGE < len(data):
                break
            kind = info & 0xFFFFFFFF
            if offset + (8 if kind in (R_64, R_PC64) else 4) > len(data):
                raise MalformedError(f"section {self._section.name} is to be filled in behind its end")
            value = self._target(info) + addend
            if kind in (R_PC32, R_PLT32):
                _put4(data, offset, (value - self._address - offset) & 0xFFFFFFFF)
            elif kind in (R_32S, R_32):
                _put4(data, offset, value & 0xFFFFFFFF)
            elif kind == R_64:
                _put8(data, offset, value & _MASK)
            elif kind == R_PC64:
                _put8(data, offset, (value - self._address - offset) & _MASK)
            elif kind not in _KNOWN:
                self._unknown[offset] = kind

    def _entry(self, number: int) -> tuple[int, int, int]:
        offset, info, addend = _entry(self._entries, 24 * (number if self._order is None else self._order[number]))
        return offset, info, addend

    def _target(self, info: int) -> int:
        if info >> 32 >= len(self._symbols):
            raise MalformedError(f"section {self._section.name} refers to a symbol that is not there")
        return self._symbols[info >> 32]
