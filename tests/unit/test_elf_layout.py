"""Protects what is said of a module's layout: sizes, and which functions only init or exit code reaches.

Each case is a small module, compiled as the kernel's Makefiles ask for it and linked with `ld -r`.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.inspect import inspect, to_json
from kbuild.elf.layout import layout_of, part_sizes
from kbuild.report.modules import render
from tests.unit.test_lifetimes import RETPOLINES, Compile, compile_module, init  # noqa: F401 (a fixture)

STEP = "static noinline int step(int n) { return other() + n; }\n"
EXIT = "__exit void cleanup_module(void) { step(2); }\n"

REACHED = {
    "what init calls": (STEP + init("return step(1) + 1;"), {"step": "__init"}),
    "what init jumps to": (STEP + init("return step(1);"), {"step": "__init"}),
    "a global function": ("noinline int step(void) { return other(); }\n" + init("return step();"), {"step": "__init"}),
    "what such functions call": (
        STEP + "static noinline int above(int n) { return step(n) * 3; }\n" + init("return above(1) + step(4);"),
        {"step": "__init", "above": "__init"},
    ),
    "functions that call each other": (
        "noinline int one(int), two(int);\n"
        "noinline int one(int n) { return n ? two(n - 1) + 1 : other(); }\n"
        "noinline int two(int n) { return n ? one(n - 1) + 2 : another(); }\n" + init("return one(9);"),
        {"one": "__init", "two": "__init"},
    ),
    "a function with a switch table": (
        "static noinline int step(int n) { switch (n) {"
        + " ".join(f"case {n}: return use((void *){n * n + 7}) + other();" for n in range(9))
        + "} return another(); }\n"
        + init("return step(other());"),
        {"step": "__init"},
    ),
    "what exit calls": (STEP + EXIT + init("return 0;"), {"step": "__exit"}),
    "an init function that is not declared so": (
        STEP + "int init_module(void) { return step(1); }\n",
        {"step": "__init", "init_module": "__init"},
    ),
}

NOT_REACHED = {
    "what init and exit call": STEP + EXIT + init("return step(1);"),
    "what is called later too": STEP + "int work(void) { return step(3) + 1; }\n" + init("return step(1);"),
    "what is jumped to later too": STEP + "int work(void) { return step(3); }\n" + init("return step(1);"),
    "what a function in a circle calls that init does not reach": (
        STEP + "noinline int two(int);\nnoinline int one(int n) { return step(n) + (n ? two(n - 1) : 0); }\n"
        "noinline int two(int n) { return n ? one(n - 1) + 2 : another(); }\n" + init("return step(1);")
    ),
    "what init registers": STEP + init("return use(step) + step(1);"),
    "what a function that init calls registers": (
        STEP + "static struct ops own;\n"
        "int work(void) { return own.begin(); }\n"
        "static noinline void add(void) { own.begin = (int (*)(void))step; }\n"
        + "int later(void) { add(); return 0; }\n"
        + init("add(); return step(1);")
    ),
    "what a table has": STEP + "const void *table[] = { step };\n" + init("return step(1);"),
    "what a table has that init may give away": (
        STEP + "static const void *table[] __initdata = { step };\n" + init("return use(table) + step(1);")
    ),
    "an operation of a parameter": (
        "int step(void) { return other(); }\nPARAM(count, 0644, step);\n" + init("return step();")
    ),
    "an export": "int step(void) { return other(); }\nEXPORT(step);\n" + init("return step();"),
    "a kfunc": (
        "int step(void) { return other(); }\n"
        'asm(".pushsection .BTF_ids,\\"a\\"\\n__BTF_ID__func__step__12: .zero 4\\n'
        '.type __BTF_ID__func__step__12, @object\\n.popsection");\n' + init("return step();")
    ),
    "the trampoline of a static call, and what it jumps to": (
        "int step(void) { return other(); }\nint __SCT__it(void);\n"
        'asm(".pushsection .static_call.text,\\"ax\\"\\n.globl __SCT__it\\n__SCT__it: jmp step\\n'
        '.type __SCT__it, @function\\n.size __SCT__it, . - __SCT__it\\n.popsection");\n'
        + init("return __SCT__it() + step();")
    ),
    "what code calls that stands in for other code": (
        "int step(void) { return other(); }\n"
        'noinline int work(void) { asm volatile("1: .zero 5, 0x90\\n'
        '.pushsection .altinstr_replacement,\\"ax\\"\\n2: call step\\n.popsection\\n'
        '.pushsection .altinstructions,\\"a\\"\\n.long 1b - .\\n.long 2b - .\\n.short 3\\n.byte 5, 5\\n.popsection");'
        " return other(); }\n" + init("return step();")
    ),
    "what code without a name calls": (
        "int step(void) { return other(); }\n"
        'asm(".pushsection .text\\n.zero 16, 0x90\\ncall step\\n.popsection");\n' + init("return step();")
    ),
    "what a function without a size calls": (
        STEP + "static noinline __attribute__((used)) int local(void) { return step(5); }\n"
        'asm(".pushsection .text\\n.type raw, @function\\nraw: jmp local\\n.popsection");\n' + init("return local();")
    ),
}


def reached(module: ModuleImage) -> dict[str, str]:
    """Names without what the compiler adds to a clone's."""
    return {one.name.partition(".")[0]: one.could_be for one in layout_of(module).candidates}


