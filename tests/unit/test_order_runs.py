"""Protects the runs that come of one order: which settings and sequences there are, and what each is called."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from kbuild.errors import UserError
from kbuild.load.orders.conditions import Facts, holds
from kbuild.load.orders.format import SUCCESS, Cpu
from kbuild.load.orders.model import ALREADY_THERE, IN_USE, NOT_THERE, World
from kbuild.load.orders.plan import Plan, make_plans
from kbuild.load.orders.read import check_references, read_order
from kbuild.load.orders.settings import combinations

PARAMETERS = {
    "irqbypass": (),
    "kvm": ("tdp_mmu", "nx_huge_pages"),
    "kvm_amd": ("npt", "nested"),
    "kvm_intel": ("ept", "nested"),
}
DEPENDS = {"kvm_amd": ("kvm",), "kvm_intel": ("kvm",), "kvm": ("irqbypass",)}
OLD = frozenset({"cpu_has_kvm_support", "has_svm"})

MATRIX = """\
id = "settings"
title = "x"
modules = ["{vendor}"]

[[matrix]]
module = "kvm"
params = { tdp_mmu = [0, 1], nx_huge_pages = ["off", "force"] }

[[matrix]]
module = "{vendor}"
params = { npt = [false, true] }
when = { cpu = "amd" }

[[step]]
load = "{vendor}"

[[step]]
check = "kvm-device"
when = { given = { "{vendor}.npt" = 0, "kvm.tdp-mmu" = 1 } }
"""
GENERATE = """\
id = "all"
title = "x"
modules = ["{vendor}", "{other_vendor}"]

[generate]
modules = ["{vendor}", "{other_vendor}"]
length = 2

