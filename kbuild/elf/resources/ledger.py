"""What is held on each way through the code: kept in memory of the states' own, where no module has any.

For each thing that is acquired somewhere a state has a note: 0 where it is not held, and where it is, the very value
that it is released by, or 1. States that are joined join it like all other memory, and what a branch tells of a value
it tells of the notes too. So where a pointer is either NULL or what was acquired, the note is so with it: giving that
pointer back is known to release what is held, on whichever way it came.

Of some things it is asked closely: states are not joined where one holds what the other does not. A bit of a mark is
that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.runs import Question
from kbuild.elf.code.state import NOTES, WORD, Node, State
from kbuild.elf.code.values import EVERYTHING, MASK, MAX_ERRNO, SIGN, Ranges, Value, intersection
from kbuild.elf.names import stem
from kbuild.elf.resources.things import Thing, Things
from kbuild.elf.rules.spec import Resource

HELD, UNCLEAR = 1, 2
"""What a mark says: it is held for sure, or perhaps."""
MAX_PARTS = 64
"""Values that one value may be, on different ways."""
MAX_APART = 100
"""Kinds of states that are kept apart by what is held."""
_POSITIVE = (1, SIGN[4] - 1)
ERROR, SUCCESS, EXIT = "error", "success", "exit"
"""At which end of a run: of init, as it returns so, or of exit."""
_ERRNO_INT, _ERRNO_POINTER = ((MASK[4] - MAX_ERRNO + 1, MASK[4]),), ((MASK[8] - MAX_ERRNO + 1, MASK[8]),)
_RETURNED: dict[str, tuple[int, Ranges, Ranges]] = {
    "zero": (4, ((0, 0),), _ERRNO_INT),
    "positive": (4, (_POSITIVE,), ((0, 0), *_ERRNO_INT)),
    "nonnull": (8, ((1, MASK[8] - MAX_ERRNO),), ((0, 0),)),
    "not-err": (8, ((1, MASK[8] - MAX_ERRNO),), _ERRNO_POINTER),
}
"""A result's size, and what it can be where something was acquired, and where not (include/linux/err.h)."""
_INIT: dict[str, Ranges] = {SUCCESS: ((0, 0),), ERROR: ((SIGN[4], MASK[4]),)}
"""What init's result means. More than 0 is taken for success too, with a warning that this is against the convention
(do_init_module() in kernel/module/main.c): what a function of the kernel returns may be anything here, and is not."""


class TooManyError(Exception):
    """There are too many states to keep apart by what is held."""


class OnTheWay(Protocol):
    """A function that is being run, of a run over all ways or along one."""

    @property
    def site(self) -> int:
        """The call that it was entered by."""

    @property
    def parent(self) -> OnTheWay | None:
        """Its caller; None: the kernel."""


