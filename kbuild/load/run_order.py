"""One order in one boot: its steps one after the other, each held against what was expected."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from kbuild import log
from kbuild.dmesg.classify import Match, classify
from kbuild.dmesg.record import Record
from kbuild.hosts.spec import HostSpec
from kbuild.load.boot import Boot
from kbuild.load.evidence import crash_in, findings_of, from_agent, log_lines, records_of, without_answer
from kbuild.load.knowledge import Knowledge
from kbuild.load.order import SUCCESS, Expectation, Facts, NoneHolds, Order, Step, choose, holds, kernel_name
from kbuild.load.protocol import LogRecord, Result, SmokeKind, State, Verb, errno_name, expected_output, parse_state
from kbuild.load.request import LoadRequest
from kbuild.load.session import Reply
from kbuild.outcome import Finding, Status, finding_id, verdict
from kbuild.transcript import StepResult, Transcript

MAX_EVIDENCE = 20


class _StopError(Exception):
    """The order cannot go on: later steps would mean nothing."""


@dataclass
class OrderRun:
    """The state of an order that is being run. `run()` gives its transcript."""

    request: LoadRequest
    spec: HostSpec
    knowledge: Knowledge
    boot: Boot
    order: Order
    """Resolved for the host's CPU."""
    before: State
    """The host's state before the order."""
    steps: list[StepResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    """Modules that were loaded because others depend on them, in order."""
    loaded: set[str] = field(default_factory=set)
    console: list[str] = field(default_factory=list)
    clean: bool = False
    """The host is again as it was before: another order may share its boot."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Of the commands to the index of their step."""
    at: int = 0
    """The order's own step that is under way, from 1."""

    def run(self) -> Transcript:
        """Run all steps, as far as it makes sense."""
        self.facts = Facts(self.request.release, self.spec.vendor, self.request.symbols.__contains__)
        try:
            for number, step in enumerate(self.order.steps, 1):
                self.at = number
                if holds(step.when, self.facts):
                    self._step(step)
            self._unload_added()
            after, _ = self._read_state("state after the order", settled=True)
            self.clean = not self.before.difference(after)
        except _StopError:
            pass
        failed = [step for step in self.steps if step.status in (Status.FAIL, Status.ERROR, Status.MISS)]
        return Transcript(
            host=self.spec.id,
            order=self.order.id,
            title=self.order.title,
            status=verdict(self.findings, [step.status for step in self.steps]),
            reason=failed[0].reason if failed else None,
            boot=self.boot.number,
            position=self.boot.orders,
            seconds=round(sum(step.seconds for step in self.steps), 6),
            steps=self.steps,
            findings=self.findings,
            console=self.console,
            folder=str(self.boot.folder.relative_to(self.request.folder)),
            reproduce=self.request.again(self.spec.id, self.order.id),
        )

    # Steps.

    def _step(self, step: Step) -> None:
        with log.context(step=self.at):
            match step.action:
                case "load":
                    assert step.load is not None
                    self._load(step, step.load)
                case "unload":
                    assert step.unload is not None
                    self._unload(step.unload, self._expectation(step))
                case "smoke":
                    for kind in step.smoke or ():
                        self._smoke(SmokeKind(kind), self._expectation(step))
                case _:
                    self._check(step)

    def _expectation(self, step: Step) -> Expectation:
        chosen = choose(step, self.facts)
        if isinstance(chosen, NoneHolds):
            result = StepResult(
                number=self._next,
                action=step.action,
                module=step.load or step.unload,
                status=Status.ERROR,
                reason=chosen.message,
            )
            self._finish(result, Reply(0), kind="no-expectation")
            raise _StopError
        return chosen

    def _load(self, step: Step, module: str) -> None:
        expectation = self._expectation(step)
        for needed in self.request.modules.load_sequence(module):
            if kernel_name(needed) not in self.loaded:
                self._call(Verb.LOAD, needed, {}, SUCCESS, added=f"{module} depends on it")
                self.added.append(kernel_name(needed))
        self._call(Verb.LOAD, module, step.parameters, expectation)

    def _unload(self, module: str, expectation: Expectation, added: str | None = None) -> None:
        self._call(Verb.UNLOAD, module, {}, expectation, added)

    def _unload_added(self) -> None:
        """What was loaded by itself is unloaded by itself."""
        while self.added:
            module = self.added.pop()
            if module in self.loaded:
                self._unload(module, SUCCESS, added="was loaded because others depend on it")

    def _call(
        self, verb: Verb, module: str, params: dict[str, str], expectation: Expectation, added: str | None = None
    ) -> None:
        """Load or unload one module, and judge what came back."""
        name = kernel_name(module)
        if verb is Verb.LOAD:
            arguments = (f"{self.request.modules[module].name}.ko", *(f"{k}={v}" for k, v in params.items()))
        else:
            arguments = (name,)
        reply = self._command(verb, *arguments)
        got = self._answered(reply, verb.value, name)
        if got.errno == 0:
            (self.loaded.add if verb is Verb.LOAD else self.loaded.discard)(name)
        detail: dict[str, str] = {}
        if got.refs is not None:
            detail = {"refs": str(got.refs), "holders": " ".join(got.holders)}
        status, reason = self._judge_errno(verb, name, got.errno, expectation)
        result = StepResult(
            number=self._next,
            action=verb.value,
            module=name,
            status=status,
            reason=reason,
            params=params,
            added=added,
            errno=errno_name(got.errno),
            expected=expectation.errno,
            why=expectation.why if expectation is not SUCCESS else None,
            detail=detail,
        )
        self._finish(result, reply, expectation, kind="errno")
        if status != Status.PASS:
            raise _StopError
        if verb is Verb.LOAD and got.errno == 0:
            self.knowledge.note(f"load:{name}", self.request.release, self.request.run)

    def _judge_errno(self, verb: Verb, module: str, number: int, expectation: Expectation) -> tuple[Status, str | None]:
        if number == expectation.errno_number:
            return Status.PASS, None
        got = errno_name(number) or "success"
        wanted = expectation.errno or "success"
        reason = f"{verb} {module}: expected {wanted}, got {got}"
        if expectation is not SUCCESS:
            reason += f" ({expectation.why})"
        if verb is Verb.LOAD and expectation.errno is None:
            # A load that should succeed also fails where the emulator does not have what the module needs.
            run = self.knowledge.has_done(f"load:{module}", self.request.release)
            if run is None:
                return Status.ERROR, f"{reason}; no kernel of this series was seen to load it on {self.spec.id} yet"
            reason += f"; {self.spec.id} has loaded it with a kernel of this series (run {run})"
        return Status.FAIL, reason

    def _smoke(self, kind: SmokeKind, expectation: Expectation) -> None:
        value = secrets.randbits(64)
        reply = self._command(Verb.SMOKE, kind.value, str(value))
        got = self._answered(reply, "smoke", kind.value)
        wanted = expected_output(kind, value)
        detail = {"kind": kind.value, "input": f"{value:#x}"}
        if got.output is not None:
            detail["output"] = f"{got.output:#x}"
        status, reason = Status.PASS, None
        if got.errno != expectation.errno_number:
            name = errno_name(got.errno) or "success"
            why = f"exit reason {got.exit_reason}" if got.exit_reason is not None else ""
            reason = ", ".join(
                part for part in (f"smoke {kind}: {name}", f"in {got.where}" if got.where else "", why) if part
            )
        elif got.errno == 0 and got.output != wanted:
            given = f"{got.output:#x}" if got.output is not None else "nothing"
            reason = f"smoke {kind}: the guest answered {given} to {value:#x}, not {wanted:#x}"
        if reason is not None:
            run = self.knowledge.has_done(f"smoke:{kind}", self.request.release)
            status = Status.FAIL if run else Status.ERROR
            reason += (
                f"; {self.spec.id} has run this guest with a kernel of this series (run {run})"
                if run
                else f"; no kernel of this series was seen to run it on {self.spec.id} yet"
            )
        result = StepResult(
            number=self._next,
            action="smoke",
            module=None,
            status=status,
            reason=reason,
            errno=errno_name(got.errno),
            detail=detail,
        )
        self._finish(result, reply, expectation, kind="smoke", subject=kind.value)
        if status == Status.PASS and got.errno == 0:
            self.knowledge.note(f"smoke:{kind}", self.request.release, self.request.run)

    # Checks.

    def _check(self, step: Step) -> None:
        match step.check:
            case "parameters":
                self._check_parameters(step)
            case "footprint":
                self._unload_added()
                self._check_footprint()
            case _:
                self._check_state(step)

    def _check_parameters(self, step: Step) -> None:
        assert step.module is not None
        for name, wanted in step.parameters.items():
            reply = self._command(Verb.PARAM, step.module, name)
            got = self._answered(reply, "check", step.module)
            reads = got.value if got.errno == 0 else None
            reason = None
            if reads != wanted:
                shown = f"'{reads}'" if reads is not None else errno_name(got.errno)
                reason = f"parameter {step.module}.{name}: expected '{wanted}', reads {shown}"
            status = Status.PASS if reason is None else Status.FAIL
            result = StepResult(
                number=self._next,
                action="check",
                module=step.module,
                status=status,
                reason=reason,
                detail={name: str(reads)},
            )
            self._finish(result, reply, kind="parameter", subject=f"{step.module}.{name}")

    def _check_footprint(self) -> None:
        after, reply = self._read_state("footprint", settled=True)
        left = self.before.difference(after)
        if any(finding.status == Status.FAIL for finding in self.findings):
            # The taint is an echo of what the log has told already.
            left = [what for what in left if not what.startswith("taint/")]
        owners = self.request.signatures.owners
        findings: list[Finding] = []
        for what in left:
            owner = owners.get(what.rsplit("/", 1)[-1])
            whose = f"; it is {owner}()'s to remove" if owner else ""
            message = f"{what} is not as it was before the order{whose}"
            findings.append(
                Finding(id=finding_id("load", "leftover", what, self.order.id), status=Status.FAIL, message=message)
            )
        reason = f"not as before the order: {', '.join(left)}" if left else None
        status = Status.FAIL if left else Status.PASS
        result = StepResult(
            number=self._next, action="check", module=None, status=status, reason=reason, detail={"what": "footprint"}
        )
        self._finish(result, reply, kind="leftover", subject="footprint", leftovers=findings)

    def _check_state(self, step: Step) -> None:
        state, reply = self._read_state(step.check or "")
        if step.check == "kvm-device":
            wanted, got, subject = step.present is not False, "dev/kvm" in state.facts, "/dev/kvm"
            reason = None if wanted == got else f"{subject} is {'there' if got else 'not there'}"
        else:
            subject = step.module or ""
            there = state.facts.get(f"sysfs/{subject}", "absent")
            reason = None if there == step.state else f"module {subject}: expected {step.state}, is {there}"
        status = Status.PASS if reason is None else Status.FAIL
        result = StepResult(
            number=self._next,
            action="check",
            module=step.module,
            status=status,
            reason=reason,
            detail={"what": str(step.check)},
        )
        self._finish(result, reply, kind="state", subject=subject)

    def _read_state(self, why: str, *, settled: bool = False) -> tuple[State, Reply]:
        """The host's state. `settled`: it should be as before the order, and gets a moment to become so."""
        reply = self._command(Verb.STATE, *([self.before.hash] if settled else []))
        got = self._answered(reply, "check", why)
        if got.same:
            return self.before, reply
        state = parse_state(reply.items)
        if got.hash != state.hash:
            reason = f"{why}: a part of the host's state was lost on the way"
            result = StepResult(number=self._next, action="check", status=Status.ERROR, reason=reason)
            self._finish(result, reply, kind="protocol")
            raise _StopError
        return state, reply

    # Answers.

    @property
    def _next(self) -> int:
        return len(self.steps) + 1

    def _command(self, verb: Verb, *arguments: str) -> Reply:
        reply = self.boot.session.command(verb, *arguments)
        self._attach(reply.earlier)
        return reply

    def _attach(self, late: Sequence[LogRecord]) -> None:
        """Give records that were made after a step had ended to that step."""
        for number in sorted({record.id for record in late}):
            mine = [record for record in late if record.id == number]
            if number not in self.numbers:
                # The boot's own, or between two orders: the boot keeps it, and no step is blamed.
                self.boot.start.log += mine
                continue
            index = self.numbers[number]
            step = self.steps[index]
            records = from_agent(mine)
            matches = classify(records, self.request.signatures, self.request.release)
            findings = list(findings_of(matches, records, step.module or step.action, (), f"after {_what(step)}"))
            self.steps[index] = msgspec.structs.replace(
                step,
                log=[*step.log, *log_lines(records)],
                status=verdict(findings, [step.status]),
                reason=step.reason or next((finding.message for finding in findings), None),
            )
            self._keep(findings, self.steps[index])

    def _answered(self, reply: Reply, action: str, module: str) -> Result:
        """The command's result; where there is none, what happened instead is judged and the order stops."""
        if isinstance(reply.answer, Result):
            return reply.answer
        matches, records = self._classify(reply)
        status, what = without_answer(reply, crash_in(matches), self.boot.session.hello is not None)
        self.console = [record.text for record in reply.console.records]
        result = StepResult(
            number=self._next, action=action, module=module, status=status, reason=f"{action} {module}: {what}"
        )
        self._finish(result, reply, kind="no-answer", judged=(matches, records))
        raise _StopError

    def _classify(self, reply: Reply) -> tuple[list[Match], list[Record]]:
        records = records_of(reply)
        return classify(records, self.request.signatures, self.request.release), records

    def _finish(
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
        """Keep a step's result with its log, and find what speaks against the kernel in both."""
        matches, records = judged or self._classify(reply)
        subject = subject or result.module or result.action
        place = f"{self.order.id}/{self.at}-{result.action}"
        expected = expectation.log
        allowed = {*expected.must, *expected.may}
        findings = [*leftovers, *findings_of(matches, records, subject, allowed, _what(result))]
        said = {match.signature for match in matches}
        findings += [
            Finding(
                id=finding_id("load", "log-missing", subject, f"{place}/{name}"),
                status=Status.FAIL,
                message=f"the log has no line of '{name}' ({expectation.why})",
            )
            for name in expected.must
            if name not in said
        ]
        explained = kind in ("no-answer", "leftover") and any(f.status == result.status for f in findings)
        if result.status != Status.PASS and result.reason and not explained:
            # Where the log names what killed the guest, that is the finding; here the step itself is.
            evidence = tuple(record.text for record in records if record.facility == 0)[-MAX_EVIDENCE:]
            cause = finding_id("load", kind, subject, place)
            findings.append(Finding(id=cause, status=result.status, message=result.reason, evidence=evidence))
        if reply.broken:
            message = f"{len(reply.broken) + reply.broken_more} lines of the agent came broken: {reply.broken[0].why}"
            raw = tuple(repr(broken.raw) for broken in reply.broken)
            name = finding_id("load", "broken-line", subject, place)
            findings.append(Finding(id=name, status=Status.DONE, message=message, evidence=raw))
        reason = result.reason or next((f.message for f in findings if f.status != Status.DONE), None)
        step = msgspec.structs.replace(
            result,
            status=verdict((f for f in findings if f.status != Status.DONE), [result.status]),
            reason=reason,
            seconds=(reply.answer.us / 1e6) if isinstance(reply.answer, Result) else round(reply.seconds, 6),
            log=log_lines(records),
            log_lost=reply.lost,
        )
        self.numbers[reply.number] = len(self.steps)
        self.steps.append(step)
        self._keep(findings, step)
        log.get().info("step", action=step.action, module=step.module, errno=step.errno, status=step.status)

    def _keep(self, findings: Sequence[Finding], step: StepResult) -> None:
        """Keep a step's findings, with their place."""
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


def _what(step: StepResult) -> str:
    """A step, for a person: `load kvm_amd`."""
    return f"{step.action} {step.module}" if step.module else step.action
