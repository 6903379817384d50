"""Protects the reuse of a verdict: a module's essence leaves out what changes with each build, and nothing else."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.elf.essence import essence
from kbuild.elf.object import ElfObject, Section
from kbuild.record import Record
from kbuild.series.judge import kernel_key

LINE, FLAGS = 8, 10
"""Offsets in the first entry of 6.1's bug table: two references of 4 bytes come before (include/asm-generic/bug.h)."""

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def module(kernel_build: Path) -> bytes:
    return (kernel_build / "arch/x86/kvm/kvm.ko").read_bytes()


@pytest.fixture
def changed(module: bytes, tmp_path: Path) -> Callable[[Callable[[bytearray, ElfObject], None]], bool]:
    """Whether a change of a module's bytes changes its essence."""

    def ask(change: Callable[[bytearray, ElfObject], None]) -> bool:
        data = bytearray(module)
        change(data, ElfObject(module))
        assert data != module
        before, after = tmp_path / "before.ko", tmp_path / "after.ko"
        before.write_bytes(module)
        after.write_bytes(data)
        return essence(before) != essence(after)

    return ask


def section(elf: ElfObject, name: str) -> Section:
    return elf.by_name[name]


def flip(name: str, offset: int) -> Callable[[bytearray, ElfObject], None]:
    def change(data: bytearray, elf: ElfObject) -> None:
        data[section(elf, name).offset + offset] ^= 1

    return change


def replace(name: str, old: bytes, new: bytes) -> Callable[[bytearray, ElfObject], None]:
    def change(data: bytearray, elf: ElfObject) -> None:
        one = section(elf, name)
        at = data.index(old, one.offset, one.offset + one.size)
        data[at : at + len(new)] = new

    return change


def test_a_kernel_is_its_own_bytes_and_its_modules_however_they_are_packed(module: bytes, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/kvm.ko").write_bytes(module)
    (tmp_path / "artifacts/kvm.ko.xz").write_bytes(lzma.compress(module, preset=0))

    def key(**artifacts: str) -> str | None:
        named = {name.replace("_", "."): digest for name, digest in artifacts.items()}
        return kernel_key(Record(id="1", task="gate", command="", started="", artifacts=named), tmp_path)

    built = key(bzImage="a", kvm_ko="x", vmlinux="y", config="z")
    assert built is not None
    assert built == key(vmlinuz="a", kvm_ko_xz="other bytes")
    assert built != key(bzImage="b", kvm_ko="x")
    assert key(bzImage="a") is None
    assert key(kvm_ko="x") is None


@pytest.mark.parametrize(
    "change",
    [
        flip(".note.gnu.build-id", 20),
        flip("__bug_table", LINE),
        flip("__bug_table", LINE + 12),
        replace(".modinfo", b"vermagic=6.1", b"vermagic=6.2"),
    ],
)
def test_what_each_build_changes_is_left_out(
    changed: Callable[[Callable[[bytearray, ElfObject], None]], bool], change: Callable[[bytearray, ElfObject], None]
) -> None:
    assert not changed(change)


@pytest.mark.parametrize(
    "change",
    [
        flip(".text", 100),
        flip(".init.text", 10),
        flip(".data", 8),
        flip("__bug_table", FLAGS),
        flip(".rela.text", 8),
        flip(".rela__bug_table", 16),
        replace(".modinfo", b"license=GPL", b"license=GPX"),
        replace(".symtab", bytes(8), b"\1"),
    ],
)
def test_all_else_is_not(
    changed: Callable[[Callable[[bytearray, ElfObject], None]], bool], change: Callable[[bytearray, ElfObject], None]
) -> None:
    assert changed(change)
