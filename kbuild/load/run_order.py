"""One order in one boot: its steps one after the other, each held against what was expected."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec

from kbuild import log
from kbuild.hosts.spec import HostSpec
from kbuild.load.boot import Boot
from kbuild.load.checks import Checks
from kbuild.load.conversation import Conversation, StopError
from kbuild.load.guests import SmokeKind, expected_output
from kbuild.load.judge import Judge
from kbuild.load.knowledge import Knowledge
from kbuild.load.ledger import Ledger
from kbuild.load.leftovers import Leftovers
from kbuild.load.machine import MachineSteps
from kbuild.load.orders.conditions import NoneHolds, choose, holds
from kbuild.load.orders.format import SUCCESS, Expectation, Step, kernel_name
from kbuild.load.orders.plan import Plan, PlannedStep
from kbuild.load.protocol import Result, Verb, errno_name
from kbuild.load.request import LoadRequest
from kbuild.load.selftests import Selftests
from kbuild.load.session import Reply
from kbuild.load.state import State, told_difference
from kbuild.load.trace.record import Recorder
from kbuild.outcome import Status
from kbuild.transcript import StepResult, Transcript

RUNS_ON = "smoke:guest"
"""That a guest without end ran, as hosts are known to do it."""


class OrderRun:
    """An order that is being run in a boot. `run()` gives its transcript."""

    def __init__(
        self, request: LoadRequest, spec: HostSpec, knowledge: Knowledge, boot: Boot, plan: Plan, before: State
    ) -> None:
        """`before` is the host's state before the order."""
        self._request = request
        self._plan = plan
        self._facts = plan.facts
        self._ledger = Ledger(request, spec, boot, plan)
        self._boot = boot
        self._talk = Conversation(boot.session, self._ledger, before)
        self._judge = Judge(spec.id, knowledge, request)
        self._machine = MachineSteps(self._talk, self._ledger, self._judge)
        self._recorder = Recorder(self._talk, self._ledger)
        self._leftovers = Leftovers(request, plan.id)
        self._checks = Checks(self._talk, self._ledger, self._leftovers)
        self._selftests = Selftests(request, spec, knowledge, self._talk, self._ledger)
        self._looked: State | None = None
        """At the last look, where each step is looked at."""
        self._looked_at = 1
        """The number of the step that came next then."""
        self._loaded: set[str] = set()
        self._held: str | None = None
        """What a process of the agent's holds."""
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
            if self._boot.shared > 1 and any(planned.step.check == "leaks" for planned in self._plan.steps):
                self._checks.forget_leaks()
            if self._plan.look:
                self._looked = self._talk.detail("look before the order")
            self.do()
            if not self.off:
                self.clean = self._is_clean()
        except StopError:
            self.stopped_at = self._ledger.at.place if self._ledger.at else None
            self._recorder.stop()
        self._talk.settle()
        transcript = self._ledger.transcript()
        if self._machine.cannot and transcript.status in (Status.PASS, Status.SKIP):
            return msgspec.structs.replace(transcript, status=Status.SKIP, reason=self._machine.cannot)
        return _as_judged(transcript)

    def _is_clean(self) -> bool:
        after, _ = self._talk.settled("state after the order")
        return not self._talk.before.difference(after)

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
                self._look()

    def _step(self, planned: PlannedStep) -> None:
        step = planned.step
        with log.context(step=planned.place):
            match step.action:
                case "load":
                    assert step.load is not None
                    self._load(step, step.load)
                case "unload":
                    assert step.unload is not None
                    self._call(Verb.UNLOAD, step.unload, {}, self._expectation(step), cpu=step.on_cpu)
                case "smoke":
                    for kind in step.smoke or ():
                        self._smoke(kind, self._expectation(step), step.on_cpu)
                case "selftest":
                    self._selftests.run(step)
                case "trace" if planned.ends:
                    self._recorder.end(step)
                case "trace":
                    self._recorder.begin(step)
                case "reboot":
                    self.off = self._machine.reboot(step)
                case "cpu":
                    self._machine.cpu(step, self._expectation(step))
                case "suspend":
                    self._machine.suspend(step, self._expectation(step))
                case "together":
                    self._together(step, self._expectation(step))
                case "hold":
                    self._hold(step.hold, self._expectation(step), cpu=step.on_cpu)
                case "release":
                    self._hold(None)
                case _:
                    if step.check in ("footprint", "leaks"):
                        self._undo_added()
                    self._checks.run(step)

    def _look(self) -> None:
        """Where that is asked for: tell what the last step changed, unless that has been told."""
        if self._looked is None or self.off or self._ledger.next_number == self._looked_at:
            return
        now = self._talk.detail("look after a step")
        self._ledger.note_seen(told_difference(self._looked, now))
        self._looked, self._looked_at = now, self._ledger.next_number

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
        self._call(Verb.LOAD, module, self._plan.given(module) | step.given, expectation, cpu=step.on_cpu)

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

    def _arguments(self, verb: Verb, module: str, params: dict[str, str]) -> list[str]:
        """Of a load or unload, as the agent takes them."""
        if verb is Verb.UNLOAD:
            return [kernel_name(module)]
        return [f"{self._request.modules[module].name}.ko", *(f"{name}={value}" for name, value in params.items())]

    def _call(
        self,
        verb: Verb,
        module: str,
        params: dict[str, str],
        expectation: Expectation,
        added: str | None = None,
        cpu: int | None = None,
    ) -> None:
        """Load or unload one module, and judge what came back."""
        name = kernel_name(module)
        if verb is Verb.LOAD:
            self._leftovers.tried.add(name)
        self._recorder.before(verb.value, name)
        reply = self._talk.on(cpu, verb, *self._arguments(verb, module, params))
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
        # A load that should succeed also fails where the emulator does not have what the module needs.
        known = f"load:{name}" if verb is Verb.LOAD else None
        status, reason = self._judge.errno(f"{verb} {name}", got.errno, expectation, known)
        if reason and got.refs is not None:
            users = [f"used by {holder}" for holder in got.holders] + _opened(got)
            reason += f"; {got.refs} references: {', '.join(users) or 'of nobody that is known'}"
        judged = status, reason
        self._ledger.keep_errno(
            verb.value, got, reply, expectation, judged, module=name, params=params, added=added, detail=detail
        )
        self._recorder.after(verb.value, name)
        self._look()
        if status != Status.PASS:
            raise StopError
        if verb is Verb.LOAD and got.errno == 0:
            self._judge.note(f"load:{name}")

    def _together(self, step: Step, expectation: Expectation) -> None:
        """Loads, unloads and CPUs that go or come, at once."""
        parts: list[tuple[int, str, list[str]]] = []
        for part in step.step:
            assert part.on_cpu is not None
            if part.cpu is not None:
                parts.append((part.on_cpu, Verb.CPU.value, [*part.cpu.words]))
                continue
            module = part.load or part.unload or ""
            verb = Verb.LOAD if part.load else Verb.UNLOAD
            if part.load:
                self._load_dependencies(module)
                self._leftovers.tried.add(kernel_name(module))
            given = self._plan.given(module) | part.given
            parts.append((part.on_cpu, verb.value, self._arguments(verb, module, given)))
        errnos = self._machine.together(parts, expectation)
        for part, number in zip(step.step, errnos, strict=True):
            if part.load and number == 0:
                self._loaded.add(kernel_name(part.load))
            elif part.unload and number == 0:
                self._loaded.discard(kernel_name(part.unload))

    def _hold(
        self,
        what: str | None,
        expectation: Expectation = SUCCESS,
        added: str | None = None,
        cpu: int | None = None,
    ) -> None:
        """Have a process hold something, or, with None, let it go."""
        verb = Verb.HOLD if what else Verb.RELEASE
        subject = what or self._held or "what is held"
        reply = self._talk.on(cpu, verb, *([what] if what else []))
        got = self._talk.answered(reply, verb.value, subject, expectation)
        guest = "guest" in (what, self._held)
        judged = self._judge.errno(f"{verb} {subject}", got.errno, expectation, RUNS_ON if guest else None)
        detail = {"what": what} if what else {}
        if not what and guest:
            detail = {"what": "guest", "right answers": str(got.output)}
        self._ledger.keep_errno(
            verb.value, got, reply, expectation, judged, subject=what, added=added, detail=detail | on(cpu)
        )
        self._held = what if got.errno == 0 else None
        if judged[0] != Status.PASS:
            raise StopError
        if guest and not what:
            self._judge.note(RUNS_ON)

    def _smoke(self, kind: SmokeKind, expectation: Expectation, cpu: int | None = None) -> None:
        value = secrets.randbits(64)
        reply = self._talk.on(cpu, Verb.SMOKE, kind.value, str(value))
        got = self._talk.answered(reply, "smoke", kind.value, expectation)
        wanted = expected_output(kind, value)
        detail = {"kind": kind.value, "input": f"{value:#x}"} | on(cpu)
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
            status, reason = self._judge.blamed(reason, f"smoke:{kind}")
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
            self._judge.note(f"smoke:{kind}")


def on(cpu: int | None) -> dict[str, str]:
    """The CPU that did a step, for its detail."""
    return {} if cpu is None else {"cpu": str(cpu)}


def _as_judged(transcript: Transcript) -> Transcript:
    """An order has not passed where what it is about could not be done: no selftest was run, no leak looked for."""
    tests = [step for step in transcript.steps if step.action == "selftest"]
    searches = [step for step in transcript.steps if step.detail.get("what") == "leaks"]
    for asked in (tests, searches):
        if transcript.status == Status.PASS and asked and all(step.status == Status.SKIP for step in asked):
            return msgspec.structs.replace(transcript, status=Status.SKIP, reason=asked[0].reason)
    return transcript


def _opened(got: Result) -> list[str]:
    """The open files of KVM's that the agent saw, for a person."""
    said: list[str] = []
    for one in got.open:
        # Anything may come from the guest; a file that is not told as it should be is told as it came.
        process, descriptor, file, program = ([*one.split(" ", 3), "?", "?", "?"])[:4]
        said.append(f"process {process} ({program}) has {file} open as descriptor {descriptor}")
    return said
