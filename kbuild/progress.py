"""How a run tells of its progress, without knowing who watches: a terminal, a CI log, nobody."""

from __future__ import annotations

from typing import Protocol

from kbuild.outcome import Status
from kbuild.record import Stage


class Reporter(Protocol):
    """Somebody who watches. Calls come from several threads."""

    def begin(self, stage: str) -> None:
        """A stage begins."""

    def progress(self, stage: str, done: int, expected: int | None, what: str, left: float | None) -> None:
        """So many commands of so many are done; `left` is an estimate in seconds."""

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """A load order begins (`status` None) or ended on a host."""

    def boot(self, host: str, seconds: float, usual: float | None) -> None:
        """A host boots, for so many seconds now; `usual` are those that it takes as a rule. Several times a second."""

    def end(self, stage: Stage) -> None:
        """A stage ended."""


class Silent:
    """Nobody watches."""

    def begin(self, stage: str) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, expected: int | None, what: str, left: float | None) -> None:
        """Nothing."""

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """Nothing."""

    def boot(self, host: str, seconds: float, usual: float | None) -> None:
        """Nothing."""

    def end(self, stage: Stage) -> None:
        """Nothing."""
