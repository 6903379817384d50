"""An ELF object for x86-64: sections, symbols, relocations, with every offset and size checked before it is used.

pyelftools reads the headers; the tables behind them, tens of thousands of entries, are read with `struct`, in bulk.
Layouts: System V ABI, "Object Files"; AMD64 supplement, "Relocation".
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache, cached_property
from typing import Literal, cast

import msgspec
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from kbuild.elf.contents import MalformedError

MAX_SYMBOLS = 1 << 19
"""More than any module has; with MAX_NAMES it bounds what a hostile table can make of our memory."""
MAX_NAME = 1 << 10
"""KSYM_NAME_LEN is 512 (include/linux/kallsyms.h, 6.1); modpost and the compiler add prefixes and suffixes."""

MAX_NAMES = 1 << 25
"""Of all symbols together: names may overlap in the file. `vmlinux` has a tenth."""

MAX_RELOCATIONS = 1 << 20
"""Of one section. `.text` of `kvm.ko` has some 20,000."""

_HEADER_BYTES = 64
_SECTION_HEADER_BYTES = 64
_FLAGS = tuple(zip("WAXMSILGC", (0x1, 0x2, 0x4, 0x10, 0x20, 0x40, 0x80, 0x200, 0x800), strict=True))
_KINDS: tuple[SymbolKind, ...] = ("notype", "object", "func", "section", "file", "common", "tls")
_BINDINGS: tuple[SymbolBinding, ...] = ("local", "global", "weak")

SymbolKind = Literal["notype", "object", "func", "section", "file", "common", "tls", "other"]
SymbolBinding = Literal["local", "global", "weak", "other"]
Part = Literal["init", "exit", "core", "not loaded"]

_SHN_UNDEF = 0
_SHN_LORESERVE = 0xFF00
_SHN_XINDEX = 0xFFFF


class Section(msgspec.Struct, frozen=True, gc=False):
    """One section header. Offsets, addresses and sizes are in bytes."""

    index: int
    name: str
    size: int
    kind: str
    """SHT_*, without the prefix: PROGBITS, NOBITS, RELA, …"""
    flags: str
    """As readelf prints them: W write, A alloc, X execute, M merge, S strings, I info, L link order, G group,
    C compressed."""
    part: Part
    """Where the module loader puts it, see `part_of`."""
    address: int
    offset: int
    link: int
    info: int
    align: int


class Symbol(msgspec.Struct, frozen=True, gc=False):
    """One entry of the symbol table; the null entry is kept, so that relocations can count from 0."""

    name: str
    section: int | None
    """Index of the section that it is defined in; None: undefined, absolute or common, see `defined`."""
    value: int
    """Offset in its section (in vmlinux: address)."""
    size: int
    kind: SymbolKind
    binding: SymbolBinding
    defined: bool


class Relocation(msgspec.Struct, frozen=True, gc=False):
    """One RELA entry: `symbol` is an index into the symbol table, `kind` the number of R_X86_64_*."""

    offset: int
    symbol: int
    kind: int
    addend: int


def part_of(name: str, allocated: bool) -> Part:
    """Where a module's section goes, as `module_init_section()` and `module_exit_section()` say.

    kernel/module/main.c, 6.1: by the name's beginning. Init memory is freed when init has returned. Exit
    sections are with the core, or without CONFIG_MODULE_UNLOAD with init (`module_init_layout_section()`).
    `.modinfo` and `__versions` are read and not kept (`rewrite_section_headers()`).
    """
    if not allocated or name in (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names"):
        return "not loaded"
    if name.startswith(".init"):
        return "init"
    return "exit" if name.startswith(".exit") else "core"


def cstring(table: bytes, offset: int) -> str:
    """The NUL-terminated string at `offset`. Raises MalformedError where there is none of sane length."""
    end = table.find(b"\0", offset, offset + MAX_NAME + 1) if 0 <= offset < len(table) else -1
    if end < 0:
        raise MalformedError("a name points outside of its string table, or does not end")
    return printable(table[offset:end])


def names(table: bytes) -> Callable[[int], str]:
    """`cstring` of a whole table: what is printable in all of it need not be asked of each name."""
    try:
        text = table.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not text.replace("\0", "").isprintable():
        text = ""

    def name(offset: int) -> str:
        end = text.find("\0", offset)
        return text[offset:end] if 0 <= end - offset <= MAX_NAME else cstring(table, offset)

    return name


def printable(raw: bytes) -> str:
    """Text of a file as it can be put into a message: a name with line breaks or escape sequences stays one line."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class ElfObject:
    """An ELF file in memory. Its methods raise MalformedError where tables contradict each other or the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.relocatable, self.sections = _headers(data)
        self.by_name: dict[str, Section] = {}
        for section in self.sections:
            self.by_name.setdefault(section.name, section)

    def content(self, section: Section | None) -> bytes:
        """A section's bytes; of NOBITS, and of a section that is not there, none."""
        return bytes(self.view(section))

    def view(self, section: Section | None) -> memoryview:
        """The same, and none of them copied."""
        if section is None or section.kind in ("NOBITS", "NULL"):
            return memoryview(b"")
        return memoryview(self.data)[section.offset : section.offset + section.size]

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbol table, in the file's order."""
        table = next((section for section in self.sections if section.kind == "SYMTAB"), None)
        if table is None:
            return ()
        if table.size % 24 or table.size // 24 > MAX_SYMBOLS:
            raise MalformedError(f"a symbol table of {table.size} bytes")
        if table.link >= len(self.sections):
            raise MalformedError("the symbol table's string table is not there")
        name_of = names(self.content(self.sections[table.link]))
        extended = self._extended_indices()
        symbols = []
        left = MAX_NAMES
        for number, entry in enumerate(struct.iter_unpack("<IBBHQQ", self.content(table))):
            name, info, _, index, value, size = entry
            special = _SHN_LORESERVE <= index < _SHN_XINDEX  # absolute, common: in no section
            if index == _SHN_XINDEX:
                index = extended[number] if number < len(extended) else len(self.sections)
            if index >= len(self.sections) and not special:
                raise MalformedError(f"symbol {number} is in section {index} of {len(self.sections)}")
            kind, binding = info & 15, info >> 4
            text = name_of(name) if name else ""
            left -= len(text)
            if left < 0:
                raise MalformedError(f"its symbols have names of more than {MAX_NAMES} bytes")
            symbols.append(
                Symbol(
                    text,
                    None if special or index == _SHN_UNDEF else index,
                    value,
                    size,
                    _KINDS[kind] if kind < len(_KINDS) else "other",
                    _BINDINGS[binding] if binding < len(_BINDINGS) else "other",
                    index != _SHN_UNDEF,
                )
            )
        return tuple(symbols)

    def relocations(self, section: Section) -> tuple[Relocation, ...]:
        """What is to be filled in into `section`, in the file's order."""
        return tuple(
            Relocation(offset, info >> 32, info & 0xFFFFFFFF, addend)
            for offset, info, addend in self.relocation_entries(section)
        )

    def relocation_entries(self, section: Section) -> list[tuple[int, int, int]]:
        """The same as the file has it: offset, symbol and kind in one number, addend."""
        return list(struct.iter_unpack("<QQq", self.relocation_bytes(section)))

    def relocation_bytes(self, section: Section) -> memoryview | bytes:
        """The same as it stands in the file: 24 bytes for each."""
        found: list[memoryview] = []
        size = 0
        for table in self._relocation_tables.get(section.index, ()):
            size += table.size
            if table.size % 24 or size // 24 > MAX_RELOCATIONS:
                raise MalformedError(f"section {table.name} of {table.size} bytes")
            found.append(memoryview(self.data)[table.offset : table.offset + table.size])
        return found[0] if len(found) == 1 else b"".join(found)

    @cached_property
    def _relocation_tables(self) -> dict[int, list[Section]]:
        """By the section that they fill in."""
        found: dict[int, list[Section]] = {}
        for table in self.sections:
            if table.kind == "RELA":
                found.setdefault(table.info, []).append(table)
        return found

    def at_address(self, address: int) -> tuple[Section, int]:
        """The section that holds an address of a linked file, and the offset in it."""
        for section in self.sections:
            if "A" in section.flags and section.address <= address < section.address + section.size:
                return section, address - section.address
        raise MalformedError(f"address {address:#x} is in no section")

    def _extended_indices(self) -> tuple[int, ...]:
        table = next((section for section in self.sections if section.kind == "SYMTAB_SHNDX"), None)
        content = self.content(table)
        return struct.unpack(f"<{len(content) // 4}I", content[: len(content) // 4 * 4])


def _headers(data: bytes) -> tuple[bool, tuple[Section, ...]]:
    """Section headers, checked as `elf_validity_check()` does (kernel/module/main.c, 6.1)."""
    if len(data) < _HEADER_BYTES:
        raise MalformedError(
            "not an ELF object: shorter than its header" if data[:4] == b"\x7fELF" else "not an ELF object"
        )
    if data[:4] != b"\x7fELF":
        raise MalformedError("not an ELF object")
    if data[4:6] != b"\x02\x01":
        raise MalformedError("not a little-endian ELF object of 64 bits")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if machine != 62:
        raise MalformedError(f"for another architecture (ELF machine {machine}; x86-64 is 62)")
    if kind not in (1, 2, 3):
        raise MalformedError(f"ELF type {kind}: neither an object nor an executable")
    offset, entry_size, count = struct.unpack_from("<Q10xHH", data, 40)
    names_index = struct.unpack_from("<H", data, 62)[0]
    if entry_size != _SECTION_HEADER_BYTES or offset > len(data) or count * entry_size > len(data) - offset:
        raise MalformedError("its section headers are not all there: the file is cut off or broken")
    if not 0 < names_index < count:
        raise MalformedError(f"the section names are said to be in section {names_index} of {count}")
    return kind == 1, _sections(data, offset, count, names_index)


@cache
def _layout() -> ELFStructs:
    layout = ELFStructs(little_endian=True, elfclass=64)
    layout.create_basic_structs()
    layout.create_advanced_structs(e_machine="EM_X86_64")
    return layout


def _sections(data: bytes, offset: int, count: int, names_index: int) -> tuple[Section, ...]:
    # What an ELFFile also makes of each section takes longer than all that is read of a file.
    try:
        layout = _layout()
        stream = io.BytesIO(data)
        places = range(offset, offset + count * _SECTION_HEADER_BYTES, _SECTION_HEADER_BYTES)
        headers = [cast("dict[str, int | str]", struct_parse(layout.Elf_Shdr, stream, place)) for place in places]
        names = headers[names_index]
        table = data[int(names["sh_offset"]) :][: int(names["sh_size"])]
    except Exception as error:
        # pyelftools and construct raise whatever a broken header makes them stumble over.
        raise MalformedError(f"its headers cannot be read: {type(error).__name__}: {error}".splitlines()[0]) from None
    sections = []
    for index, header in enumerate(headers):
        kind = header["sh_type"]
        numbers = {key: value for key, value in header.items() if isinstance(value, int)}
        name = cstring(table, numbers["sh_name"]) if index else ""
        section = Section(
            index,
            name,
            numbers["sh_size"],
            kind.removeprefix("SHT_") if isinstance(kind, str) else f"{kind:#x}",
            "".join(letter for letter, bit in _FLAGS if numbers["sh_flags"] & bit),
            part_of(name, bool(numbers["sh_flags"] & 2)),
            numbers["sh_addr"],
            numbers["sh_offset"],
            numbers["sh_link"],
            numbers["sh_info"],
            numbers["sh_addralign"],
        )
        inside = section.offset <= len(data) and section.size <= len(data) - section.offset
        if not inside and section.kind not in ("NULL", "NOBITS"):
            raise MalformedError(f"section {name or index} goes past the end of the file: it is cut off or broken")
        sections.append(section)
    # A small file with thousands of large tables that are all the same bytes would take for ever.
    if sum(section.size for section in sections if section.kind not in ("NULL", "NOBITS")) > len(data):
        raise MalformedError("its sections have more bytes than the file: some of them overlap")
    return tuple(sections)
