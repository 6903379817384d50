"""Functions of the same name and size whose code is another one all the same: compared instruction by instruction.

Addresses are compared by what is there, so that code which only has moved is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from iced_x86 import Decoder, Instruction, MemorySizeExt, OpKind, Register

from kbuild.elf.code.link import Linked, Program
from kbuild.elf.names import plain_name
from kbuild.elf.object import Section, Symbol

MAX_FUNCTION = 1 << 20
MAX_OVERLAP = 4
"""Times the code of a module that its functions may have together; more of them are not compared."""
MAX_TEXT = 1 << 12
"""Bytes of a string."""


def code_changes(before: Program, after: Program) -> dict[str, list[str]]:
    """By module of `after`, in the order of their addresses: names of such functions.

    Raises MalformedError where a file contradicts itself.
    """
    old_modules = {linked.image.kernel_name: linked for linked in before.modules.values()}
    found: dict[str, list[str]] = {}
    for linked in after.modules.values():
        old = old_modules.get(linked.image.kernel_name)
        if old is None or old.image.sha256 == linked.image.sha256:
            continue
        known = dict(_functions(old))
        left = MAX_OVERLAP * after.code_bytes(linked.name)
        for key, (symbol, section) in _functions(linked):
            other = known.get(key)
            if other is None or other[0].size != symbol.size:
                continue
            left -= symbol.size
            if left < 0:
                break
            places = (old.base[other[1].index] + other[0].value, linked.base[section.index] + symbol.value)
            if not _Comparison(before, after, *places, symbol.size).same():
                found.setdefault(linked.name, []).append(symbol.name)
    return found


def _functions(linked: Linked) -> Iterator[tuple[tuple[str, str], tuple[Symbol, Section]]]:
    """Functions by plain name and section; those of which there are several with one name are left out."""
    every = []
    for symbol in linked.elf.symbols:
        section = linked.elf.sections[symbol.section] if symbol.section in linked.base else None
        if section is not None and symbol.kind == "func" and 0 < symbol.size <= MAX_FUNCTION:
            every.append(((plain_name(symbol.name), section.name), (symbol, section)))
    times = Counter(key for key, _ in every)
    return (one for one in every if times[one[0]] == 1)


class _Comparison:
    """Of two functions of the same size."""

    def __init__(self, before: Program, after: Program, old: int, new: int, size: int) -> None:
        self._before, self._after = before, after
        self._old, self._new, self._size = old, new, size

    def same(self) -> bool:
        a, b = self._before.read(self._old, self._size), self._after.read(self._new, self._size)
        if a is None or b is None:
            return a == b
        pairs = zip(Decoder(64, a, ip=self._old), Decoder(64, b, ip=self._new), strict=False)
        return all(x.code == y.code and x.len == y.len and self._same_operands(x, y) for x, y in pairs)

    def _same_operands(self, x: Instruction, y: Instruction) -> bool:
        for number in range(x.op_count):
            kind = x.op_kind(number)
            if kind != y.op_kind(number):
                return False
            if kind == OpKind.REGISTER:
                same = x.op_register(number) == y.op_register(number)
            elif kind == OpKind.MEMORY:
                same = (
                    x.memory_base == y.memory_base
                    and x.memory_index == y.memory_index
                    and x.memory_index_scale == y.memory_index_scale
                    and x.segment_prefix == y.segment_prefix
                    and self._same_value(x.memory_displacement, y.memory_displacement, _constant_size(x))
                )
            elif kind == OpKind.NEAR_BRANCH64:
                same = self._same_value(x.near_branch_target, y.near_branch_target)
            else:
                # Of what is neither, such as the implied operands of `movs`, the code says all.
                same = not _has_immediate(x, number) or self._same_value(x.immediate(number), y.immediate(number))
            if not same:
                return False
        return True

    def _same_value(self, x: int, y: int, size: int = 0) -> bool:
        if 0 <= x - self._old < self._size or 0 <= y - self._new < self._size:
            return x - self._old == y - self._new
        what = _meaning(self._before, x, size)
        return what == _meaning(self._after, y, size) if what is not None else x == y


def _has_immediate(instruction: Instruction, number: int) -> bool:
    return OpKind.IMMEDIATE8 <= instruction.op_kind(number) <= OpKind.IMMEDIATE32TO64


def _constant_size(instruction: Instruction) -> int:
    """How many bytes are read of one place; 0: of a table."""
    return MemorySizeExt.size(instruction.memory_size) if instruction.memory_index == Register.NONE else 0


def _meaning(program: Program, address: int, size: int) -> object:
    """What is at an address, as it is called in any build; None where nothing is: then it is a number."""
    place = program.place(address)
    if place is None:
        return program.kernel_name(address)
    linked, section, offset = place
    if "S" in section.flags and "M" in section.flags:
        return program.content(linked, section, offset, MAX_TEXT).partition(b"\0")[0]
    name = program.name(address)
    if name is None or name.symbol.startswith(".L") or address >= program.object_end(address - name.offset):
        # Of what has no name, where it is says nothing: constants are compared, tables are not looked into.
        return section.name, program.read(address, size) if "W" not in section.flags else None
    return linked.image.kernel_name, plain_name(name.symbol), name.offset
