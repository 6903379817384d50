"""One order in one boot: its steps one after the other, each held against what was expected."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from kbuild import log
from kbuild.hosts.emulator import POWERED_OFF, REBOOTED
from kbuild.hosts.spec import HostSpec
from kbuild.load.boot import Boot
from kbuild.load.checks import Checks
from kbuild.load.conversation import Conversation, StopError
from kbuild.load.guests import SmokeKind, expected_output
from kbuild.load.knowledge import Knowledge
from kbuild.load.ledger import Ledger
from kbuild.load.leftovers import Leftovers
from kbuild.load.orders.conditions import NoneHolds, choose, holds
from kbuild.load.orders.format import SUCCESS, Expectation, Step, kernel_name
from kbuild.load.orders.plan import Plan, PlannedStep
from kbuild.load.protocol import Result, Verb, errno_name
from kbuild.load.request import LoadRequest
from kbuild.load.session import End, Reply
from kbuild.load.state import State
from kbuild.load.trace.record import Recorder
from kbuild.outcome import Status
from kbuild.transcript import StepResult, Transcript


class OrderRun:
    """An order that is being run in a boot. `run()` gives its transcript."""

    def __init__(
        self, request: LoadRequest, spec: HostSpec, knowledge: Knowledge, boot: Boot, plan: Plan, before: State
    ) -> None:
        """`before` is the host's state before the order."""
        self._request = request
        self._spec = spec
        self._boot = boot
        self._knowledge = knowledge
        self._plan = plan
        self._facts = plan.facts
        self._ledger = Ledger(request, spec, boot, plan)
        self._talk = Conversation(boot.session, self._ledger, before)
        self._recorder = Recorder(self._talk, self._ledger)
        self._leftovers = Leftovers(request, plan.id)
        self._checks = Checks(self._talk, self._ledger, self._leftovers)
        self._loaded: set[str] = set()
        self._held = False
        self._added: list[str] = []
        """Modules that were loaded because others depend on them, in order."""
        self.clean = False
        """The host is again as it was before: another order may share its boot."""
        self.stopped_at: str | None = None
        """The place at which it could not go on."""
        self.off = False
        """The guest came to its end as it was asked to."""
        self.more: list[Plan] = []
        """Runs of the order that are known of now: the points of a sweep, or what follows one of them."""

    def run(self) -> Transcript:
        """Run all steps, as far as it makes sense."""
        try:
            self.do()
            if not self.off:
                after, _ = self._talk.settled("state after the order")
                self.clean = not self._talk.before.difference(after)
        except StopError:
            self.stopped_at = self._ledger.at.place if self._ledger.at else None
            self._recorder.stop()
        return self._ledger.transcript()

    def do(self) -> None:
        """The order's steps, and the end of what they loaded."""
        self._steps(self._plan.steps)
        if not self.off:
            self._undo_added()

    # Steps.

    def _steps(self, steps: Iterable[PlannedStep]) -> None:
        for planned in steps:
            self._ledger.at = planned
            if holds(planned.step.when, self._facts):
                self._step(planned)

    def _step(self, planned: PlannedStep) -> None:
        step = planned.step
        with log.context(step=planned.place):
            match step.action:
                case "load":
                    assert step.load is not None
                    self._load(step, step.load)
                case "unload":
                    assert step.unload is not None
                    self._unload(step.unload, self._expectation(step))
                case "smoke":
                    for kind in step.smoke or ():
                        self._smoke(kind, self._expectation(step))
                case "trace" if planned.ends:
                    self._recorder.end(step)
                case "trace":
                    self._recorder.begin(step)
                case "reboot":
                    self._reboot(step)
                case "hold":
                    self._hold(step.hold, self._expectation(step))
                case "release":
                    self._hold(None)
                case _:
                    if step.check == "footprint":
                        self._undo_added()
                    self._checks.run(step)

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
            raise StopError
        return chosen

    def _load(self, step: Step, module: str) -> None:
        expectation = self._expectation(step)
        self._load_dependencies(module)
        self._call(Verb.LOAD, module, self._plan.given(module) | step.given, expectation)

    def _load_dependencies(self, module: str) -> None:
        for needed in self._request.modules.load_sequence(module):
            if kernel_name(needed) not in self._loaded:
                self._call(Verb.LOAD, needed, self._plan.given(needed), SUCCESS, added=f"{module} depends on it")
                self._added.append(kernel_name(needed))

    def _unload(self, module: str, expectation: Expectation, added: str | None = None) -> None:
        self._call(Verb.UNLOAD, module, {}, expectation, added)

    def _undo_added(self) -> None:
        """What is still held is let go, and what was loaded by itself is unloaded by itself."""
        if self._held:
            self._hold(None, added="the order is done with what it held")
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
        self._recorder.before(verb.value, name)
        reply = self._talk.command(verb, *arguments)
        got = self._talk.answered(reply, verb.value, name, expectation)
        if got.errno == 0:
            (self._loaded.add if verb is Verb.LOAD else self._loaded.discard)(name)
            if verb is Verb.LOAD:
                places = {".text": got.text, ".init.text": got.init_text}
                self._leftovers.texts[name] = {section: at for section, at in places.items() if at is not None}
        detail: dict[str, str] = {}
        if got.refs is not None:
            detail = {"refs": str(got.refs), "holders": " ".join(got.holders)}
            detail |= {"open": ", ".join(_opened(got))} if got.open else {}
        status, reason = self._judge_errno(verb, name, got.errno, expectation)
        if reason and got.refs is not None:
            users = [f"used by {holder}" for holder in got.holders] + _opened(got)
            reason += f"; {got.refs} references: {', '.join(users) or 'of nobody that is known'}"
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
        self._recorder.after(verb.value, name)
        if status != Status.PASS:
            raise StopError
        if verb is Verb.LOAD and got.errno == 0:
            self._knowledge.note(f"load:{name}", self._request.kind, self._request.run)

    def _reboot(self, step: Step) -> None:
        """The guest's end: it says its last word, and then the machine goes off or is reset."""
        restart = step.reboot == "restart"
        reply = self._talk.end(Verb.RESTART if restart else Verb.POWEROFF)
        did = reply.detail.rpartition(": ")[2]
        self.off = (
            reply.end is End.EXIT and self._boot.session.said_bye and did == (REBOOTED if restart else POWERED_OFF)
        )
        if not self.off:
            self._ledger.keep_without_answer(reply, "reboot", str(step.reboot))
            raise StopError
        result = StepResult(
            number=self._ledger.next_number,
            action="reboot",
            status=Status.PASS,
            why=step.why,
            detail={"to": str(step.reboot)},
        )
        self._ledger.keep(result, reply, kind="reboot")

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

    def _hold(self, what: str | None, expectation: Expectation = SUCCESS, added: str | None = None) -> None:
        """Have a process hold something, or, with None, let it go."""
        verb = Verb.HOLD if what else Verb.RELEASE
        reply = self._talk.command(verb, *([what] if what else []))
        got = self._talk.answered(reply, verb.value, what or "what is held", expectation)
        status, reason = self._judge_errno(verb, what or "what is held", got.errno, expectation)
        result = StepResult(
            number=self._ledger.next_number,
            action=verb.value,
            status=status,
            reason=reason,
            added=added,
            errno=errno_name(got.errno),
            expected=expectation.errno,
            why=expectation.why if expectation is not SUCCESS else None,
            detail={"what": what} if what else {},
        )
        self._ledger.keep(result, reply, expectation, kind="errno", subject=what)
        if status != Status.PASS:
            raise StopError
        self._held = what is not None and got.errno == 0

    def _smoke(self, kind: SmokeKind, expectation: Expectation) -> None:
        value = secrets.randbits(64)
        reply = self._talk.command(Verb.SMOKE, kind.value, str(value))
        got = self._talk.answered(reply, "smoke", kind.value, expectation)
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


def _opened(got: Result) -> list[str]:
    """The open files of KVM's that the agent saw, for a person."""
    said: list[str] = []
    for one in got.open:
        # Anything may come from the guest; a file that is not told as it should be is told as it came.
        process, descriptor, file, program = ([*one.split(" ", 3), "?", "?", "?"])[:4]
        said.append(f"process {process} ({program}) has {file} open as descriptor {descriptor}")
    return said
