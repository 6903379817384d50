"""Two states made one, and whether one stands for another; only what has changed since both were one is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from kbuild.elf.code.budget import PLACE, Budget
from kbuild.elf.code.results import FLAGS
from kbuild.elf.code.state import EPOCH, STACK, STACK_END, STATIC_CALL, WORD, Entry, Place, State
from kbuild.elf.code.targets import NOWHERE
from kbuild.elf.code.values import EVERYTHING, MASK, Ranges, Symbols, Unknown, Value, truncated, union

JOINED = "joined epoch"
ALL_USED = (1 << FLAGS + 1) - 1
Contents = Callable[[State, int, int], Value]
"""What is at an address, of a size."""


class Either(Protocol):
    """Makes one unknown of two values that differ; `most`: bytes that they have."""

    def __call__(self, x: Value, y: Value, most: int = WORD) -> Unknown: ...


class Joiner:
    """Makes one state of two, which stands for everything that either stands for. Both were one some time ago."""

    def __init__(
        self,
        symbols: Symbols,
        contents: Contents,
        unwritten: Contents,
        leads_as: Callable[[int, Value], bool],
        budget: Budget,
    ) -> None:
        """`contents`: what is at an address, of a size, in a state; `unwritten`: where it has written nothing;
        `leads_as`: see `Targets`."""
        self._symbols = symbols
        self._leads_as = leads_as
        self._unwritten = unwritten
        self._contents = contents
        self._budget = budget
        self.count = 0

    def join(self, a: State, b: State, used: int = ALL_USED, *, widen: bool = False) -> State:
        """The first of them, which stands for both from here on.

        `used`: a bit for each register, and the flags, that anybody looks at from here on; the others need not be
        known. With `widen`, nothing is kept of the ranges of what differs: so it comes to an end in loops.
        """
        self.count += 1
        a.facts |= b.facts
        pairs: dict[tuple[Value, Value, int], Unknown] = {}
        added: dict[Unknown, Ranges] = {}
        symbols = self._symbols

        def either(x: Value, y: Value, most: int = WORD) -> Unknown:
            """Of two that differ; `most`: bytes that they have."""
            size = min(max(_size(x), _size(y)), most)
            found = pairs.get((x, y, size))
            if found is None:
                found = pairs[x, y, size] = symbols.either(x, y, size)
                if not widen:
                    ranges = _ranges(a, x, b, y, size)
                    if ranges is not None:
                        added[found] = ranges
                    elif size == 8:
                        # An int in a register: a test of %eax says nothing of %rax.
                        ranges = _ranges(a, truncated(x, 4), b, truncated(y, 4), 4)
                        if ranges is not None:
                            added[found[0], 0, 4] = ranges
            return found

        registers = a.registers
        for index, (x, y) in enumerate(zip(registers, b.registers, strict=True)):
            if x is y or x == y:
                continue  # most are, and the same object
            if x is None or y is None or not used >> index & 1:
                registers[index] = None
            else:
                registers[index] = either(x, y)
        fork, places, learnt = a.apart(b)
        self._budget.work += PLACE * len(places)
        same_behind = self._join_memory(a, b, places, either) if places else True
        known = a.known
        theirs = b.known
        for value in learnt & known.keys():
            one, other = known[value], theirs.get(value)
            if other is None:
                del known[value]
            elif one is not other and one != other:
                a.know(value, union(one, other))
        known |= added
        places |= a.changed
        learnt.update(added)
        a.fork, a.changed, a.learnt = fork, places, learnt
        if a.epoch != b.epoch or not same_behind:
            a.epoch = symbols.new(JOINED)
        if a.flags != b.flags:
            a.flags = None
        if a.open is not b.open and a.open != b.open:
            a.open = symbols.new_each(JOINED, (*a.open, *b.open))
        return a

    def _join_memory(self, a: State, b: State, places: set[Place], either: Either) -> bool:
        """Gives whether both have written the same places behind unknown pointers."""
        same_behind = True
        ragged: list[int] = []
        tables, stacks = (a.memory, b.memory), (a.stack, b.stack)
        for place in places:
            if isinstance(place, int):
                table, other_table = stacks if STACK_END < place < STACK else tables
                mine, theirs = table.get(place), other_table.get(place)
                if mine is theirs or mine == theirs:  # most are, and the same object
                    continue
                if mine is not None and theirs is not None and mine[0] == theirs[0]:
                    size, x = mine
                    y = theirs[1]
                    if size < WORD:  # of what was a whole register, only this is there
                        x, y = truncated(x, size), truncated(y, size)
                    if x != y:
                        x = either(x, y, size)
                        a.written.symbols.add(x[0])
                    table[place] = size, x
                    continue
                size = mine[0] if mine is not None else theirs[0] if theirs is not None else 0
                if self._is_ragged(a, mine, place, size) or self._is_ragged(b, theirs, place, size):
                    ragged.append(place)
                    continue
                x = truncated(mine[1], size) if mine is not None else self._unwritten(a, place, size)
                y = truncated(theirs[1], size) if theirs is not None else self._unwritten(b, place, size)
                a.write(place, size, x if x == y else either(x, y, size))
            elif place[0] == STATIC_CALL:
                trampoline = place[1]
                to, other = a.static.get(trampoline), b.static.get(trampoline)
                if to is not None and other is None:
                    a.static = {one: leads for one, leads in a.static.items() if one != trampoline}
                elif to is not None and other is not None and to != other:
                    a.update_static(trampoline, either(to, other))
            else:
                mine, theirs = a.behind.get(place), b.behind.get(place)
                if mine is None or theirs is None:
                    same_behind = same_behind and mine is theirs
                    if mine is not None:
                        a.remove(place)
                elif mine[0] != theirs[0]:
                    a.write(place, mine[0], self._symbols.either(mine[1], theirs[1], mine[0]))
                elif mine != theirs:
                    a.write(place, mine[0], either(mine[1], theirs[1]))
        for place in ragged:
            self._join_pieces(a, b, place, either)
        return same_behind

    def _is_ragged(self, state: State, entry: Entry | None, place: int, size: int) -> bool:
        """Whether a state has there other pieces than one of that size."""
        return entry[0] != size if entry is not None else state.overlaps(place, size)

    def _join_pieces(self, a: State, b: State, place: int, either: Either) -> None:
        """Join what was written in other pieces by one than by the other: in the pieces that both can be cut into."""
        start, end, cuts = place, place + 1, {place}
        while True:
            found = {piece for state in (a, b) for piece in state.overlapping(start, end)}
            cuts = {cut for at, size in found for cut in (at, at + size)}
            if (min(cuts), max(cuts)) == (start, end):
                break
            start, end = min(cuts), max(cuts)
        pieces: list[tuple[int, int]] = []
        for first, last in itertools.pairwise(sorted(cuts)):
            size = last - first if last - first in MASK else 1
            pieces += [(at, size) for at in range(first, last, size)]
        joined: list[Value] = []
        for at, size in pieces:
            x, y = self._contents(a, at, size), self._contents(b, at, size)
            joined.append(x if x == y else either(x, y, size))
        for at, _ in list(a.overlapping(start, end)):
            a.remove(at)
        for (at, size), value in zip(pieces, joined, strict=True):
            a.write(at, size, value)

    def covers(self, a: State, b: State) -> bool:
        """Whether everything that b stands for, but its facts, is among what a stands for.

        It is where a's unknowns can be given numbers for which a is what b is. The same as b's are given to all but
        some that are made of no others: such a one may stand for something else than in b, if for the same at all
        places, and if a pointer that was made of it leads to what b's leads to.
        """
        if a.marks != b.marks or not b.open.keys() <= a.open.keys() or (a.flags is not None and a.flags != b.flags):
            return False
        names = [(a.epoch, b.epoch), *((since, b.open.get(place)) for place, since in a.open.items())]
        renamed = {mine for mine, other in names if mine != other}
        if any(self._symbols.origin[mine] not in (EPOCH, JOINED) for mine in renamed):
            return False
        meant: dict[int, Value] = {}
        same: list[Value] = []

        def fits(x: Value | None, y: Value | None) -> bool:
            if x is None:
                return True
            if x == y:
                same.append(x)
                return True
            if isinstance(x, int) or (x[1] and x[2] != WORD) or not self._symbols.is_plain(x[0]):
                return False
            if y is None:
                y = (-1 - len(meant), 0, WORD)  # one that is nowhere else
            elif x[1]:
                y = _less(y, x[1])
            return y is not None and meant.setdefault(x[0], y) == y and _within(b.ranges(y), EVERYTHING[x[2]])

        if not all(map(fits, a.registers, b.registers)):
            return False
        _, places, learnt = a.apart(b)
        self._budget.work += PLACE * len(places)
        if not all(self._covers_place(a, b, place, fits) for place in places):
            return False
        # What a knows of an unknown that both have, b has to know too.
        for value in learnt:
            ranges = a.known.get(value)
            if ranges is not None and value[0] not in meant:
                theirs = b.known.get(value)
                if theirs is None or not _within(theirs, ranges):
                    return False
        renamed |= meant.keys()
        if renamed and not self._hangs_on_nothing(a, b, renamed, same, meant):
            return False
        return all(self._leads_as(symbol, value) for symbol, value in meant.items())

    def _hangs_on_nothing(
        self, a: State, b: State, renamed: Set[int], same: Sequence[Value], meant: Mapping[int, Value]
    ) -> bool:
        """Whether what stands for something else in b is neither at another place of a, where b has the same as a, nor
        in what was made of it, and whether b knows of it what a does."""
        free: set[int] = set()
        least = min(renamed)

        def is_free(value: Value) -> bool:
            # What it is made of was there before it.
            return isinstance(value, int) or value[0] < least or not self._symbols.is_made_of(value[0], renamed, free)

        if not all(map(is_free, same)) or not all(map(is_free, a.flags[1:3] if a.flags is not None else ())):
            return False
        if not all(is_free((symbol, 0, 8)) for symbol in {symbol for symbol, _ in a.behind}):
            return False
        if not all(is_free(to) for at, to in a.static.items() if b.static.get(at) == to):
            return False
        for place, entry in itertools.chain[tuple[Place, Entry]](a.memory.items(), a.stack.items(), a.behind.items()):
            value = entry[1]
            if isinstance(value, int) or value[0] < least:
                continue  # as most are
            if not is_free(value) and b.entry(place) == entry:
                return False
        for value, ranges in a.known.items():
            if value[0] < least:
                continue
            if value[0] in meant:
                if not _within(b.ranges(_seen_as(meant[value[0]], value)), ranges):
                    return False
            elif not is_free(value):
                return False
        self._budget.work += len(free)
        return True

    def _covers_place(self, a: State, b: State, place: Place, fits: Callable[[Value, Value], bool]) -> bool:
        if isinstance(place, int):
            mine, theirs = a.entry(place), b.entry(place)
            if mine == theirs:
                return True
            if mine is not None and not fits(mine[1], self._contents(b, place, mine[0])):
                return False
            if theirs is None or (mine is None and self._is_unused(a, place, theirs)):
                return True
            # Of bytes that a has written in other pieces, each of its own pieces is asked.
            return all(
                a.overlaps(at, 1)
                or (
                    self._contents(a, at, 1) == self._contents(b, at, 1)
                    and fits(self._contents(a, at, 1), self._contents(b, at, 1))
                )
                for at in range(place + (mine[0] if mine is not None else 0), place + theirs[0])
            )
        if place[0] == STATIC_CALL:
            to, other = a.static.get(place[1]), b.static.get(place[1])
            return to is None or (other is not None and fits(to, other))
        mine, theirs = a.behind.get(place), b.behind.get(place)
        if mine is None:
            return theirs is None or a.epoch != b.epoch
        return theirs is not None and mine[0] == theirs[0] and fits(mine[1], theirs[1])

    def _is_unused(self, a: State, place: int, theirs: Entry) -> bool:
        """Whether it is on the stack, where nothing was written yet and what is there then was never read, so that it
        may be anything that leads nowhere."""
        size, value = theirs
        if not STACK_END < place < STACK or a.overlaps(place, size) or not self._leads_as(NOWHERE, value):
            return False
        if any(start < place + size and place < end for start, end in a.open):
            return False
        reads = ((at, width) for width in MASK for at in range(place - width + 1, place + size))
        return not any(self._symbols.has(("memory", at, width)) for at, width in reads)


def _seen_as(value: Value, like: Unknown) -> Value:
    """What an unknown with an offset and of a size is, where the unknown itself is that value."""
    _, offset, size = like
    if isinstance(value, int):
        return (value + offset) & MASK[size]
    if size <= value[2]:
        return (value[0], (value[1] + offset) & MASK[size], size)
    return (-1, 0, size) if offset else value


def _ranges(a: State, x: Value, b: State, y: Value, size: int) -> Ranges | None:
    """What one of two values can be, each in its own state; None: anything of that size."""
    mine = ((x, x),) if isinstance(x, int) else a.known.get(x)
    if mine is None:
        if isinstance(x, int) or x[2] == size:
            return None
        mine = EVERYTHING[x[2]]
    theirs = ((y, y),) if isinstance(y, int) else b.known.get(y)
    if theirs is None:
        if isinstance(y, int) or y[2] == size:
            return None
        theirs = EVERYTHING[y[2]]
    ranges = union(mine, theirs)
    return ranges if ranges != EVERYTHING[size] else None


def _within(inner: Ranges, outer: Ranges) -> bool:
    return all(any(low <= first and last <= high for low, high in outer) for first, last in inner)


def _less(value: Value, offset: int) -> Value | None:
    """A value of a register, less an offset; None: there is no name for it."""
    if isinstance(value, int):
        return (value - offset) & MASK[WORD]
    symbol, start, size = value
    return (symbol, (start - offset) & MASK[WORD], WORD) if size == WORD else None


def _size(value: Value) -> int:
    if isinstance(value, int):
        return 4 if value <= MASK[4] else 8
    return value[2]
