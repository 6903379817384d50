"""Where a function's result may wait until it returns: in which registers, at the beginning of each of its blocks.

Ways that have different kinds of results are not joined. A register that nobody reads any more has none, be it what an
earlier call gave or what the caller kept there: it would keep ways apart for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iced_x86 import Mnemonic

from kbuild.elf.code.decode import (
    CALL,
    INDIRECT_CALL,
    JUMP,
    MEMORY,
    NEXT,
    PRESERVED,
    RAX,
    REGISTER,
    RETURN,
    TARGET,
    Block,
    Code,
    Op,
    Operand,
)

RETURN_THUNKS = frozenset({"__x86_return_thunk", "zen_untrain_ret", "srso_return_thunk", "its_return_thunk"})
"""What `ret` is compiled to, or replaced by (arch/x86/lib/retpoline.S)."""
_OVERWRITE = frozenset((Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.LEA, Mnemonic.POP))
"""Their first operand is not read."""
_AS_WRITTEN = _OVERWRITE | {
    *(Mnemonic.TEST, Mnemonic.CMP, Mnemonic.ADD, Mnemonic.SUB, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR),
    *(Mnemonic.SHL, Mnemonic.SHR, Mnemonic.BT, Mnemonic.PUSH, Mnemonic.NOP, Mnemonic.ENDBR64),
}
"""They read no register that is not among their operands, but for the stack's."""
_RESULT = 1 << RAX


def results_of(code: Code, follow: Mapping[int, Sequence[int]], blocks: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """By address, for the blocks of a function, of which each comes before those that lead to it, but for loops.

    `follow`: a block's address to those that it can go on at.
    """
    registers = {RAX}
    effects: dict[int, tuple[int, int]] = {}
    for address in blocks:
        block = code.block(address)
        registers |= _moved_to_result(block) if block is not None else set()
        effects[address] = _effect(code, block) if block is not None else (0, 0)
    live = dict.fromkeys(blocks, 0)
    changes = True
    while changes:
        changes = False
        for address, (reads, writes) in effects.items():
            behind = 0
            for one in follow[address]:
                behind |= live[one]
            now = reads | behind & ~writes
            if now != live[address]:
                live[address], changes = now, True
    every = sorted(registers)
    named: dict[int, tuple[int, ...]] = {}
    return {
        address: named.get(bits) or named.setdefault(bits, tuple(one for one in every if bits >> one & 1))
        for address, bits in live.items()
    }


def _moved_to_result(block: Block) -> set[int]:
    """`mov %ebx,%eax` before a return: the result waits in %ebx."""
    found = set()
    for op in block.ops:
        if op.mnemonic == Mnemonic.MOV:
            target, source = op.operands
            if target.kind == source.kind == REGISTER and target.number == RAX and source.number in PRESERVED:
                found.add(source.number)
    return found


def _effect(code: Code, block: Block) -> tuple[int, int]:
    """Registers that a block reads before it writes them, and those that it writes all of; a bit for each.

    To read too many, or write too few, does no harm.
    """
    reads = writes = 0
    for op in block.ops:
        read = written = 0
        operands = op.operands
        if op.flow in (CALL, INDIRECT_CALL):
            written = _RESULT
        elif op.flow == RETURN or (op.flow == JUMP and _is_return(code, op)):
            read = _RESULT
        elif operands:
            target = operands[0]
            if target.kind == REGISTER and target.size >= 4:
                if op.mnemonic in _OVERWRITE:
                    written, operands = 1 << target.number, operands[1:]
                elif op.mnemonic == Mnemonic.XOR and operands[1] == target:
                    written, operands = 1 << target.number, ()
            for one in operands:
                read |= _named(one)
        if op.flow == NEXT and op.mnemonic not in _AS_WRITTEN:
            read |= _RESULT
        reads |= read & ~writes
        writes |= written
    return reads, writes


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
