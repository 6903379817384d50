"""A finished tree: calls by names, in the order in which they can happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kbuild.elf.code.calls import TRAMPOLINE
from kbuild.elf.code.decode import CALL, INDIRECT_CALL, INDIRECT_JUMP, NEXT, TARGET, Code
from kbuild.elf.code.graph import Shape
from kbuild.elf.code.results import INDIRECT_THUNKS
from kbuild.elf.code.runs import Run, Runs
from kbuild.elf.names import stem
from kbuild.elf.places import Place, Places
from kbuild.elf.tree.arguments import Argument, Given, count_of, named
from kbuild.elf.tree.collect import Collector, Seen, Why
from kbuild.elf.tree.taken import Taken

How = Literal["call", "pointer", "static call", "callback"]
LAST = 1 << 30


@dataclass(frozen=True)
class Node:
    """A call, in the context of those that lead to it; or the entry."""

    symbol: str | None
    """As the symbol table has it; None: not resolved."""
    module: str | None
    """None: a function of the kernel, or not resolved."""
    section: str | None
    place: Place | None
    """Of the call; of the entry, its own."""
    arguments: tuple[tuple[Argument, ...], ...]
    """Each with its constants, on different ways; with none it is not known."""
    how: How
    is_tail: bool
    """A jump: it returns to the caller's caller."""
    is_candidate: bool
    """One of those that a static call may lead to."""
    why: Why | None
    """It was not resolved."""
    through: str | None
    """Of one that was not resolved: the pointer, where that has a name."""
    events: tuple[tuple[str, str, str], ...]
    """Of rules: id, which, and what it is."""
    calls: tuple[Node, ...]

    @property
    def name(self) -> str | None:
        """Without what compilers add."""
        return stem(self.symbol) if self.symbol is not None else None

    @property
    def of_kernel(self) -> bool:
        """Whether it is a function of the kernel, which is not looked into."""
        return self.symbol is not None and self.module is None

    def all(self) -> Iterator[Node]:
        """It, and all below."""
        yield self
        for one in self.calls:
            yield from one.all()


@dataclass(frozen=True)
class Tree:
    """All calls of one entry."""

    module: str
    entry: str
    """`init` or `exit`."""
    root: Node
    cut: tuple[Place, ...]
    """Blocks that were given up because they came to no end: what is behind them may be missing."""

    @cached_property
    def nodes(self) -> list[Node]:
        """All calls, from above."""
        return [node for one in self.root.calls for node in one.all()]

    @cached_property
    def unresolved(self) -> list[Node]:
        """Calls that lead nobody knows where, each place once."""
        found = {(str(node.place), node.why): node for node in self.nodes if node.why is not None}
        return list(found.values())

    @cached_property
    def counts(self) -> dict[str, int]:
        """Of places in code, whatever the context: docs/inspect.md."""
        own = {(one.module, one.symbol, one.section) for one in (self.root, *self.nodes) if one.module is not None}
        return {
            "functions": sum(not str(symbol).startswith(TRAMPOLINE) for _, symbol, _ in own),
            "kernel_functions": len({node.symbol for node in self.nodes if node.of_kernel}),
            "calls": len({str(node.place) for node in self.nodes if node.how != "callback"}),
            "callbacks": len({(str(node.place), node.symbol) for node in self.nodes if node.how == "callback"}),
            "unresolved": len(self.unresolved),
            "candidates": len({(str(node.place), node.symbol) for node in self.nodes if node.is_candidate}),
            "nodes": len(self.nodes),
        }


class Trees:
    """Makes trees of what was collected in the runs over one module set."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._code = runs.code
        self._program = runs.program
        self._places = Places(runs.program)
        self._sequences: dict[int, dict[int, int]] = {}

    def of(self, collected: Sequence[tuple[Run, Collector]]) -> list[Tree]:
        """One for each run. How many arguments a function takes is seen from all of them."""
        called: dict[int, list[Given]] = {}
        targets: dict[int, set[int]] = {}
        for _, collector in collected:
            for seen in _all(collector.root):
                if seen.call is not None and seen.call.target is not None:
                    called.setdefault(seen.call.target, []).append(seen.given)
                    targets.setdefault(seen.site, set()).add(seen.call.target)
        counts = {target: count_of(every) for target, every in called.items()}
        taken = Taken(self._code, self._runs.shapes, targets, lambda target: (1 << counts.get(target, 6)) - 1)
        for target in counts:
            counts[target] = taken.by(target).bit_length()
        trees = []
        for run, collector in collected:
            place = self._places.at(run.address)
            root = Node(
                place.name.symbol if place is not None else run.job.entry,
                run.job.module,
                place.section if place is not None else None,
                place,
                *((), "call", False, False, None, None),
                tuple(collector.root.events),
                self._inside(collector.root, run.address, counts),
            )
            cut = [place for address in sorted(run.flow.trouble.cut) if (place := self._places.at(address)) is not None]
            trees.append(Tree(run.job.module, run.job.entry, root, tuple(cut)))
        return trees

    def _inside(self, seen: Seen, function: int | None, counts: dict[int, int]) -> tuple[Node, ...]:
        every = list(seen.inside.values())
        if function is not None and self._program.is_code(function):
            sequence = self._sequences.get(function)
            if sequence is None:
                sequence = self._sequences[function] = sequence_of(self._runs.shapes.of(function), self._code)
            every.sort(key=lambda one: (sequence.get(one.site, LAST), one.site))
        return tuple(self._node(one, counts) for one in every)

    def _node(self, seen: Seen, counts: dict[int, int]) -> Node:
        call, how, is_tail = seen.call, *self._how(seen.site)
        if call is not None and call.given_to is not None:
            how, is_tail = "callback", False
        target = call.target if call is not None else None
        name = call.name if call is not None else None
        at = self._places.at(target) if target is not None and name is not None and name.module is not None else None
        given = seen.given.known(counts[target]) if target is not None else ()
        through = self._program.name(seen.pointer) if seen.pointer is not None else None
        return Node(
            str(name) if name is not None else None,
            name.module if name is not None else None,
            at.section if at is not None else None,
            self._places.at(seen.site),
            tuple(named(self._program, values) for values in given),
            how,
            is_tail,
            seen.candidate,
            seen.why,
            str(through) if through is not None else None,
            tuple(seen.events),
            self._inside(seen, target, counts),
        )

    def _how(self, site: int) -> tuple[How, bool]:
        block = self._code.block(site)
        op = block.ops[0] if block is not None and block.ops else None
        if op is None:
            return "call", False
        is_tail = op.flow not in (CALL, INDIRECT_CALL, NEXT)
        if op.flow in (INDIRECT_CALL, INDIRECT_JUMP):
            return "pointer", is_tail
        name = self._program.name(op.operands[0].number) if op.operands and op.operands[0].kind == TARGET else None
        if name is not None and name.symbol.startswith(TRAMPOLINE):
            return "static call", is_tail
        return ("pointer" if name is not None and name.symbol.startswith(INDIRECT_THUNKS) else "call"), is_tail


def _all(seen: Seen) -> Iterator[Seen]:
    yield seen
    for one in seen.inside.values():
        yield from _all(one)


def sequence_of(shape: Shape, code: Code) -> dict[int, int]:
    """For the last instruction of each block of a function: its place in an order of all, which is the shape's."""
    places: dict[int, int] = {}
    for address, number in shape.order.items():
        block = code.block(address)
        if block is not None and block.ops:
            # Blocks may end alike: what comes behind them comes behind the last of them.
            last = block.ops[-1].ip
            places[last] = max(number, places.get(last, number))
    return places
