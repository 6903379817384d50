"""Protects what is said of lifetimes: what stays and leads to freed init memory is found, what does no harm is not.

Each case is a small module, compiled as the kernel's Makefiles ask for it and linked with `ld -r`.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.inspect import inspect
from kbuild.elf.lifetimes import lifetimes
from kbuild.elf.moduleset import ModuleSet
from kbuild.errors import UserError
from kbuild.outcome import Status

FLAGS = [
    *("-c", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-mno-red-zone", "-mno-sse", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
]
RETPOLINES = ["-mindirect-branch=thunk-extern", "-fno-jump-tables"]

# include/linux/init.h, export.h, moduleparam.h: the sections, and what goes into them.
EXPORT = r"""
#define EXPORT(name) asm(".pushsection __ksymtab_strings,\"aMS\",@progbits,1\n1: .asciz \"" #name "\"\n" \
    "2: .asciz \"\"\n.popsection\n.pushsection __ksymtab,\"a\"\n.balign 4\n" \
    ".long " #name " - ., 1b - ., 2b - .\n.popsection")
"""
HEADER = (
    EXPORT
    + r"""
#define section(name) __attribute__((section(name)))
#define __init section(".init.text") __attribute__((__noinline__, cold))
#define __initdata section(".init.data")
#define __initconst section(".init.rodata")
#define __exit section(".exit.text") __attribute__((__noinline__, used, cold))
#define __ref section(".ref.text") __attribute__((__noinline__))
#define __refdata section(".ref.data")
#define __ro_after_init section(".data..ro_after_init")
#define noinline __attribute__((__noinline__))
#define PARAM(name, mode, argument) asm(".pushsection __param,\"a\"\n.balign 8\n__param_" #name ": .quad 0, 0, 0\n" \
    ".short " #mode "\n.zero 6\n.quad " #argument "\n" \
    ".size __param_" #name ", 40\n.type __param_" #name ", @object\n.popsection")
struct ops { int (*begin)(void); int (*work)(void); };
int other(void), another(void), use(const void *), dmi_check_system(const void *);
asm(".pushsection .modinfo,\"a\"\n.asciz \"name=MODULE\"\n.asciz \"vermagic=6.1.192 \"\n"
    ".popsection\n.pushsection .gnu.linkonce.this_module,\"aw\"\n.zero 24\n.quad init_module\n.zero 672\n.popsection");
