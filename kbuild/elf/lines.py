"""Source file and line of a place in a module that was built with debug information (DWARF 2 to 5, x86-64).

In a module every section begins at 0, so that an address alone says nothing: each sequence of a line program belongs
to the section that its relocation names. The relocations of `.debug_line` also say where each sequence begins; so one
unit is read for a place, not all of them.
"""

from __future__ import annotations

import bisect
import posixpath
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice

import msgspec

from kbuild.elf.contents import MAX_BYTES, MalformedError, decompressed
from kbuild.elf.dwarf import LINE_STRP, STRING, Text, compilation_directory, units
from kbuild.elf.lineprogram import Header, Rows, read_header, run
from kbuild.elf.object import ElfObject, Section, cstring

MAX_LINES = 16 << 20
"""Bytes of `.debug_line`. Four files of `kvm-amd.ko` have 75 KB."""
MAX_ROWS = 1 << 22
"""That are kept, of all units, with what else is kept counted as so many of their 16 bytes."""
_MAX_ALIKE = 8
"""Sequences that begin at one place. One is right; empty ones can stand beside it."""
_MAX_SEARCHED = 64
"""Units that are searched for a folder's name, which is nearly always in the first."""
_MAX_NAMES = 1 << 14
"""Of files in them."""

_R_64, _R_32 = 1, 10
_IN_A_TREE = re.compile("/(include/linux|arch/x86/include/asm|include/asm-generic|include/uapi/linux)/")
"""Folders of a kernel tree: one is in the names of nearly each unit, and tells where the tree was."""


