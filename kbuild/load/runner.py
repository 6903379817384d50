"""All orders on all hosts: hosts side by side, each with as few boots as its orders allow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from functools import cached_property

import msgspec

from kbuild import log
from kbuild.dmesg.classify import classify
from kbuild.dmesg.signatures import Severity
from kbuild.errors import HarnessError, JudgeError, KbuildError
from kbuild.hosts.spec import HostSpec, check, describe, digest
from kbuild.load.boot import Boot, boot
from kbuild.load.evidence import crash_in, findings_of, from_agent, hang_of, log_lines, records_of, without_answer
from kbuild.load.knowledge import Knowledge
from kbuild.load.order import VENDOR_MODULES, Order, applies, resolve
from kbuild.load.protocol import Result, State, Verb, parse_state
from kbuild.load.request import LoadRequest
from kbuild.load.run_order import OrderRun
from kbuild.outcome import Finding, Status
from kbuild.progress import Reporter
from kbuild.transcript import LogLine, StepResult, Transcript, bounded


def run_load(request: LoadRequest, reporter: Reporter, executor: Executor | None = None) -> list[Transcript]:
    """Run every order on every host and return the transcripts, hosts and orders as they were asked for.

    Hosts run at once in `executor`, threads by default. On Ctrl-C all machines end first; then
    KeyboardInterrupt is raised on.
    """
    found: dict[str, list[Transcript]] = {}
    with contextlib.ExitStack() as stack:
        pool = executor or stack.enter_context(ThreadPoolExecutor(len(request.hosts), thread_name_prefix="host"))
        work = {pool.submit(log.in_context(_Host(request, spec, reporter).run)): spec for spec in request.hosts}
        try:
            for done in as_completed(work):
                found[work[done].id] = done.result()
        except BaseException:
            # Each host's thread sees its machine end; leaving the pool waits for all of them.
            request.cancellation.cancel()
            raise
    return [transcript for spec in request.hosts for transcript in found[spec.id]]


class _Host:
    """One host and its orders."""

    def __init__(self, request: LoadRequest, spec: HostSpec, reporter: Reporter) -> None:
        self._request = request
        self._spec = spec
        self._reporter = reporter
        self._boots = 0

    def run(self) -> list[Transcript]:
        """All orders of this host."""
        with log.context(host=self._spec.id):
            orders = [resolve(order, self._spec.vendor) for order in self._request.orders]
            skipped = {order.id: self._skip(order) for order in orders}
            waiting = [order for order in orders if skipped[order.id] is None]
            transcripts = {name: one for name, one in skipped.items() if one is not None}
            if waiting and (missing := check(self._spec)):
                transcripts |= {order.id: self._not_run(order, missing[0]) for order in waiting}
                waiting = []
            while waiting and not self._request.cancellation.requested():
                transcripts |= {one.order: one for one in self._boot(waiting)}
                waiting = [order for order in waiting if order.id not in transcripts]
            transcripts |= {order.id: self._not_run(order, "interrupted") for order in waiting}
        return [transcripts[order.id] for order in orders]

    def _skip(self, order: Order) -> Transcript | None:
        names = [image.name for image in self._request.modules.modules.values()]
        reason = applies(order, names, self._spec.gives, self._request.release)
        if reason is None:
            return None
        return Transcript(host=self._spec.id, order=order.id, title=order.title, status=Status.SKIP, reason=reason)

    def _not_run(self, order: Order, reason: str, status: Status = Status.MISS) -> Transcript:
        return Transcript(
            host=self._spec.id,
            order=order.id,
            title=order.title,
            status=status,
            reason=reason,
            boot=self._boots,
            reproduce=self._request.again(self._spec.id, order.id),
        )

    @cached_property
    def _knowledge(self) -> Knowledge:
        return Knowledge(self._spec.id, digest(self._spec, describe(self._spec)))

    def _tell(self, seconds: float, usual: float | None) -> None:
        self._reporter.boot(self._spec.id, seconds, usual)

    def _boot(self, orders: Sequence[Order]) -> list[Transcript]:
        """One boot, with as many orders as find the host as the first one did; at least one transcript."""
        self._boots += 1
        transcripts: list[Transcript] = []

        def keep(transcript: Transcript) -> None:
            transcripts.append(transcript)
            self._reporter.order(transcript.host, transcript.order, transcript.status, transcript.reason)

        try:
            slowness = self._knowledge.slowness()
            with boot(self._request, self._spec, self._needed(orders), self._boots, slowness, self._tell) as started:
                if started.session.slowness is not None:
                    self._knowledge.note_slowness(started.session.slowness)
                if failure := self._failed_start(started, orders[0]):
                    keep(failure)
                    if failure.status != Status.MISS:
                        # The kernel does not come up here: to wait for that once more for each order says nothing new.
                        for order in orders[1:]:
                            keep(
                                self._not_run(order, f"not run, for the boot before: {failure.reason}", failure.status)
                            )
                else:
                    self._run_orders(started, orders, keep)
                if started.session.ended is None:
                    started.session.power_off()
        except KbuildError as error:
            if not transcripts:
                keep(self._not_run(orders[0], str(error), error.status))
            else:
                log.get().warning("the machine did not end in order", reason=str(error))
        return transcripts

    def _run_orders(self, started: Boot, orders: Sequence[Order], keep: Callable[[Transcript], None]) -> None:
        before: State | None = None
        for order in orders:
            if self._request.cancellation.requested():
                return
            self._reporter.order(self._spec.id, order.id, None, None)
            before = before or self._state(started)
            # What the kernel warns of once a boot has to show again in each order that shares one.
            started.start.log += started.session.command(Verb.REARM).earlier
            started.orders += 1
            with log.context(order=order.id), log.timed("order") as extra:
                run = OrderRun(self._request, self._spec, self._knowledge, started, order, before)
                transcript = run.run()
                if started.orders == 1:
                    transcript = msgspec.structs.replace(
                        transcript, findings=[*transcript.findings, *self._said_at_boot(started)]
                    )
                keep(transcript)
                extra.update(status=transcript.status, clean=run.clean)
            if not run.clean or started.session.ended is not None:
                return

    def _state(self, started: Boot) -> State:
        reply = started.session.command(Verb.STATE)
        started.start.log += reply.earlier
        if isinstance(reply.answer, Result) and reply.answer.errno == 0:
            return parse_state(reply.items)
        crash = crash_in(classify(records_of(reply), self._request.signatures, self._request.release))
        status, what = without_answer(reply, crash)
        kind = HarnessError if status == Status.MISS else JudgeError
        raise kind(f"the state before the first order cannot be read: {what}")

    def _said_at_boot(self, started: Boot) -> list[Finding]:
        """What the kernel complained of before the first step: shown, for no module's code had run yet."""
        records = from_agent(started.start.log)
        matches = classify(records, self._request.signatures, self._request.release)
        grave = [m for m in matches if m.severity in (Severity.CRASH, Severity.FAIL, Severity.STALL)]
        return [
            msgspec.structs.replace(
                finding, status=Status.DONE, host=self._spec.id, message=f"at boot: {finding.message}"
            )
            for finding in findings_of(grave, records, "boot", (), "boot")
        ]

    def _needed(self, orders: Sequence[Order]) -> list[str]:
        """The modules that these orders load, with what they depend on, and both vendors' where they are there."""
        modules = self._request.modules
        named = {step.load for order in orders for step in order.steps if step.load}
        named |= {name for name in VENDOR_MODULES.values() if name in modules}
        names = {needed for name in named for needed in (*modules.load_sequence(name), modules[name].name)}
        return sorted(names)

    def _failed_start(self, started: Boot, order: Order) -> Transcript | None:
        """The transcript of an order whose boot did not reach the agent, or reached another kernel."""
        session = started.session
        if session.hello is not None and session.ended is None:
            if session.hello.kernel == self._request.release:
                return None
            return self._not_run(order, f"the host runs {session.hello.kernel}, not {self._request.release}")
        records = records_of(started.start)
        matches = classify(records, self._request.signatures, self._request.release)
        hang = hang_of(started.start, list, matches, records, "boot")
        status, what = without_answer(started.start, crash_in(matches), hang)
        started.keep_samples(started.start)
        place = f"{self._spec.id}/boot"
        again = self._request.again(self._spec.id, order.id)
        findings = list(findings_of(matches, records, "boot", (), "boot"))
        if not any(finding.status == status for finding in findings):
            evidence = (hang.evidence if hang else ()) + tuple(record.text for record in records[-20:])
            findings.append(Finding(id=f"load:boot:{place}:no-agent", status=status, message=what, evidence=evidence))
        findings = [
            msgspec.structs.replace(one, host=self._spec.id, order=order.id, reproduce=again) for one in findings
        ]
        console, dropped = started.start.console.records, started.start.console.dropped
        log_of_boot = bounded(log_lines(records), dropped)
        step = StepResult(number=1, action="boot", status=status, reason=what, log=log_of_boot)
        return Transcript(
            host=self._spec.id,
            order=order.id,
            title=order.title,
            status=status,
            reason=what,
            boot=started.number,
            steps=[step],
            findings=findings,
            console=[line.text for line in bounded([LogLine(record.text) for record in console], dropped)],
            folder=str(started.folder.relative_to(self._request.folder)),
            reproduce=again,
        )
