"""Status words, findings and the verdict: what every stage says, in one form.

The words are KCIDB's (https://docs.kernelci.org/kcidb/): FAIL blames the kernel, ERROR says that
the test could not judge, MISS that the harness or the host failed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from kbuild.versions import KernelRange


class Status(StrEnum):
    """An outcome. Declared worst first; `worst()` relies on this order."""

    FAIL = "FAIL"
    ERROR = "ERROR"
    MISS = "MISS"
    PASS = "PASS"
    DONE = "DONE"
    SKIP = "SKIP"

    @property
    def counts(self) -> bool:
        """Whether a finding with this outcome counts against what was judged; the others inform."""
        return self in (Status.FAIL, Status.ERROR, Status.MISS)


_RANK = {status: rank for rank, status in enumerate(Status)}

RUN_OF = "@"
"""Between an order's id and what tells one of its runs from the others: `mmu-parameters@kvm.tdp_mmu=0`."""

_NUMBERED = re.compile(r"(?:page-)?[0-9]+")


def place_of(order: str) -> str:
    """The order's run by its name; but the order alone where that is a number.

    Runs of a sweep are numbered by the allocation, or by the page, that fails, and another guest makes some more or
    fewer of them.
    """
    name, _, run = order.partition(RUN_OF)
    return name if _NUMBERED.fullmatch(run) else order


EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of some outcomes; of none, SKIP, for nothing was judged."""
    return min(statuses, key=_RANK.__getitem__, default=Status.SKIP)


def exit_status(status: Status) -> int:
    """The exit status of a task whose verdict is `status`.

    SKIP is 3: where everything was skipped nothing was judged, and that must not look like a pass.
    """
    match status:
        case Status.FAIL:
            return 10
        case Status.PASS | Status.DONE:
            return 0
        case _:
            return 3


class Finding(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One fact that counts for or against, with its evidence.

    `id` is `stage:kind:subject:cause` and the same in every run: no address, time or path of this
    machine may be part of it. FAIL, ERROR and MISS count; the others inform: a rule that is kept is a PASS.
    """

    id: str
    status: Status
    message: str
    """One line: what, where (file:line where there is one)."""
    evidence: tuple[str, ...] = ()
    """Lines that show it: of the log, of the compiler, of a transcript."""
    module: str | None = None
    file: str | None = None
    line: int | None = None
    option: str | None = None
    """The compiler option that made the warning, such as `-Wunused-variable`."""
    rule: str | None = None
    answer: str | None = None
    witness: tuple[str, ...] = ()
    host: str | None = None
    order: str | None = None
    step: int | None = None
    """The step's number in the order, from 1."""
    reproduce: str | None = None
    """A command that shows it again."""
    known: str | None = None
    """The reason of the known finding that this is; then it is shown and not counted."""
    expired: str | None = None
    """Until when it was known, and why: it counts again."""

    @property
    def counts(self) -> bool:
        """Whether it counts against what was judged: one that is declared does not, be it without a reason."""
        return self.status.counts and self.known is None


def finding_id(stage: str, kind: str, subject: str, cause: str) -> str:
    """A finding's stable id. Colons and blanks inside a part would move its borders: they become `_`."""
    return ":".join(re.sub(r"[:\s]+", "_", part) for part in (stage, kind, subject, cause))


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finding that a profile declares with a reason."""

    finding: str
    """The finding's id; `*` and `?` do not cross a colon."""
    reason: str
    """Why it is no news, for whoever reads the verdict."""
    kernels: KernelRange = msgspec.field(default_factory=KernelRange)
    """In which it is known; absent: all."""
    expires: datetime.date | None = None
    """From the day after on it counts again."""
    owner: str | None = None
    """Who sees to it that it goes."""

    def matches(self, finding: Finding) -> bool:
        """Whether it is this finding."""
        return self.matches_id(finding.id)

    def matches_id(self, name: str) -> bool:
        """Whether a finding of this id is it."""
        pattern = re.escape(self.finding).replace(r"\*", "[^:]*").replace(r"\?", "[^:]")
        return re.fullmatch(pattern, name) is not None

    @property
    def why(self) -> str:
        """The reason, with the owner where there is one."""
        return f"{self.reason} [{self.owner}]" if self.owner else self.reason


def mark_known(
    findings: Sequence[Finding], known: Sequence[Known], kernel: str, today: datetime.date
) -> tuple[list[Finding], list[Known]]:
    """Mark the findings that are known for this kernel version, and those that were until a day that is past.

    Returns all findings, and the declarations that hold for this kernel and did not occur, which a rule that is kept
    after all did not either. Whether they were looked for at all is the caller's to know.
    """
    declared = [k for k in known if kernel in k.kernels]
    current = [k for k in declared if k.expires is None or today <= k.expires]
    expired = [k for k in declared if k not in current]
    marked: list[Finding] = []
    seen: set[str] = set()
    for finding in findings:
        kept = finding.status in (Status.PASS, Status.SKIP)
        match = None if kept else next((k for k in current if k.matches(finding)), None)
        if match is not None:
            seen.add(match.finding)
            finding = msgspec.structs.replace(finding, known=match.why)
        elif not kept and (past := next((k for k in expired if k.matches(finding)), None)):
            finding = msgspec.structs.replace(finding, expired=f"{past.expires}: {past.why}")
        marked.append(finding)
    return marked, [k for k in current if k.finding not in seen]


def verdict(findings: Iterable[Finding], results: Iterable[Status]) -> Status:
    """The worst outcome of all findings that count and of the results of what was judged."""
    return worst([*(f.status for f in findings if f.known is None), *results])


def to_json(value: Any) -> bytes:
    """A msgspec struct, or data that holds some, as JSON."""
    return msgspec.json.encode(value, enc_hook=str)
