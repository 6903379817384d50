"""Where an object's address goes in code, and what code does with the object through it.

A function is read from its beginning to its end, not by its paths: registers that hold the address are followed until
something else is put into them, through calls within the module too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from iced_x86 import (
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
)
from iced_x86 import RegisterExt as Registers

from kbuild.elf.code.results import RETURN_THUNKS
from kbuild.elf.object import Symbol

ARGUMENTS = frozenset((Register.RDI, Register.RSI, Register.RDX, Register.RCX, Register.R8, Register.R9))
SCRATCH = ARGUMENTS | {Register.RAX, Register.R10, Register.R11}
"""What a call may change (System V ABI, AMD64 supplement)."""
KEEPS_NOTHING = frozenset({"dmi_check_system", "dmi_first_match", "x86_match_cpu", "_printk", "memcmp", "strcmp"})
"""The kernel's functions that look at what they are given and forget it (drivers/firmware/dmi_scan.c, cpu/match.c)."""
EMPTIES = frozenset({"ethtool_forced_speed_maps_init"})
"""The kernel's functions for tables whose parts are in init data: they copy these, and forget them (net/ethtool/)."""
NO_CALL = frozenset({"__fentry__", "__cyg_profile_func_enter", "__sanitizer_cov_trace_pc"})
MAX_DEPTH = 4
"""Calls within calls, and objects within objects."""
POINTER = 8
_READS = {OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
_WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}


@dataclass(frozen=True, slots=True)
class Operation:
    """An instruction with what the loader fills in into it: symbol and addend."""

    raw: Instruction
    """Its address is the offset in the section."""
    section: int
    displacement: tuple[Symbol, int] | None
    immediate: tuple[Symbol, int] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value points: `offset` bytes behind the object's beginning, or any number of elements further."""

    offset: int
    any_element: bool


@dataclass(frozen=True, slots=True)
class Load:
    """An instruction that puts eight bytes of an object into a register."""

    code: Sequence[Operation]
    index: int
    register: int


@dataclass(frozen=True, slots=True)
class Read:
    """An instruction that reads an object."""

    place: Place
    size: int
    load: Load | None
    compares: bool
    """It only looks whether it is some value."""


@dataclass
class Uses:
    """How code uses an object: bytes that it reads and writes, and what it does with its address."""

    reads: list[Read] = field(default_factory=list)
    writes: list[tuple[Place, int]] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    """In words: what is done with the address that shows no end of its use."""
    callees: list[str] = field(default_factory=list)
    """Of `given`: the names of what is called with the address."""
    emptied: list[str] = field(default_factory=list)
    """The same of what puts NULL into all of its pointers to init data."""
    lent: list[str] = field(default_factory=list)
    """The same of what does show one: when that returns, nobody has the address."""


@dataclass
class Budget:
    """Instructions that may still be looked at: real modules need some thousands, a hostile one must not take hours."""

    left: int = 1 << 20


