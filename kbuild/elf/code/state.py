"""Where a run of the code stands: registers, memory, what is known of the unknown; copied where paths part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kbuild.elf.code.decode import RSP
from kbuild.elf.code.values import EVERYTHING, MASK, Ranges, Symbols, Unknown, Value, is_errno, union

STACK = 0x7FFF_0000_0000
"""Where the stack of a run begins, downwards. Nothing else is near it."""
STACK_END = STACK - 0x10_0000

JOINED = "joined epoch"
STATIC_CALL = -1
"""In place of a symbol: the place of a static call's target, by its trampoline's address."""
Node = tuple[int, tuple[object, ...], tuple[int, ...]]
"""A block, or the negative of a function's address for its end; what kinds of results wait in registers; marks."""
Place = int | tuple[int, int]
"""An address in memory: a number, or an unknown and an offset."""
Flags = tuple[str, Value, Value, int]
"""Kind (`sub`, `and`, `result`), operands, size."""


class State:
    """Mutable: whoever keeps one copies it."""

    __slots__ = ("at", "epoch", "flags", "known", "marks", "memory", "open", "registers")

    def __init__(self) -> None:
        self.registers: list[Value | None] = [None] * 16
        """None: unknown, and nobody has asked."""
        self.memory: dict[Place, tuple[int, Value]] = {}
        """What was written, by its first byte: size and value. Entries do not overlap."""
        self.known: dict[Unknown, Ranges] = {}
        self.flags: Flags | None = None
        self.epoch = 0
        """A name for what memory behind unknown pointers is like: another one after it may have been written."""
        self.marks: tuple[int, ...] = ()
        """What happened on the way, as rules see it. States that differ in it are never joined."""
        self.at: Node = (0, (), ())
        """Where it is."""
        self.open: dict[tuple[int, int], int] = {}
        """Where others may have written, from an address to before another, and a name for what is there since. The
        latest first."""

    @classmethod
    def at_entry(cls, marks: tuple[int, ...] = ()) -> State:
        """Where the kernel calls a module: an empty stack, and nothing known."""
        state = cls()
        state.marks = marks
        state.registers[RSP] = STACK
        return state

    def copy(self) -> State:
        """Another one, equal."""
        state = State.__new__(State)
        state.registers = self.registers[:]
        state.memory = self.memory.copy()
        state.known = self.known.copy()
        state.flags = self.flags
        state.epoch = self.epoch
        state.marks = self.marks
        state.open = self.open
        state.at = self.at
        return state

    def ranges(self, value: Value) -> Ranges:
        """What a value can be."""
        if isinstance(value, int):
            return ((value, value),)
        return self.known.get(value) or EVERYTHING[value[2]]

    def kinds(self, registers: Sequence[int]) -> tuple[object, ...]:
        """What the contents of registers mean as results: 0, -1 for an errno, None for anything else."""
        found: list[object] = []
        for number in registers:
            value = self.registers[number]
            ranges = self.ranges(value) if value is not None else ()
            found.append(0 if ranges == ((0, 0),) else -1 if is_errno(ranges) else None)
        return tuple(found)

    def learn(self, value: Unknown, ranges: Ranges) -> None:
        """From here on the value is in these ranges; one that can be but one number is that number everywhere."""
        self.known[value] = ranges
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            number = ranges[0][0]
            registers = self.registers
            for index in range(16):
                if registers[index] == value:
                    registers[index] = number
            for place, (size, kept) in self.memory.items():
                if kept == value:
                    self.memory[place] = (size, number)

    def pop_frame(self) -> None:
        """A function has returned: what it had on the stack is gone."""
        top = self.registers[RSP]
        if isinstance(top, int):
            dead = [place for place in self.memory if isinstance(place, int) and STACK_END < place < top]
            for place in dead:
                del self.memory[place]


