"""What rules see of the ways through the code: marks of states, and how often `then` came too early."""

from __future__ import annotations

from collections.abc import Sequence

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.link import Program
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.runs import Question
from kbuild.elf.code.state import State
from kbuild.elf.rules.asked import ACTIVE, BROKEN, HAPPENED, Asked, marked, returns
from kbuild.elf.rules.events import given, split


class Watcher(Question):
    """Holds the run over all ways against all rules."""

    def __init__(self, program: Program, asked: Sequence[Asked]) -> None:
        self._program = program
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
        self._machine: Machine | None = None

    def begin(self, flow: Flow, first_mark: int) -> None:
        self._machine = flow.machine
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

    def entered(self, state: State, call: Call) -> None:
        for one in self._about(call):
            if one.then.calls(call):
                self._came(one, state, given(one.then.event, self._program, call), call.site)
            if one.within is not None and one.within.calls(call):
                marked(state, one.index, set_=ACTIVE)

    def _came(self, one: Asked, state: State, sure: bool | None, site: int) -> None:
        """`then` is about to happen."""
        if sure is False:
            return
        if one.may_come(state.marks[one.index]):
            one.kept += 1
        elif sure is None:
            one.perhaps[site] += 1
        else:
            if one.rule.paths == "all":
                one.broken[state.at] += 1
            marked(state, one.index, set_=BROKEN)

    def returned(self, state: State, call: Call) -> list[State]:
        states = [state]
        for one in self._about(call):
            if one.within is not None and one.within.calls(call):
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

    def lost(self, state: State, site: int) -> None:
        for one in self._asked:
            may_come = one.may_come(state.marks[one.index])
            (one.lost_later if may_come else one.lost)[site] += 1

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        """An object that a rule is about was read or written, or may have been."""
        about = (some for (first, last), some in self._by_object.items() if start < last and end > first)
        for one in {one.index: one for some in about for one in some}.values():
            then, first = one.then, one.first
            if then.covers(start, end):
                if what == then.event.kind:
                    self._came(one, state, True, state.at[0])
                elif what == "lent":
                    self._came(one, state, None, state.at[0])
            if first is not None and what == first.event.kind and first.covers(start, end):
                marked(state, one.index, set_=HAPPENED)

    def ended(self, states: Sequence[State]) -> None:
        """The entry's function has returned."""
        for state in states:
            for one in self._asked:
                if one.rule.paths != "all" and state.marks[one.index] & BROKEN and returns(state, one.rule.paths):
                    one.broken[state.at] += 1
