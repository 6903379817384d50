"""Protects the step `selftest`: programs of a real tree run on both emulators, and each way to end is told apart."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kbuild.paths import PROJECT
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

KVM = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko")
ENDS = ("passes", "fails", "skips", "crashes", "leaves_a_child", "says_much")
ORDER = """\
id = "{id}"
title = "x"
modules = ["{{vendor}}"]

[[step]]
load = "{{vendor}}"

[[step]]
selftest = {tests}

[[step]]
selftest = ["hangs"]
seconds = 2

[[step]]
unload = "{{vendor}}"

[[step]]
check = "footprint"
"""


def results(data: dict[str, Any], host: str) -> dict[str, dict[str, Any]]:
    (transcript,) = (one for one in data["transcripts"] if one["host"] == host)
    return {step["detail"]["test"]: step for step in transcript["steps"] if step["action"] == "selftest"}


def test_programs_of_the_tree_are_built_and_run(tmp_path: Path, tool: Tool) -> None:
    """One each for both vendors, one for Intel's only, one that the tree does not have, one that QEMU cannot."""
    tests = ["sync_regs_test", "vmx_msrs_test", "debug_regs", "no_such_test", "svm_vmcall_tes?"]
    (tmp_path / "some.toml").write_text(ORDER.format(id="some", tests=json.dumps(tests)))
    done = tool.run("gate", "--order", tmp_path / "some.toml", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    outcomes = {
        host: {name: step["status"] for name, step in results(data, host).items()} for host in ("qemu-svm", "bochs-vmx")
    }
    assert outcomes["qemu-svm"] == {
        "sync_regs_test": "PASS",
        "vmx_msrs_test": "SKIP",
        "debug_regs": "SKIP",
        "no_such_test": "SKIP",
        "svm_vmcall_test": "PASS",
        "hangs": "SKIP",
    }
    assert outcomes["bochs-vmx"]["sync_regs_test"] == outcomes["bochs-vmx"]["vmx_msrs_test"] == "PASS"
    assert outcomes["bochs-vmx"]["svm_vmcall_test"] == "SKIP"
    amd = results(data, "qemu-svm")
    assert "it skipped itself: Requirement not met: kvm_cpu_has(X86_FEATURE_VMX)" in amd["vmx_msrs_test"]["reason"]
    assert "qemu-svm cannot run it: " in amd["debug_regs"]["reason"]
    assert amd["no_such_test"]["reason"].endswith("tools/testing/selftests/kvm has no such test for x86")
    # What the run keeps is enough to do it again.
    again = next(one["reproduce"] for one in data["transcripts"] if one["host"] == "qemu-svm")
    done = tool.run(*shlex.split(again)[1:], "--json")
    assert done.returncode == 0, done.stderr
    second = {name: step["status"] for name, step in results(json.loads(done.stdout), "qemu-svm").items()}
    assert second == outcomes["qemu-svm"]


@pytest.fixture
def ends(tmp_path: Path, kernel_build: Path) -> list[str | Path]:
    """The words of a load with programs that end in every way."""
    folder, modules = tmp_path / "ends", tmp_path / "modules"
    folder.mkdir()
    modules.mkdir()
    program = folder / ENDS[0]
    argv = ["gcc", "-static", "-o", str(program), str(PROJECT / "tests/data/selftests.c")]
    subprocess.run(argv, check=True)
    for name in (*ENDS[1:], "hangs"):
        shutil.copy(program, folder / name)
    for name in KVM:
        shutil.copy(kernel_build / name, modules)
    (tmp_path / "ends.toml").write_text(ORDER.format(id="ends", tests=json.dumps(ENDS)))
    kernel = kernel_build / "arch/x86/boot/bzImage"
    given: list[str | Path] = ["--modules", modules, "--kernel", kernel, "--selftests", folder]
    return [*given, "--host", "qemu-svm", "--order", tmp_path / "ends.toml"]


def test_each_way_to_end_is_told_apart(tool: Tool, ends: list[str | Path]) -> None:
    done = tool.run("load", *ends, "--json")
    # Nothing is known of this host yet: what fails may be the emulator's fault.
    assert done.returncode == 3, done.stderr
    data = json.loads(done.stdout)
    tests = results(data, "qemu-svm")
    assert {name: step["status"] for name, step in tests.items()} == {
        "passes": "PASS",
        "fails": "ERROR",
        "skips": "SKIP",
        "crashes": "ERROR",
        "leaves_a_child": "PASS",
        "says_much": "PASS",
        "hangs": "ERROR",
    }
    assert "it failed with status 254: fails.c:7: one == two; no kernel of this kind" in tests["fails"]["reason"]
    assert tests["skips"]["reason"].endswith("it skipped itself: Requirement not met: a moon")
    assert "it crashed: SIGSEGV" in tests["crashes"]["reason"]
    assert "it did not end within 2 s" in tests["hangs"]["reason"]
    said = tests["says_much"]["output"]
    assert (said[0], said[-1]) == ("line 0", "line 19999"), "the beginning and the end"
    assert len(said) < 6000
    assert tests["says_much"]["detail"]["cut"].endswith("bytes in the middle of the output")
    (transcript,) = data["transcripts"]
    assert transcript["steps"][-1]["detail"]["what"] == "footprint", "a child that is left keeps no module busy"
    assert transcript["steps"][-1]["status"] == "PASS"
    ids = {one["id"]: one for one in data["findings"]}
    assert ids.keys() == {
        "load:selftest:fails:ends/2-selftest",
        "load:selftest-crash:crashes:ends/2-selftest",
        "load:selftest:hangs:ends/3-selftest",
    }
    assert ids["load:selftest:fails:ends/2-selftest"]["evidence"][1] == "  fails.c:7: one == two"


def test_a_machine_that_a_test_takes_down_is_not_the_kernels_fault_yet(tool: Tool, ends: list[str | Path]) -> None:
    folder, order = Path(ends[5]), Path(ends[-1])
    order.write_text(ORDER.format(id="ends", tests='["takes_the_machine_down"]'))
    shutil.copy(folder / "passes", folder / "takes_the_machine_down")
    done = tool.run("load", *ends)
    assert done.returncode == 3, done.stderr
    assert "the machine went off without being asked to; no kernel of this kind was seen to pass it" in done.stdout


def test_a_test_that_was_seen_to_pass_here_is_the_kernels_to_answer_for(tool: Tool, ends: list[str | Path]) -> None:
    """Another program of the same name fails where this one passed before."""
    folder = Path(ends[5])
    order = Path(ends[-1])
    order.write_text(ORDER.format(id="ends", tests='["changes"]'))
    (folder / "hangs").unlink()
    shutil.copy(folder / "passes", folder / "changes")
    assert tool.run("load", *ends).returncode == 0
    (folder / "changes").unlink()
    source = b"int main(void) { return 1; }"
    subprocess.run(["gcc", "-static", "-o", str(folder / "changes"), "-x", "c", "-"], input=source, check=True)
    done = tool.run("load", *ends)
    assert done.returncode == 10
    assert "selftest changes: it failed with status 1: it said nothing; qemu-svm has seen it pass" in done.stdout
    assert "\nends   changes   FAIL" in done.stdout
