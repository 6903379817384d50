"""The init flow as a graph for Graphviz (the DOT language, https://graphviz.org/doc/info/lang.html).

Functions are nodes, modules clusters; an edge has the numbers of the calls in their caller's order. Contexts are put
together: each function is there once. Takes the key `flow` of `inspect --json`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kbuild.paths import write_output

Data = Mapping[str, Any]
Function = tuple[str, str]
"""Module and symbol; of a call that was not resolved its place."""
MAX_NUMBERS = 6
"""Of one edge; of more only how many is said."""
_STYLES = {"callback": "dotted", "candidate": "dashed"}


def write_dot(entries: Sequence[Data], target: str) -> None:
    """Write the graph into a file; `-` is standard output."""
    if target == "-":
        sys.stdout.write(dot(entries))
    else:
        write_output(Path(target).expanduser(), dot(entries))


def dot(entries: Sequence[Data]) -> str:
    """The graph of all entries; the same bytes for the same data."""
    graph = _Graph()
    for entry in entries:
        function = (entry["module"], entry["symbol"])
        graph.functions[function] = "bold"
        graph.add(function, entry["calls"])
    return "\n".join([*graph.lines(), ""])


class _Graph:
    def __init__(self) -> None:
        self.functions: dict[Function, str] = {}
        """With a style."""
        self._labels: dict[Function, str] = {}
        self._edges: dict[tuple[Function, Function, str], dict[tuple[str, str], None]] = {}
        self._orders: dict[Function, dict[tuple[str, str], int]] = {}
        """Of each function its calls, by place and callee, with their numbers."""

    def add(self, caller: Function, calls: Sequence[Data]) -> None:
        """What a function calls in one context: what is new in it is numbered behind what was known."""
        order = self._orders.setdefault(caller, {})
        for node in calls:
            lost = node["unresolved"] is not None
            callee = ("", node["place"]) if lost else (node["module"], node["symbol"])
            self.functions.setdefault(callee, "dashed" if lost else "solid")
            if lost:
                self._labels[callee] = f"? {node['place']}\n{node['unresolved']}"
            key = (node["place"], callee[1])
            order.setdefault(key, len(order) + 1)
            style = _STYLES.get("candidate" if node["candidate"] else node["how"], "solid")
            self._edges.setdefault((caller, callee, style), {})[key] = None
            self.add(callee, node["calls"])

    def lines(self) -> Iterator[str]:
        """The file."""
        yield "digraph flow {"
        yield "\trankdir=LR;"
        yield '\tnode [shape=box, fontname="monospace"];'
        numbers = {function: f"n{number}" for number, function in enumerate(self.functions)}
        for number, module in enumerate(dict.fromkeys(module for module, _ in self.functions)):
            inside = [function for function in self.functions if function[0] == module]
            yield f"\tsubgraph {'cluster' if module else 'unresolved'}_{number} {{"
            yield f"\t\tlabel={quoted(module)};"
            for function in inside:
                label = quoted(self._labels.get(function, function[1]))
                yield f"\t\t{numbers[function]} [label={label}, style={self.functions[function]}];"
            yield "\t}"
        for (caller, callee, style), keys in self._edges.items():
            places = sorted(self._orders[caller][key] for key in keys)
            text = (
                ", ".join(map(str, places)) if len(places) <= MAX_NUMBERS else f"{places[0]}, … ({len(places)} times)"
            )
            yield f"\t{numbers[caller]} -> {numbers[callee]} [label={quoted(text)}, style={style}];"
        yield "}"


def quoted(text: str) -> str:
    """A string of the language: quotes and backslashes are escaped, a line's end is one that is centred."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{"".join(char if char.isprintable() else "?" for char in escaped)}"'
