"""Where a run of the code stands: registers, memory, what is known of the unknown; copied where paths part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from kbuild.elf.code.decode import RSP
from kbuild.elf.code.values import EVERYTHING, MASK, Ranges, Unknown, Value, kind_of, truncated

STACK = 0x7FFF_0000_0000
"""Where the stack of a run begins, downwards. Nothing else is near it."""
STACK_END = STACK - 0x10_0000
NOTES = 0x7FFD_0000_0000
NOTES_END = NOTES + 0x10_0000
"""Memory that no code has: 0 at the start. A question may keep there what hangs together with values of the state; it
is joined, and learnt of, as these are."""

EPOCH = "epoch"
"""The origin of names for what memory is like since somebody wrote to it, of which it is not known what."""
STATIC_CALL = -1
"""In place of a symbol: the place of a static call's target, by its trampoline's address."""
Marks = tuple[int, ...]
"""What happened on the way, as rules see it."""
Node = tuple[int, tuple[object, ...], Marks]
"""A block, or the negative of a function's address for its end; what kinds of results wait in registers; marks."""
Place = int | tuple[int, int]
"""An address in memory: a number, or an unknown and an offset."""
Entry = tuple[int, Value]
"""Size and value of what was written to memory."""
Flags = tuple[str, Value, Value, int]
"""Kind (`sub`, `sum`, `and`, `bit`, `result`), operands (of a sum it and what was added), size."""
WORD = 8
"""Bytes that are mostly written together."""
_P = TypeVar("_P", int, tuple[int, int])


class Fork:
    """Where two states parted that were one, and how that one differed from where it had last parted itself."""

    __slots__ = ("depth", "known", "parent", "places")

    def __init__(self, parent: Fork | None, places: set[Place], known: set[Unknown]) -> None:
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.places = places
        self.known = known


class Written:
    """What any state of a run has ever had in memory: what is not among it need not be looked for in one of them."""

    __slots__ = ("ragged", "symbols")

    def __init__(self) -> None:
        self.symbols: set[int] = set()
        self.ragged: set[Place] = set()
        """Aligned words, by their number, that were ever written in other pieces than as a whole."""


