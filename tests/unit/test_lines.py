"""Protects source lines: for each byte what addr2line says, in the kernel tree's names, whatever the file holds."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.elf.contents import MalformedError
from kbuild.elf.lineprogram import MAX_PROGRAM, read_header, run
from kbuild.elf.lines import Source, SourceLines
from kbuild.elf.object import ElfObject

FILES = {
    "include/linux/kvm_host.h": """
        extern int outside(int), fails(int) __attribute__((cold, noreturn));
        static inline __attribute__((always_inline)) int inlined(int x)
        {
            x += outside(x);
            if (__builtin_expect(x == 7, 0))
                fails(x);
            return x * 3;
        }
    """,
    "arch/x86/kvm/x86.c": """
        #include <linux/kvm_host.h>
        int f_first(int x)
        {
            return inlined(x) + 1;
        }
        int f_second(int x)
        {
            for (int i = 0; i < x; i++)
                x += outside(inlined(i));
            return x;
        }
        int __attribute__((section(".init.text"))) f_init(int x)
        {
            return inlined(outside(x));
        }
    """,
    "arch/x86/kvm/svm/svm.c": """
        #include <linux/kvm_host.h>
        #include "svm.h"
        int f_third(int x)
        {
            if (x > 4)
                return other(x);
            return inlined(inlined(x));
        }
        int __attribute__((section(".init.text"))) f_setup(int x)
        {
            x = outside(x);

            return other(x) + f_third(x);
        }
        int __attribute__((cold)) f_cold(int x)
        {
            return other(x) - outside(x + 1);
        }
    """,
    "arch/x86/kvm/svm/svm.h": """
        static inline __attribute__((always_inline)) int other(int x)
        {
            return outside(x) ^ 5;
        }
    """,
    "arch/x86/kvm/svm/vmenter.S": """
        .text
        .globl f_enter
        f_enter:
            nop

            ret
        .section .noinstr.text, "ax"
        .skip 300, 0x90
            hlt
    """,
}
SOURCES = [name for name in FILES if not name.endswith(".h")]
FLAGS = ["-O2", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-fno-asynchronous-unwind-tables"]
# As scripts/module.lds.S merges the sections of functions.
SCRIPT = "SECTIONS { .text 0 : { *(.text .text.f_*) } .init.text 0 : { *(.init.text) } }"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


def tree(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def compiled(source: Path, objects: Path, top: str, *flags: str) -> Path:
    """A module of all sources, whose names begin with `top` for the compiler, which runs in `objects`."""
    objects.mkdir(exist_ok=True)
    made = [objects / f"{Path(name).stem}.o" for name in SOURCES]
    for name, path in zip(SOURCES, made, strict=True):
        command = [*flags, *FLAGS, f"-I{top}/include", "-c", "-o", str(path), f"{top}/{name}"]
        subprocess.run(command, cwd=objects, check=True)
    (objects / "module.lds").write_text(SCRIPT)
    module = source.parent / "kvm.ko"
    subprocess.run(["ld", "-r", "-T", objects / "module.lds", "-o", module, *made], check=True)
    return module


def lines_of(module: Path) -> SourceLines:
    return SourceLines(ElfObject(module.read_bytes()))


def code(module: Path) -> Iterator[tuple[str, int, int]]:
    for section in ElfObject(module.read_bytes()).sections:
        if "X" in section.flags:
            yield section.name, section.index, section.size


def witness(module: Path, section: str, size: int) -> list[tuple[Path, str]]:
    """File and line of each byte by addr2line."""
    offsets = "\n".join(map(hex, range(size)))
    command = ["addr2line", "-j", section, "-e", str(module)]
    said = subprocess.run(command, input=offsets, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.partition(" (discriminator")[0].rpartition(":") for line in said)
    return [(Path(file), line) for file, _, line in pairs]


@pytest.mark.parametrize("where", ["in the tree", "beside it", "below it", "relative"])
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_as_addr2line(tmp_path: Path, compiler: str, version: int, where: str) -> None:
    source = tree(tmp_path / "linux")
    objects, top, flags = {
        "in the tree": (source, ".", ()),
        "beside it": (tmp_path / "objects", str(source), ("-ffunction-sections",)),
        "below it": (source / "objects", "..", ()),
        "relative": (tmp_path / "objects", "../linux", ()),
    }[where]
    module = compiled(source, objects, top, compiler, f"-gdwarf-{version}", *flags)
    lines = lines_of(module)
    seen: set[str] = set()
    sections = list(code(module))
    for name, index, size in sections:
        for offset, (file, line) in enumerate(witness(module, name, size)):
            found = lines.at(index, offset)
            if line in ("?", "0"):
                assert found is None, (name, offset)
            else:
                expected = (objects / file).resolve().relative_to(source)
                assert found == Source(str(expected), int(line)), (name, offset)
                seen.add(found.file)
        assert lines.at(index, size) is None
    assert seen == FILES.keys()
    assert {".text", ".init.text", ".noinstr.text"} < {name for name, _, _ in sections}
    assert any(".unlikely" in name for name, _, _ in sections)
    parted = any(symbol.name.endswith(".cold") for symbol in ElfObject(module.read_bytes()).symbols)
    assert parted or compiler != "gcc"


@pytest.mark.parametrize("version", [4, 5])
def test_no_path_of_a_machine(tmp_path: Path, version: int) -> None:
    """Absolute names without a kernel tree's folder among them: below the compiler's own, or nothing but the name."""
    source = tmp_path / "driver/sub/one.c"
    source.parent.mkdir(parents=True)
    source.write_text("int one(int x)\n{\n    return x;\n}\n")
    for folder, expected in ((tmp_path / "driver", "sub/one.c"), (Path("/"), "one.c")):
        module = tmp_path / "one.ko"
        subprocess.run(["gcc", f"-gdwarf-{version}", *FLAGS, "-c", "-o", module, source], cwd=folder, check=True)
        found = lines_of(module).at(ElfObject(module.read_bytes()).by_name[".text"].index, 0)
        assert found == Source(expected, 2)


@pytest.fixture(scope="module", params=[4, 5])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    source = tree(folder / "linux")
    return compiled(source, folder / "objects", str(source), "gcc", f"-gdwarf-{request.param}")


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_compressed_says_the_same(module: Path, tmp_path: Path, compression: str) -> None:
    packed = tmp_path / "packed.ko"
    done = subprocess.run(["objcopy", f"--compress-debug-sections={compression}", module, packed], check=False)
    if done.returncode:
        pytest.skip(f"this objcopy has no {compression}")
    names = [one.name for one in ElfObject(packed.read_bytes()).sections if "C" in one.flags]
    assert ".debug_line" in names or ".debug_line_str" in names
    plain, other = lines_of(module), lines_of(packed)
    for _, index, size in code(module):
        assert [other.at(index, offset) for offset in range(size)] == [
            plain.at(index, offset) for offset in range(size)
        ]


def test_without_debug_information_nothing_is_said(module: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped.ko"
    subprocess.run(["strip", "-g", "-o", stripped, module], check=True)
    assert [lines_of(stripped).at(index, 0) for _, index, _ in code(stripped)] == [None] * len(list(code(stripped)))
    lines = lines_of(module)
    text = ElfObject(module.read_bytes()).by_name[".text"].index
    assert [lines.at(*place) for place in ((text, -1), (text, 1 << 64), (0, 0), (-1, 0), (1 << 32, 0))] == [None] * 5


def test_damaged_files_end_in_one_line(module: Path, tmp_path: Path) -> None:
    """Bits and bytes changed where they are read, and files cut off; the seed makes a failure come again."""
    chance = random.Random(20261123)
    packed = tmp_path / "packed.ko"
    subprocess.run(["objcopy", "--compress-debug-sections=zlib", module, packed], check=True)
    outcomes = {"the same": 0, "other": 0, "refused": 0}
    for original in (module.read_bytes(), packed.read_bytes()):
        elf = ElfObject(original)
        text = [(one.index, one.size) for one in elf.sections if "X" in one.flags and one.size]
        places = [(index, offset) for index, size in text for offset in (0, size // 3, size - 1)]
        lines = SourceLines(elf)
        expected = [lines.at(*place) for place in places]
        read = [one for one in elf.sections if ".debug_" in one.name or one.kind in ("SYMTAB", "STRTAB")]
        read += [one for one in read if "line" in one.name] * 4
        for case in range(300):
            data = bytearray(original)
            if case % 6 == 0:
                del data[chance.randrange(len(data)) :]
            for _ in range(chance.choice((1, 1, 2, 8, 64)) if case % 6 else 0):
                section = chance.choice([one for one in read if one.size])
                place = section.offset + chance.randrange(min(section.size, chance.choice((64, 1 << 20))))
                data[place] = chance.choice((0, 255, chance.randrange(256), data[place] ^ 1 << chance.randrange(8)))
            try:
                lines = SourceLines(ElfObject(bytes(data)))
                found = [lines.at(*place) for place in places]
                outcomes["the same" if found == expected else "other"] += 1
            except MalformedError as problem:
                assert str(problem).isprintable()
                outcomes["refused"] += 1
                continue
            for one in filter(None, found):
                assert one.line > 0
                assert not one.file.startswith("/")
                assert one.file.isprintable()
    assert all(outcomes.values()), outcomes


def leb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def unit(tables: bytes, program: bytes = b"", line_range: int = 14) -> bytes:
    """A unit of `.debug_line` by hand: DWARF 5, 6.2.4."""
    header = bytes([1, 1, 1, 0xFB, line_range, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1]) + tables
    rest = struct.pack("<HBBI", 5, 8, 0, len(header)) + header + program
    return struct.pack("<I", len(rest)) + rest


NO_TABLES = bytes(4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (unit(b"\x01\x01\x21" + leb(1 << 40) + bytes(64)), "take no bytes"),
        (unit(b"\0" + leb(1 << 40) + bytes(64)), "too many"),
        (unit(b"\xff" + bytes(600)), "255 properties"),
        (unit(b"\x01\x01\x0a\x01\xff"), "middle of an entry"),
        (unit(b"\x01\x01\x16\x01" + bytes(64)), "unknown form 0x16"),
        (unit(b"\x01" + b"\xff" * 64), "more than 64 bits"),
        (unit(NO_TABLES, line_range=0), "without a range"),
        (unit(NO_TABLES)[:-1], "past its section"),
        (unit(NO_TABLES, b"\x00\x09\x02\x00"), "past its end"),
        (unit(NO_TABLES, b"\x09\x00"), "middle of an instruction"),
        (unit(NO_TABLES, b"\x02" + b"\xff" * 20), "more than 64 bits"),
        (unit(NO_TABLES, b"\x02\xff"), "middle of a number"),
        (unit(NO_TABLES, bytes([1]) * (MAX_PROGRAM + 1)), "a line program of"),
    ],
)
def test_hostile_units_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        run(data, read_header(data, 0), {})


def test_each_sequence_goes_with_its_relocation() -> None:
    """Also one that leaves its section, which ends there; one before another; and one that no relocation places."""
    set_address, row, end = b"\x00\x09\x02" + bytes(8), b"\x01", b"\x00\x01\x01"
    advance, line = b"\x02\x10", b"\x03\x01"
    parts = [
        set_address + row + advance + line + row,  # section 3 from 0x100: line 1; line 2 of no length
        set_address + row + advance + end,  # section 4 from 0x20: still line 2
        set_address + row + advance + end,  # section 3 from 0x40: line 1
        set_address + row + advance + end,  # of no section
    ]
    data = unit(NO_TABLES, b"".join(parts))
    header = read_header(data, 0)
    operands = [header.program + 3 + sum(map(len, parts[:number])) for number in range(3)]
    rows = run(data, header, dict(zip(operands, ((3, 0x100), (4, 0x20), (3, 0x40)), strict=True)))
    assert rows.keys() == {3, 4}
    assert [rows[3].find(place) for place in (0xFF, 0x100, 0x10F, 0x110)] == [None, (1, 1), (1, 1), None]
    assert [rows[3].find(place) for place in (0x3F, 0x40, 0x4F, 0x50)] == [None, (1, 1), (1, 1), None]
    assert [rows[4].find(place) for place in (0x1F, 0x20, 0x2F, 0x30)] == [None, (1, 2), (1, 2), None]
