"""Protects answers to rules over sections and sizes: each says what is there, and a module that is not is no pass."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from kbuild.elf.image import ModuleImage
from kbuild.elf.inspect import inspect
from kbuild.elf.layout import part_sizes
from kbuild.elf.rules.spec import BudgetRule, Rules, SectionRule, SymbolRule, VendorRule
from kbuild.outcome import Status
from tests.unit.test_lifetimes import Compile, compile_module, init  # noqa: F401 (a fixture)

VENDOR = VendorRule(imports=("kvm_init",))
SOURCE = (
    "__attribute__((cold)) int seldom(const char *);\nint kvm_init(void);\n"
    "int filled __initdata = 3, table[9] = { 1 };\n"
    'noinline int step(int n) { if (__builtin_expect(n == 3, 0)) { seldom("a"); seldom("b"); } return other() + n; }\n'
    + init("return step(filled) + kvm_init();")
)


@pytest.fixture
def modules(compile_module: Compile) -> list[ModuleImage]:  # noqa: F811
    """A vendor module, and one that is none."""
    return [compile_module(SOURCE, "kvm-v"), compile_module(init("return other();"), "kvm")]


def said(modules: Sequence[ModuleImage], rules: Rules) -> dict[str, tuple[Status, str | None, str]]:
    """By module: status, answer, and what is said behind the answer."""
    found = [one for one in inspect([module.path for module in modules], None, rules).findings if one.rule == "x"]
    assert all(one.id == f"inspect:rule:{one.module}:x" for one in found)
    return {
        str(one.module): (one.status, one.answer, one.message.split(": ", 3 if one.answer else 2)[-1]) for one in found
    }


def sections(**options: object) -> Rules:
    return Rules(vendor=VENDOR, sections=(msgspec.convert({"id": "x", **options}, SectionRule),))


def budgets(**options: object) -> Rules:
    return Rules(vendor=VENDOR, budgets=(msgspec.convert({"id": "x", **options}, BudgetRule),))


def test_sections(modules: list[ModuleImage]) -> None:
    by_name = {one.name: one.size for one in modules[0].sections}
    data, size = by_name[".init.data"], by_name[".init.data"] + by_name[".init.text"]
    has, fits = f"it has .init.data ({data} bytes)", f".init.data has {data} bytes of at most {data}"
    none = "no .init.data has 0 bytes of at most 0"
    for rules, expected in (
        (sections(name=".init.data", present=False), {"kvm-v": ("FAIL", has), "kvm": ("PASS", "it has no .init.data")}),
        (sections(name=".init.data", present=True), {"kvm-v": ("PASS", has), "kvm": ("FAIL", "it has no .init.data")}),
        (sections(name=".init.data", present=True, module="vendor"), {"kvm-v": ("PASS", has)}),
        (sections(name=".init.data", present=True, module="kvm_v"), {"kvm-v": ("PASS", has)}),
        (sections(name=".init.data", max_bytes=data, module="vendor"), {"kvm-v": ("PASS", fits)}),
        (sections(name=".init.data", max_bytes=0, module="kvm"), {"kvm": ("PASS", none)}),
    ):  # fmt: skip
        assert {name: (one[0], one[2]) for name, one in said(modules, rules).items()} == expected
    ((status, answer, why),) = said(modules, sections(name=".init*", max_bytes=size - 3, module="vendor")).values()
    assert (status, answer) == (Status.FAIL, "violated")
    assert why.endswith(f"has {size} bytes, 3 more than {size - 3}")


def test_budgets_of_parts(modules: list[ModuleImage]) -> None:
    for part, size in part_sizes(modules[0]).items():
        for limit, status, why in (
            (size, "PASS", f"{part} has {size} bytes of at most {size}"),
            (size - 1, "FAIL", f"{part} has {size} bytes, 1 more than {size - 1}"),
        ):
            if limit >= 0:
                found = said(modules, budgets(of=part, max_bytes=limit, module="vendor"))
                assert {name: (one[0], one[2]) for name, one in found.items()} == {"kvm-v": (status, why)}
    assert set(said(modules, budgets(of="total", max_bytes=1 << 20))) == {"kvm", "kvm-v"}


def test_budgets_of_functions(modules: list[ModuleImage]) -> None:
    parts = {one.name: one.size for one in modules[0].symbols if one.name in ("step", "step.cold")}
    size = sum(parts.values())
    assert len(parts) == 2
    assert said(modules, budgets(function="step", max_bytes=size)) == {
        "kvm-v": ("PASS", "proved", f"step() has {size} bytes of at most {size}")
    }
    assert said(modules, budgets(function="step", max_bytes=size - 1, module="kvm-v"))["kvm-v"][0] == Status.FAIL
    nowhere = (Status.ERROR, "unknown", "no function is called stop: misspelt, or inlined")
    assert said(modules, budgets(function="stop", max_bytes=9)) == {"set": nowhere}
    assert said(modules, budgets(function="stop", max_bytes=9, module="kvm")) == {"kvm": nowhere}
    optional = budgets(function="stop", max_bytes=9, module="kvm", optional=True)
    assert said(modules, optional) == {"kvm": ("PASS", "unreached", "there is no stop()")}


def test_modules_that_are_not_there(modules: list[ModuleImage]) -> None:
    for rules in (
        sections(name=".text", present=True, module="kvm-w"),
        budgets(of="init", max_bytes=9, module="kvm-w"),
    ):
        assert said(modules, rules) == {"kvm-w": ("SKIP", None, "the set has no module kvm-w")}
    for rules in (
        sections(name=".text", present=True, module="vendor"),
        budgets(function="step", max_bytes=9, module="vendor"),
        Rules(vendor=VENDOR, symbols=(SymbolRule(id="x", name="step", module="vendor", section=".text"),)),
    ):
        assert said(modules[1:], rules) == {"set": ("SKIP", None, "no module of the set is a vendor module")}
