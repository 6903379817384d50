"""Rules asked of a module set: findings with answers, and a witness where one is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kbuild import log
from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import ENTRIES, Runs, uncollected
from kbuild.elf.contents import MalformedError
from kbuild.elf.findings import STAGE
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules import layout
from kbuild.elf.rules.orders import Answer, Orders, Verdict
from kbuild.elf.rules.spec import OrderRule, Rules
from kbuild.elf.rules.story import Story
from kbuild.elf.types import Types
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, finding_id
from kbuild.versions import KernelRange


def check_rules(modules: ModuleSet, rules: Rules) -> Iterator[Finding]:
    """One finding for each rule and each module that it is asked of. Raises UserError for a damaged module."""
    release = next((image.vermagic.partition(" ")[0] for image in modules.modules.values() if image.vermagic), None)
    orders = [rule for rule in rules.orders if _holds_for(rule.kernels, release)]
    every: tuple[layout.Rule, ...] = (*rules.symbols, *rules.sections, *rules.budgets)
    others = [rule for rule in every if _holds_for(rule.kernels, release)]
    with log.timed("rules", rules=len(orders) + len(others)):
        try:
            with uncollected():
                found = [*_orders(modules, rules, orders)]
        except MalformedError as error:
            raise UserError(f"the rules cannot be asked of these modules: {error}") from None
        yield from found
        names, types = vendors(modules, rules), Types(modules.kernel)
        for rule in others:
            for said in layout.answers(modules, rule, names, types):
                yield _finding(rule, said.module, said.status, said.answer, said.why)


def _holds_for(kernels: KernelRange, release: str | None) -> bool:
    try:
        return release is None or release in kernels
    except ValueError:
        return True


def vendors(modules: ModuleSet, rules: Rules) -> list[str]:
    """Modules that import what makes one a vendor module."""
    wanted = set(rules.vendor.imports)
    images = modules.modules.values()
    return [image.name for image in images if any(used.name in wanted for used in image.imports)]


def _orders(modules: ModuleSet, rules: Rules, orders: Sequence[OrderRule]) -> Iterator[Finding]:
    if not orders:
        return
    names = vendors(modules, rules)
    if not names:
        yield from (
            _finding(rule, "set", Status.SKIP, None, "no module of the set is a vendor module") for rule in orders
        )
        return
    runs = Runs(Code(Program(modules)))
    story = Story(runs.program)
    answers: list[Answer] = []
    for entry in ENTRIES:  # init first: exit finds what it has put into static calls
        some = [rule for rule in orders if rule.entry == entry]
        if entry == "exit" and not some:
            continue
        asked = [Orders(runs, name, entry, some, is_vendor=True) for name in names]
        for one, run in zip(asked, runs.settle([one.job for one in asked]), strict=True):
            answers += one.answers(run)
    for rule in orders:
        if rule.entry in ENTRIES:
            continue
        there = [name for name in sorted(runs.program.modules) if runs.entry(name, rule.entry) is not None]
        for name in there:
            one = Orders(runs, name, rule.entry, [rule], is_vendor=name in names)
            answers += one.answers(runs.run(one.job))
        if not there:
            answers.append(Answer(rule, "set", "unreached", f"no module has a function {rule.entry}"))
    place = {rule.id: number for number, rule in enumerate(orders)}
    for answer in sorted(answers, key=lambda answer: (place[answer.rule.id], answer.module)):
        yield _answered(answer, story)


def _answered(answer: Answer, story: Story) -> Finding:
    rule = answer.rule
    statuses: dict[Verdict, Status] = {
        "proved": Status.PASS,
        "violated": Status.FAIL,
        "unknown": Status.ERROR,
        "unreached": Status.PASS if rule.optional else Status.FAIL,
    }
    witness = tuple(story.tell(answer)) if answer.witness is not None else ()
    return _finding(rule, answer.module, statuses[answer.answer], answer.answer, answer.why, witness)


def _finding(
    rule: OrderRule | layout.Rule,
    module: str,
    status: Status,
    answer: str | None,
    why: str,
    witness: tuple[str, ...] = (),
) -> Finding:
    because = f" ({rule.reason})" if rule.reason and status != Status.PASS else ""
    said = f"{answer}: " if answer else ""
    return Finding(
        id=finding_id(STAGE, "rule", module, rule.id),
        status=status,
        rule=rule.id,
        module=module,
        answer=answer,
        message=f"{rule.id}: {module}: {said}{why}{because}",
        witness=witness,
    )
