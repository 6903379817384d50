"""Protects what is said of init code: every way through it is seen, and none that is not there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kbuild.elf.code.calls import Call
from kbuild.elf.code.decode import Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Question
from kbuild.elf.code.state import State
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.paths import PROJECT

SOURCE = PROJECT / "tests/data/flow/features.c"
FUNCTIONS = re.findall(r"used int ((?:holds|breaks)_\w+)", SOURCE.read_text())
# As the kernel's own Makefiles ask for it, as far as it shapes the code (arch/x86/Makefile).
FLAGS = [
    *("-c", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-mno-red-zone", "-mno-sse", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
]


class Order(Question):
    """Whether `first` had returned each time that `then` was entered; and all calls."""

    def __init__(self, first: Sequence[str], then: Sequence[str]) -> None:
        self._first, self._then = first, then
        self.seen: set[int] = set()
        self.calls: list[Call] = []

    def entered(self, state: State, call: Call) -> None:
        self.calls.append(call)
        if call.name is not None and call.name.symbol in self._then:
            self.seen.add(state.marks[0])

    def returned(self, state: State, call: Call) -> list[State]:
        if call.name is not None and call.name.symbol in self._first:
            state.marks = (1,)
        return [state]

    def lost(self, state: State, site: int) -> None:
        pass

    def names(self) -> set[str]:
        return {call.name.symbol for call in self.calls if call.name is not None}


@pytest.fixture(
    scope="module", params=["-O2", "-O1", "-Os", "-O0", "-O2 -mindirect-branch=thunk-extern -fno-jump-tables"]
)
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Code:
    path = tmp_path_factory.mktemp("flow") / "flow.ko"
    subprocess.run(["gcc", *FLAGS, *request.param.split(), "-o", path, SOURCE], check=True)
    return Code(Program(ModuleSet.of([read_module(path)], None)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_comes_first(features: Code, function: str) -> None:
    order = Order(["first"], ["then"])
    knows = frozenset({"flow"} if re.search("lent|push_flags", function) else ())
    flow = Flow(features.program, features, Shapes(features), knows, order)
    entry = features.program.symbol("flow", function)
    assert entry is not None
    assert flow.start(entry, State.at_entry((0,))), "it can return"
    assert not flow.trouble.unresolved
    assert not flow.trouble.cut
    assert 1 in order.seen or "breaks" in function
    assert (0 in order.seen) is ("breaks" in function)


MEETING = """
    .section .modinfo, "a"
    .asciz "name=meeting", "license=GPL", "vermagic=none"
    .section .gnu.linkonce.this_module, "aw"
    .zero 64
    .text
    .type ways_meet, @function
ways_meet:
    call something
    testl %eax, %eax
    je 1f
    movl $1, setting(%rip)
1:
    call then
    ret
    .size ways_meet, . - ways_meet
    .local setting
    .comm setting, 4
"""


def test_what_follows_where_ways_meet_is_looked_at_once(tmp_path: Path) -> None:
    """Also where the one way comes there without a jump."""
    source, path = tmp_path / "meeting.s", tmp_path / "meeting.ko"
    source.write_text(MEETING)
    subprocess.run(["gcc", "-c", "-o", path, source], check=True)
    code = Code(Program(ModuleSet.of([read_module(path)], None)))
    order = Order([], ["then"])
    flow = Flow(code.program, code, Shapes(code, cut=True), frozenset(), order)
    entry = code.program.symbol("meeting", "ways_meet")
    assert entry is not None
    assert len(flow.start(entry, State.at_entry((0,)))) == 1
    assert [call.name.symbol for call in order.calls if call.name is not None] == ["something", "then"]


@pytest.fixture(scope="module")
def kvm(kernel_build: Path) -> Code:
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    return Code(Program(ModuleSet.of([read_module(kernel_build / name) for name in names], None)))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("vendor", "hardware_setup"), [("kvm-amd", "svm_hardware_setup"), ("kvm-intel", "hardware_setup")]
)
def test_a_vendor_s_init_is_followed_to_its_end(kvm: Code, vendor: str, hardware_setup: str) -> None:
    """Through two modules and a table of pointers; 6.1, svm_init() and vmx_init()."""
    order = Order(["kvm_mmu_reset_all_pte_masks"], [hardware_setup])
    flow = Flow(kvm.program, kvm, Shapes(kvm), frozenset({vendor}), order)
    entry = kvm.program.symbol(vendor, "init_module")
    assert entry is not None
    ends = flow.start(entry, State.at_entry((0,)))
    assert not flow.trouble.cut
    assert order.seen == {1}, "kvm_x86_vendor_init() fails, and nothing more is done, where it does not reset them"
    called = next(call for call in order.calls if call.name is not None and call.name.symbol == hardware_setup)
    assert called.name is not None
    assert called.name.module == vendor
    assert {"kvm_x86_vendor_init", "kvm_init", "kvm_configure_mmu", "misc_register"} <= order.names()
    assert {"kvm_x86_vendor_exit", "kvm_mmu_vendor_module_exit"} <= order.names(), "on its error paths"
    results = [end.ranges(end.registers[0]) for end in ends if end.registers[0] is not None]
    assert ((0, 0),) in results
    errnos = {2**32 - low for ranges in results for low, high in ranges if low == high and low > 2**31}
    # arch/x86/kvm/x86.c, kvm_x86_vendor_init(): EEXIST, EOPNOTSUPP, ENOMEM, EIO
    assert {17, 95, 12, 5} <= errnos
