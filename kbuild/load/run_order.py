"""One order in one boot: its steps one after the other, each held against what was expected."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from kbuild import log
from kbuild.hosts.spec import HostSpec
from kbuild.load.boot import Boot
from kbuild.load.knowledge import Knowledge
from kbuild.load.ledger import Ledger
from kbuild.load.order import SUCCESS, Expectation, Facts, NoneHolds, Order, Step, choose, holds, kernel_name
from kbuild.load.protocol import Result, SmokeKind, State, Verb, errno_name, expected_output, parse_state
from kbuild.load.request import LoadRequest
from kbuild.load.session import Reply
from kbuild.outcome import Finding, Status, finding_id
from kbuild.transcript import StepResult, Transcript


class _StopError(Exception):
    """The order cannot go on: later steps would mean nothing."""


class OrderRun:
    """An order that is being run in a boot. `run()` gives its transcript."""

    def __init__(
        self, request: LoadRequest, spec: HostSpec, knowledge: Knowledge, boot: Boot, order: Order, before: State
    ) -> None:
        """`order` is resolved for the host's CPU; `before` is the host's state before it."""
        self._request = request
        self._spec = spec
        self._knowledge = knowledge
        self._session = boot.session
        self._order = order
        self._before = before
        self._seen: State | None = before
        """The host's state, as long as nothing was done to it since it was read."""
        self._facts = Facts(request.release, spec.vendor, request.symbols.__contains__)
        self._ledger = Ledger(request, spec, boot, order)
        self._loaded: set[str] = set()
        self._added: list[str] = []
        """Modules that were loaded because others depend on them, in order."""
        self.clean = False
        """The host is again as it was before: another order may share its boot."""

    def run(self) -> Transcript:
        """Run all steps, as far as it makes sense."""
        try:
            for number, step in enumerate(self._order.steps, 1):
                self._ledger.at = number
                if holds(step.when, self._facts):
                    self._step(step)
            self._unload_added()
            after, _ = self._read_state("state after the order", settled=True)
            self.clean = not self._before.difference(after)
        except _StopError:
            pass
        return self._ledger.transcript()

    # Steps.

    def _step(self, step: Step) -> None:
        with log.context(step=self._ledger.at):
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
        chosen = choose(step, self._facts)
        if isinstance(chosen, NoneHolds):
            result = StepResult(
                number=self._ledger.next_number,
                action=step.action,
                module=step.load or step.unload,
                status=Status.ERROR,
                reason=chosen.message,
            )
            self._ledger.keep(result, Reply(0), kind="no-expectation")
            raise _StopError
        return chosen

    def _load(self, step: Step, module: str) -> None:
        expectation = self._expectation(step)
        for needed in self._request.modules.load_sequence(module):
            if kernel_name(needed) not in self._loaded:
                self._call(Verb.LOAD, needed, {}, SUCCESS, added=f"{module} depends on it")
                self._added.append(kernel_name(needed))
        self._call(Verb.LOAD, module, step.parameters, expectation)

    def _unload(self, module: str, expectation: Expectation, added: str | None = None) -> None:
        self._call(Verb.UNLOAD, module, {}, expectation, added)

    def _unload_added(self) -> None:
        """What was loaded by itself is unloaded by itself."""
        while self._added:
            module = self._added.pop()
            if module in self._loaded:
                self._unload(module, SUCCESS, added="was loaded because others depend on it")

    def _call(
        self, verb: Verb, module: str, params: dict[str, str], expectation: Expectation, added: str | None = None
    ) -> None:
        """Load or unload one module, and judge what came back."""
        name = kernel_name(module)
        if verb is Verb.LOAD:
            arguments = (f"{self._request.modules[module].name}.ko", *(f"{k}={v}" for k, v in params.items()))
        else:
            arguments = (name,)
        reply = self._command(verb, *arguments)
        got = self._answered(reply, verb.value, name)
        if got.errno == 0:
            (self._loaded.add if verb is Verb.LOAD else self._loaded.discard)(name)
        detail: dict[str, str] = {}
        if got.refs is not None:
            detail = {"refs": str(got.refs), "holders": " ".join(got.holders)}
        status, reason = self._judge_errno(verb, name, got.errno, expectation)
        result = StepResult(
            number=self._ledger.next_number,
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
        self._ledger.keep(result, reply, expectation, kind="errno")
        if status != Status.PASS:
            raise _StopError
        if verb is Verb.LOAD and got.errno == 0:
            self._knowledge.note(f"load:{name}", self._request.kind, self._request.run)

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
            run = self._knowledge.has_done(f"load:{module}", self._request.kind)
            if run is None:
                return Status.ERROR, f"{reason}; no kernel of this kind was seen to load it on {self._spec.id} yet"
            reason += f"; {self._spec.id} has loaded it with a kernel of this kind (run {run})"
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
            run = self._knowledge.has_done(f"smoke:{kind}", self._request.kind)
            status = Status.FAIL if run else Status.ERROR
            reason += (
                f"; {self._spec.id} has run this guest with a kernel of this kind (run {run})"
                if run
                else f"; no kernel of this kind was seen to run it on {self._spec.id} yet"
            )
        result = StepResult(
            number=self._ledger.next_number,
            action="smoke",
            module=None,
            status=status,
            reason=reason,
            errno=errno_name(got.errno),
            detail=detail,
        )
        self._ledger.keep(result, reply, expectation, kind="smoke", subject=kind.value)
        if status == Status.PASS and got.errno == 0:
            self._knowledge.note(f"smoke:{kind}", self._request.kind, self._request.run)

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
            detail = {name: str(reads)}
            self._checked(reply, step.module, reason, detail, kind="parameter", subject=f"{step.module}.{name}")

    def _check_footprint(self) -> None:
        after, reply = self._read_state("footprint", settled=True)
        left = self._before.difference(after)
        if self._ledger.failed:
            # The taint is an echo of what the log has told already.
            left = [what for what in left if not what.startswith("taint/")]
        owners = self._request.signatures.owners
        findings: list[Finding] = []
        for what in left:
            owner = owners.get(what.rsplit("/", 1)[-1])
            whose = f"; it is {owner}()'s to remove" if owner else ""
            message = f"{what} is not as it was before the order{whose}"
            findings.append(
                Finding(id=finding_id("load", "leftover", what, self._order.id), status=Status.FAIL, message=message)
            )
        reason = f"not as before the order: {', '.join(left)}" if left else None
        detail = {"what": "footprint"}
        self._checked(reply, None, reason, detail, kind="leftover", subject="footprint", leftovers=findings)

    def _check_state(self, step: Step) -> None:
        state, reply = self._read_state(step.check or "")
        if step.check == "kvm-device":
            wanted, got, subject = step.present is not False, "dev/kvm" in state.facts, "/dev/kvm"
            reason = None if wanted == got else f"{subject} is {'there' if got else 'not there'}"
        else:
            subject = step.module or ""
            there = state.facts.get(f"sysfs/{subject}", "absent")
            reason = None if there == step.state else f"module {subject}: expected {step.state}, is {there}"
        self._checked(reply, step.module, reason, {"what": str(step.check)}, kind="state", subject=subject)

    def _checked(
        self,
        reply: Reply,
        module: str | None,
        reason: str | None,
        detail: dict[str, str],
        *,
        kind: str,
        subject: str,
        leftovers: Sequence[Finding] = (),
    ) -> None:
        """Keep what a check saw; with a `reason` it was not as it should be."""
        status = Status.PASS if reason is None else Status.FAIL
        number = self._ledger.next_number
        result = StepResult(number=number, action="check", module=module, status=status, reason=reason, detail=detail)
        self._ledger.keep(result, reply, kind=kind, subject=subject, leftovers=leftovers)

    def _read_state(self, why: str, *, settled: bool = False) -> tuple[State, Reply]:
        """The host's state. `settled`: it should be as before the order, and gets a moment to become so."""
        if self._seen is not None and (self._seen.hash == self._before.hash or not settled):
            return self._seen, Reply(self._session.last_number)
        reply = self._command(Verb.STATE, *([self._before.hash] if settled else []))
        got = self._answered(reply, "check", why)
        state = self._before if got.same else parse_state(reply.items)
        if got.hash != state.hash:
            reason = f"{why}: a part of the host's state was lost on the way"
            result = StepResult(number=self._ledger.next_number, action="check", status=Status.ERROR, reason=reason)
            self._ledger.keep(result, reply, kind="protocol")
            raise _StopError
        self._seen = state
        return state, reply

    def _command(self, verb: Verb, *arguments: str) -> Reply:
        if verb not in (Verb.STATE, Verb.PARAM):
            self._seen = None
        reply = self._session.command(verb, *arguments)
        self._ledger.attach(reply.earlier)
        return reply

    def _answered(self, reply: Reply, action: str, module: str) -> Result:
        """The command's result; where there is none the order stops."""
        if isinstance(reply.answer, Result):
            return reply.answer
        self._ledger.keep_without_answer(reply, action, module)
        raise _StopError
