"""Protects the load-order format: what is read, what is refused and how, and which expectation is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.load.order import (
    SUCCESS,
    Cpu,
    Expectation,
    Facts,
    NoneHolds,
    Order,
    When,
    applies,
    check_references,
    choose,
    holds,
    kernel_name,
    read_order,
    resolve,
)
from kbuild.versions import KernelRange

GOOD = """\
id = "second-vendor"
title = "With one vendor's module in use, the other one is refused and does no harm"
modules = ["kvm-intel", "kvm-amd"]
needs = ["vmx|svm"]

[[step]]
load = "{vendor}"
params = { nested = false, npt = 0, name = "x" }

[[step]]
load = "{other_vendor}"

[[step.expect]]
when = { kernel = "- 6.2" }
errno = "EEXIST"
log.must = ["vendor-already-loaded"]
why = "x86.c, kvm_x86_vendor_init(): looks for a loaded vendor first"

[[step.expect]]
when = { kernel = "6.12 -" }
errno = "EOPNOTSUPP"
log.may = ["vendor-not-supported"]
why = "svm.c and vmx.c: kvm_is_svm_supported(), kvm_is_vmx_supported() come first"

[[step]]
smoke = ["real-mode", "long-mode"]

[[step]]
unload = "{vendor}"

[[step]]
check = "module"
module = "{vendor}"
state = "absent"

