"""A way on which something stays held, checked to be possible."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kbuild.elf.code.calls import Call
from kbuild.elf.code.model import satisfiable
from kbuild.elf.code.runs import Run, Runs
from kbuild.elf.code.state import State
from kbuild.elf.code.walk import Found, Futile, Step, Walk
from kbuild.elf.resources.ledger import ERROR, EXIT, HELD, SUCCESS, UNCLEAR, Ledger

MAX_WAYS = 40
"""Ways that are tried until one does not contradict itself."""
MAX_LEFT = 8
"""Of init to success, each with ways of exit behind it."""
Way = tuple[tuple[Step, ...], tuple[Step, ...] | None]
"""Through init, and through exit behind it."""


@dataclass(frozen=True)
class Look:
    """A run, and what it has gathered."""

    run: Run
    ledger: Ledger
    marks: tuple[int, ...] = ()
    """What its start is held by: of exit, that which init has left so."""


class _Seeker(Ledger):
    """Goes along one way, to an end at which the thing is held; gives up where that is not known."""

    def __init__(self, look: Look, entry: str, number: int, how: str, handles: Collection[int]) -> None:
        super().__init__(look.ledger.things, entry, look.ledger.apart, handles)
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

    def __init__(self, runs: Runs, number: int) -> None:
        self._runs = runs
        self._number = number
        self.why = "none was found in time"
        """What stood in the way, where none was found."""

    def of_init(self, look: Look) -> Way | None:
        """A way through init that fails."""
        for _, steps, _ in self._ways(look, look.run.start, "init", ERROR, MAX_WAYS):
            return steps, None
        return None

    def of_exit(self, init: Look, exit_: Look) -> Way | None:
        """A way through init that succeeds, and one through exit behind it."""
        for state, first, handles in self._ways(init, init.run.start, "init", SUCCESS, MAX_LEFT, exit_.marks):
            left = state.copy()
            left.leave()
            exit_.run.flow.calls_to.given_anything(left)
            for _, then, _ in self._ways(exit_, left, "exit", EXIT, MAX_WAYS, handles=handles):
                return first, then
        return None

    def _ways(
        self,
        look: Look,
        start: State,
        entry: str,
        how: str,
        most: int,
        marks: tuple[int, ...] = (),
        handles: Collection[int] = (),
    ) -> Iterator[tuple[State, tuple[Step, ...], Collection[int]]]:
        """Ways to an end at which the thing is held, which do not contradict themselves; with these marks, if any."""
        flow = look.run.flow
        seeker = _Seeker(look, entry, self._number, how, handles)
        walk = Walk(self._runs.code, self._runs.shapes, flow.calls_to, flow.machine, seeker)
        seeker.follow(walk, flow.machine)
        goals = look.ledger.places.get((how, self._number), set())
        goals = {node for node in goals if not marks or node[2] == marks}
        for tried, (state, trail) in enumerate(walk.ways(look.run.address, start, flow.edges, goals)):
            contradiction = satisfiable([*state.known.items()], flow.symbols)
            if contradiction is None:
                yield state, tuple(trail.all() if trail is not None else ()), seeker.handles
            else:
                self.why = contradiction
            if tried >= most:
                break
