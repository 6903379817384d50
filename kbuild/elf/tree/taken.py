"""Which argument registers a function looks at: so many arguments it takes, as far as its own code tells.

Read before they are written, on some way from its beginning, by it or by what it passes them on to. Only calls that can
happen count: so what a function does not look at is left out, were it declared or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from iced_x86 import InstructionInfoFactory, OpAccess

from kbuild.elf.code.decode import ARGUMENTS, NEXT, Code, Op, register
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.results import live_before

ALL = (1 << len(ARGUMENTS)) - 1
"""A bit for each argument register, in their order."""
_BIT = {number: 1 << place for place, number in enumerate(ARGUMENTS)}
_READS = {OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}


class Taken:
    """Of all functions of one program that are asked for."""

    def __init__(
        self,
        code: Code,
        shapes: Shapes,
        targets: Mapping[int, Set[int]],
        passed: Callable[[int], int],
    ) -> None:
        """`targets`: to where each call leads. `passed`: registers that are set in each call of a function."""
        self._code = code
        self._shapes = shapes
        self._targets = targets
        self._passed = passed
        self._found: dict[int, int] = {}
        self._used: dict[int, tuple[int, int]] = {}
        self._info = InstructionInfoFactory()

    def by(self, function: int) -> int:
        """The registers that the function there takes, as bits."""
        found = self._found.get(function)
        if found is None:
            if not self._code.program.is_code(function):
                return self._passed(function)
            self._found[function] = 0  # Of one that calls itself, what else it looks at is all.
            found = self._found[function] = self._live(function) & self._passed(function)
        return found

    def _live(self, function: int) -> int:
        shape = self._shapes.of(function)
        effects = {block: self._effect(block) for block in shape.order}
        backwards = sorted(effects, key=lambda block: -shape.order[block])
        return live_before({block: effects[block] for block in backwards}, shape.follow).get(function, 0)

    def _effect(self, address: int) -> tuple[int, int]:
        """What a block reads of what it finds, and what it does not leave."""
        block = self._code.block(address)
        reads = writes = 0
        for op in block.ops if block is not None else ():
            if op.flow == NEXT:
                read, written = self._registers(op)
                reads |= read & ~writes
                writes |= written
            else:
                reads |= self._registers(op)[0] & ~writes
                for target in self._targets.get(op.ip, ()):
                    reads |= self.by(target) & ~writes
                    writes = ALL
        return reads, writes

    def _registers(self, op: Op) -> tuple[int, int]:
        found = self._used.get(op.ip)
        if found is None:
            reads = writes = 0
            for used in self._info.info(op.raw).used_registers():
                which = register(used.register)
                bit = _BIT.get(which[0], 0) if which is not None else 0
                if used.access in _READS:
                    reads |= bit
                elif used.access == OpAccess.WRITE and which is not None and which[1] >= 4:
                    writes |= bit
            found = self._used[op.ip] = reads, writes
        return found
