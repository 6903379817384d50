"""Progress while a run goes on: bars on a terminal, one line per stage and order elsewhere."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from kbuild.outcome import Status
from kbuild.progress import Reporter
from kbuild.report import clean
from kbuild.report.terminal import STYLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

    from kbuild.record import Stage


LONG_BOOT_S = 10.0
"""A boot that takes longer is worth a line in a log: of a distribution's kernel it can take minutes."""


def _boots(seconds: float, usual: float | None) -> str:
    return f"boots, {seconds:.0f}" + (f" of about {usual:.0f} s" if usual else " s")


class Lines:
    """One line when something ended; for logs."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._long_boots: set[str] = set()
        self._lock = threading.Lock()

    def _say(self, text: str) -> None:
        with self._lock:
            print(clean.all_visible(text), file=self._stream, flush=True)

    def begin(self, stage: str) -> None:
        """Nothing: the line comes at the end."""

    def progress(self, stage: str, done: int, expected: int | None, what: str, left: float | None) -> None:
        """Nothing: one line per stage."""

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """A line when it ended."""
        if status is not None:
            self._say(f"{status:5} load       {host} {order}{f': {reason}' if reason else ''}")

    def boot(self, host: str, seconds: float, usual: float | None) -> None:
        """A line for one that takes long."""
        if seconds < LONG_BOOT_S:
            self._long_boots.discard(host)
        elif host not in self._long_boots:
            self._long_boots.add(host)
            self._say(f"{'':5} load       {host} {_boots(seconds, usual)}")

    def waits(self, host: str, reason: str) -> None:
        """A line."""
        self._say(f"{'':5} load       {host} waits: {reason}")

    def end(self, stage: Stage) -> None:
        """A line, unless the user's input was at fault: the error that follows says it all."""
        if stage.status is not None:
            self._say(f"{stage.status:5} {stage.name:10} {stage.seconds:6.1f} s  {stage.reason or stage.summary}")


class Bars:
    """Bars that move; what ended stays above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._stages: set[str] = set()
        self._lock = threading.Lock()

    def _say(self, status: Status, text: str) -> None:
        """A line above the bars. It comes from elsewhere in part: nothing in it is markup."""
        from rich.text import Text

        self._progress.console.print(Text.assemble((f"{status:5}", STYLES[status]), " ", text), soft_wrap=True)

    def begin(self, stage: str) -> None:
        """A bar that shows that something goes on."""
        with self._lock:
            self._stages.add(stage)
            self._tasks[stage] = self._progress.add_task(stage, total=None, what="")

    def progress(self, stage: str, done: int, expected: int | None, what: str, left: float | None) -> None:
        """Move the bar."""
        with self._lock:
            if stage in self._tasks:
                # Another configuration may have more commands than the last one: never more than full.
                total = max(expected, done) if expected else None
                count = f"{done}/{total}" if total else str(done)
                ending = f"  about {left:.0f} s left" if left is not None else ""
                text = f"{count}{ending}  {what}"[:70]
                self._progress.update(self._tasks[stage], completed=done, total=total, what=text)

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """A bar for each host, a line for each order that ended."""
        with self._lock:
            if status is None:
                self._show(host, order)
            else:
                self._say(status, f"{host:12} {order}" + (f": {reason}" if reason else ""))

    def boot(self, host: str, seconds: float, usual: float | None) -> None:
        """On the host's bar."""
        with self._lock:
            self._show(host, _boots(seconds, usual))

    def waits(self, host: str, reason: str) -> None:
        """A line, for a bar has no room for all of it."""
        with self._lock:
            self._show(host, "waits")
            self._progress.console.print(f"{'':5} {host:12} waits: {reason}", soft_wrap=True, markup=False)

    def _show(self, host: str, what: str) -> None:
        if host not in self._tasks:
            self._tasks[host] = self._progress.add_task(host, total=None, what="")
        self._progress.update(self._tasks[host], what=what[:70])

    def end(self, stage: Stage) -> None:
        """Its line; bars that belong to it go."""
        with self._lock:
            hosts = [name for name in self._tasks if name not in self._stages] if stage.name == "load" else []
            for name in [*hosts, stage.name]:
                if name in self._tasks:
                    self._progress.remove_task(self._tasks.pop(name))
            if stage.status is not None:
                self._say(stage.status, f"{stage.name:12} {stage.seconds:6.1f} s  {stage.reason or stage.summary}")


@contextmanager
def live(stream: IO[str] | None = None) -> Iterator[Reporter]:
    """A reporter that fits the stream (standard error by default)."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from kbuild.report.consoles import console_on

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:12}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    with Progress(*columns, console=console_on(stream), transient=True) as progress:
        yield Bars(progress)
