"""Protects hazards: what init writes after it was read is seen on every way to success, and nothing else is."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Question, Runs
from kbuild.elf.hazards.find import differences, find_hazards
from kbuild.elf.hazards.watch import Watch
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.report.hazards import render_hazards
from tests.unit.test_flow import FLAGS

COMMON = """
__attribute__((section(".modinfo"), used)) static const char modinfo[] = "name=m\\0license=GPL\\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
#define noinline __attribute__((__noinline__))
struct kernel_param { const char *name; void *mod, *ops; unsigned short perm; signed char level, flags; void *arg; };
#define PARAM(of, called) __attribute__((section("__param"), used, aligned(8))) \\
    static const struct kernel_param param_##of = { .name = called, .arg = (void *)&of }
#define ro_after_init __attribute__((section(".data..ro_after_init")))
/* The kernel's. */
int something(void), other(void);
void use(int), on_one(void (*)(void *));
int _printk(const char *, ...);
extern int of_the_kernel;

int setting = 1, hardware, count, numbers[2];
PARAM(setting, "set");
static const struct { unsigned int max, size; void *count, *ops, *elements; } array = { 2, 4, 0, 0, numbers };
PARAM(array, "numbers");
ro_after_init int size = 3;
static int plain = 3, table[4];
struct { int a, b; } caps;
static char __already_done;

