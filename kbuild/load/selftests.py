"""The step `selftest`: KVM's own test programs, one after the other, each a result of its own."""

from __future__ import annotations

import fnmatch
import itertools
import re
import signal
from collections.abc import Sequence
from enum import IntEnum

from kbuild.hosts.spec import HostSpec
from kbuild.load.conversation import Conversation
from kbuild.load.knowledge import Knowledge
from kbuild.load.ledger import Ledger
from kbuild.load.orders.format import Expectation, Step
from kbuild.load.protocol import Items, Result, Verb, errno_name
from kbuild.load.request import LoadRequest
from kbuild.outcome import Finding, Status, finding_id
from kbuild.transcript import StepResult

SECONDS = 60
"""Of the guest's clock, for each test whose step says nothing else."""
MAX_EVIDENCE = 60
NOT_STARTED = 127
"""The agent's: the program could not be executed (`selftest.c`)."""
SKIPPED_ITSELF = "it skipped itself: "
"""How the reason begins of a test that ran, and would not."""
_SKIPPED = (re.compile(r"# *SKIP\b[\s:-]*(.+)"), re.compile(r"(.*\bskip.*)", re.IGNORECASE))
"""kselftest.h, ksft_exit_skip(), and what tests print that are older."""
_FAILED = "==== Test Assertion Failure ===="
"""tools/testing/selftests/kvm/lib/assert.c, test_assert(); the next line says where and what."""


class Exit(IntEnum):
    """Exit statuses with a meaning: tools/testing/selftests/kselftest.h, KSFT_*. Any other one is a failure."""

    PASS = 0
    XFAIL = 2
    """It failed where it is known to."""
    SKIP = 4


class Selftests:
    """The tests of one order that is being run."""

    def __init__(
        self, request: LoadRequest, spec: HostSpec, knowledge: Knowledge, talk: Conversation, ledger: Ledger
    ) -> None:
        self._programs = request.selftests
        self._request = request
        self._spec = spec
        self._knowledge = knowledge
        self._talk = talk
        self._ledger = ledger

    def run(self, step: Step) -> None:
        """Run each test that the step means."""
        assert step.selftest is not None
        done: set[str] = set()
        for asked in step.selftest:
            names = self._programs.named(asked)
            lacking = self._programs.lacking(asked)
            if not names and not lacking:
                self._skip(asked, self._programs.why_not(asked))
            for name, why in lacking.items():
                if name not in done:
                    done.add(name)
                    self._skip(name, why)
            for name in names:
                if name in done:
                    continue
                done.add(name)
                if (gap := self._gap(name)) is not None:
                    self._skip(name, f"{self._spec.id} cannot run it: {gap}")
                else:
                    self._run(name, step)

    def _gap(self, name: str) -> str | None:
        return next((gap.reason for gap in self._spec.gap if fnmatch.fnmatchcase(name, gap.selftest)), None)

    def _skip(self, name: str, reason: str) -> None:
        result = StepResult(
            number=self._ledger.next_number,
            action="selftest",
            status=Status.SKIP,
            reason=f"selftest {name}: {reason}",
            detail={"test": name},
        )
        self._ledger.keep(result, self._talk.nothing(), kind="selftest", subject=name)

    def _run(self, name: str, step: Step) -> None:
        seconds = step.seconds or SECONDS
        expectation = Expectation(why=step.why or "", log=step.log)
        reply = self._talk.command(Verb.SELFTEST, name, str(seconds), seconds=seconds)
        blamed, known = self._blame(name)
        # Also where it takes the machine down, as one does that goes where the emulator has a gap.
        excuse = known if blamed != Status.FAIL else ""
        got = self._talk.answered(reply, "selftest", name, expectation, excuse)
        said = said_by(reply.items)
        status, how = outcome(got, said, seconds)
        cause = "selftest"
        if status == Status.FAIL:
            cause = "selftest-crash" if got.signal else "selftest"
            status, how = blamed, f"{how}; {known}"
        elif status == Status.PASS:
            self._knowledge.note(f"selftest:{name}", self._request.built, self._request.run)
        reason = f"selftest {name}: {how}" if how else None
        place = f"{self._ledger.name}/{self._ledger.at.place if self._ledger.at else 0}-selftest"
        findings: list[Finding] = []
        if reason and status.counts:
            id_ = finding_id("load", cause, name, place)
            findings = [Finding(id=id_, status=status, message=reason, evidence=_evidence(said))]
        result = StepResult(
            number=self._ledger.next_number,
            action="selftest",
            status=status,
            reason=reason,
            why=step.why,
            detail={"test": name} | _ended(got),
            output=said,
        )
        self._ledger.keep(result, reply, expectation, kind=cause, subject=name, leftovers=findings)

    def _blame(self, name: str) -> tuple[Status, str]:
        """A test that was never seen to pass here may fail for what the emulator, or this configuration, lacks."""
        run = self._knowledge.has_done(f"selftest:{name}", self._request.built)
        if run:
            return Status.FAIL, f"{self._spec.id} has seen it pass with a kernel of this kind (run {run})"
        where = f"on {self._spec.id} yet: what the host cannot do belongs into its file, as a [[gap]]"
        return Status.ERROR, f"no kernel of this kind was seen to pass it {where}"


def said_by(items: Sequence[Items]) -> list[str]:
    """What a program printed, line by line."""
    return [line for part in items if part.what == "output" for line in part.items]


def outcome(got: Result, said: Sequence[str], seconds: int) -> tuple[Status, str | None]:
    """What a test's end means, and a sentence where it is no pass."""
    last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    if errno_name(got.errno) == "ETIMEDOUT":
        return Status.ERROR, f"it did not end within {seconds} s of the guest's time, and was killed"
    if got.errno:
        return Status.ERROR, f"it cannot be run: {errno_name(got.errno)}"
    if got.signal == signal.SIGKILL:
        return Status.ERROR, "it was killed, as the kernel does where the machine has too little memory"
    if got.signal is not None:
        return Status.FAIL, f"it crashed: {_signal(got.signal)}"
    match got.status:
        case None:
            return Status.ERROR, "the agent does not say how it ended"
        case Exit.PASS | Exit.XFAIL:
            return Status.PASS, None
        case Exit.SKIP:
            matches = (pattern.search(line) for pattern in _SKIPPED for line in said)
            why = next((match[1] for match in matches if match), last)
            return Status.SKIP, f"{SKIPPED_ITSELF}{why}"
        case _ if got.status == NOT_STARTED:
            return Status.ERROR, f"it cannot be run: {last}"
        case _:
            return Status.FAIL, f"it failed with status {got.status}: {_assertion(said) or last}"


def _assertion(said: Sequence[str]) -> str | None:
    for line, following in itertools.pairwise(said):
        if _FAILED in line:
            return following.strip()
    return None


def _evidence(said: Sequence[str]) -> tuple[str, ...]:
    start = next((at for at, line in enumerate(said) if _FAILED in line), max(0, len(said) - MAX_EVIDENCE))
    return tuple(said[start : start + MAX_EVIDENCE])


def _ended(got: Result) -> dict[str, str]:
    detail = {"status": str(got.status)} if got.status is not None else {}
    if got.signal is not None:
        detail["signal"] = _signal(got.signal)
    if got.cut:
        detail["cut"] = f"{got.cut} bytes in the middle of the output"
    return detail


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
