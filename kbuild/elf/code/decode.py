"""Machine code, decoded where it is reached, as basic blocks of prepared instructions.

The decoder is iced-x86. A block ends where code may go on elsewhere: at branches and calls, at instructions that may
fault with a fixup, and at places that the kernel may patch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from iced_x86 import (
    ConditionCode,
    Decoder,
    FlowControl,
    Instruction,
    MemorySize,
    MemorySizeExt,
    OpKind,
    Register,
    RegisterExt,
)

from kbuild.elf.code.link import Program, has_code
from kbuild.elf.code.loaded import LoadedSection
from kbuild.elf.code.tables import Patch, Tables, read_tables
from kbuild.elf.code.values import MASK

MAX_BLOCK_BYTES = 512
"""A longer one is cut, and goes on in another."""
LEAST_DECODED = 100_000
"""Instructions; more where there is more code: one for two bytes. Blocks overlap where others are jumped into."""
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)
ARGUMENTS = (RDI, RSI, RDX, RCX, R8, R9)
"""System V ABI, AMD64 supplement."""
PRESERVED = (RBX, RBP, 12, 13, 14, 15)
"""What a function gives back as it was."""
CONDITIONS = {
    getattr(ConditionCode, name.upper()): name
    for name in ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
}

NEXT, CALL, JUMP, BRANCH, RETURN, INDIRECT_CALL, INDIRECT_JUMP, STOP = range(8)
"""How it goes on behind an instruction."""
_FLOW = {
    FlowControl.NEXT: NEXT,
    FlowControl.CALL: CALL,
    FlowControl.UNCONDITIONAL_BRANCH: JUMP,
    FlowControl.CONDITIONAL_BRANCH: BRANCH,
    FlowControl.RETURN: RETURN,
    FlowControl.INDIRECT_CALL: INDIRECT_CALL,
    FlowControl.INDIRECT_BRANCH: INDIRECT_JUMP,
}

REGISTER, NUMBER, MEMORY, TARGET, OTHER = range(5)
_NUMBERS = frozenset(
    {
        OpKind.IMMEDIATE8,
        OpKind.IMMEDIATE8_2ND,
        OpKind.IMMEDIATE16,
        OpKind.IMMEDIATE32,
        OpKind.IMMEDIATE64,
        OpKind.IMMEDIATE8TO16,
        OpKind.IMMEDIATE8TO32,
        OpKind.IMMEDIATE8TO64,
        OpKind.IMMEDIATE32TO64,
    }
)


class Operand(msgspec.Struct, frozen=True, gc=False):
    """Of an instruction."""

    kind: int
    size: int = 8
    """In bytes."""
    number: int = 0
    """A register's number, an immediate, a displacement, or a branch's target."""
    high: bool = False
    """One of AH, CH, DH, BH."""
    base: int | None = None
    index: int | None = None
    scale: int = 1
    segment: bool = False
    """In a segment of its own: per-CPU data. Other prefixes say nothing of memory: `notrack` is one for DS."""


class Op:
    """One instruction."""

    __slots__ = ("condition", "do", "flow", "ip", "mnemonic", "next", "operands", "raw")

    def __init__(self, raw: Instruction) -> None:
        self.raw = raw
        self.ip: int = raw.ip
        self.next: int = raw.next_ip
        self.mnemonic: int = raw.mnemonic
        self.flow = _FLOW.get(raw.flow_control, STOP)
        self.condition = CONDITIONS.get(raw.condition_code)
        self.do: Any = None
        """What it does to a state (`instructions.prepare`), once it has been done."""
        self.operands = _operands(raw)
        if not self.operands and self.flow in (CALL, JUMP, BRANCH, INDIRECT_CALL, INDIRECT_JUMP):
            self.flow = NEXT  # To the decoder, `vmcall` and its like are calls: whoever is called returns here.


def register(number: int) -> tuple[int, int, bool] | None:
    """A general register's number, its size, and whether it is a high byte; None for any other register."""
    # To a type checker iced's numbers are an enumeration of its own; they are plain numbers.
    known: Any = number
    if not RegisterExt.is_gpr(known):
        return None
    full = RegisterExt.number(RegisterExt.full_register(known))
    high = number in (Register.AH, Register.CH, Register.DH, Register.BH)
    return full, RegisterExt.size(known), high


_REGISTERS = {
    number: register(number)
    for name, number in vars(Register).items()
    if isinstance(number, int) and not name.startswith("_")
}
_OTHER = Operand(OTHER)
_OPERANDS = {
    number: Operand(REGISTER, found[1], found[0], found[2]) for number, found in _REGISTERS.items() if found is not None
}
"""The operand that a register is."""
_IS_REGISTER, _IS_MEMORY, _IS_TARGET = OpKind.REGISTER, OpKind.MEMORY, OpKind.NEAR_BRANCH64


_PAIR = 2


@functools.cache
def _registers(first: int, second: int) -> tuple[Operand, ...]:
    """Two registers as operands, as many instructions have them."""
    return _OPERANDS.get(first, _OTHER), _OPERANDS.get(second, _OTHER)


def _operands(raw: Instruction) -> tuple[Operand, ...]:
    count = raw.op_count
    if count == _PAIR and raw.op0_kind == _IS_REGISTER and raw.op1_kind == _IS_REGISTER:
        return _registers(raw.op0_register, raw.op1_register)
    return tuple([_operand(raw, number) for number in range(count)])


