"""How long a process was kept from running, by others that wanted the CPU or by a stop signal."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

LOOK_S = 0.05
"""More often it is not looked at: each look reads some files in /proc."""


class Starved:
    """Adds up what /proc says of one process. To be asked several times a second."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)
        self._delays: dict[str, float] = {}
        """Of each thread, in seconds."""
        self._stopped = 0.0
        self._was_stopped = False
        self._looked = time.monotonic()

    def seconds(self) -> float:
        """Of wall clock. Of several threads the one counts that waited longest."""
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            stopped = self._is_stopped()
            # Stopped at both ends of a moment that is short: all of it. At one end: half of it.
            self._stopped += (now - self._looked) * (stopped + self._was_stopped) / 2
            self._was_stopped, self._looked = stopped, now
            self._read_delays()
        return max(self._delays.values(), default=0.0) + self._stopped

    def _is_stopped(self) -> bool:
        """State T or t (Documentation/filesystems/proc.rst): the word behind the name in parentheses."""
        with contextlib.suppress(OSError, IndexError):
            return (self._folder / "stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return False

    def _read_delays(self) -> None:
        """Nanoseconds that each thread was ready and waited for a CPU (Documentation/scheduler/sched-stats.rst)."""
        with contextlib.suppress(OSError):
            for task in (self._folder / "task").iterdir():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    self._delays[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
