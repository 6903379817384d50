"""Exported symbols, decoded from the tables as the module loader sees them, not from the names of local symbols.

`struct kernel_symbol` on x86-64 is three 32-bit places: value, name, namespace, each relative to itself
(include/linux/export.h, 6.1; newer kernels emit the same from modpost, export-internal.h). In a module
they are still relocations, in vmlinux they are filled in. GPL-only exports have tables of their own,
`__ksymtab_gpl` and `__kcrctab_gpl`; newer kernels have one table and a byte of flags for each entry, `__kflagstab`.
CRCs are there with CONFIG_MODVERSIONS.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Section, cstring

_ENTRY = 12
_NAME = 4
_NAMESPACE = 8
_FLAG_GPL_ONLY = 1
_TABLES = (("", False), ("_gpl", True))


class Export(msgspec.Struct, frozen=True, gc=False):
    """One exported symbol."""

    name: str
    gpl: bool
    """Only for modules with a licence that is compatible with the GPL."""
    namespace: str | None = ""
    """Empty: none. `module:a,b*` limits it to these modules. None: not known."""
    crc: int | None = None
    """None: the build has no CRCs, or they are not known."""


def exports_of(elf: ElfObject) -> tuple[Export, ...]:
    """What a module or vmlinux exports, in the tables' order. Raises MalformedError."""
    found: list[Export] = []
    for suffix, gpl in _TABLES:
        table = elf.by_name.get(f"__ksymtab{suffix}")
        if table is None:
            continue
        if table.size % _ENTRY or table.kind == "NOBITS":
            raise MalformedError(f"{table.name} of {table.size} bytes is no table of entries of {_ENTRY}")
        string_at = _relocated(elf, table) if elf.relocatable else _linked(elf, table)
        crcs = elf.content(elf.by_name.get(f"__kcrctab{suffix}"))
        flags = elf.content(elf.by_name.get(f"__kflagstab{suffix}"))
        for number in range(table.size // _ENTRY):
            place = number * _ENTRY
            crc = struct.unpack_from("<I", crcs, number * 4)[0] if len(crcs) >= number * 4 + 4 else None
            gpl_only = gpl or (number < len(flags) and bool(flags[number] & _FLAG_GPL_ONLY))
            name = string_at(place + _NAME)
            if name:
                found.append(Export(name, gpl_only, string_at(place + _NAMESPACE), crc))
    return tuple(found)


def _relocated(elf: ElfObject, table: Section) -> Callable[[int], str]:
    places = {relocation.offset: relocation for relocation in elf.relocations(table)}
    contents: dict[int, bytes] = {}

    def string_at(place: int) -> str:
        relocation = places.get(place)
        if relocation is None:
            return ""  # As kernel_symbol_namespace() does with an offset of 0.
        if relocation.symbol >= len(elf.symbols):
            raise MalformedError(f"{table.name} refers to symbol {relocation.symbol} of {len(elf.symbols)}")
        symbol = elf.symbols[relocation.symbol]
        if symbol.section is None:
            raise MalformedError(f"{table.name} refers to a string that is in no section")
        if symbol.section not in contents:
            contents[symbol.section] = elf.content(elf.sections[symbol.section])
        return cstring(contents[symbol.section], symbol.value + relocation.addend)

    return string_at


def _linked(elf: ElfObject, table: Section) -> Callable[[int], str]:
    content = elf.content(table)
    contents: dict[int, bytes] = {}

    def string_at(place: int) -> str:
        (distance,) = struct.unpack_from("<i", content, place)
        if distance == 0:
            return ""
        section, offset = elf.at_address(table.address + place + distance)
        if section.index not in contents:
            contents[section.index] = elf.content(section)
        return cstring(contents[section.index], offset)

    return string_at
