"""Protects that an analysis in two processes says what one would, and leaves none of them behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.elf.code.sides import Side, side_by_side
from kbuild.elf.object import ElfObject
from tests.unit.test_flow import FLAGS

LARGE = "x" * (1 << 20)
"""More than a pipe holds."""


def children() -> set[str]:
    """The processes that this one has made, those included that have ended and were not waited for."""
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Of those that were made before, such as the guest that the tests of SSH hosts share, nothing is said."""
    before = children()
    yield
    assert children() <= before


def test_both_get_what_the_other_gives_however_large() -> None:
    def side(name: str, other: Side) -> list[str]:
        return [name, other.swap(name), other.swap(LARGE + name)[-1:], other.swap(name)]

    done = side_by_side(lambda other: side("1", other), lambda other: side("2", other))
    assert done == (["1", "2", "2", "2"], ["2", "1", "1", "1"])


@pytest.mark.parametrize("swaps", [0, 1, 2])
def test_where_the_second_ends_early_nothing_is_said(swaps: int, capfd: pytest.CaptureFixture[str]) -> None:
    def second(other: Side) -> str:
        for _ in range(swaps):
            other.swap(LARGE)
        raise ValueError("damaged")

    def first(other: Side) -> str:
        for _ in range(3):
            other.swap(LARGE)
        return "first"

    assert side_by_side(first, second) is None
    assert capfd.readouterr() == ("", ""), "who does it again says what is wrong"


def test_where_the_second_is_killed_nothing_is_said() -> None:
    def second(other: Side) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return other.swap("second")

    assert side_by_side(lambda other: other.swap("first"), second) is None


def test_where_the_first_fails_the_second_is_ended() -> None:
    def first(other: Side) -> str:
        other.say("first")
        raise KeyboardInterrupt

    def second(other: Side) -> str:
        time.sleep(60)
        return other.swap("second")

    begin = time.monotonic()
    assert side_by_side(first, second) is None
    assert time.monotonic() - begin < 30


def test_who_is_interrupted_meanwhile_ends_both() -> None:
    def side(other: Side) -> str:
        time.sleep(60)
        return other.swap("")

    def interrupted() -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(side, side, interrupted)
    assert time.monotonic() - begin < 30


def test_what_is_on_its_way_to_standard_output_is_printed_once() -> None:
    program = """
    from kbuild.elf.code.sides import side_by_side
    print("begun", end=" ")
    print(side_by_side(lambda other: 1, lambda other: 2))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("begun (1, 2)\n", "")


ANSWERS = """
import sys
from pathlib import Path
import msgspec
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules import check
from kbuild.elf.rules.halves import _Guess
from kbuild.elf.rules.spec import read_rules
from kbuild.paths import PROJECT
modules = ModuleSet.of(map(read_module, map(Path, sys.argv[1:])), None)
rules = read_rules(tuple(PROJECT / f"profiles/rules/{name}.toml" for name in ("kvm", "mmu-setup-thread")))
assert check.can_be_two()
found = [check.check_rules(modules, rules)[0]]
tell = _Guess._tell
_Guess._tell = lambda self, static: tell(self, static[1:])
found.append(check.check_rules(modules, rules)[0])
check.can_be_two = lambda: False
found.append(check.check_rules(modules, rules)[0])
print(msgspec.json.encode(found).decode())
"""
BODIES = """
import sys
from pathlib import Path
from kbuild.elf.code import inlined
from kbuild.elf.code.link import Program
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
program = Program(ModuleSet.of(map(read_module, map(Path, sys.argv[1:])), None))
inlined.MIN_SHARED = 0
assert inlined.can_be_two()
found = [inlined.Inlined(program, {"inner"})]
inlined.can_be_two = lambda: False
found.append(inlined.Inlined(program, {"inner"}))
print([(one.bodies, one.unread) for one in found][0] == [(one.bodies, one.unread) for one in found][1])
print(sorted(body.module for body in found[0].bodies), found[0].unread)
"""
INLINED = """
__attribute__((section(".modinfo"), used)) static const char modinfo[] = "name=" NAME "\\0license=GPL\\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
static inline __attribute__((always_inline)) int inner(int x) { __asm__ volatile("nop"); return x + 1; }
int outer(int x);
int outer(int x) { return inner(x); }
"""


def alone(program: str, *arguments: str | Path) -> str:
    """What a program prints in a process of its own: this one may have threads, and then all is done in one."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.kernel
def test_rules_are_answered_as_in_one_process(kernel_build: Path) -> None:
    """With witnesses, and static calls that both vendors' modules update; also where what they are is guessed wrong."""
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    in_two, with_a_wrong_guess, in_one = json.loads(alone(ANSWERS, *(kernel_build / name for name in names)))
    assert in_two == with_a_wrong_guess == in_one
    assert {"proved", "violated"} <= {finding["answer"] for finding in in_one}


def test_inlined_functions_are_found_as_in_one_process(tmp_path: Path) -> None:
    """In all modules; of one that is damaged it is said what is wrong."""
    source = tmp_path / "m.c"
    source.write_text(INLINED)
    modules = [tmp_path / f"{name}.ko" for name in ("one", "two", "three")]
    for module in modules:
        flags = [*FLAGS, "-w", "-O2", "-gdwarf-5", f'-DNAME="{module.stem}"']
        subprocess.run(["gcc", *flags, "-o", module, source], check=True)
    assert alone(BODIES, *modules) == "True\n['one', 'three', 'two'] {}\n"
    elf = ElfObject(modules[1].read_bytes())
    data = bytearray(elf.data)
    data[elf.by_name[".debug_info"].offset + 4] = 9  # the version of the first unit
    modules[1].write_bytes(data)
    said = alone(BODIES, *modules)
    assert said.startswith("True\n['one', 'three'] {'two': ")
