"""Where the kernel changes a module's code, or goes on elsewhere: the tables that its loader reads.

arch/x86/kernel/module.c, module_finalize(); kernel/jump_label.c; lib/bug.c; arch/x86/mm/extable.c. All entries
are relative to themselves.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from kbuild.elf.code.link import Linked, Program

ADDRESS = (1 << 64) - 1
FIXUP_REGISTER = 8
"""Bits behind the type (arch/x86/include/asm/extable_fixup_types.h); of a type that sets none it is 0, RAX."""
BUGFLAG_WARNING = 1
"""include/linux/bug.h"""


@dataclass
class Tables:
    """Of one module; keys and values are addresses."""

    others: dict[int, list[int]] = field(default_factory=dict)
    """A place that may be patched, to where it goes on then: an alternative's replacement, a jump label's target."""
    ends: dict[int, int] = field(default_factory=dict)
    """Where a replacement ends, to what follows the code that it replaces."""
    goes_on: dict[int, bool] = field(default_factory=dict)
    """A `ud2` of BUG() or WARN(), to whether the kernel goes on behind it."""
    fixups: dict[int, tuple[int, int]] = field(default_factory=dict)
    """An instruction that may fault, to where the kernel goes on then, and the register that it may set for it."""


def read_tables(program: Program, linked: Linked) -> Tables:
    """What a module's tables say; half an entry at the end of a damaged one is left out."""
    tables = Tables()
    for at, (code, target) in _entries(program, linked, "__jump_table", "<ii", places=2):
        tables.others.setdefault((at + code) & ADDRESS, []).append((at + 4 + target) & ADDRESS)
    for at, (code, other, length, replaced) in _entries(program, linked, ".altinstructions", "<ii", "BB"):
        site, replacement = (at + code) & ADDRESS, (at + 4 + other) & ADDRESS
        tables.others.setdefault(site, []).append(replacement if replaced else site + length)
        if replaced:
            tables.ends[replacement + replaced] = site + length
    for at, (place, flags) in _entries(program, linked, "__bug_table", "<i", "H"):
        tables.goes_on[(at + place) & ADDRESS] = bool(flags & BUGFLAG_WARNING)
    for at, (place, fixup, how) in _entries(program, linked, "__ex_table", "<ii", "I", places=2):
        tables.fixups[(at + place) & ADDRESS] = (at + 4 + fixup) & ADDRESS, how >> FIXUP_REGISTER & 0xF
    return tables


def _entries(
    program: Program, linked: Linked, name: str, first: str, last: str = "", places: int = 1
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Addresses of a table's entries, with the fields at their beginning and those at their end.

    What is between them differs between kernels and configurations, and with it the size of an entry: each names
    `places` pieces of code, so the next one begins where the piece after these is named.
    """
    section = linked.elf.by_name.get(name)
    if section is None or section.index not in linked.base:
        return
    named = (offset for offset, target in program.targets(linked, section) if _is_code(linked, target))
    begins, *_, after = (*itertools.islice(named, places + 1), section.size, section.size)[: places + 1]
    step = after - begins
    if step < struct.calcsize(first) + struct.calcsize(f"<{last}"):
        return
    data, base = program.content(linked, section), linked.base[section.index]
    for at in range(begins, section.size - step + 1, step):
        fields = struct.unpack_from(first, data, at)
        yield base + at, (*fields, *struct.unpack_from(f"<{last}", data, at + step - struct.calcsize(f"<{last}")))


def _is_code(linked: Linked, address: int) -> bool:
    place = linked.section_at(address)
    return place is not None and "X" in place[0].flags and place[0].name != ".altinstr_replacement"
