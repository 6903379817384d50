"""A rule on the program at hand, and what a state remembers of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kbuild.elf.code.decode import RAX
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.state import Node, State
from kbuild.elf.code.values import Ranges, intersection
from kbuild.elf.rules.events import Matches
from kbuild.elf.rules.passing import ACTIVE, HAPPENED, HERE, Bodies, Passing
from kbuild.elf.rules.spec import OrderRule


@dataclass
class Asked:
    """A rule on the program at hand, and what the run over all ways has seen of it."""

    rule: OrderRule
    index: int
    first: Matches | None
    then: Matches
    within: Matches | None
    kept: int = 0
    """Times that `then` came when it may."""
    broken: Counter[Node] = field(default_factory=Counter)
    """Where it came too early."""
    perhaps: Counter[int] = field(default_factory=Counter)
    """Calls, or inlined functions, that may be `then`, too early."""
    doubtful: Counter[int] = field(default_factory=Counter)
    """Where `then` came, and it cannot be told whether it may."""
    lost: Counter[int] = field(default_factory=Counter)
    """Calls of which nothing is known, where `then` may not come yet."""
    lost_later: Counter[int] = field(default_factory=Counter)
    """Likewise, where it may."""

    passing: Passing | None = field(init=False)
    """None: no function that it names is inlined."""

    def __post_init__(self) -> None:
        every = (self.first, self.then, self.within)
        first, then, within = (matches.bodies if matches is not None else 0 for matches in every)
        about = self.rule.first
        counts = about is None or (about.success is None and about.arg is None)
        bodies = Bodies(first, counts), Bodies(then, self.rule.then.arg is None, first.bit_count())
        by_access = about is not None and about.kind != "call"
        self.passing = Passing(*bodies, within, by_access) if first | then | within else None

    def anew(self) -> Asked:
        """The same, with nothing seen yet."""
        return Asked(self.rule, self.index, self.first, self.then, self.within)

    def begin(self, index: int) -> None:
        """A run starts, perhaps once more: with nothing seen yet."""
        self.index = index
        self.kept = 0
        for counter in (self.perhaps, self.doubtful, self.lost, self.lost_later):
            counter.clear()
        self.broken.clear()

    def may_come(self, mark: int) -> bool:
        """Whether `then` may come where a state has that mark."""
        return (self.first is None or bool(mark & HAPPENED)) and (self.within is None or bool(mark & (ACTIVE | HERE)))

    @property
    def unnamed(self) -> list[tuple[str, Matches]]:
        """Events of which no name is in any symbol table, nor in debug information as inlined."""
        events = (("first", self.first), ("then", self.then), ("within", self.within))
        return [(name, matches) for name, matches in events if matches is not None and not matches]


def marked(state: State, index: int, set_: int = 0, clear: int = 0) -> None:
    """Change a state's mark for a rule."""
    remark(state, index, (state.marks[index] | set_) & ~clear)


def remark(state: State, index: int, mark: int) -> None:
    """Put another mark in the place of a state's for a rule."""
    if mark != state.marks[index]:
        state.marks = (*state.marks[:index], mark, *state.marks[index + 1 :])


def may_be_zero(state: State) -> bool:
    """Whether a function that has returned may have returned 0, as init does that succeeds."""
    value = state.registers[RAX]
    return value is None or any(low == 0 for low, _ in state.ranges(value))


_RETURNS: dict[str, Ranges] = {"success": ((0, 0),), "error": ((1 << 31, (1 << 32) - 1),)}
"""What an int is then; of a pointer to an error, its lower half."""


def returns(state: State, machine: Machine, how: str) -> bool:
    """Whether a function that has returned may have done so: with `success` (0), or an `error`. Then it is taken to."""
    value = machine.part(machine.register(state, RAX), 4)
    inside = intersection(state.ranges(value), _RETURNS[how])
    if inside and not isinstance(value, int):
        state.learn(value, inside)
    return bool(inside)
