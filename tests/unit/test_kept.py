"""Protects that what init leaves behind of its own memory is found, whichever way it came there, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Question, Runs
from kbuild.elf.image import read_module
from kbuild.elf.kept import kept_findings
from kbuild.elf.moduleset import ModuleSet
from kbuild.outcome import Finding, Status
from tests.unit.test_corpus import FLAGS

SOURCE = """
#define section(name) __attribute__((section(name), used))
section(".modinfo") static const char modinfo[] = "name=flow\\0license=GPL\\0vermagic=none";
section(".gnu.linkonce.this_module") char __this_module[64];
#define __init section(".init.text") __attribute__((noinline))
#define __initdata section(".init.data")
extern void *memcpy(void *, const void *, unsigned long);
extern void work(const void *);
extern int ask(void);
extern void __static_call_update(void *, void *, void *);
struct ops { int (*run)(void); int (*stop)(void); const char *name; };
__init int gone(void) { return ask(); }
int stays(void) { return ask() + 1; }
struct ops ops, *kept;
void *place;
__initdata int number = 3;
static const char name[] section(".init.rodata") = "name";
__initdata struct ops good = { stays, stays, "good" };
__initdata struct ops bad = { stays, gone, "bad" };
__initdata struct ops named = { stays, stays, name };
"""
# Each body of init, and what it leaves behind: holder, what, whether for sure.
KEEPS: dict[str, tuple[str, str, bool]] = {
    "memcpy(&ops, &bad, sizeof(ops)); return 0;": ("ops", "gone", True),
    "ops = bad; work(&ops.name); return 0;": ("ops", "gone", True),
    "if (ask()) bad.stop = 0; memcpy(&ops, &bad, sizeof(ops)); return 0;": ("ops", "gone", False),
    "good.run = gone; memcpy(&ops, &good, sizeof(ops)); return 0;": ("ops", "gone", True),
    "memcpy(&ops, &named, sizeof(ops)); return 0;": ("ops", "name", True),
    "kept = &good; return 0;": ("kept", "good", True),
    "place = &number; return ask() ? -12 : 0;": ("place", "number", True),
}
KEEPS_NOTHING = (
    "memcpy(&ops, &good, sizeof(ops)); return 0;",
    "bad.stop = stays; memcpy(&ops, &bad, sizeof(ops)); return 0;",
    "memcpy(&ops, &bad, sizeof(ops)); ops.stop = 0; return 0;",
    "memcpy(&ops, &bad, sizeof(ops)); ops.stop = ops.run; return ask();",
    "place = &number; return -12;",
    "kept = &bad; work(0); kept->stop(); kept = 0; return 0;",
    "good.run = gone; return good.run();",
    "struct ops mine = bad; work(0); return mine.stop();",
)


def found(body: str, compiler: str, folder: Path) -> list[Finding]:
    source = folder / "flow.c"
    source.write_text(f"{SOURCE}\n__init int init_module(void) {{ {body} }}\n")
    subprocess.run([*compiler.split(), *FLAGS, "-o", folder / "flow.ko", source], check=True)
    runs = Runs(Code(Program(ModuleSet.of([read_module(folder / "flow.ko")], None))))
    run = runs.run(Job("flow", "init", Question()))
    assert run is not None
    assert not run.flow.trouble.cut
    return list(kept_findings(runs, [run]))


@pytest.mark.parametrize("compiler", ["gcc -O2", "clang-19 -O2", "gcc -O0"])
@pytest.mark.parametrize(("body", "keeps"), KEEPS.items(), ids=KEEPS)
def test_what_is_kept_is_said_with_its_place(
    body: str, keeps: tuple[str, str, bool], compiler: str, tmp_path: Path
) -> None:
    holder, what, sure = keeps
    (one,) = found(body, compiler, tmp_path)
    assert one.id == f"inspect:lifetime-kept:flow:{holder}-{what}"
    assert one.status == (Status.FAIL if sure else Status.ERROR)
    assert one.evidence[0].startswith(f"{holder}")
    assert f"points to {what}" in one.evidence[0]
    assert one.evidence[1].startswith("put there at init_module")


@pytest.mark.parametrize("compiler", ["gcc -O2", "clang-19 -O2", "gcc -O0"])
@pytest.mark.parametrize("body", KEEPS_NOTHING)
def test_what_is_not_kept_is_no_finding(body: str, compiler: str, tmp_path: Path) -> None:
    assert found(body, compiler, tmp_path) == []


def test_a_static_call_that_leads_to_what_is_gone(tmp_path: Path) -> None:
    body = 'extern char call[] __asm__("__SCT__call"); __static_call_update(0, call, gone); return 0;'
    text = '__asm__(".text\\n.globl __SCT__call\\n.type __SCT__call, @function\\n__SCT__call: jmp stays\\n");'
    source = tmp_path / "flow.c"
    source.write_text(f"{SOURCE}\n{text}\n__init int init_module(void) {{ {body} }}\n")
    subprocess.run(["gcc", *FLAGS, "-O2", "-o", tmp_path / "flow.ko", source], check=True)
    runs = Runs(Code(Program(ModuleSet.of([read_module(tmp_path / "flow.ko")], None))))
    (one,) = kept_findings(runs, [run for run in runs.settle([Job("flow", "init", Question())]) if run is not None])
    assert one.id == "inspect:lifetime-kept:flow:__SCT__call-gone"
    assert one.status is Status.FAIL
    assert len(one.evidence) == 2
