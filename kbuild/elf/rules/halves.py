"""The runs of vendor modules in two processes: what one puts into static calls is all that the other has to know.

The first module's take less time than the second one's. So that half does more: it finds what was set in the second
module before its init, and it runs that one's exit ahead of time. For that the second half guesses, as soon as most of
its init has been run, where static calls will lead when it is over; where they lead elsewhere in the end, it runs the
exit itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from kbuild.elf.code.calls import STATIC_CALL_UPDATE, Call
from kbuild.elf.code.decode import Code
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Question, Run, Runs, Together
from kbuild.elf.code.sides import Side, side_by_side
from kbuild.elf.code.state import State
from kbuild.elf.rules.asked import may_be_zero
from kbuild.elf.rules.entries import Exit, Functions, left_by, run_entries
from kbuild.elf.rules.orders import Orders
from kbuild.elf.rules.spec import OrderRule
from kbuild.elf.rules.told import Told, told

_AHEAD = 24
"""Functions that are looked at while what their run begins with is not known yet."""
_NEAR = 1
"""Calls from init to a function whose return tells: init may hand all of its work to one."""
_Static = tuple[tuple[int, int], ...]
"""See `Job.static`."""


def in_two(
    program: Program,
    inlined: Inlined,
    names: Sequence[str],
    orders: Sequence[OrderRule],
    meanwhile: Callable[[], object] | None,
) -> list[Told] | None:
    """What is told of the vendor modules, two or more; `meanwhile`: see `side_by_side`."""
    program.name_all()

    def others(side: Side) -> list[Told]:
        runs = Runs(Code(program, inlined.cuts), side, inlined, cut=True)
        for name in names[1:]:
            runs.look_ahead(name, _AHEAD)
        for name, given in side.hear().items():
            runs.give(name, given)
        answers, kept, _ = run_entries(runs, names[1:], orders, flow=False, other=_Guess(side, names[1]))
        functions = Functions(runs, names, orders, names[1:])
        return told(runs, [*answers, *functions.answers()], kept)

    def first(side: Side) -> list[Told]:
        runs = Runs(Code(program, inlined.cuts), side, inlined, cut=True)
        side.say({name: runs.given(name) for name in names[1:]})
        functions = Functions(runs, names, orders, program.modules.keys() - names[1:])
        ahead = _Ahead(side, runs, names[1], [rule for rule in orders if rule.entry == "exit"], functions)
        answers, kept, _ = run_entries(runs, names[:1], orders, flow=False, other=ahead)
        return told(runs, [*answers, *functions.answers()], kept)

    both = side_by_side(others, first, meanwhile)
    return [*both[0], *both[1]] if both is not None else None


class _Guess(Question):
    """Of the half that takes longer: tells where static calls will lead when a module's init is over.

    As a question it looks for the first function near the entry, none of the updates itself, that has returned behind
    these and not failed.
    """

    def __init__(self, side: Side, module: str) -> None:
        self._side = side
        self._module = module
        self._static: _Static | None = None

    def returned(self, state: State, call: Call) -> list[State]:
        is_update = call.name is not None and call.name.symbol == STATIC_CALL_UPDATE
        if self._static is None and call.depth <= _NEAR and state.static and not is_update and may_be_zero(state):
            self._tell(tuple(sorted((at, to) for at, to in state.static.items() if isinstance(to, int))))
        return [state]

    def _tell(self, static: _Static) -> None:
        self._static = static
        self._side.say(static)

    def prepare(self, job: Job) -> Job:
        """See `Other`; this and the next ones."""
        return replace(job, question=Together([job.question, self])) if job.module == self._module else job

    def wait(self, inits: Sequence[Run | None]) -> None:  # noqa: ARG002
        if self._static is None:
            self._tell(())

    def share(self, exits: Sequence[Exit], lost: AbstractSet[str]) -> tuple[list[Exit], dict[Job, Run | None]]:
        mine = [
            (one, job)
            for one, job in exits
            if job.module != self._module or job.static != self._static or not job.static or job.module in lost
        ]
        self._side.say(len(mine) < len(exits))
        return mine, {}


class _Ahead:
    """Of the other half: runs exits while that init is waited for, that module's as if the guess were right; and what
    rules ask of other functions."""

    def __init__(self, side: Side, runs: Runs, module: str, orders: Sequence[OrderRule], functions: Functions) -> None:
        self._side = side
        self._runs = runs
        self._module = module
        self._orders = orders
        self._functions = functions
        self._done: dict[tuple[str, _Static], tuple[Exit, Run | None]] = {}
        self._guess: _Static = ()

    def prepare(self, job: Job) -> Job:
        """See `Other`; this and the next ones."""
        return job

    def wait(self, inits: Sequence[Run | None]) -> None:
        self._functions.run()
        for init in inits:
            if init is not None:
                self._run(init.job.module, left_by(init))
        self._guess = self._side.hear()
        if self._guess:
            self._run(self._module, self._guess)

    def _run(self, module: str, static: _Static) -> None:
        if self._orders:
            asked = Orders(self._runs, module, "exit", self._orders, is_vendor=True)
            job = replace(asked.job, static=static)
            self._done[module, static] = (asked, job), self._runs.run(job)

    def share(self, exits: Sequence[Exit], lost: AbstractSet[str]) -> tuple[list[Exit], dict[Job, Run | None]]:  # noqa: ARG002
        wanted = [(job.module, job.static) for _, job in exits]
        if self._side.hear():
            wanted.append((self._module, self._guess))
        rest = [one for one in exits if (one[1].module, one[1].static) not in self._done]
        found = [self._done[key] for key in wanted if key in self._done]
        return [*rest, *(one for one, _ in found)], {job: run for (_, job), run in found}
