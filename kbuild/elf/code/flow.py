"""All ways through init code: each function run on what is known, calls followed, states joined where ways meet.

Whoever wants to know something of it is an `Observer`, told of each call, access and end of a way.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from kbuild.elf.code.budget import COPIED, INSTRUCTION, Budget
from kbuild.elf.code.calls import GIVEN, LOST, ONCE, Call, Calls
from kbuild.elf.code.decode import (
    BRANCH,
    CALL,
    INDIRECT_CALL,
    INDIRECT_JUMP,
    JUMP,
    NEXT,
    RAX,
    RETURN,
    RSP,
    TARGET,
    Code,
    Op,
)
from kbuild.elf.code.frames import Frame, Trouble, Waiting
from kbuild.elf.code.graph import NO_RETURN, RETURNS, STAYS, Shapes
from kbuild.elf.code.instructions import prepare
from kbuild.elf.code.join import ALL_USED, Joiner
from kbuild.elf.code.link import Program
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.parameters import Parameter
from kbuild.elf.code.patches import ways
from kbuild.elf.code.results import FLAGS
from kbuild.elf.code.state import Marks, Node, State
from kbuild.elf.code.values import MASK, Symbols, Value

MAX_CAME = 1 << 15
"""Steps from place to place that are kept before they are put in order, which most runs never need."""
_RESULT = (RAX,)
MAX_DEPTH = 64
"""Calls within calls; the kernel's stack would not hold many more."""
MAX_ROUNDS = 24
"""Times that a block is looked at anew before it is given up; states are widened long before."""
WIDEN_AFTER = 3
MAX_UNROLLED = 8
"""Rounds of a loop that are followed one by one where each goes one way: with numbers, as a table is copied."""


class Observer(Protocol):
    """Told of what happens on each way; may change a state's `marks`."""

    def watches(self, entry: int) -> bool:
        """Whether it is told of each block of the function there, too."""

    def begun(self, state: State, entry: int, address: int) -> str:
        """A block of such a function is about to be run; gives what begins there that is worth being told, by name."""

    def entered(self, state: State, call: Call) -> None:
        """A function is about to be run, of a module or of the kernel."""

    def returned(self, state: State, call: Call) -> list[State]:
        """It has returned, in that state; the states to go on with."""

    def lost(self, state: State, site: int) -> None:
        """A call or jump is about to happen, and what it does is not known."""


