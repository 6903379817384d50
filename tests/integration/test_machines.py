"""Protects host files: each CPU model is what its file says, and one that is not is never the kernel's fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbuild.paths import PROJECT
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

HOSTS = sorted(path.stem for path in (PROJECT / "profiles/hosts").glob("*.toml"))
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
    assert {one["host"]: one["status"] for one in data["transcripts"]} == dict.fromkeys({*HOSTS} - ELSEWHERE, "PASS")


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
