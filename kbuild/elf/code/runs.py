"""All runs over one module set: which entries there are, who is told what, and what one run teaches the others.

A static call's target is what init code of any module has put there, so runs are done again until nothing new comes.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kbuild.elf.code.budget import SETTERS, Budget
from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.parameters import Parameter, parameters, setters
from kbuild.elf.code.sides import Side
from kbuild.elf.code.state import State
from kbuild.elf.names import LOADER_CALLS

ENTRIES = dict(zip(("init", "exit"), LOADER_CALLS, strict=True))
"""What a run begins at, with the name of its function."""
MAX_PARAMETERS = 1000
"""Of a module; of one that has more, anything may have been set."""


class Question:
    """An observer of a run that may be done again; this one asks nothing: override what is needed."""

    marks = 0
    """How many of a state's marks are its own."""

    def begin(self, flow: Flow, first_mark: int) -> None:
        """A run starts; what an earlier one showed is void."""

    def extent(self) -> tuple[int, int] | None:
        """From which address to before which other it is told of accesses; None: of none."""
        return None

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        """See `machine.Access`; also of what is outside of its extent."""

    def watches(self, entry: int) -> bool:  # noqa: ARG002
        """See `Observer`; this and the next ones."""
        return False

    def begun(self, state: State, entry: int, address: int) -> str:  # noqa: ARG002
        return ""

    def entered(self, state: State, call: Call) -> None:
        pass

    def returned(self, state: State, call: Call) -> list[State]:  # noqa: ARG002
        return [state]

    def lost(self, state: State, site: int) -> None:
        pass

    def ended(self, states: Sequence[State]) -> None:
        """The entry's function has returned in these states."""


class Together(Question):
    """Several questions, asked in one run."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self.marks = sum(one.marks for one in questions)

    def begin(self, flow: Flow, first_mark: int) -> None:
        for one in self._questions:
            one.begin(flow, first_mark)
            first_mark += one.marks

    def extent(self) -> tuple[int, int] | None:
        extents = [extent for one in self._questions if (extent := one.extent()) is not None]
        return (min(start for start, _ in extents), max(end for _, end in extents)) if extents else None

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        for one in self._questions:
            one.accessed(state, what, start, end)

    def watches(self, entry: int) -> bool:
        return any(tuple(one.watches(entry) for one in self._questions))

    def begun(self, state: State, entry: int, address: int) -> str:
        return " and ".join(filter(None, [one.begun(state, entry, address) for one in self._questions]))

    def entered(self, state: State, call: Call) -> None:
        for one in self._questions:
            one.entered(state, call)

    def returned(self, state: State, call: Call) -> list[State]:
        states = [state]
        for one in self._questions:
            states = [each for before in states for each in one.returned(before, call)]
        return states

    def lost(self, state: State, site: int) -> None:
        for one in self._questions:
            one.lost(state, site)

    def ended(self, states: Sequence[State]) -> None:
        for one in self._questions:
            one.ended(states)


@dataclass(frozen=True)
class Start:
    """Where an earlier run has come to, for one that goes on from there."""

    state: State
    machine: Machine
    knows: frozenset[str]

    @classmethod
    def after(cls, run: Run, ends: Sequence[State], marks: tuple[int, ...] = ()) -> Start:
        """What a run has left in memory, at some of its ends; at least one."""
        bare = []
        for end in ends:
            one = end.copy()
            one.leave()
            one.marks = marks
            bare.append(one)
        return cls(run.flow.joined(bare), run.flow.machine, run.knows)


@dataclass(frozen=True)
class Job:
    """What is to be run."""

    module: str
    entry: str
    """`init`, `exit`, or a function's name."""
    question: Question
    start: Start | None = None
    """None: as the kernel calls it, with nothing known but what is in the files."""
    static: tuple[tuple[int, int], ...] = ()
    """Static calls of which it is known where they lead at the start: trampolines and functions."""


