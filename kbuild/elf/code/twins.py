"""Calls that the source has once and the compiler has put into several ways, which go on alike behind them.

Of a function that is called through a table, all that it does would be run once for each. Let the ways meet at one of
these calls instead: it is what the function would be, had the compiler not copied the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from iced_x86 import Instruction

from kbuild.elf.code.decode import BRANCH, CALL, INDIRECT_CALL, JUMP, MEMORY, NEXT, REGISTER, RETURN, Block, Code, Op
from kbuild.elf.code.results import thunk_register

MAX_ALIKE = 64
"""Instructions that are compared behind two calls."""
MAX_COMPARED = 1 << 9
"""The same, in all of a function: files are untrusted, and may call the same thousands of times."""
Followed = Mapping[int, object]
"""Blocks of a function, by their addresses."""


def twins(code: Code, blocks: Followed) -> list[tuple[int, Op, Op]]:
    """Blocks that end with a call, each with that and with the call of another block that may be in its place.

    None of a function with parts that somebody wants to tell from the rest: the calls may be in different ones.
    """
    calls: dict[tuple[int, object], list[tuple[int, Op]]] = {}
    for address in sorted(blocks):
        block = code.block(address)
        last = block.ops[-1] if block is not None and block.ops and _is_plain(block) else None
        if last is not None and through(code, last) is not None:
            calls.setdefault((last.mnemonic, last.operands), []).append((address, last))
    found: list[tuple[int, Op, Op]] = []
    left = MAX_COMPARED
    for some in calls.values() if code.cuts.isdisjoint(blocks) else ():
        # Of a block that is nothing but a call this cannot be left out.
        some.sort(key=lambda one: one[0] != one[1].ip)
        for number, (address, op) in enumerate(some):
            for _, other in some[:number] if op.ip != address else ():
                if other.ip == op.ip:
                    continue  # two ways come to the same call
                alike = _Alike(code, blocks)
                is_twin = alike.at(op.next, other.next)
                left -= 1 + MAX_ALIKE - alike.left
                if left < 0:
                    return found
                if is_twin:
                    found.append((address, op, other))
                    break
    return found


def through(code: Code, op: Op) -> tuple[int, ...] | None:
    """The registers that say what is called; None: it is a call of a function by its name, or none."""
    operand = op.operands[0] if op.operands else None
    if op.flow == INDIRECT_CALL and operand is not None and operand.kind == MEMORY:
        return tuple(number for number in (operand.base, operand.index) if number is not None)
    if op.flow == INDIRECT_CALL and operand is not None and operand.kind == REGISTER:
        return (operand.number,)
    name = code.program.kernel_name(operand.number) if op.flow == CALL and operand is not None else None
    register = thunk_register(name.symbol) if name is not None else None
    return (register,) if register is not None else None


def _is_plain(block: Block) -> bool:
    return not block.patches and block.fault is None and block.unread is None


class _Alike:
    """Whether code at two places does the same."""

    def __init__(self, code: Code, blocks: Followed) -> None:
        self._code = code
        self._blocks = blocks
        self._taken = set[tuple[int, int]]()
        """Pairs of places of which this is asked already: what leads back to them makes no difference."""
        self.left = MAX_ALIKE

    def at(self, one: int, other: int) -> bool:
        """Of these."""
        if one == other or (one, other) in self._taken:
            return True
        self._taken.add((one, other))
        mine, theirs = self._from(one), self._from(other)
        while True:
            a, b = next(mine, None), next(theirs, None)
            self.left -= 1
            if a is None or b is None or self.left < 0:
                return False
            if a.ip == b.ip:
                return True
            if a.flow == BRANCH and b.flow == BRANCH:
                ways, others = (a.operands[0].number, a.next), (b.operands[0].number, b.next)
                if a.condition != b.condition:
                    others = others[::-1]
                    if a.raw.condition_code != _negated(b.raw):
                        return False
                return all(map(self.at, ways, others))
            if a.raw != b.raw:  # but for their addresses
                return False
            if a.flow == RETURN:
                return True
            if a.flow in (CALL, INDIRECT_CALL):
                return self.at(a.next, b.next)
            if a.flow != NEXT:
                return False

    def _from(self, address: int) -> Iterator[Op]:
        """Instructions in the order in which they are run, up to the first one behind which that is not said."""
        while address in self._blocks:
            block = self._code.block(address)
            if block is None or not block.ops or not _is_plain(block):
                return
            *straight, last = block.ops
            yield from straight
            if last.flow == JUMP and last.operands[0].number in self._blocks:
                address = last.operands[0].number
                continue
            yield last
            if last.flow != NEXT or len(block.follow) != 1:
                return
            address = block.follow[0]


def _negated(raw: Instruction) -> int:
    copy = raw.copy()
    copy.negate_condition_code()
    return copy.condition_code
