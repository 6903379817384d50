"""Protects the line between "the kernel is wrong" and "the host may not be able to": what a host was seen to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kbuild.dmesg import signatures
from kbuild.elf.kernel import read_kernel
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


@pytest.mark.parametrize(
    ("banner", "kind"),
    [
        # What strings finds in the setup headers of Debian's kernels.
        ("6.1.0-56-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-12)", "6.1"),
        ("6.12.117+deb13-rt-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_RT Debian 6.12.117-1", "6.12-rt"),
        ("7.3-rc7 (kvm-kbuild@kvm-kbuild) #1", "7.3"),
    ],
)
def test_kinds_of_kernels(tmp_path: Path, banner: str, kind: str) -> None:
    header = bytearray(0x600)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    header[0x300 : 0x300 + len(banner)] = banner.encode()
    (tmp_path / "bzImage").write_bytes(header)
    kernel = read_kernel(bzimage=tmp_path / "bzImage")
    assert kernel.release is not None
    modules = ModuleSet.of([], kernel)
    request = LoadRequest(
        kernel=Path(),
        release=kernel.release,
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
