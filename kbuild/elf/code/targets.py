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
MAX_PARTS = 100
"""Addresses that an unknown is made of; of more nobody knows where it leads."""
MAX_SPAN = 1 << 20
"""Bytes that an index with known bounds may lead to."""
NOTHING = frozenset[int]()
NOWHERE = -1
"""An unknown that was made of none."""
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
        made_of = self._made_of_once(symbol)
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
        data = filter(self._is_data, made_of)
        return [span for address in data for span in self._around(state, address, frame)]

    def leads_as(self, symbol: int, value: Value) -> bool:
        """Whether what was made of an unknown may lead to all that a value may lead to, data or code."""
        address, there = (value, NOTHING) if isinstance(value, int) else (value[1], self._made_of_once(value[0]))
        if there is not None and self._is_somewhere(address):
            there |= {address}
        if there is NOTHING:
            return True
        made_of = self._made_of_once(symbol)
        return made_of is None or (there is not None and there <= made_of)

    def _made_of_once(self, symbol: int) -> frozenset[int] | None:
        return self._addresses[symbol] if symbol in self._addresses else self._made_of(symbol)

    def _is_data(self, address: int) -> bool:
        if STACK_END < address <= STACK:
            return True
        # Most numbers are none of a module's addresses.
        return address >= MODULES and self._program.is_writable(address)

    def _is_somewhere(self, address: int) -> bool:
        return self._is_data(address) or (address >= MODULES and self._program.is_code(address))

    def _made_of(self, symbol: int) -> frozenset[int] | None:
        """Addresses of data and code that an unknown was made of; None: it is not known which."""
        addresses, waiting = self._addresses, [symbol]
        while waiting:
            one = waiting[-1]
            parts = self._parts(one) if one not in addresses else ()
            if not parts:
                addresses.setdefault(one, NOTHING)
                waiting.pop()
                continue
            # What it is made of was there before it.
            later = [part[0] for part in parts if not isinstance(part, int) and part[0] not in addresses]
            if later:
                waiting += later
                continue
            made_of: frozenset[int] | None = NOTHING
            for part in parts:
                others = NOTHING if isinstance(part, int) else addresses[part[0]]
                offset = part if isinstance(part, int) else part[1]
                if others and made_of is not None:
                    made_of |= others
                elif others is None:
                    made_of = None
                if made_of is not None and self._is_somewhere(offset):
                    made_of |= {offset}
            addresses[one] = None if made_of is None or len(made_of) > MAX_PARTS else made_of or NOTHING
            waiting.pop()
        return addresses[symbol]

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
