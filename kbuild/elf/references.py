"""What of a module stays in memory and refers to its init part, found in bulk when the file is read.

Nearly every module has nothing of the kind, so this only filters; kbuild/elf/lifetimes.py judges.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Container, Iterator

import msgspec

from kbuild.elf.contents import MalformedError
from kbuild.elf.object import MAX_RELOCATIONS, ElfObject, Section

_ENTRY = 24
_SYMBOL = 3
"""Where an entry has the number of its symbol, in words of four bytes."""
_TO_NEXT = 4
"""A jump counts from the end of its four bytes, which its addend takes off."""
_OWNED = {".altinstr_aux": "", ".altinstr_replacement": ".altinstructions", ".fixup": "__ex_table"}
"""Code that is not reached by itself, and the table that says from where it is."""
_LOADER_SECTIONS = frozenset(
    {
        # Applied or taken in before init runs (module_finalize(), arch/x86/kernel/module.c; find_module_sections()).
        *(".altinstructions", ".parainstructions", ".retpoline_sites", ".return_sites", ".call_sites", ".cfi_sites"),
        *(".ibt_endbr_seal", "__mcount_loc", "__patchable_function_entries", ".kcfi_traps"),
        ".kunit_init_test_suites",  # kunit_module_init() copies and runs them before init memory is freed.
        "_ftrace_eval_map",  # trace_module_add_evals() puts the values into the events' formats.
        # Kept, and what of it is about init is known to be gone: trim_init_extable(), jump_entry_is_init(),
        # static_call_is_init(); the others are looked up by an address that then nobody asks for.
        *("__ex_table", "__jump_table", ".static_call_sites", ".smp_locks", "__bug_table", "__kcfi_traps"),
        *(".orc_unwind", ".orc_unwind_ip", ".orc_header"),
        # do_init_module() calls `init` and forgets it.
        ".gnu.linkonce.this_module",
        # Not code nor data of the module.
        *(".BTF", ".BTF_ids", ".modinfo", "__versions", "__bpf_raw_tp_map"),
    }
)
_LOADER_PREFIXES = ("__ksymtab", "___ksymtab", "__kcrctab", "___kcrctab", "__kflagstab", ".note", ".discard", ".debug")
"""Exports have a rule of their own, which goes by their names."""


class InitReference(msgspec.Struct, frozen=True, gc=False):
    """A place that is there for longer than what it refers to."""

    section: int
    """`Section.index` of the place."""
    offset: int
    symbol: int
    """Index in the file's symbol table, the null symbol counted."""
    kind: int
    """R_X86_64_*"""
    addend: int
    owner: int
    owner_offset: int
    """Whose the place is: code that stands in for other code, or that only other code jumps to, is that code's."""


def is_loaders(name: str) -> bool:
    """Whether the kernel's loader itself manages what a section says of init code, so that it may."""
    return name in _LOADER_SECTIONS or name.startswith(_LOADER_PREFIXES)


def is_owned(name: str) -> bool:
    """Whether a section has pieces of code that belong to other code."""
    return name in _OWNED


def init_references(elf: ElfObject) -> tuple[tuple[InitReference, ...], tuple[InitReference, ...]]:
    """What stays in memory and refers to the init part, but for what the loader manages; and what init data points to
    in the init part. Raises MalformedError."""
    init = frozenset(section.index for section in elf.sections if section.part == "init")
    owners = Owners(elf)
    stays: list[InitReference] = []
    goes: list[InitReference] = []
    for section, offset, kind, symbol, addend in references_to(elf, init):
        if section.part == "init":
            if "X" not in section.flags:
                goes.append(InitReference(section.index, offset, symbol, kind, addend, section.index, offset))
            continue
        owner = owners.of(section.index, offset)
        if owner[0] not in init:
            stays.append(InitReference(section.index, offset, symbol, kind, addend, *owner))
    return tuple(stays), tuple(goes)


def references_to(elf: ElfObject, targets: Container[int]) -> Iterator[tuple[Section, int, int, int, int]]:
    """Section, offset, kind, symbol and addend of all that refers to some sections, but for the loader's and what is
    not loaded. Raises MalformedError."""
    symbols = {number for number, symbol in enumerate(elf.symbols) if symbol.section in targets}
    return references_to_symbols(elf, symbols)


def references_to_symbols(elf: ElfObject, symbols: set[int]) -> Iterator[tuple[Section, int, int, int, int]]:
    """The same of symbols, by their numbers."""
    for table in elf.sections:
        if not symbols or table.kind != "RELA" or not 0 < table.info < len(elf.sections):
            continue
        section = elf.sections[table.info]
        if section.part == "not loaded" or is_loaders(section.name):
            continue
        entries = _entries(elf, table)
        # Most tables have none, and this is quicker than to look at each entry.
        if symbols.isdisjoint(elf.view(table).cast("I")[_SYMBOL :: _ENTRY // 4].tolist()):
            continue
        for offset, kind, symbol, addend in entries:
            if symbol in symbols:
                yield section, offset, kind, symbol, addend


class Owners:
    """Whose a place of the code is, where it is not its section's own."""

    def __init__(self, elf: ElfObject) -> None:
        self._elf = elf
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}
        """By section: where a piece begins; section and offset of the code that it belongs to."""

    def of(self, section: int, offset: int) -> tuple[int, int]:
        """Section and offset of the code that a place belongs to."""
        owned = self._elf.sections[section]
        if owned.name not in _OWNED:
            return section, offset
        pieces = self._pieces.get(section)
        if pieces is None:
            by = _OWNED[owned.name]
            pieces = self._pieces[section] = sorted(self._by_table(owned, by) if by else self._by_jumps(owned))
        index = bisect.bisect_right(pieces, offset, key=lambda piece: piece[0]) - 1
        return pieces[index][1:] if index >= 0 else (section, offset)

    def _by_jumps(self, owned: Section) -> Iterator[tuple[int, int, int]]:
        symbols = self._elf.symbols
        for section, offset, _, number, addend in references_to(self._elf, {owned.index}):
            if "X" in section.flags and section.index != owned.index:
                yield symbols[number].value + addend + _TO_NEXT, section.index, offset

    def _by_table(self, owned: Section, name: str) -> Iterator[tuple[int, int, int]]:
        """Its entries say where the code is, then where the other code is, each from there on."""
        symbols = self._elf.symbols
        places = [
            (offset, symbols[number].section, symbols[number].value + addend)
            for table in self._elf.sections
            if table.kind == "RELA" and 0 < table.info < len(self._elf.sections)
            if self._elf.sections[table.info].name == name
            for offset, _, number, addend in _entries(self._elf, table)
            if number < len(symbols)
        ]
        for (_, site, begin), (_, other, other_begin) in itertools.pairwise(sorted(places, key=lambda one: one[0])):
            if other == owned.index and site is not None and site != owned.index:
                yield other_begin, site, begin


def _entries(elf: ElfObject, table: Section) -> Iterator[tuple[int, int, int, int]]:
    """Offset, kind, symbol and addend."""
    if table.size % _ENTRY or table.size // _ENTRY > MAX_RELOCATIONS:
        raise MalformedError(f"section {table.name} of {table.size} bytes")
    return struct.iter_unpack("<QIIq", elf.view(table))
