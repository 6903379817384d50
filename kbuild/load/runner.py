"""All orders on all hosts: machines side by side, each with as few boots as its orders allow."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import cached_property, partial

import msgspec

from kbuild import log
from kbuild.dmesg.classify import classify
from kbuild.dmesg.signatures import Severity
from kbuild.errors import HarnessError, JudgeError, KbuildError
from kbuild.hosts.spec import HostSpec, check, cpus_of, describe, digest, hindrance, is_remote, keeps
from kbuild.hosts.ssh.target import Target
from kbuild.hosts.visit import visit
from kbuild.load.between import with_rest
from kbuild.load.boot import Boot
from kbuild.load.evidence import findings_of, from_agent, hang_of, log_lines, records_of, without_answer
from kbuild.load.faults.ahead import AT_ONCE
from kbuild.load.faults.points import AROUND, afterwards, follows, moved, rest, swept
from kbuild.load.faults.run import SweepRun
from kbuild.load.knowledge import Knowledge
from kbuild.load.orders.conditions import Facts
from kbuild.load.orders.format import VENDOR_MODULES
from kbuild.load.orders.plan import Plan, make_plans
from kbuild.load.places import Place, Places
from kbuild.load.protocol import Result, Verb, errno_name
from kbuild.load.request import LoadRequest
from kbuild.load.run_order import OrderRun
from kbuild.load.session import Reply
from kbuild.load.state import State, parse_state
from kbuild.load.trace.record import warm_up
from kbuild.outcome import RUN_OF, Finding, Status, worst
from kbuild.paths import make_folder
from kbuild.progress import Reporter
from kbuild.transcript import LogLine, StepResult, Transcript, bounded

MANY_RUNS = 100
"""Of an order that is swept, as long as nobody knows how many these are."""
MAX_TOLD = 5
"""Runs of an order that are told while it goes on, of those that went wrong on a host."""


@contextlib.contextmanager
def loading(
    request: LoadRequest, reporter: Reporter, places: Places | None = None
) -> Iterator[Callable[[], list[Transcript]]]:
    """Run every order on every host, while the caller does something else.

    What the context gives waits for all of it, and returns the transcripts, hosts and orders as they were asked for.
    `places` may have machines that were booted ahead. Where the context ends early, by Ctrl-C or for what the caller
    found, all machines end first.
    """
    plans = {spec.id: plans_for(request, spec) for spec in request.hosts}
    with contextlib.ExitStack() as stack:
        if places is None:
            orders = max((sum(MANY_RUNS if swept(one) else 1 for one in some) for some in plans.values()), default=0)
            places = stack.enter_context(Places(request.hosts, orders))
        hosts = {spec.id: _Host(request, spec, plans[spec.id], reporter, places) for spec in request.hosts}
        work = [place.submit(partial(hosts[place.spec.id].work, place)) for place in places]

        def transcripts() -> list[Transcript]:
            for done in as_completed(work):
                done.result()
            return [transcript for host in hosts.values() for transcript in host.transcripts()]

        try:
            yield transcripts
        except BaseException:
            # Each place's thread sees its machine end; leaving the places waits for all of them.
            request.cancellation.cancel()
            raise


def plans_for(request: LoadRequest, spec: HostSpec) -> list[Plan]:
    """What of the orders is run on a host, and what is not and why. Raises UserError for one with too many runs."""
    facts = Facts(
        request.release,
        spec.vendor,
        request.symbols.__contains__,
        gives=spec.gives if request.smp else tuple(one for one in spec.gives if one != "smp"),
        smp=request.smp,
        suspends=request.suspends,
        parameters=request.parameters,
        depends=request.depends,
        selftests=request.selftests,
        traced=request.traced,
    )
    only = request.only
    plans = [plan for order in request.orders for plan in make_plans(order, facts, only.get(order.id, ()))]
    return [_left_out(plan) for plan in plans] if is_remote(spec) else plans


def _left_out(plan: Plan) -> Plan:
    """On a machine of its own: without what its agent does not do there (docs/agent.md, `--stdio`)."""
    ends = any(planned.step.reboot or planned.step.suspend for planned in plan.steps)
    why = "it switches the machine off, or lets it sleep: not a machine that is somebody's own"
    return dataclasses.replace(plan, skip=plan.skip or why) if ends else plan


class _Host:
    """One host and its orders, which its places take one after the other."""

    def __init__(
        self, request: LoadRequest, spec: HostSpec, plans: list[Plan], reporter: Reporter, places: Places
    ) -> None:
        self._request = request
        self._spec = spec
        self._reporter = reporter
        self._not_booted = {place for place in places if place.spec.id == spec.id}
        self._boots = len(self._not_booted)
        self._orders = plans
        self._transcripts = {plan.id: self._skipped(plan) for plan in self._orders if plan.skip}
        self._shown = {**self._transcripts}
        """The same with what is known marked, as they are told on the way."""
        self._waiting = deque(order for order in self._orders if order.id not in self._transcripts)
        self._left = Counter(order.order for order in self._waiting)
        self._stopped: list[tuple[Plan, int]] = []
        """Generated orders that could not go on, each with the number of requests that it came to."""
        self._target: Target | None = None
        """The host, while it is taken, where it is a machine of its own."""
        self._lock = threading.Condition()
        self._keeper: Place | None = None
        """Boots a guest that will be kept for all places, and is not there yet."""
        self._kept: tuple[Boot, State] | None = None
        """That guest, and the host's state before the first order."""
        self._using = 0
        """Places that start machines from it, besides the one that keeps it."""
        self._counting: set[str] = set()
        """Runs under way that bring more: a place waits for them before it ends."""
        self._sites: set[tuple[str, str]] = set()
        """Orders that are swept, each with the call sites that it came to so far."""
        self._shift: dict[str, int] = {}
        """By how much the numbers of an order's pages are others in a fresh guest, as far as was seen."""
        self._unnamed: dict[str, Transcript] = {}
        """Of points that ended their guest before it had told whose allocation failed, until they do so again."""
        if self._waiting and (missing := check(spec)):
            self._give_up(missing[0])
        if self._waiting and (reason := hindrance(spec)):
            self._give_up(reason, Status.SKIP)

    def transcripts(self) -> list[Transcript]:
        """Of all its orders, when the work is done."""
        return [self._transcripts.get(order.id) or self._not_run(order, "interrupted") for order in self._orders]

    def work(self, place: Place) -> None:
        """Run orders in this place as long as there are some that nobody runs."""
        with log.context(host=self._spec.id):
            try:
                if is_remote(self._spec):
                    self._visit(place)
                else:
                    self._work(place)
            except BaseException:
                self._nothing_more()
                raise
            place.discard()

    def _nothing_more(self) -> None:
        """Nothing comes of what this place was at: no other one may wait for it."""
        with self._lock:
            self._counting.clear()
            self._lock.notify_all()

    def _work(self, place: Place) -> None:
        while not self._request.cancellation.requested() and (order := self._next() or self._wait()):
            self._boot(place, order)

    def _visit(self, place: Place) -> None:
        """The same on a machine of its own, which is given back as it was, also after an interruption."""
        if not self._waiting:
            return
        try:
            tell, cancelled = partial(self._reporter.waits, place.label), self._request.cancellation.requested
            with visit(self._spec, self._request.run, tell, cancelled) as self._target:
                self._work(place)
        except HarnessError as error:
            if self._waiting:
                self._give_up(str(error))
            else:
                self._not_given_back(str(error))

    def _not_given_back(self, reason: str) -> None:
        """Nothing of the orders is wrong for it; but somebody's machine is not as it was, and that must not pass."""
        with self._lock:
            last = next(one for plan in reversed(self._orders) if (one := self._transcripts.get(plan.id)) and one.boot)
        left = Finding(
            id=f"load:host:{self._spec.id}:not-given-back",
            status=Status.MISS,
            message=reason,
            host=self._spec.id,
            order=last.order,
        )
        status = worst((last.status, Status.MISS))
        self._transcripts[last.order] = msgspec.structs.replace(
            last, status=status, reason=last.reason or reason, findings=[*last.findings, left]
        )
        self._reporter.order(self._spec.id, last.order, status, reason)

    def _wait(self) -> Plan | None:
        """Where no order waits: the first of those that another place's run brings."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or not self._counting)
        return self._next()

    def _next(self, fits: Callable[[Plan], bool] = lambda _: True) -> Plan | None:
        """The next order that waits, and is not known to fail; None also where it does not fit."""
        while order := self._pop(fits):
            with self._lock:
                like = next((one for one in self._stopped if order.begins_as(*one)), None)
            if like is None:
                return order
            failed, count = like
            steps = "its first step is that" if count == 1 else f"its first {count} steps are those"
            reason = f"not run, for {steps} of {failed.id}, which did not get beyond"
            self._keep(self._skipped(dataclasses.replace(order, skip=reason)))
        return None

    def _pop(self, fits: Callable[[Plan], bool] = lambda _: True) -> Plan | None:
        with self._lock:
            if not self._waiting or not fits(self._waiting[0]):
                return None
            order = self._waiting.popleft()
            if swept(order) and order.point is None:
                self._counting.add(order.id)
            return order

    def _put_back(self, order: Plan) -> None:
        """In a boot of its own it may go well."""
        with self._lock:
            self._counted(order.id)
            self._waiting.appendleft(order)

    def _is_new(self, order: str, site: str) -> bool:
        """Whether no place has come to this call site before."""
        with self._lock:
            new = (order, site) not in self._sites
            self._sites.add((order, site))
            return new

    def _following(self, order: Plan) -> list[Plan]:
        """The points behind this one, which the agent may do with it in one go; nobody else takes them meanwhile."""
        found: list[Plan] = []
        with self._lock:
            while len(found) + 1 < AT_ONCE and self._waiting and follows(self._waiting[0], [order, *found][-1]):
                found.append(self._waiting.popleft())
            if found:
                self._counting.add(_together(order))
        return found

    def _give_back(self, order: Plan, following: Sequence[Plan]) -> None:
        """Those that were not come to."""
        with self._lock:
            self._waiting.extendleft(reversed(following))
            self._counted(_together(order))

    def _waiting_again(self, order: Plan) -> None:
        with self._lock:
            self._waiting.appendleft(order)

    def _counted(self, order: str) -> None:
        """The lock is held. Who waits for what this run brings looks again."""
        self._counting.discard(order)
        self._lock.notify_all()

    def _add(self, order: Plan, more: Sequence[Plan], *, first: bool) -> None:
        """More runs of an order. Those that come `first` go on in the guest of this one."""
        with self._lock:
            self._orders += more
            self._left[order.order] += len(more)
            if first:
                self._waiting.extendleft(reversed(more))
            else:
                self._waiting.extend(more)
            self._lock.notify_all()

    def _keep(self, transcript: Transcript) -> None:
        order, _, run = transcript.order.partition(RUN_OF)
        shown = self._request.known(transcript)
        self._request.keep(shown)
        with self._lock:
            self._transcripts[transcript.order] = transcript
            self._shown[transcript.order] = shown
            self._left[order] -= 1
            self._counted(transcript.order)
            last = self._left[order] == 0
            runs = [one for plan in self._orders if plan.order == order and (one := self._shown.get(plan.id))]
        # Of an order with many runs it is worth a line which went wrong first, and how it went in the end.
        wrong = [one for one in runs if one.status not in (Status.PASS, Status.SKIP)]
        if (not run and last) or (shown in wrong and len(wrong) <= MAX_TOLD):
            reason = shown.reason if shown.status != Status.PASS else None  # of what is known here
            self._reporter.order(shown.host, shown.order, shown.status, reason)
        if run and last:
            counts = Counter(one.status for one in runs)
            how = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
            self._reporter.order(transcript.host, order, worst(counts), f"{len(runs)} runs: {how}")

    def _give_up(self, reason: str, status: Status = Status.MISS) -> None:
        """None of the orders that wait will be run."""
        while order := self._pop():
            self._keep(self._not_run(order, reason, status))

    def _skipped(self, plan: Plan) -> Transcript:
        return Transcript(host=self._spec.id, order=plan.id, title=plan.title, status=Status.SKIP, reason=plan.skip)

    def _not_run(self, order: Plan, reason: str, status: Status = Status.MISS, boot: int = 0) -> Transcript:
        if order.id in self._unnamed:
            return self._unnamed[order.id]  # it was run, and only not once more
        return Transcript(
            host=self._spec.id,
            order=order.id,
            title=order.title,
            status=status,
            reason=reason,
            boot=boot,
            reproduce=self._request.again(self._spec.id, order.id),
        )

    @cached_property
    def _knowledge(self) -> Knowledge:
        return Knowledge(self._spec.id, digest(self._spec, describe(self._spec)))

    def _slowness(self) -> float | None:
        with self._lock:
            return self._knowledge.slowness()

    def _number(self, place: Place) -> int:
        """Of the place's next boot; its first has the place's own, for it may have been booted ahead."""
        with self._lock:
            if place in self._not_booted:
                self._not_booted.discard(place)
                return place.number
            self._boots += 1
            return self._boots

    def _boot(self, place: Place, order: Plan) -> None:
        """One boot, or what another place's has left, with this order and as many more as it may be used for."""
        number = self._number(place)
        try:
            with self._joined(place) as kept:
                if kept is not None:
                    started, before = kept
                    folder = make_folder(self._request.folder / self._spec.id / f"boot-{number}")
                    # What came at the boot is told by who keeps it.
                    mine = dataclasses.replace(started, number=number, folder=folder, start=Reply(0), orders=0)
                    with log.context(boot=number):
                        self._go_through(mine, place, order, before)
                    return
            self._boot_anew(place, order, number)
        except KbuildError as error:
            if order.id not in self._transcripts:
                self._keep(self._not_run(order, str(error), error.status, number))
            else:
                log.get().warning("the machine did not end in order", reason=str(error))

    @contextlib.contextmanager
    def _joined(self, place: Place) -> Iterator[tuple[Boot, State] | None]:
        """The guest that another place has booted and keeps, which lasts as long as this; None: this place boots one.

        Waits while another place is about to keep one: to boot as well would take longer.
        """
        with self._lock:
            if keeps(self._spec):
                self._lock.wait_for(lambda: self._keeper is None)
            kept = self._kept
            if kept is not None:
                self._using += 1
            elif keeps(self._spec):
                self._keeper = place
        try:
            yield kept
        finally:
            if kept is not None:
                with self._lock:
                    self._using -= 1
                    self._lock.notify_all()

    @contextlib.contextmanager
    def _keeping(self, started: Boot, before: State) -> Iterator[None]:
        """Let other places start machines from what was kept, and wait for them at the end."""
        with self._lock:
            self._keeper = None
            if started.snapshot is not None:
                self._kept = started, before
            self._lock.notify_all()
        try:
            yield
        except KbuildError:
            raise
        except BaseException:
            self._nothing_more()
            raise
        finally:
            with self._lock:
                if started.snapshot is not None:
                    self._kept = None
                    self._lock.wait_for(lambda: not self._using)

    def _boot_anew(self, place: Place, order: Plan, number: int) -> None:
        tell = partial(self._reporter.boot, place.label)
        try:
            with place.boot(self._request, self._needed, number, self._slowness(), tell, self._target) as started:
                if started.session.slowness is not None:
                    self._knowledge.note_slowness(started.session.slowness)
                if failure := self._failed_start(started, order):
                    self._keep(failure)
                    if failure.status != Status.MISS:
                        # The kernel does not come up here: to wait for that once more for each order says nothing new.
                        self._give_up(f"not run, for the boot before: {failure.reason}", failure.status)
                else:
                    self._run_orders(started, place, order)
                if started.session.ended is None and started.snapshot is None:
                    started.session.power_off()
        finally:
            with self._lock:
                if self._keeper is place:
                    # It did not come to that: the next one tries.
                    self._keeper = None
                    self._lock.notify_all()

    def _run_orders(self, started: Boot, place: Place, first: Plan) -> None:
        if any(planned.step.trace for plan in self._orders if not plan.skip for planned in plan.steps):
            started.start.log += warm_up(started.session)
        if any(planned.step.suspend for plan in self._orders if not plan.skip for planned in plan.steps):
            # A boot's first makes a virtual terminal, which stays: kernel/power/console.c, pm_prepare_console().
            reply = started.session.command(Verb.SUSPEND, "freezer")
            started.start.log += [*reply.earlier, *reply.log]
        before = self._state(started)
        if self._waiting or swept(first):
            started.freeze()
        with self._keeping(started, before):
            self._go_through(started, place, first, before)

    def _go_through(self, started: Boot, place: Place, first: Plan, before: State) -> None:
        """Orders from the first one on, as far as the boot may be used for them."""
        order: Plan | None = first
        while order and not self._request.cancellation.requested():
            try:
                with started.guest(self._request) as guest:
                    while following := self._follow(guest, place, order, before, alone=started.snapshot is not None):
                        order = following
            except KbuildError:
                if order is not first:
                    self._put_back(order)
                else:
                    # Others that wait for what it brings hold the kept guest: it ends when they do not.
                    with self._lock:
                        self._counted(order.id)
                raise
            order = (self._next() or self._wait()) if started.snapshot else None

    def _follow(self, guest: Boot, place: Place, order: Plan, before: State, *, alone: bool) -> Plan | None:
        """Run an order, and give the next one that may share its guest: one that finds it as the first one did.

        With `alone` that are only runs of the same order: the code that they run is known to the emulator then.
        So it is where an order that is swept has made the guest ready for its points.
        """
        self._reporter.order(place.label, order.id, None, None)
        clean = self._run_points(guest, order, before) if order.point else self._run_order(guest, order, before)
        if not clean or guest.session.ended is not None or self._request.cancellation.requested():
            return None
        same = alone or guest.prepared is not None
        return self._next(lambda other: not other.alone and (not same or other.order == order.order))

    def _run_points(self, started: Boot, order: Plan, before: State) -> bool:
        """Run a point, and those behind it that the agent has done by itself then. Whether the host is as before."""
        following = self._following(order)
        try:
            clean = self._run_order(started, order, before, following)
            while following and following[0].point in started.ahead:
                clean = self._run_order(started, following.pop(0), before)
        finally:
            started.ahead.clear()
            self._give_back(order, following)
        return clean

    def _run_order(self, started: Boot, order: Plan, before: State, following: Sequence[Plan] = ()) -> bool:
        """Whether the host is as before."""
        if not started.ahead:
            self._begin(started)
        started.orders += 1
        started.shared += 1
        if order.after and order.kind == "pages" and not order.tried and not order.loud:
            order = moved(order, self._shift.get(order.order, 0))
        with log.context(order=order.id), log.timed("order") as extra:
            kind = SweepRun if swept(order) else OrderRun
            run = kind(self._request, self._spec, self._knowledge, started, order, before)
            if isinstance(run, SweepRun):
                run.following = following
            transcript = run.run()
            if isinstance(run, SweepRun) and run.again:
                if run.again.loud:
                    # The first one: a repetition may hit elsewhere, and need another itself.
                    self._unnamed.setdefault(order.id, transcript)
                self._waiting_again(run.again)
                return False
            if order.loud:
                first = self._unnamed.pop(order.id)
                # What it says counts where it dies of it again: pages have other numbers in each guest.
                self._keep(transcript if isinstance(run, SweepRun) and run.died else first)
                return False
            if isinstance(run, SweepRun) and order.kind == "pages" and order.after and not run.missed:
                self._shift[order.order] = self._shift.get(order.order, 0) + AROUND[run.tried]
            self._add(order, run.more, first=True)
            if isinstance(run, SweepRun) and run.site and rest(order) and self._is_new(order.order, run.site):
                self._add(order, [afterwards(order, run.site)], first=False)
            if order.requests and run.stopped_at and run.stopped_at.isdigit() and transcript.status != Status.MISS:
                with self._lock:
                    self._stopped.append((order, int(run.stopped_at)))
            if started.orders == 1:
                transcript = msgspec.structs.replace(
                    transcript, findings=[*transcript.findings, *self._said_at_boot(started)]
                )
            extra.update(status=transcript.status, clean=run.clean)
            self._keep(transcript)
            started.last = transcript.order
        return run.clean

    def _begin(self, started: Boot) -> None:
        """Before an order: what the kernel warns of once a boot has to show again in each order that shares one.

        What came since the order before it in this guest is that one's. Raises KbuildError where this is no guest for
        another order.
        """
        reply = started.session.command(Verb.REARM)
        started.start.log += [*reply.earlier, *reply.log]
        before = self._transcripts.get(started.last) if started.last else None
        if before is not None and (more := with_rest(before, reply, self._request, self._spec)) is not before:
            shown = self._request.known(more)
            self._request.keep(shown)
            with self._lock:
                self._transcripts[more.order], self._shown[more.order] = more, shown
            self._reporter.order(shown.host, shown.order, shown.status, shown.reason)
            raise JudgeError(f"after {more.order}: {more.findings[-1].message}")
        self._require_answer(reply, "the guest gives no answer before the order")

    def _require_answer(self, reply: Reply, otherwise: str) -> None:
        if isinstance(reply.answer, Result):
            return
        matches = classify(records_of(reply), self._request.signatures, self._request.release)
        status, what = without_answer(reply, matches)
        kind = HarnessError if status == Status.MISS else JudgeError
        raise kind(f"{otherwise}: {what}")

    def _state(self, started: Boot) -> State:
        reply = started.session.command(Verb.STATE)
        started.start.log += reply.earlier
        self._require_answer(reply, "the state before the first order cannot be read")
        if isinstance(reply.answer, Result) and reply.answer.errno:
            raise JudgeError(f"the state before the first order cannot be read: {errno_name(reply.answer.errno)}")
        return parse_state(reply.items)

    def _said_at_boot(self, started: Boot) -> list[Finding]:
        """What the kernel complained of before the first step: shown, for no module's code had run yet."""
        records = from_agent(started.start.log)
        matches = classify(records, self._request.signatures, self._request.release)
        grave = [m for m in matches if m.severity in (Severity.CRASH, Severity.FAIL, Severity.STALL)]
        return [
            msgspec.structs.replace(
                finding, status=Status.DONE, host=self._spec.id, message=f"at boot: {finding.message}"
            )
            for finding in findings_of(grave, records, "boot", (), "boot", 0.0, cpus_of(self._spec))
        ]

    @cached_property
    def _needed(self) -> list[str]:
        """The modules that the orders load, with what they depend on, and both vendors', as far as they are there.

        What is not there belongs to orders that are SKIP, or to steps for other kernels.
        """
        modules = self._request.modules
        steps = [step for plan in self._orders for planned in plan.steps for step in (planned.step, *planned.step.step)]
        named = {name for step in steps for name in (step.load, step.inject and step.module) if name}
        there = {name for name in (*named, *VENDOR_MODULES.values()) if name in modules}
        names = {needed for name in there for needed in (*modules.load_sequence(name), modules[name].name)}
        return sorted(names)

    def _failed_start(self, started: Boot, order: Plan) -> Transcript | None:
        """The transcript of an order whose boot did not reach the agent, or reached another kernel."""
        session = started.session
        if session.hello is not None and session.ended is None:
            reason = f"the host runs {session.hello.kernel}, not {self._request.release}"
            if session.hello.kernel == self._request.release:
                if (other := self._spec.contradicted(session.hello.vendor, session.hello.flags)) is None:
                    return None
                reason = f"the host is not what its file says: {other}"
            return self._not_run(order, reason, boot=started.number)
        records = records_of(started.start)
        matches = classify(records, self._request.signatures, self._request.release)
        hang = hang_of(started.start, list, matches, records, "boot")
        status, what = without_answer(started.start, matches, hang)
        started.keep_samples(started.start)
        place = f"{self._spec.id}/boot"
        again = self._request.again(self._spec.id, order.id)
        kept, cpus = started.start.kept_seconds, cpus_of(self._spec)
        findings = list(findings_of(matches, records, "boot", (), "boot", kept, cpus))
        if not any(finding.status == status for finding in findings):
            evidence = (hang.evidence if hang else ()) + tuple(record.text for record in records[-20:])
            findings.append(Finding(id=f"load:boot:{place}:no-agent", status=status, message=what, evidence=evidence))
        findings = [
            msgspec.structs.replace(one, host=self._spec.id, order=order.id, reproduce=again) for one in findings
        ]
        console, dropped = started.start.console.records, started.start.console.dropped
        log_of_boot = bounded(log_lines(records), dropped)
        step = StepResult(number=1, action="boot", status=status, reason=what, log=log_of_boot)
        return Transcript(
            host=self._spec.id,
            order=order.id,
            title=order.title,
            status=status,
            reason=what,
            boot=started.number,
            steps=[step],
            findings=findings,
            console=[line.text for line in bounded([LogLine(record.text) for record in console], dropped)],
            folder=str(started.folder.relative_to(self._request.folder)),
            reproduce=again,
        )


def _together(order: Plan) -> str:
    """Stands for points that are being done, in what brings more runs."""
    return f"{order.id} and following"