class Flow:
    """An analysis of one program from one entry."""

    def __init__(
        self,
        program: Program,
        code: Code,
        shapes: Shapes,
        knows: frozenset[str],
        observer: Observer,
        budget: Budget | None = None,
        after: Machine | None = None,
        given: Sequence[Parameter] = (),
    ) -> None:
        """`after`: of an analysis that this one goes on from, with a state that was found there; `given`: what is not
        as in the file at the start."""
        self.program = program
        self.machine = Machine(program, after.symbols if after is not None else Symbols(), knows, after, given)
        self.symbols = self.machine.symbols
        self.trouble = Trouble()
        self.budget = budget or Budget()
        self.steps = 0
        self.calls = 0
        self._edges: dict[Node, set[Node]] = {}
        self._came: list[tuple[Node, Node]] = []
        """Places that were come to, and from where, as often as it happened: such as are not among the edges yet."""
        self._code = code
        self._shapes = shapes
        self._observer = observer
        self.op: Op | None = None
        """The instruction that is being done, in `frame`."""
        self.frame: Frame | None = None
        self.calls_to = Calls(program, self.machine, shapes)
        machine = self.machine
        self._joiner = Joiner(self.symbols, machine.contents, machine.unwritten, machine.targets.leads_as, self.budget)

    @property
    def edges(self) -> dict[Node, set[Node]]:
        """From where each place was come to, calls and returns among them."""
        self._order()
        return self._edges

    def _order(self) -> None:
        for node, before in self._came:
            self._edges.setdefault(node, set()).add(before)
        self._came.clear()

    @property
    def joins(self) -> int:
        """How often two states became one."""
        return self._joiner.count

    def start(self, entry: int, state: State) -> list[State]:
        """Run the function there, called by the kernel; gives the states in which it can return.

        What comes out is all that can happen, unless `trouble.cut` says that some of it was given up.
        """
        return self._function(entry, state.copy(), None)

    def joined(self, states: Sequence[State]) -> State:
        """One state that stands for all of some; they have the same marks."""
        first, *others = (state.copy() for state in states)
        for state in others:
            first = self._joiner.join(first, state)
        return first

    # Functions.

    def _function(self, entry: int, state: State, parent: Frame | None) -> list[State]:
        """Run a function: the return address is not yet on the stack."""
        self.calls += 1
        shape = self._shapes.of(entry)
        top = self.machine.add(self.machine.register(state, RSP), MASK[8] - 7, 8)
        state.registers[RSP] = top
        depth = parent.depth + 1 if parent else 0
        caller = self.op
        begin = top if isinstance(top, int) else 0
        site = caller.ip if caller is not None else 0
        watched = self._observer.watches(entry)
        frame = self.frame = self.machine.frame = Frame(
            entry, shape, begin - 8 * shape.saved, parent, depth, site, begin, watched
        )
        run = Waiting(shape, self.budget)
        exits: list[State] = []
        given = state.registers[:]
        run.add(entry, state)
        while (address := run.next()) is not None:
            for one in self._merged(run, address):
                run.forks -= 1
                self._block(address, one, run, exits, frame)
        run.end()
        if len(self._came) > MAX_CAME:
            self._order()  # they repeat each other
        self.op = caller
        self.frame = self.machine.frame = parent
        for state in exits:
            node = (-entry, state.kinds(_RESULT), state.marks)
            self._came.append((node, state.at))
            state.at = node
            # Of what a function has changed, only the result is looked at by its caller.
            state.returned(LOST, given)
        # One state for each kind of result.
        return self._joined(exits)

    def _merged(self, run: Waiting, address: int) -> list[State]:
        """The states with which to look at a block, joined; those that it was looked at with before left out."""
        states, size = run.take(address)
        # Each is copied to here, and is copied again where it goes on.
        if not self.budget.spend(2 * size // COPIED):
            self._give_up(address)
            return []
        for state in states:
            node = run.shape.node(address, state)
            self._came.append((node, state.at))
            state.at = node
        used = run.shape.used.get(address, ALL_USED)
        if len(states) > 1:
            states = self._joined(states, used)
        # Only where a loop begins is a block bound to be looked at again.
        if address not in run.visited:
            run.visited.add(address)
            if address not in run.shape.heads:
                return states
        waiting = []
        for state in states:
            key = (address, state.at)
            before, rounds, forks = run.seen.get(key, (None, 0, 0))
            if before is None:
                # What nobody looks at any more is no reason to go round once more.
                state.flags = state.flags if used >> FLAGS & 1 else None
                state.registers = [one if used >> number & 1 else None for number, one in enumerate(state.registers)]
            # A loop that went round on one way alone need not be joined with itself.
            elif run.forks != forks or rounds >= MAX_UNROLLED:
                if self._joiner.covers(before, state):
                    if not state.facts & ~before.facts:
                        continue
                    # There are only so many facts: this is no round, and nothing else is lost for them.
                    before.facts |= state.facts
                    waiting.append(before.copy())
                    continue
                if rounds >= MAX_ROUNDS:
                    self.trouble.cut[address] += 1
                    continue
                state = self._joiner.join(before, state, used, widen=rounds >= WIDEN_AFTER)
            run.seen[key] = (state.copy(), rounds + 1, run.forks)
            run.hold(state, before)
            waiting.append(state)
        return waiting

    def _joined(self, states: list[State], used: int = ALL_USED) -> list[State]:
        """One state for each place, with the results and marks that it has there."""
        groups: dict[Node, State] = {}
        for state in states:
            other = groups.setdefault(state.at, state)
            if other is not state:
                groups[state.at] = self._joiner.join(other, state, used)
        return list(groups.values())

    # Blocks.

    def _block(self, address: int, state: State, run: Waiting, exits: list[State], frame: Frame) -> None:
        block = self._code.block(address)
        # Whether it has become too much is asked where the next block is looked at.
        self.budget.work += INSTRUCTION * (self.machine.repeated + (len(block.ops) if block is not None else 0))
        self.machine.repeated = 0
        if block is None:
            self.trouble.unresolved[address] += 1
            self._observer.lost(state, address)
            return
        if block.unread is not None:
            self.machine.unread.add(block.unread)
            self._observer.lost(state, address)
            return
        if block.patches:
            *patched, (to, state) = ways(self.machine, state, block)
            for other, one in patched:
                run.add(other, one)
            if to != address:
                run.add(to, state)
                return
        if frame.watched:
            self._observer.begun(state, frame.entry, address)
        machine = self.machine
        self.steps += len(block.ops)
        for op in block.ops:
            self.op = op
            if op.flow == NEXT:
                (op.do or prepare(op))(machine, state, op)
            else:
                self._leave(op, state, run, exits, frame)
                return
        for number, following in enumerate(block.follow):
            last = number == len(block.follow) - 1
            if last and number and block.fault is not None:
                machine.fault(state, block.fault)
            run.add(following, state if last else state.copy())

    def _give_up(self, address: int) -> None:
        if self.trouble.given_up is None:
            self.trouble.given_up = address
            self.trouble.cut[address] += 1

    def _leave(self, op: Op, state: State, run: Waiting, exits: list[State], frame: Frame) -> None:
        """The last instruction of a block."""
        if op.flow == BRANCH:
            holds, fails, about = self.machine.decide(state, op.condition)
            if holds and fails:
                other = state.copy()
                if about is not None:
                    self.machine.learn(other, about, fails)
                run.add(op.next, other)
            elif fails:
                run.add(op.next, state)
            if holds:
                if fails and about is not None:
                    self.machine.learn(state, about, holds)
                self._jump(op.operands[0].number, op, state, run, exits, frame)
        elif op.flow == JUMP:
            self._jump(op.operands[0].number, op, state, run, exits, frame)
        elif op.flow == RETURN:
            exits.append(self._returned(state))
        elif op.flow in (CALL, INDIRECT_CALL):
            operand = op.operands[0]
            target = operand.number if operand.kind == TARGET else self.machine.get(state, operand, 8)
            for one in self._call(target, op, state, frame):
                run.add(op.next, one)
        elif op.flow == INDIRECT_JUMP:
            value = self.machine.get(state, op.operands[0], 8)
            if isinstance(value, int):
                self._jump(value, op, state, run, exits, frame)
            elif cases := self.calls_to.cases(value, state):
                for target in cases[1]:
                    run.add(target, state.copy())
            elif targets := self._shapes.table(op):
                for target in targets:
                    run.add(target, state.copy())
            else:
                self._tail(value, op, state, exits, frame)
        else:
            linked = self.program.module_at(op.ip)
            if linked is not None and self._code.tables(linked.name).goes_on.get(op.ip):
                run.add(op.next, state)

    def _jump(self, target: int, op: Op, state: State, run: Waiting, exits: list[State], frame: Frame) -> None:
        how = self._shapes.jump(frame.entry, target)
        if how == STAYS:
            run.add(target, state)
        elif how == RETURNS:
            exits.append(self._returned(state))
        else:
            self._tail(target, op, state, exits, frame)

    def _tail(self, target: Value, op: Op, state: State, exits: list[State], frame: Frame) -> None:
        """A jump to another function: it returns to our caller."""
        state = self._returned(state)
        exits += self._call(target, op, state, frame)

    def _returned(self, state: State) -> State:
        state.registers[RSP] = self.machine.add(self.machine.register(state, RSP), 8, 8)
        return state

    # Calls.

    def _call(self, target: Value, op: Op, state: State, frame: Frame) -> list[State]:
        calls = self.calls_to.of(state, target, op, frame.depth)
        if len(calls) == 1:
            return self._to(calls[0], op, state, frame)
        return [one for call in calls for one in self._to(call, op, state.copy(), frame)]

    def _to(self, call: Call, op: Op, state: State, frame: Frame) -> list[State]:
        if call.target is None:
            self.trouble.unresolved[op.ip] += 1
            self._observer.lost(state, op.ip)
            self.calls_to.unknown(state, ("unresolved", op.ip))
            return [state]
        if call.of_kernel:
            return self._kernel(call, state, frame)
        if frame.runs(call.target) or frame.depth >= MAX_DEPTH:
            self.trouble.recursive[op.ip] += 1
            self._observer.lost(state, op.ip)
            self.calls_to.unknown(state, ("recursion", call.target))
            return [state]
        return self._enter(call, state, frame)

    def _enter(self, call: Call, state: State, frame: Frame) -> list[State]:
        assert call.target is not None
        self._observer.entered(state, call)
        returned: list[State] = []
        for one in self._function(call.target, state, frame):
            returned += self._observer.returned(one, call)
        return returned

    def _kernel(self, call: Call, state: State, frame: Frame) -> list[State]:
        """A function of the kernel: not looked into."""
        assert call.name is not None
        self._observer.entered(state, call)
        if call.name.symbol in NO_RETURN:
            return []
        if self.calls_to.known(state, call):
            return self._observer.returned(state, call)
        returned: list[State] = []
        for one in self._after_callbacks(call, state, frame):
            self.calls_to.any_other(one, call, frame)
            returned += self._observer.returned(one, call)
        return returned

    def _after_callbacks(self, call: Call, state: State, frame: Frame) -> list[State]:
        """The states behind what the kernel may run of the functions that it was given: none, or any of them, in any
        order and, but for some, as often as it likes. All ways of these on which the same was seen have one state, of
        which there is a copy for each place that one of them comes from."""
        given = self._given(call, state, frame)
        if not given:
            return [state]
        assert call.name is not None
        if call.name.symbol in ONCE:
            returned = [self._callback(call, state, (), function, frame) for function in given.items()]
            return [state, *itertools.chain(*returned)]
        whole, rounds = {state.marks: state.copy()}, Counter[Marks]()
        come_from: dict[Marks, dict[Node, None]] = {state.marks: {state.at: None}}
        waiting = deque((state.marks, function) for function in given.items())
        while waiting:
            marks, function = waiting.popleft()
            for one in self._callback(call, whole[marks], come_from[marks], function, frame):
                come_from.setdefault(one.marks, {})[one.at] = None
                if not self._adds(whole, one):
                    continue
                rounds[one.marks] += 1
                if rounds[one.marks] > MAX_ROUNDS:
                    self.trouble.cut[call.site] += 1
                    continue
                every = ((one.marks, each) for each in given.items())
                waiting += [each for each in every if each not in waiting]
        states: list[State] = []
        for marks, places in come_from.items():
            for place in places:
                states.append(whole[marks].copy())
                states[-1].at = place
        return states

    def _callback(
        self, call: Call, state: State, places: Iterable[Node], function: tuple[int, int], frame: Frame
    ) -> list[State]:
        """The states in which a function has returned that the kernel was given; it comes from the state's place, and
        from these."""
        inner, called = self.calls_to.given(state, call, *function)
        node = self._shapes.of(function[0]).node(function[0], called)
        self._came += [(node, place) for place in places]
        returned = self._enter(inner, called, frame)
        for one in returned:
            # Of its caller's registers the kernel keeps all that it has to, and the others are lost behind it.
            one.registers, one.kept, one.flags = state.registers[:], state.kept, state.flags
        return returned

    def _adds(self, whole: dict[Marks, State], one: State) -> bool:
        """Let what stands for all ways on which the same was seen stand for one more; whether it did not already."""
        other = whole.setdefault(one.marks, one)
        if other is one:
            return True
        if self._joiner.covers(other, one):
            if not one.facts & ~other.facts:
                return False
            other.facts |= one.facts
        else:
            self._joiner.join(other, one, widen=True)
        return True

    def _given(self, call: Call, state: State, frame: Frame) -> dict[int, int]:
        """The functions that the kernel may run before a call of it returns; told as lost where that is not known."""
        given, unsure = self.calls_to.functions(state, call)
        if unsure:
            self.trouble.unresolved[call.site] += 1
        assert call.name is not None
        runs = GIVEN.get(call.name.symbol, (None,))[0]
        running = [function for function in given if frame.runs(function)]
        # Its address may only have been left there in a register, unless it is known to be what is run.
        if any(given[function] == runs for function in running) or (given and frame.depth >= MAX_DEPTH):
            self.trouble.recursive[call.site] += 1
            unsure, given = True, {}
        for function in running:
            given.pop(function, None)
        if unsure:
            self._observer.lost(state, call.site)
            self.calls_to.unknown(state, ("unresolved", call.site))
        return given
