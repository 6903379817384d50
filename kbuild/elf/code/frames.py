"""A function that is being run: where it stands, which of its blocks are still to be looked at, and what was seen."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from kbuild.elf.code.budget import Budget, size_of
from kbuild.elf.code.graph import Shape
from kbuild.elf.code.state import STACK, Node, State

_LAST = 1 << 30
"""The place of a block that a function's shape does not have: behind all others."""


@dataclass
class Frame:
    """A function that is being run."""

    entry: int
    shape: Shape
    top: int
    """Its stack's objects are below: behind them are the registers that it keeps for its caller."""
    parent: Frame | None
    depth: int
    site: int
    """The call that it was entered by; 0: the kernel's."""
    begin: int = STACK
    """Where the stack ended when it was called."""
    watched: bool = False
    """The observer is told of its blocks."""

    def runs(self, entry: int) -> bool:
        """Whether that function is being run already."""
        frame: Frame | None = self
        while frame is not None:
            if frame.entry == entry:
                return True
            frame = frame.parent
        return False


@dataclass
class Trouble:
    """What stood in the way of knowing all."""

    unresolved: Counter[int] = field(default_factory=Counter)
    """Calls and jumps by address, whose target is not known."""
    recursive: Counter[int] = field(default_factory=Counter)
    cut: Counter[int] = field(default_factory=Counter)
    """Blocks that came to no end."""
    given_up: int | None = None
    """A block, also among these: from there on nothing was looked at, for it had become too much."""


class Waiting:
    """Blocks of one run of a function: what is to be looked at, and what was."""

    def __init__(self, shape: Shape, budget: Budget) -> None:
        self.shape = shape
        self._budget = budget
        self._held = 0
        self.seen: dict[tuple[int, Node], tuple[State, int, int]] = {}
        self.visited: set[int] = set()
        self.forks = 0
        """By how many more than one the ways have become, where they did, in all."""
        self._waiting: dict[int, list[State]] = {}
        self._sizes: dict[int, int] = {}
        """Of what waits, by the same addresses."""
        self._queue: list[tuple[int, int]] = []

    def hold(self, state: State, instead: State | None) -> None:
        """Count a state that is kept until the function has been run."""
        more = size_of(state) - (size_of(instead) if instead is not None else 0)
        self._held += more
        self._budget.held += more

    def end(self) -> None:
        """Nothing is kept any more."""
        self._budget.held -= self._held

    def add(self, address: int, state: State) -> None:
        """Look at a block, coming with this state."""
        size = size_of(state)
        self._budget.held += size
        self.forks += 1
        there = self._waiting.get(address)
        if there is None:
            self._waiting[address] = [state]
            self._sizes[address] = size
            heapq.heappush(self._queue, (self.shape.order.get(address, _LAST), address))
        else:
            there.append(state)
            self._sizes[address] += size

    def next(self) -> int | None:
        """The block that comes first of those that wait."""
        return heapq.heappop(self._queue)[1] if self._queue else None

    def take(self, address: int) -> tuple[list[State], int]:
        """The states with which it waits, and how large they are together."""
        size = self._sizes.pop(address)
        self._budget.held -= size
        return self._waiting.pop(address), size