def _operand(raw: Instruction, place: int) -> Operand:
    kind = raw.op_kind(place)
    if kind == _IS_REGISTER:
        return _OPERANDS.get(raw.op_register(place), _OTHER)
    if kind == _IS_MEMORY:
        base, index = _REGISTERS.get(raw.memory_base), _REGISTERS.get(raw.memory_index)
        return Operand(
            MEMORY,
            MemorySizeExt.size(raw.memory_size) if raw.memory_size != MemorySize.UNKNOWN else 0,
            raw.memory_displacement & MASK[8],
            False,
            base[0] if base else None,
            index[0] if index else None,
            raw.memory_index_scale,
            raw.segment_prefix in (Register.FS, Register.GS),
        )
    if kind == _IS_TARGET:
        return Operand(TARGET, 8, raw.near_branch_target)
    if kind in _NUMBERS:
        return Operand(NUMBER, 8, raw.immediate(place) & MASK[8])
    return _OTHER


@dataclass(slots=True)
class Block:
    """Straight code. `follow`: where it can go on besides what its last instruction says."""

    start: int
    ops: list[Op] = field(default_factory=list)
    follow: tuple[int, ...] = ()
    patches: tuple[Patch, ...] = ()
    """What may stand here in its place, when the kernel has patched it; of several that apply the last one does."""
    fault: int | None = None
    """The second place of `follow` is where it goes on after a fault, which may have set this register."""
    unread: str | None = None
    """Why it is not known what it does."""
    is_cut: bool = False
    """It ends for no other reason than that others come to where it goes on."""


class _Part(NamedTuple):
    """A section with code: most of what is decoded next is in the same one."""

    start: int
    end: int
    loaded: LoadedSection
    tables: Tables
    ends: Mapping[int, int]


class Code:
    """All code of a program, decoded once."""

    def __init__(self, program: Program, cuts: frozenset[int] = frozenset()) -> None:
        """`cuts`: where a block begins in any case."""
        self.program = program
        self.cuts = cuts
        self._blocks: dict[int, Block | None] = {}
        self._ops: dict[int, Op] = {}
        self._part: _Part | None = None
        self._left = LEAST_DECODED + sum(linked.code_bytes for linked in program.modules.values()) // 2
        """Instructions that may still be decoded."""
        self._tables: dict[str, Tables] = {}

    def block(self, address: int) -> Block | None:
        """The block that begins at an address; None where no code is."""
        try:
            return self._blocks[address]
        except KeyError:
            block = self._blocks[address] = self._decode(address)
            return block

    def cut(self, address: int, begins: Set[int]) -> bool:
        """Let a block end where another one begins, if in between two instructions of it; gives whether it does."""
        block = self.block(address)
        if block is None or block.unread is not None:
            return False
        for number, op in enumerate(block.ops):
            if number and op.ip in begins:
                del block.ops[number:]
                block.follow, block.fault, block.is_cut = (op.ip,), None, True
                return True
        return False

    def lead(self, address: int, start: int, to: int) -> None:
        """Let a block end before an instruction of it, not its first one, and go on where the same is done."""
        if self.cut(address, {start}):
            block = self._blocks[address]
            assert block is not None
            block.follow = (to,)

    def tables(self, module: str) -> Tables:
        """What is patched in a module."""
        tables = self._tables.get(module)
        if tables is None:
            tables = self._tables[module] = read_tables(self.program, self.program.modules[module])
        return tables

    def _decode(self, address: int) -> Block | None:
        part = self._part
        if part is None or not part.start <= address < part.end:
            place = self.program.place(address)
            if place is None or not has_code(place[1]):
                return None
            linked, section, offset = place
            tables = self.tables(linked.name)
            ends = tables.ends if section.name == ".altinstr_replacement" else {}
            start = address - offset
            loaded = self.program.loaded(linked, section)
            part = self._part = _Part(start, start + section.size, loaded, tables, ends)
        offset, loaded, tables = address - part.start, part.loaded, part.tables
        data = loaded.read(offset, min(offset + MAX_BLOCK_BYTES, part.end - part.start))
        block = Block(address)
        self._read(block, data, tables, part.ends)
        if block.ops:
            size = block.ops[-1].raw.next_ip - address
            unread = self.program.unread(address, size) if loaded.unread(offset, offset + size) else None
            self._left -= len(block.ops)
            if self._left < 0:
                unread = "too much code is jumped into from everywhere"
                block.ops.clear()
            block.unread = unread or tables.unread
        return block

    def _read(self, block: Block, data: bytes, tables: Tables, ends: Mapping[int, int]) -> None:
        """Put instructions into a block, until it ends. Blocks overlap before they are cut: each is decoded once."""
        start, patches, known = block.start, tables.patches, self._ops
        decoder = Decoder(64, data, ip=start)
        here = start
        while True:
            if block.ops and (here in ends or here in patches or here in self.cuts):
                block.follow = (ends.get(here, here),)
                return
            op = known.get(here)
            if op is None:
                if decoder.ip != here:
                    decoder.position, decoder.ip = here - start, here
                raw = decoder.decode() if decoder.can_decode else None
                if raw is not None and not raw.is_invalid:
                    op = known[here] = Op(raw)
                    op.next = ends.get(op.next, op.next)
            if op is None or here + op.raw.len - start > len(data):
                # Cut where the section ends, or no code: nothing goes on. Cut where we cut it: it does.
                if len(data) == MAX_BLOCK_BYTES and block.ops:
                    block.follow = (here,)
                elif not block.ops:
                    block.patches = tuple(patches.get(here, ()))
                return
            if not block.ops and here in patches:
                block.patches = tuple(each.instead_of(op.flow == JUMP, op.next) for each in patches[here])
            block.ops.append(op)
            if op.flow != NEXT:
                return
            if here in tables.fixups:
                fixup, block.fault = tables.fixups[here]
                block.follow = (op.next, fixup)
                return
            here = op.raw.next_ip
