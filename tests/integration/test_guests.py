"""Protects what the guests are for: each finds a defect of KVM that no load and no other kind of guest shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kbuild.load.guests import SmokeKind
from tests.integration.conftest import Tool
from tests.integration.test_gate import diff

pytestmark = pytest.mark.kernel

NEXT_DESCRIPTOR = "\t\titer->desc = iter->desc->more;\n"
DEFECTS: dict[SmokeKind, tuple[str, str, str]] = {
    # Write protection then ends after the first descriptor of a reverse map.
    SmokeKind.ALIASES: ("mmu/mmu.c", NEXT_DESCRIPTOR, NEXT_DESCRIPTOR.replace("iter->desc->more", "NULL")),
    SmokeKind.PAGE_FAULTS: (
        "mmu/paging_tmpl.h",
        "walker->fault.error_code = errcode;",
        "walker->fault.error_code = errcode & ~PFERR_WRITE_MASK;",
    ),
    SmokeKind.CPUID: ("cpuid.c", "kvm_rdx_write(vcpu, edx);", "kvm_rdx_write(vcpu, ecx);"),
    SmokeKind.TIMER: (
        "lapic.c",
        "\tif (atomic_read(&apic->lapic_timer.pending))\n\t\treturn;\n\n\tif (apic_lvtt",
        "\tif (vcpu)\n\t\treturn;\n\n\tif (apic_lvtt",
    ),
    SmokeKind.REGISTERS: ("x86.c", "kvm_r12_write(vcpu, regs->r12);", "kvm_r12_write(vcpu, regs->r13);"),
    SmokeKind.TWO_VCPUS: (
        "x86.c",
        "kvm_rdi_write(vcpu, regs->rdi);",
        "kvm_rdi_write(vcpu, vcpu->vcpu_id ? 0 : regs->rdi);",
    ),
}
"""File, text and what it becomes: each is a defect that this kind of guest shows and no other one."""


@pytest.fixture
def patch(kernel_source: Path, tmp_path: Path) -> Path:
    """All defects at once: one build, one boot."""

    def change(file: str) -> Callable[[str], str]:
        def made(text: str) -> str:
            for name, old, new in DEFECTS.values():
                assert name != file or text.count(old) == 1, f"{name}: {old}"
                text = text.replace(old, new) if name == file else text
            return text

        return made

    path = tmp_path / "defects.patch"
    path.write_text(diff(kernel_source, {file: change(file) for file, _, _ in DEFECTS.values()}))
    return path


def test_each_defect_is_shown_by_its_own_kind_of_guest(shared_tool: Tool, patch: Path) -> None:
    orders = ("--order", "vendor-alone", "--order", "guests-tdp-off")
    sound = shared_tool.run("gate", *orders, "--json")
    assert sound.returncode == 0, sound.stdout
    done = shared_tool.run("gate", "--patch", patch, *orders, "--json")
    assert done.returncode == 10, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    for host in ("qemu-svm", "bochs-vmx"):
        of = {one["order"]: one for one in data["transcripts"] if one["host"] == host}
        assert of["vendor-alone"]["status"] == "PASS"
        smokes = [step for step in of["guests-tdp-off"]["steps"] if step["action"] == "smoke"]
        assert {step["detail"]["kind"]: step["status"] for step in smokes} == {
            kind.value: "FAIL" if kind in DEFECTS else "PASS" for kind in SmokeKind
        }
        ids = {one["id"] for one in data["findings"] if one["host"] == host and one["status"] == "FAIL"}
        assert ids == {f"load:smoke:{kind}:guests-tdp-off/3-smoke" for kind in DEFECTS}
