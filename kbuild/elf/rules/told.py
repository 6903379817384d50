"""Answers as findings."""

from __future__ import annotations

from collections.abc import Iterable

from kbuild.elf.code.runs import Runs
from kbuild.elf.findings import STAGE
from kbuild.elf.rules import layout
from kbuild.elf.rules.counts import KIND
from kbuild.elf.rules.orders import Answer, Verdict
from kbuild.elf.rules.spec import OrderRule
from kbuild.elf.rules.story import Story
from kbuild.outcome import Finding, Status, finding_id

Told = tuple[str, Finding]
"""An answer as a finding, and its rule; none: it is found whatever is asked."""


def told(runs: Runs, answers: Iterable[Answer], kept: Iterable[Finding]) -> list[Told]:
    """Answers as findings, with what was found besides."""
    story = Story(runs.program)
    every = [("", one) for one in kept]
    return [*every, *((answer.rule.id, _answered(answer, story)) for answer in answers)]


def _answered(answer: Answer, story: Story) -> Finding:
    rule = answer.rule
    statuses: dict[Verdict, Status] = {
        "proved": Status.PASS,
        "violated": Status.FAIL,
        "unknown": Status.ERROR,
        "unreached": Status.PASS if rule.optional else Status.FAIL,
    }
    witness = tuple(story.tell(answer)) if answer.witness is not None else ()
    return finding_of(rule, answer.module, statuses[answer.answer], answer.answer, answer.why, witness)


def finding_of(
    rule: OrderRule | layout.Rule,
    module: str,
    status: Status,
    answer: str | None,
    why: str,
    witness: tuple[str, ...] = (),
) -> Finding:
    """A finding that answers a rule."""
    because = f" ({rule.reason})" if rule.reason and status != Status.PASS else ""
    said = f"{answer}: " if answer else ""
    return Finding(
        id=finding_id(STAGE, KIND, module, rule.id),
        status=status,
        rule=rule.id,
        module=module,
        answer=answer,
        message=f"{rule.id}: {module}: {said}{why}{because}",
        witness=witness,
    )
