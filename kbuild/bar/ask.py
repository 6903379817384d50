"""A series from the question to the points: built, judged patch by patch, and its last patch tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from kbuild import log
from kbuild.bar.builds import Builder
from kbuild.bar.docs import check_docs
from kbuild.bar.evidence import PARAMETERS, TESTS, Evidence, commits
from kbuild.bar.loads import judge
from kbuild.bar.points import points, verdict
from kbuild.bar.selftests import lost_tests
from kbuild.bar.touched import code_files, file_at, modules_of_objects, parameter_order, touched, with_parameters
from kbuild.bar.units import check as check_units
from kbuild.bar.units import run_units
from kbuild.barrecord import Bar, BarRecord, BuildOutcome, Host, Patch, TipRun, begin
from kbuild.build.make import Progress
from kbuild.configure import git
from kbuild.configure.tree import open_tree
from kbuild.elf.image import ModuleImage, read_module
from kbuild.errors import UserError
from kbuild.gate.judging import gate
from kbuild.gate.request import GateRequest, profile_of
from kbuild.load.orders.read import read_order
from kbuild.outcome import RUN_OF, Status
from kbuild.paths import make_folder, write_atomically
from kbuild.profile import SHIPPED, OrderChoice, Profile, find_orders, reference
from kbuild.progress import Prefixed, Reporter
from kbuild.record import Record, read_record, runs_home
from kbuild.series.ask import Asked, SeriesRequest, ask, question, series
from kbuild.seriesrecord import Entry, SeriesRecord, holding, key_of, read_series

PROFILE = "kvm-x86"


class Teller(Protocol):
    """Somebody who is told how far it has come."""

    def entry(self, record: SeriesRecord, entry: Entry) -> None:
        """A patch's gate begins, or is over."""

    def built(self, record: BarRecord, patch: Patch, name: str, outcome: BuildOutcome) -> None:
        """A patch was built in a configuration."""

    def step(self, what: str) -> None:
        """Something else begins."""


@dataclass(frozen=True, kw_only=True)
class BarRequest:
    """Which series, and what to ask of it."""

    gate: GateRequest
    """The profile, and the user's choice of orders, hosts and rules for each patch."""
    range: str | None = None
    mbox: str | None = None
    unit_tests: str | None = None
    """A checkout of kvm-unit-tests."""


def bar(request: BarRequest, reporter: Reporter, teller: Teller) -> BarRecord:
    """Hold a series against the bar. One that did not come to its end is gone on with.

    Raises UserError where the input is wrong.
    """
    log.configure(request.gate.verbosity)
    if bool(request.range) == bool(request.mbox):
        raise UserError("bar: give one of --range BASE..TIP and --mbox FILE")
    profile = profile_of(request.gate)
    if profile.settings.bar is None:
        raise UserError(f"--profile {request.gate.profile}: {profile.path} has no [bar]: take {PROFILE}, or write one")
    units = check_units(request.unit_tests) if request.unit_tests else None
    asked = ask(SeriesRequest(gate=request.gate, range=request.range, mbox=request.mbox))
    fresh = _fresh(request, profile, asked)
    with holding(fresh.key) as ours:
        if not ours:
            raise UserError(f"{asked.source}: another inv bar is at it with the same options; wait for its end")
        work = _Work(request, profile, asked, begin(fresh), reporter, teller)
        work.run(units)
    return work.bar.record


def _fresh(request: BarRequest, profile: Profile, asked: Asked) -> BarRecord:
    tree = asked.request(asked.entries[0]).tree
    patches = [
        Patch(one.id, one.subject, one.base, " " not in one.id and _fixes(tree, one.id)) for one in asked.entries
    ]
    settings = profile.settings.bar
    assert settings is not None
    fragments = [path.read_text("utf-8") for path in profile.fragments]
    parts = [*question(request.gate), *fragments, str(request.unit_tests), *(one.id for one in patches), "bar"]
    return BarRecord(
        id="",
        key=key_of(parts),
        command=request.gate.command,
        source=asked.source,
        profile=reference_of(profile),
        started="",
        tree=tree,
        base_from="base-commit" if asked.based else "",
        patches=patches,
        titles={one.name: one.title for one in settings.build},
        musts=[one.name for one in settings.build if one.must],
        tests=[*settings.tests],
        areas=[one.name for one in settings.area],
        flavours=[*settings.flavours],
    )


def both_of(one: OrderChoice, other: OrderChoice) -> OrderChoice:
    """All orders of both choices, of an order that both have each run of either. No names are all runs."""
    both = dict(one)
    for path, runs in other.items():
        if path not in both:
            both[path] = runs
        elif both[path]:
            both[path] = tuple(dict.fromkeys((*both[path], *runs))) if runs else ()
    return both


