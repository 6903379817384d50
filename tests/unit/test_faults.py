"""Protects sweeps of failing allocations: whose allocation a kernel's log says has failed, which runs there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kbuild.dmesg.record import Record
from kbuild.errors import JudgeError, UserError
from kbuild.gate.request import GateRequest, profile_of
from kbuild.load.faults.inject import tolerated_at
from kbuild.load.faults.points import (
    MAX_POINTS,
    afterwards,
    chosen,
    follows,
    nearby,
    number,
    points,
    rest,
    swept,
    wanted,
)
from kbuild.load.faults.site import site_of
from kbuild.load.orders.conditions import Facts, holds
from kbuild.load.orders.plan import Plan, make_plans
from kbuild.load.orders.read import read_order
from kbuild.outcome import Status
from kbuild.report.faults import sites
from kbuild.transcript import StepResult, Transcript

SWEEP = """\
id = "sweep"
title = "x"
modules = ["{vendor}"]

[[step]]
load = "kvm"

[[step]]
inject = "load"
module = "{vendor}"

[[step.tolerate]]
site = "kvm_init/debugfs_*"
source = "virt/kvm/kvm_main.c, kvm_init_debug()"
reason = "debugfs is for who looks on"

[[step]]
check = "footprint"

[[step]]
reboot = "power-off"
"""

# As a 6.1 kernel printed it (QEMU, each line a record).
MISC = """\
FAULT_INJECTION: forcing a failure.
name failslab, interval 1, probability 0, space 0, times 0
CPU: 0 PID: 30 Comm: init Tainted: G                 6.1.192-kbuild-fault #1
Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
Call Trace:
 <TASK>
 dump_stack_lvl+0x34/0x48
 should_fail_ex.cold+0x2f/0x3f
 __should_failslab+0x4c/0x60
 should_failslab+0x5/0x20
 __kmem_cache_alloc_node+0x24/0x200
 ? device_create_groups_vargs+0x3a/0xf0
 kstrdup_const+0x43/0x60
 kobject_set_name_vargs+0x1c/0x90
 device_create_groups_vargs+0x96/0xf0
 device_create_with_groups+0x33/0x50
 misc_register+0x9b/0x170
 kvm_init.cold+0x260/0x3d4 [kvm]
 svm_init+0x30/0x1000 [kvm_amd]
 do_one_initcall+0x4a/0x170
 do_init_module+0x45/0x1b0
 __do_sys_finit_module+0x7d/0xb0
 do_syscall_64+0x2b/0x50
 entry_SYSCALL_64_after_hwframe+0x4b/0xb5
 </TASK>
