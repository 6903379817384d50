"""Rules asked of a module set: findings with answers, a witness where one is broken, and trees of what was run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kbuild.elf.code.decode import Code
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Runs, uncollected
from kbuild.elf.code.sides import can_be_two
from kbuild.elf.contents import MalformedError
from kbuild.elf.image import module_key
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules import layout
from kbuild.elf.rules.counts import holds_for, release_of
from kbuild.elf.rules.entries import Functions, run_entries
from kbuild.elf.rules.halves import in_two
from kbuild.elf.rules.spec import OrderRule, Rules
from kbuild.elf.rules.told import Told, finding_of, told
from kbuild.elf.types import Types
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status

if TYPE_CHECKING:  # Most ask for answers only.
    from kbuild.elf.tree.model import Tree


def check_rules(
    modules: ModuleSet, rules: Rules, *, flow: bool = False, meanwhile: Callable[[], object] | None = None
) -> tuple[list[Finding], list[Tree]]:
    """One finding for each rule and each module that it is asked of; with `flow`, trees of each module's init and exit.

    `meanwhile` is done while other processes look for the answers, if any do. Raises UserError for a damaged module.
    """
    release = release_of(modules)
    orders = [rule for rule in rules.orders if holds_for(rule.kernels, release)]
    every: tuple[layout.Rule, ...] = (*rules.symbols, *rules.sections, *rules.budgets)
    others = [rule for rule in every if holds_for(rule.kernels, release)]
    try:
        with uncollected():
            findings, trees = _orders(followed(modules, rules), rules, orders, flow, meanwhile)
    except MalformedError as error:
        raise UserError(f"the code of these modules cannot be followed: {error}") from None
    names, types = vendors(modules, rules), Types(modules.kernel)
    for rule in others:
        said = layout.answers(modules, rule, names, types)
        findings += [finding_of(rule, one.module, one.status, one.answer, one.why) for one in said]
    return findings, trees


def vendors(modules: ModuleSet, rules: Rules) -> list[str]:
    """Modules that import what makes one a vendor module."""
    wanted = set(rules.vendor.imports)
    images = modules.modules.values()
    return [image.name for image in images if any(used.name in wanted for used in image.imports)]


def followed(modules: ModuleSet, rules: Rules) -> ModuleSet:
    """Without the modules that are leaves: what they export is then called as the kernel's functions are."""
    leaves = set(map(module_key, rules.vendor.leaves))
    images = modules.modules.values()
    return ModuleSet.of((image for image in images if module_key(image.name) not in leaves), modules.kernel)


def _orders(
    modules: ModuleSet,
    rules: Rules,
    orders: Sequence[OrderRule],
    flow: bool,
    meanwhile: Callable[[], object] | None,
) -> tuple[list[Finding], list[Tree]]:
    names = vendors(modules, rules) if orders else []
    skipped: list[Finding] = []
    if not names:
        why = "no module of the set is a vendor module"
        skipped = [finding_of(rule, "set", Status.SKIP, None, why) for rule in orders]
        orders = ()
    if not orders and not flow:
        return skipped, []
    program = Program(modules)
    events = (event for rule in orders for event in (rule.first, rule.then, rule.within) if event is not None)
    inlined = Inlined(program, {name for event in events if event.kind == "call" for name in event.names})
    found: list[Told] | None = None
    if len(names) > 1 and not flow and can_be_two():
        found = in_two(program, inlined, names, orders, meanwhile)
    trees: list[Tree] = []
    if found is None:
        runs = Runs(Code(program, inlined.cuts), inlined=inlined, cut=not flow)
        answers, kept, trees = run_entries(runs, names, orders, flow)
        found = told(runs, [*answers, *Functions(runs, names, orders).answers()], kept)
    place = {rule.id: number for number, rule in enumerate(orders)}
    found.sort(key=lambda one: (place.get(one[0], -1), one[1].module))
    return [*skipped, *(finding for _, finding in found)], trees
