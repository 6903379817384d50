"""Protects that a call which a compiler has copied into several ways is followed once, where that says the same, and
that no call is taken for another one. The form is that of `ops->hardware_setup()` in 6.1's kvm_arch_hardware_setup().
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.elf.code import twins
from kbuild.elf.code.decode import Code
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.code.state import State
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from tests.unit.test_flow import Order

MODULE = """
    .section .modinfo, "a"
    .asciz "name=m", "license=GPL", "vermagic=none"
    .section .gnu.linkonce.this_module, "aw"
    .zero 64
    .data
one: .quad first, second
two: .quad second, first
    .local setting
    .comm setting, 4
    .text
    .type first, @function
first:
    call in_first
    ret
    .type second, @function
second:
    call in_second
    ret
    .type f, @function
f:  push %rbx
    push %r12
    mov $one, %rbx
    mov (%rbx), %rax
    call something
    test %eax, %eax
    {branch}
    movl $1, setting(%rip)
    {call}
    {behind}
fails:
    mov %r12d, %eax
    pop %r12
    pop %rbx
    ret
other:
    {other}
    {other_call}
direct:
    {other_behind}
works:
    call then
    xor %r12d, %r12d
    jmp fails
    .size f, . - f
"""
CALL = "call *(%rbx)"
THUNK = "call __x86_indirect_thunk_rbx"
COPIED = {
    "branch": "je other",
    "call": CALL,
    "behind": "mov %eax, %r12d\ntest %eax, %eax\nje works",
    "other": "movl $2, setting(%rip)",
    "other_call": CALL,
    "other_behind": "mov %eax, %r12d\ntest %eax, %eax\njne fails",
}
SAME = COPIED["behind"].removesuffix("je works")


def calls(folder: Path, parts: dict[str, str], *, cut: bool = True, cuts: frozenset[int] = frozenset()) -> list[str]:
    """What the function calls, as often as it is followed, but for what tells the ways apart."""
    source, path = folder / "m.s", folder / "m.ko"
    source.write_text(MODULE.format_map(COPIED | parts))
    subprocess.run(["gcc", "-c", "-o", path, source], check=True)
    program = Program(ModuleSet.of([read_module(path)], None))
    entry = program.symbol("m", "f")
    assert entry is not None
    order = Order([], [])
    code = Code(program, frozenset(entry + one for one in cuts))
    flow = Flow(program, code, Shapes(code, cut=cut), frozenset({"m"}), order)
    flow.start(entry, State.at_entry((0,)))
    assert not flow.trouble.unresolved
    named = [call.name.symbol for call in order.calls if call.name is not None]
    return [name for name in named if name in ("in_first", "in_second", "then")]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"call": "call *%rax", "other_call": "call *%rax", "branch": "mov (%rbx), %rax\ntest %rax, %rax\nje other"},
        {"call": f"mov (%rbx), %rbx\n{THUNK}", "other_call": f"mov (%rbx), %rbx\n{THUNK}"},
        # One of the ways comes to the call itself.
        {"other": "", "branch": "je other"},
        # What follows is in another order, or the same code.
        {"behind": f"{SAME}jne fails\njmp works"},
        {"behind": "jmp direct"},
    ],
    ids=["table", "register", "thunk", "jumped-to", "jump", "same"],
)
def test_a_copied_call_is_followed_once(tmp_path: Path, parts: dict[str, str]) -> None:
    assert calls(tmp_path, parts) == ["in_first", "then"]


@pytest.mark.parametrize(
    "parts",
    [
        {"other_call": "call *8(%rbx)"},
        {"other": "mov $two, %rbx"},
        {"other": "mov $two, %rbx", "call": f"mov (%rbx), %rbx\n{THUNK}", "other_call": f"mov (%rbx), %rbx\n{THUNK}"},
    ],
    ids=["slot", "table", "thunk"],
)
def test_calls_of_different_functions_are_told_apart(tmp_path: Path, parts: dict[str, str]) -> None:
    assert sorted(calls(tmp_path, parts)) == ["in_first", "in_second", "then"]


@pytest.mark.parametrize(
    "parts",
    [
        {"other_behind": COPIED["other_behind"].replace("%eax, %r12d", "%edx, %r12d")},
        {"other_behind": f"{SAME}je fails"},
        {"other_behind": f"{SAME}js fails"},
        {"other_behind": "mov $1, %r12d\njmp fails"},
        {"other_behind": "movl $3, setting(%rip)\n" + COPIED["other_behind"]},
    ],
    ids=["register", "turned", "condition", "shorter", "more"],
)
def test_calls_behind_which_something_else_is_done_stay_two(tmp_path: Path, parts: dict[str, str]) -> None:
    assert calls(tmp_path, parts).count("in_first") == 2


def test_who_asks_for_each_call_has_each(tmp_path: Path) -> None:
    """For a tree of calls, or where one of them may belong to a function that was inlined."""
    assert calls(tmp_path, {}, cut=False).count("in_first") == 2
    assert calls(tmp_path, {}, cuts=frozenset({3})).count("in_first") == 2


def test_a_function_that_calls_the_same_all_the_time_is_not_looked_at_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its calls could be any other one's; what is not compared is followed as it stands."""
    compared: list[int] = []
    at = twins._Alike.at

    def counted(self: twins._Alike, one: int, other: int) -> bool:
        compared.append(one)
        return at(self, one, other)

    monkeypatch.setattr(twins._Alike, "at", counted)
    many = "".join(f"{CALL}\nmovl ${number}, setting(%rip)\n" for number in range(400))
    assert calls(tmp_path, {"other": many}).count("in_first") >= 400
    assert len(compared) <= twins.MAX_COMPARED
