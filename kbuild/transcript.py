"""What came back from one load order on one host, in the form that records keep and reports read."""

from __future__ import annotations

import msgspec

from kbuild.outcome import Finding, Status


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of the kernel log. From the console (a guest that died), only `text` is certain."""

    text: str
    seq: int | None = None
    us: int | None = None
    """Microseconds since the kernel's start."""
    level: int | None = None
    caller: str | None = None
    source: str = "kmsg"
    """`kmsg`, or `console` where the guest could no longer send its log."""


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
    log: list[LogLine] = []
    log_lost: int = 0
    """Records that the kernel overwrote or that were over the limit."""


class Transcript(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that came back from one order on one host."""

    host: str
    order: str
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
    console: list[str] = []
    """The console's lines during this order, the evidence when the guest died."""
    folder: str | None = None
    """Of the boot, in the run's folder: command, console, agent's line."""
    reproduce: str | None = None
