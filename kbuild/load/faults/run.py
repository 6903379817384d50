"""A run of an order that is swept: the count of its allocations, one point, or what follows a failure at a site."""

from __future__ import annotations

import msgspec

from kbuild.load.boot import Prepared
from kbuild.load.faults.inject import Injection
from kbuild.load.faults.points import points, rest, swept
from kbuild.load.orders.format import SUCCESS
from kbuild.load.orders.plan import PlannedStep
from kbuild.load.protocol import Verb
from kbuild.load.run_order import OrderRun
from kbuild.outcome import Status
from kbuild.transcript import Transcript


class SweepRun(OrderRun):
    """What is before the step `inject` is done once in a guest; its points then share that guest."""

    site: str | None = None
    """Of the call that failed, when a point has been run."""
    missed = False
    """What follows a failure was to be done, and it was another call site that failed."""
    _only_counted: str | None = None

    def run(self) -> Transcript:
        """See `OrderRun.run`. Where what was asked for did not happen, nothing was judged, however the rest went."""
        transcript = super().run()
        skipped = [step.reason for step in transcript.steps if step.action == "inject" and step.status == Status.SKIP]
        if transcript.status not in (Status.PASS, Status.SKIP):
            return transcript
        if self.missed:
            reason = f"in {self._plan.tried + 1} fresh guests other allocations failed than one in {self._plan.after}"
            return msgspec.structs.replace(transcript, status=Status.ERROR, reason=reason)
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
        if self._plan.after:
            assert self._plan.point is not None
            self.missed = not injection.fail(self._plan.point)
            if not self.missed:
                self._steps(rest(self._plan))
        elif self._plan.point is None:
            total = injection.count()
            self.more = points(self._plan, total)
            if self._plan.only or not self.more:
                self._only_counted = f"counted what to choose from: {total} allocations"
        elif site := injection.point(self._plan.point):
            self.site = site.name

    def _prepare(self, planned: PlannedStep) -> None:
        key = self._plan.order
        if (prepared := self._boot.prepared) is None or prepared.order != key:
            self._steps(self._plan.steps[: self._plan.steps.index(planned)])
            self._load_needed(planned)
            if self._plan.after:
                return  # the rest of the order is held against the host as it was before all of it
            state, _ = self._talk.whole("state before the first failure")
            prepared = Prepared(key, state, {*self._loaded}, [*self._added])
            self._boot.prepared = prepared
        self._loaded, self._added = {*prepared.loaded}, [*prepared.added]
        self._talk.before = prepared.state

    def _load_needed(self, planned: PlannedStep) -> None:
        """What the module depends on is no part of the sweep."""
        assert planned.step.module is not None
        self._ledger.at = planned
        self._load_dependencies(planned.step.module)

    def _injection(self, planned: PlannedStep) -> Injection:
        module = planned.step.module
        assert module is not None

        def call(verb: Verb, why: str) -> None:
            params = planned.step.given if verb is Verb.LOAD else {}
            self._call(verb, module, params, SUCCESS, added=why or "brings the host back to where it was")

        def note(verb: Verb) -> None:
            (self._loaded.add if verb is Verb.LOAD else self._loaded.discard)(module)

        file = f"{self._request.modules[module].name}.ko"
        return Injection(self._plan, planned.step, self._talk, self._ledger, file, call, note, self._checks.footprint)
