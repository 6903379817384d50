"""Protects what a person reads when a build complains: file, line and option, and the first error only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.build.diagnostics import counted_anew, machines_fault, read_diagnostics, to_findings
from kbuild.outcome import Status

COUNTING = ("arch/x86/kvm/", "virt/")


def compile_c(source: Path, file: str, text: str) -> list[str]:
    """What this system's gcc says of a file, as Kbuild calls it: by its full path."""
    path = source / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    argv = ["gcc", "-Wall", "-c", "-o", "/dev/null", str(path)]
    return subprocess.run(
        argv, capture_output=True, text=True, env={"LC_ALL": "C", "PATH": "/usr/bin"}
    ).stderr.splitlines()


def test_warning_has_file_line_and_option(tmp_path: Path) -> None:
    lines = compile_c(tmp_path, "arch/x86/kvm/x86.c", "int f(void)\n{\n\tint unused;\n\treturn 0;\n}\n")
    (finding,) = to_findings(read_diagnostics(lines, tmp_path), failed=False, counting=COUNTING)
    assert (finding.file, finding.line, finding.option) == ("arch/x86/kvm/x86.c", 3, "-Wunused-variable")
    assert finding.id == "build:warning:arch/x86/kvm/x86.c:-Wunused-variable"
    assert finding.status == Status.FAIL
    assert finding.evidence, "the source line that gcc shows"


def test_warning_elsewhere_is_shown_and_does_not_count(tmp_path: Path) -> None:
    lines = compile_c(tmp_path, "drivers/x.c", "static int f(void) { return 0; }\n")
    (finding,) = to_findings(read_diagnostics(lines, tmp_path), failed=False, counting=COUNTING)
    assert finding.status == Status.DONE


def test_first_error_only(tmp_path: Path) -> None:
    lines = compile_c(tmp_path, "arch/x86/kvm/x86.c", "int f(void) { return a; }\nint g(void) { return b; }\n")
    lines.append("make[4]: *** [scripts/Makefile.build:250: arch/x86/kvm/x86.o] Error 1")
    findings = to_findings(read_diagnostics(lines, tmp_path), failed=True, counting=COUNTING)
    (finding,) = (one for one in findings if one.id.startswith("build:error:"))
    assert finding.status == Status.FAIL
    assert finding.message.startswith("arch/x86/kvm/x86.c:1: error: ")
    assert "undeclared" in finding.message


def test_a_header_s_warning_counts_once(tmp_path: Path) -> None:
    lines = compile_c(tmp_path, "arch/x86/kvm/a.c", "int f(void) { int unused; return 0; }\n")
    assert len(read_diagnostics([*lines, *lines], tmp_path)) == 1


# scripts/mod/modpost.c, merror() and check_exports()/report_sec_mismatch() of 6.1.
@pytest.mark.parametrize(
    ("line", "kind", "module"),
    [
        ('ERROR: modpost: "sev_platform_init" [arch/x86/kvm/kvm-amd.ko] undefined!', "error", "kvm-amd"),
        (
            "WARNING: modpost: arch/x86/kvm/kvm.o: section mismatch in reference: "
            "a (section: .text) -> b (section: .init.text)",
            "warning",
            "kvm",
        ),
    ],
)
def test_modpost(line: str, kind: str, module: str | None, tmp_path: Path) -> None:
    (one,) = read_diagnostics([line], tmp_path)
    assert (one.tool, one.kind, one.module) == ("modpost", kind, module)
    findings = to_findings([one], failed=kind == "error", counting=COUNTING)
    assert [finding.status for finding in findings] == [Status.FAIL], "modpost looks at what is being judged"


def test_section_mismatches_are_told_by_module_and_not_by_their_sum(tmp_path: Path) -> None:
    """scripts/mod/modpost.c of 6.1, main(): without CONFIG_SECTION_MISMATCH_WARN_ONLY they end the build."""
    where = "section mismatch in reference: a (section: .text) -> b (section: .init.text)"
    lines = [
        f"WARNING: modpost: arch/x86/kvm/kvm.o: {where}",
        "ERROR: modpost: Section mismatches detected.",
        "Set CONFIG_SECTION_MISMATCH_WARN_ONLY=y to allow them.",
        "make[2]: *** [scripts/Makefile.modpost:126: Module.symvers] Error 1",
    ]
    (finding,) = to_findings(read_diagnostics(lines, tmp_path), failed=True, counting=COUNTING)
    assert (finding.status, finding.module) == (Status.FAIL, "kvm")
    assert finding.message == f"modpost: kvm: {where}"


