"""What rules want to see of a load: functions to be watched, and where a trace cannot show what a rule is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Linked, Program
from kbuild.elf.code.runs import ENTRIES
from kbuild.elf.image import module_key
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.check import followed, vendors
from kbuild.elf.rules.counts import holds_for, release_of
from kbuild.elf.rules.events import Matches, find
from kbuild.elf.rules.spec import Event, OrderRule, Rules

Function = tuple[str | None, str]
"""The module that it belongs to, by the kernel's name (None: the kernel), and its symbol."""

CALL_SITES = "__mcount_loc"
"""Each traceable function's call of the tracer: scripts/recordmcount.c, or the compiler."""
COLD = ".cold"
KINDS = {"store": "stores", "read": "reads"}
MAX_PROLOGUE = 16
"""Bytes from a function's start to that call: an endbr64 at most."""


class Watched(msgspec.Struct, frozen=True):
    """A function that gets probes: each of the kernel's, and a module's whose result or strings matter."""

    name: str
    """As kprobe events name it: `NAME` or `MODULE:NAME`."""
    enters: bool
    """Not only its return: of a module's function the function graph shows the rest."""
    strings: bool


@dataclass(frozen=True)
class Watchable:
    """An event of a rule, as a trace may show it."""

    event: Event
    told: str
    """For a person, with the names that there are."""
    functions: frozenset[Function]
    hidden: tuple[str, ...]
    """What of it a trace cannot show, and why; one line each."""


@dataclass(frozen=True)
class Asked:
    """A rule that is asked of a module, within one function."""

    rule: OrderRule
    module: str
    entry: frozenset[Function]
    """All names of it; empty: it cannot be traced. `__exit` is `notrace` (include/linux/init.h)."""
    first: Watchable | None
    then: Watchable
    within: Watchable | None


@dataclass(frozen=True)
class Question:
    """All that is asked of a module set."""

    asked: tuple[Asked, ...] = ()
    watched: tuple[Watched, ...] = ()


@dataclass
class _Sites:
    """Where the modules of a program can be traced."""

    program: Program
    _starts: dict[str, set[int]] = field(default_factory=dict)

    @cached_property
    def exported(self) -> frozenset[str]:
        """What modules import from each other."""
        return frozenset(one.name for linked in self.program.modules.values() for one in linked.image.exports)

    def traced(self, address: int) -> bool:
        """Whether a function calls the tracer."""
        place = self.program.place(address)
        return place is not None and address in self._of(place[0])

    def _of(self, linked: Linked) -> set[int]:
        if linked.name not in self._starts:
            starts: set[int] = set()
            for section in linked.elf.sections:
                if section.name == CALL_SITES and section.index in linked.base:
                    data = self.program.content(linked, section)
                    for at in range(0, len(data) - 7, 8):
                        address = int.from_bytes(data[at : at + 8], "little")
                        name = self.program.name(address)
                        if name is not None and name.offset <= MAX_PROLOGUE:
                            starts.add(address - name.offset)
            self._starts[linked.name] = starts
        return self._starts[linked.name]

    def names(self, address: int) -> Iterable[Function]:
        """All names of a module's function: `init_module` and `svm_init`."""
        place = self.program.place(address)
        if place is None:
            return
        linked, section, offset = place
        for symbol in linked.elf.symbols:
            if symbol.section == section.index and symbol.value == offset and symbol.kind in ("func", "notype"):
                yield module_key(linked.name), symbol.name


def ask(modules: ModuleSet, rules: Rules) -> Question:
    """What the order rules that are for this kernel want to see. Raises MalformedError for a damaged module."""
    orders = [rule for rule in rules.orders if holds_for(rule.kernels, release_of(modules))]
    if not orders:
        return Question()
    program, names = Program(followed(modules, rules)), vendors(modules, rules)
    events = (event for rule in orders for event in (rule.first, rule.then, rule.within) if event is not None)
    inlined = Inlined(program, {name for event in events if event.kind == "call" for name in event.names})
    sites = _Sites(program)
    asked: list[Asked] = []
    for rule in orders:
        entry = ENTRIES.get(rule.entry, rule.entry)
        for module in names if rule.entry in ENTRIES else sorted(program.modules):
            address = program.symbol(module, entry)
            if address is None:
                continue
            vendor = module if module in names else None

            def part(event: Event | None, vendor: str | None = vendor) -> Watchable | None:
                return _part(sites, inlined, event, find(event, program, inlined, vendor)) if event else None

            then = part(rule.then)
            assert then is not None
            where = frozenset(sites.names(address)) if sites.traced(address) else frozenset()
            asked.append(Asked(rule, module, where, part(rule.first), then, part(rule.within)))
    return Question(tuple(asked), tuple(_watched(asked)))


def _part(sites: _Sites, inlined: Inlined, event: Event, matches: Matches) -> Watchable:
    if event.kind != "call":
        return Watchable(event, str(matches), frozenset(), (f"a trace shows no {KINDS[event.kind]}",))
    exported = sites.exported
    functions: set[Function] = {(None, name) for name in matches.kernel if name not in exported}
    hidden = [f"{name}() is inlined" for name in inlined.names(matches.bodies)]
    hidden += [f"{name}() is inlined, and nothing of it is left" for name in matches.gone]
    for address in sorted(matches.functions):
        names = [*sites.names(address)]
        if any(COLD in name for _, name in names):
            continue  # nobody calls it: its function jumps there
        if sites.traced(address):
            functions.update(names)
        else:
            hidden.append(f"{names[0][1] if names else hex(address)}() does not call the tracer")
    return Watchable(event, str(matches), frozenset(functions), tuple(dict.fromkeys(hidden)))


def _watched(asked: Iterable[Asked]) -> Iterable[Watched]:
    """Each function once, in the order of their names."""
    enters: dict[Function, bool] = {}
    results: set[Function] = set()
    for one in asked:
        for part in (one.first, one.then, one.within):
            for function in part.functions if part is not None else ():
                strings = part is not None and part.event.arg is not None
                enters[function] = enters.get(function, False) or strings
                if part is not None and part.event.success is not None:
                    results.add(function)
        if one.rule.paths != "all":
            results |= one.entry
    for module, symbol in sorted({*enters, *results}, key=lambda one: (one[0] or "", one[1])):
        strings = enters.get((module, symbol), False)
        if module is None or strings or (module, symbol) in results:
            name = symbol if module is None else f"{module}:{symbol}"
            yield Watched(name, module is None or strings, strings)