static noinline void looks(void) { if (setting) use(1); }
static noinline void settles(void) { if (!something()) setting = 0; }
static noinline void sets_size(void) { size = something(); }
static noinline void sets_plain(int x) { plain = x; }
static noinline void callback(void *x) { looks(); }
int init_module(void) { %s }
"""
Hazards = list[dict[str, Any]]


@pytest.fixture(params=["-O2", "-Os"])
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Hazards]:
    """Hazards of a module with that init function."""

    def of_module(init: str) -> Hazards:
        source, module = tmp_path / "m.c", tmp_path / "m.ko"
        source.write_text(COMMON % init)
        subprocess.run(["gcc", *FLAGS, request.param, "-o", module, source], check=True)
        data = find_hazards(ModuleSet.of([read_module(module)], None))
        assert not data["not_followed"]
        stream = io.StringIO()
        render_hazards(data, Console(file=stream, width=140))
        hazards: Hazards = data["found"]
        assert all(one["object"] in stream.getvalue() for one in hazards)
        return hazards

    return of_module


def test_a_parameter_that_is_corrected_after_somebody_looked_comes_first(found: Callable[[str], Hazards]) -> None:
    first, *_ = found("sets_plain(plain + something()); looks(); settles(); return 0;")
    wanted = {"module": "m", "entry": "init", "object": "setting", "of": "m", "kind": "parameter", "parameter": "set"}
    assert {**first, **wanted, "level": 1, "reader": "looks", "writer": "settles", "offsets": [0]} == first
    assert (first["read"]["value"], first["write"]["value"]) == (None, 0)
    for side, function in (("read", "looks"), ("write", "settles")):
        assert first[side]["at"].startswith(function)
        (call,) = first[side]["chain"]
        assert call.startswith("init_module+"), "the call that led there"


@pytest.mark.parametrize(
    ("init", "wanted"),
    [
        ("looks(); settles(); return 0;", {("setting", 1)}),
        ("settles(); looks(); return 0;", set()),
        ("looks(); sets_size(); return 0;", set()),
        # The way on which it is read before it is written has to come to a good end.
        ("looks(); if (something()) { settles(); return -5; } return 0;", set()),
        ("int r = something(); if (r) { looks(); settles(); } return r;", set()),
        ("int r = something(); looks(); if (!r) settles(); return r;", {("setting", 1)}),
        # On one of several ways, and in a loop.
        ("if (something()) looks(); settles(); return 0;", {("setting", 1)}),
        ("if (something()) looks(); else settles(); return 0;", set()),
        ("while (something()) { settles(); looks(); } return 0;", {("setting", 1)}),
        # By whom it is called makes no difference.
        ("on_one(callback); settles(); return 0;", {("setting", 1)}),
        ("use(numbers[1]); numbers[1] = something(); return 0;", {("numbers", 2)}),
        # __ro_after_init; other objects; the kernel's.
        ("use(size); sets_size(); return 0;", {("size", 1)}),
        ("use(size); size = something(); return 0;", {("size", 2)}),
        ("use(plain); sets_plain(4); return 0;", {("plain", 3)}),
        ("use(plain); plain = something(); use(plain); return 0;", {("plain", 4)}),
        ("use(of_the_kernel); of_the_kernel = 1; return 0;", {("of_the_kernel", 4)}),
        # The same value again changes nothing, but a parameter's may be another one.
        ("use(plain); sets_plain(3); return 0;", set()),
        ("use(setting); setting = 1; return 0;", {("setting", 2)}),
        # Parts of one object are told apart.
        ("use(caps.a); caps.b = something(); return 0;", set()),
        ("use(caps.b); caps.b = something(); return 0;", {("caps", 4)}),
        ("use(caps.b); *(long *)&caps = something(); return 0;", {("caps", 4)}),
        ("use(table[3]); __builtin_memcpy(table, &caps, 16); return 0;", {("table", 4)}),
        # A read that only decides the write is no use: nothing else is done with it.
        ("int h = something(); if (setting && h) setting = 0; return 0;", {("setting", 5)}),
        ('int h = something(); if (setting && h) { _printk("off"); setting = 0; } return 0;', {("setting", 5)}),
        ("int h = something(); if (setting && h) { use(1); setting = 0; } return 0;", {("setting", 2)}),
        ("int h = something(); if (setting && h) { hardware = h; setting = 0; } return 0;", {("setting", 2)}),
        # What is no setting.
        ("count++; use(1); count++; return 0;", {("count", 6)}),
        ("if (!__already_done) { use(1); __already_done = 1; } return 0;", {("__already_done", 6)}),
    ],
)
def test_what_is_read_before_it_is_written(
    found: Callable[[str], Hazards], init: str, wanted: set[tuple[str, int]]
) -> None:
    assert {(one["object"], one["level"]) for one in found(init)} == wanted


def test_of_two_builds_the_new_ones_stand_out(found: Callable[[str], Hazards]) -> None:
    before = found("use(size); sets_size(); return 0;")
    after = found("looks(); something(); use(size); sets_size(); settles(); return 0;")
    assert [(one["change"], one["object"]) for one in differences(before, after)] == [("came", "setting")]
    assert [(one["change"], one["object"]) for one in differences(after, before)] == [("went", "setting")]
    assert not differences(after, after)


# On a kernel.


@pytest.fixture(scope="module")
def kvm(kernel_build: Path) -> ModuleSet:
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    return ModuleSet.of([read_module(kernel_build / name) for name in names], None)


@pytest.mark.kernel
def test_the_hazard_of_vmx_init_comes_first(kvm: ModuleSet) -> None:
    """6.1, vmx_init(): vmx_setup_l1d_flush() "must be called after common x86 init so enable_ept is properly set"."""
    found = find_hazards(kvm)["found"]
    (one,) = (one for one in found if one["reader"] == "vmx_setup_l1d_flush" and one["level"] == 1)
    assert one["object"] == "enable_ept"
    assert one["writer"] == "hardware_setup"
    assert [place.partition("+")[0] for place in one["read"]["chain"]] == ["vmx_init"]
    assert [place.partition("+")[0] for place in one["write"]["chain"]] == [
        *("vmx_init", "kvm_init", "kvm_arch_hardware_setup")
    ]
    assert {one["object"] for one in found if one["level"] == 1} == {"enable_ept"}


@pytest.mark.kernel
def test_facts_hide_no_way_and_keep_none_apart(kvm: ModuleSet) -> None:
    """So that the other questions of a run may be asked together with this one."""
    runs = Runs(Code(Program(kvm)))
    for module in ("kvm-intel", "kvm-amd"):
        without, with_facts = runs.settle([Job(module, "init", one) for one in (Question(), Watch(runs.program))])
        assert without is not None
        assert with_facts is not None
        assert not with_facts.flow.trouble.cut
        assert all(come_from <= with_facts.flow.edges[node] for node, come_from in without.flow.edges.items())
        assert len(without.ends) == len(with_facts.ends)
