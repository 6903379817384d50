"""Events of rules on the program at hand: which calls and accesses they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kbuild.elf.code.calls import Call
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import KERNEL_STEP, Linked, Program
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.state import State
from kbuild.elf.code.values import EVERYTHING, MASK, MAX_ERRNO, Ranges, intersection
from kbuild.elf.image import module_key
from kbuild.elf.names import stem
from kbuild.elf.object import Symbol
from kbuild.elf.rules.spec import VENDOR, Event

PREFIXES = ("__cfi_", "__pfx_")
"""Names of what stands before a function: its type's hash (kCFI), or room for a call thunk (objtool --prefix)."""
MAX_STRING = 256


@dataclass
class Matches:
    """An event's places in a program; empty: no symbol has such a name."""

    event: Event
    functions: set[int] = field(default_factory=set)
    """Addresses of functions of modules."""
    kernel: set[str] = field(default_factory=set)
    """The kernel's functions."""
    objects: list[tuple[int, int]] = field(default_factory=list)
    """From an address to before another."""
    names: dict[str, None] = field(default_factory=dict)
    """Those that exist, without what compilers add."""
    bodies: int = 0
    """Where functions were inlined: numbers of `Inlined.bodies`, a bit for each."""
    gone: dict[str, None] = field(default_factory=dict)
    """Those that were inlined, and of which nothing is left."""

    def __str__(self) -> str:
        return self.event.told(self.names)

    def __bool__(self) -> bool:
        return bool(self.functions or self.kernel or self.objects or self.bodies)

    def covers(self, start: int, end: int) -> bool:
        """Whether something between two addresses belongs to one of the objects."""
        return any(start < last and end > first for first, last in self.objects)

    def calls(self, call: Call) -> bool:
        """Whether that is one, whatever its arguments."""
        if call.of_kernel:
            return call.name is not None and call.name.symbol in self.kernel
        return call.target in self.functions


def find(event: Event, program: Program, inlined: Inlined, vendor: str | None) -> Matches:
    """Look an event's names up. `vendor`: the vendor module that the rule is asked of."""
    matches = Matches(event)
    module = vendor if event.module == VENDOR else event.module
    for linked in program.modules.values():
        if event.module is not None and (module is None or module_key(linked.name) != module_key(module)):
            continue
        for pattern in event.names if event.kind == "call" else ():
            for name, bodies in inlined.named(linked.name, pattern):
                matches.bodies |= bodies
                (matches.names if bodies else matches.gone)[name] = None
        for symbol in _named(linked, event.names):
            name = stem(symbol.name)
            if event.kind == "call" and not symbol.defined and event.module is None:
                matches.kernel.add(symbol.name)
                matches.names[name] = None
            elif event.kind != "call" and not symbol.defined and event.module is None and not _exports(program, name):
                address = program.kernel_address(symbol.name)
                matches.objects.append((address, address + KERNEL_STEP))
                matches.names[name] = None
            if symbol.section in linked.base:
                matches.names[name] = None
                address = linked.base[symbol.section] + symbol.value
                if event.kind != "call":
                    if symbol.kind != "func":
                        matches.objects.append((address, address + max(symbol.size, 1)))
                elif symbol.kind != "object":
                    matches.functions.add(address)
    return matches


def _named(linked: Linked, names: Sequence[str]) -> Iterator[Symbol]:
    """A module's symbols of some names or globs, in the file's order."""
    numbers: set[int] = set()
    for name in names:
        if any(letter in name for letter in "*?["):
            found = (there for there in linked.matching(name) if not there.startswith(PREFIXES))
            numbers.update(number for there in found for number in linked.stems[there])
        else:
            numbers.update(linked.stems.get(name, ()))
    return (linked.elf.symbols[number] for number in sorted(numbers))


def _exports(program: Program, name: str) -> bool:
    return any(name == export.name for linked in program.modules.values() for export in linked.image.exports)


def string_at(program: Program, address: object) -> str | None:
    """The string that an argument points to, where it cannot change."""
    place = program.place(address) if isinstance(address, int) else None
    if place is None or "W" in place[1].flags or "X" in place[1].flags:
        return None
    linked, section, offset = place
    text = program.content(linked, section, offset, MAX_STRING)
    end = text.find(b"\0")
    return text[:end].decode("utf-8", "replace") if end >= 0 else None


def given(event: Event, program: Program, call: Call) -> bool | None:
    """Whether a call is given the event's string; None: that cannot be told.

    How many arguments a function takes nobody knows: what is no pointer to a string is none.
    """
    if event.arg is None:
        return True
    strings = [string_at(program, argument) for argument in call.put]
    if event.arg in strings:
        return True
    # One string is what such functions take as a name, and it comes first: behind an unknown another says nothing.
    for argument, string in zip(call.put, strings, strict=True):
        if string:
            return False
        if not isinstance(argument, int):
            return None
    return None


_COUNTS: dict[str, tuple[int, Ranges]] = {
    "zero": (4, ((0, 0),)),
    "nonnull": (8, ((1, MASK[8]),)),
    "not-err": (8, ((0, MASK[8] - MAX_ERRNO),)),
}
"""As which a result counts as success: its size in bytes, and its ranges."""


def split(state: State, machine: Machine, event: Event, register: int) -> tuple[State | None, State | None]:
    """A state behind a call parted: where its result counts, and where not."""
    if event.success is None:
        return state, None
    size, good = _COUNTS[event.success]
    value = machine.part(machine.register(state, register), size)
    ranges = state.ranges(value)
    inside, outside = intersection(ranges, good), _without(ranges, good, size)
    if not outside or not inside or isinstance(value, int):
        return (state, None) if inside else (None, state)
    other = state.copy()
    state.learn(value, inside)
    other.learn(value, outside)
    return state, other


def _without(ranges: Ranges, taken: Ranges, size: int) -> Ranges:
    rest = EVERYTHING[size]
    for low, high in taken:
        sides = ((0, low - 1), (high + 1, MASK[size]))
        rest = intersection(rest, tuple((first, last) for first, last in sides if first <= last))
    return intersection(ranges, rest)
