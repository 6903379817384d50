"""How long an answer may take: measured in time in which the emulator could run, bounded in time that passed."""

from __future__ import annotations

import time

from kbuild.hosts.base import Machine

WALL_TIMES = 20
"""So many times a limit may pass by the clock, where the emulator does not get to run; then the host is given up."""
POLL_S = 0.1
"""How often it is looked whether the emulator runs: the system counts its waiting, but not its being stopped."""


class Patience:
    """Time since a command was sent, and since the guest was heard. A suspended computer's clock stands still."""

    def __init__(self, machine: Machine, limit: float, silent: float) -> None:
        """Both in seconds: for all of it, and without a byte from the guest."""
        self._machine = machine
        self.limit = limit
        self.silent = silent
        self.start()

    def start(self) -> None:
        """From here on all of it counts anew: a part of the command is done."""
        self._start = self._heard = self._now()

    def _now(self) -> tuple[float, float]:
        """Seconds in which the emulator could run, and seconds by the clock that no other limit is for."""
        now = time.monotonic()
        return now - self._machine.starved(), now - self._machine.excused()

    def heard(self) -> None:
        """The guest said something."""
        self._heard = self._now()

    @property
    def seconds(self) -> float:
        """Since the start, in which the emulator could run."""
        return max(0.0, self._now()[0] - self._start[0])

    @property
    def too_long(self) -> bool:
        """All of it takes longer than it may."""
        return self.seconds >= self.limit

    @property
    def starved(self) -> bool:
        """The emulator did not get to run, for much longer than a limit."""
        _, now = self._now()
        return now - self._start[1] >= self.limit * WALL_TIMES or now - self._heard[1] >= self.silent * WALL_TIMES

    @property
    def left(self) -> float:
        """Seconds to the first of the limits; not positive where one is reached."""
        fair, _ = self._now()
        return min(self._start[0] + self.limit, self._heard[0] + self.silent) - fair
