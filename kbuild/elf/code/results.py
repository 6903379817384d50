"""Which registers still matter at the beginning of each block of a function: where its result may wait until it
returns, and what may be looked at.

Ways that have different kinds of results are not joined. A register that nobody reads any more has none, be it what an
earlier call gave or what the caller kept there: it would keep ways apart for nothing. Where ways are joined, what such
a register holds need not be known: that saves an unknown, and all that would be made of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from iced_x86 import Mnemonic, Register, RflagsBits

from kbuild.elf.code.decode import (
    ARGUMENTS,
    BRANCH,
    CALL,
    INDIRECT_CALL,
    INDIRECT_JUMP,
    JUMP,
    MEMORY,
    NEXT,
    PRESERVED,
    RAX,
    REGISTER,
    RETURN,
    RSP,
    TARGET,
    Block,
    Code,
    Op,
    Operand,
    register,
)

RETURN_THUNKS = frozenset({"__x86_return_thunk", "zen_untrain_ret", "srso_return_thunk", "its_return_thunk"})
"""What `ret` is compiled to, or replaced by (arch/x86/lib/retpoline.S)."""
INDIRECT_THUNKS = (
    "__x86_indirect_thunk_",
    "__x86_indirect_call_thunk_",
    "__x86_indirect_jump_thunk_",
    "__x86_indirect_its_thunk_",
)
"""They call, or jump to, what is in the register that they are named after."""
_OVERWRITE = frozenset((Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.LEA, Mnemonic.POP))
"""Their first operand is not read."""
_AS_WRITTEN = _OVERWRITE | {
    *(Mnemonic.TEST, Mnemonic.CMP, Mnemonic.ADD, Mnemonic.SUB, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR),
    *(Mnemonic.SHL, Mnemonic.SHR, Mnemonic.BT, Mnemonic.PUSH, Mnemonic.NOP, Mnemonic.ENDBR64),
}
"""They read no register that is not among their operands, but for the stack's."""
_MOVE = Mnemonic.MOV
_PRESERVED = frozenset(PRESERVED)
_CONDITIONS = RflagsBits.OF | RflagsBits.SF | RflagsBits.ZF | RflagsBits.CF | RflagsBits.PF
"""What a condition may be about."""
_RESULT = 1 << RAX
FLAGS = 16
"""The bit of the flags, behind those of the registers."""
_USED = 17
_ANY = (1 << _USED) - 1
_GIVEN = sum(1 << one for one in ARGUMENTS)
_RETURNED = sum(1 << one for one in (RAX, RSP, *PRESERVED))
_AS_NAMED = frozenset(
    number
    for name, number in vars(Mnemonic).items()
    if name.startswith(("CMOV", "SET")) or name in ("INC", "DEC", "NOT", "NEG", "SBB", "SAR", "BTS", "BTR", "BTC")
)
"""As `_AS_WRITTEN`, and so is what they write."""


