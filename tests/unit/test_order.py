"""Protects the load-order format: what is read, what is refused and how, and which expectation is chosen."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from kbuild.errors import UserError
from kbuild.load.orders.conditions import Facts, NoneHolds, applies, choose, holds
from kbuild.load.orders.format import SUCCESS, Cpu, Expectation, Order, When, kernel_name
from kbuild.load.orders.plan import make_plans, resolve
from kbuild.load.orders.read import check_references, read_order
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


PARAMETERS = {"kvm": ("tdp_mmu", "ignore_msrs"), "kvm_amd": ("npt", "nested", "name"), "kvm_intel": ("ept", "nested")}


def facts(
    kernel: str = "6.1.192", cpu: Cpu = "amd", symbols: frozenset[str] = frozenset(), gives: tuple[str, ...] = ("svm",)
) -> Facts:
    return Facts(kernel, cpu, symbols.__contains__, gives=gives, parameters=PARAMETERS)


def test_what_is_read(tmp_path: Path) -> None:
    order = read(tmp_path, GOOD)
    assert [step.action for step in order.step] == ["load", "load", "smoke", "unload", "check", "check"]
    assert order.step[0].given == {"nested": "0", "npt": "0", "name": "x"}
    assert order.step[1].expect[0].log.must == ("vendor-already-loaded",)
    assert order.step[2].smoke == ("real-mode", "long-mode")


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
            "6: step[0]: a step has exactly one of load, unload, smoke, selftest, hold, release, "
            "check, inject, cpu, suspend, together, reboot, repeat, trace; this one has none",
        ),
        (
            'load = "{vendor}"',
            'park = "kvm"',
            "7: step[0].park: action 'park' is not known here; known: load, unload",
        ),
        ('load = "{vendor}"', "repeat = 3", "7: step[0].repeat: 'repeat' needs 'step'"),
        (
            'unload = "{vendor}"',
            "repeat = 0\n[[step.step]]\nload = 'kvm'",
            "29: step[3].repeat: 0 is no number of times",
        ),
        (
            'unload = "{vendor}"',
            "repeat = 2\n[[step.step]]\nload = 'kvm'\nstate = 'live'",
            "32: step[3].step[0].state: 'load' takes no 'state'",
        ),
        (
            'unload = "{vendor}"',
            "repeat = 2\n[[step.step]]\npark = 'kvm'",
            "31: step[3].step[0].park: action 'park'",
        ),
        (
            'unload = "{vendor}"',
            "repeat = 200\n[[step.step]]\nrepeat = 100\n[[step.step.step]]\nload = 'kvm'",
            "step: these are 20005 steps, repeats counted; an order has at most 10000",
        ),
        ('unload = "{vendor}"', "trace = ['kvm']", "29: step[3].trace: 'trace' needs 'step'"),
        ('unload = "{vendor}"', "trace = []\n[[step.step]]\nload = 'kvm'", "29: step[3].trace: name at least one"),
        (
            'unload = "{vendor}"',
            "trace = ['kvm']\n[[step.step]]\nrepeat = 2\n[[step.step.step]]\ntrace = ['kvm']\n"
            "[[step.step.step.step]]\nload = 'kvm'",
            "step[3].step: there is one tracer: a trace holds no other one",
        ),
        ('load = "{other_vendor}"', 'load = "kvm"\npark = "x"', "12: step[1].park: no such key"),
        (
            'check = "footprint"',
            'check = "dmesg"',
            "37: step[5].check: check 'dmesg' is not known here; known: footprint",
        ),
        ('check = "footprint"', 'check = "drift"', "'drift' comes behind 0 of check = 'memory'"),
        ('check = "footprint"', 'check = "log"', "37: step[5].check: check = 'log' needs 'log'"),
        ('check = "footprint"', 'check = "parameters"', "37: step[5].check: check = 'parameters' needs 'module'"),
        ('state = "absent"', "", "32: step[4].check: check = 'module' needs 'state', 'refs' or 'holders'"),
        ('state = "absent"', "holders = ['a.b']", "34: step[4].holders: 'a.b' is no module"),
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
        ('kernel = "- 6.2"', 'has_parameter = "npt"', "14: step[1].expect[0].when.has_parameter: 'npt' is no module's"),
        ('kernel = "- 6.2"', 'gives = "a b"', "14: step[1].expect[0].when.gives: 'a b' is nothing that a host gives"),
        (
            'log.may = ["vendor-not',
            'log.must_not = ["x"]\nlog.must = ["x", "vendor-not',
            "log.must_not: 'x' is in log.must",
        ),
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
    looks = GOOD + '[[step]]\nrepeat = 2\n[[step.step]]\ncheck = "log"\nlog.must_not = ["none"]\n'
    with pytest.raises(UserError, match=re.escape("step 7.1: log.must_not: there is no signature 'none'")):
        check_references(read(tmp_path, looks), {"vendor-already-loaded", "vendor-not-supported"})
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
    assert [step.load for step in order.step if step.load] == loads
    assert [step.unload for step in order.step if step.unload] == [unloaded]
    assert order.step[4].module == unloaded


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
    order = Order("x", "x", ("kvm-amd",), needs=needs)
    assert applies(order, facts(gives=gives)) == skipped


@pytest.mark.parametrize(
    ("asked", "skipped"),
    [
        ({"modules": ("kvm-intel", "kvm_amd")}, None),
        ({"modules": ("kvm-intel", "kvm-vz", "ccp")}, "there is no kvm-vz.ko, ccp.ko"),
        ({"kernels": KernelRange("6.12 -")}, "it is for kernels 6.12 -, and this is 6.1.192"),
        ({"parameters": ("kvm.tdp-mmu", "kvm-amd.npt")}, None),
        ({"parameters": ("kvm.tdp_mmu", "kvm_amd.ept")}, "this kernel's kvm_amd has no parameter ept"),
        ({"symbols": ("kvm_init", "vt_init")}, "the modules define no vt_init"),
    ],
)
def test_what_the_artifacts_must_have(asked: dict[str, Any], skipped: str | None) -> None:
    order = Order(**{"id": "x", "title": "x", "modules": ("kvm-amd",), **asked})
    assert applies(order, facts(symbols=frozenset({"kvm_init"}))) == skipped


def test_an_order_that_does_not_apply_is_one_plan_that_says_why(tmp_path: Path) -> None:
    (plan,) = make_plans(read(tmp_path, GOOD), facts(gives=("vmx-not",)))
    assert (plan.id, plan.skip, plan.steps) == ("second-vendor", "it needs vmx|svm, and the host gives vmx-not", ())


BLOCKS = """\
id = "blocks"
title = "x"
modules = ["{vendor}"]

