"""What rules see of the ways through the code: marks of states, and how often `then` came too early."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.inlined import Part
from kbuild.elf.code.machine import OWN, Machine
from kbuild.elf.code.runs import Question, Runs
from kbuild.elf.code.state import State
from kbuild.elf.rules.asked import Asked, marked, remark, returns
from kbuild.elf.rules.events import Matches, given, split
from kbuild.elf.rules.passing import ACTIVE, BROKEN, HAPPENED, MAYBE, Passing, is_entered, told, waiting


class Watcher(Question):
    """Holds the run over all ways against all rules."""

    def __init__(self, runs: Runs, asked: Sequence[Asked]) -> None:
        self._runs = runs
        self._program = runs.program
        self._asked = asked
        self.marks = len(asked)
        self._by_target: dict[object, list[Asked]] = {}
        for one in asked:
            targets: set[object] = set()
            for matches in (one.first, one.then, one.within):
                if matches is not None:
                    targets |= matches.functions | matches.kernel
            for target in targets:
                self._by_target.setdefault(target, []).append(one)
        self._by_object: dict[tuple[int, int], list[Asked]] = {}
        for one in asked:
            for place in {place for each in (one.first, one.then) if each is not None for place in each.objects}:
                self._by_object.setdefault(place, []).append(one)
        self._objects = sorted(self._by_object.items())
        self._starts = [start for (start, _), _ in self._objects]
        self._reach = list(itertools.accumulate((end for (_, end), _ in self._objects), max))
        """How far any of the objects up to each of these goes."""
        self._machine: Machine | None = None
        self._flow: Flow | None = None
        self._passing = [(one, one.passing) for one in asked if one.passing is not None]
        self._bodies = 0
        for _, passing in self._passing:
            self._bodies |= passing.all
        self._parts: dict[int, Mapping[int, Part]] = {}
        """Of functions that something is inlined in that a rule is about: their blocks, by their addresses."""
        self._blocks: dict[int, Part] = {}
        """The same, of all of these."""
        self._sites: dict[int, Part] = {}
        """By their last instructions."""

    def begin(self, flow: Flow, first_mark: int) -> None:
        self._machine, self._flow = flow.machine, flow
        for number, one in enumerate(self._asked):
            one.begin(first_mark + number)

    def extent(self) -> tuple[int, int] | None:
        """Where the objects are that the rules are about."""
        objects = self._by_object
        return (min(start for start, _ in objects), max(end for _, end in objects)) if objects else None

    def _about(self, call: Call) -> list[Asked]:
        if call.of_kernel and call.name is not None:
            return self._by_target.get(call.name.symbol, [])
        return self._by_target.get(call.target, [])

    # Inlined functions.

    def watches(self, entry: int) -> bool:
        if not self._bodies:
            return False
        if self._runs.inlined.undescribed.get(entry, 0) & self._bodies:
            return True
        if entry not in self._parts:
            parts = self._runs.inlined.parts(self._runs.code, self._runs.shapes, entry)
            some = next(iter(parts.values()), None)
            self._parts[entry] = parts if some is not None and some.of & self._bodies else {}
            self._blocks |= self._parts[entry]
            for address, part in self._parts[entry].items():
                block = self._runs.code.block(address)
                if block is not None and block.ops:
                    self._sites[block.ops[-1].ip] = part
        return bool(self._parts[entry])

    def begun(self, state: State, entry: int, address: int) -> str:
        if undescribed := self._runs.inlined.undescribed.get(entry):
            self._undescribed(state, undescribed, address)
            return ""
        part = self._parts[entry].get(address)
        if part is None:  # come to by a switch whose table was not found beforehand
            part = self._blocks[address] = self._runs.inlined.elsewhere(
                next(iter(self._parts[entry].values())), address
            )
        begins = 0
        for one, passing in self._passing:
            if part.of & passing.all:
                before = state.marks[one.index]
                mark = self._change(state, one, passing, passing.block(before, part), address)
                begins |= passing.begun(before, mark, part)
                self._then_inlined(state, one, passing, part, address)
        return " and ".join(f"{name}()" for name in self._runs.inlined.names(begins))

    def _undescribed(self, state: State, bodies: int, site: int) -> None:
        """A function is run in which any of these may be inlined."""
        for one, passing in self._passing:
            if (passing.first.of | passing.within) & bodies:
                marked(state, one.index, set_=MAYBE)
            if passing.then.of & bodies:
                self._came(one, state, None, site, "call")

    def _change(self, state: State, one: Asked, passing: Passing, mark: int, site: int) -> int:
        """Put a mark in the place of another one, with what that may say of a `then` that is over."""
        before = state.marks[one.index]
        if mark != before:
            if passing.untold(before, mark):
                one.perhaps[site] += 1
            remark(state, one.index, mark)
        return mark

    def _then_inlined(self, state: State, one: Asked, passing: Passing, part: Part, address: int) -> None:
        """A block of an inlined `then` is about to be run."""
        for body, shift in passing.then_in(part):
            mark = state.marks[one.index]
            if one.may_come(mark):
                one.kept += 1
            elif not passing.then.counts:
                remark(state, one.index, waiting(mark, shift))
            else:
                sure = part.effects and is_entered(mark, shift)
                self._inlined_came(one, state, sure, address, "access", body)

    def _inlined_came(
        self,
        one: Asked,
        state: State,
        sure: bool,
        site: int,
        by: Literal["call", "access"],
        body: int,  # noqa: ARG002
    ) -> None:
        """An inlined `then` comes where it may not, for sure or perhaps."""
        self._came(one, state, True if sure else None, site, by)

    def _calling(self, state: State, site: int, call: Call | None) -> None:
        """A call is about to be made, perhaps by an inlined function."""
        part = self._sites.get(site)
        if part is None:
            return
        for one, passing in self._passing:
            if not part.of & passing.all:
                continue
            self._change(state, one, passing, passing.call(state.marks[one.index], part), site)
            for body, shift in passing.then_in(part):
                mark = state.marks[one.index]
                if not passing.then.counts and (call is None or one.then.calls(call)):
                    remark(state, one.index, told(mark, shift))
                elif passing.then.counts and not one.may_come(mark):
                    self._inlined_came(one, state, is_entered(mark, shift), site, "call", body)

    def _left(self, state: State, entry: int) -> None:
        """A function returns."""
        some = next(iter(self._parts.get(entry, {}).values()), None)
        if some is not None:
            for one, passing in self._passing:
                self._change(state, one, passing, passing.end(state.marks[one.index], some.of), entry)

    # Calls.

    def entered(self, state: State, call: Call) -> None:
        self._calling(state, call.site, call)
        for one in self._about(call):
            if one.then.calls(call):
                self._came(one, state, given(one.then.event, self._program, call), call.site, "call")
            if one.within is not None and one.within.calls(call):
                marked(state, one.index, set_=ACTIVE)

    def _came(self, one: Asked, state: State, sure: bool | None, site: int, by: Literal["call", "access"]) -> None:
        """`then` is about to happen, perhaps by a call."""
        if sure is False:
            return
        mark = state.marks[one.index]
        if one.may_come(mark):
            one.kept += 1
        elif one.passing is not None and not one.passing.is_sure(mark, self._blocks.get(state.at[0]), by):
            one.doubtful[site] += 1
        elif sure is None:
            one.perhaps[site] += 1
        else:
            if one.rule.paths == "all":
                one.broken[state.at] += 1
            marked(state, one.index, set_=BROKEN)

    def returned(self, state: State, call: Call) -> list[State]:
        if self._bodies:
            if call.target is not None:
                self._left(state, call.target)
            part = self._sites.get(call.site)
            if part is not None:
                for one, passing in self._passing:
                    remark(state, one.index, passing.back(state.marks[one.index], part))
        states = [state]
        for one in self._about(call):
            if one.within is not None and one.within.calls(call) and not self._is_within(one.within):
                for each in states:
                    marked(each, one.index, clear=ACTIVE)
            if one.first is None or not one.first.calls(call):
                continue
            if given(one.first.event, self._program, call) is not True:
                continue
            assert self._machine is not None
            parted: list[State] = []
            for each in states:
                good, bad = split(each, self._machine, one.first.event, RAX)
                if good is not None:
                    marked(good, one.index, set_=HAPPENED)
                parted += [part for part in (good, bad) if part is not None]
            states = parted
        return states

    def _is_within(self, within: Matches) -> bool:
        """Whether another call that it is about is still active, of those that led here."""
        frame = self._machine.frame if self._machine is not None else None
        while frame is not None and frame.entry not in within.functions:
            frame = frame.parent
        return frame is not None

    def _site(self, state: State) -> int:
        """The instruction that is being done."""
        op = self._flow.op if self._flow is not None else None
        return op.ip if op is not None else state.at[0]

    def lost(self, state: State, site: int) -> None:
        self._calling(state, site, None)
        for one in self._asked:
            may_come = one.may_come(state.marks[one.index])
            (one.lost_later if may_come else one.lost)[site] += 1

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        """An object that a rule is about was read or written, or may have been."""
        what = what.removeprefix(OWN)
        number = bisect.bisect_left(self._starts, end)
        about: dict[int, Asked] = {}
        while number and self._reach[number - 1] > start:  # nearly never: most accesses are to other objects
            number -= 1
            (_, last), some = self._objects[number]
            if last > start:
                about.update((one.index, one) for one in some)
        for one in about.values():
            then, first = one.then, one.first
            if then.covers(start, end):
                if what == then.event.kind:
                    self._came(one, state, True, self._site(state), "access")
                elif what == "lent":
                    self._came(one, state, None, self._site(state), "access")
            if first is not None and what == first.event.kind and first.covers(start, end):
                marked(state, one.index, set_=HAPPENED)

    def ended(self, states: Sequence[State]) -> None:
        """The entry's function has returned."""
        for state in states:
            self._left(state, -state.at[0])
            for one in self._asked:
                if one.rule.paths == "all" or not state.marks[one.index] & BROKEN:
                    continue
                assert self._machine is not None
                if returns(state.copy(), self._machine, one.rule.paths):
                    one.broken[state.at] += 1
