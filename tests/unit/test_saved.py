"""Protects what is known of a caller's registers behind a call: where a function saves them is none of its objects, so
that a pointer to one of these leads to none of them. Forms as gcc has them, the last ones those of Debian's 7.2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.elf.code.decode import Code
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from tests.unit.test_flow import FLAGS

MODULE = """
__attribute__((section(".modinfo"), used)) static const char modinfo[] = "name=m\\0license=GPL\\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
__asm__(".text\\n.globl f\\n.type f, @function\\nf:\\n%s\\n"
	".type next, @function\\nnext: push %%rbx\\npush %%rbp\\npush %%r12\\nret\\n");
"""
CALL = "call kernel"
FREE = ("add $24, %rsp", "ret")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (2, ["push %rbp", "push %rbx", "sub $16, %rsp", CALL, "add $16, %rsp", "pop %rbx", "pop %rbp", "ret"]),
        # Behind a call that ends the kernel's thread stands another function, which saves more.
        (1, ["push %rbx", "test %edi, %edi", "je 1f", "pop %rbx", "ret", "1: call __stack_chk_fail"]),
        # Behind a first look at what is to be done.
        (2, ["test %edi, %edi", "je 1f", "push %rbp", "push %rbx", CALL, "pop %rbx", "pop %rbp", "1: ret"]),
        # An argument on the stack is the function's own.
        (1, ["push %rbx", "mov %rdi, %rbx", "sub $8, %rsp", "push %rbx", CALL, "add $16, %rsp", "pop %rbx", "ret"]),
        (1, ["push %rbx", "push %rax", CALL, "pop %rax", "pop %rbx", "ret"]),
        (0, ["sub $8, %rsp", CALL, "add $8, %rsp", "ret"]),
        # A frame pointer, and a stack that is aligned then.
        (3, ["push %rbp", "mov %rsp, %rbp", "push %r15", "push %rbx", "and $-16, %rsp", CALL, "leave", "ret"]),
        # Saved when the frame is there, one of them only where it is used.
        (1, ["sub $24, %rsp", "mov %rbx, 16(%rsp)", "mov %edi, %ebx", CALL, "mov 16(%rsp), %rbx", *FREE]),
        (2, ["sub $40, %rsp", "mov %rbp, 32(%rsp)", "mov %edi, %ebp", CALL, "test %ebp, %ebp", "je 1f",
             "mov %rbx, 24(%rsp)", "mov %eax, %ebx", CALL, "mov 24(%rsp), %rbx", "1: mov 32(%rsp), %rbp", "ret"]),
        # What has been written to before it is stored is the function's own, as is what is no whole register.
        (0, ["sub $24, %rsp", "mov %edi, %ebx", "mov %rbx, 16(%rsp)", CALL, *FREE]),
        (0, ["sub $24, %rsp", "mov %ebx, 16(%rsp)", CALL, *FREE]),
        # On one of two ways it has been.
        (0, ["sub $24, %rsp", "test %edi, %edi", "je 1f", "mov %edi, %ebx", "1: mov %rbx, 16(%rsp)", CALL, "ret"]),
        # Not next to the return address: between the two there is an object.
        (0, ["sub $24, %rsp", "mov %rbx, 8(%rsp)", "mov %edi, %ebx", CALL, "mov 8(%rsp), %rbx", *FREE]),
    ],
)  # fmt: skip
def test_words_that_registers_are_saved_in(tmp_path: Path, words: int, code: list[str]) -> None:
    source, module = tmp_path / "m.c", tmp_path / "m.ko"
    source.write_text(MODULE % "\\n".join(code))
    subprocess.run(["gcc", *FLAGS, "-w", "-O2", "-o", module, source], check=True)
    program = Program(ModuleSet.of([read_module(module)], None))
    entry = program.symbol("m", "f")
    assert entry is not None
    assert Shapes(Code(program)).of(entry).saved == words