@pytest.mark.parametrize(
    ("line", "machine"),
    [
        ("gcc: fatal error: Killed signal terminated program cc1", True),
        ("cc1: out of memory allocating 65536 bytes after a total of 1 bytes", True),
        ("/bin/sh: 1: zstd: not found", True),
        ("bash: line 1: zstd: command not found", True),
        ("make[3]: *** [../src/scripts/Makefile.build:250: arch/x86/kvm/x86.o] Killed", True),
        ("make[1]: *** [../src/Makefile:1250: vmlinux] Error 137", True),
        ("make[3]: *** [../src/scripts/Makefile.build:250: arch/x86/kvm/x86.o] Error 1", False),
        ("../src/arch/x86/kvm/x86.c:3:1: fatal error: foo.h: No such file or directory", False),
        ('   12 |         pr_err("Cannot allocate memory\\n", undefined);', False),
    ],
)
def test_a_machine_that_failed_is_told_from_source_that_speaks_of_it(line: str, machine: bool) -> None:
    assert (machines_fault(["  CC  x.o", line]) == line) == machine


def test_an_earlier_build_counts_as_is_asked_now(tmp_path: Path) -> None:
    lines = ["../src/drivers/iommu/x.c:3:1: warning: unused variable 'y' [-Wunused-variable]"]
    lines += ["WARNING: modpost: vmlinux.o: section mismatch in reference: a (section: .text) -> b (section: .init)"]
    found = read_diagnostics(lines, tmp_path)
    for before, now, expected in (((), ("drivers/iommu/",), Status.FAIL), (("drivers/",), (), Status.DONE)):
        findings = to_findings(found, failed=False, counting=before)
        again = counted_anew(findings, now)
        assert [one.status for one in again] == [expected, Status.FAIL]
        assert [*again] == to_findings(found, failed=False, counting=now)


def test_id_does_not_move_with_line_numbers(tmp_path: Path) -> None:
    first = compile_c(tmp_path, "virt/a.c", "int f(void) { int u; return 0; }\n")
    later = compile_c(tmp_path, "virt/a.c", "\n\n\nint f(void) { int u; return 0; }\n")
    ids = {
        finding.id
        for lines in (first, later)
        for finding in to_findings(read_diagnostics(lines, tmp_path), failed=False, counting=COUNTING)
    }
    assert len(ids) == 1


def test_make_s_own_error_is_the_last_resort(tmp_path: Path) -> None:
    lines = ["make[1]: *** No rule to make target 'arch/x86/kvm/gone.o'.  Stop."]
    (finding,) = to_findings(read_diagnostics(lines, tmp_path), failed=True, counting=COUNTING)
    assert "No rule to make target" in finding.message


def test_of_a_part_each_error_is_one(tmp_path: Path) -> None:
    """`make -k` goes on behind an error, and what it says last is only that there were some."""
    lines = compile_c(tmp_path, "arch/x86/kvm/x86.c", "int f(void) { return a; }\n")
    lines += compile_c(
        tmp_path, "arch/x86/kvm/mmu/mmu.c", "int g(void) { return b; }\nint h(void) { int c; return 0; }\n"
    )
    lines.append("make[4]: *** [scripts/Makefile.build:250: arch/x86/kvm/x86.o] Error 1")
    diagnostics = read_diagnostics(lines, tmp_path)
    findings = to_findings(diagnostics, failed=True, counting=COUNTING, whole=False)
    assert [one.file for one in findings if one.id.startswith("build:error:")] == [
        "arch/x86/kvm/x86.c",
        "arch/x86/kvm/mmu/mmu.c",
    ]
    assert any(one.option == "-Wunused-variable" for one in findings)
    (only,) = to_findings(read_diagnostics(lines[-1:], tmp_path), failed=True, counting=COUNTING, whole=False)
    assert only.id.startswith("build:error:make:")


def test_modpost_without_a_kernel_tells_of_the_modules_alone(tmp_path: Path) -> None:
    """What modpost said where there was no vmlinux.o, of 6.1; and a section mismatch, which it finds all the same."""
    lines = [
        "WARNING: vmlinux.o is missing.",
        "         You may get many unresolved symbol warnings.",
        'WARNING: modpost: "cr4_read_shadow" [arch/x86/kvm/kvm-amd.ko] undefined!',
        "WARNING: modpost: suppressed 581 unresolved symbol warnings because there were too many)",
        "WARNING: modpost: kvm.o: section mismatch in reference: a (section: .text) -> b (section: .init.text)",
    ]
    diagnostics = read_diagnostics(lines, tmp_path)
    (finding,) = to_findings(diagnostics, failed=False, counting=COUNTING, whole=False)
    assert "section mismatch" in finding.message
    assert len(to_findings(diagnostics, failed=False, counting=COUNTING)) == 3
