"""Machine code, decoded where it is reached, as basic blocks of prepared instructions.

The decoder is iced-x86. A block ends where code may go on elsewhere: at branches and calls, at instructions that may
fault with a fixup, and at places that the kernel may patch.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

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

from kbuild.elf.code.link import Program
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

    __slots__ = ("condition", "flow", "ip", "mnemonic", "next", "operands", "raw")

    def __init__(self, raw: Instruction) -> None:
        self.raw = raw
        self.ip: int = raw.ip
        self.next: int = raw.next_ip
        self.mnemonic: int = raw.mnemonic
        self.flow = _FLOW.get(raw.flow_control, STOP)
        self.condition = CONDITIONS.get(raw.condition_code)
        self.operands = tuple(_operand(raw, number) for number in range(raw.op_count))
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


def _operand(raw: Instruction, place: int) -> Operand:
    kind = raw.op_kind(place)
    if kind == OpKind.REGISTER:
        found = _REGISTERS.get(raw.op_register(place))
        return Operand(REGISTER, found[1], found[0], found[2]) if found else Operand(OTHER)
    if kind == OpKind.MEMORY:
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
    if kind == OpKind.NEAR_BRANCH64:
        return Operand(TARGET, 8, raw.near_branch_target)
    if kind in _NUMBERS:
        return Operand(NUMBER, 8, raw.immediate(place) & MASK[8])
    return Operand(OTHER)


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


class Code:
    """All code of a program, decoded once."""

    def __init__(self, program: Program, cuts: frozenset[int] = frozenset()) -> None:
        """`cuts`: where a block begins in any case."""
        self.program = program
        self._cuts = cuts
        self._blocks: dict[int, Block | None] = {}
        self._left = LEAST_DECODED + sum(linked.code_bytes for linked in program.modules.values()) // 2
        """Instructions that may still be decoded."""
        self._tables: dict[str, Tables] = {}

    def block(self, address: int) -> Block | None:
        """The block that begins at an address; None where no code is."""
        try:
            return self._blocks[address]
        except KeyError:
            block = self._blocks[address] = self._decode(address)
            if block is not None and block.ops:
                module = self.program.module_at(address)
                unread = self.program.unread(address, block.ops[-1].ip + block.ops[-1].raw.len - address)
                self._left -= len(block.ops)
                if self._left < 0:
                    unread = "too much code is jumped into from everywhere"
                    block.ops.clear()
                block.unread = unread or (self.tables(module.name).unread if module is not None else None)
            return block

    def cut(self, address: int, begins: Set[int]) -> None:
        """Let a block end where another one begins, if in between two instructions of it."""
        block = self.block(address)
        if block is None or block.unread is not None:
            return
        for number, op in enumerate(block.ops):
            if number and op.ip in begins:
                del block.ops[number:]
                block.follow, block.fault, block.is_cut = (op.ip,), None, True
                return

    def tables(self, module: str) -> Tables:
        """What is patched in a module."""
        tables = self._tables.get(module)
        if tables is None:
            tables = self._tables[module] = read_tables(self.program, self.program.modules[module])
        return tables

    def _decode(self, address: int) -> Block | None:
        place = self.program.place(address)
        if place is None or not self.program.is_code(address):
            return None
        linked, section, offset = place
        data = self.program.content(linked, section, offset, MAX_BLOCK_BYTES)
        tables = self.tables(linked.name)
        ends = tables.ends if section.name == ".altinstr_replacement" else {}
        block = Block(address)
        decoder = Decoder(64, data, ip=address)
        while True:
            here = decoder.ip
            if block.ops and (here in ends or here in tables.patches or here in self._cuts):
                block.follow = (ends.get(here, here),)
                return block
            raw = decoder.decode() if decoder.can_decode else None
            if raw is None or raw.is_invalid:
                # Cut where the section ends, or no code: nothing goes on. Cut where we cut it: it does.
                if len(data) == MAX_BLOCK_BYTES and block.ops:
                    block.follow = (here,)
                elif not block.ops:
                    block.patches = tuple(tables.patches.get(here, ()))
                return block
            op = Op(raw)
            op.next = ends.get(op.next, op.next)
            if not block.ops:
                block.patches = tuple(
                    each.instead_of(op.flow == JUMP, op.next) for each in tables.patches.get(here, ())
                )
            block.ops.append(op)
            if op.flow != NEXT:
                return block
            if op.ip in tables.fixups:
                fixup, block.fault = tables.fixups[op.ip]
                block.follow = (op.next, fixup)
                return block