class Follow:
    """An object's address on its way through code."""

    def __init__(
        self,
        function: Callable[[int, int], Sequence[Operation]],
        uses: Uses,
        budget: Budget,
        *,
        keeps_on_stack: bool = False,
    ) -> None:
        """`function` gives the instructions of the function that a place (section, offset) is in.

        `keeps_on_stack`: what is put on the stack is only kept there. Else it may be part of something that a
        function is called with, as when a driver fills in what it registers.
        """
        self._function = function
        self._uses = uses
        self._budget = budget
        self._keeps_on_stack = keeps_on_stack
        self._info = InstructionInfoFactory()
        self._seen: set[tuple[int, int, tuple[tuple[int, Place], ...]]] = set()

    def through(self, code: Sequence[Operation], index: int, held: dict[int, Place], depth: int = 0) -> None:
        """Straight on from an instruction, with what each register holds."""
        if self._once(code, index, dict(held), depth):
            # It steps through the object: what was seen of the first element holds for each.
            self._once(code, index, {register: Place(place.offset, True) for register, place in held.items()}, depth)

    def _once(self, code: Sequence[Operation], index: int, held: dict[int, Place], depth: int) -> bool:
        """Whether an address was moved on."""
        steps = False
        for number in range(index, len(code)):
            if not held:
                break
            if self._budget.left <= 0:
                self._uses.given.append("has its address, and there is too much code to follow it")
                break
            self._budget.left -= 1
            one, raw = code[number], code[number].raw
            calls = raw.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL)
            if calls or self._leaves(code, one, held):
                self._memory(code, number, held)
                self._call(one, held, depth)
                if calls and _callee(one) not in NO_CALL:
                    for register in SCRATCH:
                        held.pop(register, None)
            elif raw.flow_control == FlowControl.RETURN and Register.RAX in held:
                self._uses.given.append("returns its address")
            else:
                self_based = raw.mnemonic == Mnemonic.LEA and raw.op0_register == raw.memory_base
                steps |= (raw.mnemonic in _STEPS or self_based) and Registers.full_register(raw.op0_register) in held
                self._step(code, number, held)
        return steps

    def _leaves(self, code: Sequence[Operation], one: Operation, held: Mapping[int, Place]) -> bool:
        """Whether a jump is a call whose return is ours. One through a table, or into it, is a switch."""
        raw = one.raw
        if raw.flow_control == FlowControl.INDIRECT_BRANCH:
            return raw.memory_index == Register.NONE and Registers.full_register(raw.op0_register) not in held
        if raw.flow_control != FlowControl.UNCONDITIONAL_BRANCH:
            return False
        return one.immediate is not None or not code[0].raw.ip <= raw.near_branch_target < code[-1].raw.next_ip

    def _call(self, one: Operation, held: dict[int, Place], depth: int) -> None:
        callee = _callee(one)
        passed = {register: place for register, place in held.items() if register in ARGUMENTS}
        if callee in RETURN_THUNKS:
            if Register.RAX in held:
                self._uses.given.append("returns its address")
            return
        if not passed or callee in NO_CALL:
            return
        if callee in EMPTIES:
            self._uses.emptied.append(f"has {callee} write over it")
            return
        if callee in KEEPS_NOTHING:
            self._uses.lent.append(f"passes its address to {callee}")
            return
        target = self._target(one)
        if target is None or depth >= MAX_DEPTH:
            self._uses.callees += [callee] if callee else []
            self._uses.given.append(f"passes its address to {callee or 'a function that a pointer names'}")
            return
        key = (*target, tuple(sorted(passed.items(), key=lambda item: item[0])))
        if key not in self._seen:
            self._seen.add(key)
            body = self._function(*target)
            begin = next((n for n, op in enumerate(body) if op.raw.ip == target[1]), len(body))
            self.through(body, begin, passed, depth + 1)

    def _target(self, one: Operation) -> tuple[int, int] | None:
        """Section and offset of a function of this module."""
        if one.raw.op_count != 1 or one.raw.op0_kind != OpKind.NEAR_BRANCH64:
            return None
        if one.immediate is None:
            return one.section, one.raw.near_branch_target
        symbol, addend = one.immediate
        return (symbol.section, symbol.value + addend) if symbol.section is not None else None

    def access(self, code: Sequence[Operation], index: int, place: Place) -> None:
        """Note what an instruction does with its memory operand, which is at `place`."""
        raw, info = code[index].raw, self._info.info(code[index].raw)
        size = max(1, MemorySizeExt.size(raw.memory_size))
        for number in range(raw.op_count):
            if raw.op_kind(number) != OpKind.MEMORY:
                continue
            access = info.op_access(number)
            if access in _READS:
                moves = raw.mnemonic == Mnemonic.MOV and size == POINTER
                load = Load(code, index, Registers.full_register(raw.op0_register)) if moves else None
                self._uses.reads.append(Read(place, size, load, raw.mnemonic in _COMPARES))
            if access in _WRITES:
                self._uses.writes.append((place, size))

    def _memory(self, code: Sequence[Operation], number: int, held: Mapping[int, Place]) -> Place | None:
        """The place in the object that an instruction's memory operand is, which it uses."""
        raw = code[number].raw
        base, index = Registers.full_register(raw.memory_base), Registers.full_register(raw.memory_index)
        through = held.get(base) or held.get(index)
        if through is None:
            return None
        displacement = raw.memory_displacement - (1 << 64 if raw.memory_displacement >> 63 else 0)
        other = index if base in held else base
        place = Place(through.offset + displacement, through.any_element or other != Register.NONE)
        self.access(code, number, place)
        return place

    def _step(self, code: Sequence[Operation], number: int, held: dict[int, Place]) -> None:
        raw = code[number].raw
        at = self._memory(code, number, held)
        source = (
            Registers.full_register(raw.op1_register) if raw.op_count > 1 and raw.op1_kind == OpKind.REGISTER else None
        )
        slot = _slot(raw) if self._keeps_on_stack else None
        if slot is not None and raw.op0_kind == OpKind.MEMORY:
            place = held.get(source) if source is not None else None
            held.pop(slot, None)
            if place is not None:
                held[slot] = place
        elif raw.op_count and raw.op0_kind == OpKind.MEMORY and source in held and raw.mnemonic not in _COMPARES:
            self._uses.given.append("stores its address")
        if raw.mnemonic == Mnemonic.PUSH and raw.op0_kind == OpKind.REGISTER and raw.op0_register in held:
            self._uses.given.append("puts its address on the stack")
        into = Registers.full_register(raw.op0_register) if raw.op_count and raw.op0_kind == OpKind.REGISTER else None
        result = held.get(slot) if slot is not None else _result(raw, held, into, source, at)
        for used in self._info.info(raw).used_registers():
            if used.access in _WRITES:
                held.pop(Registers.full_register(used.register), None)
        if into is not None and result is not None:
            held[into] = result


