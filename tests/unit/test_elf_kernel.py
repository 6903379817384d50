"""Protects what is said of the kernel: its files, read in four ways, have to agree; what they do not say stays open."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kbuild.elf.kernel import KernelImage, read_build, read_kernel
from kbuild.errors import UserError


@pytest.mark.kernel
def test_all_sources_agree(kernel_build: Path) -> None:
    """modpost's list, the linked vmlinux, the one packed into the bzImage, and names alone from System.map."""
    bzimage = kernel_build / "arch/x86/boot/bzImage"
    listed = read_kernel(symvers=kernel_build / "Module.symvers")
    linked = read_kernel(vmlinux=kernel_build / "vmlinux")
    packed = read_kernel(bzimage=bzimage)
    named = read_kernel(system_map=kernel_build / "System.map")
    assert listed.exports
    assert linked.exports == listed.exports
    assert packed.exports == listed.exports
    assert named.exports is not None
    assert {name: export.gpl for name, export in named.exports.items()} == {
        name: export.gpl for name, export in listed.exports.items()
    }
    assert all(export.namespace is None for export in named.exports.values())

    release = (kernel_build / "include/config/kernel.release").read_text().strip()
    assert packed.release == linked.release == release
    kvm = kernel_build / "arch/x86/kvm/kvm.ko"
    vermagic = subprocess.run(["modinfo", "-F", "vermagic", kvm], check=True, capture_output=True, text=True).stdout
    assert packed.vermagic == linked.vermagic == vermagic.strip()

    whole = read_build(kernel_build)
    assert (whole.release, whole.vermagic, whole.exports) == (release, vermagic.strip(), listed.exports)
    assert whole.module_exports["kvm_x86_vendor_init"] == "kvm"
    assert whole.unknown == ()


@pytest.mark.kernel
def test_exports_as_nm(kernel_build: Path) -> None:
    vmlinux = kernel_build / "vmlinux"
    nm = subprocess.run(["nm", vmlinux], check=True, capture_output=True, text=True).stdout
    exports = read_kernel(vmlinux=vmlinux).exports
    assert exports is not None
    assert set(exports) == set(re.findall(r" __ksymtab_(\w+)$", nm, re.MULTILINE))


@pytest.mark.kernel
def test_a_broken_kernel_is_said(kernel_build: Path, tmp_path: Path) -> None:
    data = (kernel_build / "arch/x86/boot/bzImage").read_bytes()
    cut = tmp_path / "bzImage"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="payload cannot be read"):
        read_kernel(bzimage=cut)
    with pytest.raises(UserError, match="not a linked vmlinux"):
        read_kernel(vmlinux=kernel_build / "arch/x86/kvm/kvm.ko")


def test_a_payload_in_an_unknown_format_stays_open(tmp_path: Path) -> None:
    """A setup header by hand (Documentation/arch/x86/boot.rst) with LZO's magic behind it."""
    header = bytearray(0x400)
    header[0x1F1] = 1
    header[0x202:0x208] = b"HdrS\x0f\x02"
    header[0x20E:0x210] = (0x100).to_bytes(2, "little")
    header[0x300:0x320] = b"6.1.192 (me@here) #1 SMP\0".ljust(0x20, b"\0")
    header[0x248:0x250] = (0).to_bytes(4, "little") + (9).to_bytes(4, "little")
    bzimage = tmp_path / "bzImage"
    bzimage.write_bytes(bytes(header) + b"\x89LZO\0\r\n\x1a\n")
    image = read_kernel(bzimage=bzimage)
    assert (image.release, image.vermagic, image.exports) == ("6.1.192", None, None)
    assert len(image.unknown) == 1
    assert "unknown format" in image.unknown[0]


@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(0x300), b"#!/bin/sh\n" * 100])
def test_what_is_no_bzimage_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a bzImage"):
        read_kernel(bzimage=path)


def test_module_symvers(tmp_path: Path) -> None:
    path = tmp_path / "Module.symvers"
    path.write_text(
        "0x12345678\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x00000000\tasm_symbol\tvmlinux\tEXPORT_SYMBOL_GPL\tNS\n"
        "0x9abcdef0\tsev_platform_init\tdrivers/crypto/ccp/ccp\tEXPORT_SYMBOL_GPL\t\n"
    )
    image = read_kernel(symvers=path)
    assert image.exports is not None
    assert {(e.name, e.gpl, e.namespace, e.crc) for e in image.exports.values()} == {
        ("_printk", False, "", 0x12345678),
        ("asm_symbol", True, "NS", 0),
    }
    assert image.module_exports == {"sev_platform_init": "ccp"}
    path.write_text("0x12345678\t_printk\tvmlinux\tEXPORT_SYMBOL\t\nnonsense\n")
    with pytest.raises(UserError, match=r"Module\.symvers:2: not a line"):
        read_kernel(symvers=path)
    path.write_text("crc\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n")
    with pytest.raises(UserError, match="1: 'crc' is not a CRC"):
        read_kernel(symvers=path)


def test_debians_system_map_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n")
    image = read_kernel(system_map=path)
    assert image.exports is None
    assert str(path) in image.unknown[0]


def test_nothing_is_known_of_nothing() -> None:
    assert read_kernel() == KernelImage(
        unknown=("the kernel's exports: none of Module.symvers, vmlinux, bzImage, System.map gives them",)
    )
