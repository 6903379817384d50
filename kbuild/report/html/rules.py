"""Rules: what was proved of each module, beside what was seen in traces, with the witness where one is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.outcome import Finding
from kbuild.report import gist
from kbuild.report.observed import seen

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.traces import Observation


@dataclass(frozen=True)
class Cell:
    """A rule, asked of a module, or seen in it."""

    module: str
    answer: Finding | None
    seen: Observation | None

    @property
    def said(self) -> str:
        """The answer in words, without the rule's name."""
        return self.answer.message.removeprefix(f"{self.answer.rule}: ") if self.answer is not None else ""


@dataclass(frozen=True)
class Row:
    """A rule."""

    rule: str
    anchor: str
    cells: tuple[Cell, ...]
    open: bool
    """Whether an answer counts."""
    known: bool


@dataclass(frozen=True)
class Table:
    """All rules; those that count first, then those that are known to be broken."""

    rows: tuple[Row, ...]
    traced: bool

    @property
    def open(self) -> list[Row]:
        """Those that are not kept, known or not."""
        return [row for row in self.rows if row.open or row.known]

    @property
    def kept(self) -> list[Row]:
        """The others."""
        return [row for row in self.rows if not row.open and not row.known]


def table(record: Record) -> Table:
    """The table, without rows where no rule was asked."""
    answers = gist.answers(record)
    observed = {
        rule: {module.replace("_", "-"): one for module, one in row.items()}
        for rule, row in seen(record.transcripts).items()
    }
    rows = []
    for rule in dict.fromkeys([*answers, *observed]):
        mine, saw = answers.get(rule, {}), observed.get(rule, {})
        cells = tuple(Cell(name, mine.get(name), saw.get(name)) for name in sorted({*mine, *saw}))
        counts = any(one.counts for one in mine.values())
        counts |= any(cell.seen is not None and cell.seen.seen == "broken" for cell in cells)
        rows.append(Row(rule, f"rule-{rule}", cells, counts, any(one.known is not None for one in mine.values())))
    rows.sort(key=lambda row: (not row.open, not row.known))
    return Table(tuple(rows), bool(observed))