class Ledger(Question):
    """Keeps the notes of one run, and gathers what is held at its ends.

    It is the only question of its run that has facts: of each thing, that it may have been released, or not.
    """

    marks = 2
    """Bits of the things that are held, and of those that may be: of things by which states are kept apart."""

    def __init__(self, things: Things, entry: str, apart: Collection[int] = (), handles: Collection[int] = ()) -> None:
        """`entry`: `init` or `exit`; `apart`: things by which states are kept apart; `handles`: symbols of what an
        earlier run acquired."""
        self.things = things
        self.apart = frozenset(apart)
        self._entry = entry
        self._before = frozenset(handles)
        self._first = 0
        self._frames: OnTheWayOf | None = None
        self._machine: Machine | None = None
        self._clear()

    def _clear(self) -> None:
        self.ends: dict[str, list[State]] = {how: [] for how in (ERROR, SUCCESS, EXIT)}
        """How the entry's function returns."""
        self.held: dict[str, set[int]] = {how: set() for how in self.ends}
        self.unclear: dict[str, set[int]] = {how: set() for how in self.ends}
        """Things that are held there, and those of which it is not known."""
        self.handles: set[int] = {*self._before}
        """What was acquired, or what it was given: symbols."""
        self.places: dict[tuple[str, int], set[Node]] = {}
        """The ends at which a thing is held for sure by its mark."""
        self._kinds: set[tuple[int, ...]] = set()

    def begin(self, flow: Flow, first_mark: int) -> None:
        self._clear()
        self.follow(flow, flow.machine, first_mark)

    def follow(self, frames: OnTheWayOf, machine: Machine, first_mark: int = 0) -> None:
        """Who says which function is being run, and what instructions do."""
        self._frames, self._machine, self._first = frames, machine, first_mark
        machine.lasts = self._is_handle

    # Notes.

    def note(self, state: State, number: int) -> Value:
        """What a state says of a thing."""
        assert self._machine is not None
        return self._machine.contents(state, NOTES + WORD * number, WORD)

    def _put(self, state: State, number: int, value: Value) -> None:
        state.write(NOTES + WORD * number, WORD, value)

    def is_held(self, state: State, number: int) -> bool:
        """Whether it may be."""
        note = self.note(state, number)
        return note != 0 and any(high > 0 for _, high in state.ranges(note))

    def mark(self, state: State, number: int) -> int:
        """Of a thing by which states are kept apart: 0, HELD or UNCLEAR."""
        held, unclear = state.marks[self._first : self._first + 2]
        return HELD if held >> number & 1 else UNCLEAR if unclear >> number & 1 else 0

    def _set_mark(self, state: State, number: int, value: int) -> None:
        if number in self.apart and self.mark(state, number) != value:
            marks, bit = [*state.marks], 1 << number
            for at, meaning in enumerate((HELD, UNCLEAR), self._first):
                marks[at] = marks[at] | bit if value == meaning else marks[at] & ~bit
            state.marks = tuple(marks)
            self._kinds.add(state.marks)
            if len(self._kinds) > MAX_APART:
                raise TooManyError

    # What happens.

    def returned(self, state: State, call: Call) -> list[State]:
        if call.name is None or call.name.offset:
            return [state]
        states = [state]
        for resource in self.things.about(call.name.symbol)[0]:
            if not resource.slot:
                states = [each for one in states for each in self._acquired(one, call, resource)]
        return states

    def _acquired(self, state: State, call: Call, resource: Resource) -> list[State]:
        """A state parted: where that was acquired, and where not."""
        assert self._machine is not None
        arguments = call.arguments
        if resource.parent is not None and arguments[resource.parent - 1] != 0:
            return [state]
        returned = _RETURNED.get(resource.success)
        if returned is None:
            self._take(state, call, resource, arguments[resource.handle - 1] if resource.handle != "result" else None)
            return [state]
        size, good, bad = returned
        result = self._machine.part(self._machine.register(state, RAX), size)
        if isinstance(result, int):
            return [state]
        was = state.ranges(result)
        if resource.success == "zero" and self.things.may_be_positive(call):
            bad = (_POSITIVE, *bad)
        inside, outside = intersection(was, good), intersection(was, bad)
        if not inside:
            return [state]
        other = state.copy()
        state.learn(result, inside)
        self._take(state, call, resource, result if resource.handle == "result" else arguments[resource.handle - 1])
        if not outside:
            return [state]
        other.learn(result, outside)
        return [state, other]

    def _take(self, state: State, call: Call, resource: Resource, value: Value | None) -> None:
        if value is None:
            return
        about = call.arguments[resource.also - 1] if resource.also is not None else value
        name = call.arguments[resource.name - 1] if resource.name is not None else None
        assert call.name is not None
        thing = Thing(
            resource,
            self._chain(call),
            about if isinstance(about, int) else None,
            stem(call.name.symbol),
            name if isinstance(name, int) else None,
        )
        number = self._which(state, thing)
        if number is None:
            return
        again = self.is_held(state, number)
        state.facts = state.facts & ~(1 << number)
        if not isinstance(value, int):
            self.handles.add(value[0])
        self._put(state, number, 1 if isinstance(value, int) else value)
        self._set_mark(state, number, HELD)
        if again:
            # In a loop, or by the same call once more: there are several, and only the last one is known.
            self._lose(state, number)

    def _which(self, state: State, thing: Thing) -> int | None:
        """Which one it is; None: there are too many.

        What one of several calls acquires, and no two on the same way, is one thing: who releases it gives that.
        """
        for number in self.things.alike(thing):
            if self.things.every[number].chain == thing.chain:
                return number
            if not self.is_held(state, number) and not state.facts >> number & 1 and not self.mark(state, number):
                self.things.chains[number][thing.chain] = None
                return number
        return self.things.number(thing)

    def entered(self, state: State, call: Call) -> None:
        if call.name is None or call.name.offset:
            return
        acquires, releases = self.things.about(call.name.symbol)
        for resource in releases:
            self._release(state, resource, call.arguments[resource.given - 1])
        for resource in acquires:
            if resource.slot:
                value = call.arguments[0]
                if value == 0:
                    for number in self.things.of.get(resource.id, ()):
                        self._drop(state, number)
                elif isinstance(value, int):
                    self._take(state, call, resource, value)
                else:
                    self._perhaps(state, resource)

    def _release(self, state: State, resource: Resource, value: Value | None) -> None:
        held = {number: self.note(state, number) for number in self.things.of.get(resource.id, ())}
        held = {number: note for number, note in held.items() if note != 0}
        value = self._as_number(state, value)
        if value == 0 and self.things.is_given_or_returned(resource):
            # Who releases what was returned asks for one that is free, and of these 0 is none.
            for number in held:
                self._drop(state, number)
        elif isinstance(value, int):
            for number, note in held.items():
                if value != 0 and value in (self.things.every[number].object, note):
                    self._drop(state, number)
        if isinstance(value, int):
            return
        if value is not None:
            same = [number for number, note in held.items() if not isinstance(note, int) and note[:2] == value[:2]]
            for number in same:
                self._drop(state, number)
            if same:
                return
        theirs = self._one_of(value)
        for number, note in held.items():
            mine = {self.things.every[number].object} if isinstance(note, int) else self._one_of(note)
            if theirs is None or mine is None or mine & theirs - {0} or not all(map(self._is_another, theirs)):
                self._lose(state, number)

    def _as_number(self, state: State, value: Value | None) -> Value | None:
        """A value that can be but one number, as that number."""
        if value is None or isinstance(value, int):
            return value
        ranges = state.ranges(value)
        if ranges == EVERYTHING[value[2]]:
            ranges = state.low_ranges(value)
        return ranges[0][0] if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else value

    def _one_of(self, value: Value | None) -> set[object] | None:
        """Numbers, and unknowns with an offset, that a value is one of; None: it may be any."""
        if value is None or self._machine is None:
            return None
        found: set[object] = set()
        seen = set[int]()
        waiting = [value]
        parts = self._machine.symbols.parts
        while waiting:
            one = waiting.pop()
            if isinstance(one, int):
                found.add(one)
            elif one[1] or one[0] not in parts:
                found.add(one[:2])
            elif one[0] not in seen:
                seen.add(one[0])
                waiting += parts[one[0]]
            if len(found) > MAX_PARTS:
                return None
        return found

    def _is_handle(self, value: Value) -> bool:
        """Whether it may be something that was acquired."""
        return any(isinstance(one, tuple) and one[0] in self.handles for one in self._one_of(value) or ())

    def _is_another(self, value: object) -> bool:
        """Whether what is not known to be a thing is none: it was acquired itself, or was in memory from the start."""
        assert self._machine is not None
        if not isinstance(value, tuple):
            return True
        origin = self._machine.symbols.origin[value[0]]
        return value[0] in self.handles or (isinstance(origin, tuple) and origin[0] == "memory" and len(origin) == 3)

    def _drop(self, state: State, number: int) -> None:
        if self.note(state, number) != 0:
            self._put(state, number, 0)
        state.facts &= ~(1 << number)
        self._set_mark(state, number, 0)

    def _lose(self, state: State, number: int) -> None:
        """It is not known any more whether that is held."""
        self._put(state, number, 0)
        state.facts |= 1 << number
        self._set_mark(state, number, UNCLEAR)

    def _perhaps(self, state: State, resource: Resource) -> None:
        """Something may have been released, and it is not known what."""
        for number in self.things.of.get(resource.id, ()):
            if self.is_held(state, number):
                self._lose(state, number)

    def lost(self, state: State, site: int) -> None:  # noqa: ARG002
        for resource in {id(one): one for one in (thing.resource for thing in self.things.every)}.values():
            self._perhaps(state, resource)

    def ended(self, states: Sequence[State]) -> None:
        for state in states:
            for how, one in self.parted(state):
                self.ends[how].append(one)
                for number in range(len(self.things.every)):
                    if number in self.apart:
                        mark = self.mark(one, number)
                        if mark == HELD:
                            self.places.setdefault((how, number), set()).add(one.at)
                    else:
                        mark = HELD if self.is_held(one, number) else UNCLEAR if one.facts >> number & 1 else 0
                    if mark:
                        (self.held if mark == HELD else self.unclear)[how].add(number)

    def parted(self, state: State) -> list[tuple[str, State]]:
        """At which end it is there; where init may have failed or not, at both."""
        every = [(how, state.copy()) for how in ((EXIT,) if self._entry == "exit" else _INIT)]
        return [(how, one) for how, one in every if self.narrowed(one, how)]

    def narrowed(self, state: State, how: str) -> bool:
        """Whether a state can be at that end; then it is taken to be."""
        assert self._machine is not None
        if how != EXIT:
            value = self._machine.part(self._machine.register(state, RAX), 4)
            inside = intersection(state.ranges(value), _INIT[how])
            if not isinstance(value, int) and inside:
                state.learn(value, inside)
            return bool(inside)
        return True

    def _chain(self, call: Call) -> tuple[int, ...]:
        """The calls that lead to one that is being done, from the entry's on."""
        assert self._frames is not None
        sites = [call.site]
        frame = self._frames.frame
        while frame is not None and frame.parent is not None:
            sites.append(frame.site)
            frame = frame.parent
        return tuple(reversed(sites))


class OnTheWayOf(Protocol):
    """Who runs the code."""

    @property
    def frame(self) -> OnTheWay | None:
        """The function that is being run."""