@pytest.mark.parametrize("flags", [["-O2"], ["-Os", *RETPOLINES], ["-O0"]], ids=["plain", "retpolines", "plainest"])
@pytest.mark.parametrize("case", REACHED)
def test_reached(compile_module: Compile, case: str, flags: list[str]) -> None:  # noqa: F811
    source, expected = REACHED[case]
    assert reached(compile_module(source, flags=flags)) == expected


@pytest.mark.parametrize("flags", [["-O2"], ["-Os", *RETPOLINES], ["-O0"]], ids=["plain", "retpolines", "plainest"])
@pytest.mark.parametrize("case", NOT_REACHED)
def test_not_reached(compile_module: Compile, case: str, flags: list[str]) -> None:  # noqa: F811
    assert reached(compile_module(NOT_REACHED[case], flags=flags)) == {}


def test_what_is_said_of_one(compile_module: Compile) -> None:  # noqa: F811
    """Its size has the part that the compiler put aside."""
    source = (
        "__attribute__((cold)) int seldom(const char *);\n"
        'noinline int step(int n) { if (__builtin_expect(n == 3, 0)) { seldom("a"); seldom("b"); }'
        " return other() + n; }\n"
    )
    module = compile_module(source + init("return step(other());"), flags=["-O2"])
    layout = layout_of(module)
    parts = {one.name: one for one in layout.functions if one.name.startswith("step")}
    assert set(parts) == {"step", "step.cold"}
    assert layout.cold == parts["step.cold"].size
    (found,) = layout.candidates
    assert (found.name, found.section, found.static) == ("step", ".text", False)
    assert found.size == found.frees == sum(one.size for one in parts.values())
    assert found.referenced_from == ("init_module (.init.text)",)


@pytest.mark.kernel
def test_kvm(kernel_build: Path) -> None:
    """6.1: svm_hardware_setup() alone calls avic_hardware_setup(), which newer kernels declare __init; what the table
    of operations names, in init data, is called by every virtual machine."""
    module = read_module(kernel_build / "arch/x86/kvm/kvm-amd.ko")
    layout = layout_of(module)
    by_name = {one.name: one for one in layout.candidates}
    assert by_name["avic_hardware_setup"].referenced_from == ("svm_hardware_setup (.init.text)",)
    assert not set(by_name) & {"svm_vcpu_run", "svm_hardware_enable", "avic_vm_init", "svm_cpu_uninit"}
    for name in ("svm_init", "svm_hardware_setup"):
        assert next(one for one in layout.functions if one.name == name).section == ".init.text"
    sizes = part_sizes(module)
    assert sizes["total"] == sum(one.size for one in module.sections if one.part != "not loaded")
    assert sum(one.size for one in layout.functions if one.part == "init") <= sizes["init"]
    assert 0 < layout.cold < sizes["text"]


def test_a_person_is_shown_it(compile_module: Compile) -> None:  # noqa: F811
    module = compile_module(STEP + init("return step(1) + 1;"))
    inspection = inspect([module.path])
    out = io.StringIO()
    render(to_json(inspection), out)
    assert "largest functions" in out.getvalue()
    assert "init_module (.init.text)" in out.getvalue()
    out = io.StringIO()
    render(to_json(inspection, layout=False), out)
    assert "largest functions" not in out.getvalue()
