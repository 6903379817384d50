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
ORDERS = sorted((PROJECT / "profiles" / "orders").glob("*.toml"))
CITATION = re.compile(r"(?P<file>[\w/]+\.[ch]), (?P<functions>\w+\(\)(?:(?:, | and )\w+\(\))*):")


def names(path: Path) -> str:
    return path.stem


def facts(kernel: str, cpu: Cpu) -> Facts:
    return Facts(kernel, cpu, lambda _: False)


@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_is_read_and_refers_to_signatures(path: Path) -> None:
    order = read_order(path)
    check_references(order, signatures.load().ids)
    assert order.id == path.stem


@pytest.mark.parametrize("cpu", ["intel", "amd"])
@pytest.mark.parametrize("path", ORDERS, ids=names)
def test_it_applies_to_both_vendors_and_can_be_judged(path: Path, cpu: Cpu) -> None:
    order = resolve(read_order(path), cpu)
    gives = {"intel": ("vmx", "ept"), "amd": ("svm", "npt")}[cpu]
    assert applies(order, ["irqbypass", "kvm", "kvm-intel", "kvm-amd"], gives) is None
    for kernel in KERNELS:
        done = [step for step in order.steps if holds(step.when, facts(kernel, cpu))]
        assert all(isinstance(choose(step, facts(kernel, cpu)), Expectation) for step in done)
        assert done[-1].check == "footprint"


@pytest.mark.parametrize("cpu", ["intel", "amd"])
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
    for step in read_order(path).steps:
        for expectation in step.expect:
            cited = list(CITATION.finditer(expectation.why))
            assert cited, f"no file and function in: {expectation.why}"
            when = expectation.when.kernel
            for version, source in kernel_sources.items():
                if when is not None and version not in when:
                    continue
                for citation in cited:
                    text = (source / citation["file"]).read_text()
                    for function in re.findall(r"\w+", citation["functions"]):
                        defined = re.search(rf"^[a-z][\w *]*\b{function}\([^;\n]*$", text, re.MULTILINE)
                        assert defined, f"{version}: {citation['file']} defines no {function}()"
