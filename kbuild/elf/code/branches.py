"""What pieces of code refer to in code: where they call and jump to, and whose address they take.

A call to a function of the same section that is not global has no relocation: the assembler has filled it in. So all of
a section is decoded, and each relocation is looked up in the instruction that it fills in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iced_x86 import Decoder, OpKind

from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Relocation, Section

_PC_RELATIVE = {2, 4}
"""R_X86_64_PC32 and R_X86_64_PLT32: they count from the end of their four bytes, which the addend takes off."""
_TO_NEXT = 4


@dataclass(frozen=True, slots=True)
class Mention:
    """A piece of code that something refers to."""

    offset: int
    """Of the instruction, in the section that was decoded."""
    section: int
    """`Section.index` of what it refers to, and the offset in it."""
    target: int
    branch: bool
    """A call or jump; else its address is taken."""


def mentions(elf: ElfObject, section: Section, starts: Iterable[int]) -> Iterator[Mention]:
    """All that an executable section refers to in executable sections, ascending. Raises MalformedError.

    `starts`: where its functions begin, so that what lies between them and is no code cannot put others out of step.
    """
    content = elf.content(section)
    relocations = sorted(elf.relocations(section), key=lambda one: one.offset)
    bounds = sorted({0, len(content), *(start for start in starts if 0 < start < len(content))})
    at = 0
    for begin, end in itertools.pairwise(bounds):
        decoder = Decoder(64, content[begin:end], ip=begin)
        for raw in decoder:
            filled: list[Relocation] = []
            while at < len(relocations) and relocations[at].offset < raw.next_ip:
                filled.append(relocations[at])
                at += 1
            branch = raw.op_count > 0 and raw.op0_kind == OpKind.NEAR_BRANCH64
            for one in filled:
                if one.symbol >= len(elf.symbols):
                    raise MalformedError(f"section {section.name} refers to a symbol that is not there")
                symbol = elf.symbols[one.symbol]
                if symbol.section is not None and "X" in elf.sections[symbol.section].flags:
                    target = symbol.value + one.addend + (_TO_NEXT if one.kind in _PC_RELATIVE else 0)
                    yield Mention(raw.ip, symbol.section, target, branch)
            if branch and not filled:
                yield Mention(raw.ip, section.index, raw.near_branch_target, True)
            elif raw.is_ip_rel_memory_operand:
                place = raw.ip + decoder.get_constant_offsets(raw).displacement_offset
                if all(one.offset != place for one in filled):
                    yield Mention(raw.ip, section.index, raw.ip_rel_memory_address, False)
