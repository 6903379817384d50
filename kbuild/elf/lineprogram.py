"""Line programs: the part of `.debug_line` that says for each instruction which line of which file it comes from.

Layout: DWARF 5, 6.2; up to DWARF 4 the tables of folders and files look otherwise.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from kbuild.elf.contents import MalformedError
from kbuild.elf.dwarf import LINE_STRP, NO_BYTES, STRING, STRP, Cursor, Text, leb128

MAX_PROGRAM = 1 << 20
"""Bytes of one line program, which has as many rows at most. That of `svm.c` has 50 KB."""
MAX_FILES = 1 << 16
"""Of one unit. `svm.c` of KVM has 227."""
_MAX_FORMATS = 8
"""DWARF 5 has five kinds of content, 6.2.4.1."""
_CONTENT_PATH, _CONTENT_DIRECTORY = 1, 2
_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """One unit of `.debug_line` without its program."""

    version: int
    directories: list[Text | None]
    """0 is the folder that the compiler ran in, which only DWARF 5 has here. Others are relative to it."""
    files: list[tuple[Text | None, int]]
    """Name and directory, by the number that the program uses; up to DWARF 4 it begins at 1."""
    program: int
    end: int
    step: int
    """Bytes of the shortest instruction; 1 on x86."""
    line_base: int
    line_range: int
    operands: bytes
    """Of the standard instructions from number 1 on: how many."""


def read_header(data: bytes, start: int) -> Header:
    """The unit of `.debug_line` at `start`. Raises MalformedError, also for what no x86 compiler writes."""
    cursor = Cursor(data, start, len(data))
    end = cursor.end = cursor.unit()
    version = cursor.number(2)
    if not 2 <= version <= 5:
        raise MalformedError(f"line numbers in version {version} of DWARF; 2 to 5 are known")
    if version == 5 and cursor.number(2) != 8:
        raise MalformedError("line numbers for other addresses than x86-64 has")
    length = cursor.number(8 if cursor.wide else 4)
    program = cursor.position + length
    if program > end:
        raise MalformedError("a line program begins behind its end")
    step = cursor.number(1)
    if version >= 4 and cursor.number(1) != 1:
        raise MalformedError("line numbers for a machine with more than one operation in an instruction")
    cursor.number(1)  # default_is_stmt: where a debugger would stop; any row tells the line
    base, line_range, opcodes = cursor.number(1), cursor.number(1), cursor.number(1)
    if not line_range or not opcodes:
        raise MalformedError("a line program without a range of lines or opcodes")
    operands = data[cursor.take(opcodes - 1) : cursor.position]
    cursor.end = program
    directories, files = _tables5(cursor) if version == 5 else _tables4(cursor)
    base -= (base & 0x80) << 1
    return Header(version, directories, files, program, end, step, base, line_range, operands)


def _tables4(cursor: Cursor) -> tuple[list[Text | None], list[tuple[Text | None, int]]]:
    directories: list[Text | None] = [None]
    while (start := cursor.string()) + 1 < cursor.position:
        directories.append(Text(STRING, start, cursor.wide))
    files: list[tuple[Text | None, int]] = [(None, 0)]
    while (start := cursor.string()) + 1 < cursor.position:
        files.append((Text(STRING, start, cursor.wide), cursor.leb()))
        cursor.leb(), cursor.leb()  # time and length
        if len(files) > MAX_FILES:
            raise MalformedError(f"a table of more than {MAX_FILES} files")
    return directories, files


def _tables5(cursor: Cursor) -> tuple[list[Text | None], list[tuple[Text | None, int]]]:
    directories = [text for text, _ in _entries5(cursor)]
    return directories, _entries5(cursor)


def _entries5(cursor: Cursor) -> list[tuple[Text | None, int]]:
    kinds = cursor.number(1)
    if kinds > _MAX_FORMATS:
        raise MalformedError(f"files or folders with {kinds} properties")
    formats = [(cursor.leb(), cursor.leb()) for _ in range(kinds)]
    if any(form in NO_BYTES for _, form in formats):
        raise MalformedError("files or folders whose properties take no bytes")
    count = cursor.leb()
    if count > min(MAX_FILES, cursor.end - cursor.position):
        raise MalformedError(f"a table of {count} files or folders, which is too many")
    found: list[tuple[Text | None, int]] = []
    for _ in range(count):
        text, directory = None, 0
        for content, form in formats:
            value = cursor.form(form)
            if content == _CONTENT_PATH and form in (STRING, STRP, LINE_STRP):
                text = Text(form, value, cursor.wide)
            elif content == _CONTENT_DIRECTORY:
                directory = value
        found.append((text, directory))
    return found


@dataclass(slots=True)
class Rows:
    """The rows of a line program that are about one section, those of each sequence together and ascending."""

    addresses: array[int] = field(default_factory=lambda: array("Q"))
    files: array[int] = field(default_factory=lambda: array("I"))
    lines: array[int] = field(default_factory=lambda: array("I"))
    """0: no line, or nothing more of this sequence from here on."""
    sequences: list[tuple[int, int, int]] = field(default_factory=list)
    """Address, first row, and behind the last."""

    def find(self, offset: int) -> tuple[int, int] | None:
        """File number and line at an offset of the section."""
        index = bisect.bisect_right(self.sequences, offset, key=lambda one: one[0]) - 1
        if index < 0:
            return None
        _, first, end = self.sequences[index]
        row = bisect.bisect_right(self.addresses, offset, first, end) - 1
        return (self.files[row], self.lines[row]) if self.lines[row] else None

    def add(self, address: int, file: int, line: int, first: int) -> None:
        """Of rows with one address the last counts; a row that says nothing new is not kept."""
        last = len(self.addresses) - 1
        if last >= first and self.addresses[last] == address:
            self.files[last], self.lines[last] = file, line
        elif last < first or self.files[last] != file or self.lines[last] != line:
            self.addresses.append(address)
            self.files.append(file)
            self.lines.append(line)

    def close(self, first: int, end: int) -> None:
        """Ends the sequence that began with row `first`. One that covers nothing is not kept."""
        last = len(self.addresses)
        if last > first:
            if end > self.addresses[last - 1]:
                self.add(end, 0, 0, first)
            else:
                self.lines[last - 1] = 0
            last = len(self.addresses)
            if last - first > 1:
                self.sequences.append((self.addresses[first], first, last))


def run(data: bytes, header: Header, targets: Mapping[int, tuple[int, int]]) -> dict[int, Rows]:
    """Runs a unit's line program. Gives the rows for each section.

    `targets`: what the relocations say, section and offset in it, by the position in `data` of what they fill in.
    """
    program = data[header.program : header.end]
    if len(program) > MAX_PROGRAM:
        raise MalformedError(f"a line program of {len(program)} bytes")
    rows: dict[int, Rows] = {}
    try:
        _run(program, header, targets, rows)
    except IndexError:
        raise MalformedError("a line program ends in the middle of an instruction") from None
    for one in rows.values():
        one.sequences.sort()
    return rows


def _run(program: bytes, header: Header, targets: Mapping[int, tuple[int, int]], rows: dict[int, Rows]) -> None:
    opcode_base = len(header.operands) + 1
    advances = [divmod(max(0, opcode - opcode_base), header.line_range) for opcode in range(256)]
    specials = [(addresses * header.step, header.line_base + lines) for addresses, lines in advances]
    position, size = 0, len(program)
    current: Rows | None = None  # None: of no section, so that no row can be of use
    first = last = 0
    address, file, line = 0, 1, 1
    while position < size:
        opcode = program[position]
        position += 1
        if opcode >= opcode_base:
            advance, lines = specials[opcode]
            address += advance
            line += lines
        elif opcode == 0:
            length, position = leb128(program, position, size)
            extended, begin = program[position], position + 1
            position += length
            if not 0 < length <= size - begin + 1:
                raise MalformedError("an instruction of a line program goes past its end")
            if extended == 2:  # DW_LNE_set_address
                target = targets.get(header.program + begin)
                following = rows.setdefault(target[0], Rows()) if target is not None else None
                address = target[1] & _MASK64 if target is not None else 0
                if current is not following or address < last:
                    if current is not None:
                        current.close(first, last)
                    first = len(following.addresses) if following is not None else 0
                    current, last = following, 0
            elif extended == 1:  # DW_LNE_end_sequence
                if current is not None:
                    current.close(first, max(last, address & _MASK64))
                current, last, address, file, line = None, 0, 0, 1, 1
            continue
        elif opcode == 2:  # DW_LNS_advance_pc
            value, position = leb128(program, position, size)
            address += value * header.step
            continue
        elif opcode == 3:  # DW_LNS_advance_line
            begin = position
            value, position = leb128(program, position, size)
            bits = 7 * (position - begin)
            line += value - (value >> (bits - 1) << bits)
            continue
        elif opcode == 4:  # DW_LNS_set_file
            file, position = leb128(program, position, size)
            continue
        elif opcode == 8:  # DW_LNS_const_add_pc
            address += specials[255][0]
            continue
        elif opcode == 9:  # DW_LNS_fixed_advance_pc
            address += program[position] | program[position + 1] << 8
            position += 2
            continue
        elif opcode != 1:  # which changes no address and no line
            for _ in range(header.operands[opcode - 1]):
                _, position = leb128(program, position, size)
            continue
        if current is not None:  # A special opcode or DW_LNS_copy: a row
            here = address & _MASK64
            if here < last:
                current.close(first, last)
                first = len(current.addresses)
            last = here
            current.add(here, file & _MASK32, line & _MASK32, first)
