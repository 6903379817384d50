"""How a run tells of its progress, without knowing who watches: a terminal, a CI log, nobody."""

from __future__ import annotations

from typing import Protocol

import msgspec

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

    def waits(self, host: str, reason: str) -> None:
        """A host cannot be had yet, and is waited for; told once for each reason."""

    def end(self, stage: Stage) -> None:
        """A stage ended."""


class Prefixed:
    """Tells of one of several runs that are at work: its name stands before what is told."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name

    def begin(self, stage: str) -> None:
        """As it is: a bar has no room for a name until there is progress."""
        self._reporter.begin(stage)

    def progress(self, stage: str, done: int, expected: int | None, what: str, left: float | None) -> None:
        """With the name before what is done."""
        self._reporter.progress(stage, done, expected, f"{self._name} {what}", left)

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """With the name before the order's."""
        self._reporter.order(host, f"{self._name} {order}", status, reason)

    def boot(self, host: str, seconds: float, usual: float | None) -> None:
        """As it is."""
        self._reporter.boot(host, seconds, usual)

    def waits(self, host: str, reason: str) -> None:
        """As it is."""
        self._reporter.waits(host, reason)

    def end(self, stage: Stage) -> None:
        """With the name before the summary."""
        reason = stage.reason and f"{self._name}: {stage.reason}"
        self._reporter.end(msgspec.structs.replace(stage, summary=f"{self._name}: {stage.summary}", reason=reason))


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

    def waits(self, host: str, reason: str) -> None:
        """Nothing."""

    def end(self, stage: Stage) -> None:
        """Nothing."""
