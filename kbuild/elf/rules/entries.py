"""Runs of what rules are asked of: init and exit of the vendor modules, and other functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from kbuild.elf.code.runs import ENTRIES, Job, Question, Run, Runs, Together
from kbuild.elf.image import module_key
from kbuild.elf.kept import kept_findings
from kbuild.elf.rules.asked import may_be_zero
from kbuild.elf.rules.orders import Answer, Orders
from kbuild.elf.rules.spec import OrderRule
from kbuild.outcome import Finding

if TYPE_CHECKING:  # Most ask for answers only.
    from kbuild.elf.tree.collect import Collector
    from kbuild.elf.tree.model import Tree


Exit = tuple[Orders, Job]
"""What is asked of an exit, and what has to be run for it."""


def left_by(init: Run) -> tuple[tuple[int, int], ...]:
    """Where static calls lead when an init has not failed: as `Job.static` of the exit."""
    return init.left([end for end in init.ends if may_be_zero(end)])


class Other(Protocol):
    """The process that runs other modules at the same time, as this one deals with it."""

    def prepare(self, job: Job) -> Job:
        """An init is about to be run, as what comes back."""

    def wait(self, inits: Sequence[Run | None]) -> None:
        """The other process's init is about to be waited for; `inits`: what came out here."""

    def share(self, exits: Sequence[Exit], lost: AbstractSet[str]) -> tuple[list[Exit], dict[Job, Run | None]]:
        """Which exits are run here, and what came out of some already; `lost`: where init was given up."""


def run_entries(
    runs: Runs,
    names: Sequence[str],
    orders: Sequence[OrderRule],
    flow: bool,
    other: Other | None = None,
) -> tuple[list[Answer], list[Finding], list[Tree]]:
    """Run init and exit: of the vendor modules for the rules that ask for it, with `flow` of all modules.

    Exit comes behind the module's own init, and static calls lead where that has put them: no other module's init has
    succeeded in between, and run time does not change them. Where init could not be followed to its end, that is not
    known, and nothing of exit is. `other`: the process that runs other modules at the same time. Besides answers and
    trees, gives what init leaves behind that is gone then.
    """
    answers: list[Answer] = []
    kept: list[Finding] = []
    left: dict[str, tuple[tuple[int, int], ...]] = {}
    lost: set[str] = set()
    collected: list[tuple[Run, Collector]] = []
    for entry in ENTRIES:  # init first: exit finds what it has put into static calls
        some = [rule for rule in orders if rule.entry == entry]
        vendor = names if some or flow or entry == "init" else ()
        asked = [Orders(runs, name, entry, some, is_vendor=True) for name in vendor]
        jobs = [replace(one.job, static=left.get(name, ())) for name, one in zip(vendor, asked, strict=True)]
        early: dict[Job, Run | None] = {}
        if other is not None and entry == "init":
            jobs = [other.prepare(job) for job in jobs]
        elif other is not None and some:
            exits, early = other.share([*zip(asked, jobs, strict=True)], lost)
            asked, jobs = [one for one, _ in exits], [job for _, job in exits]
        collectors: list[Collector] = []
        if flow:
            from kbuild.elf.tree.collect import Collector

            collectors = [Collector(runs.code, one.events) for one in asked]
            others = [name for name in runs.program.modules if name not in names]
            collectors += [Collector(runs.code) for _ in others]
            jobs += [Job(name, entry, Question()) for name in others]
            pairs = zip(jobs, collectors, strict=True)
            jobs = [replace(job, question=Together([job.question, one])) for job, one in pairs]
        every = runs.settle(jobs, early, other.wait if other is not None and entry == "init" else None)
        for one, run in zip(asked, every, strict=False):
            said, name = one.answers(run), one.job.module
            answers += [_unknown(each) for each in said] if name in lost else said
            if entry == "init" and run is not None:
                left[name] = left_by(run)
                if run.flow.trouble.given_up is not None:
                    lost.add(name)
        if entry == "init":
            kept += kept_findings(runs, [run for run in every if run is not None])
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


class Functions:
    """The rules that are asked of other functions than init and exit."""

    def __init__(
        self, runs: Runs, names: Sequence[str], orders: Sequence[OrderRule], modules: Collection[str] | None = None
    ) -> None:
        """`names`: the vendor modules; `modules`: only functions of these, where not all are asked in one place."""
        self._runs = runs
        here = runs.program.modules if modules is None else modules
        self._asked: list[Orders] = []
        self._nowhere: list[Answer] = []
        self._done: dict[Job, Run | None] = {}
        for entry in dict.fromkeys(rule.entry for rule in orders if rule.entry not in ENTRIES):
            rules = [rule for rule in orders if rule.entry == entry]
            there = [name for name in sorted(runs.program.modules) if runs.entry(name, entry) is not None]
            some = [name for name in there if name in here]
            self._asked += [Orders(runs, name, entry, rules, is_vendor=name in names) for name in some]
            if not there and names[0] in here:
                why = f"no module has a function {entry}"
                self._nowhere += [Answer(rule, "set", "unreached", why) for rule in rules]

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
