"""A run of an order that is swept: the count of its allocations, one point, or what follows a failure at a site."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec

from kbuild.load.boot import Prepared
from kbuild.load.faults.inject import UNSEEN, Injection
from kbuild.load.faults.points import nearby, number, points, rest, swept
from kbuild.load.orders.format import SUCCESS, kernel_name
from kbuild.load.orders.plan import KINDS, Kind, Plan, PlannedStep
from kbuild.load.protocol import Verb
from kbuild.load.run_order import OrderRun
from kbuild.outcome import Finding, Status, finding_id
from kbuild.transcript import Transcript


class SweepRun(OrderRun):
    """What is before the step `inject` is done once in a guest; its points then share that guest."""

    site: str | None = None
    """Of the call that failed, when a point has been run."""
    again: Plan | None = None
    """To be done elsewhere: what follows a failure, where others failed here and left something; and what ended the
    guest before it could tell whose allocation had failed."""
    tried = 0
    """Numbers around the one that was to fail."""
    missed = False
    """No allocation at the call site was come to."""
    following: Sequence[Plan] = ()
    """The points behind this one, which the agent may do with it in one go."""
    _only_counted: str | None = None

    @property
    def died(self) -> bool:
        """The guest came to its end, or hung, when the allocation had failed, and is known by whose that was."""
        return self._ledger.fault not in ("", UNSEEN) and self._boot.session.ended is not None

    def run(self) -> Transcript:
        """See `OrderRun.run`. Where what was asked for did not happen, nothing was judged, however the rest went."""
        transcript = super().run()
        if self._ledger.fault == UNSEEN and not self._plan.loud and transcript.status in (Status.FAIL, Status.ERROR):
            self.again = dataclasses.replace(self._plan, loud=True)
        skipped = [step.reason for step in transcript.steps if step.action == "inject" and step.status == Status.SKIP]
        if transcript.status not in (Status.PASS, Status.SKIP):
            return transcript
        if self.missed:
            reason = f"with {self.tried + 1} numbers other allocations failed than one in {self._plan.after}"
            cause = finding_id("load", "not-reached", self._plan.order, f"fault={self._plan.after}")
            missed = Finding(
                id=cause,
                status=Status.ERROR,
                message=reason,
                host=transcript.host,
                order=transcript.order,
                reproduce=transcript.reproduce,
            )
            findings = [*transcript.findings, missed]
            return msgspec.structs.replace(transcript, status=Status.ERROR, reason=reason, findings=findings)
        if reasons := [*skipped, *([self._only_counted] if self._only_counted else [])]:
            return msgspec.structs.replace(transcript, status=Status.SKIP, reason=reasons[0])
        return transcript

    def do(self) -> None:
        """See `OrderRun.do`; the host is again as the points found it."""
        planned = swept(self._plan)
        assert planned is not None
        self._prepare(planned)
        self._ledger.at = planned
        injection = self._injection(planned)
        if self._plan.loud:
            self._talk.command(Verb.LOUD)
        if self._plan.after:
            self._follow(injection)
        elif self._plan.point is None:
            totals: dict[Kind, int] = {kind: injection.count(kind) for kind in KINDS}
            self.more = points(self._plan, totals)
            if self._plan.only or not self.more:
                counted = " and ".join(f"{total} {kind}" for kind, total in totals.items())
                self._only_counted = f"counted what to choose from: {counted}"
        else:
            if planned.step.inject == "load" and not self._plan.loud:
                self._take_ahead(injection, self._plan.point)
            if site := injection.point(self._plan.point):
                self.site = site.name

    def _follow(self, injection: Injection) -> None:
        """Come to a failure at the call site, and do what is to follow it.

        Numbers around the one that is known are tried, as long as those that fail leave the guest as it was.
        """
        assert self._boot.prepared is not None
        plan: Plan | None = self._plan
        while plan is not None:
            self.tried = plan.tried
            if injection.fail(number(plan)):
                self._steps(rest(self._plan))
                return
            plan = nearby(plan)
            if plan and not self._talk.is_still(self._boot.prepared.state, "state after another failure"):
                self.again = plan
                return
        self.missed = True

    def _take_ahead(self, injection: Injection, point: int) -> None:
        """Let the agent do this point and the following ones by itself, unless it has."""
        if point not in self._boot.ahead:
            self._boot.ahead = injection.ahead(point, point + len(self.following))
        self._talk.ahead = self._boot.ahead.pop(point)
        self._talk.passed = bool(self._boot.ahead)

    def _is_clean(self) -> bool:
        return self._talk.passed or super()._is_clean()

    def _prepare(self, planned: PlannedStep) -> None:
        key = self._plan.order
        if (prepared := self._boot.prepared) is None or prepared.order != key:
            self._steps(self._plan.steps[: self._plan.steps.index(planned)])
            self._load_needed(planned)
            state, _ = self._talk.whole("state before the first failure")
            prepared = Prepared(key, state, {*self._loaded}, [*self._added])
            self._boot.prepared = prepared
        if self._plan.after:
            return  # the rest of the order is held against the host as it was before all of it
        self._loaded, self._added = {*prepared.loaded}, [*prepared.added]
        self._leftovers.tried |= prepared.loaded
        self._talk.before = prepared.state

    def _load_needed(self, planned: PlannedStep) -> None:
        """What the module depends on is no part of the sweep."""
        assert planned.step.module is not None
        self._ledger.at = planned
        self._load_dependencies(planned.step.module)

    def _injection(self, planned: PlannedStep) -> Injection:
        module = planned.step.module
        assert module is not None
        self._leftovers.tried.add(kernel_name(module))

        def call(verb: Verb, why: str) -> None:
            params = planned.step.given if verb is Verb.LOAD else {}
            self._call(verb, module, params, SUCCESS, added=why or "brings the host back to where it was")

        def note(verb: Verb) -> None:
            (self._loaded.add if verb is Verb.LOAD else self._loaded.discard)(module)

        file = f"{self._request.modules[module].name}.ko"
        return Injection(self._plan, planned.step, self._talk, self._ledger, file, call, note, self._checks.footprint)
