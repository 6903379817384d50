"""Answers to rules at a glance, rules down and modules across; only what is not as the rule says is told in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kbuild.outcome import Status
from kbuild.report.terminal import STYLES, plain, table, word

if TYPE_CHECKING:
    from rich.console import Console

MAX_WITNESS = 40
"""Lines shown of a witness: its beginning, and the end, where the rule is broken."""
_END = 12


def render_answers(findings: Sequence[dict[str, Any]], console: Console) -> None:
    """The table of all answers; nothing where no rule was asked."""
    from rich.markup import escape

    answers = {(one["rule"], one["module"]): one for one in findings if _is_answer(one)}
    if not answers:
        return
    modules = sorted({module for _, module in answers})
    rows = table()
    for name in ("rule", *modules):
        rows.add_column(name, no_wrap=True)
    for rule in dict.fromkeys(rule for rule, _ in answers):
        cells = [answers.get((rule, module)) for module in modules]
        rows.add_row(escape(rule), *(_cell(one) for one in cells))
    console.print()
    console.print(rows)


def render_findings(findings: Sequence[dict[str, Any]], console: Console) -> None:
    """Findings one by one, but for answers that are as they should be: the table has these."""
    for finding in findings:
        if _is_answer(finding) and finding["status"] == Status.PASS:
            continue
        console.print(f"\n{word(Status(finding['status']))} ", end="")
        plain(console, finding["message"])
        plain(console, f"  id: {finding['id']}", style="dim")
        lines = finding["witness"]
        left = len(lines) - MAX_WITNESS
        for line in lines if left <= 0 else lines[: MAX_WITNESS - _END]:
            plain(console, f"    {line}")
        if left > 0:
            plain(console, f"    … {left} more lines with --json", style="dim")
            for line in lines[-_END:]:
                plain(console, f"    {line}")


def _is_answer(finding: dict[str, Any]) -> bool:
    """Of a rule that was asked: a rule that could not be asked of any module has none."""
    return finding["answer"] is not None


def _cell(answer: dict[str, Any] | None) -> str:
    return f"[{STYLES[Status(answer['status'])]}]{answer['answer']}[/]" if answer is not None else "-"
