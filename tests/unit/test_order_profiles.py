"""Protects the orders that come with the tool: they hold for both vendors, and each reason names code that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kbuild.build.selftests import Programs
from kbuild.dmesg import signatures
from kbuild.load.orders.conditions import Facts, choose, holds
from kbuild.load.orders.format import Cpu, Expectation, Step
from kbuild.load.orders.plan import make_plans
from kbuild.load.orders.read import check_references, read_order
from kbuild.paths import PROJECT

KERNELS = ("6.1.192", "6.12.95", "7.2.13")
OLD = frozenset({"cpu_has_kvm_support", "has_svm"})
NEW = frozenset({"tdp_mmu_allowed"})
"""What orders ask the modules for; a test holds it against the sources."""
CPUS: tuple[Cpu, ...] = ("intel", "amd")
GIVES: dict[Cpu, tuple[str, ...]] = {
    "intel": ("vmx", "ept", "unrestricted-guest", "smp", "s3"),
    "amd": ("svm", "npt", "smp", "s3"),
}
ORDERS = sorted((PROJECT / "profiles" / "orders").glob("*.toml"))
CITATION = re.compile(r"(?P<file>[\w/]+\.[ch]), (?P<functions>\w+\(\)(?:(?:, | and | or )\w+\(\))*):")
PARAMETER = re.compile(r"^module_param(?:_named|_cb|_string|_array)?\((\w+),", re.MULTILINE)


class Everything(Sequence[str]):
    """Holds every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Any:
        raise IndexError


DEPENDS = {"kvm_intel": ["kvm"], "kvm_amd": ["kvm"], "kvm": ["irqbypass"]}
ALL = {"irqbypass": Everything(), "kvm": Everything(), "kvm_intel": Everything(), "kvm_amd": Everything()}


def names(path: Path) -> str:
    return path.stem


def facts(kernel: str, cpu: Cpu) -> Facts:
    symbols = OLD if kernel.startswith("6.1.") else NEW
    tests = Programs({"state_test": PROJECT})
    return Facts(kernel, cpu, symbols.__contains__, gives=GIVES[cpu], parameters=ALL, depends=DEPENDS, selftests=tests)


def facts_of(version: str, source: Path, cpu: Cpu) -> Facts:
    """What holds for modules that are built of a source."""
    folders = {"kvm_intel": ["vmx"], "kvm_amd": ["svm"], "kvm": [".", "mmu", "../../../virt/kvm"], "irqbypass": []}
    texts = {
        module: "".join(file.read_text() for name in inside for file in (source / "arch/x86/kvm" / name).glob("*.c"))
        for module, inside in folders.items()
    }
    parameters = {module: PARAMETER.findall(text) for module, text in texts.items()}
    text = "".join(texts.values())
    symbols = {name for name in OLD | NEW if re.search(rf"^[a-z][\w *]*\b{name}(?:\(void\)\n|;)", text, re.MULTILINE)}
    return Facts(version, cpu, symbols.__contains__, gives=GIVES[cpu], parameters=parameters, depends=DEPENDS)


@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_is_read_and_refers_to_signatures(path: Path) -> None:
    order = read_order(path)
    check_references(order, signatures.load().ids)
    assert order.id == path.stem


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_applies_to_both_vendors_and_can_be_judged(path: Path, cpu: Cpu) -> None:
    for kernel in KERNELS:
        for plan in make_plans(read_order(path), facts(kernel, cpu)):
            assert plan.skip is None
            done = [one.step for one in plan.steps if holds(one.step.when, plan.facts)]
            assert all(isinstance(choose(step, plan.facts), Expectation) for step in done)
            swept = any(step.inject for step in done)
            # What follows a swept step, or the guest's end, has nothing behind it that could be compared.
            assert done[-1].check == "footprint" or done[-1].reboot or swept
            assert any(step.check == "footprint" or step.reboot for step in done)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_guests_run_after_each_load_that_succeeds(path: Path, cpu: Cpu) -> None:
    """And what was loaded is unloaded."""
    for kernel in KERNELS:
        for plan in make_plans(read_order(path), facts(kernel, cpu)):
            done = [one.step for one in plan.steps if holds(one.step.when, plan.facts)]
            words = "".join(what_succeeds(step, plan.facts) for step in done)
            # A machine that ends with the module loaded is what an order may be about.
            end = "((load )(smoke )+)?" if done[-1].reboot else ""
            assert re.fullmatch(f"((load )(smoke )+(unload ))*{end}", words)
            assert words or plan.order.startswith(("vendor-orders", "faults-")) or done[-1].reboot


def what_succeeds(step: Step, facts: Facts) -> str:
    """`load `, `unload `, `smoke ` for guests, or nothing: of the CPU's own module, also while others do something."""
    chosen = choose(step, facts)
    if not isinstance(chosen, Expectation) or chosen.errno is not None:
        return ""
    if step.smoke or step.selftest or step.hold == "guest":
        return "smoke "
    own = {f"kvm-{facts.cpu}", f"kvm_{facts.cpu}"}
    for one in step.step if step.together else (step,):
        if {one.load, one.unload} & own:
            return f"{one.action} "
    return ""


@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_each_reason_names_a_file_and_a_function_of_the_kernel(path: Path, kernel_sources: dict[str, Path]) -> None:
    """And in each kernel the one that is for it does: what the orders ask of the modules is looked up in the source."""
    for version, source in kernel_sources.items():
        for cpu in CPUS:
            reasons: set[str] = set()
            for plan in make_plans(read_order(path), facts_of(version, source, cpu)):
                for step in (one.step for one in plan.steps if holds(one.step.when, plan.facts)):
                    chosen = choose(step, plan.facts)
                    assert isinstance(chosen, Expectation)
                    reasons |= {step.why or (chosen.why if step.expect else "")} - {""}
                    reasons |= {one.source for one in step.tolerate if holds(one.when, plan.facts)}
            for why in reasons:
                citations = [*CITATION.finditer(why)]
                assert citations, f"no file and function in: {why}"
                for citation in citations:
                    functions = re.findall(r"\w+(?=\(\))", citation["functions"])
                    # "a() or b()": one in some kernels, the other in the rest
                    either = any if " or " in citation["functions"] else all
                    where = f"{version}: {citation['file']} does not define {citation['functions']}"
                    assert either(defines(source / citation["file"], function) for function in functions), where


def defines(file: Path, function: str) -> bool:
    """Whether a C file has that function, or system call."""
    # Its type may be on the line before.
    pattern = rf"^(?:(?:[a-z_][\w *]*\b)?{function}\(|SYSCALL_DEFINE\d\({function},)[^;\n]*$"
    return bool(re.search(pattern, file.read_text(), re.MULTILINE))
