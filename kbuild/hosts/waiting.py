"""How long somebody waits for a host that others use, and who hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Waiting:
    """One wait, which begins now."""

    def __init__(
        self,
        seconds: float,
        tell: Callable[[str], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """`tell` hears for whom it is, once for each; `cancelled` is asked whether to go on."""
        self.seconds = seconds
        self.cancelled = cancelled
        self._until = time.monotonic() + seconds
        self._tell = tell
        self._told: str | None = None

    @property
    def left(self) -> float:
        """Seconds; 0 when the time is up."""
        return max(0.0, self._until - time.monotonic())

    def tell(self, reason: str) -> None:
        """Say why it goes on."""
        if reason != self._told:
            self._told = reason
            self._tell(reason)

    def ended(self, reason: str) -> str | None:
        """Why it does not go on, for a person; None: it does."""
        if self.cancelled():
            return f"interrupted while it waited: {reason}"
        if self.left:
            return None
        return f"{reason}, and was waited for {self.seconds:.0f} s" if self.seconds else reason
