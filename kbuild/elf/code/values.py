"""What a register or a place in memory holds, as far as it is known: numbers, and names for what is unknown.

A value is a number (unsigned, of its size), or `(symbol, offset, size)`: the low `size` bytes of an unknown plus an
offset. The same unknown has the same symbol wherever it went, so that what a branch tells of it is known of all copies.
Unknowns are interned by what they are: the same operation on the same operands is the same unknown.

What is known of an unknown are the ranges that it can lie in, as unsigned numbers of its size.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Set
from functools import lru_cache
from typing import TypeVar

K = TypeVar("K")
Unknown = tuple[int, int, int]
Value = int | Unknown
Ranges = tuple[tuple[int, int], ...]
"""Ascending, disjoint, inclusive; empty: nothing is possible."""

MASK = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}
SIGN = {1: 0x80, 2: 0x8000, 4: 0x8000_0000, 8: 0x8000_0000_0000_0000}
EVERYTHING: dict[int, Ranges] = {size: ((0, mask),) for size, mask in MASK.items()}
FLAG: Ranges = ((0, 1),)
"""What a condition is as a number."""
_ZERO: Ranges = ((0, 0),)
MAX_ERRNO = 4095
"""include/linux/err.h"""
_ERRNO, _ERRNO_POINTER = MASK[4] - MAX_ERRNO + 1, MASK[8] - MAX_ERRNO + 1

_OPPOSITES = (("e", "ne"), ("b", "ae"), ("be", "a"), ("l", "ge"), ("le", "g"), ("s", "ns"), ("o", "no"), ("p", "np"))
NEGATED = dict(_OPPOSITES) | {b: a for a, b in _OPPOSITES}
"""Conditions as in instructions' names, and what holds where they do not."""
_MIRRORED = (("e", "e"), ("ne", "ne"), ("b", "a"), ("ae", "be"), ("l", "g"), ("ge", "le"))
SWAPPED = dict(_MIRRORED) | {b: a for a, b in _MIRRORED}
"""The same condition with its operands the other way round; those that compare."""


EITHER = "either"
"""The origin of an unknown that may be one value or another: where ways were joined."""
MAX_WEIGHT = 128
"""Operations that one unknown is made of; of more it is not known how it came to be."""
TOO_DEEP = "made in too many steps"