def named(orders: OrderChoice, name: Callable[[Path], str]) -> tuple[str, ...]:
    """Orders by what their files are called, `ORDER`, or each of the runs that are chosen, `ORDER@RUN`."""
    return tuple(
        f"{name(path)}{RUN_OF}{run}" if run else name(path) for path, runs in orders.items() for run in runs or ("",)
    )


def reference_of(profile: Profile) -> str:
    """The profile as it is given on a command line."""
    return profile.name if profile.path.parent == SHIPPED else str(profile.path)


def _fixes(tree: str, commit: str) -> bool:
    done = git.call("-C", tree, "log", "-1", "--format=%(trailers:key=Fixes,valueonly)", commit, check=False)
    return done.status == 0 and bool(done.output.strip())


@dataclass
class _Work:
    """One that is going on."""

    request: BarRequest
    profile: Profile
    asked: Asked
    bar: Bar
    reporter: Reporter
    teller: Teller

    def run(self, units: Path | None) -> None:
        """Do what has not been done yet, and come to a verdict."""
        record, settings = self.bar.record, self.profile.settings.bar
        assert settings is not None
        patches = commits(record)
        base, tip = patches[0], patches[-1]
        if record.touched is None:
            found = touched(settings, record.tree, base.id, tip.id)
            areas = tuple(msgspec.structs.replace(one, orders=self._ids(one.orders)) for one in found.areas)
            record.touched = msgspec.structs.replace(found, areas=areas)
        self._series()
        self._builder().run(record.tree, patches)
        self._name_parameters(base, tip)
        self._last_patch(base, tip)
        if units is not None and record.units is None:
            self.teller.step("kvm-unit-tests")
            builds = {one.kernel_name: one.build_id for one in self._images(tip)}
            record.units = run_units(units, self._release(tip), builds, self.bar.folder / "kvm-unit-tests")
            self.bar.save()
        if record.touched.docs and record.docs is None:
            self.teller.step("htmldocs")
            record.docs = check_docs(
                record.tree, base.id, tip.id, record.touched.docs, make_folder(self.bar.folder / "htmldocs")
            )
            self.bar.save()
        evidence = self._evidence()
        record.kernel = _version(evidence.of(base.id)) or record.kernel
        record.hosts = _hosts(evidence)
        record.points = points(evidence)
        self.bar.finish(verdict(record.points))

    # Each patch.

    def _series(self) -> None:
        """Each patch against the one before it, in the profile's orders and those of what is touched."""
        record = self.bar.record
        if record.series is not None:
            return
        orders = self.request.gate.orders or self._orders()
        asked = replace(self.asked, request=lambda entry: replace(self.asked.request(entry), orders=orders))
        request = SeriesRequest(
            gate=replace(self.request.gate, orders=orders), range=self.request.range, mbox=self.request.mbox
        )
        record.series = series(request, self.reporter, self.teller.entry, asked).id
        self.bar.save()

    def _orders(self) -> tuple[str, ...]:
        """As they are given on a command line, each once."""
        settings, touched = self.profile.settings.bar, self.bar.record.touched
        assert settings is not None and touched is not None
        names = {area.name for area in touched.areas}
        more = self._found([order for area in settings.area if area.name in names for order in area.orders])
        return named(both_of(self.profile.orders, more), partial(reference, "orders"))

    def _ids(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of the orders that a profile names: ids, as transcripts have them."""
        return named(self._found(names), lambda path: read_order(path).id)

    def _found(self, names: Sequence[str]) -> OrderChoice:
        return find_orders(names, self.profile.path.parent)

    def _builder(self) -> Builder:
        def progress(name: str, made: Progress) -> None:
            self.reporter.progress("build", made.done, made.expected, f"{name} {made.what}", None)

        return Builder(
            self.bar,
            self.profile,
            progress,
            lambda patch, name, outcome: self.teller.built(self.bar.record, patch, name, outcome),
        )

    # The last patch.

    def _name_parameters(self, base: Patch, tip: Patch) -> None:
        """Which parameters the touched files define, and whose they are: as Kbuild put the objects together."""
        record, settings = self.bar.record, self.profile.settings.bar
        assert settings is not None and record.touched is not None
        if record.touched.parameters:
            return
        files = code_files(settings, record.touched.files)
        sources = {file: (file_at(record.tree, base.id, file), file_at(record.tree, tip.id, file)) for file in files}
        if not files:
            return
        found = with_parameters(settings, sources, self._modules(tip), self._parameters(tip))
        record.touched = msgspec.structs.replace(record.touched, parameters=found)
        self.bar.save()

    def _modules(self, tip: Patch) -> dict[str, str]:
        """Source files to modules, in the first configuration that has modules at all."""
        builder = self._builder()
        with open_tree(self.bar.record.tree, tip.id) as tree:
            for one, compiler in builder.wanted():
                objects = builder.objects(tree, one, compiler)
                if objects is not None and (found := modules_of_objects(objects)):
                    return found
        return {}

    def _parameters(self, tip: Patch) -> dict[str, dict[str, str | None]]:
        """Those of the modules that are loaded."""
        return {one.name: {each.name: each.type for each in one.parameters} for one in self._images(tip)}

    def _images(self, tip: Patch) -> list[ModuleImage]:
        """The last patch's modules; none where it does not build."""
        run = self._evidence().of(tip.id)
        folder = runs_home() / (run.id if run else "") / "artifacts"
        return [read_module(folder / name) for name in (run.artifacts if run else ()) if name.endswith(".ko")]

    def _last_patch(self, base: Patch, tip: Patch) -> None:
        """What takes too long for each patch; and of the base only where something fails."""
        settings = self.profile.settings.bar
        assert settings is not None and self.bar.record.touched is not None
        if self._release(tip) is None:
            return
        if settings.tests:
            tests = tuple(reference("orders", path) for path in self._found(settings.tests))
            self._both(TESTS, base, tip, lambda gate: replace(gate, orders=tests))
        order = parameter_order(self.bar.record.touched.parameters)
        if order is not None:
            file = make_folder(self.bar.folder / "orders") / "touched-parameters.toml"
            write_atomically(file, order)
            self._both(PARAMETERS, base, tip, lambda gate: replace(gate, orders=(str(file),)))
        for flavour in settings.flavours:
            self._both(flavour, base, tip, partial(replace, orders=(), flavour=flavour))

    def _both(self, what: str, base: Patch, tip: Patch, asked: Callable[[GateRequest], GateRequest]) -> None:
        after = self._gate(what, tip, asked)
        found = judge(after, None)
        wrong = found.new or (after is not None and not after.artifacts) or any(lost_tests(after, None))
        if wrong and self._release(base) is not None:
            self._gate(what, base, asked)

    def _gate(self, what: str, patch: Patch, asked: Callable[[GateRequest], GateRequest]) -> Record | None:
        record = self.bar.record
        found = next((one for one in record.runs if (one.what, one.patch) == (what, patch.id)), None)
        if found is None:
            found = TipRun(what=what, patch=patch.id)
            record.runs.append(found)
        if found.over:
            return read_record(found.run) if found.run else None
        name = "base" if patch.base else "last patch"
        self.teller.step(f"{what}, {name}")
        request = asked(
            replace(self.request.gate, tree=record.tree, rev=patch.id, boot_ahead=False, profile=str(self.profile.path))
        )
        try:
            run = gate(request, Prefixed(self.reporter, f"{what}, {name}"))
        except UserError as error:
            # The user's input was checked before: what is refused now is this flavour's, or this patch's.
            found.reason, found.over = str(error), True
            self.bar.save()
            return None
        found.run, found.over = run.record.id, True
        self.bar.save()
        return run.record

    def _evidence(self) -> Evidence:
        record = self.bar.record
        return Evidence(record, read_series(record.series or ""))

    def _release(self, patch: Patch) -> str | None:
        """What `uname -r` says of a patch's kernel; None: it was not built."""
        run = self._evidence().of(patch.id)
        return run.kernel if run and run.artifacts else None


def _version(record: Record | None) -> str | None:
    return record.tree.get("version") if record else None


def _hosts(evidence: Evidence) -> list[Host]:
    """The hosts of the last patch, with what passed on them."""
    tip, tests = evidence.of(evidence.tip.id), evidence.run(TESTS, evidence.tip)
    if tip is None:
        return []
    found = []
    for name, facts in tip.machines.items():
        rows = [one for one in tip.transcripts if one.host == name and one.status != Status.SKIP]
        if not rows:
            continue
        steps = [
            step
            for one in (tests.transcripts if tests else ())
            if one.host == name
            for step in one.steps
            if step.action == "selftest"
        ]
        counts = Counter(step.status for step in steps)
        found.append(
            Host(
                id=name,
                emulator=tip.hosts.get(name, ""),
                cpu=facts.cpu,
                gives=facts.gives,
                cpus_are=facts.cpus_are,
                passed=sum(one.status == Status.PASS for one in rows),
                orders=len(rows),
                tests_passed=counts[Status.PASS],
                tests_skipped=counts[Status.SKIP],
                tests_failed=counts[Status.FAIL],
                tests_unjudged=counts[Status.ERROR] + counts[Status.MISS],
            )
        )
    return found
