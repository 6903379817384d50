"""How far a place is from what is looked for, on ways whose calls return to where they came from.

From the edges that the run over all ways has seen. A function that is called at many places leads from its end only to
where it was called now, so that way and distance hang on the functions that are being run.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from kbuild.elf.code.decode import Code
from kbuild.elf.code.state import Marks, Node

FAR = 1 << 30
TAIL = -1
"""In place of where a function returns to: it was jumped to, and its end is the end of the one that jumped."""


class Running(Protocol):
    """A function that is being run."""

    @property
    def entry(self) -> int:
        """Its address."""

    @property
    def then(self) -> int:
        """Where it returns to, or TAIL."""

    @property
    def parent(self) -> Running | None:
        """Its caller; None: the kernel."""

    @property
    def kernel(self) -> object | None:
        """The call of the kernel that runs it; None: it is called by code."""


class _Field:
    """Distances of nodes from some, within a function and those that it calls."""

    def __init__(self, found: dict[Node, int]) -> None:
        self.exactly = found
        self.nearest: dict[tuple[int, Marks], int] = {}
        for (address, _, marks), far in found.items():
            self.nearest[address, marks] = min(far, self.nearest.get((address, marks), FAR))


class Nearness:
    """Distances from goals, in edges that were seen."""

    def __init__(self, code: Code, edges: Mapping[Node, Collection[Node]], goals: Collection[Node]) -> None:
        """`edges`: from where each place was come to; a function's end is the negative of its address."""
        self._code = code
        self._edges = edges
        blocks = ((node[0], code.block(node[0])) for node in edges if node[0] > 0)
        self._cut = {address for address, block in blocks if block is not None and block.is_cut}
        """Blocks that are one step with the next one: no way parts where they end."""
        ends = [node for node in edges if node[0] < 0]
        self._functions = {-node[0] for node in ends}
        self._ends: dict[int, list[Node]] = {}
        for node in ends:
            self._ends.setdefault(-node[0], []).append(node)
        self._entries: dict[int, list[Node]] = {}
        self._returns: dict[Node, list[Node]] = {}
        """From an end, to where it was returned."""
        for node, befores in edges.items():
            if node[0] in self._functions:
                self._entries.setdefault(node[0], []).append(node)
            for before in befores:
                if before[0] < 0:
                    self._returns.setdefault(before, []).append(node)
        self._to_end: dict[Node, _Field | None] = {}
        self._onwards: dict[tuple[Node, int, int], int] = {}
        self._goals = _Field(self._spread(goals))

    def far(self, node: Node, frame: Running) -> int:
        """From a place in a function that is being run, as far as is known."""
        return min(self._at(self._goals, node), self._out(node, frame))

    def enters(self, entry: int, marks: Marks, *, again: bool) -> bool:
        """Whether a function leads to what is looked for, without returning; with `again`, perhaps by one that the
        kernel runs behind it."""
        if (entry, marks) in self._goals.nearest:
            return True
        return again and any(self._next(end) < FAR for end in self._ends.get(entry, ()))

    def _next(self, end: Node) -> int:
        """From the end of a function that the kernel has run on, by another one that it runs then."""
        there = (node for node in self._returns.get(end, ()) if node[0] in self._functions)
        return min((self._at(self._goals, node) for node in there), default=FAR)

    def _at(self, field: _Field, node: Node) -> int:
        found = field.exactly.get(node)
        if found is None:
            # Here more may be known than where ways were joined.
            found = FAR if node in self._edges else field.nearest.get((node[0], node[2]), FAR)
        return found

    def _out(self, node: Node, frame: Running) -> int:
        """By way of the function's end."""
        best = FAR
        if frame.parent is not None:
            for end in self._ends.get(frame.entry, ()):
                field = self._field(end)
                far = self._at(field, node) if field is not None else FAR
                if far < best:
                    best = min(best, far + self._on(end, frame))
        return best

    def _on(self, end: Node, frame: Running) -> int:
        """From a function's end on, in its caller."""
        key = (end, id(frame), frame.then)
        found = self._onwards.get(key)
        if found is None:
            assert frame.parent is not None
            wanted = -frame.parent.entry if frame.then == TAIL else frame.then
            places = [node for node in self._returns.get(end, ()) if node[0] == wanted]
            if frame.then == TAIL and frame.parent.parent is not None:
                found = min((self._on(node, frame.parent) for node in places), default=FAR)
            else:
                found = min((self.far(node, frame.parent) for node in places), default=FAR)
            if frame.kernel is not None:
                found = min(found, self._next(end))
            self._onwards[key] = found
        return found

    def _field(self, end: Node) -> _Field | None:
        """Distances from a function's end, in that function; None: it is asked for within itself."""
        if end not in self._to_end:
            self._to_end[end] = None
            self._to_end[end] = _Field(self._spread([end]))
        return self._to_end[end]

    def _spread(self, goals: Iterable[Node]) -> dict[Node, int]:
        """From each node that leads to one of these without returning from its function: how far it is."""
        found = dict.fromkeys(goals, 0)
        stay = any(address < 0 for address, _, _ in found)
        by_distance: dict[int, list[Node]] = {0: [*found]}
        queue = [0]
        while queue:
            distance = heapq.heappop(queue)
            for node in by_distance.pop(distance):
                if found[node] < distance:
                    continue
                for step, before in self._before(node, stay=stay):
                    far = distance + step
                    if far < found.get(before, FAR):
                        found[before] = far
                        if far not in by_distance:
                            by_distance[far] = []
                            heapq.heappush(queue, far)
                        by_distance[far].append(before)
        return found

    def _before(self, node: Node, *, stay: bool) -> Iterator[tuple[int, Node]]:
        """Places that lead to one, and how far; with `stay` in the same function only."""
        for before in self._edges.get(node, ()):
            if before[0] < 0:
                yield from self._over(before, node)
            elif node[0] not in self._functions or not stay:
                yield 0 if before[0] in self._cut else 1, before

    def _over(self, end: Node, to: Node) -> Iterator[tuple[int, Node]]:
        """From where a function was called that ended so, and came there."""
        field = self._field(end)
        if field is None:
            return
        for entry in self._entries.get(-end[0], ()):
            far = field.exactly.get(entry)
            if far is None:
                continue
            for caller in self._edges.get(entry, ()):
                # The kernel may have run another function behind it, which was called there as well.
                goes_on = to[0] < 0 or self._goes_on(caller[0]) == to[0] or caller in self._edges.get(to, ())
                if caller[0] > 0 and goes_on:
                    yield far + 2, caller

    def _goes_on(self, address: int) -> int | None:
        """Where a block goes on behind the call that it ends in."""
        block = self._code.block(address)
        return block.ops[-1].next if block is not None and block.ops else None
