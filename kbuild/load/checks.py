"""The checks of an order: the host's state, its parameters and its log, held against what the order says."""

from __future__ import annotations

from collections.abc import Sequence

from kbuild.load.conversation import Conversation
from kbuild.load.drift import Sample, drifts, sample_of
from kbuild.load.leaks import findings_of_leaks, read_leaks
from kbuild.load.ledger import Ledger
from kbuild.load.leftovers import Leftovers
from kbuild.load.orders.format import Step
from kbuild.load.protocol import Verb, errno_name
from kbuild.load.session import Reply
from kbuild.load.state import State
from kbuild.outcome import Finding, Status, finding_id
from kbuild.transcript import StepResult

SCAN_SECONDS = 30
"""Of the guest's time for two searches of all memory, and for what has to become old enough before."""


class Checks:
    """Checks of one order that is being run."""

    def __init__(self, talk: Conversation, ledger: Ledger, leftovers: Leftovers) -> None:
        self._talk = talk
        self._ledger = ledger
        self._leftovers = leftovers
        self._samples: list[Sample] = []
        """What each `memory` said."""

    def run(self, step: Step) -> None:
        """Do one check, and keep what it saw."""
        match step.check:
            case "parameters":
                self._parameters(step)
            case "footprint":
                self.footprint()
            case "log":
                self._log(step)
            case "files":
                self._files(step)
            case "leaks":
                self._leaks(step)
            case "memory":
                self._memory()
            case "drift":
                self._drift(step)
            case _:
                self._state(step)

    def _parameters(self, step: Step) -> None:
        assert step.module is not None
        for name, wanted in step.read_back.items():
            reply = self._talk.command(Verb.PARAM, step.module, name)
            got = self._talk.answered(reply, "check", step.module)
            reads = got.value if got.errno == 0 else None
            reason = None
            if reads != wanted:
                shown = f"'{reads}'" if reads is not None else errno_name(got.errno)
                reason = f"parameter {step.module}.{name}: expected '{wanted}', reads {shown}"
            subject = f"{step.module}.{name}"
            self._keep(step, reply, reason, {name: str(reads)}, kind="parameter", subject=subject)

    def footprint(self) -> None:
        """Hold the host's state against what it was."""
        after, reply = self._talk.settled("footprint")
        findings = self._leftovers.findings(
            self._talk.before,
            after,
            failed=self._ledger.failed,
            said=self._ledger.all_said,
            fault=self._ledger.fault,
        )
        left = ", ".join(one.id.split(":")[2] for one in findings)
        reason = f"not as before the order: {left}" if left else None
        detail = {"what": "footprint"}
        if after.absent:
            detail["not looked at"] = ", ".join(sorted(after.absent))
        self._keep(None, reply, reason, detail, kind="leftover", subject="footprint", findings=findings)

    def _files(self, step: Step) -> None:
        """Each file of debugfs and sysfs is read: what belongs to one may be gone."""
        reply = self._talk.command(Verb.LOOK)
        got = self._talk.answered(reply, "check", "files")
        reason = f"no file can be read: {errno_name(got.errno)}" if got.errno else None
        self._keep(step, reply, reason, {"what": "files", "read": str(got.output)}, kind="files", subject="files")

    def _leaks(self, step: Step) -> None:
        """The kernel looks for memory that nothing points to; that of a module's is a finding each."""
        reply = self._talk.command(Verb.LEAKS, seconds=SCAN_SECONDS)
        got = self._talk.answered(reply, "check", "leaks")
        if got.errno:
            absent = errno_name(got.errno) == "ENOENT"
            status = Status.SKIP if absent else Status.ERROR
            why = "this kernel has no kmemleak (--flavour debug builds one that has)"
            why = why if absent else f"kmemleak does not look: {errno_name(got.errno)}"
            self._keep(step, reply, why, {"what": "leaks"}, kind="leaks", subject="leaks", status=status)
            return
        lines = [line for part in reply.items if part.what == "leak" for line in part.items]
        leaks = read_leaks(lines, self._leftovers.functions)
        findings = findings_of_leaks(leaks, self._ledger.order.id)
        # What the kernel itself lost is not the modules' doing.
        others = sum(leak.module is None for leak in leaks)
        detail = {"what": "leaks", "found": str(len(leaks) - others), "of the kernel itself": str(others)}
        reason = "; ".join(one.message for one in findings) or None
        self._keep(step, reply, reason, detail, kind="leftover", subject="leaks", findings=findings)

    def forget_leaks(self) -> None:
        """What was lost before the order is not its own."""
        reply = self._talk.command(Verb.LEAKS, seconds=SCAN_SECONDS)
        self._talk.answered(reply, "check", "leaks before the order")

    def _memory(self) -> None:
        reply = self._talk.command(Verb.MEMORY)
        self._talk.answered(reply, "check", "memory")
        sample = sample_of(reply.items)
        self._samples.append(sample)
        totals = {name: str(count) for name, count in sample.items() if "/" not in name}
        absent = ", ".join(item for part in reply.items if part.what == "absent" for item in part.items)
        detail = {"what": "memory", **totals} | ({"not looked at": absent} if absent else {})
        self._keep(None, reply, None, detail, kind="drift", subject="memory")

    def _drift(self, step: Step) -> None:
        found = drifts(self._samples)
        findings = [
            Finding(
                id=finding_id("load", "drift", one.name, self._ledger.order.id),
                status=Status.FAIL,
                message=str(one),
                evidence=(", ".join(map(str, one.values)),),
            )
            for one in found
        ]
        reason = "; ".join(map(str, found)) or None
        detail = {"what": "drift", "samples": str(len(self._samples))}
        self._keep(step, self._talk.nothing(), reason, detail, kind="leftover", subject="drift", findings=findings)

    def _log(self, step: Step) -> None:
        """Of all that the kernel said since the order began."""
        reply = self._talk.command(Verb.MODULES)  # what it said late comes with the next answer
        self._talk.answered(reply, "check", "log")
        said = self._ledger.said
        # Where records were lost nobody knows what is missing, and the order has an ERROR for it.
        missing = [name for name in step.log.must if name not in said] if not self._ledger.lost else []
        reasons = [f"it has no line of '{name}'" for name in missing]
        reasons += [f"it has '{said[name]}'" for name in step.log.must_not if name in said]
        reason = f"the log of the order: {', '.join(reasons)}" if reasons else None
        self._keep(step, reply, reason, {"what": "log"}, kind="log", subject="log")

    def _state(self, step: Step) -> None:
        state, reply = self._talk.modules(step.check or "")
        detail = {"what": str(step.check)}
        if step.check == "kvm-device":
            there = "dev/kvm" in state.facts
            reason = (
                None if there == (step.present is not False) else f"/dev/kvm is {'there' if there else 'not there'}"
            )
            self._keep(step, reply, reason, detail, kind="state", subject="/dev/kvm")
            return
        module = step.module or ""
        needed = {"sysfs"} if step.state is not None else set()
        if step.refs is not None or step.holders is not None:
            needed.add("modules")
        if unseen := needed & state.absent:
            reason = f"module {module}: this kernel does not show {' and '.join(sorted(unseen))}"
            self._keep(step, reply, reason, detail, kind="state", subject=module, status=Status.ERROR)
            return
        wrong = [f"expected {wanted}, is {got}" for wanted, got in _of_module(step, state) if wanted != got]
        reason = f"module {module}: {'; '.join(wrong)}" if wrong else None
        self._keep(step, reply, reason, detail, kind="state", subject=module)

    def _keep(
        self,
        step: Step | None,
        reply: Reply,
        reason: str | None,
        detail: dict[str, str],
        *,
        kind: str,
        subject: str,
        findings: Sequence[Finding] = (),
        status: Status = Status.FAIL,
    ) -> None:
        """Keep what a check saw; with a `reason` it was not as it should be."""
        why = step.why if step else None
        if reason and why:
            reason += f" ({why})"
        result = StepResult(
            number=self._ledger.next_number,
            action="check",
            module=step.module if step else None,
            status=Status.PASS if reason is None else status,
            reason=reason,
            why=why,
            detail=detail,
        )
        self._ledger.keep(result, reply, kind=kind, subject=subject, leftovers=findings)


def _of_module(step: Step, state: State) -> list[tuple[str, str]]:
    """What is wanted of a module and what there is, for a person."""
    module, facts = step.module, state.facts
    found: list[tuple[str, str]] = []
    if step.state is not None:
        found.append((step.state, facts.get(f"sysfs/{module}", "absent")))
    if f"modules/{module}" not in facts and (step.refs is not None or step.holders is not None):
        return [*found, ("loaded", "not there")]
    if step.refs is not None:
        found.append((f"refs {step.refs}", f"refs {facts.get(f'modules/{module}/refs')}"))
    if step.holders is not None:
        # kernel/module/procfs.c, print_unload_info(): "a,b," or "-"; one of them is no module
        listed = facts.get(f"modules/{module}/holders", "").split(",")
        holders = {name for name in listed if name not in ("", "-", "[permanent]")}
        found.append((_used_by({*step.holders}), _used_by(holders)))
    return found


def _used_by(holders: set[str]) -> str:
    return f"used by {', '.join(sorted(holders)) or 'no module'}"