def live_before(effects: Mapping[int, tuple[int, int]], follow: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Of each block the bits that are read in it or behind it before they are written; `effects`: what it reads, and
    what it writes. Each is looked at again only where one behind it has changed: files are untrusted."""
    live = dict.fromkeys(effects, 0)
    leads: dict[int, list[int]] = {}
    for address in effects:
        for one in follow.get(address, ()):
            if one in effects:
                leads.setdefault(one, []).append(address)
    waiting = deque(effects)
    there = set(effects)
    while waiting:
        address = waiting.popleft()
        there.discard(address)
        reads, writes = effects[address]
        behind = 0
        for one in follow.get(address, ()):
            behind |= live.get(one, 0)
        now = reads | behind & ~writes
        if now != live[address]:
            live[address] = now
            for before in leads.get(address, ()):
                if before not in there:
                    there.add(before)
                    waiting.append(before)
    return live


def thunk_register(symbol: str) -> int | None:
    """The register that an indirect thunk calls through, or jumps; None: it is no such thunk."""
    if not symbol.startswith(INDIRECT_THUNKS):
        return None
    found = register(getattr(Register, symbol.rpartition("_")[2].upper(), Register.NONE))
    return found[0] if found else None


def results_of(
    code: Code, follow: Mapping[int, Sequence[int]], blocks: Sequence[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, int]]:
    """By address, for the blocks of a function, of which each comes before those that lead to it, but for loops: the
    registers that a result may wait in, and a bit for each register, and `FLAGS`, that anything behind may look at.

    `follow`: a block's address to those that it can go on at.
    """
    registers = {RAX}
    effects: dict[int, tuple[int, int]] = {}
    for address in blocks:
        block = code.block(address)
        effects[address] = (_ANY << _USED, 0)
        if block is not None:
            effects[address] = _effect(code, block, follow[address], registers)
    live = live_before(effects, follow)
    every = sorted(registers)
    named: dict[int, tuple[int, ...]] = {}
    results = {
        address: named.get(bits) or named.setdefault(bits, tuple(one for one in every if bits >> one & 1))
        for address, bits in live.items()
    }
    waits = sum(1 << one for one in every)
    return results, {address: bits >> _USED | bits & waits | 1 << RSP for address, bits in live.items()}


def _effect(code: Code, block: Block, follow: Sequence[int], registers: set[int]) -> tuple[int, int]:
    """Registers that a block reads before it writes them, and those that it writes all of; a bit for each, and behind
    these, from `_USED` on, another one.

    The first say where a result is. To read too many, or write too few, does no harm. To `registers` come those that it
    is moved from: `mov %ebx,%eax` before a return. The others say what may be looked at: no use of a register is
    missing, be it as an argument, and none is written that may stay as it was, after a fault or where the kernel puts
    other code in the place of the block.
    """
    reads = writes = uses = sets = 0
    for op in block.ops:
        read = written = used = 0
        operands = op.operands
        if op.flow in (CALL, INDIRECT_CALL):
            written, used = _RESULT, _called(code, op)
        elif op.flow == RETURN or (op.flow == JUMP and _is_return(code, op)):
            read, used = _RESULT, _RETURNED
        elif op.flow == INDIRECT_JUMP:
            used = _ANY
        elif op.flow in (JUMP, BRANCH) and operands[0].number not in follow:
            used = _ANY  # to another function, which is called so
        elif operands:
            target = operands[0]
            if op.mnemonic == _MOVE and target.kind == operands[1].kind == REGISTER and target.number == RAX:
                registers.update({operands[1].number} & _PRESERVED)
            if target.kind == REGISTER and target.size >= 4:
                if op.mnemonic in _OVERWRITE:
                    written, operands = 1 << target.number, operands[1:]
                elif op.mnemonic == Mnemonic.XOR and operands[1] == target:
                    written, operands = 1 << target.number, ()
            for one in operands:
                read |= _named(one)
            used = read
        if op.flow == NEXT and op.mnemonic not in _AS_WRITTEN:
            read |= _RESULT
            used = used if op.mnemonic in _AS_NAMED else _ANY
        if op.raw.rflags_read:
            used |= 1 << FLAGS
        reads |= read & ~writes
        uses |= used & ~sets
        writes |= written
        if op.raw.rflags_modified & _CONDITIONS == _CONDITIONS:
            written |= 1 << FLAGS
        if not block.patches and not (block.fault is not None and op is block.ops[-1]):
            sets |= written
    return reads | uses << _USED, writes | sets << _USED


def _called(code: Code, op: Op) -> int:
    """What a call may look at: arguments, or any register, where the callee's name says which one it goes through."""
    target = op.operands[0]
    name = code.program.name(target.number) if target.kind == TARGET else None
    if name is None or name.symbol.startswith(INDIRECT_THUNKS):
        return _ANY
    return _GIVEN


def _is_return(code: Code, op: Op) -> bool:
    target = op.operands[0]
    name = code.program.kernel_name(target.number) if target.kind == TARGET else None
    return name is not None and name.symbol in RETURN_THUNKS


def _named(operand: Operand) -> int:
    if operand.kind == REGISTER:
        return 1 << operand.number
    if operand.kind != MEMORY:
        return 0
    base = 1 << operand.base if operand.base is not None else 0
    return base | 1 << operand.index if operand.index is not None else base