"""
)
BEGIN = "__init int begin(void) { return other() + 1; }\n"


def ops(kind: str) -> str:
    """A table of operations, `const` or `__initdata` or neither, one of which is init code."""
    return BEGIN + f"static {kind} struct ops my_ops = {{ begin, other }};\n"


def init(body: str) -> str:
    return f"__init int init_module(void) {{ {body} }}\n"


FOUND = {
    "a table of operations that init registers": (
        ops("") + init("return use(&my_ops);"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "the same where modpost does not look": (
        ops("const") + init("return use(&my_ops);"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that init registers by what is on its stack": (
        ops("const") + init("struct { const void *a, *b; } all = { use, &my_ops }; return use(&all);"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that a function of the module registers for init": (
        ops("const")
        + "noinline int add(const struct ops *ops) { return use(ops) + other(); }\n"
        + init("return add(&my_ops);"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that init data names, which may be copied": (
        ops("") + "static const void *all[] __initdata = { &my_ops, other };\n" + init("return use(all);"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that nothing in the module uses": (
        BEGIN + "struct ops my_ops = { begin, other };\n" + init("return 0;"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that is read later": (
        BEGIN
        + "__init int third(void) { return 3; }\n"
        + "static int (*const table[])(void) = { begin, third, begin };\n"
        + "int work(unsigned n) { return table[n](); }\n"
        + init("return table[0]();"),
        {"lifetime-data:m:table-begin", "lifetime-data:m:table-third"},
    ),
    "a table that is stepped through later": (
        BEGIN
        + "static const struct ops table[] = { { another, other }, { begin, other }, { another, other } };\n"
        + "int work(void) { for (const struct ops *o = table; o < table + 3; o++) o->begin(); return 0; }\n"
        + init("return other();"),
        {"lifetime-data:m:table-begin"},
    ),
    "a table behind a pointer that is read later": (
        ops("const")
        + "static const struct ops *volatile all[] = { &my_ops, 0 };\n"
        + "int work(unsigned n) { return all[n]->begin(); }\n"
        + init("return all[0]->begin();"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table that a function of the kernel reads later": (
        ops("const") + "int work(void) { return dmi_check_system(&my_ops); }\n" + init("return 0;"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "a table in which init may put something else": (
        ops("")
        + "int work(void) { return my_ops.begin(); }\n"
        + init("if (other()) my_ops.begin = another; return 0;"),
        {"lifetime-data:m:my_ops-begin"},
    ),
    "code that calls": (
        BEGIN + "noinline int work(void) { return begin() + 2; }\n" + init("return work();"),
        {"lifetime-call:m:work-begin"},
    ),
    "code that jumps": (
        BEGIN + "noinline int work(void) { return begin(); }\n" + init("return work();"),
        {"lifetime-call:m:work-begin"},
    ),
    "exit code": (
        BEGIN + "__exit void cleanup_module(void) { begin(); }\n" + init("return 0;"),
        {"lifetime-call:m:cleanup_module-begin"},
    ),
    "code that takes an address": (
        BEGIN + "int work(void) { return use(begin); }\n" + init("return 0;"),
        {"lifetime-address:m:work-begin"},
    ),
    "code that reads, with a number behind the address": (
        "static int before __initdata, count __initdata;\n"
        + "int work(void) { return count == 77777 ? other() : another(); }\n"
        + init("count = other(); return before = another();"),
        {"lifetime-address:m:work-count"},
    ),
    "a pointer to data": (
        "static int numbers[4] __initdata = { 1, 2 };\nint *lasting = numbers;\n"
        + "int work(void) { return lasting[1]; }\n"
        + init("return 0;"),
        {"lifetime-data:m:lasting-numbers"},
    ),
    "a parameter in sysfs": (
        "int count __initdata = 3;\nPARAM(count, 0644, count);\n" + init("return count;"),
        {"lifetime-data:m:__param_count-count"},
    ),
    "an exported function": (
        BEGIN + "EXPORT(begin);\n" + init("return begin();"),
        {"lifetime-export:m:begin"},
    ),
    "the trampoline of a static call": (
        BEGIN
        + 'asm(".pushsection .static_call.text,\\"ax\\"\\n.globl __SCT__it\\n__SCT__it: jmp begin\\n'
        + '.type __SCT__it, @function\\n.size __SCT__it, . - __SCT__it\\n.popsection");\n'
        + init("return 0;"),
        {"lifetime-call:m:__SCT__it-begin"},
    ),
    "an alternative of lasting code": (
        BEGIN
        + 'noinline int work(void) { asm volatile("1: .zero 5, 0x90\\n'
        + '.pushsection .altinstr_replacement,\\"ax\\"\\n2: call begin\\n.popsection\\n'
        + '.pushsection .altinstructions,\\"a\\"\\n.long 1b - .\\n.long 2b - .\\n.short 3\\n.byte 5, 5\\n.popsection");'
        + " return other(); }\n"
        + init("return work();"),
        {"lifetime-call:m:work-begin"},
    ),
}

INFORMS = {
    "what is declared": (
        BEGIN
        + "__ref int work(void) { return begin() + 2; }\n"
        + "struct ops my_ops __refdata = { begin, other };\n"
        + init("return use(&my_ops);"),
        {"lifetime-call:m:work-begin", "lifetime-data:m:my_ops-begin"},
    ),
    "a table whose other pointers are used later": (
        BEGIN
        + "__init int third(void) { return 3; }\n"
        + "static const struct ops table[] = { { begin, other }, { third, another } };\n"
        + "__exit void cleanup_module(void) { for (int n = other(); n >= 0; n--) table[n].work(); }\n"
        + init("for (int n = 0; n < other(); n++) if (table[n].begin()) return 1; return 0;"),
        {"lifetime-data:m:table-begin", "lifetime-data:m:table-third"},
    ),
    "pointers that init writes over": (
        "struct map { long mask; const int *bits; };\n"
        + "static const int one[2] __initconst = { 1, 2 }, two[2] __initconst = { 3, 4 };\n"
        + "static struct map maps[] __ro_after_init = { { 0, one }, { 0, two } };\n"
        + "__init void fill(struct map *map) { map->mask = map->bits[1]; map->bits = 0; }\n"
        + "long work(unsigned n) { return maps[n].bits ? 0 : maps[n].mask; }\n"
        + init("for (int n = 0; n < 2; n++) fill(maps + n); return 0;"),
        {"lifetime-data:m:maps-one", "lifetime-data:m:maps-two"},
    ),
}

LOADERS = [
    *(".orc_unwind_ip", "__bug_table", ".altinstructions", "__jump_table", ".static_call_sites", "__ex_table"),
    *(".retpoline_sites", ".return_sites", ".ibt_endbr_seal", ".call_sites", ".cfi_sites", "__mcount_loc"),
    *("__patchable_function_entries", "__kcfi_traps", ".smp_locks", ".parainstructions", "_ftrace_eval_map"),
    *(".discard.addressable", ".note.test", ".debug_info"),
]

NOT_FOUND = {
    **{
        f"what the loader manages in {name}": BEGIN
        + f'asm(".pushsection {name},\\"a\\"\\n.quad begin\\n.long begin - .\\n.popsection");\n'
        + init("return 0;")
        for name in LOADERS
    },
    "init code and data among themselves": (
        ops("__initdata") + init("use(&my_ops); use(begin); return begin() + my_ops.begin();")
    ),
    "a switch table of init code": (
        BEGIN
        + 'static const char before[] = "before";\n'
        + init(
            "use(before); switch (other()) {"
            + " ".join(f"case {n}: return use((void *){n * n + 7}) + begin();" for n in range(9))
            + "} return another();"
        )
    ),
    "a table that init calls": (
        BEGIN
        + "__init int third(void) { return 3; }\nstatic int (*const table[])(void) = { begin, third };\n"
        + init("for (int n = 0; n < other(); n++) table[n](); return 0;")
    ),
    "a table that init steps through": (
        BEGIN
        + "static const struct ops table[] = { { begin, other }, { another, other }, { begin, another } };\n"
        + init("for (const struct ops *o = table; o < table + 3; o++) if (o->begin()) return 1; return 0;")
    ),
    "a table that a function of the kernel reads for init": (
        ops("const") + init("return dmi_check_system(&my_ops);")
    ),
    "a table behind a pointer of which another part is used later": (
        ops("const")
        + "static const struct ops *volatile all[] = { &my_ops, 0 };\n"
        + "int work(unsigned n) { return all[n]->work(); }\n"
        + init("return all[0]->begin();")
    ),
    "a parameter that is only for the command line": (
        "int count __initdata = 3;\nint *const where = &count;\nPARAM(count, 0, count);\nPARAM(where, 0, where);\n"
        + init("return count;")
    ),
    "an alternative of init code, and what stands in for it": (
        "__init int begin(void) { int a; asm volatile(\"1: jmp 6f\\n7: nop\\n8:\\n"
        + '.pushsection .altinstr_aux,\\"ax\\"\\n6: testb $1, other\\njnz 7b\\njmp 8b\\n.popsection\\n'
        + '.pushsection .altinstr_replacement,\\"ax\\"\\n2: jmp 8b\\n.popsection\\n'
        + '.pushsection .altinstructions,\\"a\\"\\n.long 1b - .\\n.long 2b - .\\n.short 3\\n.byte 5, 5\\n.popsection"'
        + " : \"=r\"(a)); return a; }\n"
        + init("return begin();")
    ),
}  # fmt: skip

Compile = Callable[..., ModuleImage]


@pytest.fixture
def compile_module(tmp_path: Path) -> Compile:
    """A function that makes a module of C source."""

    def make(source: str, name: str = "m", flags: list[str] | None = None) -> ModuleImage:
        text, unlinked, path = tmp_path / f"{name}.c", tmp_path / f"{name}.o", tmp_path / f"{name}.ko"
        text.write_text(HEADER.replace("MODULE", name) + source)
        subprocess.run(["gcc", *FLAGS, *(flags or ["-O2"]), "-o", unlinked, text], check=True)
        subprocess.run(["ld", "-r", "-o", path, unlinked], check=True)
        return read_module(path)

    return make


def said(*modules: ModuleImage) -> dict[str, Status]:
    findings = list(lifetimes(ModuleSet.of(modules, None)))
    for finding in findings:
        assert "(" in finding.evidence[0], finding
    return {finding.id.removeprefix("inspect:"): finding.status for finding in findings}


@pytest.mark.parametrize("flags", [["-O2"], ["-Os", *RETPOLINES]], ids=["plain", "retpolines"])
@pytest.mark.parametrize("case", FOUND)
def test_found(compile_module: Compile, case: str, flags: list[str]) -> None:
    source, expected = FOUND[case]
    assert said(compile_module(source, flags=flags)) == dict.fromkeys(expected, Status.FAIL)


@pytest.mark.parametrize("flags", [["-O2"], ["-Os", *RETPOLINES]], ids=["plain", "retpolines"])
@pytest.mark.parametrize("case", INFORMS)
def test_said_and_not_counted(compile_module: Compile, case: str, flags: list[str]) -> None:
    source, expected = INFORMS[case]
    assert said(compile_module(source, flags=flags)) == dict.fromkeys(expected, Status.DONE)


@pytest.mark.parametrize("flags", [["-O2"], ["-Os", *RETPOLINES]], ids=["plain", "retpolines"])
@pytest.mark.parametrize("case", NOT_FOUND)
def test_not_found(compile_module: Compile, case: str, flags: list[str]) -> None:
    module = compile_module(NOT_FOUND[case], flags=flags)
    assert said(module) == {}
    if case == "a switch table of init code" and flags == ["-O2"]:
        assert module.init_references, "the compiler made no table, so this has shown nothing"


def test_another_modules_init_part(compile_module: Compile) -> None:
    """When a module can be loaded, what it imports from has lost its init part: its own init code must not call it."""
    giver = compile_module(
        BEGIN + "EXPORT(begin);\nint count __initdata = 2;\nEXPORT(count);\n" + init("return begin();"), "giver"
    )
    taker = compile_module(
        "int begin(void);\nextern int count;\nint *where = &count;\nint work(void) { return use(begin); }\n"
        + init("return begin() + 1;"),
        "taker",
    )
    exports = {f"lifetime-export:giver:{name}": Status.FAIL for name in ("begin", "count")}
    assert said(giver) == exports
    assert {f"inspect:{name}" for name in exports} <= {finding.id for finding in inspect([giver.path]).findings}
    assert said(giver, taker) == exports | {
        "lifetime-address:taker:work-begin": Status.FAIL,
        "lifetime-call:taker:init_module-begin": Status.FAIL,
        "lifetime-data:taker:where-count": Status.FAIL,
    }


def test_init_data_that_another_module_may_copy(compile_module: Compile) -> None:
    """As KVM's vendor modules do it: init code calls with what is for init, which names what is to be kept."""
    kept = compile_module(
        "struct all { int (*setup)(void); const void *kept; };\nchar copy[16];\n"
        "int vendor_init(struct all *all) { __builtin_memcpy(copy, all->kept, 16); return all->setup(); }\n"
        "EXPORT(vendor_init);\n" + init("return 0;"),
        "common",
    )
    vendor = compile_module(
        ops("__initdata")
        + "struct all { int (*setup)(void); const void *kept; };\nint vendor_init(struct all *);\n"
        + "__init int setup(void) { return 5; }\nstatic struct all all __initdata = { setup, &my_ops };\n"
        + init("return vendor_init(&all);"),
        "vendor",
    )
    assert said(kept, vendor) == {"lifetime-data:vendor:my_ops-begin": Status.FAIL}


@pytest.mark.kernel
def test_kvm_has_none(kernel_build: Path) -> None:
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    assert said(*(read_module(kernel_build / name) for name in names)) == {}


def test_broken_tables_end_in_one_line(compile_module: Compile) -> None:
    """Relocations that point anywhere: each file is judged, or refused by an error of ours."""
    module = compile_module(
        ops("const")
        + "__init int third(void) { return 3; }\nnoinline int work(void) { return third() + use(&my_ops); }\n"
        + init("switch (other()) { case 0 ... 9: return begin(); } return third();")
    )
    data = module.path.read_bytes()
    tables = [section for section in module.sections if section.kind == "RELA"]
    for table, number in itertools.product(tables, (0, 1)):
        for at, value in itertools.product(
            (0, 12, 16), (b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x05\x00\x00\x00")
        ):
            place = table.offset + number * 24 + at
            if number * 24 < table.size:
                module.path.write_bytes(data[:place] + value + data[place + 4 :])
                with contextlib.suppress(UserError):
                    said(read_module(module.path))
