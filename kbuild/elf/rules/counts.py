"""How many rules were asked, and what came out: what a stage's line and a script are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kbuild.elf.findings import STAGE
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.spec import Rules
from kbuild.outcome import Finding, Status
from kbuild.versions import KernelRange

KIND = "rule"
"""In the id of a finding that answers a rule."""


@dataclass(frozen=True)
class Scope:
    """Ids of the rules that are for the kernel of a module set, and of those that are not, and are not asked."""

    asked: tuple[str, ...]
    other_kernels: tuple[str, ...]


def scope(modules: ModuleSet, rules: Rules) -> Scope:
    """Which of the rules are for the kernel that these modules are of."""
    release = release_of(modules)
    asked = {rule.id: holds_for(rule.kernels, release) for rule in rules.every}
    return Scope(tuple(name for name in asked if asked[name]), tuple(name for name in asked if not asked[name]))


def release_of(modules: ModuleSet) -> str | None:
    """The kernel release that the modules say they are of."""
    return next((image.vermagic.partition(" ")[0] for image in modules.modules.values() if image.vermagic), None)


def holds_for(kernels: KernelRange, release: str | None) -> bool:
    """Whether a rule is for a kernel; one that does not say its release is asked everything."""
    try:
        return release is None or release in kernels
    except ValueError:
        return True


def is_answer(finding: Finding) -> bool:
    """Whether a finding answers a rule."""
    return finding.id.startswith(f"{STAGE}:{KIND}:")


def counts(scope: Scope, findings: Iterable[Finding]) -> dict[str, Any]:
    """As data: `{"asked": 3, "answers": {"proved": 2, "violated": 1}, "other_kernels": ["id"]}`.

    A rule that is asked of several modules counts once, with the worst of its answers. One that breaks in a way that is
    declared as known counts as `known`, one that was not asked for want of a module as `skipped`.
    """
    worst: dict[str, Finding] = {}
    for finding in findings:
        if finding.rule is not None and is_answer(finding):
            worst[finding.rule] = min(worst.get(finding.rule, finding), finding, key=_rank)
    words = Counter(_word(finding) for finding in worst.values())
    return {"asked": len(scope.asked), "answers": dict(words.most_common()), "other_kernels": list(scope.other_kernels)}


def _word(finding: Finding) -> str:
    return "known" if finding.known is not None else finding.answer or "skipped"


def _rank(finding: Finding) -> tuple[bool, int, bool]:
    """What counts comes first, then what is known, and what was proved before what may be unreached."""
    return not finding.counts, [*Status].index(finding.status), finding.answer != "proved"


def told(counted: Mapping[str, Any]) -> str:
    """`counts` in one line: `30 rules proved, 2 known, 5 for other kernels`."""
    said = [(str(count), word) for word, count in counted["answers"].items()] or [("0", "asked")]
    (number, word), *more = said
    parts = [f"{number} {'rule' if number == '1' else 'rules'} {word}", *(" ".join(one) for one in more)]
    others = len(counted["other_kernels"])
    return ", ".join([*parts, *([f"{others} for other kernels"] if others else [])])