[[step]]
repeat = 2

[[step.step]]
load = "{vendor}"

[[step.step]]
repeat = 2
when = { cpu = "amd" }

[[step.step.step]]
check = "module"
module = "{vendor}"
holders = ["{other_vendor}"]

[[step]]
unload = "{vendor}"
"""


def test_blocks_are_unrolled_and_their_steps_keep_their_place(tmp_path: Path) -> None:
    """So that what goes wrong in each pass is one finding."""
    (plan,) = make_plans(read(tmp_path, BLOCKS), facts())
    assert [(one.place, one.step.action, one.during) for one in plan.steps] == [
        ("1.1", "load", "pass 1 of 2"),
        ("1.2.1", "check", "pass 1 of 2, pass 1 of 2"),
        ("1.2.1", "check", "pass 1 of 2, pass 2 of 2"),
        ("1.1", "load", "pass 2 of 2"),
        ("1.2.1", "check", "pass 2 of 2, pass 1 of 2"),
        ("1.2.1", "check", "pass 2 of 2, pass 2 of 2"),
        ("2", "unload", ""),
    ]
    assert plan.steps[0].step.load == "kvm-amd"
    assert (plan.steps[1].step.module, plan.steps[1].step.holders) == ("kvm_amd", ("kvm_intel",))
    (other,) = make_plans(read(tmp_path, BLOCKS), facts(cpu="intel"))
    assert [one.place for one in other.steps] == ["1.1", "1.1", "2"]


UNKNOWN = """\
id = "unknown"
title = "x"
modules = ["{vendor}"]

