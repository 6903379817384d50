"""What is known of the kernel that modules are for. What is not known is said, with the reason, and never guessed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from kbuild.elf import contents
from kbuild.elf.contents import MalformedError
from kbuild.elf.exports import Export, exports_of
from kbuild.elf.object import ElfObject, printable
from kbuild.errors import UserError

_BANNER = re.compile(rb"Linux version (\S{1,255}) \(")
"""linux_banner, init/version-timestamp.c."""
_RELEASE_LIMIT = 256
MAX_VMLINUX = 1 << 30
"""Bytes. With debug information a distribution's vmlinux has some 500 MB."""
_SETUP_SECTOR = 512
_PAYLOAD_PROTOCOL = 0x208


class KernelImage(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel, as far as the files at hand tell."""

    release: str | None = None
    """As `uname -r` says it."""
    realtime: bool = False
    """PREEMPT_RT, as its banner says (init/Makefile); the vermagic calls it `preempt` in some kernels."""
    smp: bool = False
    """It can have more than one CPU; as its banner says."""
    vermagic: str | None = None
    """What the module loader compares with, without blanks at its end."""
    exports: Mapping[str, Export] | None = None
    """What the kernel itself exports, by name."""
    module_exports: Mapping[str, str] = {}
    """Which module exports a symbol, by Module.symvers: symbol to name of the module."""
    btf: bytes | None = None
    """Its `.BTF` section, which the types of its modules build on."""
    sources: tuple[str, ...] = ()
    """What is known from which file, one line each."""
    unknown: tuple[str, ...] = ()
    """What is not known and why, one line each."""


def read_kernel(
    *,
    bzimage: Path | None = None,
    vmlinux: Path | None = None,
    symvers: Path | None = None,
    system_map: Path | None = None,
) -> KernelImage:
    """Read what there is of one kernel.

    Exports come from the first of these that has them: Module.symvers, vmlinux, the vmlinux packed into the bzImage,
    System.map (which knows no namespaces and no CRCs). Release and vermagic: vmlinux, then bzImage. That the files
    belong together is the caller's to know, but for the release of bzImage and vmlinux, which is compared.
    Raises UserError for a file that cannot be read as what it is given as.
    """
    sources: list[str] = []
    unknown: list[str] = []
    banner = _bzimage_banner(bzimage) if bzimage else []
    release = banner[0] if banner else None
    if release:
        sources.append(f"release: {bzimage}")

    elf: ElfObject | None = None
    if vmlinux:
        elf = _open_vmlinux(vmlinux)
    elif bzimage:
        elf = _packed_vmlinux(bzimage, unknown)
    origin = vmlinux or bzimage
    vermagic: str | None = None
    if elf:
        inside = _release_in(elf)
        if release and inside and inside != release:
            raise UserError(f"{bzimage} is release {release} and {vmlinux} is {inside}: give files of one build")
        release = release or inside
        vermagic = _vermagic_in(elf, release)
        if vermagic:
            sources.append(f"vermagic: {origin}")
        else:
            unknown.append(f"the kernel's vermagic: found no such string in {origin}")

    exports: dict[str, Export] | None = None
    module_exports: dict[str, str] = {}
    if symvers:
        exports, module_exports = _read_symvers(symvers)
        sources.append(f"exports: {symvers}")
    if exports is None and elf and origin:
        exports = _exports_in(elf, origin)
        if exports is not None:
            sources.append(f"exports: {origin}")
    if exports is None and system_map:
        exports = _read_system_map(system_map)
        if exports is not None:
            sources.append(f"exports (names only): {system_map}")
        else:
            unknown.append(f"the kernel's exports: {system_map} lists none")
    if exports is None and not any(line.startswith("the kernel's exports") for line in unknown):
        unknown.append("the kernel's exports: none of Module.symvers, vmlinux, bzImage, System.map gives them")
    return KernelImage(
        release=release,
        realtime="PREEMPT_RT" in banner,
        smp="SMP" in banner,
        vermagic=vermagic,
        exports=exports,
        module_exports=module_exports,
        btf=elf.content(elf.by_name.get(".BTF")) or None if elf else None,
        sources=tuple(sources),
        unknown=tuple(unknown),
    )


def read_build(folder: Path) -> KernelImage:
    """Read the kernel of a build folder (`O=`): of Module.symvers, vmlinux, bzImage and System.map what is there."""
    there = {
        name: folder / place
        for name, place in (
            ("symvers", "Module.symvers"),
            ("vmlinux", "vmlinux"),
            ("bzimage", "arch/x86/boot/bzImage"),
            ("system_map", "System.map"),
        )
        if (folder / place).is_file()
    }
    return read_kernel(**there)


def kernel_identity(bzimage: Path) -> tuple[str, str]:
    """What `uname -r` and `uname -v` print where that kernel runs: two builds of a release differ in the second.

    Raises UserError for what is no bzImage.
    """
    release, *words = _bzimage_banner(bzimage)
    # `6.1.192-kbuild (user@host) #1 SMP …`: scripts/mkcompile_h, init/version.c.
    return release, " ".join(words).partition(") ")[2]


def _bzimage_banner(path: Path) -> list[str]:
    """The words of the setup header's kernel_version (Documentation/x86/boot.rst, offset 0x20e), the release first."""
    header = contents.read(path)[: 1 << 17]
    if len(header) < 0x250 or header[0x202:0x206] != b"HdrS":
        raise UserError(f"{path}: not a bzImage: it has no setup header")
    (pointer,) = struct.unpack_from("<H", header, 0x20E)
    text = header[pointer + 0x200 :][:_RELEASE_LIMIT].partition(b"\0")[0] if pointer else b""
    words = printable(text).split()
    if not words:
        raise UserError(f"{path}: a bzImage whose setup header names no kernel version")
    return words


def _packed_vmlinux(path: Path, unknown: list[str]) -> ElfObject | None:
    """The vmlinux that a bzImage unpacks at boot: stripped, but with its sections (payload_offset, 0x248)."""
    data = contents.read(path)
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    if protocol < _PAYLOAD_PROTOCOL:
        unknown.append(f"the kernel's exports and vermagic: {path} does not say where its payload is")
        return None
    start, length = struct.unpack_from("<II", data, 0x248)
    start += ((data[0x1F1] or 4) + 1) * _SETUP_SECTOR
    payload = data[start : start + length]
    try:
        unpacked = contents.decompressed(payload)
        if unpacked is payload and payload[:4] != b"\x7fELF":
            unknown.append(f"the kernel's exports and vermagic: the payload of {path} is packed in an unknown format")
            return None
        return ElfObject(unpacked)
    except MalformedError as problem:
        raise UserError(f"{path}: its payload cannot be read: {problem}") from None


def _open_vmlinux(path: Path) -> ElfObject:
    try:
        elf = ElfObject(contents.read(path, MAX_VMLINUX))
    except MalformedError as problem:
        raise UserError(f"{path}: {problem}") from None
    if elf.relocatable:
        raise UserError(f"{path}: a relocatable object, not a linked vmlinux")
    return elf


def _exports_in(elf: ElfObject, origin: Path) -> dict[str, Export] | None:
    try:
        exports = exports_of(elf)
    except MalformedError as problem:
        raise UserError(f"{origin}: {problem}") from None
    return {export.name: export for export in exports} or None


def _strings_of(elf: ElfObject) -> Iterable[bytes]:
    return (elf.content(section) for section in elf.sections if section.name.startswith(".rodata"))


def _release_in(elf: ElfObject) -> str | None:
    found = {match[1] for content in _strings_of(elf) for match in _BANNER.finditer(content)}
    return printable(found.pop()) if len(found) == 1 else None


def _vermagic_in(elf: ElfObject, release: str | None) -> str | None:
    """VERMAGIC_STRING (include/linux/vermagic.h, 6.1): the release, then words that each end in a blank."""
    if release is None:
        return None
    words = rb"(?:(?:SMP|preempt|preempt_rt|mod_unload|modversions|RANDSTRUCT_\w+) ?)*"
    pattern = re.compile(rb"(?<![\x20-\x7e])(" + re.escape(release.encode()) + rb" " + words + rb")\0")
    found = {match[1].rstrip() for content in _strings_of(elf) for match in pattern.finditer(content)}
    return printable(found.pop()) if len(found) == 1 else None


def _read_symvers(path: Path) -> tuple[dict[str, Export], dict[str, str]]:
    """Module.symvers: CRC, symbol, owner, kind, namespace, with tabs between (scripts/mod/modpost.c, write_dump()).

    Without CONFIG_MODVERSIONS each CRC is 0x00000000, which is none.
    """
    kernel: dict[str, Export] = {}
    modules: dict[str, str] = {}
    any_crc = False
    for number, line in enumerate(contents.read(path).decode("utf-8", "replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) not in (4, 5) or not fields[3].startswith("EXPORT_"):
            raise UserError(f"{path}:{number}: not a line of Module.symvers: CRC, symbol, module, kind, namespace")
        try:
            crc = int(fields[0], 16)
        except ValueError:
            raise UserError(f"{path}:{number}: '{fields[0]}' is not a CRC") from None
        any_crc = any_crc or crc != 0
        name, owner, kind = fields[1:4]
        if owner == "vmlinux":
            kernel[name] = Export(name, "_GPL" in kind, fields[4] if len(fields) == 5 else "", crc)
        else:
            modules[name] = owner.rpartition("/")[2].removesuffix(".ko")
    if not any_crc:
        kernel = {name: msgspec.structs.replace(export, crc=None) for name, export in kernel.items()}
    return kernel, modules


def _read_system_map(path: Path) -> dict[str, Export] | None:
    """Exports from the symbols `__ksymtab_NAME`; Debian ships a System.map of one line, which has none."""
    places: dict[str, int] = {}
    for number, line in enumerate(contents.read(path).decode("utf-8", "replace").splitlines(), 1):
        fields = line.split(maxsplit=2)
        if len(fields) != 3 or re.fullmatch(r"[0-9a-fA-F]+", fields[0]) is None:
            raise UserError(f"{path}:{number}: not a line of System.map: address, type, symbol")
        if "___ksymtab" in fields[2] or fields[2].startswith("__ksymtab_"):
            places[fields[2]] = int(fields[0], 16)
    first, end = (places.get(f"__{which}___ksymtab_gpl", 0) for which in ("start", "stop"))
    exports = {
        name: Export(name, first <= place < end, namespace=None)
        for symbol, place in places.items()
        if symbol.startswith("__ksymtab_") and (name := symbol.removeprefix("__ksymtab_"))
    }
    return exports or None