class Symbols:
    """Names of unknowns, for one analysis."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._weights: dict[int, int] = {}
        """By symbol, of those that are made of others: of how many, each as often as it is needed."""
        self.origin: list[Hashable] = []
        """By symbol: what it is, for a person and for whoever asks where it came from."""
        self.parts: dict[int, tuple[Value, Value]] = {}
        """By symbol, of those that are one of two on different ways: these two."""

    def of(self, origin: Hashable) -> int:
        """The unknown of that origin: always the same one."""
        number = self._numbers.get(origin)
        if number is None:
            number = self._numbers[origin] = len(self.origin)
            weight = self._weight(origin)
            if weight <= MAX_WEIGHT:
                self._weights[number] = weight
            # Whoever computes it does each step, and files are untrusted: x + x, of that again the sum, and so on.
            self.origin.append(origin if weight <= MAX_WEIGHT else TOO_DEEP)
        return number

    def _weight(self, origin: object) -> int:
        if not isinstance(origin, tuple):
            return 0
        if len(origin) == 3 and isinstance(origin[0], int) and isinstance(origin[2], int):
            return self._weights.get(origin[0], 1)
        weight = 1
        for part in origin:
            if isinstance(part, tuple):
                weight += self._weight(part)
        return weight

    def either(self, x: Value, y: Value, size: int) -> Unknown:
        """An unknown that is one of two, which one depends on the way."""
        symbol = len(self.origin)
        self.origin.append(EITHER)
        self.parts[symbol] = x, y
        return (symbol, 0, size)

    def new(self, origin: Hashable) -> int:
        """An unknown that is no other."""
        self.origin.append(origin)
        return len(self.origin) - 1

    def new_each(self, origin: Hashable, keys: Iterable[K]) -> dict[K, int]:
        """Such an unknown for each of some keys."""
        each = dict.fromkeys(keys, 0)
        first = len(self.origin)
        self.origin += [origin] * len(each)
        return dict(zip(each, range(first, first + len(each)), strict=True))

    def has(self, origin: Hashable) -> bool:
        """Whether anything was made so."""
        return origin in self._numbers

    def is_plain(self, symbol: int) -> bool:
        """Whether an unknown is no result of an operation on others: it may be anything that is known of it."""
        origin = self.origin[symbol]
        return isinstance(origin, str) and origin != TOO_DEEP

    def is_made_of(self, symbol: int, names: Set[int], free: set[int]) -> bool:
        """Whether an unknown is among these, or may be made of one of them.

        `free`: of which it is known that they are not, for one and the same `names`; more are put there.
        """
        least, waiting, seen = min(names), [symbol], set[int]()
        while waiting:
            one = waiting.pop()
            # What it is made of was there before it.
            if one < least or one in free or one in seen:
                continue
            seen.add(one)
            origin = self.origin[one]
            if one in names or origin == TOO_DEEP:
                return True
            # Names of memory are plain numbers in it; so any number below its own may be a name.
            waiting += [number for number in _numbers(origin) if number < one]
        free |= seen
        return False


def _numbers(origin: object) -> Iterator[int]:
    """All numbers in an origin."""
    if isinstance(origin, int):
        yield origin
    elif isinstance(origin, tuple):
        for part in origin:
            yield from _numbers(part)


def truncated(value: Value, size: int) -> Value:
    """The low `size` bytes."""
    if isinstance(value, int):
        return value & MASK[size]
    return value if value[2] <= size else (value[0], value[1] & MASK[size], size)


@lru_cache(maxsize=1 << 11)  # The same few are asked for all the time.
def intersection(a: Ranges, b: Ranges) -> Ranges:
    """What is in both."""
    found = []
    for low, high in a:
        for other_low, other_high in b:
            first = low if low > other_low else other_low
            last = high if high < other_high else other_high
            if first <= last:
                found.append((first, last))
    return tuple(found)


@lru_cache(maxsize=1 << 11)
def union(a: Ranges, b: Ranges) -> Ranges:
    """What is in one of them."""
    if a == b or not b:
        return a
    every = sorted((*a, *b))
    merged = every[:1]
    for low, high in every[1:]:
        if low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


@lru_cache(maxsize=1 << 14)  # Each condition is asked for in many states.
def satisfying(condition: str, value: int, size: int) -> Ranges:
    """The numbers x of that size for which `x CONDITION value` holds; conditions as in `SWAPPED`."""
    full, sign = MASK[size], SIGN[size]
    value &= full
    # Signed numbers ascend from `sign` to `full`, and go on from 0 to `sign` - 1.
    negative = value >= sign
    pairs: tuple[tuple[int, int], ...]
    match condition:
        case "e":
            pairs = ((value, value),)
        case "ne":
            pairs = ((0, value - 1), (value + 1, full))
        case "b":
            pairs = ((0, value - 1),)
        case "ae":
            pairs = ((value, full),)
        case "be":
            pairs = ((0, value),)
        case "a":
            pairs = ((value + 1, full),)
        case "l":
            pairs = ((sign, value - 1),) if negative else ((0, value - 1), (sign, full))
        case "le":
            pairs = ((sign, value),) if negative else ((0, value), (sign, full))
        case "ge":
            pairs = ((0, sign - 1), (value, full)) if negative else ((value, sign - 1),)
        case "g":
            pairs = ((0, sign - 1), (value + 1, full)) if negative else ((value + 1, sign - 1),)
        case _:
            raise ValueError(condition)
    return tuple((low, high) for low, high in pairs if low <= high)


@lru_cache(maxsize=1 << 11)
def parted(ranges: Ranges, condition: str, value: int, size: int) -> tuple[Ranges, Ranges]:
    """Of ranges what `CONDITION value` holds for, and what not."""
    rest = satisfying(NEGATED[condition], value, size)
    return intersection(ranges, satisfying(condition, value, size)), intersection(ranges, rest)


def holds(condition: str, x: int, y: int, size: int) -> bool:
    """Whether `x CONDITION y` holds of two numbers."""
    x &= MASK[size]
    return any(low <= x <= high for low, high in satisfying(condition, y, size))


def rotated(number: int, left: int, size: int) -> int:
    """Rotated to the left by fewer bits than it has."""
    return ((number << left) | (number >> (8 * size - left))) & MASK[size]


def is_within(number: int, ranges: Ranges) -> bool:
    """Whether a number is in one of them."""
    return any(low <= number <= high for low, high in ranges)


def is_errno(ranges: Ranges) -> bool:
    """Whether it is a negative errno for sure, as an `int` or as a pointer."""
    for low, high in ranges:
        if not (low >= _ERRNO and high <= MASK[4]) and low < _ERRNO_POINTER:
            return False
    return bool(ranges)


@lru_cache(maxsize=1 << 11)
def kind_of(ranges: Ranges) -> int | None:
    """What a value means as a result: 0, -1 for an errno, None for anything else."""
    return 0 if ranges == _ZERO else -1 if is_errno(ranges) else None
