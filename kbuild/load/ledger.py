"""What came of an order: its steps with their logs, and the findings in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kbuild import log
from kbuild.dmesg.classify import Match, classify
from kbuild.dmesg.record import Record
from kbuild.hosts.spec import HostSpec, cpus_of
from kbuild.load.boot import Boot
from kbuild.load.evidence import crash_in, findings_of, from_agent, hang_of, log_lines, records_of, without_answer
from kbuild.load.orders.format import SUCCESS, Expectation
from kbuild.load.orders.plan import Plan, PlannedStep
from kbuild.load.protocol import LogRecord, Result, errno_name
from kbuild.load.request import LoadRequest
from kbuild.load.session import Reply
from kbuild.outcome import RUN_OF, Finding, Status, finding_id, verdict, worst
from kbuild.traces import Observation
from kbuild.transcript import LogLine, StepResult, Transcript, bounded

MAX_EVIDENCE = 20
"""Log lines that go with a finding whose cause the log does not name."""
MAX_RAW = 100
"""Bytes of a broken line that are told."""
MAX_FINDINGS = 50
"""Different findings of one step that are told; what is over is counted in one more."""


@dataclass
class Ledger:
    """Kept by the run of an order while it goes on; `transcript()` at its end."""

    request: LoadRequest
    spec: HostSpec
    boot: Boot
    order: Plan
    steps: list[StepResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    at: PlannedStep | None = None
    """The order's own step that is under way."""
    said: dict[str, str] = field(default_factory=dict)
    """The signatures that the log of the order had so far, each with its first line."""
    observed: list[Observation] = field(default_factory=list)
    """Of rules, in traces."""
    lost: bool = False
    """Records of it are missing."""
    fault: str = ""
    """The call site of an allocation that was made to fail: it is part of each finding's id, in place of the point."""
    _numbers: dict[int, int] = field(default_factory=dict)
    """Of the agent's commands to the index of their step."""
    _kept: dict[int, float] = field(default_factory=dict)
    """Of the same to `Reply.kept_seconds`."""
    _console: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the order in ids of findings: which point of a sweep it is may change from run to run."""
        return f"{self.order.order}{RUN_OF}{self.fault}" if self.fault else self.order.id

    @property
    def next_number(self) -> int:
        """Of the step that will be kept next."""
        return len(self.steps) + 1

    @property
    def failed(self) -> bool:
        """Whether the kernel is to blame for something already."""
        return any(finding.status == Status.FAIL for finding in self.findings)

    def transcript(self) -> Transcript:
        """All of it."""
        bad = [step for step in self.steps if step.status in (Status.FAIL, Status.ERROR, Status.MISS)]
        return Transcript(
            host=self.spec.id,
            order=self.order.id,
            title=self.order.title,
            status=verdict((), [step.status for step in self.steps]),
            reason=bad[0].reason if bad else None,
            boot=self.boot.number,
            position=self.boot.orders,
            seconds=round(sum(step.seconds for step in self.steps), 6),
            steps=self.steps,
            findings=[*map(self._with_fault, self.findings)],
            observed=self.observed,
            console=self._console,
            folder=str(self.boot.folder.relative_to(self.request.folder)),
            reproduce=self.request.again(self.spec.id, self.name),
        )

    def _with_fault(self, finding: Finding) -> Finding:
        """What a failed allocation leads to is another finding than the same without."""
        if not self.fault or finding.id.endswith(f"fault={self.fault}"):
            return finding
        return msgspec.structs.replace(finding, id=f"{finding.id}:fault={self.fault}")

    def keep(
        self,
        result: StepResult,
        reply: Reply,
        expectation: Expectation = SUCCESS,
        *,
        kind: str,
        subject: str | None = None,
        leftovers: Sequence[Finding] = (),
        judged: tuple[list[Match], list[Record]] | None = None,
    ) -> None:
        """Keep a step's result with its log, and find what speaks against the kernel in both.

        `kind` and `subject` are those of the finding where the step itself is one.
        """
        reply.kept = True
        matches, records = judged or self.classified(reply)
        self.lost = self.lost or reply.lost > 0
        subject = subject or result.module or result.action
        place = f"{self.name}/{self.at.place if self.at else 0}-{result.action}"
        expected = expectation.log
        allowed = {*expected.must, *expected.may, *expected.must_not}
        findings = [*leftovers, *self._found(matches, records, subject, _what(result), reply.kept_seconds, allowed)]
        said = self._note(matches, records)
        findings += [
            Finding(
                id=finding_id("load", "log-unwanted", subject, f"{place}/{name}"),
                status=Status.FAIL,
                message=f"{_what(result)}: the log has a line of '{name}' ({expectation.why})",
                evidence=(said[name],),
            )
            for name in expected.must_not
            if name in said
        ]
        findings += [
            Finding(
                id=finding_id("load", "log-missing", subject, f"{place}/{name}"),
                status=Status.FAIL,
                message=f"the log has no line of '{name}' ({expectation.why})",
            )
            # Of a step that went otherwise, that is the finding; of a log that was lost in part, that it was.
            for name in expected.must
            if name not in said and result.status == Status.PASS and not reply.lost
        ]
        named = kind in ("no-answer", "leftover", "selftest", "selftest-crash")
        explained = named and any(f.status == result.status for f in findings)
        if result.status not in (Status.PASS, Status.SKIP) and result.reason and not explained:
            # Where the log names what killed the guest, that is the finding; here the step itself is.
            evidence = tuple(record.text for record in records if record.facility == 0)[-MAX_EVIDENCE:]
            cause = finding_id("load", kind, subject, place)
            findings.append(Finding(id=cause, status=result.status, message=result.reason, evidence=evidence))
        findings = [*told(findings, subject, place), *missing(reply, _what(result), subject, place)]
        reason = result.reason or next((f.message for f in findings if f.status != Status.DONE), None)
        step = msgspec.structs.replace(
            result,
            status=verdict((f for f in findings if f.status != Status.DONE), [result.status]),
            reason=reason,
            detail=result.detail | ({"during": self.at.during} if self.at and self.at.during else {}),
            seconds=(reply.answer.us / 1e6) if isinstance(reply.answer, Result) else round(reply.seconds, 6),
            log=bounded(log_lines(records), reply.console.dropped if reply.end is not None else 0),
            log_lost=reply.lost,
        )
        self._numbers[reply.number] = len(self.steps)
        self._kept[reply.number] = reply.kept_seconds
        self.steps.append(step)
        self._place(findings, step)
        log.get().info("step", action=step.action, module=step.module, errno=step.errno, status=step.status)

    def _found(
        self,
        matches: Sequence[Match],
        records: Sequence[Record],
        subject: str,
        during: str,
        kept: float,
        allowed: Collection[str] = (),
    ) -> list[Finding]:
        """What of the log speaks against the kernel, on this host."""
        return [*findings_of(matches, records, subject, allowed, during, kept, cpus_of(self.spec))]

    def note_seen(self, difference: list[str]) -> None:
        """Of the step that was kept last: what of the host's state it changed."""
        self.steps[-1] = msgspec.structs.replace(self.steps[-1], seen=difference)

    def keep_errno(
        self,
        action: str,
        got: Result,
        reply: Reply,
        expectation: Expectation,
        judged: tuple[Status, str | None],
        *,
        subject: str | None = None,
        **more: Any,
    ) -> None:
        """Keep a step that was judged by its errno; `more` are further fields of its result."""
        status, reason = judged
        result = StepResult(
            number=self.next_number,
            action=action,
            status=status,
            reason=reason,
            errno=errno_name(got.errno),
            expected=expectation.errno,
            why=expectation.why if expectation is not SUCCESS else None,
            **more,
        )
        self.keep(result, reply, expectation, kind="errno", subject=subject)

    def keep_without_answer(
        self, reply: Reply, action: str, module: str, expectation: Expectation = SUCCESS, excuse: str = ""
    ) -> None:
        """Keep a step whose command has no result: what happened instead is judged; what the log may say, it may.

        `excuse`: why the kernel is not to blame for it, unless its log shows a crash.
        """
        matches, records = self.classified(reply)
        hang = hang_of(reply, lambda: self.request.texts, matches, records, action)
        status, what = without_answer(reply, matches, hang)
        if excuse and status == Status.FAIL and crash_in(matches) is None:
            status, what = Status.ERROR, f"{what}; {excuse}"
        said = [LogLine(record.text) for record in reply.console.records]
        self._console = [line.text for line in bounded(said, reply.console.dropped)]
        reason = f"{action} {module}: {what}"
        result = StepResult(number=self.next_number, action=action, module=module, status=status, reason=reason)
        seen: list[Finding] = []
        if hang is not None and crash_in(matches) is None:
            self.boot.keep_samples(reply)
            cause = finding_id("load", "hang", module, hang.cause)
            seen = [Finding(id=cause, status=hang.status, message=reason, evidence=hang.evidence)]
        self.keep(result, reply, expectation, kind="no-answer", leftovers=seen, judged=(matches, records))

    def attach(self, reply: Reply) -> None:
        """Give records that came with a reply, and were made after an earlier step had ended, to that step."""
        for number in sorted({record.id for record in reply.earlier}):
            mine = [record for record in reply.earlier if record.id == number]
            if number not in self._numbers:
                # The boot's own, or between two orders: the boot keeps it, and no step is blamed.
                self.boot.start.log += mine
                continue
            self._add_to(self._numbers[number], mine, self._kept.get(number, 0.0) + reply.kept_seconds)

    def attach_rest(self, reply: Reply) -> None:
        """Give what came with a reply of which no step was made, such as a look at the host, to the last step."""
        if not self.steps:
            self.boot.start.log += reply.log
        elif reply.log or reply.lost or reply.broken:
            self.lost = self.lost or reply.lost > 0
            self._add_to(len(self.steps) - 1, reply.log, reply.kept_seconds, reply)

    def _add_to(self, index: int, log: Sequence[LogRecord], kept: float, reply: Reply | None = None) -> None:
        """Add records to a step that was kept, and what speaks against the kernel in them. `reply`: what is missing."""
        step = self.steps[index]
        records = from_agent(log)
        matches = classify(records, self.request.signatures, self.request.release)
        self._note(matches, records)
        subject, place = step.module or step.action, f"{self.name}/{step.number}-after"
        findings = told(self._found(matches, records, subject, f"after {_what(step)}", kept), subject, place)
        findings += missing(reply, _what(step), subject, place) if reply else []
        counting = [finding for finding in findings if finding.status != Status.DONE]
        self.steps[index] = msgspec.structs.replace(
            step,
            log=[*step.log, *bounded(log_lines(records))],
            log_lost=step.log_lost + (reply.lost if reply else 0),
            status=verdict(counting, [step.status]),
            reason=step.reason or next((finding.message for finding in counting), None),
        )
        self._place(findings, self.steps[index])

    def _note(self, matches: Sequence[Match], records: Sequence[Record]) -> dict[str, str]:
        """Remember what the log said; gives the signatures of these matches, each with its first line."""
        said: dict[str, str] = {}
        for match in matches:
            said.setdefault(match.signature, records[match.records[0]].text)
        self.said = said | self.said
        return said

    def all_said(self) -> set[str]:
        """The signatures in the order's log, and in what no step is blamed for: these say where a taint comes from."""
        records = from_agent(self.boot.start.log)
        aside = classify(records, self.request.signatures, self.request.release)
        return {*self.said, *(match.signature for match in aside)}

    def classified(self, reply: Reply) -> tuple[list[Match], list[Record]]:
        """What the log of a reply means, and its records."""
        records = records_of(reply)
        return classify(records, self.request.signatures, self.request.release), records

    def _place(self, findings: Sequence[Finding], step: StepResult) -> None:
        """Keep findings, with the place that they belong to."""
        self.findings += [
            msgspec.structs.replace(
                finding,
                host=self.spec.id,
                order=self.order.id,
                step=step.number,
                module=finding.module or step.module,
                reproduce=self.request.again(self.spec.id, self.order.id),
            )
            for finding in findings
        ]


