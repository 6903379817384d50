"""From an order and a host's facts to what is run there: placeholders filled in, blocks unrolled."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from kbuild.errors import UserError
from kbuild.load.orders.conditions import Facts, applies, choose, holds, no_parameter
from kbuild.load.orders.format import VENDOR_MODULES, Cpu, Expectation, Generate, Order, Step, When, kernel_name
from kbuild.load.orders.generate import generate
from kbuild.load.orders.settings import axes, combinations, said
from kbuild.outcome import RUN_OF

IGNORED_PARAMETER = "parameter-ignored"
"""The signature of what the loader says of a parameter that a module does not have."""

Kind = Literal["objects", "pages"]
"""Of allocations that are made to fail: objects of the slab allocator, each with its number; and pages, whose numbers
depend on how full slabs are (agent/fault.c)."""
KINDS: tuple[Kind, ...] = ("objects", "pages")
MAX_RUNS = 5000
"""Of one order on one host: an hour in QEMU."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A step at its place."""

    step: Step
    place: str
    """Its number in the file, from 1: `3`, inside a repeated block `3.2`; the same in each pass."""
    during: str = ""
    """For a person: `pass 2 of 5`."""
    ends: bool = False
    """Of a `trace` step: what it holds has been done. It comes twice, before and after that."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """An order as it is run on one host, once."""

    id: str
    """The order's; where it has several, `ORDER@kvm.tdp_mmu=0,kvm_amd.npt=1`, `ORDER@load-vendor,unload-vendor`."""
    title: str
    steps: tuple[PlannedStep, ...]
    facts: Facts
    skip: str | None = None
    """Why it is not run."""
    requests: tuple[str, ...] = ()
    """Of a generated one what is done at the places 1, 2, …: `load-vendor`."""
    only: tuple[str, ...] = ()
    """Of one that is swept: the points that are asked for, or the call sites; empty: all."""
    point: int | None = None
    """The allocation that fails, from 1, of those of its kind; None: all are counted."""
    kind: Kind = "objects"
    """Of that allocation."""
    after: str = ""
    """The call site after whose failure the rest of the order is done."""
    look: bool = False
    """See `Order.look`."""
    tried: int = 0
    """Of that: numbers that were another call site."""
    loud: bool = False
    """The kernel says all on its console: the guest ended before it could tell whose allocation had failed."""

    @property
    def alone(self) -> bool:
        """It ends its guest, and wants one to which nothing was done."""
        return bool(self.after) or self.loud

    @property
    def order(self) -> str:
        """The order's id."""
        return self.id.partition(RUN_OF)[0]

    @property
    def allocation(self) -> str:
        """The one that fails, as a run is named by it."""
        return f"{'page-' if self.kind == 'pages' else ''}{self.point}"

    @property
    def run(self) -> str:
        """What tells it from the order's other runs."""
        return self.id.partition(RUN_OF)[2]

    def begins_as(self, other: Plan, requests: int) -> bool:
        """Whether so many of its requests are those of another plan of its order and setting."""
        same = (self.order, self.facts.given, self.requests[:requests])
        return same == (other.order, other.facts.given, other.requests[:requests])

    def given(self, module: str) -> dict[str, str]:
        """The parameters of the run's setting that a module is loaded with."""
        named = ([*name.split(".", 1), value] for name, value in self.facts.given.items())
        return {parameter: value for of, parameter, value in named if of == kernel_name(module)}


def make_plans(order: Order, facts: Facts, only: Collection[str] = ()) -> list[Plan]:
    """The plans of an order on a host; one that cannot be run there says why.

    `only`: of the runs that have names behind the order's, those that one of these globs matches; empty: all.
    Raises UserError for an order with too many runs.
    """
    order = resolve(order, facts.cpu)
    if reason := applies(order, facts):
        return [Plan(order.id, order.title, (), facts, reason)]
    plans = [*itertools.islice(_plans(order, facts), MAX_RUNS + 1)]
    if len(plans) > MAX_RUNS:
        raise UserError(f"order '{order.id}' has more than {MAX_RUNS} runs: take fewer values, actions or steps")
    if any(step.inject for step in order.step):
        # Which points there are shows when the load has been counted.
        return [dataclasses.replace(plan, only=tuple(only)) for plan in plans]
    if not only:
        return plans
    found = {glob: fnmatch.filter((plan.run for plan in plans), glob) for glob in only}
    wanted = {name for names in found.values() for name in names}
    return [plan for plan in plans if plan.run in wanted] + [
        Plan(f"{order.id}{RUN_OF}{glob}", order.title, (), facts, _no_such_run(glob, plans))
        for glob, names in found.items()
        if not names
    ]


def _no_such_run(glob: str, plans: Sequence[Plan]) -> str:
    names = [plan.run for plan in plans if plan.run]
    reason = "the order has no such run on this host with this kernel"
    if not names:
        return f"{reason}: it has one, without a name"
    like = difflib.get_close_matches(glob.replace("*", ""), names, n=1, cutoff=0)
    return f"{reason}; of its {len(names)} the most like it is {like[0]}"


def _plans(order: Order, facts: Facts) -> Iterator[Plan]:
    tried = axes(order, facts)
    there = {name: values for name, values in tried.items() if facts.has_parameter(name)}
    for name in (name for name in tried if name not in there):
        yield Plan(f"{order.id}{RUN_OF}{name}", order.title, (), facts, no_parameter(name))
    if tried and not there:
        return
    for setting in combinations(there, order.cover):
        known = dataclasses.replace(facts, given=setting)
        for name, steps in _steps(order, known):
            run = ",".join(part for part in (name, said(setting)) if part)
            full = f"{order.id}{RUN_OF}{run}" if run else order.id
            requests = tuple(name.split(",")) if name else ()
            yield Plan(full, order.title, steps, known, _not_there(steps, known), requests, look=order.look)