@dataclass(frozen=True)
class Run:
    """All ways from one entry."""

    job: Job
    address: int
    start: State
    flow: Flow
    ends: tuple[State, ...]
    """How it can return."""
    relied_on: frozenset[tuple[int, int | None]]
    """What was known of the static calls that it met."""
    knows: frozenset[str]
    """Modules whose data was as in their files at the start."""

    def left(self, ends: Sequence[State]) -> tuple[tuple[int, int], ...]:
        """Where static calls lead at these ends, as far as they agree: as `Job.static`."""
        agreed = set(ends[0].static.items()).intersection(*(end.static.items() for end in ends[1:])) if ends else set()
        return tuple(sorted((trampoline, to) for trampoline, to in agreed if isinstance(to, int)))


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage in circles: a run makes none, and the search is a fifteenth of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Runs:
    """Runs over one module set. Raises MalformedError where a file contradicts itself."""

    def __init__(
        self, code: Code, other: Side | None = None, inlined: Inlined | None = None, *, cut: bool = False
    ) -> None:
        """`other`: where the other runs over the set are made, which settle at the same time; `inlined`: what the code
        was cut for; `cut`: ways are joined wherever they meet, also in straight code. Less is to be run then, and less
        is known of what each way does."""
        self.code = code
        self._other = other
        self.program = code.program
        self.shapes = Shapes(code, cut=cut)
        self.inlined = inlined or Inlined(code.program)
        self._static: dict[int, set[int | None]] = {}
        """What static calls were updated to by init code, by their trampolines; None: to something unknown."""
        self._parameters: dict[str, Sequence[Parameter]] = {}
        self._budgets: dict[Job, Budget] = {}
        """However often it is run."""

    def taught(self, code: Code) -> Runs:
        """Runs over the same set that begin with what these have found; `code`: of their own, for it is not cut."""
        others = Runs(code)
        others._static, others._parameters = self._static, self._parameters
        return others

    def entry(self, module: str, name: str) -> int | None:
        """The address of a module's `init`, `exit`, or a function of it."""
        return self.program.symbol(module, ENTRIES.get(name, name))

    def settle(
        self,
        jobs: Sequence[Job],
        early: Mapping[Job, Run | None] | None = None,
        meanwhile: Callable[[Sequence[Run | None]], None] | None = None,
    ) -> list[Run | None]:
        """Run each until none relies on less of static calls than all have found; None: there is no such function.

        `early`: what came out of some already; `meanwhile` is done when each has been run once, before the other side's
        runs are waited for.
        """
        done = early or {}
        runs = [done[job] if job in done else self.run(job) for job in jobs]
        if meanwhile is not None:
            meanwhile(runs)
        while True:
            if self._other is not None:
                for trampoline, targets in self._other.swap(self._static).items():
                    self._static.setdefault(trampoline, set()).update(targets)
            stale = [number for number, run in enumerate(runs) if run is not None and self.is_stale(run)]
            is_stale_there = self._other.swap(bool(stale)) if self._other is not None else False
            if not stale and not is_stale_there:
                return runs
            for number in stale:
                runs[number] = self.run(jobs[number])

    def run(self, job: Job) -> Run | None:
        """All ways from an entry, with what is known of static calls by now.

        What a function updates that is neither init nor exit counts in its own run: others would be told what it does
        with arguments that nobody gives it.
        """
        address = self.entry(job.module, job.entry)
        if address is None:
            return None
        static = self._static if job.entry in ENTRIES else {one: set(some) for one, some in self._static.items()}
        knows = frozenset({job.module}) if job.entry == "init" else frozenset[str]()
        if job.start is not None:
            knows = job.start.knows
        after = job.start.machine if job.start is not None else None
        budget = self._budgets.setdefault(job, Budget(self.program.code_bytes(job.module)))
        while True:
            given = self.given(job.module) if job.module in knows and after is None else ()
            flow = Flow(self.program, self.code, self.shapes, knows, job.question, budget, after, given)
            flow.calls_to.candidates = static
            start = job.start.state.copy() if job.start is not None else State.at_entry((0,) * job.question.marks)
            for trampoline, function in job.static:
                start.update_static(trampoline, function)
            if job.start is None:
                flow.machine.know_parameters(start)
            flow.calls_to.given_anything(start)
            job.question.begin(flow, 0)
            extent = job.question.extent()
            if extent is not None:
                flow.machine.watch(*extent, job.question.accessed)
            before = _known(static, static)
            ends = flow.start(address, start)
            job.question.ended(ends)
            for trampoline, targets in flow.calls_to.updates.items():
                static.setdefault(trampoline, set()).update(targets)
            relied_on = _known(static, flow.calls_to.asked)
            # Done again until nothing new comes: then what it took for granted is what it found.
            if relied_on <= before or budget.exceeded:
                return Run(job, address, start, flow, tuple(ends), relied_on, knows)

    def look_ahead(self, module: str, count: int) -> None:
        """Make the shapes of some functions that a module's init calls."""
        entry = self.entry(module, "init")
        if entry is not None:
            self.shapes.look_ahead(entry, count)

    def give(self, module: str, given: Sequence[Parameter]) -> None:
        """Take what others have found to be set in a module before init."""
        self._parameters[module] = given

    def given(self, module: str) -> Sequence[Parameter]:
        """What was set in a module before init: parameters, and what its own functions write that set some."""
        found = self._parameters.get(module)
        if found is None:
            linked = self.program.modules[module]
            every = [*itertools.islice(parameters(self.program, linked), MAX_PARAMETERS + 1)]
            budget, spans = Budget(allowed=SETTERS), set[tuple[int, int]]()
            for function in dict.fromkeys(setters(self.program, linked)):
                flow = Flow(self.program, self.code, self.shapes, frozenset(), Question(), budget)
                start = State.at_entry()
                flow.calls_to.given_anything(start)
                for end in flow.start(function, start):
                    spans.update((place, place + size) for place, (size, _) in end.memory.items())
                    spans.update(end.open)
                if budget.exceeded or flow.trouble.cut or len(spans) > MAX_PARAMETERS:
                    spans = {(linked.starts[0], linked.end)}
                    break
            every += [
                Parameter("", *span) for span in sorted(spans) if linked.starts[0] < span[1] and span[0] < linked.end
            ]
            if len(every) > MAX_PARAMETERS:
                every = [Parameter("", linked.starts[0], linked.end)]
            found = self._parameters[module] = tuple(every)
        return found

    def is_stale(self, run: Run) -> bool:
        """Whether more is known by now of static calls that it met."""
        return not run.flow.budget.exceeded and _known(self._static, run.flow.calls_to.asked) != run.relied_on


def _known(static: Mapping[int, set[int | None]], trampolines: Iterable[int]) -> frozenset[tuple[int, int | None]]:
    return frozenset((one, target) for one in trampolines for target in static.get(one, ()))
