"""One point of a sweep: a load or unload in which one allocation fails, and what has to be so afterwards."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from kbuild.load.conversation import Conversation, StopError
from kbuild.load.evidence import records_of
from kbuild.load.faults.ahead import OUT_OF_MEMORY, Ahead, split
from kbuild.load.faults.points import wanted
from kbuild.load.faults.site import NOT_TOLD, Site, site_of
from kbuild.load.judge import Judged
from kbuild.load.ledger import Ledger
from kbuild.load.orders.conditions import Facts, holds
from kbuild.load.orders.format import SUCCESS, Expectation, Step, Tolerated
from kbuild.load.orders.plan import Kind, Plan
from kbuild.load.protocol import Result, Verb, errno_name
from kbuild.load.session import Reply
from kbuild.outcome import Status
from kbuild.transcript import StepResult

NEVER = (1 << 31) - 1
"""More allocations than any load makes: with it, they are counted."""
UNSEEN = "unseen"
"""In place of a call site, where the guest came to its end, or hung, before its log had told of the failure."""


@dataclass
class Injection:
    """The step `inject` of an order that is being run."""

    plan: Plan
    step: Step
    talk: Conversation
    ledger: Ledger
    file: str
    """Of the module: `kvm-intel.ko`."""
    call: Callable[[Verb, str], None]
    """Load or unload the module as usual; it has to succeed."""
    note: Callable[[Verb], None]
    """Told of each load and unload that has happened here."""
    footprint: Callable[[], None]
    """Hold the host against what it was before."""

    def count(self, kind: Kind) -> int:
        """Do it without a failure. Returns how many allocations of a kind there are; the host is as before."""
        if self.step.inject == "unload":
            self.call(Verb.LOAD, "")
        reply, got = self._inject(NEVER, kind)
        total = NEVER - (got.left if got.left is not None else NEVER)
        reason = None
        if got.errno or got.left is None:
            reason = f"{self._what}: {errno_name(got.errno)}{f' ({got.where})' if got.where else ''}"
        status = Status.ERROR if reason else Status.PASS
        if got.where:
            status = Status.SKIP
            reason = f"this kernel lets no allocation fail on request: it takes --flavour fault ({got.where})"
        self._keep(reply, got, {kind: str(total)}, status, reason)
        if reason:
            raise StopError
        if self.step.inject == "load":
            self.call(Verb.UNLOAD, "")
        return total

    def point(self, number: int) -> Site | None:
        """Let that allocation fail, judge what comes of it, and bring the host back to where it was.

        Returns the call site; None where the load came to its end before it, or where it is not one that was asked for.
        """
        unload = self.step.inject == "unload"
        if unload:
            self.call(Verb.LOAD, "")
        reply, got = self._inject(number, self.plan.kind)
        site = site_of(records_of(reply)) if got.left == 0 else None
        name = site.name if site else NOT_TOLD
        self.ledger.fault = name if got.left == 0 else ""
        detail = {"site": name, "stack": site.stack if site else ""} if got.left == 0 else {}
        if got.left != 0 and (otherwise := self._not_come_to(got)) is not None:
            self._keep(reply, got, detail, *otherwise)
            raise StopError
        if got.left != 0 or not wanted(self.plan, name):
            reason = "another call site" if got.left == 0 else "the load made fewer allocations"
            self._keep(reply, got, detail, Status.SKIP, reason)
            self._undo(got)
            return None
        status, wrong, tolerated = self._judge(got, site or Site(name, ()))
        self._keep(reply, got, detail | tolerated, status, wrong)
        if status != Status.PASS and got.errno:
            raise StopError
        self._undo(got)
        self.footprint()
        if not unload:
            self.call(Verb.LOAD, "the next load after a failure")
            self.call(Verb.UNLOAD, "the next load after a failure")
            if not self.talk.passed:
                self.footprint()
        return site or Site(NOT_TOLD, ())

    def ahead(self, first: int, last: int) -> dict[int, Ahead]:
        """Have the agent do these points by itself, as far as each leaves everything as it was."""
        reply = self.talk.command(
            Verb.SWEEP, self.plan.kind, str(first), str(last), self.talk.before.hash, *self._words
        )
        return split(reply, first, last)

    def fail(self, number: int) -> bool:
        """Let that allocation fail and leave the host as it is then, but for the module.

        False where it is another call site: in another guest the same number may be another allocation.
        """
        if self.step.inject == "unload":
            self.call(Verb.LOAD, "")
        reply, got = self._inject(number, self.plan.kind)
        site = site_of(records_of(reply)) if got.left == 0 else None
        name = site.name if site else NOT_TOLD
        hit = got.left == 0 and name == self.plan.after
        self.ledger.fault = self.plan.after
        self._keep(reply, got, {"site": name} if hit else {"another site": name}, Status.PASS, None)
        self._undo(got)
        return hit

    @property
    def _what(self) -> str:
        return f"{self.step.inject} {self.step.module}"

    @property
    def _words(self) -> tuple[str, ...]:
        """What is loaded, with its parameters."""
        return self.file, *(f"{name}={value}" for name, value in self.step.given.items())

    def _inject(self, number: int, kind: Kind) -> tuple[Reply, Result]:
        assert self.step.inject is not None
        assert self.step.module is not None
        loads = self.step.inject == "load"
        words = self._words if loads else (self.step.module,)
        reply = self.talk.command(Verb.FAULT, kind, str(number), self.step.inject, *words)
        if not isinstance(reply.answer, Result) and number != NEVER:
            # What it led to is another finding than the same without it, also where the guest had no time to tell.
            site = site_of(records_of(reply))
            self.ledger.fault = site.name if site else UNSEEN
        got = self.talk.answered(reply, "inject", self.step.module)
        if got.errno == 0:
            self.note(Verb.LOAD if loads else Verb.UNLOAD)
        return reply, got

    def _not_come_to(self, got: Result) -> Judged | None:
        """What is wrong where the allocation was not come to; None: there are fewer of them."""
        errno = errno_name(got.errno) or "success"
        if got.left is None:
            where = f" ({got.where})" if got.where else ""
            return Status.ERROR, f"{self._what}: the agent could not let an allocation fail: {errno}{where}"
        if got.errno:
            return Status.FAIL, f"{self._what}: {errno} by itself: it ended before the allocation that was to fail"
        return None

    def _undo(self, got: Result) -> None:
        """Unload what was loaded; of an unload that was refused, do it."""
        if (got.errno == 0) == (self.step.inject == "load"):
            self.call(Verb.UNLOAD, "")

    def _judge(self, got: Result, at: Site) -> tuple[Status, str | None, dict[str, str]]:
        errno, site = errno_name(got.errno) or "success", at.name
        if self.step.inject == "unload":
            if got.errno == 0:
                return Status.PASS, None, {}
            return Status.FAIL, f"{self._what}: {errno} when memory is short in {site}; it has to succeed", {}
        if got.errno == OUT_OF_MEMORY:
            return Status.PASS, None, {}
        if got.errno:
            return Status.FAIL, f"{self._what}: expected ENOMEM when memory is short in {site}, got {errno}", {}
        if (declared := tolerated_at(self.step, at, self.plan.facts)) is not None:
            return Status.PASS, None, {"tolerated": f"{declared.reason} ({declared.source})"}
        return Status.FAIL, f"{self._what}: succeeds though memory is short in {site}, which nothing declares", {}

    def _keep(self, reply: Reply, got: Result, detail: dict[str, str], status: Status, reason: str | None) -> None:
        point = {"allocation": self.plan.allocation} if self.plan.point else {}
        expectation = Expectation(why=self.step.why or SUCCESS.why, log=self.step.log)
        result = StepResult(
            number=self.ledger.next_number,
            action="inject",
            module=self.step.module,
            status=status,
            reason=reason,
            params=self.step.given,
            errno=errno_name(got.errno),
            expected="ENOMEM" if self.plan.point and self.step.inject == "load" else None,
            detail={"over": str(self.step.inject), **point, **detail},
        )
        self.ledger.keep(result, reply, expectation, kind="fault")


def tolerated_at(step: Step, at: Site, facts: Facts) -> Tolerated | None:
    """The first declaration that lets a load go on without this allocation."""
    functions = {frame.function for frame in at.frames}
    return next(
        (
            one
            for one in step.tolerate
            if fnmatch.fnmatchcase(at.name, one.site)
            and (not one.through or one.through in functions)
            and holds(one.when, facts)
        ),
        None,
    )