[[generate.fail]]
module = "{vendor}"
params = { nested = "x" }
errno = "EINVAL"
log.must = ["parameter-invalid"]
why = "kernel/params.c, parse_args(): it is no number"
"""


def facts(cpu: Cpu = "amd", *, old: bool = False) -> Facts:
    symbols = OLD if old else frozenset()
    kernel = "6.1.192" if old else "7.2.13"
    return Facts(kernel, cpu, symbols.__contains__, parameters=PARAMETERS, depends=DEPENDS)


def plans(folder: Path, text: str, facts: Facts, only: tuple[str, ...] = ()) -> list[Plan]:
    path = folder / "order.toml"
    path.write_text(text)
    return make_plans(read_order(path), facts, only)


def test_each_combination_is_a_run_with_its_own_name(tmp_path: Path) -> None:
    intel = plans(tmp_path, MATRIX, facts("intel"))
    assert [plan.id for plan in intel] == [
        "settings@kvm.tdp_mmu=0,kvm.nx_huge_pages=off",
        "settings@kvm.tdp_mmu=0,kvm.nx_huge_pages=force",
        "settings@kvm.tdp_mmu=1,kvm.nx_huge_pages=off",
        "settings@kvm.tdp_mmu=1,kvm.nx_huge_pages=force",
    ]
    amd = plans(tmp_path, MATRIX, facts())
    assert len(amd) == 8
    assert amd[-1].id == "settings@kvm.tdp_mmu=1,kvm.nx_huge_pages=force,kvm_amd.npt=1"
    assert (amd[-1].order, amd[-1].given("kvm-amd")) == ("settings", {"npt": "1"})
    assert amd[-1].given("kvm") == {"tdp_mmu": "1", "nx_huge_pages": "force"}
    assert amd[-1].given("irqbypass") == {}


def test_a_step_may_be_for_some_settings_only(tmp_path: Path) -> None:
    done = {plan.run for plan in plans(tmp_path, MATRIX, facts()) if holds(plan.steps[1].step.when, plan.facts)}
    assert done == {f"kvm.tdp_mmu=1,kvm.nx_huge_pages={value},kvm_amd.npt=0" for value in ("off", "force")}


def test_a_parameter_that_this_kernel_does_not_have_is_said_once(tmp_path: Path) -> None:
    known = dataclasses.replace(facts("intel"), parameters=PARAMETERS | {"kvm": ("tdp_mmu",)})
    found = plans(tmp_path, MATRIX, known)
    assert [(plan.id, plan.skip) for plan in found] == [
        ("settings@kvm.nx_huge_pages", "this kernel's kvm has no parameter nx_huge_pages"),
        ("settings@kvm.tdp_mmu=0", None),
        ("settings@kvm.tdp_mmu=1", None),
    ]
    nothing = plans(tmp_path, MATRIX, dataclasses.replace(known, parameters=PARAMETERS | {"kvm": ()}))
    assert len(nothing) == 2
    assert all(plan.skip for plan in nothing)


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 2, 2, 2), (3, 2, 4), (2,) * 12, (3,) * 6, (1, 2, 1)])
def test_pairs_are_all_there(shape: tuple[int, ...]) -> None:
    """In no more runs than all combinations, and in far fewer of many."""
    axes = {f"kvm.p{number}": [str(value) for value in range(count)] for number, count in enumerate(shape)}
    rows = combinations(axes, "pairs")
    for one, two in itertools.combinations(axes, 2):
        assert {(row[one], row[two]) for row in rows} == set(itertools.product(axes[one], axes[two]))
    assert len(rows) <= len(combinations(axes, "all"))
    assert rows == combinations(axes, "pairs")
    if shape == (2,) * 12:
        assert len(rows) == 10


def test_runs_are_chosen_by_name(tmp_path: Path) -> None:
    name = "kvm.tdp_mmu=1,kvm.nx_huge_pages=off"
    assert [plan.run for plan in plans(tmp_path, MATRIX, facts("intel"), (name,))] == [name]
    assert len(plans(tmp_path, MATRIX, facts(), ("*nx_huge_pages=off*", "*tdp_mmu=0*"))) == 6
    (missing,) = plans(tmp_path, MATRIX, facts("intel"), (f"{name}f",))
    runs = len(plans(tmp_path, MATRIX, facts("intel")))
    assert (missing.id, missing.skip) == (
        f"settings@{name}f",
        f"the order has no such run on this host with this kernel; of its {runs} the most like it is {name}",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("tdp_mmu = [0, 1]", "tdp_mmu = []", "matrix[0].params.tdp_mmu: write a list of values, each once"),
        ("tdp_mmu = [0, 1]", "tdp_mmu = [0, false]", "matrix[0].params.tdp_mmu: write a list of values, each once"),
        ('module = "kvm"', 'module = "k v m"', "matrix[0].module: 'k v m' is no module"),
        ('cpu = "amd"', "given = { 'kvm.a' = 1 }", "matrix[1].when.given: a matrix cannot depend on what a matrix"),
        ("kvm.tdp-mmu", "tdp_mmu", "step[1].when.given: 'tdp_mmu' is no module's parameter"),
        ("title", 'cover = "some"\ntitle', "cover: invalid enum value 'some'"),
    ],
)
def test_what_is_refused_of_a_matrix(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in MATRIX
    with pytest.raises(UserError) as error:
        plans(tmp_path, MATRIX.replace(old, new, 1), facts())
    assert expected in str(error.value)


# What the loader and KVM do with a request.


def test_the_host_s_own_vendor_comes_with_what_it_needs_and_holds_it() -> None:
    empty = World(facts())
    expectation, world = empty.load("kvm_amd")
    assert expectation is SUCCESS
    assert world.live == {"kvm_amd", "kvm", "irqbypass"}
    assert world.load("kvm_amd") == (ALREADY_THERE, world)
    assert world.unload("kvm") == (IN_USE, world)
    assert world.unload("kvm_amd")[1].live == {"kvm", "irqbypass"}
    assert empty.unload("kvm") == (NOT_THERE, empty)


@pytest.mark.parametrize(
    ("cpu", "old", "after_own", "errno", "must"),
    [
        ("amd", True, False, "EOPNOTSUPP", ()),
        ("intel", True, False, "EOPNOTSUPP", ()),
        ("amd", True, True, "EEXIST", ("vendor-already-loaded",)),
        ("intel", True, True, "EEXIST", ("vendor-already-loaded",)),
        ("amd", False, False, "EOPNOTSUPP", ("vendor-not-supported",)),
        ("amd", False, True, "EOPNOTSUPP", ("vendor-not-supported",)),
        ("intel", False, True, "EOPNOTSUPP", ("vendor-not-supported",)),
    ],
)
def test_the_other_vendor_is_refused(cpu: Cpu, old: bool, after_own: bool, errno: str, must: tuple[str, ...]) -> None:
    world = World(facts(cpu, old=old))
    if after_own:
        world = world.load(world.vendor)[1]
    other = {"kvm_amd": "kvm_intel", "kvm_intel": "kvm_amd"}[world.vendor]
    expectation, after = world.load(other)
    assert (expectation.errno, expectation.log.must) == (errno, must)
    assert after.live == world.live | {"kvm", "irqbypass"}


# All orders.


def test_all_sequences_in_which_code_of_the_modules_runs(tmp_path: Path) -> None:
    """The same ones on both hosts."""
    names = [plan.run for plan in plans(tmp_path, GENERATE, facts())]
    assert names == [
        "load-vendor,unload-vendor",
        "load-vendor,load-other_vendor",
        "fail-vendor,load-vendor",
        "fail-vendor,fail-vendor",
        "fail-vendor,load-other_vendor",
        "load-other_vendor,load-vendor",
        "load-other_vendor,fail-vendor",
        "load-other_vendor,load-other_vendor",
    ]
    assert names == [plan.run for plan in plans(tmp_path, GENERATE, facts("intel", old=True))]


def test_a_sequence_ends_where_nothing_more_can_be_done(tmp_path: Path) -> None:
    text = GENERATE.replace("length = 2", 'length = 3\nactions = ["load", "fail"]')
    names = [plan.run for plan in plans(tmp_path, text.replace(', "{other_vendor}"]\nlength', "]\nlength"), facts())]
    assert names == [
        "load-vendor",
        "fail-vendor,load-vendor",
        "fail-vendor,fail-vendor,load-vendor",
        "fail-vendor,fail-vendor,fail-vendor",
    ]


def test_runs_that_begin_alike(tmp_path: Path) -> None:
    by_run = {plan.run: plan for plan in plans(tmp_path, GENERATE, facts())}
    first, second = by_run["fail-vendor,load-vendor"], by_run["fail-vendor,fail-vendor"]
    assert second.begins_as(first, 1)
    assert not second.begins_as(first, 2)
    assert not by_run["load-vendor,unload-vendor"].begins_as(first, 1)
    other = dataclasses.replace(second, facts=dataclasses.replace(second.facts, given={"kvm.tdp_mmu": "0"}))
    assert not other.begins_as(first, 1)


def test_with_idle_ones_it_is_every_sequence(tmp_path: Path) -> None:
    text = GENERATE.replace("length = 2", "length = 3\nidle = true")
    names = {plan.run for plan in plans(tmp_path, text, facts())}
    actions = ["load-vendor", "unload-vendor", "fail-vendor", "load-other_vendor", "unload-other_vendor"]
    assert names == {",".join(words) for words in itertools.product(actions, repeat=3)}


def test_what_a_generated_order_does(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, GENERATE, facts("intel", old=True), ("load-vendor,load-other_vendor",))
    steps = [(one.place, one.step) for one in plan.steps]
    assert [(place, step.action, step.load or step.unload or step.module or step.check) for place, step in steps] == [
        ("1", "load", "kvm_intel"),
        ("1", "check", "kvm_intel"),
        ("1", "check", "kvm_amd"),
        ("1", "check", "kvm-device"),
        ("1", "smoke", None),
        ("2", "load", "kvm_amd"),
        ("2", "check", "kvm_intel"),
        ("2", "check", "kvm_amd"),
        ("2", "check", "kvm-device"),
        ("2", "smoke", None),
        ("end", "unload", "kvm_intel"),
        ("end", "check", "footprint"),
    ]
    assert steps[5][1].expect[0].errno == "EEXIST"
    assert [step.state for _, step in steps if step.state] == ["live", "absent"] * 2


def test_a_failing_load_is_done_as_the_order_says(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, GENERATE, facts(), ("fail-vendor,fail-vendor",))
    step = plan.steps[0].step
    assert (step.load, step.given, step.expect[0].errno) == ("kvm_amd", {"nested": "x"}, "EINVAL")
    assert step.expect[0].log.must == ("parameter-invalid",)
    lacking = dataclasses.replace(facts(), parameters=PARAMETERS | {"kvm_amd": ()})
    (plan,) = plans(tmp_path, GENERATE, lacking, ("fail-vendor,fail-vendor",))
    assert plan.skip == "step 1: this kernel's kvm_amd has no parameter nested"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("length = 2", "length = 0", "7: generate.length: 0 is no number of steps: write 1 to 20"),
        ("length = 2", 'length = 2\nactions = ["load"]', "8: generate.actions: 'fail' among the actions and"),
        ("length = 2", "length = 2\nactions = ['load', 'load', 'fail']", "8: generate.actions: name at least one"),
        ("[generate]\nmodules = [", "[generate]\nmodules = [] #", "6: generate.modules: name at least one, each once"),
        ('module = "{vendor}"', 'module = "kvm"', "10: generate.fail[0].module: 'kvm' is none of the modules above"),
        ('"EINVAL"', '"EWHAT"', "12: generate.fail[0].errno: 'EWHAT' is no errno"),
        ("[[generate.fail]]", "[[step]]\nload = 'kvm'\n[[generate.fail]]", "step: steps are generated here"),
        ("length = 2", "length = 12", "order 'all' has more than 5000 runs: take fewer values, actions or steps"),
    ],
)
def test_what_is_refused_of_generated_orders(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GENERATE
    with pytest.raises(UserError) as error:
        plans(tmp_path, GENERATE.replace(old, new, 1), facts())
    assert expected in str(error.value)


def test_signatures_of_failing_loads_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "order.toml"
    path.write_text(GENERATE)
    with pytest.raises(UserError, match=r"step fail 1: log\.must: there is no signature 'parameter-invalid'"):
        check_references(read_order(path), {"x"})
