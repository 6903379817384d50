"""Order rules, answered: one run over all ways through an entry for all of them, then a witness for each broken one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import RAX, Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.code.state import State
from kbuild.elf.rules.asked import ACTIVE, BROKEN, HAPPENED, Asked, marked, returns
from kbuild.elf.rules.events import find, given, split, union_of
from kbuild.elf.rules.spec import OrderRule
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


class Watcher:
    """Holds the run over all ways against all rules."""

    def __init__(self, program: Program, asked: Sequence[Asked]) -> None:
        self._program = program
        self._asked = asked
        self._by_target: dict[object, list[Asked]] = {}
        for one in asked:
            targets: set[object] = set()
            for matches in (one.first, one.then, one.within):
                if matches is not None:
                    targets |= matches.functions | matches.kernel
            for target in targets:
                self._by_target.setdefault(target, []).append(one)
        self.flow: Flow | None = None

    def _about(self, call: Call) -> list[Asked]:
        if call.of_kernel and call.name is not None:
            return self._by_target.get(call.name.symbol, [])
        return self._by_target.get(call.target, [])

    def entered(self, state: State, call: Call) -> None:
        for one in self._about(call):
            if one.then.calls(call):
                self._came(one, state, given(one.then.event, self._program, call), call.site)
            if one.within is not None and one.within.calls(call):
                marked(state, one.index, set_=ACTIVE)

    def _came(self, one: Asked, state: State, sure: bool | None, site: int) -> None:
        """`then` is about to happen."""
        if sure is False:
            return
        if one.may_come(state.marks[one.index]):
            one.kept += 1
        elif sure is None:
            one.perhaps[site] += 1
        else:
            if one.rule.paths == "all":
                one.broken[state.at] += 1
            marked(state, one.index, set_=BROKEN)

    def returned(self, state: State, call: Call) -> list[State]:
        states = [state]
        for one in self._about(call):
            if one.within is not None and one.within.calls(call):
                for each in states:
                    marked(each, one.index, clear=ACTIVE)
            if one.first is None or not one.first.calls(call):
                continue
            if given(one.first.event, self._program, call) is not True:
                continue
            assert self.flow is not None
            parted: list[State] = []
            for each in states:
                good, bad = split(each, self.flow.machine, one.first.event, RAX)
                if good is not None:
                    marked(good, one.index, set_=HAPPENED)
                parted += [part for part in (good, bad) if part is not None]
            states = parted
        return states

    def lost(self, state: State, site: int) -> None:
        for one in self._asked:
            may_come = one.may_come(state.marks[one.index])
            (one.lost_later if may_come else one.lost)[site] += 1

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        """An object that a rule is about was read or written, or may have been."""
        for one in self._asked:
            then, first = one.then, one.first
            if then.covers(start, end):
                if what == then.event.kind:
                    self._came(one, state, True, state.at[0])
                elif what == "lent":
                    self._came(one, state, None, state.at[0])
            if first is not None and what == first.event.kind and first.covers(start, end):
                marked(state, one.index, set_=HAPPENED)

    def ended(self, states: Sequence[State]) -> None:
        """The entry's function has returned."""
        for state in states:
            for one in self._asked:
                if one.rule.paths != "all" and state.marks[one.index] & BROKEN and returns(state, one.rule.paths):
                    one.broken[state.at] += 1


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
        objects = [place for one in asked for m in (one.first, one.then) if m is not None for place in m.objects]
        knows = frozenset({self.module}) if name == "init" else frozenset[str]()
        state = State.at_entry((0,) * len(asked))
        while True:
            for one in asked:
                one.forget()
            watcher = Watcher(program, asked)
            flow = watcher.flow = Flow(program, self.code, self._shapes, knows, watcher)
            flow.calls_to.candidates = self._static_calls.targets
            if objects:
                flow.machine.watch(*union_of(objects), watcher.accessed)
            before = self._static_calls.known(self._static_calls.targets)
            watcher.ended(flow.start(entry, state))
            self._static_calls.learn(flow.calls_to.updates)
            met = frozenset(flow.calls_to.asked)
            known = self._static_calls.known(met)
            self._relied_on[name] = met, known
            # Done again until nothing new comes: then what it took for granted is what it found.
            if known <= before:
                break
        return [self._answer(one, flow, entry, state) for one in asked]

    def _answer(self, one: Asked, flow: Flow, entry: int, state: State) -> Answer:
        rule = one.rule

        def answer(what: Verdict, why: str, witness: Witness | None = None) -> Answer:
            return Answer(rule, self.module, what, why, witness, str(one.first or one.within), str(one.then))

        if one.unnamed:
            event = getattr(rule, one.unnamed[0])
            return answer("unknown", f"no symbol is called {' or '.join(event.names)}: misspelt, or inlined")
        if one.broken:
            found, why = find_witness(one, self.code, self._shapes, flow, entry, state)
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
