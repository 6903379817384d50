"""Whether what a path takes for granted can be so all at once: numbers for its unknowns that fit, found and checked.

A model that was found is a proof: each condition of the path is computed from it. None found says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kbuild.elf.code.values import MASK, SIGN, Ranges, Symbols, Unknown, Value, is_within, rotated, satisfying

Condition = tuple[Unknown, Ranges]
MAX_REPAIRS = 200

FREE = frozenset({"written by others", "environment", "memory", "result", "unresolved", "argument", "cpu feature"})
"""What an unknown may come from that can be anything: the kernel, the machine, memory at the start."""


class Lost(Exception):  # noqa: N818 (no error: an answer)
    """A condition hangs on something of which the analysis does not know how it came to be."""


def satisfiable(conditions: Sequence[Condition], symbols: Symbols) -> str | None:
    """None: there is a model. Otherwise why none is known."""
    model = _Model(symbols)
    try:
        wrong = model.violated(conditions)
        for _ in range(MAX_REPAIRS):
            if not wrong:
                return None if model.consistent() else "two reads of the same memory would have to differ"
            best = model.best(model.repairs(wrong[0]), conditions)
            if best is None or len(best[2]) >= len(wrong):
                best = model.best(model.guesses(wrong[0][0]), conditions) or best
            if best is None or len(best[2]) >= len(wrong) + 2:
                break
            model.numbers[best[0]] = best[1]
            # Another one first the next time: the same repair must not be undone and done for ever.
            wrong = best[2][1:] + best[2][:1]
    except Lost as lost:
        return str(lost)
    return "its conditions could not be met all at once"


class _Model:
    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self.numbers: dict[int, int] = {}

    def violated(self, conditions: Sequence[Condition]) -> list[Condition]:
        return [(value, ranges) for value, ranges in conditions if not is_within(self.number(value), ranges)]

    def best(
        self, changes: Iterator[tuple[int, int]], conditions: Sequence[Condition]
    ) -> tuple[int, int, list[Condition]] | None:
        """The change of one leaf that leaves the fewest conditions violated, and these."""
        best = None
        for leaf, number in changes:
            before = self.numbers.get(leaf)
            self.numbers[leaf] = number
            left = self.violated(conditions)
            if before is None:
                del self.numbers[leaf]
            else:
                self.numbers[leaf] = before
            if best is None or len(left) < len(best[2]):
                best = leaf, number, left
        return best

    def guesses(self, value: Value) -> Iterator[tuple[int, int]]:
        """All numbers of the leaves of a value that have one byte: the counts of shifts are such."""
        for symbol, size in self._leaves(value):
            if size == 1:
                yield from ((symbol, number) for number in range(256))

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
            case ("rotate", x, int(left), int(size)):
                return rotated(self.number(x) & MASK[size], left, size)
            case ("not", x, int(size)):
                return ~self.number(x) & MASK[size]
            case ("negate", x, int(size)):
                return -self.number(x) & MASK[size]
            case ("merged", x, y, int(size)):
                return (self.number(x) & ~MASK[size]) | (self.number(y) & MASK[size])
            case ("bytes", pieces):
                number = shift = 0
                for count, piece in pieces:
                    number |= (self.number(piece) & ((1 << 8 * count) - 1)) << shift
                    shift += 8 * count
                return number
            case ("high", x):
                return (self.number(x) >> 8) & 0xFF
            case ("compare", x, y, str(condition), int(size)):
                return int(is_within(self.number(x), satisfying(condition, self.number(y), size)))
            case ("set", str(condition), (kind, x, y, int(size))):
                return int(self._holds(condition, kind, x, y, size))
        name = origin[0] if isinstance(origin, tuple) else origin
        if name not in FREE:
            raise Lost(f"a branch depends on what the analysis lost ({name})")
        return self.numbers.get(symbol, 0)

    def _holds(self, condition: str, kind: str, x: Value, y: Value, size: int) -> bool:
        """A condition on flags, as `Machine.decide()` reads them."""
        number, other = self.number(x) & MASK[size], self.number(y) & MASK[size]
        if kind == "bit":
            kind, condition = "and", "ne" if condition == "b" else "e"
        if kind != "sub":
            number, other = number & other if kind == "and" else number, 0
        if condition in ("s", "ns"):
            condition = "l" if condition == "s" else "ge"
        return is_within(number, satisfying(condition, other, size))

    def repairs(self, condition: Condition) -> Iterator[tuple[int, int]]:
        """Changes of one leaf that may make a condition hold."""
        value, ranges = condition
        for low, high in ranges:
            for wanted in dict.fromkeys((low, high, (low + high) // 2)):
                yield from self._invert(value, wanted)

    def _invert(self, value: Value, wanted: int) -> Iterator[tuple[int, int]]:
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
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    yield from self._invert(one, (self.number(one) & ~other) | (wanted & other))
            case ("or", x, y, int()):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    yield from self._invert(one, wanted & ~other)
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
            case ("shl", x, int(count), int()):
                yield from self._invert(x, wanted >> (count & 63))
            case ("shr", x, int(count), int(width)):
                yield from self._invert(x, (wanted << (count & 63)) & MASK[width])
            case ("rotate", x, int(left), int(width)):
                yield from self._invert(x, rotated(wanted & MASK[width], -left % (8 * width), width))
            case ("not", x, int()):
                yield from self._invert(x, ~wanted)
            case ("negate", x, int()):
                yield from self._invert(x, -wanted)
            case ("merged", _, y, int()):
                yield from self._invert(y, wanted)
            case ("bytes", pieces):
                shift = 0
                for count, piece in pieces:
                    yield from self._invert(piece, wanted >> shift & ((1 << 8 * count) - 1))
                    shift += 8 * count
            case ("high", x):
                yield from self._invert(x, (self.number(x) & ~0xFF00) | (wanted & 0xFF) << 8)
            case ("compare", x, y, str(), int()) | ("set", str(), (_, x, y, int())):
                for one, other in ((x, self.number(y)), (y, self.number(x))):
                    for near in (other, other + 1, other - 1, 0, -1):
                        yield from self._invert(one, near)
            case _:
                kept = self.numbers.get(symbol, 0) & ~MASK[size]
                yield symbol, kept | (wanted & MASK[size])

    def consistent(self) -> bool:
        """Whether reads of memory that overlap have the same bytes."""
        bytes_of: dict[tuple[object, ...], int] = {}
        for symbol, number in self.numbers.items():
            origin: Any = self._symbols.origin[symbol]
            if not isinstance(origin, tuple) or origin[0] != "memory":
                continue
            # Machine.load() and unwritten(): an address, or an unknown and an offset; a size; since when, perhaps.
            pointer, at, size, since = (None, *origin[1:], None)[:4] if len(origin) < 5 else origin[1:]
            for index in range(size):
                key = (pointer, since, at + index)
                if bytes_of.setdefault(key, number >> 8 * index & 0xFF) != number >> 8 * index & 0xFF:
                    return False
        return True
