"""Protects the line between "the kernel is wrong" and "the host may not be able to": what a host was seen to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from kbuild.dmesg import signatures
from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.load.knowledge import Knowledge
from kbuild.load.request import LoadRequest


def test_what_was_seen_holds_for_the_kind_of_kernel_the_host_and_its_emulator(tmp_path: Path) -> None:
    Knowledge("bochs-vmx", "d1", tmp_path).note("load:kvm_intel", "6.1", "run-1")
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_intel", "6.1") == "run-1"
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_intel", "6.12") is None
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_intel", "6.1-rt") is None
    assert Knowledge("bochs-vmx", "d2", tmp_path).has_done("load:kvm_intel", "6.1") is None
    assert Knowledge("other", "d1", tmp_path).has_done("load:kvm_intel", "6.1") is None
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_amd", "6.1") is None


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("release", "flags", "kind"),
    [
        ("6.12.117+deb13-amd64", "SMP preempt mod_unload modversions", "6.12"),
        ("6.12.117+deb13-rt-amd64", "SMP preempt_rt mod_unload modversions", "6.12-rt"),
        ("7.3-rc7", "mod_unload", "7.3"),
    ],
)
def test_kinds_of_kernels(kernel_build: Path, release: str, flags: str, kind: str) -> None:
    image = read_module(kernel_build / "arch/x86/kvm/kvm.ko")
    modules = ModuleSet.of([msgspec.structs.replace(image, vermagic=f"{release} {flags}")], None)
    request = LoadRequest(
        kernel=Path(),
        release=release,
        modules=modules,
        orders=(),
        hosts=(),
        command_line=(),
        signatures=signatures.load(),
        agent=Path(),
        run="r",
        folder=Path(),
        again=lambda *_: "",
    )
    assert request.kind == kind


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    def note(number: int) -> None:
        Knowledge("h", "d", tmp_path).note(f"load:m{number}", "6.1", f"run-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    seen = Knowledge("h", "d", tmp_path)
    assert [seen.has_done(f"load:m{n}", "6.1") for n in range(40)] == [f"run-{n}" for n in range(40)]


def test_a_damaged_file_is_no_knowledge(tmp_path: Path) -> None:
    Knowledge("h", "d", tmp_path).note("load:m", "6.1", "r")
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(b"{")
    assert Knowledge("h", "d", tmp_path).has_done("load:m", "6.1") is None


def test_how_slow_the_last_boot_was_is_kept(tmp_path: Path) -> None:
    seen = Knowledge("h", "d", tmp_path)
    assert seen.slowness() is None
    seen.note("load:m", "6.1", "r")
    seen.note_slowness(3.14159)
    seen.note_slowness(1.5)
    assert Knowledge("h", "d", tmp_path).slowness() == 1.5
    assert seen.has_done("load:m", "6.1") == "r"
