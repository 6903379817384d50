"""What is known of single bits of unknowns: which are the same whatever the rest is, and which bit is which.

Kernel code asks for bits of words all the time, of what a CPU has above all, each time in another way: `bt`, `test`
with a mask, a shift first, of a byte of the word. That two such questions are the same one is known here.
"""

from __future__ import annotations

from typing import Any

from kbuild.elf.code.values import MASK, Ranges, Symbols, Unknown, Value

MAX_FEW = 8
_FLAG_ZEROS = MASK[1] - 1


class Bits:
    """Of the unknowns of one analysis."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self.known: dict[int, tuple[int, int]] = {}
        """By symbol, of some: the bits that are 0, and those that are 1."""

    def of(self, value: Value, size: int) -> tuple[int, int]:
        """The bits of a value that are 0 for sure, and those that are 1."""
        mask = MASK[size]
        if isinstance(value, int):
            return ~value & mask, value & mask
        zeros, ones = self.known.get(value[0], (0, 0)) if not value[1] else (0, 0)
        own = MASK[value[2]]
        beyond = mask - own if own < mask else 0
        return (zeros & own & mask) | beyond, ones & own & mask

    def ranges(self, value: Unknown) -> Ranges | None:
        """What it can be, as far as its bits tell; None: anything."""
        if value[0] not in self.known:
            return None
        zeros, ones = self.of(value, value[2])
        return ((ones, MASK[value[2]] - zeros),)

    def both(self, x: Value, y: Value, size: int) -> Value:
        """x & y"""
        if isinstance(x, int):
            x, y = y, x
        if isinstance(y, int):
            x, y = self._masked(x, y, size)
        (zeros, ones), (others, same) = self.of(x, size), self.of(y, size)
        return self._made(("and", x, y, size), size, zeros | others, ones & same)

    def _masked(self, value: Value, mask: int, size: int) -> tuple[Value, int]:
        """The value and mask that a masked value is first made of: bits that were cleared or set before, and are not
        looked at, make no other unknown of it."""
        while not isinstance(value, int) and not value[1] and value[2] >= size:
            origin: Any = self._symbols.origin[value[0]]
            match origin:
                case ("and", inner, int(before), int()) if not isinstance(inner, int):
                    value, mask = inner, mask & before
                case ("or", inner, int(before), int()) if not isinstance(inner, int) and not mask & before:
                    value = inner
                case _:
                    break
        return value, mask

    def either(self, x: Value, y: Value, size: int) -> Value:
        """x | y"""
        (zeros, ones), (others, same) = self.of(x, size), self.of(y, size)
        return self._made(("or", x, y, size), size, zeros & others, ones | same)

    def differ(self, x: Value, y: Value, size: int) -> Value:
        """x ^ y"""
        (zeros, ones), (others, same) = self.of(x, size), self.of(y, size)
        return self._made(("xor", x, y, size), size, (zeros & others) | (ones & same), (zeros & same) | (ones & others))

    def merged(self, x: Value, y: Value, size: int, at: int = 0) -> Value:
        """A register of which some bytes are written: its lowest ones, or the second."""
        mask = MASK[size] << at
        (zeros, ones), (others, same) = self.of(x, 8), self.of(y, size)
        origin = ("high merged", x, y) if at else ("merged", x, y, size)
        return self._made(origin, 8, (zeros & ~mask) | others << at, (ones & ~mask) | same << at)

    def shifted_right(self, x: Value, count: int, size: int) -> Value:
        """x >> count, unsigned"""
        zeros, ones = self.of(x, size)
        out = MASK[size] - (MASK[size] >> count)
        return self._made(("shr", x, count, size), size, (zeros >> count) | out, ones >> count)

    def _made(self, origin: tuple[object, ...], size: int, zeros: int, ones: int) -> Value:
        if zeros | ones == MASK[size]:
            return ones
        symbol = self._symbols.of(origin)
        if zeros | ones:
            self.known[symbol] = zeros, ones
        return (symbol, 0, size)

    def perhaps(self, value: Unknown) -> list[int]:
        """The bits of a value that may be 1, where these are a few; else none."""
        left = MASK[value[2]] - self.of(value, value[2])[0] if value[0] in self.known else 0
        found: list[int] = []
        while left and len(found) <= MAX_FEW:
            found.append(left.bit_length() - 1)
            left ^= 1 << found[-1]
        return found if not left else []

    def bit(self, value: Value, index: int) -> Value:
        """One bit of a value, 0 or 1: the same unknown wherever the value went, and however it is asked for."""
        while not isinstance(value, int):
            zeros, ones = self.of(value, value[2])
            if (zeros | ones) >> index & 1:
                return ones >> index & 1
            found = self._before(value, index)
            if found is None:
                return self._made(("bit", self._byte(value, index), index % 8), 1, _FLAG_ZEROS, 0)
            value, index = found
        return value >> index & 1

    def parts(self, bit: Unknown) -> tuple[str, Value, Value] | None:
        """Which two bits it is made of, both unknown words', and how: `and` or `or`; None: it is not."""
        origin: Any = self._symbols.origin[bit[0]]
        if bit[2] != 1 or not isinstance(origin, tuple) or origin[0] != "bit":
            return None
        (symbol, start, _), index = origin[1:]
        word: Any = self._symbols.origin[symbol]
        if not start and isinstance(word, tuple) and word[0] == "shr" and isinstance(word[2], int):
            (symbol, start, _), index = word[1], index + word[2]
            word = self._symbols.origin[symbol]
        if start or not isinstance(word, tuple) or word[0] not in ("and", "or"):
            return None
        return word[0], self.bit(word[1], index), self.bit(word[2], index)

    def _before(self, value: Unknown, index: int) -> tuple[Value, int] | None:
        """Where a value got that bit from; None: nowhere, or changed."""
        origin: Any = self._symbols.origin[value[0]]
        if value[1] or not isinstance(origin, tuple):
            return None
        match origin:
            case ("and" | "or" as name, x, y, int()) if isinstance(x, int) or isinstance(y, int):
                mask, other = (x, y) if isinstance(x, int) else (y, x)
                leaves = (mask >> index & 1) == (name == "and")
                return (other, index) if leaves else (int(name == "or"), 0)
            case ("xor", x, y, int()) if isinstance(x, int) or isinstance(y, int):
                mask, other = (x, y) if isinstance(x, int) else (y, x)
                return None if mask >> index & 1 else (other, index)
            case ("shr", x, int(count), int(size)):
                return (x, index + count) if index + count < 8 * size else (0, 0)
            case ("shl", x, int(count), int()):
                return (x, index - count) if index >= count else (0, 0)
            case ("zero-extended", x, int()):
                return (x, index) if index < 8 * x[2] else (0, 0)
            case ("high", x):
                return x, index + 8
            case ("merged", x, y, int(size)) if index < 8 * size:
                return y, index
            case ("high merged", x, y) if 8 <= index < 16:
                return y, index - 8
            case ("merged", x, _, int()) | ("high merged", x, _):
                return (x, index) if isinstance(x, int) or index < 8 * x[2] else (0, 0)
            case ("bytes", pieces):
                for count, piece in pieces:
                    if index < 8 * count:
                        return piece, index
                    index -= 8 * count
        return None

    def _byte(self, value: Unknown, index: int) -> Unknown:
        """The byte that a bit is in; of memory, however many bytes were read."""
        symbol, start, size = value
        origin: Any = self._symbols.origin[symbol]
        at = index // 8
        if not start and isinstance(origin, tuple) and origin[0] == "memory":
            # Machine.load() and unwritten(): an address, or an unknown and an offset; a size; since when, perhaps.
            match origin:
                case (_, int(address), int()):
                    return (self._symbols.of(("memory", address + at, 1)), 0, 1)
                case (_, int(address), int(), since):
                    return (self._symbols.of(("memory", address + at, 1, since)), 0, 1)
                case (_, pointer, int(offset), int(), since):
                    return (self._symbols.of(("memory", pointer, offset + at, 1, since)), 0, 1)
        if size == 1 and not start:
            return value
        return (self._symbols.of(("shr", value, 8 * at, size)), 0, 1) if at else (symbol, start, 1)
