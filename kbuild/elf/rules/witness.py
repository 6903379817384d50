"""A way on which a rule is broken, checked to be possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.calls import Call
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.model import Effort, satisfiable
from kbuild.elf.code.runs import Run, Runs
from kbuild.elf.code.state import State
from kbuild.elf.code.walk import Found, Futile, Step, Walk
from kbuild.elf.rules.asked import Asked, returns
from kbuild.elf.rules.events import given
from kbuild.elf.rules.passing import BROKEN, HAPPENED, MAYBE
from kbuild.elf.rules.watcher import Watcher

MAX_WAYS = 60
"""Ways that are tried until one does not contradict itself."""


@dataclass(frozen=True)
class Witness:
    """Steps from the entry to where the rule is broken."""

    steps: tuple[Step, ...]
    end: int
    """The place of `then`: of the call's instruction, or of that with the access."""
    called: str = ""
    """Which function it was, where `then` is a call."""
    inlined: bool = False
    """It is inlined there."""


class _Seeker(Watcher):
    """Goes along one way, until the rule is broken; gives up where `first` has happened.

    The marks of the other rules go along too: the run over all ways has kept its states apart by them.
    """

    def __init__(self, one: Asked, asked: Sequence[Asked], runs: Runs, flow: Flow) -> None:
        super().__init__(runs, [each.anew() for each in asked])
        self._one = one
        self._machine = flow.machine
        self.walk: Walk | None = None
        """The way that is gone along."""
        self._callee = ""
        self._is_inlined = False
        self.site = 0
        """Where the rule was broken, what was called there, and whether it is inlined."""
        self.called = ""
        self.inlined = False

    def begun(self, state: State, entry: int, address: int) -> str:
        begins = super().begun(state, entry, address)
        if self._is_futile(state):
            raise Futile
        return begins

    def entered(self, state: State, call: Call) -> None:
        self._callee = call.name.symbol if call.name is not None and self._one.then.calls(call) else ""
        super().entered(state, call)

    def _inlined_came(
        self, one: Asked, state: State, sure: bool, site: int, by: Literal["call", "access"], body: int
    ) -> None:
        called, self._callee, self._is_inlined = self._callee, " and ".join(self._runs.inlined.names(body)), True
        super()._inlined_came(one, state, sure, site, by, body)
        self._callee, self._is_inlined = called, False

    def _came(self, one: Asked, state: State, sure: bool | None, site: int, by: Literal["call", "access"]) -> None:
        mark = state.marks[one.index]
        super()._came(one, state, sure, site, by)
        if one.index == self._one.index and not mark & BROKEN and state.marks[one.index] & BROKEN:
            self.site, self.called, self.inlined = site, self._callee, self._is_inlined
            if one.rule.paths == "all":
                raise Found

    def returned(self, state: State, call: Call) -> list[State]:
        first = self._one.first
        if first is not None and first.calls(call) and given(first.event, self._program, call) is None:
            return []  # it may have been it: such a way shows nothing
        return [each for each in super().returned(state, call) if not self._is_futile(each)]

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        super().accessed(state, what, start, end)
        first, broken = self._one.first, state.marks[self._one.index] & BROKEN
        if what == "lent" and not broken and first and first.event.kind != "call" and first.covers(start, end):
            raise Futile  # it may have been it: such a way shows nothing
        if self._is_futile(state):
            raise Futile

    def _site(self, state: State) -> int:
        return self.walk.op.ip if self.walk is not None and self.walk.op is not None else state.at[0]

    def _is_futile(self, state: State) -> bool:
        """Once `first` has happened, or may have, nothing can be broken any more that was not, but for a `within`."""
        mark = state.marks[self._one.index]
        return bool(mark & (HAPPENED | MAYBE)) and not mark & BROKEN and self._one.within is None

    def ended_one(self, state: State) -> None:
        """The entry's function has returned."""
        assert self._machine is not None
        if state.marks[self._one.index] & BROKEN and returns(state, self._machine, self._one.rule.paths):
            raise Found


def find_witness(one: Asked, asked: Sequence[Asked], runs: Runs, run: Run) -> tuple[Witness | None, str]:
    """A way that breaks the rule and does not contradict itself, or why none was found."""
    flow = run.flow
    seeker = _Seeker(one, asked, runs, flow)
    walk = Walk(runs.code, runs.shapes, flow.calls_to, flow.machine, seeker)
    seeker.walk = walk
    effort = Effort()
    extent = seeker.extent()
    if extent is not None:
        flow.machine.watch(*extent, seeker.accessed)
    why = "none was found in time"
    for number, (state, trail) in enumerate(walk.ways(run.address, run.start, flow.edges, one.broken.keys())):
        contradiction = satisfiable([*state.known.items()], flow.symbols, effort)
        if contradiction is None:
            steps = tuple(trail.all() if trail is not None else ())
            return Witness(steps, seeker.site, seeker.called, seeker.inlined), ""
        why = contradiction
        if number >= MAX_WAYS:
            break
    return None, why
