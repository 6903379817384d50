"""Protects the orders that come with the tool: they hold for both vendors, and each reason names code that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.dmesg import signatures
from kbuild.load.order import (
    Cpu,
    Expectation,
    Facts,
    Step,
    applies,
    check_references,
    choose,
    holds,
    read_order,
    resolve,
)
from kbuild.paths import PROJECT

KERNELS = ("6.1.192", "6.12.95", "7.2.13")
OLD = frozenset({"cpu_has_kvm_support", "has_svm"})
"""What expectations ask the modules for."""
CPUS: tuple[Cpu, ...] = ("intel", "amd")
ORDERS = sorted((PROJECT / "profiles" / "orders").glob("*.toml"))
CITATION = re.compile(r"(?P<file>[\w/]+\.[ch]), (?P<functions>\w+\(\)(?:(?:, | and )\w+\(\))*):")


def names(path: Path) -> str:
    return path.stem


def facts(kernel: str, cpu: Cpu) -> Facts:
    return Facts(kernel, cpu, OLD.__contains__ if kernel.startswith("6.1.") else lambda _: False)


@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_is_read_and_refers_to_signatures(path: Path) -> None:
    order = read_order(path)
    check_references(order, signatures.load().ids)
    assert order.id == path.stem


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_applies_to_both_vendors_and_can_be_judged(path: Path, cpu: Cpu) -> None:
    order = resolve(read_order(path), cpu)
    gives = {"intel": ("vmx", "ept"), "amd": ("svm", "npt")}[cpu]
    assert applies(order, ["irqbypass", "kvm", "kvm-intel", "kvm-amd"], gives) is None
    for kernel in KERNELS:
        done = [step for step in order.steps if holds(step.when, facts(kernel, cpu))]
        assert all(isinstance(choose(step, facts(kernel, cpu)), Expectation) for step in done)
        assert done[-1].check == "footprint"


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_guests_run_after_each_load_that_succeeds(path: Path, cpu: Cpu) -> None:
    """And what was loaded is unloaded."""
    for kernel in KERNELS:
        fine: list[Step] = []
        for step in resolve(read_order(path), cpu).steps:
            chosen = choose(step, facts(kernel, cpu))
            if holds(step.when, facts(kernel, cpu)) and isinstance(chosen, Expectation) and chosen.errno is None:
                fine.append(step)
        actions = [step.action for step in fine if step.action != "check"]
        assert re.fullmatch(r"((load )(smoke )(unload ))+", " ".join(actions) + " ")


@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_each_reason_names_a_file_and_a_function_of_the_kernel(path: Path, kernel_sources: dict[str, Path]) -> None:
    """And in each kernel the one that is for it does: what the orders ask for by symbol is looked up in the source."""
    order = read_order(path)
    for expectation in (expectation for step in order.steps for expectation in step.expect):
        assert CITATION.search(expectation.why), f"no file and function in: {expectation.why}"
    for version, source in kernel_sources.items():
        symbols = {symbol for symbol in OLD if any(defines(file, symbol) for file in source.glob("arch/x86/kvm/*/*.c"))}
        for cpu in CPUS:
            for step in order.steps:
                chosen = choose(step, Facts(version, cpu, symbols.__contains__))
                assert isinstance(chosen, Expectation)
                for citation in CITATION.finditer(chosen.why):
                    for function in re.findall(r"\w+", citation["functions"]):
                        where = f"{version}: {citation['file']} defines no {function}()"
                        assert defines(source / citation["file"], function), where


def defines(file: Path, function: str) -> bool:
    """Whether a C file has that function."""
    return bool(re.search(rf"^[a-z][\w *]*\b{function}\([^;\n]*$", file.read_text(), re.MULTILINE))
