"""What was called from where, collected while a run goes on: a call once for each chain of calls that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import INDIRECT_CALL, INDIRECT_JUMP, TARGET, Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.link import Program
from kbuild.elf.code.machine import OWN
from kbuild.elf.code.results import thunk_register
from kbuild.elf.code.runs import Question
from kbuild.elf.code.state import State
from kbuild.elf.code.values import Value
from kbuild.elf.rules.events import given
from kbuild.elf.rules.orders import RuleEvent
from kbuild.elf.tree.arguments import Given

NO_CALLS = frozenset({"__fentry__"})
"""Called by each function's first instruction, for the tracer."""
Why = Literal["target not known", "recursion or too deep", "no code there"]


@dataclass(slots=True)
class Seen:
    """A call in its context, over all ways."""

    site: int
    call: Call | None
    """None: not resolved, or the entry."""
    why: Why | None = None
    """It was not resolved."""
    pointer: int | None = None
    """Of one that was not resolved: where its target was read from, if that is known."""
    candidate: bool = True
    """On no way it was known to lead here."""
    given: Given = field(default_factory=Given)
    events: dict[tuple[str, str, str], None] = field(default_factory=dict)
    inside: dict[tuple[int, int | None], Seen] = field(default_factory=dict)
    """The calls that it makes, by place and target."""


class Collector(Question):
    """Collects one entry's calls. Of a run that is done again, only the last one counts."""

    def __init__(self, code: Code, events: Sequence[RuleEvent] = ()) -> None:
        """`events`: of rules; they are noted where they happen."""
        self._code = code
        self._program: Program = code.program
        self._by_target: dict[object, list[RuleEvent]] = {}
        for event in events:
            for target in event[2].functions | event[2].kernel:
                self._by_target.setdefault(target, []).append(event)
        self._accesses = [event for event in events if event[2].objects]
        self._flow: Flow | None = None
        self.root = Seen(0, None)
        self._chain = [self.root]
        """What is being run, by depth."""
        self._recursions: dict[int, int] = {}

    def begin(self, flow: Flow, first_mark: int) -> None:  # noqa: ARG002
        self._flow = flow
        self.root = Seen(0, None)
        self._chain = [self.root]
        self._recursions = {}

    def extent(self) -> tuple[int, int] | None:
        places = [place for _, _, matches in self._accesses for place in matches.objects]
        return (min(start for start, _ in places), max(end for _, end in places)) if places else None

    def entered(self, state: State, call: Call) -> None:
        if call.name is not None and call.name.symbol in NO_CALLS:
            return
        if call.given_to is None:
            caller, depth = self._chain[call.depth], call.depth
        else:
            depth = call.given_to.depth
            caller = self._chain[depth].inside[call.given_to.site, call.given_to.target]
        seen = caller.inside.get((call.site, call.target))
        if seen is None:
            seen = caller.inside[call.site, call.target] = Seen(call.site, call)
        seen.candidate = seen.candidate and call.candidate
        seen.given.meet(state, call)
        for rule, which, matches in self._by_target.get(
            call.name.symbol if call.of_kernel and call.name else call.target, ()
        ):
            if matches.calls(call) and given(matches.event, self._program, call) is not False:
                seen.events[rule, which, str(matches)] = None
        if not call.of_kernel:
            del self._chain[depth + 1 :]
            self._chain.append(seen)

    def accessed(self, state: State, what: str, start: int, end: int) -> None:  # noqa: ARG002
        what = what.removeprefix(OWN)
        for rule, which, matches in self._accesses:
            if what == matches.event.kind and matches.covers(start, end):
                self._running().events[rule, which, str(matches)] = None

    def lost(self, state: State, site: int) -> None:
        assert self._flow is not None
        why: Why = "target not known"
        recursions = self._flow.trouble.recursive.get(site, 0)
        if recursions > self._recursions.get(site, 0):
            why = "recursion or too deep"
        elif self._code.block(site) is None:
            why = "no code there"
        self._recursions[site] = recursions
        inside = self._running().inside
        if (site, None) not in inside:
            inside[site, None] = Seen(site, None, why, self._pointer(state, site), candidate=False)

    def _running(self) -> Seen:
        assert self._flow is not None
        frame = self._flow.frame
        return self._chain[frame.depth if frame is not None else 0]

    def _pointer(self, state: State, site: int) -> int | None:
        """What an unresolved call is to: the place of its pointer, or where it jumps."""
        assert self._flow is not None
        op = next(iter(block.ops), None) if (block := self._code.block(site)) is not None else None
        if op is None or not op.operands:
            return None
        machine = self._flow.machine
        if op.operands[0].kind == TARGET:
            target: Value = op.operands[0].number
            name = self._program.kernel_name(op.operands[0].number)
            number = thunk_register(name.symbol) if name is not None else None
            if number is not None:
                target = machine.register(state, number)
        elif op.flow in (INDIRECT_CALL, INDIRECT_JUMP):
            target = machine.get(state, op.operands[0], 8)
        else:
            return None
        if isinstance(target, int):
            return target
        origin: Any = self._flow.symbols.origin[target[0]]
        if isinstance(origin, tuple) and origin[0] == "memory" and isinstance(origin[1], int):
            return origin[1]
        return None
