"""The init flow as a tree to fold: what init and exit of each module call, and where rules have their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kbuild.outcome import Finding, Status
from kbuild.report import gist
from kbuild.report.calls import called
from kbuild.report.observed import seen
from kbuild.traces import Observation

if TYPE_CHECKING:
    from kbuild.record import Record

MAX_NODES = 6000
"""On the page; what is left out is counted where it would stand."""
MAX_DEPTH = 60
"""Of calls in calls."""


@dataclass(frozen=True)
class Mark:
    """An event of a rule, with what is known of the rule for the module whose init this is."""

    rule: str
    event: str
    what: str
    answer: str
    seen: str
    status: Status
    """That gives it its colour."""


@dataclass
class Node:
    """A call; alike ones that follow each other and lead nowhere are one."""

    text: str
    where: str
    how: str
    unresolved: bool
    marks: list[Mark]
    calls: list[Node] = field(default_factory=list)
    times: int = 1
    left: int = 0
    """Calls in it that are not on the page."""
    leads: bool = False
    """To an event: then it is unfolded."""


@dataclass(frozen=True)
class Entry:
    """One init or exit."""

    anchor: str
    title: str
    about: str
    root: Node
    unresolved: list[str]
    open: bool


def entries(flow: Sequence[Mapping[str, Any]], record: Record) -> list[Entry]:
    """All trees that have a call. `flow`: as `inspect --json` has it."""
    maker = _Maker(gist.answers(record), seen(record.transcripts))
    return [maker.entry(one) for one in flow if one["calls"]]


class _Maker:
    def __init__(
        self, answers: Mapping[str, Mapping[str, Finding]], observed: Mapping[str, Mapping[str, Observation]]
    ) -> None:
        self._answers = answers
        self._observed = observed
        self._room = MAX_NODES

    def entry(self, data: Mapping[str, Any]) -> Entry:
        counts = data["counts"]
        about = f"{counts['functions']} functions of modules, {counts['kernel_functions']} of the kernel, "
        about += f"{counts['calls']} calls, {counts['unresolved']} unresolved"
        where = " ".join(part for part in (data["module"], data["section"]) if part)
        root = Node(f"{data['function']}()", where, "", False, self._marks(data, data["module"]))
        self._fill(root, data["calls"], data["module"])
        unresolved = [f"{one['why']}: at {one['place']}" for one in data["unresolved"]]
        name = f"{data['module']}: {data['entry']}"
        return Entry(f"flow-{data['module']}-{data['entry']}", name, about, root, unresolved, data["entry"] == "init")

    def _fill(self, node: Node, calls: Sequence[Mapping[str, Any]], module: str, depth: int = 0) -> None:
        for data in calls:
            if self._room <= 0 or depth >= MAX_DEPTH:
                node.left += 1
                continue
            one = self._node(data, module)
            last = node.calls[-1] if node.calls else None
            if last is not None and not data["calls"] and not last.calls and _alike(last, one):
                last.times += 1
                continue
            self._room -= 1
            node.calls.append(one)
            self._fill(one, data["calls"], module, depth + 1)
            node.leads |= one.leads or bool(one.marks)

    def _node(self, data: Mapping[str, Any], module: str) -> Node:
        where = " ".join(part for part in (data["module"], data["section"]) if part) or f"at {data['place']}"
        words = [data["how"]] if data["how"] != "call" else []
        words += ["candidate"] if data["candidate"] else []
        words += ["tail"] if data["tail"] else []
        source = f", {data['source']}" if data["source"] else ""
        unresolved = data["unresolved"] is not None
        return Node(called(data), where + source, ", ".join(words), unresolved, self._marks(data, module))

    def _marks(self, data: Mapping[str, Any], module: str) -> list[Mark]:
        """One for each rule and event: several stores of one function may be the same to a rule."""
        found = {(one["rule"], one["event"]): self._mark(one, module) for one in data["events"]}
        return [*found.values()]

    def _mark(self, event: Mapping[str, Any], module: str) -> Mark:
        answer = self._answers.get(event["rule"], {}).get(module)
        row = self._observed.get(event["rule"], {})
        saw = row.get(module) or row.get(module.replace("-", "_"))
        what = "" if event["what"].endswith(("()", '"')) else event["what"]
        said = ("known" if answer.known is not None else answer.answer or "") if answer else "not asked"
        status = Status.SKIP if answer is None else Status.DONE if answer.known is not None else answer.status
        if saw is not None and saw.seen == "broken":
            status = Status.FAIL
        return Mark(event["rule"], event["event"], what, said, saw.seen if saw else "", status)


def _alike(one: Node, other: Node) -> bool:
    return (one.text, one.where, one.how, one.marks) == (other.text, other.where, other.how, other.marks)
