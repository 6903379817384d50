"""What an analysis may cost: files are untrusted, and a small one can ask for any number of ways, joins and copies.

Work is counted, not time, so that the answer is the same on every machine.
"""

from __future__ import annotations

from kbuild.elf.code.state import State

INSTRUCTION = 32
"""What doing one costs, in places of a state that are looked at."""
LEAST_WORK = 20_000_000
"""What is always allowed for all runs from one entry: some seconds."""
WORK_PER_BYTE = 2000
"""What is allowed besides, for each byte of code: so it takes time in proportion to the module, at the very most."""
MAX_HELD = 16_000_000
"""Places in all states that are kept at once: about a GB."""


class Budget:
    """Of one entry."""

    def __init__(self, code: int = 0) -> None:
        """`code`: how many bytes of it there are."""
        self._allowed = LEAST_WORK + WORK_PER_BYTE * code
        self.work = 0
        self.held = 0
        self.exceeded = False

    def spend(self, work: int) -> bool:
        """Whether so much more is allowed; not any more, once it was not."""
        self.work += work
        self.exceeded = self.exceeded or self.work > self._allowed or self.held > MAX_HELD
        return not self.exceeded


def size_of(state: State) -> int:
    """What copying a state costs, or joining it."""
    return 16 + len(state.memory) + len(state.stack) + len(state.behind) + len(state.known)
