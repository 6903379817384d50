"""Rules asked of a module set: findings with answers, a witness where one is broken, and trees of what was run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kbuild.elf.code.decode import Code
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import ENTRIES, Job, Question, Run, Runs, Together, uncollected
from kbuild.elf.code.sides import Side, can_be_two, side_by_side
from kbuild.elf.contents import MalformedError
from kbuild.elf.findings import STAGE
from kbuild.elf.image import module_key
from kbuild.elf.kept import kept_findings
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules import layout
from kbuild.elf.rules.asked import may_be_zero
from kbuild.elf.rules.counts import KIND, holds_for, release_of
from kbuild.elf.rules.orders import Answer, Orders, Verdict
from kbuild.elf.rules.spec import OrderRule, Rules
from kbuild.elf.rules.story import Story
from kbuild.elf.types import Types
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, finding_id

if TYPE_CHECKING:  # Most ask for answers only.
    from kbuild.elf.tree.collect import Collector
    from kbuild.elf.tree.model import Tree

_AHEAD = 24
"""Functions that are looked at while what their run begins with is not known yet."""
_Told = tuple[str, Finding]
"""An answer as a finding, and its rule; none: it is found whatever is asked."""


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
        findings += [_finding(rule, one.module, one.status, one.answer, one.why) for one in said]
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
        skipped = [_finding(rule, "set", Status.SKIP, None, why) for rule in orders]
        orders = ()
    if not orders and not flow:
        return skipped, []
    program = Program(modules)
    events = (event for rule in orders for event in (rule.first, rule.then, rule.within) if event is not None)
    inlined = Inlined(program, {name for event in events if event.kind == "call" for name in event.names})
    found: list[_Told] | None = None
    if len(names) > 1 and not flow and can_be_two():
        found = _in_two(program, inlined, names, orders, meanwhile)
    trees: list[Tree] = []
    if found is None:
        runs = Runs(Code(program, inlined.cuts), inlined=inlined, cut=not flow)
        answers, kept, trees = _entries(runs, names, orders, flow)
        found = [*kept, *_told(runs, [*answers, *_Functions(runs, names, orders).answers()])]
    place = {rule.id: number for number, rule in enumerate(orders)}
    found.sort(key=lambda one: (place.get(one[0], -1), one[1].module))
    return [*skipped, *(finding for _, finding in found)], trees


def _in_two(
    program: Program,
    inlined: Inlined,
    names: Sequence[str],
    orders: Sequence[OrderRule],
    meanwhile: Callable[[], object] | None,
) -> list[_Told] | None:
    """The runs of vendor modules side by side: what one puts into static calls is all that another has to know."""
    program.name_all()

    def others(side: Side) -> list[_Told]:
        runs = Runs(Code(program, inlined.cuts), side, inlined, cut=True)
        for name in names[1:]:
            runs.look_ahead(name, _AHEAD)
        for name, given in side.hear().items():
            runs.give(name, given)
        answers, kept, _ = _entries(runs, names[1:], orders, flow=False)
        return [*kept, *_told(runs, answers)]

    def first(side: Side) -> list[_Told]:
        runs = Runs(Code(program, inlined.cuts), side, inlined, cut=True)
        # The first module's runs take less time than the second one's.
        side.say({name: runs.given(name) for name in names[1:]})
        functions = _Functions(runs, names, orders)
        answers, kept, _ = _entries(runs, names[:1], orders, flow=False, meanwhile=functions.run)
        return [*kept, *_told(runs, [*answers, *functions.answers()])]

    both = side_by_side(others, first, meanwhile)
    return [*both[0], *both[1]] if both is not None else None


class _Functions:
    """The rules that are asked of other functions than init and exit."""

    def __init__(self, runs: Runs, names: Sequence[str], orders: Sequence[OrderRule]) -> None:
        self._runs = runs
        self._asked: list[Orders] = []
        self._nowhere: list[Answer] = []
        self._done: dict[Job, Run | None] = {}
        for rule in orders:
            if rule.entry in ENTRIES:
                continue
            there = [name for name in sorted(runs.program.modules) if runs.entry(name, rule.entry) is not None]
            self._asked += [Orders(runs, name, rule.entry, [rule], is_vendor=name in names) for name in there]
            if not there:
                why = f"no module has a function {rule.entry}"
                self._nowhere.append(Answer(rule, "set", "unreached", why))

    def run(self) -> None:
        """Run them before it is known of all static calls where these may lead."""
        self._done = {one.job: self._runs.run(one.job) for one in self._asked}

    def answers(self) -> list[Answer]:
        """What is right when all is known: what relied on less is run again."""
        answers: list[Answer] = []
        for one in self._asked:
            run = self._done.get(one.job)
            if run is None or self._runs.is_stale(run):
                run = self._runs.run(one.job)
            answers += one.answers(run)
        return [*answers, *self._nowhere]


def _entries(
    runs: Runs,
    names: Sequence[str],
    orders: Sequence[OrderRule],
    flow: bool,
    meanwhile: Callable[[], None] | None = None,
) -> tuple[list[Answer], list[_Told], list[Tree]]:
    """Run init and exit: of the vendor modules for the rules that ask for it, with `flow` of all modules.

    Exit comes behind the module's own init, and static calls lead where that has put them: no other module's init has
    succeeded in between, and run time does not change them. Where init could not be followed to its end, that is not
    known, and nothing of exit is. `meanwhile` is done before the other side's init is waited for. Besides answers and
    trees, gives what init leaves behind that is gone then.
    """
    answers: list[Answer] = []
    kept: list[_Told] = []
    left: dict[str, tuple[tuple[int, int], ...]] = {}
    lost: set[str] = set()
    collected: list[tuple[Run, Collector]] = []
    for entry in ENTRIES:  # init first: exit finds what it has put into static calls
        some = [rule for rule in orders if rule.entry == entry]
        vendor = names if some or flow or entry == "init" else ()
        asked = [Orders(runs, name, entry, some, is_vendor=True) for name in vendor]
        jobs = [replace(one.job, static=left.get(name, ())) for name, one in zip(vendor, asked, strict=True)]
        collectors: list[Collector] = []
        if flow:
            from kbuild.elf.tree.collect import Collector

            collectors = [Collector(runs.code, one.events) for one in asked]
            others = [name for name in runs.program.modules if name not in names]
            collectors += [Collector(runs.code) for _ in others]
            jobs += [Job(name, entry, Question()) for name in others]
            pairs = zip(jobs, collectors, strict=True)
            jobs = [replace(job, question=Together([job.question, one])) for job, one in pairs]
        every = runs.settle(jobs, meanwhile if entry == "init" else None)
        for name, one, run in zip(vendor, asked, every, strict=False):
            said = one.answers(run)
            answers += [_unknown(each) for each in said] if name in lost else said
            if entry == "init" and run is not None:
                left[name] = run.left([end for end in run.ends if may_be_zero(end)])
                if run.flow.trouble.given_up is not None:
                    lost.add(name)
        if entry == "init":
            kept += [("", one) for one in kept_findings(runs, [run for run in every if run is not None])]
        collected += [(run, one) for run, one in zip(every, collectors, strict=False) if run is not None]
    if not flow:
        return answers, kept, []
    from kbuild.elf.tree.model import Trees

    entries = list(ENTRIES)
    trees = Trees(runs).of(collected)
    return answers, kept, sorted(trees, key=lambda tree: (module_key(tree.module), entries.index(tree.entry)))


def _unknown(answer: Answer) -> Answer:
    why = f"{answer.module}'s init could not be followed to its end: where it lets static calls lead is not known"
    return answer if answer.answer == "unknown" else replace(answer, answer="unknown", why=why, witness=None)


def _told(runs: Runs, answers: Iterable[Answer]) -> list[_Told]:
    story = Story(runs.program)
    return [(answer.rule.id, _answered(answer, story)) for answer in answers]


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
        id=finding_id(STAGE, KIND, module, rule.id),
        status=status,
        rule=rule.id,
        module=module,
        answer=answer,
        message=f"{rule.id}: {module}: {said}{why}{because}",
        witness=witness,
    )
