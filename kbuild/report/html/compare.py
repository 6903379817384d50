"""Two runs as one page, beside each other: what both judged, their answers to rules, what init does in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbuild.outcome import Finding, Status
from kbuild.report import gist
from kbuild.report.calls import called
from kbuild.report.compare import pairs_of
from kbuild.report.html import changes, orders
from kbuild.report.html.frame import render_page

if TYPE_CHECKING:
    from kbuild.record import Record

MAX_CALLS = 4000
"""On the page."""
MAX_DEPTH = 14
"""Up to which calls are shown further to the right."""
MAX_FINDINGS = 200
MANY_CALLS = 400
"""Of all trees: more are folded until somebody looks."""
MANY_ANSWERS = 12
"""That differ: of more those alone are unfolded that are not kept now."""
SIDES = ("before", "after")


@dataclass(frozen=True)
class Mark:
    """An event of a rule, with the answer of the side that it is on."""

    rule: str
    event: str
    answer: str
    status: Status
    asked: bool
    """On one of the sides: then the page has the answers."""


@dataclass(frozen=True)
class Side:
    """A call on one side."""

    text: str
    where: str
    unresolved: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Pair:
    """A call on both sides, or on one of them; or calls that are alike, of which there is only the number."""

    change: str
    before: Side | None
    after: Side | None
    moved: str
    calls: tuple[Pair, ...]
    alike: int = 0
    left: int = 0
    """Calls in it that there is no room for."""
    depth: int = 0


@dataclass(frozen=True)
class Tree:
    """An init or exit."""

    anchor: str
    title: str
    pair: Pair
    open: bool
    """Whether it is seen before somebody asks."""


@dataclass(frozen=True)
class Row:
    """An order: its runs on each host, before and after."""

    order: str
    cells: tuple[tuple[str, orders.Cell | None, orders.Cell | None], ...]
    differs: bool


@dataclass(frozen=True)
class Answer:
    """What one rule came to in one module on both sides."""

    rule: str
    module: str
    before: Finding | None
    after: Finding | None
    anchor: str
    """Of the rule, at the first module that it was asked of."""

    @property
    def differs(self) -> bool:
        """Whether the answers are two."""
        return _word(self.before) != _word(self.after)


def _word(one: Finding | None) -> tuple[str, bool]:
    return (one.answer or str(one.status), one.known is not None) if one is not None else ("", False)


def render_compare_html(
    found: Mapping[str, Any], flow: Mapping[str, Any], runs: Sequence[tuple[Path, Record]], command: str
) -> str:
    """The page. `found`: as `inv compare --json` prints it; `flow`: as `kbuild.detail.look_at_both` gives it."""
    records = [record for _, record in runs]
    answers = _answers(*records)
    differing = [one for one in answers if one.differs]
    data = {"modules": found["modules"]}
    trees = _trees(flow["flow"] or (), records)
    return render_page(
        "compare.html",
        found=found,
        status=Status(found["status"]),
        sides=[_side(name, record) for name, record in zip(SIDES, records, strict=True)],
        hosts=[*dict.fromkeys(host for record in records for host in gist.hosts(record))],
        matrix=_matrix(*records),
        differing=[one for one in differing if len(differing) <= MANY_ANSWERS or _counts_now(one)],
        others=[one for one in differing if len(differing) > MANY_ANSWERS and not _counts_now(one)],
        broken=[one for one in answers if not one.differs and _counts(one)],
        kept=[one for one in answers if not one.differs and not _counts(one)],
        findings=found["findings"][:MAX_FINDINGS],
        trees=[tree for tree in trees if tree.pair.change != "same" or tree.pair.calls],
        unseen=flow["why"],
        changes=changes.changes(data),
        pairs=pairs_of(found, records),
        command=command,
        records=records,
    )


def _side(name: str, record: Record) -> dict[str, Any]:
    verdict, status = gist.verdict_of(record)
    asked = gist.asked(record) or record.task
    about = [("kernel", record.kernel or ""), ("source", gist.identity(record)), ("run", record.id)]
    return {
        "name": name,
        "asked": asked,
        "verdict": verdict,
        "status": status,
        "facts": [(key, said) for key, said in about if said],
    }


def _counts(answer: Answer) -> bool:
    return any(one is not None and one.status.counts for one in (answer.before, answer.after))


def _counts_now(answer: Answer) -> bool:
    one = answer.after
    return one is not None and one.counts


def _answers(before: Record, after: Record) -> list[Answer]:
    old, new = gist.answers(before), gist.answers(after)
    found = []
    for rule in dict.fromkeys([*new, *old]):
        was, now = old.get(rule, {}), new.get(rule, {})
        for number, name in enumerate(sorted({*was, *now})):
            found.append(Answer(rule, name, was.get(name), now.get(name), "" if number else f"rule-{rule}"))
    return found


def _matrix(before: Record, after: Record) -> list[Row]:
    hosts = [*dict.fromkeys(host for record in (before, after) for host in gist.hosts(record))]
    sides = [_cells(record) for record in (before, after)]
    rows = []
    for order in dict.fromkeys(order for side in sides for order, _ in side):
        cells = tuple((host, sides[0].get((order, host)), sides[1].get((order, host))) for host in hosts)
        rows.append(Row(order, cells, any(_outcome(was) != _outcome(now) for _, was, now in cells)))
    return rows


def _cells(record: Record) -> dict[tuple[str, str], orders.Cell]:
    hosts = gist.hosts(record)
    return {
        (row.order, host): cell
        for row in orders.matrix(record)
        for host, cell in zip(hosts, row.cells, strict=True)
        if cell is not None
    }


def _outcome(cell: orders.Cell | None) -> Any:
    return cell.counts if cell is not None else None


# The init flow.


def _trees(flow: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Tree]:
    maker = _Maker(records)
    pairs = [(one, maker.pair({**one, "moved": ""}, one["module"], 0)) for one in flow if one["differs"]]
    few = maker.room > MAX_CALLS - MANY_CALLS
    return [
        Tree(
            f"flow-{one['module']}-{one['entry']}",
            f"{one['module']}: {one['entry']}",
            pair,
            few and one["entry"] == "init",
        )
        for one, pair in pairs
    ]


class _Maker:
    def __init__(self, records: Sequence[Record]) -> None:
        self._answers = dict(zip(SIDES, map(gist.answers, records), strict=True))
        self.room = MAX_CALLS

    def pair(self, data: Mapping[str, Any], module: str, depth: int) -> Pair:
        """A call with what it calls."""
        if "alike" in data:
            return Pair("alike", None, None, "", (), alike=data["alike"], depth=min(depth, MAX_DEPTH))
        before, after = (self._side(data[side], side, module) for side in SIDES)
        calls = []
        for one in data["calls"]:
            if self.room <= 0:
                break
            self.room -= 1
            calls.append(self.pair(one, module, depth + 1))
        left = len(data["calls"]) - len(calls)
        moved = data.get("moved", "")
        return Pair(data["change"], before, after, moved, tuple(calls), left=left, depth=min(depth, MAX_DEPTH))

    def _side(self, call: Mapping[str, Any] | None, side: str, module: str) -> Side | None:
        if call is None:
            return None
        if "arguments" not in call:  # an init or exit
            return Side(f"{call['function']}()", call["module"], False, ())
        where = call["module"] or ""
        text = called(call)
        marks = {(one["rule"], one["event"]): self._mark(one, side, module) for one in call["events"]}
        return Side(text, where, call["unresolved"] is not None, tuple(marks.values()))

    def _mark(self, event: Mapping[str, Any], side: str, module: str) -> Mark:
        answer = self._answers[side].get(event["rule"], {}).get(module)
        word = ("known" if answer.known is not None else answer.answer or "") if answer else "not asked"
        status = Status.SKIP if answer is None else Status.DONE if answer.known is not None else answer.status
        asked = any(event["rule"] in answers for answers in self._answers.values())
        return Mark(event["rule"], event["event"], word, status, asked)
