"""Protects what a rule file says of modules that are not followed: their functions count as the kernel's."""

from __future__ import annotations

import pytest

from kbuild.elf.image import ModuleImage
from kbuild.elf.inspect import inspect
from kbuild.elf.rules.spec import Event, OrderRule, Rules, VendorRule
from tests.unit.test_lifetimes import Compile, compile_module, init  # noqa: F401 (a fixture)

DRIVER = "int then(void);\nnoinline int drive(void) { return then() + 1; }\nEXPORT(drive);\n" + init("return other();")
VENDOR = "int drive(void), kvm_init(void), then(void);\nnoinline int first(void) { return other(); }\n" + init(
    "return CALLS + kvm_init();"
)


@pytest.fixture
def driver(compile_module: Compile) -> ModuleImage:  # noqa: F811
    """A module whose exported function calls then()."""
    return compile_module(DRIVER, "a_driver")


def answer(modules: list[ModuleImage], *leaves: str) -> str | None:
    rule = OrderRule(id="x", first=Event(call="first"), then=Event(call="then"))
    rules = Rules(vendor=VendorRule(("kvm_init",), leaves), orders=(rule,))
    (found,) = (one for one in inspect([image.path for image in modules], None, rules).findings if one.rule == "x")
    return found.answer


@pytest.mark.parametrize(
    ("calls", "followed", "as_leaf"),
    [
        ("drive()", "violated", "unknown"),
        ("(first(), drive())", "proved", "unknown"),
        ("(drive(), then())", "violated", "violated"),
        ("(first(), then(), drive())", "proved", "proved"),
    ],
)
def test_a_leaf_is_not_followed(
    compile_module: Compile,  # noqa: F811
    driver: ModuleImage,
    calls: str,
    followed: str,
    as_leaf: str,
) -> None:
    vendor = compile_module(VENDOR.replace("CALLS", calls), "kvm-v")
    assert answer([vendor, driver]) == followed
    assert answer([vendor, driver], "another") == followed
    assert answer([vendor, driver], "a-driver") == as_leaf, "names of modules are the same with - and with _"
