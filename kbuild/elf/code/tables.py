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
TERSE_BUG = 8
"""Bytes of struct bug_entry that has an address and flags alone (include/asm-generic/bug.h)."""
FEATURE_ALWAYS = 3 * 32 + 21
"""arch/x86/include/asm/cpufeatures.h: every CPU has it."""
SHORT_ALTERNATIVE = 12
"""Bytes of struct alt_instr up to 6.2: the feature's highest bit says `not`. Later, flags of two bytes do."""
ALT_FLAG_NOT, ALT_FLAG_DIRECT_CALL = 1, 2
"""arch/x86/include/asm/alternative.h; the second one: an indirect call becomes a direct one to the same function."""

MAX_PATCHES = 32
"""Of one place; KVM has up to 3. Each may be there or not."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What may stand at a place instead of what the file has there."""

    to: int
    """Where it goes on then."""
    feature: int | None = None
    """Of the CPU, that says whether it does."""
    key: int | None = None
    """Address of the static key that does."""
    when: bool = True
    """Whether it stands there when the CPU has the feature, or the key is enabled; else when not."""

    def instead_of(self, jump: bool, following: int) -> Patch:
        """The same at a place that is a jump in the file, or none: a jump label that is one may be patched away."""
        if self.key is None or not jump:
            return self
        return Patch(following, None, self.key, not self.when)


@dataclass
class Tables:
    """Of one module; keys and values are addresses."""

    patches: dict[int, list[Patch]] = field(default_factory=dict)
    """A place that may be patched, to what with, in the order of patching: alternatives, jump labels."""
    ends: dict[int, int] = field(default_factory=dict)
    """Where a replacement ends, to what follows the code that it replaces."""
    goes_on: dict[int, bool] = field(default_factory=dict)
    """A `ud2` of BUG() or WARN(), to whether the kernel goes on behind it."""
    fixups: dict[int, tuple[int, int]] = field(default_factory=dict)
    """An instruction that may fault, to where the kernel goes on then, and the register that it may set for it."""
    unread: str | None = None
    """Why they are not all known."""


def read_tables(program: Program, linked: Linked) -> Tables:
    """What a module's tables say; half an entry at the end of a damaged one is left out."""
    tables = Tables()
    for name in ("__jump_table", ".altinstructions", "__bug_table", "__ex_table"):
        section = linked.elf.by_name.get(name)
        if section is not None and section.index in linked.base:
            program.content(linked, section)
            tables.unread = tables.unread or program.unread(linked.base[section.index], section.size)
    for at, entry in _entries(program, linked, "__jump_table", 16, places=2):
        code, target, key = struct.unpack_from("<iiq", entry)
        # The key's lowest bits: whether the branch is the likely one, and what the loader notes for itself.
        patch = Patch((at + 4 + target) & ADDRESS, None, (at + 8 + key) & ADDRESS & ~3, not key & 1)
        tables.patches.setdefault((at + code) & ADDRESS, []).append(patch)
    for at, entry in _entries(program, linked, ".altinstructions", SHORT_ALTERNATIVE):
        code, other, feature, flags = struct.unpack_from("<iiHH", entry)
        length, replaced = entry[-2:]
        if len(entry) == SHORT_ALTERNATIVE:
            feature, flags = feature & 0x7FFF, ALT_FLAG_NOT if feature >> 15 else 0
        site, replacement = (at + code) & ADDRESS, (at + 4 + other) & ADDRESS
        if flags & ALT_FLAG_DIRECT_CALL:
            continue
        patch = Patch(replacement if replaced else site + length, feature, None, not flags & ALT_FLAG_NOT)
        tables.patches.setdefault(site, []).append(patch)
        if replaced:
            tables.ends[replacement + replaced] = site + length
    for at, entry in _entries(program, linked, "__bug_table", 6):
        place = struct.unpack_from("<i", entry)[0]
        # Behind file and line; without these (no CONFIG_DEBUG_BUGVERBOSE) behind the address, and padding follows.
        flags = struct.unpack_from("<H", entry, 4 if len(entry) == TERSE_BUG else len(entry) - 2)[0]
        tables.goes_on[(at + place) & ADDRESS] = bool(flags & BUGFLAG_WARNING)
    for at, entry in _entries(program, linked, "__ex_table", 12, places=2):
        place, fixup, how = struct.unpack_from("<iiI", entry)
        tables.fixups[(at + place) & ADDRESS] = (at + 4 + fixup) & ADDRESS, how >> FIXUP_REGISTER & 0xF
    if any(len(patches) > MAX_PATCHES for patches in tables.patches.values()):
        tables.patches.clear()
        tables.unread = f"{linked.name}: a place in the code is patched in more than {MAX_PATCHES} ways"
    return tables


def _entries(program: Program, linked: Linked, name: str, least: int, places: int = 1) -> Iterator[tuple[int, bytes]]:
    """Addresses of a table's entries, with their bytes, of which there are at least so many.

    What is in them differs between kernels and configurations, and with it the size of an entry: each names
    `places` pieces of code, so the next one begins where the piece after these is named.
    """
    section = linked.elf.by_name.get(name)
    if section is None or section.index not in linked.base:
        return
    named = (offset for offset, target in program.targets(linked, section) if _is_code(linked, target))
    begins, *_, after = (*itertools.islice(named, places + 1), section.size, section.size)[: places + 1]
    step = after - begins
    if step < least:
        return
    data, base = program.content(linked, section), linked.base[section.index]
    for at in range(begins, section.size - step + 1, step):
        yield base + at, data[at : at + step]


def _is_code(linked: Linked, address: int) -> bool:
    place = linked.section_at(address)
    return place is not None and "X" in place[0].flags and place[0].name != ".altinstr_replacement"