def _callee(one: Operation) -> str | None:
    """The name of what is called, where it is one."""
    return one.immediate[0].name or None if one.immediate is not None else None


def _slot(raw: Instruction) -> int | None:
    """A number, less than any register's, for the place on the stack that an instruction moves from or to."""
    base = Registers.full_register(raw.memory_base)
    if raw.mnemonic != Mnemonic.MOV or base not in (Register.RSP, Register.RBP) or raw.memory_index != Register.NONE:
        return None
    return -1 - (base << 64 | raw.memory_displacement)


_STEPS = {Mnemonic.ADD, Mnemonic.SUB, Mnemonic.INC, Mnemonic.DEC}
_COMPARES = {Mnemonic.CMP, Mnemonic.TEST}
_MOVES_MAYBE = {number for name, number in vars(Mnemonic).items() if name.startswith("CMOV")}


def _result(
    raw: Instruction, held: dict[int, Place], into: int | None, source: int | None, at: Place | None
) -> Place | None:
    """Where the register that an instruction writes points then, if into the object."""
    if into is None:
        return None
    old, new = held.get(into), held.get(source) if source is not None else None
    match raw.mnemonic:
        case Mnemonic.LEA:
            return at
        case Mnemonic.MOV:
            return new
        case Mnemonic.ADD | Mnemonic.SUB if source is not None:
            place = old or (new if raw.mnemonic == Mnemonic.ADD else None)
            return Place(place.offset, True) if place else None
        case Mnemonic.ADD | Mnemonic.SUB | Mnemonic.INC | Mnemonic.DEC if old is not None:
            if raw.op_count == 2 and raw.op1_kind == OpKind.MEMORY:
                return Place(old.offset, True)
            step = raw.immediate(1) if raw.op_count == 2 else 1
            step -= 1 << 64 if step >> 63 else 0
            moved = step if raw.mnemonic in (Mnemonic.ADD, Mnemonic.INC) else -step
            return Place(old.offset + moved, old.any_element)
        case _ if raw.mnemonic in _COMPARES:
            return None
        case _ if new is not None and raw.mnemonic in _MOVES_MAYBE:
            return new
    return None
