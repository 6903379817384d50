"""What init code leaves in memory that stays: pointers to functions and data of the init part, wherever from.

Init data that is copied into what stays counts as staying: kvm_ops_update() copies the vendor's table, and puts its
functions into static calls. Asked of the states in which init returns, so that it costs nothing while it is followed;
only where something is found, it is followed once more to tell who put it there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from kbuild.elf.code.calls import STATIC_CALL_UPDATE, Call
from kbuild.elf.code.decode import RAX
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Question, Run, Runs
from kbuild.elf.code.state import State
from kbuild.elf.code.values import Value, is_errno
from kbuild.elf.findings import new_finding
from kbuild.elf.names import plain_name
from kbuild.elf.places import Places
from kbuild.outcome import Finding, Status

RULE = "lifetime-kept"
_POINTER = 8
_MAX_CHAIN = 12


@dataclass(frozen=True)
class Kept:
    """A pointer to the init part, in memory that stays."""

    place: int
    """Its address; of a static call the trampoline's."""
    static: bool
    to: int
    sure: bool
    """It is there whenever init returns so; else it may be something else on some ways."""


def kept(runs: Runs, run: Run) -> list[Kept]:
    """What is left when the init that was run has returned, and not failed."""
    found: dict[tuple[int, bool, int], bool] = {}
    for state in run.ends:
        result = state.registers[RAX]
        if result is not None and is_errno(state.ranges(result)):
            continue
        for place, (size, value) in state.memory.items():
            if size == _POINTER and _stays(runs.program, place):
                for to, sure in _pointers(runs.program, state, value):
                    found[place, False, to] = found.get((place, False, to), False) or sure
        for place, value in state.static.items():
            for to, sure in _pointers(runs.program, state, value):
                found[place, True, to] = found.get((place, True, to), False) or sure
    return [Kept(*key, sure) for key, sure in sorted(found.items())]


def _pointers(program: Program, state: State, value: Value) -> Iterator[tuple[int, bool]]:
    """Addresses in an init part that a value is for sure, or may be, where ways were joined."""
    ranges = state.ranges(value)
    for low, high in ranges:
        if low == high and (place := program.place(low)) is not None and place[1].part == "init":
            yield low, len(ranges) == 1


def _stays(program: Program, address: int) -> bool:
    place = program.place(address)
    return place is not None and place[1].part != "init"


class _Trace(Question):
    """Who stores, or puts into a static call, what was found; the last one on each way that did."""

    def __init__(self, found: Sequence[Kept]) -> None:
        self._places = {one.place for one in found if not one.static}
        self._flow: Flow | None = None
        self.chains: dict[int, tuple[int, ...]] = {}
        """By places: the instruction, and the calls that led to it, the innermost one first."""

    def begin(self, flow: Flow, first_mark: int) -> None:  # noqa: ARG002
        self._flow = flow
        self.chains.clear()

    def extent(self) -> tuple[int, int] | None:
        return (min(self._places), max(self._places) + _POINTER) if self._places else None

    def accessed(self, state: State, what: str, start: int, end: int) -> None:  # noqa: ARG002
        if what == "store" and start in self._places:
            self.chains[start] = self._chain()

    def entered(self, state: State, call: Call) -> None:  # noqa: ARG002
        if call.name is not None and call.name.symbol == STATIC_CALL_UPDATE and isinstance(call.arguments[1], int):
            self.chains[call.arguments[1]] = self._chain()

    def _chain(self) -> tuple[int, ...]:
        assert self._flow is not None
        chain = [self._flow.op.ip] if self._flow.op is not None else []
        frame = self._flow.frame
        while frame is not None and frame.site and len(chain) < _MAX_CHAIN:
            chain.append(frame.site)
            frame = frame.parent
        return tuple(chain)


def kept_findings(runs: Runs, ran: Collection[Run]) -> Iterator[Finding]:
    """A finding for each object and what of the init part it keeps; `ran`: runs of modules' init."""
    places = Places(runs.program)
    for run in ran:
        found = kept(runs, run)
        if not found:
            continue
        trace = _Trace(found)
        runs.run(Job(run.job.module, run.job.entry, trace))
        told: dict[str, tuple[Kept, str, list[str]]] = {}
        for one in found:
            name, what = runs.program.name(one.place), places.at(one.to)
            holder, there = name.symbol if name is not None else f"{one.place:#x}", places.told(one.place)
            to = what.name.symbol if what is not None else f"{one.to:#x}"
            how = "leads to" if one.static else "points to"
            lines = [f"{there} {how} {places.told(one.to)} when init has returned{'' if one.sure else ', or may'}"]
            if chain := trace.chains.get(one.place):
                lines.append(f"put there at {' < '.join(places.told(each) for each in chain)}")
            cause = f"{plain_name(holder)}-{plain_name(to)}"
            before = told.get(cause)
            sure = before[0] if before is not None and before[0].sure else one
            told[cause] = sure, f"{holder} {how} {to}", [*(before[2] if before is not None else []), *lines]
        for cause, (one, text, lines) in told.items():
            harm = (
                "which is gone when init has returned" if one.sure else "or may, which is gone when init has returned"
            )
            text = f"{run.job.module}: init leaves behind that {text}, {harm}"
            yield new_finding(RULE, Status.FAIL if one.sure else Status.ERROR, run.job.module, cause, text, lines)
