"""Steps that are about the machine: CPUs that go and come, several commands at once, sleep, and the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kbuild.hosts.emulator import POWERED_OFF, REBOOTED
from kbuild.load.conversation import Conversation, StopError
from kbuild.load.judge import Judge, Judged
from kbuild.load.ledger import Ledger
from kbuild.load.leftovers import NO_ANSWER
from kbuild.load.orders.format import SUCCESS, Expectation, Step, kernel_name, outcome_number
from kbuild.load.protocol import Result, Verb, errno_name
from kbuild.load.session import End, Reply
from kbuild.outcome import Status
from kbuild.transcript import StepResult

Part = tuple[int, str, Sequence[str]]
"""Of what is done at once: a CPU, a verb and its arguments."""
PART_FIELDS = 3
"""Of a part, as the agent tells it: its errno, when it began, how long it took."""


class MachineSteps:
    """Of one order that is being run."""

    def __init__(self, talk: Conversation, ledger: Ledger, judge: Judge) -> None:
        self._talk = talk
        self._ledger = ledger
        self._judge = judge
        self.cannot: str | None = None
        """Why this kernel or machine cannot do what was asked for: nothing was judged then."""

    def cpu(self, step: Step, expectation: Expectation) -> None:
        """Take a CPU away, or give it back."""
        assert step.cpu is not None
        how, number = step.cpu.words
        reply = self._talk.command(Verb.CPU, how, number)
        subject = f"cpu{number}-{how}"
        got = self._talk.answered(reply, "cpu", subject, expectation)
        known = f"cpu:{how}"
        judged = self._unless_slow(self._judge.errno(f"CPU {number} {how}", got.errno, expectation, known), reply)
        self._keep("cpu", subject, got, reply, expectation, {how: number}, judged)
        if got.errno == 0:
            self._judge.note(known)

    def suspend(self, step: Step, expectation: Expectation) -> None:
        """Suspend to RAM, as far as the step says, and come back."""
        level = str(step.suspend)
        reply = self._talk.command(Verb.SUSPEND, level)
        got = self._talk.answered(reply, "suspend", level, expectation)
        detail = {"to": level}
        if got.where is not None:
            # What had to be set up before is not there: nobody was asked to sleep.
            self.cannot = f"no suspend to '{level}' here: {got.where}: {errno_name(got.errno)}"
            self._keep("suspend", level, got, reply, expectation, detail, (Status.SKIP, self.cannot))
            raise StopError
        known = f"suspend:{level}"
        judged = self._judge.errno(f"suspend to '{level}'", got.errno, expectation, known)
        self._keep("suspend", level, got, reply, expectation, detail, judged)
        if got.errno == 0:
            self._judge.note(known)

    def together(self, parts: Sequence[Part], expectation: Expectation) -> list[int]:
        """Do several things at once, each a CPU, a verb and its arguments; gives the errno of each."""
        words: list[str] = []
        for cpu, verb, arguments in parts:
            words += [*([";"] if words else []), str(cpu), verb, *arguments]
        said = [f"{verb} {' '.join(arguments)} on CPU {cpu}" for cpu, verb, arguments in parts]
        reply = self._talk.command(Verb.TOGETHER, *words)
        got = self._talk.answered(reply, "together", "parts", expectation)
        fields = [part.split(" ") for part in got.parts]
        if len(fields) != len(parts) or not all(len(f) == PART_FIELDS and all(map(str.isdigit, f)) for f in fields):
            reason = f"the agent told of {len(fields)} parts and not of {len(parts)}, or not as it should"
            self._keep("together", "parts", got, reply, expectation, {}, (Status.ERROR, reason))
        errnos = [int(one[0]) for one in fields]
        allowed = [[*map(outcome_number, names)] for names in expectation.errnos] or [[0] * len(parts)]
        came = ", ".join(errno_name(number) or "success" for number in errnos)
        detail = {
            what: f"{errno_name(number) or 'success'}, from {begin} to {int(begin) + int(took)} µs"
            for what, number, (_, begin, took) in zip(_told_apart(said), errnos, fields, strict=True)
        }
        judged: Judged = (Status.PASS, None)
        if errnos not in allowed:
            wanted = " or ".join(f"({', '.join(errno_name(n) or 'success' for n in one)})" for one in allowed)
            reason = f"{' and '.join(said)} at once: expected {wanted}, got ({came})"
            reason += f" ({expectation.why})" if expectation is not SUCCESS else ""
            judged = self._blamed(reason, [one for one, number in zip(parts, errnos, strict=True) if number])
            judged = self._unless_slow(judged, reply)
        self._keep("together", "parts", got, reply, expectation, detail, judged)
        for part, number in zip(parts, errnos, strict=True):
            if not number and (known := _known(part)):
                self._judge.note(known)
        return errnos

    def _blamed(self, reason: str, failed: Sequence[Part]) -> Judged:
        """Whose fault it is that parts failed which were not to: not the kernel's, where no host was seen to do one."""
        judged = [self._judge.blamed(reason, _known(part)) for part in failed]
        return next(
            (one for one in judged if one[0] is not Status.FAIL), judged[0] if judged else (Status.FAIL, reason)
        )

    def _unless_slow(self, judged: Judged, reply: Reply) -> Judged:
        """The same, unless a CPU did not answer: then the emulator may have been too slow."""
        if judged[0] is not Status.FAIL or all(one.signature != NO_ANSWER for one in self._ledger.classified(reply)[0]):
            return judged
        return Status.ERROR, f"{judged[1]}; the CPU did not answer, and the emulator may have been too slow for it"

    def reboot(self, step: Step) -> bool:
        """The guest's end: it says its last word, and then the machine goes off or is reset."""
        restart = step.reboot == "restart"
        reply = self._talk.end(Verb.RESTART if restart else Verb.POWEROFF)
        did = reply.detail.rpartition(": ")[2]
        said_bye = self._ledger.boot.session.said_bye
        off = reply.end is End.EXIT and said_bye and did == (REBOOTED if restart else POWERED_OFF)
        if not off:
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
        return off

    def _keep(
        self,
        action: str,
        subject: str,
        got: Result,
        reply: Reply,
        expectation: Expectation,
        detail: Mapping[str, str],
        judged: tuple[Status, str | None],
    ) -> None:
        """Keep what came of a step; one that did not go as expected is the order's last one."""
        self._ledger.keep_errno(action, got, reply, expectation, judged, subject=subject, detail=dict(detail))
        if judged[0] not in (Status.PASS, Status.SKIP):
            raise StopError


def _known(part: Part) -> str | None:
    """What a host is known to do where it has done that part; None: any does."""
    _, verb, arguments = part
    if verb == Verb.LOAD:
        return f"load:{kernel_name(arguments[0].removesuffix('.ko'))}"
    return f"cpu:{arguments[0]}" if verb == Verb.CPU else None


def _told_apart(names: Sequence[str]) -> list[str]:
    """The same with a number behind those that come twice."""
    return [name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, 1)]
