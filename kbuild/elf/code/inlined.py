"""Inlined functions in the code that is run: which blocks are whose, and from where there is no way back to them.

A compiler moves instructions: some of an inlined function's come before its beginning, some of its caller's between
them. Calls stay in order, and what they belong to is what the debug information says.
"""

from __future__ import annotations

import bisect
import fnmatch
import functools
import itertools
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import InstructionInfoFactory, OpAccess

from kbuild.elf.code.decode import CALL, INDIRECT_CALL, INDIRECT_JUMP, NEXT, RBP, RSP, Block, Code, register
from kbuild.elf.code.graph import Shape, Shapes
from kbuild.elf.code.link import Linked, Program
from kbuild.elf.code.sides import can_be_two, side_by_side
from kbuild.elf.contents import MalformedError
from kbuild.elf.references import is_owned

if TYPE_CHECKING:  # Most modules have no debug information.
    from kbuild.elf.inlined import Body as Found

MAX_BODIES = 512
"""In all modules."""
MIN_SHARED = 1 << 20
"""Bytes of debug information of which a part is read by another process."""
_WRITES = frozenset({OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE})


@dataclass(frozen=True, slots=True)
class Body:
    """What one call of a function that was inlined has become."""

    module: str
    name: str
    ranges: tuple[tuple[int, int], ...]
    """From which address to before which other. What it calls is not among them."""
    entry: int | None
    """Where it begins; None: that is not said."""

    def has(self, address: int) -> bool:
        """Whether the instruction there is its own."""
        return any(start <= address < end for start, end in self.ranges)


@dataclass(frozen=True, slots=True)
class Part:
    """A block of a function that something is inlined in. Sets of bodies are numbers, with a bit for each."""

    of: int
    """The bodies in the function."""
    inside: int
    """Those that the block belongs to; not those that begin later, if it does nothing."""
    begins: int
    """Those that begin with it, be it with no instruction yet; where that is not said, those that it belongs to."""
    over: int
    """Those of which no block can be come to any more."""
    effects: bool
    """It does what no compiler does on its own account: writes memory that is not the stack's, or to the machine."""


class Inlined:
    """Of one program, of the functions that are asked for."""

    def __init__(self, program: Program, names: Collection[str] = ()) -> None:
        """`names`: of functions, or globs."""
        self.bodies: list[Body] = []
        self.unread: dict[str, str] = {}
        """Modules whose debug information is damaged, and how."""
        self.undescribed: dict[int, int] = {}
        """Functions of which the debug information says nothing, and bodies of those that may be inlined in them."""
        self._by_name: dict[tuple[str, str], int] = {}
        for linked, said in _described(program, names):
            if isinstance(said, str):
                self.unread[linked.name] = said
                continue
            found, undescribed = said
            for name, bodies in found.items():
                bits = 0
                for one in bodies:
                    ranges = tuple(
                        (linked.base[section] + start, linked.base[section] + end)
                        for section, start, end in one.ranges
                        if section in linked.base
                    )
                    place = one.entry if one.entry is not None and one.entry[0] in linked.base else None
                    if ranges and len(self.bodies) >= MAX_BODIES:
                        self.unread[linked.name] = f"{name} and others are inlined in more than {MAX_BODIES} places"
                    elif ranges:
                        bits |= 1 << len(self.bodies)
                        entry = linked.base[place[0]] + place[1] if place is not None else None
                        self.bodies.append(Body(linked.name, name, ranges, entry))
                self._by_name[linked.name, name] = bits
            for symbol in linked.elf.symbols if undescribed else ():
                inside = undescribed.get(symbol.name, ())
                if inside and symbol.section in linked.base:
                    every = functools.reduce(operator.or_, (self._by_name[linked.name, name] for name in inside))
                    self.undescribed[linked.base[symbol.section] + symbol.value] = every
        self._ranges = sorted((start, end, n) for n, body in enumerate(self.bodies) for start, end in body.ranges)
        self._ends = list(itertools.accumulate((end for _, end, _ in self._ranges), max))
        self._parts: dict[int, dict[int, Part]] = {}
        self._info = InstructionInfoFactory()

    @property
    def cuts(self) -> frozenset[int]:
        """Where a block has to begin, so that each is a body's or not."""
        entries = (body.entry for body in self.bodies if body.entry is not None)
        return frozenset((*(end for body in self.bodies for each in body.ranges for end in each), *entries))

    def named(self, module: str, pattern: str) -> Iterator[tuple[str, int]]:
        """Functions that a module has inlined, with their bodies; none: nothing is left of it."""
        for (where, name), bits in self._by_name.items():
            if where == module and (name == pattern or fnmatch.fnmatchcase(name, pattern)):
                yield name, bits

    def names(self, bits: int) -> list[str]:
        """Of bodies."""
        return list(dict.fromkeys(body.name for number, body in enumerate(self.bodies) if bits >> number & 1))

    # The shape of a function.

    def parts(self, code: Code, shapes: Shapes, entry: int) -> Mapping[int, Part]:
        """The blocks of a function, by their addresses; empty: nothing is inlined in it."""
        parts = self._parts.get(entry)
        if parts is None:
            parts = self._parts[entry] = self._make(code, shapes.of(entry)) if self.bodies else {}
        return parts

    def elsewhere(self, part: Part, address: int) -> Part:
        """A block that a function's shape does not have, by another one of it: nothing is known of what follows."""
        inside = self._at(address) & part.of
        return Part(part.of, inside, self._begins(part.of, inside, address), 0, effects=False)

    def _begins(self, of: int, inside: int, address: int) -> int:
        """Of the bodies in a function those that begin with a block: also with one of which nothing is theirs."""
        return sum(
            1 << number
            for number, body in enumerate(self.bodies)
            if of >> number & 1 and (body.entry == address or (body.entry is None and inside >> number & 1))
        )

    def _at(self, address: int) -> int:
        """The bodies that an instruction belongs to."""
        bits = 0
        # Bodies lie within each other: what begins before may end behind.
        index = bisect.bisect_right(self._ranges, (address, 1 << 64, 0)) - 1
        while index >= 0 and self._ends[index] > address:
            _, end, number = self._ranges[index]
            bits |= 1 << number if address < end else 0
            index -= 1
        return bits

    def _make(self, code: Code, shape: Shape) -> dict[int, Part]:
        before: dict[int, list[int]] = {}
        for address, following in shape.follow.items():
            for one in following:
                before.setdefault(one, []).append(address)
        inside: dict[int, int] = {}
        for address in sorted(shape.follow, key=lambda one: shape.order.get(one, -1)):
            place = code.program.place(address)
            if place is not None and is_owned(place[1].name):
                # What stands in for other code, or is only jumped to from there, has no name of its own.
                bits = 0
                for one in before.get(address, ()):
                    bits |= inside.get(one, 0)
                inside[address] = bits
            else:
                inside[address] = self._at(address)
        of = functools.reduce(operator.or_, inside.values(), 0)
        if not of:
            return {}
        blocks = {address: code.block(address) for address in shape.follow}
        lost = {address: of for address, block in blocks.items() if _leads_anywhere(block, shape, address)}
        ahead = _reaching(inside | lost, before)
        begins = {address: begin for address, bits in inside.items() if (begin := self._begins(of, bits, address))}
        order = shape.order
        earlier = {to: [one for one in some if order.get(one, 0) < order.get(to, 0)] for to, some in before.items()}
        early = _reaching(dict.fromkeys(inside, 0) | begins, earlier)
        parts: dict[int, Part] = {}
        for address, bits in inside.items():
            effects = bool(bits) and self._has_effects(blocks[address])
            if bits and not effects and not _calls(blocks[address]):
                # What was moved to before the beginning is done whether or not the function is then called.
                bits &= ~early[address] | begins.get(address, 0)
            parts[address] = Part(of, bits, begins.get(address, 0), of & ~ahead[address], effects)
        return parts

    def _has_effects(self, block: Block | None) -> bool:
        # Whoever is told of calls is told of those at a block's end.
        for op in [op for op in block.ops if op.flow == NEXT] if block is not None else ():
            if op.raw.is_privileged:
                return True
            for used in self._info.info(op.raw).used_memory():
                base = register(used.base)
                if used.access in _WRITES and (base is None or base[0] not in (RSP, RBP)):
                    return True
        return False


