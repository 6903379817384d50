"""What an analysis may cost: files are untrusted, and a small one can ask for any number of ways, joins and copies.

Work is counted, not time, so that the answer is the same on every machine. A unit is about an eighth of a microsecond.
"""

from __future__ import annotations

from kbuild.elf.code.state import State

INSTRUCTION = 32
"""What doing one costs."""
PLACE = 20
"""What looking at a place costs that two states may differ in."""
COPIED = 4
"""Places that are copied for the cost of one unit."""
LEAST_WORK = 16_000_000
"""What is always allowed for all runs from one entry: two seconds."""
WORK_PER_BYTE = 16
"""What is allowed besides, for each byte of code that it can reach: two seconds for each MB."""
MOST_WORK = 100_000_000
"""However much code there is."""
SETTERS = 400_000
"""What following a module's own functions may cost that set parameters; behind it, they may have set anything in it."""
MAX_HELD = 4_000_000
"""Places in all states that are kept at once: some 250 MB. KVM's modules have 160,000."""


class Budget:
    """Of one entry."""

    def __init__(self, code: int = 0, allowed: int | None = None) -> None:
        """`code`: how many bytes of it there are."""
        self.allowed = min(LEAST_WORK + WORK_PER_BYTE * code, MOST_WORK) if allowed is None else allowed
        self.work = 0
        self.held = 0
        self.exceeded = False

    def spend(self, work: int) -> bool:
        """Whether so much more is allowed; not any more, once it was not."""
        self.work += work
        self.exceeded = self.exceeded or self.work > self.allowed or self.held > MAX_HELD
        return not self.exceeded


def size_of(state: State) -> int:
    """Places that it knows of."""
    return 16 + 4 * len(state.open) + len(state.memory) + len(state.stack) + len(state.behind) + len(state.known)
