"""The text of a module as the loader lays it out in memory: finds whose code some bytes of a running kernel are.

The addresses are the loader's to choose. But each kind of a module's memory begins at a page (x86: module_alloc(),
execmem_alloc()), its text comes first, and the sections follow each other as in layout_sections()
(kernel/module/main.c, 6.1). What the loader and the kernel change in it is left out of every comparison: relocations,
and the places that alternatives, static calls, jump labels, ftrace and the like patch.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from kbuild.elf import contents
from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Section

PAGE = 4096
MIN_COMPARED = 12
"""Bytes that have to be the same, where the text has so many."""
PATCHED = {
    ".retpoline_sites": 8,
    ".return_sites": 5,
    ".static_call_sites": 5,
    "__jump_table": 5,
    "__mcount_loc": 5,
    ".parainstructions": 8,
    ".call_sites": 5,
    ".ibt_endbr_seal": 4,
    ".smp_locks": 1,
}
"""Sections that list places of the text, and how many bytes of it may change there (arch/x86/kernel/module.c)."""
ALTERNATIVES = ".altinstructions"
"""Its entries end in the length of the old and of the new instructions (struct alt_instr, asm/alternative.h)."""
TRAMPOLINE = "__SCT__"
"""A function that is nothing but a jump, which is set at run time (include/linux/static_call.h)."""
_EIGHT_BYTES = {1, 24}
"""R_X86_64_64 and R_X86_64_PC64; what else modules have is four bytes."""
_ALIAS = re.compile(r"init_module|cleanup_module|__pfx_.*|__cfi_.*|\.L.*")
"""Names that the module's own function has besides (module_init()), and what the compiler puts before functions."""


class Location(msgspec.Struct, frozen=True):
    """A place in a module's text."""

    module: str
    """As the log writes it: `kvm_amd`."""
    function: str
    """As in the symbol table."""
    offset: int

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x} [{self.module}]"


@dataclass(frozen=True)
class ModuleText:
    """The text of one module that lies together in memory: its init text, or all else."""

    module: str
    code: bytes
    mask: bytes
    """For each byte of the code: 0xff, or 0 where it may differ in memory."""
    functions: tuple[tuple[int, str], ...]
    """Where each begins, in order."""

    def locate(self, address: int, start: int, data: bytes) -> Iterator[tuple[Location, int]]:
        """Where `address` can be, if `data` stands at `start`; and how many bytes say so."""
        for offset in range(address % PAGE, len(self.code), PAGE):
            base = address - offset
            low, high = max(start, base), min(start + len(data), base + len(self.code))
            mine = slice(low - base, high - base)
            mask = self.mask[mine]
            compared = mask.count(0xFF)
            enough = compared >= MIN_COMPARED or mine == slice(0, len(self.code))
            if high <= low or not enough or not compared:
                continue
            differs = int.from_bytes(self.code[mine], "big") ^ int.from_bytes(data[low - start : high - start], "big")
            index = bisect_right(self.functions, offset, key=lambda one: one[0]) - 1
            if index >= 0 and differs & int.from_bytes(mask, "big") == 0:
                begin, name = self.functions[index]
                yield Location(self.module, name, offset - begin), compared


def locate(texts: Iterable[ModuleText], address: int, start: int, data: bytes) -> Location | None:
    """Whose code stands at an address, by the bytes around it; None where no text or more than one fits as well."""
    found = [one for text in texts for one in text.locate(address, start, data)]
    best = max((compared for _, compared in found), default=0)
    fits = [place for place, compared in found if compared == best]
    return fits[0] if len(fits) == 1 else None


def module_texts(data: bytes, module: str) -> list[ModuleText]:
    """The texts of a module's file, not compressed. Raises MalformedError."""
    elf = ElfObject(data)
    return [text for part in (("init",), ("core", "exit")) if (text := _text(elf, module, part)) is not None]


def _text(elf: ElfObject, module: str, parts: tuple[str, ...]) -> ModuleText | None:
    code = bytearray()
    places: dict[int, int] = {}
    for section in elf.sections:
        if "A" in section.flags and "X" in section.flags and section.part in parts:
            begin = len(code) + -len(code) % max(1, section.align)
            if begin + section.size > contents.MAX_BYTES:
                raise MalformedError(f"section {section.name} of {section.size:#x} bytes: more than a module can have")
            code += bytes(begin - len(code))
            places[section.index] = len(code)
            content = elf.content(section)
            code += content + bytes(section.size - len(content))
    if not code:
        return None
    mask = bytearray(b"\xff" * len(code))
    for section in elf.sections:
        for relocation in elf.relocations(section) if section.index in places else ():
            _clear(mask, places[section.index] + relocation.offset, 8 if relocation.kind in _EIGHT_BYTES else 4)
        for index, offset, size in _patched(elf, section):
            if index in places:
                _clear(mask, places[index] + offset, size)
    functions: dict[int, str] = {}
    for symbol in elf.symbols:
        if symbol.section in places and symbol.name.startswith(TRAMPOLINE):
            _clear(mask, places[symbol.section] + symbol.value, symbol.size)
        if symbol.kind == "func" and symbol.section in places and not _ALIAS.fullmatch(symbol.name):
            functions.setdefault(places[symbol.section] + symbol.value, symbol.name)
    return ModuleText(module, bytes(code), bytes(mask), tuple(sorted(functions.items())))


def _patched(elf: ElfObject, table: Section) -> Iterator[tuple[int, int, int]]:
    """The places of the text that a table lists: section, offset, bytes."""
    if table.name != ALTERNATIVES and table.name not in PATCHED:
        return
    content, entries = elf.content(table), elf.relocations(table)
    # Two relocations to an entry: where the old instructions are, and where the new ones.
    stride = entries[2].offset - entries[0].offset if len(entries) > 2 else len(content)
    for relocation in entries:
        if relocation.symbol >= len(elf.symbols):
            raise MalformedError(f"section {table.name} refers to a symbol that is not there")
        size = PATCHED.get(table.name, 0)
        if table.name == ALTERNATIVES:
            end = relocation.offset - relocation.offset % stride + stride if stride else 0
            size = content[end - 2] if 2 <= end <= len(content) else 0
        symbol = elf.symbols[relocation.symbol]
        if symbol.section is not None:
            yield symbol.section, symbol.value + relocation.addend, size


def _clear(mask: bytearray, offset: int, size: int) -> None:
    begin, end = max(0, offset), min(len(mask), offset + size)
    if begin < end:
        mask[begin:end] = bytes(end - begin)
