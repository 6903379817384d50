"""Order rules, answered: one run over all ways through an entry for all of them, then a witness for each broken one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Run, Runs
from kbuild.elf.rules.asked import Asked
from kbuild.elf.rules.events import Matches, find
from kbuild.elf.rules.spec import OrderRule
from kbuild.elf.rules.watcher import Watcher

if TYPE_CHECKING:  # Most rules are kept.
    from kbuild.elf.rules.witness import Witness

Verdict = Literal["proved", "violated", "unreached", "unknown"]
RuleEvent = tuple[str, str, Matches]
"""A rule's id; `first`, `then` or `within`; and where that is."""

MAX_NAMED = 5


@dataclass(frozen=True)
class Answer:
    """To one rule, asked of one module."""

    rule: OrderRule
    module: str
    answer: Verdict
    why: str
    """One line: what was found, or what stood in the way."""
    witness: Witness | None = None
    first: str = ""
    then: str = ""
    """The events, with the names that they have here."""


class Orders:
    """Order rules that are asked of one entry of one module, in one run."""

    def __init__(self, runs: Runs, module: str, entry: str, rules: Sequence[OrderRule], *, is_vendor: bool) -> None:
        self._runs = runs
        self._inlined = runs.inlined
        self._module = module
        vendor = module if is_vendor else None
        self._asked = [
            Asked(
                rule,
                index,
                find(rule.first, runs.program, runs.inlined, vendor) if rule.first else None,
                find(rule.then, runs.program, runs.inlined, vendor),
                find(rule.within, runs.program, runs.inlined, vendor) if rule.within else None,
            )
            for index, rule in enumerate(rules)
        ]
        self.job = Job(module, entry, Watcher(runs, self._asked))
        """What has to be run."""

    @property
    def events(self) -> list[RuleEvent]:
        """All that the rules mention."""
        every = [(one, (("first", one.first), ("then", one.then), ("within", one.within))) for one in self._asked]
        return [(one.rule.id, which, it) for one, parts in every for which, it in parts if it is not None]

    def answers(self, run: Run | None) -> list[Answer]:
        """In the order of the rules; `run` is of `job`."""
        if run is None:
            why = f"{self._module} has no {self.job.entry}"
            return [Answer(one.rule, self._module, "unreached", why) for one in self._asked]
        return [self._answer(one, run) for one in self._asked]

    def _answer(self, one: Asked, run: Run) -> Answer:
        rule, flow = one.rule, run.flow

        def answer(what: Verdict, why: str, witness: Witness | None = None) -> Answer:
            return Answer(rule, self._module, what, why, witness, str(one.first or one.within), str(one.then))

        if one.unnamed:
            return answer("unknown", self._unnamed(one))
        if one.broken:
            from kbuild.elf.rules.witness import find_witness

            found, why = find_witness(one, self._asked, self._runs, run)
            if found is not None:
                return answer("violated", f"{one.then} may come before {one.first or one.within}", found)
            return answer("unknown", f"no way to {one.then} was found that does not contradict itself: {why}")
        program = self._runs.program
        if flow.machine.unread:
            return answer("unknown", min(flow.machine.unread))
        if flow.trouble.given_up is not None:
            where = _places(program, Counter([flow.trouble.given_up]))
            return answer("unknown", f"there are too many ways to follow them all: given up at {where}")
        if flow.trouble.cut:
            return answer("unknown", f"the analysis came to no end: {_places(program, flow.trouble.cut)}")
        if one.perhaps:
            return answer("unknown", f"this may be {one.then}: {_places(program, one.perhaps)}")
        if one.doubtful:
            return answer("unknown", f"{self._doubt(one)}: {_places(program, one.doubtful)}")
        if one.lost:
            return answer("unknown", f"what is called there is not known: {_places(program, one.lost)}")
        if not one.kept and one.lost_later:
            why = f"{one.then} was not seen, and what is called there is not known"
            return answer("unknown", f"{why}: {_places(program, one.lost_later)}")
        if not one.kept:
            return answer("unreached", f"{one.then} cannot happen")
        return answer("proved", f"{one.then} never comes before {one.first or one.within}")

    def _unnamed(self, one: Asked) -> str:
        which, matches = one.unnamed[0]
        names = " or ".join(getattr(one.rule, which).names)
        if matches.gone:
            return f"{' and '.join(matches.gone)} is inlined, and no instruction of it is left"
        damaged = [f"; the debug information of {name} is damaged: {why}" for name, why in self._inlined.unread.items()]
        return f"no symbol is called {names}: misspelt, or inlined{''.join(damaged)}"

    def _doubt(self, one: Asked) -> str:
        """Why it cannot be told whether `then` may come."""
        assert one.passing is not None
        bodies = one.passing.first
        inlined = f"{' and '.join(self._inlined.names(bodies.of or one.passing.within))}() is inlined"
        about = one.rule.first
        if not bodies.counts and about is not None:
            what = "how it returns" if about.success else "which string it is given"
            return f"{inlined}, so that it is not known {what}, and then comes {one.then}"
        return f"{inlined}, and it is not known whether it was called and is over when {one.then} comes"


def _places(program: Program, addresses: Counter[int]) -> str:
    names = [f"{name.module}: {name}" for address in addresses if (name := program.name(address))]
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
