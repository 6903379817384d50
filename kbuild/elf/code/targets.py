"""Where a pointer may lead of which only a part is known: into an array at some index, to one object or another.

It is told by the addresses that it was made of. A pointer that was read from somewhere was made of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kbuild.elf.code.decode import RSP
from kbuild.elf.code.link import MODULES, Program
from kbuild.elf.code.state import STACK, STACK_END, State
from kbuild.elf.code.values import MASK, Ranges, Symbols, Unknown, Value

Span = tuple[int, int]
"""From an address to before another."""
MAX_PARTS = 1000
"""Unknowns that one is made of; of more nobody knows where it leads."""
MAX_SPAN = 1 << 20
"""Bytes that an index with known bounds may lead to."""
NOTHING = frozenset[int]()
_SUMS = frozenset({"add", "subtract", "and", "or", "xor", "zero-extended"})


class OnStack(Protocol):
    """A function that is being run."""

    @property
    def entry(self) -> int:
        """Its address."""

    @property
    def begin(self) -> int:
        """Where the stack ended when it was called."""

    @property
    def top(self) -> int:
        """Where its own objects on the stack end."""

    @property
    def parent(self) -> OnStack | None:
        """Its caller; None: the kernel."""


class Targets:
    """Of one program."""

    def __init__(self, program: Program, symbols: Symbols) -> None:
        self._program = program
        self._symbols = symbols
        self._addresses: dict[int, frozenset[int] | None] = {}

    def of(self, state: State, pointer: Unknown, size: int, frame: OnStack | None) -> Sequence[Span]:
        """Data of modules and parts of the stack that an access of that size may be to."""
        symbol, offset, width = pointer
        made_of = self._addresses[symbol] if symbol in self._addresses else self._made_of(symbol)
        whole = (symbol, 0, 8)
        # Most pointers are nothing but an unknown and an offset in what it leads to.
        if made_of is NOTHING and offset < STACK_END and pointer not in state.known and whole not in state.known:
            return ()
        if width != 8:
            return ()
        ranges = state.known.get(pointer)
        if ranges is None:
            ranges = self._moved(self._bounds(state, whole), offset)
        if ranges and sum(high - low for low, high in ranges) < MAX_SPAN:
            return [(low, high + size) for low, high in ranges if self._is_data(low) or self._is_data(high)]
        if made_of is None:
            return [self._program.extent, (STACK_END, STACK)]
        if self._is_data(offset):
            made_of |= {offset}
        return [span for address in made_of for span in self._around(state, address, frame)]

    def _is_data(self, address: int) -> bool:
        if STACK_END < address <= STACK:
            return True
        # Most numbers are none of a module's addresses.
        return address >= MODULES and self._program.is_writable(address)

    def _made_of(self, symbol: int) -> frozenset[int] | None:
        """Addresses of data that an unknown was made of; None: it is not known which."""
        found, waiting, seen = set[int](), [symbol], {symbol}
        while waiting and len(seen) < MAX_PARTS:
            for part in self._parts(waiting.pop()):
                if self._is_data(part if isinstance(part, int) else part[1]):
                    found.add(part if isinstance(part, int) else part[1])
                if not isinstance(part, int) and part[0] not in seen:
                    seen.add(part[0])
                    waiting.append(part[0])
        made_of = None if waiting else frozenset(found) or NOTHING
        self._addresses[symbol] = made_of
        return made_of

    def _parts(self, symbol: int) -> tuple[Value, ...]:
        if symbol < 0:
            return ()
        either = self._symbols.parts.get(symbol)
        if either is not None:
            return either
        origin: Any = self._symbols.origin[symbol]
        if isinstance(origin, tuple) and origin[0] in _SUMS:
            return tuple(part for part in origin[1:-1] if isinstance(part, int) or len(part) == 3)
        return ()

    def _bounds(self, state: State, value: Value) -> Ranges:
        """What a value can be, as its making says; empty: anything."""
        if isinstance(value, int):
            return ((value, value),)
        known = state.known.get(value)
        if known is not None or value[1] or value[0] < 0:
            return known or ()
        origin: Any = self._symbols.origin[value[0]]
        if not isinstance(origin, tuple):
            return ()
        most = None
        if origin[0] == "and":
            most = next((part for part in origin[1:3] if isinstance(part, int)), None)
        elif origin[0] in ("scaled", "zero-extended", "shr", "shl") and isinstance(origin[2], int):
            inner = self._bounds(state, origin[1])
            if not inner and origin[1][2] < 4:
                inner = ((0, MASK[origin[1][2]]),)
            if inner:
                most, by = inner[-1][1], origin[2]
                shifted = {"scaled": most * by, "shr": most >> (by & 63), "shl": most << (by & 63)}
                most = shifted.get(origin[0], most)
        return ((0, most),) if most is not None and most <= MASK[value[2]] else ()

    def _moved(self, ranges: Ranges, by: int) -> Ranges:
        return tuple(((low + by) & MASK[8], ((low + by) & MASK[8]) + high - low) for low, high in ranges)

    def _around(self, state: State, address: int, frame: OnStack | None) -> list[Span]:
        """An object, and its neighbours: one may point behind an array and count down, or before it and count up."""
        if not STACK_END < address <= STACK:
            return [self._program.neighbours(address)]
        begin, inner = frame.begin if frame is not None else STACK, frame
        while inner is not None and address >= inner.top:
            begin, inner = inner.begin, inner.parent
        end = STACK if inner is None else inner.top
        # Of the one that is being run: all that it has there by now.
        own = state.registers[RSP]
        if inner is frame and isinstance(own, int):
            begin = own
        return [(min(begin, address), end)]
