"""The shape of a function: in which order its blocks are best looked at, and which registers become its result.

A block is in the graph of the function whose entry it is reached from by branches; a jump to another function's
beginning is a call whose return is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iced_x86 import InstructionInfoFactory, OpAccess, Register

from kbuild.elf.code.decode import (
    BRANCH,
    CALL,
    INDIRECT_CALL,
    INDIRECT_JUMP,
    JUMP,
    MEMORY,
    NEXT,
    PRESERVED,
    RAX,
    STOP,
    TARGET,
    Code,
    Op,
    register,
)
from kbuild.elf.code.results import RETURN_THUNKS, results_of
from kbuild.elf.code.saved import saved_words
from kbuild.elf.code.state import Node, State
from kbuild.elf.code.twins import through, twins

_READS = frozenset({OpAccess.READ, OpAccess.READ_WRITE, OpAccess.COND_READ, OpAccess.READ_COND_WRITE})
_WRITES = frozenset({OpAccess.WRITE, OpAccess.READ_WRITE})
MAX_BEHIND = 64
"""Blocks behind a call that are looked at for what they read."""
_ANY = (RAX, *PRESERVED)
MAX_CASES = 1024
"""Entries of a switch table."""
MAX_ENTRIES = 1 << 18
"""Of all of a program's, those that are in several counted as often."""
MAX_NESTED = 64
"""Times that a function's blocks are looked at to see which loop is in which. KVM's have 3."""
NO_RETURN = frozenset({"panic", "__stack_chk_fail", "fortify_panic", "__fortify_panic", "do_exit", "make_task_dead"})
"""Functions of the kernel behind whose call there is nothing: what stands there is the next function."""
STAYS, RETURNS, LEAVES = range(3)


@dataclass
class Shape:
    """Of one function."""

    entry: int
    order: dict[int, int] = field(default_factory=dict)
    """A block's address to its place: each one behind those that lead to it, but for where a loop begins. What
    follows a loop is behind all of it, and is looked at when the loop gives nothing new."""
    follow: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """A block's address to those that it can go on at."""
    heads: frozenset[int] = frozenset()
    """Where loops begin: each way that comes back to a block goes through one of them."""
    results: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """A block's address to the registers that a result may wait in there, and that are still read behind it."""
    used: Mapping[int, int] = field(default_factory=dict)
    """A block's address to a bit for each register that may be looked at there, or behind it."""
    saved: int = 0
    """Words in which it keeps registers for its caller, above its own objects on the stack."""

    through: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Of calls that stand for several: a block's address to the registers that say what is called."""

    def node(self, address: int, state: State) -> Node:
        """Where a state comes to that comes to a block: also to one that is only reached through numbers that are known
        when it is run."""
        results = self.results.get(address, _ANY)
        kinds = state.kinds(results) if results else ()
        if address in self.through:
            kinds += tuple(state.registers[number] for number in self.through[address])
        return address, kinds, state.marks


