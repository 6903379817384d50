"""Protects steps about the machine: what may be written of CPUs, sleep and things at once, and what is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.hosts.spec import read_host
from kbuild.load.orders.conditions import Facts
from kbuild.load.orders.format import Order, outcome_number
from kbuild.load.orders.plan import make_plans
from kbuild.load.orders.read import read_order
from kbuild.load.protocol import Verb, encode
from kbuild.paths import PROJECT

ORDER = """\
id = "two"
title = "Two CPUs"
modules = ["{vendor}"]
needs = ["smp"]

[[step]]
cpu = { offline = 1 }

[[step]]
together = true

[[step.step]]
load = "{vendor}"
on_cpu = 0

[[step.step]]
cpu = { online = 1 }
on_cpu = 0

[[step.expect]]
errnos = [["success", "success"], ["EEXIST", "success"]]
why = "kernel/module/main.c, add_unformed_module(): so"

[[step]]
suspend = "core"
"""
THERE = {"kvm": [""], "kvm_amd": [""]}


def read(folder: Path, text: str) -> Order:
    path = folder / "order.toml"
    path.write_text(text)
    return read_order(path)


def facts(*, smp: bool = True, suspends: bool = True) -> Facts:
    gives = ("amd", "svm", "smp") if smp else ("amd", "svm")
    none: frozenset[str] = frozenset()
    return Facts("6.1.7", "amd", none.__contains__, gives=gives, parameters=THERE, smp=smp, suspends=suspends)


def test_steps_about_the_machine_are_read(tmp_path: Path) -> None:
    order = read(tmp_path, ORDER)
    (plan,) = make_plans(order, facts())
    assert plan.skip is None
    assert [one.step.action for one in plan.steps] == ["cpu", "together", "suspend"]
    assert order.step[0].cpu is not None
    assert order.step[0].cpu.words == ("offline", "1")
    # Its parts are not steps of their own, and the names in them are filled in.
    assert [part.load for part in plan.steps[1].step.step] == ["kvm-amd", None]
    assert "{vendor}" in order.loads


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('needs = ["smp"]', 'needs = ["svm"]', "step: 'cpu', 'on_cpu' and 'together' want a host with several CPUs"),
        ("{ offline = 1 }", "{ offline = 1, online = 1 }", ":7: step[0].cpu: write either"),
        ("{ offline = 1 }", "{}", ":7: step[0].cpu: write either"),
        ("{ offline = 1 }", "{ offline = 5000 }", "step[0]: a CPU's number is from 0 to 1023"),
        ('["EEXIST", "success"]', '["EEXIST"]', "errnos: there are 2 steps, and 1 outcomes"),
        ('["EEXIST", "success"]', '["EEXIST", "fine"]', "errnos: 'fine' is no errno"),
        ("errnos = [", 'errno = "EIO"\nerrnos = [', "errnos: only 'together' has several"),
        ('errnos = [["success", "success"], ["EEXIST", "success"]]', 'errno = "EIO"', "say in 'errnos'"),
        ('load = "{vendor}"\non_cpu = 0', 'load = "{vendor}"', "step[1].step[0]: say with 'on_cpu'"),
        ('load = "{vendor}"\non_cpu = 0', 'check = "footprint"', "step[1].step[0]: only load, unload, cpu"),
        ('suspend = "core"', 'suspend = "disk"', "step[2].suspend: invalid enum value 'disk'"),
        ('suspend = "core"', 'suspend = "core"\non_cpu = 1', "'suspend' takes no 'on_cpu'"),
    ],
)
def test_what_is_refused_and_where(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in ORDER
    with pytest.raises(UserError) as error:
        read(tmp_path, ORDER.replace(old, new, 1))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kernel_that_cannot_is_a_reason_to_skip(tmp_path: Path) -> None:
    order = read(tmp_path, ORDER)
    (plan,) = make_plans(order, facts(smp=False))
    assert plan.skip == "the kernel is for one CPU (--flavour smp builds one for more)"
    (plan,) = make_plans(order, facts(suspends=False))
    assert plan.skip == "step 3: the kernel was built without SUSPEND (--flavour smp builds one with it)"


def test_outcomes_are_errnos() -> None:
    assert (outcome_number("success"), outcome_number("EEXIST")) == (0, 17)


def test_a_command_inside_another_one_is_one_line() -> None:
    line = encode(7, Verb.TOGETHER, "0", "load", "kvm-amd.ko", ";", "1", "cpu", "offline", "1")
    assert line.endswith(b" 7 together 0 load kvm-amd.ko ; 1 cpu offline 1\n")


@pytest.mark.parametrize(
    ("vendor", "flags", "says"),
    [
        ("AuthenticAMD", ("svm", "npt"), None),
        ("GenuineIntel", ("vmx",), "its CPU is GenuineIntel, and it gives amd"),
        ("AuthenticAMD", ("svm",), "its CPU has no npt, and gives says so"),
        ("AuthenticAMD", ("svm", "npt", "ept"), "its CPU has ept, and gives does not say so"),
    ],
)
def test_a_host_that_is_not_what_its_file_says_is_told(vendor: str, flags: tuple[str, ...], says: str | None) -> None:
    host = read_host(PROJECT / "profiles/hosts/qemu-svm.toml")
    assert host.contradicted(vendor, flags) == says
    # EPT is in no CPUID: a kernel that does not tell it is no contradiction.
    intel = read_host(PROJECT / "profiles/hosts/bochs-vmx.toml")
    assert intel.contradicted("GenuineIntel", ("vmx",)) is None
