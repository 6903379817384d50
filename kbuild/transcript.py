"""What came back from one load order on one host, in the form that records keep and reports read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kbuild.outcome import Finding, Status
from kbuild.traces import Observation


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of the kernel log. From the console (a guest that died), only `text` is certain."""

    text: str
    seq: int | None = None
    us: int | None = None
    """Microseconds since the kernel's start."""
    level: int | None = None
    caller: str | None = None
    source: str = "kmsg"
    """`kmsg`; `console` where the guest could no longer send its log; `cut` for a line that counts what was cut."""


FIRST_LINES, FIRST_CHARACTERS = 2000, 192 << 10
LAST_LINES, LAST_CHARACTERS = 500, 64 << 10


def bounded(lines: Sequence[LogLine], more: int = 0) -> list[LogLine]:
    """Of too many lines the beginning and the end, and between them one that counts what was cut.

    The first report of a crash is the one that counts, and the last lines say how it ended. `more` lines are missing
    already. All that came is in the boot's own logs.
    """
    first = _fitting(lines, FIRST_LINES, FIRST_CHARACTERS)
    last = _fitting(lines[: first - 1 if first else None : -1], LAST_LINES, LAST_CHARACTERS)
    cut = len(lines) - first - last + more
    if not cut:
        return [*lines]
    said = LogLine(f"[kvm-kbuild: {cut} lines were cut here; agent.log and console.log have what came]", source="cut")
    return [*lines[:first], said, *lines[len(lines) - last :]]


def _fitting(lines: Sequence[LogLine], count: int, characters: int) -> int:
    """How many of the lines, from the first one on, are within both bounds."""
    used = 0
    for number, line in enumerate(lines):
        used += len(line.text)
        if number >= count or used > characters:
            return number
    return len(lines)


class StepResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One step as it went."""

    number: int
    """From 1; steps that were added (dependencies, their unloading) count as well."""
    action: str
    module: str | None = None
    params: dict[str, str] = {}
    added: str | None = None
    """Why this step was done although the order does not name it."""
    errno: str | None = msgspec.field(default=None)
    """The system call's errno by name, null for success; meaningless unless `status` is PASS or FAIL."""
    expected: str | None = None
    why: str | None = None
    """What the expectation rests on: file and function of the kernel."""
    status: Status
    reason: str | None = None
    """One line, where the status is not PASS."""
    seconds: float = 0.0
    """In the guest, by its own clock."""
    detail: dict[str, str] = {}
    """What the action adds: the guest's answer, differences of the footprint."""
    seen: list[str] | None = None
    """What of the host's state it changed, where each step is looked at: `+ new`, `- gone`, `* other = old -> new`."""
    output: list[str] = []
    """What a program printed that was run, its beginning and its end."""
    log: list[LogLine] = []
    """Bounded, as is the console: see `bounded()`."""
    log_lost: int = 0
    """Records that the kernel overwrote or that were over the limit."""


class Transcript(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that came back from one order on one host."""

    host: str
    order: str
    """Its id; of an order that is run in several ways `ORDER@RUN`."""
    status: Status
    title: str = ""
    reason: str | None = None
    """One line, where the status is not PASS."""
    boot: int = 1
    """Orders with the same number shared a boot, in the order of `position`."""
    position: int = 1
    seconds: float = 0.0
    steps: list[StepResult] = []
    findings: list[Finding] = []
    observed: list[Observation] = []
    """How rules fared in what was traced."""
    console: list[str] = []
    """The console's lines during this order, the evidence when the guest died."""
    folder: str | None = None
    """Of the boot, in the run's folder: command, console, agent's line."""
    reproduce: str | None = None