class Shapes:
    """Of all functions of a program that are asked for."""

    def __init__(self, code: Code, *, cut: bool = False) -> None:
        """`cut`: also where ways meet in the middle of straight code a block ends, and calls that a compiler has copied
        are one."""
        self._code = code
        self._cuts = cut
        self._program = code.program
        self._found: dict[int, Shape] = {}
        self._tables: dict[int, list[int]] = {}
        """Targets of jumps, by their addresses."""
        self._entries = 0
        self._shaped: set[int] = set()
        """Blocks of functions that have their shapes: these stay as they are."""
        self._through: dict[int, tuple[int, ...]] = {}
        self._read: dict[int, frozenset[int]] = {}
        self._jumps: dict[tuple[int, int], int] = {}
        self._info = InstructionInfoFactory()

    def read_behind(self, entry: int, address: int) -> frozenset[int]:
        """Registers that a function reads, from one of its blocks on, before it writes them or calls another one."""
        found = self._read.get(address)
        if found is None:
            read: set[int] = set()
            waiting: list[tuple[int, frozenset[int]]] = [(address, frozenset())]
            seen: dict[int, frozenset[int]] = {}
            while waiting and len(seen) < MAX_BEHIND:
                at, written = waiting.pop()
                if at in seen and seen[at] <= written:
                    continue
                seen[at] = written
                block = self._code.block(at)
                for op in block.ops if block is not None else ():
                    used = [(register(one.register), one.access) for one in self._info.info(op.raw).used_registers()]
                    read |= {one[0] for one, access in used if one and access in _READS} - written
                    written |= {one[0] for one, access in used if one and one[1] >= 4 and access in _WRITES}
                if block is not None and not (block.ops and block.ops[-1].flow in (CALL, INDIRECT_CALL)):
                    waiting += [(following, written) for following in self._successors(entry, at)]
            found = self._read[address] = frozenset(read)
        return found

    def only_computes(self, site: int) -> bool:
        """Whether other code that the kernel may put in the place of a call does the same without any write to memory,
        but for the stack."""
        module = self._program.module_at(site)
        patches = self._code.tables(module.name).patches.get(site, ()) if module is not None else ()
        for patch in patches:
            place, block = self._program.place(patch.to), self._code.block(patch.to)
            if patch.key is None and place is not None and place[1].name == ".altinstr_replacement" and block:
                used = [memory for op in block.ops for memory in self._info.info(op.raw).used_memory()]
                writes = any(
                    one.access not in (OpAccess.READ, OpAccess.NONE) for one in used if one.base != Register.RSP
                )
                if not writes and all(op.flow == NEXT for op in block.ops):
                    return True
        return False

    def of(self, entry: int) -> Shape:
        """The shape of the function that begins there."""
        shape = self._found.get(entry)
        if shape is None:
            shape = self._found[entry] = self._make(entry)
        return shape

    def look_ahead(self, entry: int, count: int) -> None:
        """Make the shapes of some functions that will be asked for: those that it calls, and those that these call."""
        waiting, seen = [entry], {entry}
        for address in itertools.islice(waiting, count):
            for start in self.of(address).order:
                block = self._code.block(start)
                last = block.ops[-1] if block is not None and block.ops else None
                if last is not None and last.flow == CALL and (target := last.operands[0].number) not in seen:
                    seen.add(target)
                    name = self._program.name(target)
                    if name is not None and name.module is not None and name.function and not name.offset:
                        waiting.append(target)

    def jump(self, entry: int, target: int) -> int:
        """What a jump from a function to an address does: STAYS in it, RETURNS, or LEAVES for another function."""
        key = (entry, target)
        found = self._jumps.get(key)
        if found is None:
            name = self._program.kernel_name(target)
            if name is not None and name.symbol in RETURN_THUNKS:
                found = RETURNS
            else:
                found = LEAVES if self.is_tail_call(entry, target) else STAYS
            self._jumps[key] = found
        return found

    def is_tail_call(self, entry: int, target: int) -> bool:
        """Whether a jump from a function to an address leaves it for another one."""
        if target == entry:
            return True
        name = self._program.name(target)
        if name is None or name.offset or name.module is None:
            return name is not None and name.module is None
        mine = self._program.name(entry)
        parent = name.symbol.partition(".cold")[0]
        return not (mine is not None and (mine.symbol == parent or ".cold" in name.symbol)) and name.function

    def table(self, op: Op) -> list[int]:
        """Targets of a jump through a switch table: as long as the entries point into the function, or its cold part.

        Behind it there may be another function's table.
        """
        found = self._tables.get(op.ip)
        if found is None:
            found = self._tables[op.ip] = self._table(op)
            self._entries += len(found)
        return found if self._entries <= MAX_ENTRIES else []

    def _table(self, op: Op) -> list[int]:
        operand = op.operands[0]
        if operand.kind != MEMORY or operand.base is not None or operand.index is None or operand.scale != 8:
            return []
        function = self._function_at(op.ip)
        targets = []
        for number in range(MAX_CASES):
            entry = self._program.read(operand.number + number * 8, 8)
            target = int.from_bytes(entry, "little") if entry is not None else 0
            if not target or not self._program.is_code(target) or self._function_at(target) != function:
                break
            targets.append(target)
        return list(dict.fromkeys(targets))

    def _function_at(self, address: int) -> tuple[str | None, str] | None:
        name = self._program.name(address)
        return (name.module, name.symbol.partition(".cold")[0]) if name is not None else None

    def _following(self, entry: int) -> dict[int, list[int]]:
        """The blocks of a function, each with those that it can go on at."""
        following = self._reached(entry)
        if self._cuts:
            # Let blocks end where others begin: where ways meet, what follows is looked at once.
            if self._join_calls(following):
                following = self._reached(entry)
            begins = following.keys()
            for address in begins - self._shaped:
                if self._code.cut(address, begins):
                    following[address] = self._successors(entry, address)
            self._shaped |= begins
        return following

    def _join_calls(self, following: Mapping[int, Sequence[int]]) -> bool:
        """Let ways meet at one of several calls that do the same; gives whether any do."""
        joined = False
        for address, call, other in twins(self._code, following):
            registers = through(self._code, other)
            if address not in self._shaped and registers is not None:
                self._code.lead(address, call.ip, other.ip)
                self._through[other.ip] = registers
                joined = True
        return joined

    def _reached(self, entry: int) -> dict[int, list[int]]:
        following: dict[int, list[int]] = {}
        waiting = [entry]
        while waiting:
            address = waiting.pop()
            if address not in following:
                following[address] = self._successors(entry, address)
                waiting += following[address]
        return following

    def _make(self, entry: int) -> Shape:
        shape = Shape(entry)
        following = self._following(entry)
        # Depth first, without recursion: a block gets its number when all that follows has one.
        done: list[int] = []
        seen, open_, loops = {entry}, {entry}, False
        stack = [(entry, iter(following[entry]))]
        while stack:
            address, waiting = stack[-1]
            one = next(waiting, None)
            if one is None:
                stack.pop()
                open_.remove(address)
                done.append(address)
            elif one not in seen:
                seen.add(one)
                open_.add(one)
                stack.append((one, iter(following[one])))
            elif one in open_:
                loops = True
        places = done[::-1]
        if loops:
            places, shape.heads = _loops_together(places, following)
        shape.order = {address: number for number, address in enumerate(places)}
        shape.follow = following
        shape.results, shape.used = results_of(self._code, following, done)
        shape.through = self._through
        shape.saved = saved_words(self._code, entry, following)
        return shape

    def _successors(self, entry: int, address: int) -> list[int]:
        block = self._code.block(address)
        if block is None:
            return []
        following = [*(patch.to for patch in block.patches), *block.follow]
        last = block.ops[-1] if block.ops else None
        if last is None:
            return following
        if last.flow in (JUMP, BRANCH) and last.operands[0].kind == TARGET:
            target = last.operands[0].number
            if self.jump(entry, target) == STAYS:
                following.append(target)
        if last.flow in (BRANCH, INDIRECT_CALL) or (last.flow in (CALL, STOP) and self._goes_on(last)):
            following.append(last.next)
        if last.flow == INDIRECT_JUMP:
            following += self.table(last)
        return following

    def _goes_on(self, op: Op) -> bool:
        if op.flow == CALL:
            called = self._program.kernel_name(op.operands[0].number)
            return called is None or called.symbol not in NO_RETURN
        linked = self._program.module_at(op.ip)
        return linked is not None and self._code.tables(linked.name).goes_on.get(op.ip, False)