class Joiner:
    """Makes one state of two, which stands for everything that either stands for."""

    def __init__(self, symbols: Symbols, unwritten: Callable[[State, int, int], Value]) -> None:
        """`unwritten`: what is at an address, of a size, where a state has written nothing."""
        self._symbols = symbols
        self._unwritten = unwritten
        self.count = 0

    def join(self, a: State, b: State, *, widen: bool = False) -> State:
        """With `widen`, nothing is kept of the ranges of what differs: so it comes to an end in loops."""
        self.count += 1
        state = a.copy()
        pairs: dict[tuple[Value, Value], Value] = {}

        def either(x: Value | None, y: Value | None) -> Value | None:
            if x is None or y is None or x == y:
                return x if x == y else None
            found = pairs.get((x, y))
            if found is None:
                size = max(_size(x), _size(y))
                found = pairs[x, y] = (self._symbols.new("either"), 0, size)
                if not widen:
                    ranges = union(a.ranges(x), b.ranges(y))
                    if ranges != EVERYTHING[size]:
                        added[found] = ranges
            return found

        added: dict[Unknown, Ranges] = {}
        same_behind = True
        for index in range(16):
            x, y = a.registers[index], b.registers[index]
            if x != y:
                state.registers[index] = either(x, y)
        for place, (size, x) in a.memory.items():
            other = b.memory.get(place)
            if other is None and isinstance(place, int):
                other = (size, self._unwritten(b, place, size))
            if other is None:
                del state.memory[place]
                same_behind = same_behind and not isinstance(place, int) and place[0] == STATIC_CALL
            elif other[0] != size:
                state.memory[place] = (size, (self._symbols.new("either"), 0, size))
            elif other[1] != x:
                value = either(x, other[1])
                assert value is not None
                state.memory[place] = (size, value)
        for place, (size, y) in b.memory.items():
            if place not in a.memory:
                if isinstance(place, int):
                    value = either(self._unwritten(a, place, size), y)
                    assert value is not None
                    state.memory[place] = (size, value)
                elif place[0] != STATIC_CALL:
                    same_behind = False
        known = {}
        for value, ranges in a.known.items():
            also = b.known.get(value)
            if also is not None:
                known[value] = union(ranges, also)
        state.known = known | added
        if a.epoch != b.epoch or not same_behind:
            state.epoch = self._symbols.new(JOINED)
        if a.flags != b.flags:
            state.flags = None
        if a.open != b.open:
            state.open = {place: self._symbols.new(JOINED) for place in (*a.open, *b.open)}
        return state

    def covers(self, a: State, b: State) -> bool:
        """Whether everything that b stands for is among what a stands for."""
        if a.marks != b.marks or not b.open.keys() <= a.open.keys() or (a.flags is not None and a.flags != b.flags):
            return False
        # A name that the join itself has made stands for anything: nothing else that a knows hangs on it.
        names = [(a.epoch, b.epoch), *((since, b.open.get(place)) for place, since in a.open.items())]
        if any(mine != other and self._symbols.origin[mine] != JOINED for mine, other in names):
            return False
        meant: dict[int, Value] = {}

        def fits(x: Value | None, y: Value | None) -> bool:
            if x is None or x == y:
                return True
            if y is None or isinstance(x, int):
                return False
            if self._symbols.origin[x[0]] != "either" or x[1]:
                return False
            if meant.setdefault(x[0], y) != y:
                return False
            ranges = a.known.get(x)
            return ranges is None or _within(b.ranges(y), ranges)

        if not all(map(fits, a.registers, b.registers)):
            return False
        for place, (size, x) in a.memory.items():
            other = b.memory.get(place)
            if other is None:
                if not isinstance(place, int):
                    return False
                other = (size, self._unwritten(b, place, size))
            if size != other[0] or not fits(x, other[1]):
                return False
        for place, (size, y) in b.memory.items():
            if place in a.memory:
                continue
            if isinstance(place, int):
                if self._unwritten(a, place, size) != y:
                    return False
            elif a.epoch == b.epoch and place[0] != STATIC_CALL:
                return False
        # What a knows of an unknown that both have, b has to know too.
        return all(
            self._symbols.origin[value[0]] == "either" or _within(b.known.get(value), ranges)
            for value, ranges in a.known.items()
        )


def _within(inner: Ranges | None, outer: Ranges) -> bool:
    if inner is None:
        return False
    return all(any(low <= first and last <= high for low, high in outer) for first, last in inner)


def _size(value: Value) -> int:
    if isinstance(value, int):
        return 4 if value <= MASK[4] else 8
    return value[2]
