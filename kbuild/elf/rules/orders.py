"""Order rules, answered: one run over all ways through an entry for all of them, then a witness for each broken one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.decode import Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.code.state import State
from kbuild.elf.rules.asked import Asked
from kbuild.elf.rules.events import find
from kbuild.elf.rules.spec import OrderRule
from kbuild.elf.rules.watcher import Watcher
from kbuild.elf.rules.witness import Witness, find_witness

Verdict = Literal["proved", "violated", "unreached", "unknown"]

ENTRIES = {"init": "init_module", "exit": "cleanup_module"}
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


class StaticCalls:
    """What static calls were updated to, by all init code that was run; None: to something unknown."""

    def __init__(self) -> None:
        self.targets: dict[int, set[int | None]] = {}

    def learn(self, updates: Mapping[int, Set[int | None]]) -> None:
        """Note updates."""
        for trampoline, targets in updates.items():
            self.targets.setdefault(trampoline, set()).update(targets)

    def known(self, trampolines: Iterable[int]) -> frozenset[tuple[int, int | None]]:
        """What is known of some of them."""
        return frozenset((one, target) for one in trampolines for target in self.targets.get(one, ()))


class Init:
    """The init, exit and other code of one module in a set, for rules to be asked of."""

    def __init__(self, code: Code, shapes: Shapes, static_calls: StaticCalls, module: str, *, is_vendor: bool) -> None:
        self.code = code
        self.module = module
        self._vendor = module if is_vendor else None
        self._shapes = shapes
        self._static_calls = static_calls
        self._relied_on: dict[str, tuple[frozenset[int], frozenset[tuple[int, int | None]]]] = {}

    def entry(self, name: str) -> int | None:
        """The address of `init`, `exit`, or a function."""
        return self.code.program.symbol(self.module, ENTRIES.get(name, name))

    def is_stale(self, name: str) -> bool:
        """Whether more has become known of static calls that an answer relies on."""
        asked, known = self._relied_on.get(name, (frozenset(), frozenset()))
        return self._static_calls.known(asked) != known

    def answers(self, name: str, rules: Sequence[OrderRule]) -> list[Answer]:
        """To rules that are asked of the same entry, in their order."""
        program = self.code.program
        asked = [
            Asked(
                rule,
                index,
                find(rule.first, program, self._vendor) if rule.first else None,
                find(rule.then, program, self._vendor),
                find(rule.within, program, self._vendor) if rule.within else None,
            )
            for index, rule in enumerate(rules)
        ]
        entry = self.entry(name)
        if entry is None:
            return [Answer(one.rule, self.module, "unreached", f"{self.module} has no {name}") for one in asked]
        knows = frozenset({self.module}) if name == "init" else frozenset[str]()
        state = State.at_entry((0,) * len(asked))
        while True:
            for one in asked:
                one.forget()
            watcher = Watcher(program, asked)
            flow = watcher.flow = Flow(program, self.code, self._shapes, knows, watcher)
            flow.calls_to.candidates = self._static_calls.targets
            watcher.watch(flow.machine)
            before = self._static_calls.known(self._static_calls.targets)
            watcher.ended(flow.start(entry, state))
            self._static_calls.learn(flow.calls_to.updates)
            met = frozenset(flow.calls_to.asked)
            known = self._static_calls.known(met)
            self._relied_on[name] = met, known
            # Done again until nothing new comes: then what it took for granted is what it found.
            if known <= before:
                break
        return [self._answer(one, asked, flow, entry, state) for one in asked]

    def _answer(self, one: Asked, asked: Sequence[Asked], flow: Flow, entry: int, state: State) -> Answer:
        rule = one.rule

        def answer(what: Verdict, why: str, witness: Witness | None = None) -> Answer:
            return Answer(rule, self.module, what, why, witness, str(one.first or one.within), str(one.then))

        if one.unnamed:
            event = getattr(rule, one.unnamed[0])
            return answer("unknown", f"no symbol is called {' or '.join(event.names)}: misspelt, or inlined")
        if one.broken:
            found, why = find_witness(one, asked, self.code, self._shapes, flow, entry, state)
            if found is not None:
                return answer("violated", f"{one.then} may come before {one.first or one.within}", found)
            return answer("unknown", f"no way to {one.then} was found that does not contradict itself: {why}")
        program = self.code.program
        if flow.trouble.cut:
            return answer("unknown", f"the analysis came to no end: {_places(program, flow.trouble.cut)}")
        if one.perhaps:
            return answer("unknown", f"this may be {one.then}: {_places(program, one.perhaps)}")
        if one.lost:
            return answer("unknown", f"what is called there is not known: {_places(program, one.lost)}")
        if not one.kept and one.lost_later:
            why = f"{one.then} was not seen, and what is called there is not known"
            return answer("unknown", f"{why}: {_places(program, one.lost_later)}")
        if not one.kept:
            return answer("unreached", f"{one.then} cannot happen")
        return answer("proved", f"{one.then} never comes before {one.first or one.within}")


def _places(program: Program, addresses: Counter[int]) -> str:
    names = [f"{name.module}: {name}" for address in addresses if (name := program.name(address))]
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
