"""Protects host files: each CPU model is what its file says, and one that is not is never the kernel's fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kbuild.hosts.nested import hindrance
from kbuild.hosts.qemu import PROGRAM
from kbuild.paths import PROJECT
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

HOSTS = sorted(path.stem for path in (PROJECT / "profiles/hosts").glob("*.toml"))
NESTED = {"qemu-kvm-svm", "qemu-kvm-vmx"}
"""What becomes of these depends on the machine that runs the tests."""
ELSEWHERE = {"qemu-svm", "bochs-vmx"}
"""Whose turn it is where all orders are run."""


def folder_of(kernel_build: Path, folder: Path) -> Path:
    """KVM's modules, linked."""
    for path in (*(kernel_build / "arch/x86/kvm").glob("*.ko"), *(kernel_build / "virt/lib").glob("*.ko")):
        (folder / path.name).symlink_to(path)
    return folder


def test_each_cpu_model_gives_what_its_file_says(shared_tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    """By what KVM found in CPUID and MSRs; and guests run on each, with and without what it gives."""
    kernel = kernel_build / "arch/x86/boot/bzImage"
    hosts = [word for name in HOSTS if name not in ELSEWHERE for word in ("--host", name)]
    words = ("--modules", folder_of(kernel_build, tmp_path), "--kernel", kernel, "--order", "host-gives")
    done = shared_tool.run("load", *words, *hosts, "--json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["verdict"]) == (0, "PASS"), data["findings"]
    outcomes = {one["host"]: (one["status"], one["reason"] or "") for one in data["transcripts"]}
    for host in NESTED:
        status, reason = outcomes.pop(host)
        assert status == "PASS" or (status == "SKIP" and reason.startswith("no nested virtualization: "))
    assert outcomes == dict.fromkeys({*HOSTS} - ELSEWHERE - NESTED, ("PASS", ""))


@pytest.mark.parametrize(
    ("cpu", "feature", "says"),
    [
        ("EPYC,+svm", "svm", None),
        ("EPYC,-svm", "svm", "no nested virtualization: the guest's CPU has no svm"),
        ("EPYC,+svm", "vmx", "no nested virtualization: the guest's CPU has no vmx"),
        ("no-such-cpu", "svm", "no nested virtualization: QEMU does not run a guest with tcg: .*no-such-cpu.*"),
    ],
)
def test_a_guest_says_whether_it_has_svm(cpu: str, feature: str, says: str | None) -> None:
    """With TCG, which can be made to have it or not."""
    found = hindrance(PROGRAM, cpu, feature, "tcg")
    assert found == says if says is None or found is None else re.fullmatch(says, found)


def test_a_host_that_is_not_what_its_file_says(tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    """In CPUID: it is seen at boot. In an MSR: KVM tells."""
    kernel = kernel_build / "arch/x86/boot/bzImage"
    ours = (PROJECT / "profiles/hosts/qemu-svm.toml").read_text()
    lies = tmp_path / "lies.toml"
    lies.write_text(ours.replace('"qemu-svm"', '"lies"').replace("EPYC,+svm", "EPYC,+svm,-npt"))
    folder = tmp_path / "modules"
    folder.mkdir()
    words = ("--modules", folder_of(kernel_build, folder), "--kernel", kernel, "--order", "host-gives")
    done = tool.run("load", *words, "--host", lies, "--json")
    (transcript,) = json.loads(done.stdout)["transcripts"]
    assert (done.returncode, transcript["status"]) == (3, "MISS")
    assert transcript["reason"] == "the host is not what its file says: its CPU has no npt, and gives says so"