class Source(msgspec.Struct, frozen=True):
    """A line of a source file."""

    file: str
    """As the kernel tree names it: `arch/x86/kvm/svm/svm.c`. Of a file outside of it, only its own name."""
    line: int
    """From 1 on."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SourceLines:
    """The source lines of one module. Nothing is read before it is asked for."""

    def __init__(self, elf: ElfObject) -> None:
        self._elf = elf
        self._sections: dict[str, bytes] = {}
        self._units: dict[int, tuple[Header, dict[int, Rows]]] = {}
        self._kept = 0

    def at(self, section: int, offset: int) -> Source | None:
        """The line that the instruction at an offset of a section comes from; in inlined code, the inlined line.

        `section`: its index. None: no debug information, none about this place, or code that has no line. Raises
        MalformedError where the debug information contradicts itself, or is of a kind that no x86 compiler writes.
        """
        if not self._elf.relocatable or self._elf.by_name.get(".debug_line") is None:
            return None
        starts, places = self._sequences.get(section, ([], []))
        behind = bisect.bisect_right(starts, offset)
        if not behind:
            return None
        first = bisect.bisect_left(starts, starts[behind - 1])
        if behind - first > _MAX_ALIKE:
            raise MalformedError(f"{behind - first} line sequences begin at one place")
        for unit in dict.fromkeys(self._unit_of(place) for place in places[first:behind]):
            header, rows = self._read(unit)
            found = rows[section].find(offset) if section in rows else None
            if found is not None:
                file = self._file(header, found[0])
                return Source(file, found[1]) if file not in (None, "", ".", "..") else None
        return None

    # Where what is.

    @cached_property
    def _lines(self) -> bytes:
        data = debug_content(self._elf, self._elf.by_name.get(".debug_line"))
        if len(data) > MAX_LINES:
            raise MalformedError(f"line numbers of more than {MAX_LINES >> 20} MiB, which is the limit here")
        return data

    @cached_property
    def _starts(self) -> list[int]:
        return units(self._lines)

    @cached_property
    def _relocations(self) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
        """What is filled in into `.debug_line`, by position: addresses (section, offset in it), and other offsets."""
        symbols = self._elf.symbols
        addresses: dict[int, tuple[int, int]] = {}
        offsets: dict[int, int] = {}
        for one in self._elf.relocations(self._elf.by_name[".debug_line"]):
            if one.symbol >= len(symbols):
                raise MalformedError("section .debug_line refers to a symbol that is not there")
            symbol = symbols[one.symbol]
            value = symbol.value + one.addend
            # The linker leaves R_X86_64_NONE where it has dropped the section.
            if one.kind in (_R_32, _R_64):
                offsets[one.offset] = value
            if one.kind == _R_64 and symbol.section is not None:
                addresses[one.offset] = (symbol.section, value)
        return addresses, offsets

    @cached_property
    def _sequences(self) -> dict[int, tuple[list[int], list[int]]]:
        """For each section where sequences begin, ascending, and where in `.debug_line` that is said."""
        found: dict[int, list[tuple[int, int]]] = {}
        for place, (section, offset) in self._relocations[0].items():
            found.setdefault(section, []).append((offset, place))
        return {
            section: ([offset for offset, _ in sorted(all_of)], [place for _, place in sorted(all_of)])
            for section, all_of in found.items()
        }

    def _unit_of(self, place: int) -> int:
        index = bisect.bisect_right(self._starts, place) - 1
        if index < 0:
            raise MalformedError("section .debug_line is to be filled in where it has no unit")
        return self._starts[index]

    def _read(self, unit: int) -> tuple[Header, dict[int, Rows]]:
        if unit not in self._units:
            header = read_header(self._lines, unit)
            rows = run(self._lines, header, self._relocations[0])
            size = 20 + 10 * len(header.files)
            size += sum(20 + len(one.lines) + 6 * len(one.sequences) for one in rows.values())
            if self._kept + size > MAX_ROWS:
                self._units.clear()
                self._kept = 0
            self._units[unit] = header, rows
            self._kept += size
        return self._units[unit]

    # Names.

    def _file(self, header: Header, number: int) -> str | None:
        path = self._path(header, number)
        if path is None or not _leads_out(path):
            return path
        tops = (self._folder(header, 0, itself=True),) if header.version == 5 else self._compilation_directories
        return _below(path, (*tops, self._top))

    def _path(self, header: Header, number: int) -> str | None:
        """Absolute, or relative to the folder that the compiler ran in."""
        text, directory = header.files[number] if number < len(header.files) else (None, 0)
        if text is None:
            return None
        name = self._text(text)
        folder = "" if name.startswith("/") else self._folder(header, directory)
        return _normal(f"{folder}/{name}" if folder else name)

    def _folder(self, header: Header, number: int, itself: bool = False) -> str:
        """A folder as it is in the file; the one that the compiler ran in is empty, for others are relative to it."""
        if number >= len(header.directories):
            raise MalformedError(f"a source file is in folder {number} of {len(header.directories)}")
        text = header.directories[number]
        return _normal(self._text(text)) if text is not None and (number or itself) else ""

    def _text(self, text: Text) -> str:
        if text.form == STRING:
            return cstring(self._lines, text.position)
        offset = self._relocations[1].get(text.position)
        if offset is None:
            offset = _number(self._lines, text)
        return cstring(self._section(".debug_line_str" if text.form == LINE_STRP else ".debug_str"), offset)

    def _section(self, name: str) -> bytes:
        if name not in self._sections:
            self._sections[name] = debug_content(self._elf, self._elf.by_name.get(name))
        return self._sections[name]

    @cached_property
    def _top(self) -> str:
        """The folder of the kernel tree, where its files have it in their names; else empty."""
        found = (_IN_A_TREE.search(path) for path in islice(self._paths(), _MAX_NAMES) if _leads_out(path))
        return next((one.string[: one.start()] for one in found if one is not None), "")

    def _paths(self) -> Iterator[str]:
        for unit in self._starts[:_MAX_SEARCHED]:
            try:
                header = read_header(self._lines, unit)
                for number in range(len(header.files)):
                    yield self._path(header, number) or ""
            except MalformedError:
                continue  # Whoever asks for a line of this unit is told.

    @cached_property
    def _compilation_directories(self) -> tuple[str, ...]:
        """Where the compiler ran, up to DWARF 4: there `.debug_info` says it and `.debug_line` does not."""
        section = self._elf.by_name.get(".debug_info")
        info = debug_content(self._elf, section)
        abbreviations = debug_content(self._elf, self._elf.by_name.get(".debug_abbrev"))
        tables = [one for one in self._elf.sections if one.kind == "RELA" and section and one.info == section.index]
        table = b"".join(map(self._elf.content, tables))

        def filled(place: int, otherwise: int) -> int:
            # The assembler and the linker write relocations in order, and there can be a million of them.
            index = bisect.bisect_left(range(len(table) // 24), place, key=lambda one: _entry(table, one)[0])
            if index >= len(table) // 24 or (entry := _entry(table, index))[0] != place:
                return otherwise
            symbol = entry[1] >> 32
            if symbol >= len(self._elf.symbols):
                raise MalformedError("section .debug_info refers to a symbol that is not there")
            return self._elf.symbols[symbol].value + entry[2]

        found: dict[str, None] = {}
        for unit in units(info)[:_MAX_SEARCHED]:
            text = compilation_directory(info, unit, abbreviations, filled)
            if text is not None and text.form == STRING:
                found[_normal(cstring(info, text.position))] = None
            elif text is not None:
                offset = filled(text.position, _number(info, text))
                found[_normal(cstring(self._section(".debug_str"), offset))] = None
        return tuple(found)


def _entry(table: bytes, index: int) -> tuple[int, int, int]:
    offset, info, addend = struct.unpack_from("<QQq", table, 24 * index)
    return offset, info, addend


def _number(data: bytes, text: Text) -> int:
    return int.from_bytes(data[text.position : text.position + (8 if text.wide else 4)], "little")


def _normal(path: str) -> str:
    """Without `.` and `x/..`, as names are compared."""
    path = posixpath.normpath(path)
    return path[1:] if path.startswith("//") else path


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "../"))


def _below(path: str, tops: Iterable[str]) -> str:
    """A path from the innermost folder of `tops` on. Nothing of a machine's own path is left, whatever it is."""
    inside = [top for top in tops if path.startswith(f"{top}/") and top not in ("", ".", "..", "/")]
    if inside:
        return path[len(max(inside, key=len)) + 1 :]
    if path.startswith("/"):
        return posixpath.basename(path)
    return re.sub(r"^(\.\./)+", "", path)


def debug_content(elf: ElfObject, section: Section | None) -> bytes:
    """A section's bytes, decompressed (Elf64_Chdr; System V ABI, "Section Compression")."""
    data = elf.content(section)
    if section is None or "C" not in section.flags:
        return data
    if len(data) < 24:
        raise MalformedError(f"section {section.name} is compressed and shorter than its header")
    kind, size = struct.unpack_from("<I4xQ", data)
    if size > MAX_BYTES or kind not in _COMPRESSIONS:
        raise MalformedError(f"section {section.name} of {size} bytes in a compression of type {kind}")
    data = _COMPRESSIONS[kind](data[24:], size)
    if len(data) != size:
        raise MalformedError(f"section {section.name} is said to have {size} bytes, and has {len(data)}")
    return data


def _zlib(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as reason:
        raise MalformedError(f"broken zlib data: {reason}") from None


_COMPRESSIONS: dict[int, Callable[[bytes, int], bytes]] = {1: _zlib, 2: decompressed}