def _steps(order: Order, facts: Facts) -> Iterator[tuple[str, tuple[PlannedStep, ...]]]:
    """The steps as they are written, or of each sequence that is generated, with its name."""
    if order.generate is None:
        yield "", tuple(_unrolled(order.step, facts))
        return
    for name, steps in generate(order.generate, facts):
        yield name, tuple(PlannedStep(step, place) for place, step in steps)


def resolve(order: Order, cpu: Cpu) -> Order:
    """The order for a host's CPU: `{vendor}` and `{other_vendor}` filled in.

    `load` and `modules` then hold names as of files (`kvm-intel`), all else the kernel's (`kvm_intel`).
    """
    own, other = VENDOR_MODULES[cpu], VENDOR_MODULES["amd" if cpu == "intel" else "intel"]

    def fill(name: str) -> str:
        return name.replace("{vendor}", own).replace("{other_vendor}", other)

    def in_kernel(name: str | None) -> str | None:
        return None if name is None else kernel_name(fill(name))

    def condition(when: When) -> When:
        given = {kernel_name(fill(name)): value for name, value in when.given.items()}
        return msgspec.structs.replace(when, has_parameter=in_kernel(when.has_parameter), given=given)

    def expectation(one: Expectation) -> Expectation:
        return msgspec.structs.replace(one, when=condition(one.when))

    def resolved(step: Step) -> Step:
        return msgspec.structs.replace(
            step,
            load=None if step.load is None else fill(step.load),
            unload=in_kernel(step.unload),
            module=in_kernel(step.module),
            trace=None if step.trace is None else tuple(kernel_name(fill(name)) for name in step.trace),
            holders=None if step.holders is None else tuple(kernel_name(fill(name)) for name in step.holders),
            when=condition(step.when),
            tolerate=tuple(msgspec.structs.replace(one, when=condition(one.when)) for one in step.tolerate),
            expect=tuple(map(expectation, step.expect)),
            step=tuple(map(resolved, step.step)),
        )

    def generated(one: Generate) -> Generate:
        ways = (
            msgspec.structs.replace(way, module=kernel_name(fill(way.module)), when=condition(way.when))
            for way in one.fail
        )
        return msgspec.structs.replace(
            one, modules=tuple(kernel_name(fill(name)) for name in one.modules), fail=tuple(ways)
        )

    return msgspec.structs.replace(
        order,
        modules=tuple(map(fill, order.modules)),
        parameters=tuple(kernel_name(fill(name)) for name in order.parameters),
        step=tuple(map(resolved, order.step)),
        generate=order.generate and generated(order.generate),
        matrix=tuple(
            msgspec.structs.replace(table, module=kernel_name(fill(table.module)), when=condition(table.when))
            for table in order.matrix
        ),
    )


def _unrolled(steps: Iterable[Step], facts: Facts, before: str = "", during: str = "") -> Iterator[PlannedStep]:
    for number, step in enumerate(steps, 1):
        place = f"{before}{number}"
        if step.trace is not None:
            yield PlannedStep(step, place, during)
            if holds(step.when, facts):
                yield from _unrolled(step.step, facts, f"{place}.", during)
            yield PlannedStep(step, place, during, ends=True)
        elif step.repeat is None:
            yield PlannedStep(step, place, during)
        elif holds(step.when, facts):
            outer = f"{during}, " if during else ""
            for turn in range(1, step.repeat + 1):
                yield from _unrolled(step.step, facts, f"{place}.", f"{outer}pass {turn} of {step.repeat}")


def _not_there(steps: Iterable[PlannedStep], facts: Facts) -> str | None:
    """Why a plan is skipped: it loads a module that is not there, or asks for a parameter that there is not.

    The loader would ignore such a parameter, and the run not show what it is to show; unless just that is expected.
    """
    steps = [*steps]
    tests = [name for one in steps if holds(one.step.when, facts) for name in one.step.selftest or ()]
    if tests and not any(map(facts.selftests.named, tests)):
        return f"selftest {tests[0]}: {facts.selftests.why_not(tests[0])}"
    for planned in steps:
        step = planned.step
        if step.trace is not None and not facts.traced and holds(step.when, facts):
            return f"step {planned.place}: the modules were built without ftrace (--flavour trace builds them with it)"
        if step.suspend and not facts.suspends and holds(step.when, facts):
            return f"step {planned.place}: the kernel was built without SUSPEND (--flavour smp builds one with it)"
        for part in step.step if step.together and holds(step.when, facts) else ():
            if part.load and kernel_name(part.load) not in facts.parameters:
                return f"step {planned.place}: there is no {part.load}.ko"
        module = step.module or step.load
        if module is None or not holds(step.when, facts):
            continue
        loaded = step.load or (step.module if step.inject else None)
        if loaded and kernel_name(loaded) not in facts.parameters:
            return f"step {planned.place}: there is no {loaded}.ko"
        chosen = choose(step, facts)
        if isinstance(chosen, Expectation) and IGNORED_PARAMETER in (*chosen.log.must, *chosen.log.may):
            continue
        for name in (f"{kernel_name(module)}.{parameter}" for parameter in step.params):
            if not facts.has_parameter(name):
                return f"step {planned.place}: {no_parameter(name)}"
    return None