kvm: misc device register failed
"""


def records(text: str, facility: int = 0) -> list[Record]:
    return [Record(None, None, 4, line, facility=facility) for line in text.splitlines()]


def plan(tmp_path: Path, text: str = SWEEP, only: tuple[str, ...] = ()) -> Plan:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    parameters: dict[str, tuple[str, ...]] = {"kvm": (), "kvm_amd": ()}
    facts = Facts("6.1.192", "amd", lambda _: False, parameters=parameters, depends={"kvm_amd": ("kvm",)})
    (found,) = make_plans(read_order(path), facts, only)
    return found


def test_the_site_is_the_modules_own_function_and_what_it_calls() -> None:
    found = site_of(records(MISC))
    assert found is not None
    assert found.name == "kvm_init/misc_register"
    assert found.stack.startswith("__kmem_cache_alloc_node+0x24 < kstrdup_const+0x43 <")
    assert "device_create_groups_vargs+0x3a" not in found.stack, "the unwinder was not sure of it"


def test_without_a_modules_function_it_is_the_loaders() -> None:
    loader = MISC.replace(" [kvm]", "").replace(" [kvm_amd]", "")
    found = site_of(records(loader))
    assert found is not None
    assert found.name == "do_init_module/do_one_initcall"
    chain = loader.replace("do_one_initcall", "blocking_notifier_call_chain_robust")
    found = site_of(records(chain))
    assert found is not None
    assert found.name == "do_init_module/svm_init", "a notifier chain asks for nothing itself"


def test_a_log_without_a_report_names_no_site() -> None:
    assert site_of([]) is None
    assert site_of(records("kvm: misc device register failed\n")) is None
    assert site_of(records(MISC.partition("Call Trace")[0])) is None
    assert site_of(records(MISC, facility=1)) is None, "user space wrote it"
    stack_before = MISC[MISC.index("Call Trace") :] + MISC.partition("Call Trace")[0]
    assert site_of(records(stack_before)) is None, "a stack of something else"


def test_there_is_a_point_for_each_allocation_or_for_those_that_are_asked_for(tmp_path: Path) -> None:
    whole = plan(tmp_path)
    assert whole.skip is None
    every = points(whole, {"objects": 3, "pages": 2})
    assert [one.id for one in every] == ["sweep@1", "sweep@2", "sweep@3", "sweep@page-1", "sweep@page-2"]
    assert [one.kind for one in every] == ["objects"] * 3 + ["pages"] * 2
    some = plan(tmp_path, only=("2", "4-5", "page-2"))
    assert [one.allocation for one in points(some, {"objects": 100, "pages": 9})] == ["2", "4", "5", "page-2"]
    assert points(some, {"objects": 1, "pages": 1}) == []
    named = plan(tmp_path, only=("kvm_init/*",))
    assert len(points(named, {"objects": 90, "pages": 10})) == 100, "only a run can tell whose they are"
    assert wanted(named, "kvm_init/misc_register")
    assert not wanted(named, "load_module/mod_sysfs_setup")
    assert wanted(some, "anything")
    both = plan(tmp_path, only=("89-", "kvm_init/*"))
    assert [one.allocation for one in points(both, {"objects": 90, "pages": 10})] == ["89", "90"]
    assert not wanted(both, "load_module/mod_sysfs_setup")


@pytest.mark.parametrize(
    ("first", "last", "site", "only"),
    [
        (None, None, None, ()),
        ("17", "17", None, ("17-17",)),
        ("17", None, None, ("17-",)),
        (None, "17", None, ("1-17",)),
        ("page-3", "page-9", None, ("page-3-9",)),
        (None, "page-9", "kvm_init/*", ("page-1-9", "kvm_init/*")),
        (None, None, "kvm_init/misc_register", ("kvm_init/misc_register",)),
    ],
)
def test_options_choose_points(
    tmp_path: Path, first: str | None, last: str | None, site: str | None, only: tuple[str, ...]
) -> None:
    """What they say is what behind the name of an order says the same."""
    assert chosen(first, last, site) == only
    if only:
        assert points(plan(tmp_path, only=only), {"objects": 30, "pages": 30}), "and is understood there"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("0", None, None), "--from 0: not the number of an allocation"),
        (("3-9", None, None), "--from 3-9: not the number of an allocation"),
        (("1", "page-3", None), "pages are numbered apart"),
        (("9", "3", None), "the last one comes before the first one"),
        ((None, None, "17"), "--only 17: not a call site"),
        ((None, None, ""), "not a call site"),
    ],
)
def test_options_that_choose_no_points_are_refused(
    words: tuple[str | None, str | None, str | None], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        chosen(*words)


def test_options_choose_points_of_whole_orders() -> None:
    asked = GateRequest(task="load", command="", flavour="fault", first="3", last="4")
    assert set(profile_of(asked).orders.values()) == {("3-4",)}
    with pytest.raises(UserError, match="--order faults-kvm@7: with --from, --to or --only, name the order alone"):
        profile_of(dataclasses.replace(asked, orders=("faults-kvm@7",)))


def test_more_than_any_load_makes_is_not_believed(tmp_path: Path) -> None:
    assert len(points(plan(tmp_path), {"objects": MAX_POINTS})) == MAX_POINTS
    with pytest.raises(JudgeError, match="20001 allocations were counted"):
        points(plan(tmp_path), {"objects": MAX_POINTS, "pages": 1})


def test_the_agent_does_points_in_one_go_that_follow_each_other(tmp_path: Path) -> None:
    first, second, third, page = points(plan(tmp_path), {"objects": 3, "pages": 1})
    assert follows(second, first)
    assert follows(third, second)
    assert not follows(third, first)
    assert not follows(page, third), "another kind"
    assert not follows(afterwards(second, "a/b"), first)
    loud = dataclasses.replace(second, loud=True)
    assert not follows(loud, first), "it is to end its guest"
    assert not follows(third, loud)
    assert loud.alone
    unload = (
        SWEEP.replace('inject = "load"', 'inject = "unload"')
        .replace("[[step.tolerate]]", "")
        .replace('site = "kvm_init/debugfs_*"\nsource = "virt/kvm/kvm_main.c, kvm_init_debug()"\n', "")
        .replace('reason = "debugfs is for who looks on"\n', "")
    )
    first, second = points(plan(tmp_path, unload), {"objects": 2})
    assert not follows(second, first), "an unload is done command by command"


def test_what_follows_a_failure_is_sought_around_its_number(tmp_path: Path) -> None:
    point = points(plan(tmp_path), {"objects": 100})[49]
    after = afterwards(point, "kvm_init/misc_register")
    assert after.id == "sweep@kvm_init/misc_register"
    assert after.alone
    assert [planned.step.action for planned in rest(after)] == ["check", "reboot"]
    tried = [number(after)]
    while following := nearby(after):
        after = following
        tried.append(number(after))
    assert tried[:5] == [50, 38, 39, 40, 41]
    assert {*range(30, 71)} == {*tried}
    first = afterwards(points(plan(tmp_path), {"pages": 2})[1], "kvm_init/misc_register")
    tried = [number(first)]
    while following := nearby(first):
        first = following
        tried.append(number(first))
    assert tried[:5] == [2, 1, 2, 3, 4], "there is none before the first"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('module = "{vendor}"\n', "", "needs 'module'"),
        ('inject = "load"', 'inject = "unload"', "nothing to tolerate"),
        ('load = "kvm"', 'load = "kvm"\nwhen.fault = "kvm_init/*"', "behind 'inject' only"),
        ('site = "kvm_init/debugfs_*"', 'site = "x"\nwhen.fault = "x"', "behind 'inject' only"),
        ('load = "kvm"', 'check = "kvm-device"', "before 'inject' there are only loads and unloads"),
        ('check = "footprint"', 'inject = "load"\nmodule = "kvm"', "one 'inject' at most"),
        ('check = "footprint"', 'reboot = "restart"', "nothing can follow"),
        ('reason = "debugfs is for who looks on"', 'reason = " "', "why the load may go on"),
        ('module = "{vendor}"\n', 'module = "{vendor}"\nlog.must = ["x"]\n', "takes log.may only"),
        ('module = "{vendor}"\n', 'module = "{vendor}"\nlog.may = ["x"]\n', "say 'why'"),
    ],
)
def test_what_a_sweep_cannot_mean_is_refused_with_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in SWEEP
    with pytest.raises(UserError, match=problem) as refused:
        plan(tmp_path, SWEEP.replace(old, new))
    assert "sweep.toml:" in str(refused.value)


def test_a_step_behind_a_failure_may_depend_on_whose_it_was(tmp_path: Path) -> None:
    asked = plan(tmp_path, SWEEP.replace('check = "footprint"', 'check = "footprint"\nwhen.fault = "kvm_init/misc_*"'))
    point = points(asked, {"objects": 1})[0]
    for site, expected in (("kvm_init/misc_register", True), ("load_module/mod_sysfs_setup", False)):
        after = afterwards(point, site)
        assert holds(rest(after)[0].step.when, after.facts) is expected
    assert not holds(rest(point)[0].step.when, point.facts)


def test_points_become_a_table_of_sites(tmp_path: Path) -> None:
    def run(name: str, status: Status, site: str, errno: str | None, **detail: str) -> Transcript:
        step = StepResult(number=1, action="inject", status=status, errno=errno, detail={"site": site, **detail})
        return Transcript(host="h", order=f"{plan(tmp_path).id}@{name}", status=status, steps=[step])

    found = sites(
        [
            run("1", Status.PASS, "a/x", "ENOMEM", allocation="1"),
            run("2", Status.FAIL, "a/x", "EIO", allocation="2"),
            run("3", Status.PASS, "b/y", None, allocation="3", tolerated="because"),
            run("a/x", Status.ERROR, "a/x", "ENOMEM", allocation="1"),
        ]
    )
    assert [(one.site, one.points, one.after) for one in found] == [("a/x", 2, Status.ERROR), ("b/y", 1, None)]
    assert found[0].answers == {"ENOMEM", "EIO"}
    assert found[1].tolerated == "because"
    assert swept(plan(tmp_path)) is not None


def test_only_what_is_declared_may_fail(tmp_path: Path) -> None:
    found = site_of(records(MISC))
    assert found is not None

    def declared(site: str, through: str = "") -> bool:
        text = SWEEP.replace('site = "kvm_init/debugfs_*"', f'site = "{site}"\nthrough = "{through}"')
        whole = plan(tmp_path, text)
        (step,) = (one.step for one in whole.steps if one.step.inject)
        return tolerated_at(step, found, whole.facts) is not None

    assert declared("kvm_init/misc_register")
    assert declared("kvm_init/misc_*", "kobject_set_name_vargs")
    assert not declared("kvm_init/misc_*", "kobject_uevent_env"), "not on its stack"
    assert not declared("kvm_init/debugfs_*")
