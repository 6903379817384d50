"""Protects what is read from one module file: against binutils and kmod on the same file, and against broken files."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
import zstandard

from kbuild.elf.contents import MalformedError, decompressed
from kbuild.elf.image import ModuleImage, parse_module, read_module
from kbuild.errors import UserError

MODULES = (
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-intel.ko",
    "arch/x86/kvm/kvm-amd.ko",
    "virt/lib/irqbypass.ko",
)


def said_by(*argv: str | Path) -> list[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


@pytest.fixture(params=MODULES)
def module_path(request: pytest.FixtureRequest, kernel_build: Path) -> Path:
    return kernel_build / str(request.param)


@pytest.mark.kernel
def test_sections_as_readelf(module_path: Path) -> None:
    row = re.compile(r"\s*\[\s*(\d+)\] (\S*)\s+([A-Z_0-9]+)\s+[0-9a-f]{16} [0-9a-f]+ ([0-9a-f]+) \w+\s+([A-Z]*)\s+\d")
    expected = [
        (int(match[1]), match[2], match[3], int(match[4], 16), match[5])
        for line in said_by("readelf", "-SW", module_path)
        if (match := row.match(line)) and match[3] != "NULL"
    ]
    sections = read_module(module_path).sections
    assert [(s.index, s.name, s.kind, s.size, s.flags) for s in sections] == expected


@pytest.mark.kernel
def test_symbols_and_imports_as_nm(module_path: Path) -> None:
    image = read_module(module_path)
    symbols = {
        (symbol.name, symbol.value)
        for symbol in image.symbols
        if symbol.defined and symbol.kind not in ("section", "file") and symbol.name
    }
    nm = [line.split() for line in said_by("nm", "--special-syms", module_path)]
    assert symbols == {(fields[2], int(fields[0], 16)) for fields in nm if len(fields) == 3}
    assert {used.name: used.weak for used in image.imports} == {
        fields[1]: fields[0] == "w" for fields in nm if len(fields) == 2
    }


@pytest.mark.kernel
def test_parts_are_the_loaders(module_path: Path) -> None:
    image = read_module(module_path)
    for section in image.sections:
        if "A" not in section.flags or section.name == ".modinfo":
            assert section.part == "not loaded"
        elif section.name.startswith((".init", ".exit")):
            assert section.part == section.name[1:5]
        else:
            assert section.part == "core"
    assert image.bytes_in("init") == image.bytes_in("init", "text") + image.bytes_in("init", "data")
    functions = {symbol.name: symbol for symbol in image.symbols if symbol.kind == "func"}
    parts = {section.index: section.part for section in image.sections}
    if (init := functions.get("init_module")) and init.section and image.name != "irqbypass":
        assert parts[init.section] == "init"


@pytest.mark.kernel
def test_exports_as_modpost_wrote_them(module_path: Path, kernel_build: Path) -> None:
    owner = str(module_path.relative_to(kernel_build).with_suffix(""))
    expected = {
        (name, kind == "EXPORT_SYMBOL_GPL", namespace)
        for line in (kernel_build / "Module.symvers").read_text().splitlines()
        for _, name, where, kind, namespace in [line.split("\t")]
        if where == owner
    }
    exports = read_module(module_path).exports
    assert {(export.name, export.gpl, export.namespace) for export in exports} == expected
    assert len(exports) == len(expected)


@pytest.mark.kernel
def test_modinfo_as_kmod(module_path: Path) -> None:
    image = read_module(module_path)

    def field(name: str) -> str:
        return "\n".join(said_by("modinfo", "-F", name, module_path)).rstrip()

    assert image.vermagic == field("vermagic")
    assert ",".join(image.depends) == field("depends")
    assert image.license == field("license")
    assert image.kernel_name == field("name")
    assert image.in_tree is (field("intree") == "Y")
    # kmod prints a type behind each parameter: `name:type` or `name:description (type)`.
    assert {parameter.name for parameter in image.parameters} == {
        line.partition(":")[0] for line in said_by("modinfo", "-F", "parm", module_path)
    }
    types = {line.partition(":")[0]: line for line in said_by("modinfo", "-F", "parm", module_path)}
    for parameter in image.parameters:
        assert parameter.type is None or types[parameter.name].endswith((f":{parameter.type}", f"({parameter.type})"))


@pytest.mark.kernel
def test_how_it_was_built_and_packed(module_path: Path, tmp_path: Path) -> None:
    fields = dict(line.split(": ", 1) for line in said_by("modinfo", module_path) if ": " in line)
    sections = "\n".join(said_by("readelf", "-SW", module_path))
    packed = tmp_path / f"{module_path.name}.xz"
    packed.write_bytes(lzma.compress(module_path.read_bytes() + b"~Module signature appended~\n", preset=0))
    plain, other = read_module(module_path).traits, read_module(packed).traits
    assert other == ("xz-compressed", "signed", *plain)
    for trait, there in {
        "retpolines": fields.get("retpoline", "").strip() == "Y",
        "modversions": "modversions" in fields["vermagic"],
        "BTF": " .BTF " in sections,
        "DWARF": " .debug_info " in sections,
        "ftrace": " __mcount_loc " in sections,
        "out of tree": False,
    }.items():
        assert (trait in plain) is there, trait


@pytest.mark.kernel
def test_build_id_as_readelf(module_path: Path) -> None:
    notes = "\n".join(said_by("readelf", "-nW", module_path))
    build_id = re.search(r"Build ID: ([0-9a-f]+)", notes)
    assert read_module(module_path).build_id == (build_id[1] if build_id else None)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("xz", lzma.compress), ("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)],
)
def test_compressed_is_the_same_module(kernel_build: Path, tmp_path: Path, suffix: str, compress: object) -> None:
    plain = kernel_build / MODULES[2]
    packed = tmp_path / f"kvm-amd.ko.{suffix}"
    assert callable(compress)
    packed.write_bytes(compress(plain.read_bytes()))
    expected, image = read_module(plain), read_module(packed)
    own = ("path", "sha256", "size")
    for name in ModuleImage.__struct_fields__:
        assert name in own or getattr(image, name) == getattr(expected, name)
    assert image.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"kvm-amd\.ko\.{suffix}: .*(too early|broken)"):
        read_module(packed)


@pytest.mark.kernel
def test_broken_modules_end_in_one_line(kernel_build: Path) -> None:
    """Cut and changed at random, most often where the headers are; the seed makes a failure come again."""
    chance = random.Random(20261123)
    originals = [(kernel_build / name).read_bytes() for name in (MODULES[2], MODULES[3])]
    originals += [lzma.compress(originals[1]), gzip.compress(originals[1]), zstandard.compress(originals[1])]
    outcomes = {"image": 0, "refused": 0}
    for case in range(400):
        data = bytearray(chance.choice(originals))
        headers = int.from_bytes(data[40:48], "little") if data[:4] == b"\x7fELF" else 0
        if case % 4 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice((1, 2, 8, 64))):
                near = (len(data), 64, headers + 4096)[chance.randrange(3)]
                place = min(len(data) - 1, chance.randrange(near))
                data[place] = chance.choice((0, 255, chance.randrange(256), data[place] ^ 1 << chance.randrange(8)))
        try:
            parse_module(bytes(data), Path("broken.ko"))
            outcomes["image"] += 1
        except MalformedError as problem:
            assert str(problem).isprintable()
            outcomes["refused"] += 1
    assert outcomes["image"]
    assert outcomes["refused"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not an ELF object"),
        (b"#!/bin/sh\n" * 20, "not an ELF object"),
        (b"\x7fELF\x02\x01\x01", "shorter than its header"),
        (b"\x7fELF\x01\x01\x01" + bytes(100), "64 bits"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\xb7\x00" + bytes(100), "another architecture"),
        (b"\x1f\x8b\x08\x00broken", "gzip"),
        (b"\xfd7zXZ\x00broken", "xz"),
        (b"\x28\xb5\x2f\xfdbroken", "zstd"),
    ],
)
def test_what_is_no_module_is_said(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "odd.ko"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_module(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message


def test_an_executable_is_no_module() -> None:
    with pytest.raises(UserError, match="not a kernel module"):
        read_module(Path("/bin/true"))


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_module(tmp_path / "missing.ko")
    with pytest.raises(UserError, match="not a regular file"):
        read_module(tmp_path)
    os.mkfifo(tmp_path / "pipe.ko")
    with pytest.raises(UserError, match="not a regular file"):
        read_module(tmp_path / "pipe.ko")


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_bomb_is_refused(compress: object) -> None:
    assert callable(compress)
    with pytest.raises(MalformedError, match="more than 1 MiB"):
        decompressed(compress(bytes(8 << 20)), limit=1 << 20)


def test_lz4_legacy_frame() -> None:
    """Made by hand from the format's text: a literal with a match that overlaps itself, then a literal only."""
    block = bytes([0x3B]) + b"abc" + (3).to_bytes(2, "little") + bytes([0x10]) + b"!"
    frame = b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block
    assert decompressed(frame) == b"abc" + b"abcabcabcabcabc" + b"!"
    for cut in range(9, len(frame) - 1):
        broken = frame[:4] + (cut - 8).to_bytes(4, "little") + frame[8:cut]
        try:
            decompressed(broken)
        except MalformedError as problem:
            assert "LZ4" in str(problem)
