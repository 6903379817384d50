"""A way on which something stays held, checked to be possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kbuild.elf.code.calls import Call
from kbuild.elf.code.model import satisfiable
from kbuild.elf.code.runs import Run, Runs
from kbuild.elf.code.state import State
from kbuild.elf.code.walk import Found, Futile, Step, Walk
from kbuild.elf.resources.ledger import EXIT, HELD, SUCCESS, UNCLEAR, Ledger, Things

MAX_WAYS = 40
"""Ways that are tried until one does not contradict itself."""
MAX_LEFT = 8
"""Of init to success, each with ways of exit behind it."""


@dataclass(frozen=True)
class Look:
    """A run in which states are kept apart by whether one thing is held, and what it has gathered."""

    run: Run
    ledger: Ledger


class _Seeker(Ledger):
    """Goes along one way, to an end at which the thing is held; gives up where that is not known."""

    def __init__(self, things: Things, entry: str, number: int, how: str) -> None:
        super().__init__(things, entry, [number])
        self._number = number
        self._how = how

    def entered(self, state: State, call: Call) -> None:
        super().entered(state, call)
        if self.mark(state, self._number) == UNCLEAR:
            raise Futile

    def returned(self, state: State, call: Call) -> list[State]:
        return [one for one in super().returned(state, call) if self.mark(one, self._number) != UNCLEAR]

    def ended_one(self, state: State) -> None:
        """The entry's function has returned."""
        if self.mark(state, self._number) == HELD and self.narrowed(state, self._how):
            raise Found


class Seeker:
    """Looks for ways of one program on which one thing stays held."""

    def __init__(self, runs: Runs, things: Things, number: int) -> None:
        self._runs = runs
        self._things = things
        self._number = number
        self.why = "none was found in time"
        """What stood in the way, where none was found."""

    def of_init(self, look: Look, how: str) -> tuple[Step, ...] | None:
        """A way through init that ends so."""
        for _, steps in self._ways(look, look.run.start, "init", how, MAX_WAYS):
            return steps
        return None

    def of_exit(self, init: Look, exit_: Look) -> tuple[tuple[Step, ...], tuple[Step, ...]] | None:
        """A way through init that succeeds, and one through exit behind it."""
        for state, first in self._ways(init, init.run.start, "init", SUCCESS, MAX_LEFT):
            left = state.copy()
            left.leave()
            exit_.run.flow.calls_to.given_anything(left)
            for _, then in self._ways(exit_, left, "exit", EXIT, MAX_WAYS):
                return first, then
        return None

    def _ways(
        self, look: Look, start: State, entry: str, how: str, most: int
    ) -> Iterator[tuple[State, tuple[Step, ...]]]:
        """Ways to an end at which the thing is held, which do not contradict themselves."""
        flow = look.run.flow
        seeker = _Seeker(self._things, entry, self._number, how)
        walk = Walk(self._runs.code, self._runs.shapes, flow.calls_to, flow.machine, seeker)
        seeker.follow(walk, flow.machine)
        goals = look.ledger.places.get((how, self._number), set())
        for tried, (state, trail) in enumerate(walk.ways(look.run.address, start, flow.edges, goals)):
            contradiction = satisfiable([*state.known.items()], flow.symbols)
            if contradiction is None:
                yield state, tuple(trail.all() if trail is not None else ())
            else:
                self.why = contradiction
            if tried >= most:
                break