def _loops_together(blocks: Sequence[int], following: Mapping[int, Sequence[int]]) -> tuple[list[int], frozenset[int]]:
    """Blocks in the order of `Shape.order`, and where loops begin (Bourdoncle's weak topological order, 1993).

    `blocks`: each behind those that lead to it, but for loops.
    """
    rank = {address: number for number, address in enumerate(blocks)}
    order: list[int] = []
    heads: set[int] = set()
    waiting = [[*blocks]]
    left = MAX_NESTED * len(blocks)
    while waiting:
        some = waiting.pop()
        if len(some) == 1:
            order += some
            continue
        left -= len(some)
        if left < 0:  # Any order will do, where each block may be the head of a loop.
            order += some
            heads.update(some)
            continue
        for loop in _components(some, following):
            if len(loop) == 1:
                waiting.append(loop)
                heads.update(address for address in loop if address in following[address])
            else:
                head = min(loop, key=rank.__getitem__)
                heads.add(head)
                waiting += [sorted(set(loop) - {head}, key=rank.__getitem__), [head]]
    return order, frozenset(heads)


def _components(blocks: Sequence[int], following: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Blocks that lead to each other, together; those that lead to others behind these (Tarjan 1972)."""
    found: list[list[int]] = []
    inside = set(blocks)
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    for start in blocks:
        stack = [(start, iter(following[start]))] if start not in number else []
        while stack:
            address, waiting = stack[-1]
            if address not in number:
                number[address] = lowest[address] = len(number)
                path.append(address)
                on_path.add(address)
            for one in waiting:
                if one in on_path:
                    lowest[address] = min(lowest[address], lowest[one])
                elif one in inside and one not in number:
                    stack.append((one, iter(following[one])))
                    break
            else:
                stack.pop()
                if stack:
                    before = stack[-1][0]
                    lowest[before] = min(lowest[before], lowest[address])
                if lowest[address] == number[address]:
                    cut = path.index(address)
                    found.append(path[cut:])
                    on_path.difference_update(path[cut:])
                    del path[cut:]
    return found