def _reaching(there: Mapping[int, int], before: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """By blocks, what is there or can be come to from there; `before`: the blocks that lead to each."""
    found = dict(there)
    waiting = [address for address, bits in there.items() if bits]
    while waiting:
        address = waiting.pop()
        for one in before.get(address, ()):
            if found[address] & ~found[one]:
                found[one] |= found[address]
                waiting.append(one)
    return found


def _calls(block: Block | None) -> bool:
    return block is not None and bool(block.ops) and block.ops[-1].flow in (CALL, INDIRECT_CALL)


_Described = tuple[dict[str, list["Found"]], dict[str, set[str]]] | str
"""What debug information says of a module (`InlinedFunctions`); or what is wrong with it."""


def _described(program: Program, names: Collection[str]) -> Iterator[tuple[Linked, _Described]]:
    """The modules that have debug information, with what it says. The largest one's takes about as long as all others'
    do, and is read at the same time."""
    modules = [linked for linked in program.modules.values() if ".debug_info" in linked.elf.by_name]
    # What is imported is called.
    wanted = [(linked, [name for name in names if not _imports(linked, name)]) for linked in modules]
    sizes = {linked.name: linked.elf.by_name[".debug_info"].size for linked in modules}
    wanted = sorted((one for one in wanted if one[1]), key=lambda one: -sizes[one[0].name])

    def read(some: Sequence[tuple[Linked, list[str]]]) -> list[_Described]:
        return [_read(linked, names) for linked, names in some]

    two = len(wanted) > 1 and sum(sizes.values()) >= MIN_SHARED and can_be_two()
    both = side_by_side(lambda _: read(wanted[:1]), lambda _: read(wanted[1:])) if two else None
    every = [*both[0], *both[1]] if both is not None else read(wanted)
    said = {linked.name: one for (linked, _), one in zip(wanted, every, strict=True)}
    yield from ((linked, said[linked.name]) for linked in modules if linked.name in said)


def _read(linked: Linked, names: Collection[str]) -> _Described:
    from kbuild.elf.inlined import InlinedFunctions

    try:
        functions = InlinedFunctions(linked.elf)
        return functions.find(names), functions.undescribed
    except MalformedError as problem:
        return str(problem)


def _imports(linked: Linked, name: str) -> bool:
    symbols = linked.elf.symbols
    return any(not symbols[number].defined for number in linked.stems.get(name, ()))


def _leads_anywhere(block: Block | None, shape: Shape, address: int) -> bool:
    """Whether it is not known where a block goes on: behind a switch whose table was not found."""
    last = block.ops[-1] if block is not None and block.ops else None
    return last is not None and last.flow == INDIRECT_JUMP and not shape.follow[address]
