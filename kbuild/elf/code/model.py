"""Whether what a path takes for granted can be so all at once: numbers for its unknowns that fit, found and checked.

A model that was found is a proof: each condition of the path is computed from it. None found says nothing.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from kbuild.elf.code.values import MASK, SIGN, Ranges, Symbols, Unknown, Value, is_within, rotated, satisfying

Condition = tuple[Unknown, Ranges]
Changes = tuple[tuple[int, int], ...]
"""Leaves, and other numbers for them."""
Repair = tuple[Changes, list[int]]
"""Changes, and which conditions do not hold then."""
MAX_REPAIRS = 200
LASTS = 4
"""Repairs that the next ones leave as they are, where they can."""
MAX_COMPUTED = 2_000_000
"""Unknowns that are computed for all ways of a rule: some seconds."""
MAX_CHANGES = 512
"""That are tried for one repair."""

FREE = frozenset({"written by others", "environment", "memory", "result", "unresolved", "argument", "cpu feature"})
"""What an unknown may come from that can be anything: the kernel, the machine, memory at the start."""


def _parts(origin: object) -> Iterator[int]:
    """The symbols in what the machine wrote down of an unknown: values, in tuples of tuples perhaps."""
    if not isinstance(origin, tuple):
        return
    if len(origin) == 3 and all(isinstance(one, int) for one in origin):
        yield origin[0]
        return
    for part in origin:
        if isinstance(part, tuple):
            yield from _parts(part)


class Lost(Exception):  # noqa: N818 (no error: an answer)
    """A condition hangs on something of which the analysis does not know how it came to be."""


@dataclass
class Effort:
    """What has been computed to find models, which files can make too much."""

    computed: int = 0

    def more(self) -> None:
        """One more unknown. Raises Lost where it is too much."""
        self.computed += 1
        if self.computed > MAX_COMPUTED:
            raise Lost("none was found in time")


def satisfiable(conditions: Sequence[Condition], symbols: Symbols, effort: Effort | None = None) -> str | None:
    """None: there is a model. Otherwise why none is known. `effort`: of several calls together."""
    model = _Model(symbols, conditions, effort or Effort())
    try:
        wrong = model.violated(range(len(conditions)))
        latest: deque[frozenset[int]] = deque(maxlen=LASTS)
        for _ in range(MAX_REPAIRS):
            if not wrong:
                return None
            best = _repair(model, conditions[wrong[0]], wrong, frozenset().union(*latest))
            if best is None or len(best[1]) >= len(wrong) + 2:
                break
            model.put(best[0])
            latest.append(frozenset(leaf for leaf, _ in best[0]))
            # Another one first the next time: the same repair must not be undone and done for ever.
            wrong = best[1][1:] + best[1][:1]
    except Lost as lost:
        return str(lost)
    return "its conditions could not be met all at once"


def _repair(model: _Model, condition: Condition, wrong: Sequence[int], latest: AbstractSet[int]) -> Repair | None:
    """What is changed next, so that a condition holds; `latest`: leaves that were changed just before."""
    best = model.best(model.repairs(condition), wrong)
    if best is None or len(best[1]) >= len(wrong):
        best = model.best(model.guesses(condition[0]), wrong) or best
    if best is None or len(best[1]) >= len(wrong):
        # Two conditions may each undo what mended the other: let this one be met, whatever it breaks, by other leaves.
        others = (some for some in model.repairs(condition) if latest.isdisjoint(leaf for leaf, _ in some))
        best = model.best(others, wrong, mends=True) or best
    return best


class _Model:
    def __init__(self, symbols: Symbols, conditions: Sequence[Condition], effort: Effort) -> None:
        self._effort = effort
        self._symbols = symbols
        self._conditions = conditions
        self._numbers: dict[object, int] = {}
        """Of leaves, and of bytes of memory, which several leaves may be reads of; of the others 0."""
        self._computed: dict[int, int] = {}
        """Of all that was asked for, with these."""
        made_of: dict[int, frozenset[int]] = {}
        by_place: dict[object, list[int]] = {}
        for number, (value, _) in enumerate(conditions):
            for symbol in self._made_of(value[0], made_of):
                for place in self._places(symbol):
                    by_place.setdefault(place, []).append(number)
        self._about = {
            symbol: sorted({number for place in self._places(symbol) for number in by_place.get(place, ())})
            for symbol in made_of
        }
        """By symbol: the conditions that depend on it, if it is a leaf."""

    def _made_of(self, symbol: int, found: dict[int, frozenset[int]]) -> frozenset[int]:
        """The symbols that one is made of, itself among them."""
        known = found.get(symbol)
        if known is None:
            known = frozenset((symbol,)).union(
                *(self._made_of(part, found) for part in _parts(self._symbols.origin[symbol]))
            )
            found[symbol] = known
        return known

    def _places(self, leaf: int) -> list[object]:
        """Where a leaf's number is kept: under its own name, or byte by byte."""
        origin: Any = self._symbols.origin[leaf]
        if not isinstance(origin, tuple) or origin[0] != "memory":
            return [leaf]
        # Machine.load() and unwritten(): an address, or an unknown and an offset; a size; since when, perhaps.
        pointer, at, size, since = (None, *origin[1:], None)[:4] if len(origin) < 5 else origin[1:]
        return [(pointer, since, at + index) for index in range(size)]

    def put(self, changes: Changes) -> list[tuple[object, int]]:
        """Take leaves for these numbers; gives what has to be put back to have it as before."""
        self._computed.clear()
        before = []
        for leaf, number in changes:
            places = self._places(leaf)
            for index, place in enumerate(places):
                before.append((place, self._numbers.get(place, 0)))
                self._numbers[place] = number if len(places) == 1 and place == leaf else number >> 8 * index & 0xFF
        return before

    def back(self, before: Sequence[tuple[object, int]]) -> None:
        """Undo `put`."""
        self._computed.clear()
        for place, number in reversed(before):
            self._numbers[place] = number

    def leaf(self, leaf: int) -> int:
        """A leaf's number."""
        places = self._places(leaf)
        if places[0] == leaf:
            return self._numbers.get(leaf, 0)
        return sum(self._numbers.get(place, 0) << 8 * index for index, place in enumerate(places))

    def violated(self, some: Iterable[int]) -> list[int]:
        """Those of some conditions that do not hold."""
        every = self._conditions
        return [one for one in some if not is_within(self.number(every[one][0]), every[one][1])]

    def best(self, changes: Iterator[Changes], wrong: Sequence[int], *, mends: bool = False) -> Repair | None:
        """The change that leaves the fewest conditions violated, and these; now it is `wrong`.

        Of equals one that mends the first of them: else one that changes nothing is as good. With `mends` no other.
        """
        best: Repair | None = None
        least = (0, False)
        for some in itertools.islice(filter(None, changes), MAX_CHANGES):
            before = self.put(some)
            about = {number for leaf, _ in some for number in self._about.get(leaf, ())}
            now = {*self.violated(about)}
            self.back(before)
            left = [one for one in wrong if one in now or one not in about]
            left += sorted(now.difference(left))
            if mends and wrong[0] in left:
                continue
            if best is None or (len(left), wrong[0] in left) < least:
                best, least = (some, left), (len(left), wrong[0] in left)
        return best

    def guesses(self, value: Value) -> Iterator[Changes]:
        """All numbers of the leaves of a value that have one byte: the counts of shifts are such."""
        for symbol, size in self._leaves(value):
            if size == 1:
                yield from (((symbol, number),) for number in range(256))

    def _leaves(self, value: Value) -> Iterator[tuple[int, int]]:
        if isinstance(value, int):
            return
        origin = self._symbols.origin[value[0]]
        if (origin[0] if isinstance(origin, tuple) else origin) in FREE:
            yield value[0], value[2]
        elif isinstance(origin, tuple):
            for part in origin[1:]:
                if isinstance(part, tuple) and len(part) == 3 and all(isinstance(one, int) for one in part):
                    yield from self._leaves(part)

    def number(self, value: Value) -> int:
        """A value's number in this model."""
        if isinstance(value, int):
            return value
        return (self._symbol(value[0]) + value[1]) & MASK[value[2]]

    def _symbol(self, symbol: int) -> int:
        found = self._computed.get(symbol)
        if found is None:
            found = self._computed[symbol] = self._compute(symbol)
        return found

    def _compute(self, symbol: int) -> int:
        self._effort.more()
        # Whatever the machine wrote down there: a tuple of a word, values and numbers.
        origin: Any = self._symbols.origin[symbol]
        match origin:
            case ("add", x, y, int(size)):
                return (self.number(x) + self.number(y)) & MASK[size]
            case ("subtract", x, y, int(size)):
                return (self.number(x) - self.number(y)) & MASK[size]
            case ("and", x, y, int(size)):
                return self.number(x) & self.number(y) & MASK[size]
            case ("or", x, y, int(size)):
                return (self.number(x) | self.number(y)) & MASK[size]
            case ("xor", x, y, int(size)):
                return (self.number(x) ^ self.number(y)) & MASK[size]
            case ("zero-extended", x, int()):
                return self.number(x)
            case ("sign-extended", x, int(size)):
                number, own = self.number(x), x[2]
                return (number - (1 << 8 * own) if number & SIGN[own] else number) & MASK[size]
            case ("scaled", x, int(scale)):
                return (self.number(x) * scale) & MASK[8]
            case ("shl" | "shr" | "sar" as name, x, y, int(size)):
                count, number = self.number(y) & (63 if size == 8 else 31), self.number(x) & MASK[size]
                if name == "shl":
                    return (number << count) & MASK[size]
                if name == "sar" and number & SIGN[size]:
                    number -= 1 << 8 * size
                return (number >> count) & MASK[size]
            case ("multiply", x, y, int(size)):
                return (self.number(x) * self.number(y)) & MASK[size]
            case ("multiply-high", x, y, int(size)):
                return ((self.number(x) & MASK[size]) * (self.number(y) & MASK[size])) >> 8 * size
            case ("shift-double", x, y, z, int(size)):
                wide = (self.number(y) & MASK[size]) << 8 * size | (self.number(x) & MASK[size])
                return (wide >> (self.number(z) & (63 if size == 8 else 31))) & MASK[size]
            case ("rotate", x, int(left), int(size)):
                return rotated(self.number(x) & MASK[size], left, size)
            case ("not", x, int(size)):
                return ~self.number(x) & MASK[size]
            case ("negate", x, int(size)):
                return -self.number(x) & MASK[size]
            case ("merged", x, y, int(size)):
                return (self.number(x) & ~MASK[size]) | (self.number(y) & MASK[size])
            case ("high merged", x, y):
                return (self.number(x) & ~0xFF00) | (self.number(y) & 0xFF) << 8
            case ("bytes", pieces):
                number = shift = 0
                for count, piece in pieces:
                    number |= (self.number(piece) & ((1 << 8 * count) - 1)) << shift
                    shift += 8 * count
                return number
            case ("high", x):
                return (self.number(x) >> 8) & 0xFF
            case ("bit", x, int(index)):
                return (self.number(x) >> index) & 1
            case ("lowest bit" | "highest bit" as name, x, before, int(size)):
                number = self.number(x) & MASK[size]
                if not number:
                    return self.number(before) & MASK[size]
                return (number if name == "highest bit" else number & -number).bit_length() - 1
            case ("compare", x, y, str(condition), int(size)):
                return int(is_within(self.number(x), satisfying(condition, self.number(y), size)))
            case ("set", str(condition), (kind, x, y, int(size))):
                return int(self._holds(condition, kind, x, y, size))
        name = origin[0] if isinstance(origin, tuple) else origin
        if name not in FREE:
            raise Lost(f"a branch depends on what the analysis lost ({name})")
        return self.leaf(symbol)

    def _holds(self, condition: str, kind: str, x: Value, y: Value, size: int) -> bool:
        """A condition on flags, as `Machine.decide()` reads them."""
        number, other = self.number(x) & MASK[size], self.number(y) & MASK[size]
        if kind == "bit":
            kind, condition = "and", "ne" if condition == "b" else "e"
        if kind == "sum":
            kind = "sub" if condition in ("b", "ae") else "result"
        if kind != "sub":
            number, other = number & other if kind == "and" else number, 0
        if condition in ("s", "ns"):
            condition = "l" if condition == "s" else "ge"
        return is_within(number, satisfying(condition, other, size))

    def repairs(self, condition: Condition) -> Iterator[Changes]:
        """Changes that may make a condition hold."""
        value, ranges = condition
        for low, high in ranges:
            for wanted in dict.fromkeys((low, high, (low + high) // 2)):
                yield from self._invert(value, wanted)

    def _invert_both(self, x: Value, wanted: int, y: Value, other: int) -> Iterator[Changes]:
        """Numbers of leaves for which one value may become this and another one that."""
        for some, more in itertools.product(self._few(x, wanted), self._few(y, other)):
            yield (*some, *more)

    def _invert_pieces(self, pieces: Sequence[tuple[int, Value]], wanted: int) -> Iterator[Changes]:
        """The same of all pieces that have to be others."""
        every = []
        for count, piece in pieces:
            mask = (1 << 8 * count) - 1
            if (self.number(piece) ^ wanted) & mask:
                every.append(self._few(piece, wanted & mask))
            wanted >>= 8 * count
        for some in itertools.product(*every):
            yield tuple(change for changes in some for change in changes)

    def _few(self, value: Value, wanted: int) -> list[Changes]:
        if self.number(value) == wanted:
            return [()]
        return list(itertools.islice(self._invert(value, wanted), 2))

    def _invert(self, value: Value, wanted: int) -> Iterator[Changes]:
        """Numbers of leaves for which a value may become the wanted one."""
        if isinstance(value, int):
            return
        symbol, offset, size = value
        wanted = (wanted - offset) & MASK[size]
        origin: Any = self._symbols.origin[symbol]
        match origin:
            case ("add", x, y, int()):
                yield from self._invert(x, wanted - self.number(y))
                yield from self._invert(y, wanted - self.number(x))
            case ("subtract", x, y, int()):
                yield from self._invert(x, wanted + self.number(y))
                yield from self._invert(y, self.number(x) - wanted)
            case ("and", x, y, int()):
                # Where neither has the bits both get them.
                more = self.number(x) | wanted
                yield from self._invert_both(x, more, y, (self.number(y) & ~more) | wanted)
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    yield from self._invert(one, (self.number(one) & ~other) | (wanted & other))
            case ("or", x, y, int()):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    yield from self._invert(one, wanted & ~other)
                yield from self._invert_both(x, self.number(x) & wanted, y, wanted)
            case ("xor", x, y, int()):
                yield from self._invert(x, wanted ^ self.number(y))
                yield from self._invert(y, wanted ^ self.number(x))
            case ("zero-extended" | "sign-extended", x, int()):
                yield from self._invert(x, wanted & MASK[x[2]])
            case ("scaled", x, int(scale)):
                yield from self._invert(x, wanted // scale)
            case ("multiply", x, y, int(width)):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    if other % 2:
                        yield from self._invert(one, wanted * pow(other, -1, MASK[width] + 1))
                    elif other and not wanted % other:
                        yield from self._invert(one, wanted // other)
                    else:
                        yield from self._invert(one, 1)
            case ("shl", x, int(count), int(width)):
                # What is shifted out may stay.
                out = MASK[width] ^ (MASK[width] >> (count & 63))
                yield from self._invert(x, (wanted >> (count & 63)) | (self.number(x) & out))
            case ("shr" | "sar", x, int(count), int(width)):
                out = (1 << (count & 63)) - 1
                yield from self._invert(x, ((wanted << (count & 63)) & MASK[width]) | (self.number(x) & out))
            case ("multiply-high", x, y, int(width)):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    if other:
                        yield from self._invert(one, (wanted << 8 * width) // other)
            case ("shift-double", x, y, z, int(width)):
                count = self.number(z) & (63 if width == 8 else 31)
                yield from self._invert(x, (wanted << count) & MASK[width])
                yield from self._invert(y, wanted >> (8 * width - count))
            case ("rotate", x, int(left), int(width)):
                yield from self._invert(x, rotated(wanted & MASK[width], -left % (8 * width), width))
            case ("not", x, int()):
                yield from self._invert(x, ~wanted)
            case ("negate", x, int()):
                yield from self._invert(x, -wanted)
            case ("merged", x, y, int(width)):
                yield from self._invert_both(x, wanted, y, wanted & MASK[width])
            case ("high merged", x, y):
                yield from self._invert(x, wanted)
                yield from self._invert(y, wanted >> 8)
            case ("bytes", pieces):
                yield from self._invert_pieces(pieces, wanted)
            case ("lowest bit" | "highest bit", x, before, int(width)):
                if wanted < 8 * width:
                    yield from self._invert(x, 1 << wanted)
                yield from self._invert_both(x, 0, before, wanted)
            case ("bit", x, int(index)):
                yield from self._invert(x, (self.number(x) & ~(1 << index)) | (wanted & 1) << index)
            case ("high", x):
                yield from self._invert(x, (self.number(x) & ~0xFF00) | (wanted & 0xFF) << 8)
            case ("compare", x, y, str(), int()) | ("set", str(), (_, x, y, int())):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    for near in (other, other + 1, other - 1, 0, -1):
                        yield from self._invert(one, near)
                if x == y and not isinstance(x, int):
                    # Whether it is 0: of several such words each may need a bit that no other one has.
                    for bit in range(8 * x[2]):
                        yield from self._invert(x, 1 << bit)
            case _:
                kept = self.leaf(symbol) & ~MASK[size]
                yield ((symbol, kept | (wanted & MASK[size])),)