[[step]]
load = "{vendor}"
params = { ept = false }
"""
IGNORED = """
[[step.expect]]
log.must = ["parameter-ignored"]
why = "kernel/module/main.c, unknown_module_param_cb(): says so and goes on"
"""


def test_a_parameter_that_this_kernel_does_not_have(tmp_path: Path) -> None:
    """The loader would ignore it, and the run would seem to show something."""
    (plan,) = make_plans(read(tmp_path, UNKNOWN), facts())
    assert plan.skip == "step 1: this kernel's kvm_amd has no parameter ept"
    (plan,) = make_plans(read(tmp_path, UNKNOWN + 'when = { cpu = "intel" }'), facts())
    assert plan.skip is None
    (plan,) = make_plans(read(tmp_path, UNKNOWN), facts(cpu="intel"))
    assert (plan.skip, plan.steps[0].step.given) == (None, {"ept": "0"})
    (plan,) = make_plans(read(tmp_path, UNKNOWN + IGNORED), facts())
    assert plan.skip is None


def test_the_modules_that_it_is_about(tmp_path: Path) -> None:
    order = resolve(read(tmp_path, BLOCKS + '[[step]]\nload = "irqbypass"\n'), "amd")
    assert order.loads == {"kvm-amd", "irqbypass"}


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    """It must not spoil the other orders of the boot."""
    (plan,) = make_plans(read(tmp_path, UNKNOWN + '[[step]]\nload = "kvm-vz"\n'), facts(cpu="intel"))
    assert plan.skip == "step 2: there is no kvm-vz.ko"


def test_a_parameter_that_cannot_be_read(tmp_path: Path) -> None:
    checks = UNKNOWN.replace('load = "{vendor}"', 'check = "parameters"\nmodule = "{vendor}"')
    (plan,) = make_plans(read(tmp_path, checks), facts())
    assert plan.skip == "step 1: this kernel's kvm_amd has no parameter ept"
    (plan,) = make_plans(read(tmp_path, checks), facts(cpu="intel"))
    assert plan.steps[0].step.read_back == {"ept": "N"}


def test_the_first_expectation_that_holds_counts(tmp_path: Path) -> None:
    step = read(tmp_path, GOOD).step[1]
    for kernel, name in (("6.1.192", "EEXIST"), ("6.2.16", "EEXIST"), ("6.12", "EOPNOTSUPP"), ("7.2.13", "EOPNOTSUPP")):
        chosen = choose(step, facts(kernel))
        assert isinstance(chosen, Expectation)
        assert chosen.errno == name


def test_where_none_holds_it_is_said_why(tmp_path: Path) -> None:
    chosen = choose(read(tmp_path, GOOD).step[1], facts("6.6.30"))
    assert chosen == NoneHolds(
        "no expectation is for kernel 6.6.30, cpu amd: 1 needs kernel - 6.2; 2 needs kernel 6.12 -"
    )


def test_a_step_that_says_nothing_succeeds(tmp_path: Path) -> None:
    assert choose(read(tmp_path, GOOD).step[0], facts()) is SUCCESS
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
        (When(gives="svm|vmx"), True),
        (When(gives="!svm"), False),
        (When(has_parameter="kvm.tdp-mmu"), True),
        (When(has_parameter="kvm.npt"), False),
        (When(has_parameter="ccp.npt"), False),
    ],
)
def test_all_keys_of_a_condition_hold(when: When, expected: bool) -> None:
    assert holds(when, facts(symbols=frozenset({"kvm_init"}))) is expected


def test_names_in_the_kernel() -> None:
    assert kernel_name("kvm-intel") == "kvm_intel"


TRACE = """\
id = "traced"
title = "x"
modules = ["{vendor}"]

[[step]]
trace = ["kvm", "{vendor}"]

[[step.step]]
load = "{vendor}"

[[step.step]]
unload = "{vendor}"
when = { cpu = "intel" }

[[step]]
trace = ["kvm"]
when = { cpu = "intel" }

[[step.step]]
unload = "{vendor}"
"""


def test_a_trace_begins_before_its_steps_and_ends_after_them(tmp_path: Path) -> None:
    (plan,) = make_plans(read(tmp_path, TRACE), facts("6.1", "amd"))
    done = [(one.place, one.ends, one.step.trace) for one in plan.steps if holds(one.step.when, plan.facts)]
    modules = ("kvm", "kvm_amd")
    assert done == [("1", False, modules), ("1.1", False, None), ("1", True, modules)]


def test_modules_without_ftrace_are_not_traced(tmp_path: Path) -> None:
    (plan,) = make_plans(read(tmp_path, TRACE), dataclasses.replace(facts("6.1", "amd"), traced=False))
    assert plan.skip == "step 1: the modules were built without ftrace (--flavour trace builds them with it)"
