"""From an order and a host's facts to what is run there: placeholders filled in, blocks unrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import msgspec

from kbuild.load.orders.conditions import Facts, applies, choose, holds, no_parameter
from kbuild.load.orders.format import VENDOR_MODULES, Cpu, Expectation, Order, Step, When, kernel_name

IGNORED_PARAMETER = "parameter-ignored"
"""The signature of what the loader says of a parameter that a module does not have."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A step at its place."""

    step: Step
    place: str
    """Its number in the file, from 1: `3`, inside a repeated block `3.2`; the same in each pass."""
    during: str = ""
    """For a person: `pass 2 of 5`."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """An order as it is run on one host."""

    id: str
    title: str
    steps: tuple[PlannedStep, ...]
    facts: Facts
    skip: str | None = None
    """Why it is not run."""


def make_plans(order: Order, facts: Facts) -> list[Plan]:
    """The plans of an order on a host; one that cannot be run there says why."""
    order = resolve(order, facts.cpu)
    if reason := applies(order, facts):
        return [Plan(order.id, order.title, (), facts, reason)]
    steps = tuple(_unrolled(order.step, facts))
    return [Plan(order.id, order.title, steps, facts, _not_there(steps, facts))]


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
        return msgspec.structs.replace(when, has_parameter=in_kernel(when.has_parameter))

    def expectation(one: Expectation) -> Expectation:
        return msgspec.structs.replace(one, when=condition(one.when))

    def resolved(step: Step) -> Step:
        return msgspec.structs.replace(
            step,
            load=None if step.load is None else fill(step.load),
            unload=in_kernel(step.unload),
            module=in_kernel(step.module),
            holders=None if step.holders is None else tuple(kernel_name(fill(name)) for name in step.holders),
            when=condition(step.when),
            expect=tuple(map(expectation, step.expect)),
            step=tuple(map(resolved, step.step)),
        )

    return msgspec.structs.replace(
        order,
        modules=tuple(map(fill, order.modules)),
        parameters=tuple(kernel_name(fill(name)) for name in order.parameters),
        step=tuple(map(resolved, order.step)),
    )


def _unrolled(steps: Iterable[Step], facts: Facts, before: str = "", during: str = "") -> Iterator[PlannedStep]:
    for number, step in enumerate(steps, 1):
        place = f"{before}{number}"
        if step.repeat is None:
            yield PlannedStep(step, place, during)
        elif holds(step.when, facts):
            outer = f"{during}, " if during else ""
            for turn in range(1, step.repeat + 1):
                yield from _unrolled(step.step, facts, f"{place}.", f"{outer}pass {turn} of {step.repeat}")


def _not_there(steps: Iterable[PlannedStep], facts: Facts) -> str | None:
    """Why a plan is skipped: it gives or reads a parameter that this kernel's module does not have.

    The loader would ignore it, and the run would not show what it is to show; unless just that is expected.
    """
    for planned in steps:
        step = planned.step
        module = step.module or step.load
        if module is None or not step.params or not holds(step.when, facts):
            continue
        chosen = choose(step, facts)
        if isinstance(chosen, Expectation) and IGNORED_PARAMETER in (*chosen.log.must, *chosen.log.may):
            continue
        for name in (f"{kernel_name(module)}.{parameter}" for parameter in step.params):
            if not facts.has_parameter(name):
                return f"step {planned.place}: {no_parameter(name)}"
    return None