[[step]]
check = "footprint"
"""


def read(folder: Path, text: str) -> Order:
    path = folder / "order.toml"
    path.write_text(text)
    return read_order(path)


def facts(kernel: str = "6.1.192", cpu: Cpu = "amd", symbols: frozenset[str] = frozenset()) -> Facts:
    return Facts(kernel, cpu, symbols.__contains__)


def test_what_is_read(tmp_path: Path) -> None:
    order = read(tmp_path, GOOD)
    assert [step.action for step in order.steps] == ["load", "load", "smoke", "unload", "check", "check"]
    assert order.steps[0].parameters == {"nested": "0", "npt": "0", "name": "x"}
    assert order.steps[1].expect[0].log.must == ("vendor-already-loaded",)
    assert order.steps[2].smoke == ("real-mode", "long-mode")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("needs =", "need =", "4: need: no such key; known here: "),
        ('id = "second-vendor"', 'id = "Second Vendor"', "1: id: 'Second Vendor' is no id"),
        ('needs = ["vmx|svm"]', 'needs = ["vmx svm"]', "4: needs: 'vmx svm' is no need"),
        ('modules = ["kvm-intel", "kvm-amd"]', "modules = []", "3: modules: name at least one module"),
        ('load = "{vendor}"', 'load = "{venodr}"', "7: step[0].load: '{venodr}': the placeholders are"),
        ('load = "{vendor}"', 'load = "../kvm"', "7: step[0].load: '../kvm' is no module"),
        ('load = "{vendor}"', 'load = "kvm"\nunload = "kvm"', "6: step[0]: a step has exactly one of"),
        (
            'load = "{vendor}"\n',
            "",
            "6: step[0]: a step has exactly one of load, unload, smoke, check; this one has none",
        ),
        (
            'load = "{vendor}"',
            'trace = "kvm"',
            "7: step[0].trace: action 'trace' is not known here; known: load, unload",
        ),
        ('load = "{vendor}"', "repeat = 3", "7: step[0].repeat: action 'repeat' is not known here"),
        ('load = "{other_vendor}"', 'load = "kvm"\ninject = "x"', "12: step[1].inject: action 'inject' is not known"),
        ('check = "footprint"', 'check = "log"', "37: step[5].check: check 'log' is not known here; known: footprint"),
        ('check = "footprint"', 'check = "parameters"', "37: step[5].check: check = 'parameters' needs 'module'"),
        ('state = "absent"', "", "32: step[4].check: check = 'module' needs 'state'"),
        ('state = "absent"', 'state = "gone"', "34: step[4].state: invalid enum value 'gone'"),
        (
            'check = "footprint"',
            'check = "footprint"\npresent = true',
            "38: step[5].present: check = 'footprint' takes no",
        ),
        ('unload = "{vendor}"', 'unload = "kvm"\nparams = { a = 1 }', "30: step[3].params: 'unload' takes no 'params'"),
        ('"long-mode"]', '"32-bit"]', "26: step[2].smoke[1]: invalid enum value '32-bit'"),
        ('smoke = ["real-mode", "long-mode"]', "smoke = []", "26: step[2].smoke: name at least one kind"),
        ('"EEXIST"', '"EEXISTS"', "15: step[1].expect[0].errno: 'EEXISTS' is no errno"),
        ('"EEXIST"', '"17"', "15: step[1].expect[0].errno: '17' is no errno"),
        ('why = "svm.c and', 'because = "svm.c and', "23: step[1].expect[1].because: no such key"),
        ('why = "x86.c, kvm_x86_vendor_init(): looks for a loaded vendor first"', 'why = " "', "say why"),
        ("log.must", "log.needs", "16: step[1].expect[0].log.needs: no such key"),
        ('"- 6.2"', '"before 6.2"', "14: step[1].expect[0].when.kernel: 'before 6.2' is not a kernel range"),
        ('kernel = "- 6.2"', 'cpu = "arm"', "14: step[1].expect[0].when.cpu: invalid enum value 'arm'"),
        ("name = ", '"a b" = ', "8: step[0].params: 'a b=x' is no parameter"),
        ("[[step]]", "[[stop]]", "no such key"),
        ("title =", "title", "2: not TOML"),
    ],
)
def test_what_is_refused_and_where(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as error:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert expected in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "order.toml:")) or "order.toml: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_check_has_no_expectations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a check says itself what it expects"):
        read(tmp_path, GOOD + '\n[[step.expect]]\nwhy = "no"\n')


def test_signatures_that_are_not_there(tmp_path: Path) -> None:
    order = read(tmp_path, GOOD)
    check_references(order, {"vendor-already-loaded", "vendor-not-supported"})
    with pytest.raises(
        UserError, match=re.escape("step 2: log.may: there is no signature 'vendor-not-supported'; did")
    ):
        check_references(order, {"vendor-already-loaded", "vendor-unsupported"})


@pytest.mark.parametrize(
    ("cpu", "loads", "unloaded"),
    [("intel", ["kvm-intel", "kvm-amd"], "kvm_intel"), ("amd", ["kvm-amd", "kvm-intel"], "kvm_amd")],
)
def test_placeholders(tmp_path: Path, cpu: Cpu, loads: list[str], unloaded: str) -> None:
    order = resolve(read(tmp_path, GOOD), cpu)
    assert [step.load for step in order.steps if step.load] == loads
    assert [step.unload for step in order.steps if step.unload] == [unloaded]
    assert order.steps[4].module == unloaded


@pytest.mark.parametrize(
    ("needs", "gives", "skipped"),
    [
        ((), (), None),
        (("vmx|svm",), ("svm", "npt"), None),
        (("vmx|svm",), ("long-mode",), "it needs vmx|svm, and the host gives long-mode"),
        (("vmx|svm",), (), "it needs vmx|svm, and the host gives nothing"),
        (("svm", "!npt"), ("svm",), None),
        (("svm", "!npt"), ("svm", "npt"), "it needs !npt, and the host gives npt, svm"),
        (("!ept|unrestricted-guest",), ("ept", "unrestricted-guest"), None),
    ],
)
def test_what_the_host_must_give(needs: tuple[str, ...], gives: tuple[str, ...], skipped: str | None) -> None:
    order = Order("x", "x", ("kvm-amd",), (), needs)
    assert applies(order, ["kvm", "kvm_amd"], gives) == skipped


def test_what_the_artifacts_must_have() -> None:
    order = Order("x", "x", ("kvm-intel", "kvm-amd"), (), kernels=KernelRange("6.12 -"))
    assert applies(order, ["kvm", "kvm-amd"], ()) == "there is no kvm-intel.ko"
    assert applies(order, ["kvm-intel", "kvm_amd"], ()) is None
    assert applies(order, ["kvm-intel", "kvm_amd"], (), "6.1.192") == "it is for kernels 6.12 -, and this is 6.1.192"


def test_the_first_expectation_that_holds_counts(tmp_path: Path) -> None:
    step = read(tmp_path, GOOD).steps[1]
    for kernel, name in (("6.1.192", "EEXIST"), ("6.2.16", "EEXIST"), ("6.12", "EOPNOTSUPP"), ("7.2.13", "EOPNOTSUPP")):
        chosen = choose(step, facts(kernel))
        assert isinstance(chosen, Expectation)
        assert chosen.errno == name


def test_where_none_holds_it_is_said_why(tmp_path: Path) -> None:
    chosen = choose(read(tmp_path, GOOD).steps[1], facts("6.6.30"))
    assert chosen == NoneHolds(
        "no expectation is for kernel 6.6.30, cpu amd: 1 needs kernel - 6.2; 2 needs kernel 6.12 -"
    )


def test_a_step_that_says_nothing_succeeds(tmp_path: Path) -> None:
    assert choose(read(tmp_path, GOOD).steps[0], facts()) is SUCCESS
    assert (SUCCESS.errno, SUCCESS.errno_number) == (None, 0)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (When(), True),
        (When(kernel=KernelRange("6.1")), True),
        (When(kernel=KernelRange("6.12 -")), False),
        (When(cpu="amd", has_symbol="kvm_init"), True),
        (When(cpu="intel", has_symbol="kvm_init"), False),
        (When(cpu="amd", has_symbol="vt_init"), False),
        (When(fault="misc_register"), False),
    ],
)
def test_all_keys_of_a_condition_hold(when: When, expected: bool) -> None:
    assert holds(when, facts(symbols=frozenset({"kvm_init"}))) is expected


def test_names_in_the_kernel() -> None:
    assert kernel_name("kvm-intel") == "kvm_intel"
