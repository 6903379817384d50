"""A way on which a rule is broken, checked to be possible."""

from __future__ import annotations

from dataclasses import dataclass

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX, Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.model import satisfiable
from kbuild.elf.code.state import State
from kbuild.elf.code.walk import Found, Step, Walk
from kbuild.elf.rules.asked import ACTIVE, BROKEN, HAPPENED, Asked, marked, returns
from kbuild.elf.rules.events import given, split, union_of

MAX_WAYS = 60
"""Ways that are tried until one does not contradict itself."""


@dataclass(frozen=True)
class Witness:
    """Steps from the entry to where the rule is broken."""

    steps: tuple[Step, ...]
    end: int
    """The place of `then`: of the call's or the access's instruction, or of its block."""


class _Seeker:
    """Goes along one way, until the rule is broken; gives up where `first` has happened."""

    def __init__(self, one: Asked, flow: Flow) -> None:
        self._one = one
        self._flow = flow
        self.site = 0

    def entered(self, state: State, call: Call) -> None:
        one = self._one
        if one.then.calls(call) and given(one.then.event, self._flow.program, call):
            self._came(state, call.site)
        if one.within is not None and one.within.calls(call):
            marked(state, one.index, set_=ACTIVE)

    def _came(self, state: State, site: int) -> None:
        if self._one.may_come(state.marks[self._one.index]):
            return
        self.site = site
        if self._one.rule.paths == "all":
            raise Found
        marked(state, self._one.index, set_=BROKEN)

    def returned(self, state: State, call: Call) -> list[State]:
        one = self._one
        if one.within is not None and one.within.calls(call):
            marked(state, one.index, clear=ACTIVE)
        if one.first is None or not one.first.calls(call):
            return [state]
        # A call that may have been it leaves the question open: such a way shows nothing.
        sure = given(one.first.event, self._flow.program, call)
        if sure is None:
            return []
        good, bad = split(state, self._flow.machine, one.first.event, RAX) if sure else (None, state)
        # Once it has happened nothing can be broken any more, but where a `within` is asked for, or it was already.
        if good is not None and one.within is None and not good.marks[one.index] & BROKEN:
            good = None
        if good is not None:
            marked(good, one.index, set_=HAPPENED)
        return [part for part in (bad, good) if part is not None]

    def lost(self, state: State, site: int) -> None:
        """Such a way ends anyway."""

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        """An object that the rule is about."""
        one = self._one
        if what == one.then.event.kind and one.then.covers(start, end):
            self._came(state, state.at[0])
        if one.first is not None and what == one.first.event.kind and one.first.covers(start, end):
            marked(state, one.index, set_=HAPPENED)

    def ended(self, state: State) -> None:
        """The entry's function has returned."""
        if state.marks[self._one.index] & BROKEN and returns(state, self._one.rule.paths):
            raise Found


def find_witness(
    one: Asked, code: Code, shapes: Shapes, flow: Flow, entry: int, start: State
) -> tuple[Witness | None, str]:
    """A way that breaks the rule and does not contradict itself, or why none was found."""
    seeker = _Seeker(one, flow)
    objects = [place for matches in (one.first, one.then) if matches is not None for place in matches.objects]
    flow.machine.watch(*(union_of(objects) if objects else (1, 0)), seeker.accessed)
    walk = Walk(code, shapes, flow.calls_to, flow.machine, seeker)
    why = "none was found in time"
    for number, (state, trail, _) in enumerate(walk.ways(entry, start, flow.edges, one.broken.keys())):
        contradiction = satisfiable([*state.known.items()], flow.symbols)
        if contradiction is None:
            return Witness(tuple(trail.all() if trail is not None else ()), seeker.site), ""
        why = contradiction
        if number >= MAX_WAYS:
            break
    return None, why