class State:
    """Mutable: whoever keeps one copies it.

    It knows what in it has changed since it was copied: states are large, and differ little where they are joined.
    """

    __slots__ = (
        *("at", "behind", "changed", "epoch", "facts", "flags", "fork", "kept", "known", "learnt", "marks", "memory"),
        *("open", "registers", "stack", "static", "written"),
    )

    def __init__(self) -> None:
        self.registers: list[Value | None] = [None] * 16
        """None: unknown, and nobody has asked."""
        self.kept: tuple[Value | None, ...] = ()
        """What the function that has returned last has kept of these: nobody has put it there since. Or nothing."""
        self.memory: dict[int, Entry] = {}
        """What was written at numbers, by its first byte. Entries do not overlap."""
        self.stack: dict[int, Entry] = {}
        """The same, on the stack."""
        self.behind: dict[tuple[int, int], Entry] = {}
        """The same, by an unknown and an offset."""
        self.static: dict[int, Value] = {}
        """What static calls were updated to, by their trampolines; never changed, for copies share it."""
        self.known: dict[Unknown, Ranges] = {}
        """To be changed with `know` and `learn`."""
        self.flags: Flags | None = None
        self.epoch = 0
        """A name for what memory behind unknown pointers is like: another one after it may have been written."""
        self.marks: Marks = ()
        """States that differ in it are never joined."""
        self.facts = 0
        """What may have happened on a way to here: bits, whose meaning a question knows. They keep no states apart, and
        are united where states are joined."""
        self.at: Node = (0, (), ())
        """Where it is."""
        self.open: dict[tuple[int, int], int] = {}
        """Where others may have written, from an address to before another, and a name for what is there since. The
        latest first."""
        self.fork = Fork(None, set(), set())
        self.changed: set[Place] = set()
        """Places in memory that may have changed since then, static calls among them."""
        self.learnt: set[Unknown] = set()
        """Unknowns of which other ranges may be known since then."""
        self.written = Written()

    @classmethod
    def at_entry(cls, marks: tuple[int, ...] = ()) -> State:
        """Where the kernel calls a module: an empty stack, and nothing known."""
        state = cls()
        state.marks = marks
        state.registers[RSP] = STACK
        return state

    def copy(self) -> State:
        """Another one, equal."""
        if self.changed or self.learnt:
            self.fork = Fork(self.fork, self.changed, self.learnt)
            self.changed, self.learnt = set(), set()
        state = State.__new__(State)
        state.registers = self.registers[:]
        state.kept = self.kept
        state.memory = self.memory.copy()
        state.stack = self.stack.copy()
        state.behind = self.behind.copy()
        state.static = self.static
        state.known = self.known.copy()
        state.flags = self.flags
        state.epoch = self.epoch
        state.marks = self.marks
        state.facts = self.facts
        state.open = self.open
        state.at = self.at
        state.fork = self.fork
        state.changed, state.learnt = set(), set()
        state.written = self.written
        return state

    # Memory.

    def entry(self, place: Place) -> Entry | None:
        """What was written from there on."""
        if isinstance(place, int):
            return (self.stack if STACK_END < place < STACK else self.memory).get(place)
        return self.behind.get(place)

    def write(self, place: Place, size: int, value: Value) -> None:
        """Put something there; what it overlaps must have been taken away."""
        self.changed.add(place)
        if not isinstance(value, int):
            self.written.symbols.add(value[0])
        if isinstance(place, int):
            (self.stack if STACK_END < place < STACK else self.memory)[place] = (size, value)
            if size != WORD or place % WORD:
                self.written.ragged.update((place // WORD, (place + size - 1) // WORD))
        else:
            self.behind[place] = (size, value)
            symbol, offset = place
            if size != WORD or offset % WORD:
                self.written.ragged.update(((symbol, offset // WORD), (symbol, (offset + size - 1) // WORD)))

    def remove(self, place: Place) -> None:
        """Nothing is known to have been written there."""
        self.changed.add(place)
        if isinstance(place, int):
            del (self.stack if STACK_END < place < STACK else self.memory)[place]
        else:
            del self.behind[place]

    def update_static(self, trampoline: int, value: Value) -> None:
        """A static call leads there from now on."""
        self.changed.add((STATIC_CALL, trampoline))
        self.static = {**self.static, trampoline: value}
        if not isinstance(value, int):
            self.written.symbols.add(value[0])

    def overlaps(self, start: int, size: int, symbol: int | None = None) -> bool:
        """Whether something was written that has bytes in common with a place; `symbol`: the unknown it starts from."""
        first, last = start // WORD, (start + size - 1) // WORD
        ragged = self.written.ragged
        if symbol is None:
            table = self.stack if STACK_END < start < STACK else self.memory
            if first not in ragged and last not in ragged:
                return first * WORD in table or (last != first and last * WORD in table)
            return any(True for _ in self.overlapping(start, start + size))
        if (symbol, first) not in ragged and (symbol, last) not in ragged:
            return (symbol, first * WORD) in self.behind or (last != first and (symbol, last * WORD) in self.behind)
        for offset in range(start - WORD + 1, start + size):
            kept = self.behind.get((symbol, offset))
            if kept is not None and offset + kept[0] > start:
                return True
        return False

    def overlapping(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What was written between two numbers: where each piece begins, and its size."""
        table = self.stack if STACK_END < start < STACK else self.memory
        for place in range(start - WORD + 1, end):
            kept = table.get(place)
            if kept is not None and place + kept[0] > start:
                yield place, kept[0]

    def forget_behind(self, but: int | None = None) -> None:
        """Nothing is known to have been written behind unknown pointers, but one."""
        dead = [place for place in self.behind if place[0] != but]
        for place in dead:
            del self.behind[place]
        self.changed.update(dead)

    def pop_frame(self) -> None:
        """A function has returned: what it had on the stack is gone."""
        top = self.registers[RSP]
        if isinstance(top, int):
            dead = [place for place in self.stack if place < top]
            for place in dead:
                del self.stack[place]
            # Nobody reads it any more, so that it makes no difference between states either.
            self.changed.difference_update(dead)
            # What others may have written there, too: else each call leaves another one of these.
            if any(start > STACK_END and end <= top for start, end in self.open):
                self.open = {
                    lent: since for lent, since in self.open.items() if not STACK_END < lent[0] < lent[1] <= top
                }

    def returned(self, may_change: Sequence[int], given: Sequence[Value | None]) -> None:
        """A function of a module has returned that may change these registers, and was given those values.

        What it does not touch is there as before: a compiler that has seen it counts on that (gcc's -fipa-ra).
        """
        registers = self.registers
        kept: list[Value | None] = [None] * 16
        for number in may_change:
            value = registers[number]
            if value is not None and value == given[number]:
                kept[number] = value
            else:
                registers[number] = None
        self.kept = tuple(kept)
        self.flags = None
        self.pop_frame()

    def leave(self) -> None:
        """The kernel's call has returned: only memory is left, and the next call finds an empty stack."""
        self.registers = [None] * 16
        self.registers[RSP] = STACK
        self.kept = ()
        self.stack = {}
        self.flags = None
        self.at = (0, (), ())

    # What is known of unknowns.

    def ranges(self, value: Value) -> Ranges:
        """What a value can be."""
        if isinstance(value, int):
            return ((value, value),)
        return self.known.get(value) or EVERYTHING[value[2]]

    def low_ranges(self, value: Value) -> Ranges:
        """What the low four bytes of a value can be."""
        low = truncated(value, 4)
        return self.ranges(low)

    def kinds(self, registers: Sequence[int]) -> tuple[object, ...]:
        """What the contents of registers mean as results: 0, -1 for an errno, None for anything else."""
        found: list[object] = []
        for number in registers:
            value = self.registers[number]
            ranges: Ranges | None = None
            if value is not None and not isinstance(value, int):
                ranges = self.known.get(value)
                if ranges is None and value[2] == 8:
                    # An int: a test of %eax says nothing of %rax.
                    ranges = self.known.get((value[0], value[1] & MASK[4], 4))
            elif value is not None:
                ranges = ((value, value),)
            found.append(kind_of(ranges) if ranges is not None else None)
        return tuple(found)

    def know(self, value: Unknown, ranges: Ranges) -> None:
        """From here on the value is in these ranges."""
        if ranges != EVERYTHING[value[2]]:
            self.known[value] = ranges
        else:
            self.known.pop(value, None)
        self.learnt.add(value)

    def learn(self, value: Unknown, ranges: Ranges) -> None:
        """The same; one that can be but one number is that number everywhere."""
        self.know(value, ranges)
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            number = ranges[0][0]
            registers = self.registers
            if value in registers:
                registers[:] = [number if one == value else one for one in registers]
            if value[0] not in self.written.symbols:
                return
            self._replace(self.memory, value, number)
            self._replace(self.stack, value, number)
            self._replace(self.behind, value, number)
            for trampoline in [place for place, kept in self.static.items() if kept == value]:
                self.update_static(trampoline, number)

    def _replace(self, table: dict[_P, Entry], value: Unknown, number: int) -> None:
        """What was made of that value by adding something is known too: a count that was 0 is 1 when it is one more."""
        symbol, offset, size = value
        found = [
            (place, kept)
            for place, (_, kept) in table.items()
            if not isinstance(kept, int) and kept[0] == symbol and kept[2] <= size
        ]
        for place, kept in found:
            assert not isinstance(kept, int)
            table[place] = (table[place][0], (number - offset + kept[1]) & MASK[kept[2]])
            self.changed.add(place)

    def apart(self, other: State) -> tuple[Fork, set[Place], set[Unknown]]:
        """Where two states parted, and since then: places that may hold something else, unknowns of which they may know
        something else."""
        places, known = self.changed | other.changed, self.learnt | other.learnt
        one, two = self.fork, other.fork
        while one is not two:
            if one.depth < two.depth:
                one, two = two, one
            places |= one.places
            known |= one.known
            assert one.parent is not None, "two states that were never one"
            one = one.parent
        return one, places, known
