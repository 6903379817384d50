"""One way through the code, without joins: each branch that is not decided yet is taken one way or the other.

What such a way tells of values holds on all of it, so that it can be checked whether it contradicts itself
(`model.satisfiable`). It is led by the edges that the analysis of all ways has seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from iced_x86 import Mnemonic

from kbuild.elf.code.calls import LOST, ONCE, Call, Calls
from kbuild.elf.code.decode import (
    BRANCH,
    CALL,
    INDIRECT_CALL,
    INDIRECT_JUMP,
    JUMP,
    NEXT,
    RETURN,
    RSP,
    TARGET,
    Block,
    Code,
    Op,
)
from kbuild.elf.code.flow import MAX_DEPTH, Observer
from kbuild.elf.code.graph import NO_RETURN, RETURNS, STAYS, Shapes
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.nearness import FAR, TAIL, Nearness
from kbuild.elf.code.patches import ways
from kbuild.elf.code.state import STACK, Node, State
from kbuild.elf.code.values import MASK, Ranges, Unknown, Value

MAX_STEPS = 60_000
"""Instructions of all tries."""
MAX_TRIES = 4000
MAX_CALLBACKS = 3
"""Functions that one call of the kernel runs on a way, one after the other."""
MAX_WAITING = 500
"""Places where another way could be taken."""
LATEST = 8
"""Ways that are tried from the latest place on, until one is from elsewhere."""


@dataclass(frozen=True)
class Step:
    """Something on the way that is worth being told."""

    kind: Literal["call", "return", "branch", "begin"]
    site: int
    call: Call | None = None
    taken: bool = False
    back: Step | None = None
    name: str = ""
    """What begins there."""

    def all(self) -> list[Step]:
        """From the first one on."""
        steps: list[Step] = []
        step: Step | None = self
        while step is not None:
            steps.append(step)
            step = step.back
        return steps[::-1]


@dataclass(frozen=True)
class Frame:
    """A function that is being run."""

    entry: int
    then: int
    """Where it returns to, or TAIL."""
    call: Call | None
    parent: Frame | None
    depth: int
    top: int = 0
    """Where its objects on the stack end."""
    kernel: Call | None = None
    """The call of the kernel that runs it, which then goes on."""
    begin: int = STACK
    """Where the stack ended when it was called."""
    given: Sequence[Value | None] = ()
    """All registers, as they were then."""
    watched: bool = False
    """The observer is told of its blocks."""
    before: int = 0
    """Functions that the same call of the kernel has run before this one."""

    @property
    def site(self) -> int:
        """The call that it was entered by; 0: the kernel's."""
        return self.call.site if self.call is not None else 0


@dataclass
class _Place:
    state: State
    frame: Frame
    address: int
    index: int
    """Of the instruction in the block."""
    trail: Step | None
    chosen: bool | None = None
    """What the condition of this instruction is taken to be."""


class Traveller(Observer, Protocol):
    """Who goes along: told of what happens, raises Found where it is what was looked for."""

    def ended_one(self, state: State) -> None:
        """The entry's function has returned."""


class Found(Exception):  # noqa: N818 (no error: the way is at its end)
    """Raised by an observer where the way has come to what was looked for."""


class Futile(Exception):  # noqa: N818 (no error either)
    """Raised by an observer where the way can no longer come to it."""