def missing(reply: Reply, what: str, subject: str, place: str) -> list[Finding]:
    """What of the evidence did not come, or not as it was sent: where all else is well, nobody can say so."""
    findings: list[Finding] = []
    if reply.lost:
        message = f"{what}: {reply.lost} records of the kernel's log were lost: what they said is not judged"
        findings.append(
            Finding(id=finding_id("load", "log-lost", subject, place), status=Status.ERROR, message=message)
        )
    if reply.broken:
        count = len(reply.broken) + reply.broken_more
        message = f"{what}: {count} lines of the agent came broken: {reply.broken[0].why}"
        raw = tuple(repr(broken.raw[:MAX_RAW]) for broken in reply.broken)
        # A guest that went in the middle of a line has said nothing more that could be missing.
        status = Status.ERROR if reply.end is None else Status.DONE
        name = finding_id("load", "broken-line", subject, place)
        findings.append(Finding(id=name, status=status, message=message, evidence=raw))
    return findings


def told(findings: Sequence[Finding], subject: str, place: str) -> list[Finding]:
    """The findings of a step, when there are too many the first ones and their number."""
    if len(findings) <= MAX_FINDINGS:
        return [*findings]
    more = findings[MAX_FINDINGS:]
    message = f"{len(more)} more findings of this step are not told; the first: {more[0].message}"
    name = finding_id("load", "more-findings", subject, place)
    last = Finding(id=name, status=worst(one.status for one in more), message=message)
    return [*findings[:MAX_FINDINGS], last]


def _what(step: StepResult) -> str:
    """A step, for a person: `load kvm_amd`."""
    return f"{step.action} {step.module}" if step.module else step.action
