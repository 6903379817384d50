"""The runs of an order that is swept: how many there are shows when its load has been counted."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence

from kbuild.errors import JudgeError
from kbuild.load.orders.plan import Kind, Plan, PlannedStep
from kbuild.outcome import RUN_OF

MAX_POINTS = 20_000
"""Of one sweep; a load of kvm.ko has some hundreds."""
AROUND: tuple[int, ...] = (0, *range(-12, 13), *range(-20, 21))
"""How far off the first one numbers are tried for what follows a failure at a call site. One after the other: a slab
that one load has taken the next one need not, and what is tried on both sides in turns would move along with that."""
_NUMBERS = re.compile(r"(page-)?(\d{1,9})(?:(-)(\d{1,9})?)?")
"""`17`, `17-40`, or `17-`: to the last one."""
_NUMBER = re.compile(r"(page-)?([1-9]\d{0,8})")


def swept(plan: Plan) -> PlannedStep | None:
    """The step of a plan in which allocations fail."""
    return next((planned for planned in plan.steps if planned.step.inject), None)


def points(plan: Plan, totals: Mapping[Kind, int]) -> list[Plan]:
    """A run for each allocation of a load that makes so many of each kind, or for those that are asked for.

    They are asked for as `17`, `17-40`, `17-`, `page-3`, or a glob over call sites, whose points only a run can tell;
    with both, those of the sites among the numbers. Raises JudgeError for more than any load makes.
    """
    if (total := sum(totals.values())) > MAX_POINTS:
        raise JudgeError(f"{plan.id}: {total} allocations were counted, and at most {MAX_POINTS} are tried")
    spans = [_span(found) for glob in plan.only if (found := _NUMBERS.fullmatch(glob))]
    return [
        dataclasses.replace(point, id=f"{plan.order}{RUN_OF}{point.allocation}")
        for kind, total in totals.items()
        for number in range(1, total + 1)
        if not spans or any(kind == of and number in span for of, span in spans)
        for point in (dataclasses.replace(plan, point=number, kind=kind),)
    ]


def follows(plan: Plan, other: Plan) -> bool:
    """Whether `plan` is the next point of a load behind `other`."""
    if plan.point is None or other.point is None or any(one.alone for one in (plan, other)):
        return False
    planned = swept(plan)
    next_one = (other.order, other.kind, other.point + 1)
    return planned is not None and planned.step.inject == "load" and (plan.order, plan.kind, plan.point) == next_one


def afterwards(plan: Plan, site: str) -> Plan:
    """The run that does once what is to follow a failure at this call site; `plan` is the first point that hit it."""
    facts = dataclasses.replace(plan.facts, fault=site)
    return dataclasses.replace(plan, id=f"{plan.order}{RUN_OF}{site}", after=site, facts=facts)


def nearby(plan: Plan) -> Plan | None:
    """What to try when `plan`, which follows a failure, came to another call site: the next number around the first.

    Of pages: a guest in which other loads failed before has other slabs filled, so that numbers are some off.
    """
    for tried in range(plan.tried + 1, len(AROUND)):
        other = dataclasses.replace(plan, tried=tried)
        if number(other) > 0:
            return other
    return None


def number(plan: Plan) -> int:
    """Of the allocation that `plan`, which follows a failure, makes fail."""
    assert plan.point is not None
    return plan.point + AROUND[plan.tried]


def moved(plan: Plan, by: int) -> Plan:
    """The same with another allocation."""
    assert plan.point is not None
    return dataclasses.replace(plan, point=max(plan.point + by, 1))


def wanted(plan: Plan, site: str) -> bool:
    """Whether a point at this call site is one of those that were asked for."""
    named = [glob for glob in plan.only if not _NUMBERS.fullmatch(glob)]
    return not named or any(fnmatch.fnmatchcase(site, glob) for glob in named)


def rest(plan: Plan) -> Sequence[PlannedStep]:
    """What follows the step in which allocations fail."""
    steps = list(plan.steps)
    return steps[next(at for at, planned in enumerate(steps) if planned.step.inject) + 1 :]


def chosen(first: str | None, last: str | None, site: str | None) -> tuple[str, ...]:
    """What --from, --to and --only say, as `points` takes it; none of them: nothing. Raises ValueError in one line."""
    ends = {"--from": first, "--to": last}
    found: dict[str, re.Match[str]] = {}
    for option, value in ends.items():
        if value is not None:
            if (match := _NUMBER.fullmatch(value)) is None:
                raise ValueError(f"{option} {value}: not the number of an allocation, as 17, or page-3 for a page")
            found[option] = match
    if len({match[1] for match in found.values()}) > 1:
        raise ValueError(f"--from {first} --to {last}: pages are numbered apart from objects; give both of one kind")
    if len(found) == len(ends) and int(found["--from"][2]) > int(found["--to"][2]):
        raise ValueError(f"--from {first} --to {last}: the last one comes before the first one")
    if site is not None and (not site or _NUMBERS.fullmatch(site)):
        raise ValueError(f"--only {site}: not a call site, as kvm_init/misc_register; for a number use --from and --to")
    span: tuple[str, ...] = ()
    if found:
        kind = next(iter(found.values()))[1] or ""
        begin, end = (found[option][2] if option in found else "" for option in ends)
        span = (f"{kind}{begin or 1}-{end}",)
    return (*span, *([site] if site is not None else []))


def _span(found: re.Match[str]) -> tuple[Kind, range]:
    first = int(found[2])
    last = int(found[4] or MAX_POINTS) if found[3] else first
    return "pages" if found[1] else "objects", range(first, last + 1)
