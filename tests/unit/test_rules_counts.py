"""Protects how many rules are said to be kept: none that was not asked, and none of which one module breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.elf.inspect import inspect
from kbuild.elf.rules.counts import Scope, counts, told
from kbuild.elf.rules.spec import read_rules
from kbuild.outcome import Finding, Status
from kbuild.paths import PROJECT


def answer(rule: str, module: str, word: str | None, status: Status, known: str | None = None) -> Finding:
    name = f"inspect:rule:{module}:{rule}"
    return Finding(id=name, status=status, message="m", rule=rule, module=module, answer=word, known=known)


def said(*findings: Finding) -> dict[str, int]:
    answers: dict[str, int] = counts(Scope(("x",), ()), findings)["answers"]
    return answers


def test_a_rule_counts_once_with_its_worst_answer() -> None:
    kept, broken = answer("x", "a", "proved", Status.PASS), answer("x", "b", "violated", Status.FAIL)
    lost, known = answer("x", "c", "unknown", Status.ERROR), answer("x", "b", "violated", Status.FAIL, "a reason")
    absent = answer("x", "d", "unreached", Status.PASS)
    assert said(kept, broken, lost) == said(lost, broken, kept) == {"violated": 1}
    assert said(kept, lost, known) == {"unknown": 1}
    assert said(kept, known) == said(known, kept) == {"known": 1}
    assert said(absent, kept) == said(kept, absent) == {"proved": 1}
    assert said(absent) == {"unreached": 1}
    assert said(answer("x", "set", None, Status.SKIP)) == {"skipped": 1}
    assert said(kept, answer("y", "a", "proved", Status.PASS)) == {"proved": 2}


def test_other_findings_are_no_answers() -> None:
    assert said(Finding(id="inspect:vermagic:kvm:differs", status=Status.FAIL, message="m", rule="vermagic")) == {}


@pytest.mark.parametrize(
    ("answers", "others", "line"),
    [
        ({"proved": 30, "known": 1}, ["a", "b"], "30 rules proved, 1 known, 2 for other kernels"),
        ({"violated": 1}, [], "1 rule violated"),
        ({}, ["a"], "0 rules asked, 1 for other kernels"),
        ({}, [], "0 rules asked"),
    ],
)
def test_one_line_says_it(answers: dict[str, int], others: list[str], line: str) -> None:
    assert told({"asked": sum(answers.values()), "answers": answers, "other_kernels": others}) == line


@pytest.mark.kernel
def test_rules_of_other_kernels_are_named_and_not_asked(kernel_build: Path) -> None:
    """6.1 has no guest_memfd; until 6.2 kvm_arch_init() came before kvm_irqfd_init()."""
    rules = read_rules((PROJECT / "profiles/rules/kvm.toml",))
    modules = [kernel_build / f"arch/x86/kvm/{name}.ko" for name in ("kvm", "kvm-intel", "kvm-amd")]
    inspection = inspect([kernel_build / "virt/lib/irqbypass.ko", *modules], None, rules)
    data = inspection.rules
    assert data is not None
    assert "dev-kvm-after-guest-memfd" in data["other_kernels"]
    assert "arch-init-before-irqfd" not in data["other_kernels"]
    assert data["asked"] == sum(data["answers"].values()) == len(rules.every) - len(data["other_kernels"])
    asked = {finding.rule for finding in inspection.findings if finding.answer}
    assert not asked & {*data["other_kernels"]}