class Walk:
    """Ways of one program, found one after the other."""

    def __init__(self, code: Code, shapes: Shapes, calls: Calls, machine: Machine, observer: Traveller) -> None:
        self._code = code
        self._program = code.program
        self._shapes = shapes
        self._machine = machine
        self._calls = calls
        self._observer = observer
        self._near = Nearness(code, {}, ())
        self._waiting: list[_Place] = []
        self.steps = 0
        self.frame: Frame | None = None
        """The function that is being run."""
        self.op: Op | None = None
        """The instruction that is being done."""

    def ways(
        self, entry: int, state: State, edges: Mapping[Node, Collection[Node]], goals: Collection[Node]
    ) -> Iterator[tuple[State, Step | None]]:
        """Ways from an entry on which the observer raised Found: the state there, and what happened.

        `goals`: blocks, or ends of functions, that it can be raised in.
        """
        self._near = Nearness(self._code, edges, goals)
        first = state.copy()
        self._waiting = [_Place(first, self._frame(first, entry, 0, None, None), entry, 0, None)]
        tries = 0
        while self._waiting and tries < MAX_TRIES and self.steps < MAX_STEPS:
            place: _Place | None = self._waiting.pop(self._next(tries))
            tries += 1
            while place is not None and self.steps < MAX_STEPS:
                try:
                    place = self._run(place)
                except Found:
                    assert place is not None
                    yield place.state, place.trail
                    place = None
                except Futile:
                    place = None

    def _next(self, tries: int) -> int:
        """Which of the ways that wait to go on with.

        The latest one, as the nearest. But what leads to nothing may have been settled long before, and there are
        too many ways from there on to try them all: each time that a few have, one from elsewhere.
        """
        if tries % LATEST:
            return -1
        # Van der Corput's sequence: 1/2, 1/4, 3/4, 1/8, …
        number, part, found = tries // LATEST, 0.5, 0.0
        while number:
            found += part * (number % 2)
            number, part = number // 2, part / 2
        return int(len(self._waiting) * found)

    def _frame(
        self, state: State, entry: int, then: int, call: Call | None, parent: Frame | None, kernel: Call | None = None
    ) -> Frame:
        """Enter a function: its return address is put on the stack."""
        given = state.registers[:]
        top = state.registers[RSP] = self._machine.add(self._machine.register(state, RSP), MASK[8] - 7, 8)
        kept = 8 * self._shapes.of(entry).saved
        depth = parent.depth + 1 if parent else 0
        begin = top if isinstance(top, int) else 0
        watched = self._observer.watches(entry)
        return Frame(entry, then, call, parent, depth, begin - kept, kernel, begin, given, watched)

    # Instructions.

    def _run(self, place: _Place) -> _Place | None:
        """Go on to the next block; None: this way ends."""
        self.frame = place.frame
        block = self._code.block(place.address)
        if block is None or block.unread is not None:
            return None
        state = place.state
        self._machine.frame = place.frame
        state.at = (place.address, (), state.marks)
        if block.patches and not place.index and place.chosen is None:
            found = ways(self._machine, state, block)
            patched = [replace(place, address=to, state=one) for to, one in found if to != block.start]
            if found[-1][0] != block.start:
                return self._first_of(patched)
            self._fork(patched)
            state = place.state = found[-1][1]
        if place.frame.watched and not place.index and place.chosen is None:
            begins = self._observer.begun(state, place.frame.entry, place.address)
            if begins:
                place.trail = Step("begin", place.address, back=place.trail, name=begins)
        for index in range(place.index, len(block.ops)):
            op = self.op = block.ops[index]
            place.index = index
            self.steps += 1 + self._machine.repeated
            self._machine.repeated = 0
            if op.flow != NEXT:
                return self._leave(op, place)
            # A `set` gives a value that says why it is what it is; these do not.
            if op.mnemonic == Mnemonic.SBB or (op.condition is not None and len(op.operands) > 1):
                self._either(op, place)
            else:
                self._machine.step(state, op)
            place.chosen = None
        return self._nearest(place, block)

    def _either(self, op: Op, place: _Place) -> None:
        """`cmov`, `sbb`: like a branch, so that what they give hangs together with why."""
        holds, fails, about = self._machine.decide(place.state, op.condition or "b")
        taken = place.chosen
        if taken is None and holds and fails:
            self._fork([replace(place, state=place.state.copy(), chosen=False)])
            taken = True
        elif taken is None:
            taken = bool(holds)
        if holds and fails:
            self._suppose(place.state, about, holds if taken else fails)
        self._machine.chosen(place.state, op, taken)

    def _suppose(self, state: State, about: Unknown | None, ranges: Ranges) -> None:
        """Of what can be one way or the other, from here on it is one."""
        if about is not None:
            self._machine.learn(state, about, ranges)
        else:
            self._machine.blind(state)

    def _leave(self, op: Op, place: _Place) -> _Place | None:
        """The last instruction of a block."""
        state = place.state
        if op.flow == BRANCH:
            return self._branch(op, place)
        if op.flow == JUMP:
            return self._jump(op.operands[0].number, op, place)
        if op.flow == RETURN:
            return self._return(place)
        if op.flow in (CALL, INDIRECT_CALL):
            operand = op.operands[0]
            target = operand.number if operand.kind == TARGET else self._machine.get(state, operand, 8)
            return self._call(target, op.next, op, place)
        if op.flow == INDIRECT_JUMP:
            value = self._machine.get(state, op.operands[0], 8)
            if isinstance(value, int):
                return self._jump(value, op, place)
            return self._switch(value, op, place)
        linked = self._program.module_at(op.ip)
        if linked is not None and self._code.tables(linked.name).goes_on.get(op.ip):
            return self._at(place, op.next)
        return None

    def _branch(self, op: Op, place: _Place) -> _Place | None:
        holds, fails, about = self._machine.decide(place.state, op.condition)
        if not holds or not fails:
            return self._taken(op, place, bool(holds))
        other = replace(place, state=place.state.copy())
        self._suppose(place.state, about, holds)
        self._suppose(other.state, about, fails)
        there = self._far(op.operands[0].number, place.state, place.frame)
        here = self._far(op.next, other.state, other.frame)
        place.trail = Step("branch", op.ip, None, True, place.trail)
        other.trail = Step("branch", op.ip, None, False, other.trail)
        first, second = (place, other) if there < here else (other, place)
        after = self._taken(op, second, second is place)
        if after is not None:
            self._fork([after])
        return self._taken(op, first, first is place)

    def _switch(self, value: Unknown, op: Op, place: _Place) -> _Place | None:
        cases = self._calls.cases(value, place.state)
        if cases is None:
            return None  # which entry it is was lost: a way that needs it is none that is known to be
        index, targets = cases
        places = [replace(place, state=place.state.copy()) for _ in targets]
        for one, ranges in zip(places, targets.values(), strict=True):
            one.state.learn(index, ranges)
        alive = [there for one, to in zip(places, targets, strict=True) if (there := self._jump(to, op, one))]
        alive.sort(key=lambda one: self._far(one.address, one.state, one.frame))
        return self._first_of(alive)

    def _taken(self, op: Op, place: _Place, holds: bool) -> _Place | None:
        return self._jump(op.operands[0].number, op, place) if holds else self._at(place, op.next)

    # Ways.

    def _far(self, address: int, state: State, frame: Frame) -> int:
        """How far a block is from what is looked for, where one comes to it in that state."""
        return self._near.far(self._shapes.of(frame.entry).node(address, state), frame)

    def _fork(self, places: list[_Place]) -> None:
        self._waiting += places
        # Those that are taken up last: mostly there are some twenty, and each is a state.
        del self._waiting[:-MAX_WAITING]

    def _first_of(self, places: list[_Place]) -> _Place | None:
        """Go on with the first; the others wait."""
        self._fork(places[1:])
        return places[0] if places else None

    def _at(self, place: _Place, address: int) -> _Place | None:
        place.address, place.index, place.chosen = address, 0, None
        return place if self._far(address, place.state, place.frame) < FAR else None

    def _nearest(self, place: _Place, block: Block) -> _Place | None:
        """Behind a block that only stops because others come to where it goes on, or because it may fault."""
        if block.is_cut:
            # No other way leads on from here: how far it is was asked where the block began.
            place.address, place.index, place.chosen = block.follow[0], 0, None
            return place
        if len(block.follow) == 1:
            return self._at(place, block.follow[0])
        places = [replace(place, state=place.state.copy(), address=to, index=0, chosen=None) for to in block.follow]
        if block.fault is not None and len(places) > 1:
            self._machine.fault(places[1].state, block.fault)
        places.sort(key=lambda one: self._far(one.address, one.state, one.frame))
        self._fork(places[1:])
        return self._at(places[0], places[0].address) if places else None

    def _jump(self, target: int, op: Op, place: _Place) -> _Place | None:
        how = self._shapes.jump(place.frame.entry, target)
        if how == RETURNS:
            return self._return(place)
        if how == STAYS:
            return self._at(place, target)
        state = place.state
        state.registers[RSP] = self._machine.add(self._machine.register(state, RSP), 8, 8)
        return self._call(target, TAIL, op, place)

    # Calls.

    def _call(self, target: Value, then: int, op: Op, place: _Place) -> _Place | None:
        calls = self._calls.of(place.state, target, op, place.frame.depth)
        if len(calls) == 1:
            return self._go(calls[0], then, place)
        places = [replace(place, state=place.state.copy()) for _ in calls]
        alive = [there for call, at in zip(calls, places, strict=True) if (there := self._go(call, then, at))]
        return self._first_of(alive)

    def _go(self, call: Call, then: int, place: _Place) -> _Place | None:
        state, frame = place.state, place.frame
        if call.target is None or frame.depth >= MAX_DEPTH:
            return None
        if call.of_kernel:
            return self._kernel(call, then, place)
        self._observer.entered(state, call)
        place.trail = Step("call", call.site, call, back=place.trail)
        place.frame = self._frame(state, call.target, then, call, frame)
        return self._at(place, call.target)

    def _kernel(self, call: Call, then: int, place: _Place) -> _Place | None:
        assert call.name is not None
        state = place.state
        self._observer.entered(state, call)
        if call.name.symbol in NO_RETURN:
            return None
        if not self._calls.known(state, call):
            self._callbacks(call, then, place, place.frame, 0)
            self._calls.any_other(state, call, place.frame)
        return self._returned(self._observer.returned(state, call), then, place)

    def _callbacks(self, call: Call, then: int, place: _Place, caller: Frame, before: int) -> None:
        """Ways on which the kernel runs a function that it was given; `before`: how many it has run already."""
        assert call.name is not None
        left = (1 if call.name.symbol in ONCE else MAX_CALLBACKS) - before
        if not left or caller.depth >= MAX_DEPTH:
            return
        for function, at in self._calls.functions(place.state, call)[0].items():
            if self._near.enters(function, place.state.marks, again=left > 1):
                inner, called = self._calls.given(place.state, call, function, at)
                frame = replace(self._frame(called, function, then, inner, caller, call), before=before)
                trail = Step("call", call.site, inner, back=place.trail)
                self._fork([_Place(called, frame, function, 0, trail)])

    def _return(self, place: _Place) -> _Place | None:
        """The function that is being run is at its end."""
        frame, state = place.frame, place.state
        state.registers[RSP] = self._machine.add(self._machine.register(state, RSP), 8, 8)
        state.returned(LOST, frame.given)
        state.at = (-frame.entry, (), state.marks)
        if frame.parent is None:
            self._observer.ended_one(state)
            return None
        assert frame.call is not None
        place.trail = Step("return", frame.call.site, frame.call, back=place.trail)
        place.frame = self.frame = self._machine.frame = frame.parent
        states = self._observer.returned(state, frame.call)
        if frame.kernel is not None:
            for one in states:
                self._callbacks(frame.kernel, frame.then, replace(place, state=one), frame.parent, frame.before + 1)
                self._calls.any_other(one, frame.kernel, frame.parent)
        return self._returned(states, frame.then, place)

    def _returned(self, states: list[State], then: int, place: _Place) -> _Place | None:
        if not states:
            return None
        first, *others = states
        places = [replace(place, state=other) for other in others]
        place.state = first
        every = []
        for one in (place, *places):
            if then == TAIL:
                # It was jumped to: its end is the end of the one that jumped.
                one.state.registers[RSP] = self._machine.add(self._machine.register(one.state, RSP), MASK[8] - 7, 8)
                every.append(self._return(one))
            else:
                every.append(self._at(one, then))
        return self._first_of([one for one in every if one is not None])
