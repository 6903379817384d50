"""Where a function keeps its caller's registers: how many words below its return address are no objects of its own.

gcc and clang put them there next to each other, with `push`, or with `mov` into a frame that is there already (gcc's
-fshrink-wrap-separate). A register that nobody has written to yet has the caller's value: who stores that saves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from iced_x86 import InstructionInfoFactory, Mnemonic, OpAccess

from kbuild.elf.code.decode import MEMORY, NUMBER, PRESERVED, REGISTER, RSP, Block, Code, Op, register
from kbuild.elf.code.values import MASK, SIGN

WORD = 8
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_PUSH = Mnemonic.PUSH
_PUTS = frozenset((Mnemonic.PUSH, Mnemonic.MOV))
_READ_ONLY = frozenset((Mnemonic.CMP, Mnemonic.TEST, Mnemonic.BT, Mnemonic.NOP, Mnemonic.ENDBR64, Mnemonic.CALL))
_WRITE_FIRST = frozenset(
    (
        *(Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.LEA, Mnemonic.ADD, Mnemonic.SUB),
        *(Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR, Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR),
    )
)
"""They write to their first operand, and to nothing else."""
_Known = tuple[int, frozenset[int]]
"""How many words are on the stack below the return address, and which registers are still the caller's."""
_NOTHING: _Known = (0, frozenset())


def saved_words(code: Code, entry: int, follow: Mapping[int, Sequence[int]]) -> int:
    """`follow`: a block's address to those that it can go on at, of the function that begins at `entry`."""
    info = InstructionInfoFactory()
    known: dict[int, _Known] = {entry: (0, frozenset(PRESERVED))}
    put: dict[int, dict[int, int | None]] = {}
    waiting = [entry]
    while waiting:
        address = waiting.pop()
        behind, put[address] = _through(code.block(address), known[address], info)
        for one in follow.get(address, ()):
            before = known.get(one)
            now = behind if before is None else _either(before, behind)
            if now != before:
                known[one] = now
                waiting.append(one)
    found: dict[int, int | None] = {}
    for some in put.values():
        for place, word in some.items():
            # Blocks overlap where one jumps into another: on each way it has to be so.
            found[place] = word if found.get(place, word) == word else None
    words = {*found.values()}
    count = 0
    while count + 1 in words:
        count += 1
    return count


def _either(one: _Known, other: _Known) -> _Known:
    return (one[0], one[1] & other[1]) if one[0] == other[0] else _NOTHING


def _through(block: Block | None, before: _Known, info: InstructionInfoFactory) -> tuple[_Known, dict[int, int | None]]:
    """What is known behind a block; its instructions that put a register on the stack which has to be kept, each with
    the word below the return address that this is, where it is the caller's."""
    (depth, own), words = before, dict[int, int | None]()
    for op in block.ops if block is not None else ():
        mnemonic = op.mnemonic
        put = _put(op) if mnemonic in _PUTS else None
        if mnemonic == _PUSH:
            depth += 1
        if put is not None:
            number, offset = put
            words[op.ip] = depth - offset if number in own else None
            own -= {number}
        elif own and mnemonic != _PUSH and mnemonic not in _READ_ONLY:
            moved = _moved(op)
            written = {*_written(op, info)} if moved is None else set()
            depth += (moved or 0) // WORD
            own = own - written if RSP not in written else frozenset()
    return (depth, own) if own else _NOTHING, words


def _put(op: Op) -> tuple[int, int] | None:
    """A register that has to be kept and is put on the stack, and how many words from its end."""
    if op.mnemonic == Mnemonic.PUSH:
        source = op.operands[0]
        return (source.number, 0) if source.kind == REGISTER and source.number in PRESERVED else None
    if op.mnemonic != Mnemonic.MOV:
        return None
    target, source = op.operands
    if source.kind != REGISTER or source.number not in PRESERVED or source.size != WORD:
        return None
    if target.kind != MEMORY or target.base != RSP or target.index is not None or target.segment:
        return None
    return (source.number, target.number // WORD) if target.number % WORD == 0 else None


def _moved(op: Op) -> int | None:
    """By how many bytes an instruction makes the stack longer."""
    if op.mnemonic not in (Mnemonic.SUB, Mnemonic.ADD):
        return None
    target, by = op.operands
    if target.kind != REGISTER or target.number != RSP or by.kind != NUMBER:
        return None
    number = by.number - MASK[8] - 1 if by.number & SIGN[8] else by.number
    if number % WORD:
        return None
    return number if op.mnemonic == Mnemonic.SUB else -number


def _written(op: Op, info: InstructionInfoFactory) -> Iterator[int]:
    if op.mnemonic in _WRITE_FIRST:
        if op.operands[0].kind == REGISTER:
            yield op.operands[0].number
        return
    for used in info.info(op.raw).used_registers():
        one = register(used.register)
        if one is not None and used.access in _WRITES:
            yield one[0]
