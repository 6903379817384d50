"""What a call is given, as far as it is known on all ways that come to it.

Registers say what they hold, not how many of them a function takes. Arguments fill them in order (System V ABI), and no
call gives them back as they were, so that each call's have been put there since the one before, on every way. So a
register that a way comes to a call without having put anything into it since the last call ends the list, for that call
and for each other one of the same function; unless the function may take any number, which callers say with 0 in %al.
Behind the last one that is known nothing is shown. What is left too much is a constant that only happened to be there.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX
from kbuild.elf.code.link import Linked, Program
from kbuild.elf.code.state import STACK, STACK_END, State
from kbuild.elf.names import plain_name
from kbuild.elf.rules.events import MAX_STRING, string_at

MAX_VALUES = 4
"""Constants of one argument, on different ways; of more it is unknown."""

Constants = frozenset[int] | None
"""What an argument can be; None: not known."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One constant: a string, the address of something that has a name or is on the stack, or a number."""

    string: str | None = None
    symbol: str | None = None
    """Without the numbers that a compiler adds."""
    module: str | None = None
    """Of the symbol; None: the kernel's."""
    offset: int = 0
    on_stack: bool = False
    number: int | None = None

    def data(self) -> dict[str, Any]:
        """As in JSON; docs/inspect.md."""
        if self.string is not None:
            return {"string": self.string}
        if self.symbol is not None:
            return {"symbol": self.symbol, "module": self.module, "offset": self.offset}
        return {"stack": True} if self.on_stack else {"number": self.number}


class Given:
    """What one call was given, over all ways."""

    __slots__ = ("count", "values", "variadic")

    def __init__(self) -> None:
        self.count = 6
        """Registers that have been set on every way."""
        self.values: list[Constants] = []
        self.variadic = True
        """On every way the caller said that there are no floating-point arguments."""

    def meet(self, state: State, call: Call) -> None:
        """A way has come to the call."""
        self.variadic = self.variadic and state.registers[RAX] == 0
        values: list[Constants] = []
        for number, argument in enumerate(call.put[: self.count]):
            if argument is None:
                self.count = number
                break
            values.append(_constants(state, argument))
        if self.values:
            values = [_either(one, other) for one, other in zip(values, self.values, strict=False)]
        self.values = values

    def known(self, count: int) -> Sequence[Constants]:
        """Of so many, up to the last one of which something is known."""
        values = self.values[: min(count, self.count)]
        while values and values[-1] is None:
            values = values[:-1]
        return values


def count_of(calls: Iterable[Given]) -> int:
    """How many arguments a function may take that was called so."""
    every = list(calls)
    return 6 if all(one.variadic for one in every) else min(one.count for one in every)


def _constants(state: State, value: Any) -> Constants:
    if isinstance(value, int):
        return frozenset((value,))
    ranges = state.ranges(value)
    if sum(high - low + 1 for low, high in ranges) > MAX_VALUES:
        return None
    return frozenset(number for low, high in ranges for number in range(low, high + 1))


def _either(one: Constants, other: Constants) -> Constants:
    if one is None or other is None or one == other:
        return one if other is not None else None
    both = one | other
    return both if len(both) <= MAX_VALUES else None


def named(program: Program, values: Constants) -> tuple[Argument, ...]:
    """An argument's constants by their names, in an order that does not hang on addresses; none: not known."""
    found = {_named(program, value) for value in values or ()}
    return tuple(sorted(found, key=lambda one: (one.string or "", one.symbol or "", one.offset, one.number or 0)))


def _named(program: Program, value: int) -> Argument:
    if STACK_END < value <= STACK:
        return Argument(on_stack=True)
    place = program.place(value)
    if place is None:
        name = program.kernel_name(value)
        return Argument(number=value) if name is None else Argument(symbol=name.symbol, offset=name.offset)
    linked, section, _ = place
    text = string_at(program, value)
    name = program.name(value)
    inside = name is not None and _is_in_object(linked, value)
    strings = "S" in section.flags
    if text is not None and _is_text(text) and (strings or (text and (not inside or _fills(program, value, text)))):
        return Argument(string=text)
    if name is not None and inside:
        return Argument(symbol=plain_name(name.symbol), module=linked.name, offset=name.offset)
    return Argument(symbol=section.name, module=linked.name)


def _is_in_object(linked: Linked, address: int) -> bool:
    """Whether the nearest name is that of what is there: not of an object that ends before, and no compiler's label."""
    addresses, symbols = linked.names
    index = bisect.bisect_right(addresses, address) - 1
    symbol, offset = symbols[index], address - addresses[index]
    return offset < symbol.size or (not offset and not symbol.name.startswith(".L"))


def _fills(program: Program, address: int, text: str) -> bool:
    """Whether an object is that string and nothing else, as `__func__` is."""
    return program.object_end(address) - address == len(text.encode()) + 1


def _is_text(text: str) -> bool:
    return len(text) < MAX_STRING and all(char.isprintable() or char in "\t\n\1" for char in text)
