"""Protects sizes and offsets of structs: as the compiler has them, from the right type information, or said why not."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
from collections.abc import Sequence

import msgspec
import pytest

from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.inspect import inspect, to_json
from kbuild.elf.kernel import KernelImage
from kbuild.elf.object import ElfObject
from kbuild.elf.rules.spec import BudgetRule, Rules
from kbuild.elf.structs import StructLayout
from kbuild.elf.types import Types
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.report.modules import render
from tests.unit.test_lifetimes import Compile, compile_module, init  # noqa: F401 (a fixture)

# A struct, and behind it what the compiler says of it: its size, then each member's offset and size.
FIELDS = ("list", "flag", "level", "word", "byte", "name", "work", "tail")
SOURCE = (
    "typedef unsigned long gfn_t;\nenum what { one, two };\n"
    "struct item { struct item *next; int x; };\n"
    "struct desc { struct item list; char flag; enum what level; union { gfn_t word; char byte; }; "
    "const char name[15];"
    " int (*work)(struct item *); unsigned low:3, high:7; struct item *tail[]; };\n"
    "union either { struct desc desc; long numbers[40]; };\n"
    "unsigned sizes[] = { sizeof(struct desc), "
    + ", ".join(
        f"__builtin_offsetof(struct desc, {name}), sizeof(((struct desc *)0)->{name})"
        for name in FIELDS
        if name != "tail"
    )
    + ", __builtin_offsetof(struct desc, tail), 0 };\n"
    "int work(union either *e, struct desc *d) { return d->high + e->numbers[3]; }\n" + init("return 0;")
)


def compilers_word(module: ModuleImage) -> tuple[int, dict[str, tuple[int, int]]]:
    elf = ElfObject(module.path.read_bytes())
    symbol = next(one for one in elf.symbols if one.name == "sizes")
    content = elf.content(elf.sections[symbol.section or 0])[symbol.value : symbol.value + symbol.size]
    size, *rest = struct.unpack(f"<{len(content) // 4}I", content)
    return size, dict(zip(FIELDS, zip(rest[::2], rest[1::2], strict=True), strict=True))


def check(module: ModuleImage, found: StructLayout) -> None:
    size, fields = compilers_word(module)
    assert (found.kind, found.size, found.why) == ("struct", size, None)
    by_name = {one.name: one for one in found.members}
    assert {name: (by_name[name].offset, by_name[name].size) for name in FIELDS} == fields
    assert [by_name["low"].bits, by_name["high"].bits] == [3, 7]
    first = 8 * by_name["low"].offset + (by_name["low"].bit or 0)
    assert 8 * by_name["high"].offset + (by_name["high"].bit or 0) == first + 3
    assert by_name["list"].type == "struct item"
    assert by_name["level"].type == "enum what"
    assert by_name["word"].type == "gfn_t"
    assert by_name["name"].type == "const char[15]"
    assert by_name["tail"].type == "struct item *[0]"


@pytest.mark.parametrize(
    ("flag", "source"),
    [
        ("-gbtf", "BTF"),
        ("-gdwarf-5", "DWARF"),
        ("-gdwarf-4", "DWARF"),
        ("-gdwarf-3 -gstrict-dwarf", "DWARF"),
        ("-g -gz=zlib", "DWARF"),
    ],
)
def test_a_struct_is_as_the_compiler_has_it(compile_module: Compile, flag: str, source: str) -> None:  # noqa: F811
    module = compile_module(SOURCE, flags=["-O2", *flag.split()])
    types = Types(None)
    found = types.struct(module, "struct desc")
    assert found.source == source
    check(module, found)
    either = types.struct(module, "either")
    assert (either.kind, either.size) == ("union", 320)
    assert [one.offset for one in either.members] == [0, 0]
    assert types.struct(module, "item").size == 16
    nothing = types.struct(module, "nothing")
    assert nothing.source is None
    assert "nothing" in str(nothing.why)


def test_without_type_information(compile_module: Compile) -> None:  # noqa: F811
    found = Types(None).struct(compile_module(SOURCE), "desc")
    assert found.source is None
    assert "no type information" in str(found.why)


@pytest.mark.parametrize("flag", ["-gbtf", "-gdwarf-5", "-gdwarf-4"])
def test_damaged_type_information_ends_in_one_line(compile_module: Compile, flag: str) -> None:  # noqa: F811
    """Or in an answer; in both cases soon."""
    module = compile_module(SOURCE, flags=["-O2", flag])
    elf = ElfObject(module.path.read_bytes())
    for name in (".BTF", ".debug_info", ".debug_abbrev", ".debug_str", ".rela.debug_info"):
        section = elf.by_name.get(name)
        for place in range(0, section.size if section else 0, 17):
            for value in (b"\xff", b"\0", b"\x13"):
                at = section.offset + place if section else 0
                module.path.write_bytes(elf.data[:at] + value + elf.data[at + 1 :])
                with contextlib.suppress(UserError):
                    Types(None).struct(module, "desc")


# A module's BTF that goes on where the kernel's ends (Documentation/bpf/btf.rst).


def btf(types: bytes, names: bytes) -> bytes:
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names


INT, PTR, STRUCT = (number << 24 for number in (1, 2, 4))
NAMES = b"\0int\0outer\0a\0b\0"
OUTER = struct.pack("<IIII", 1, INT, 4, 32) + struct.pack("<9I", 5, STRUCT | 2, 8, 11, 1, 0, 13, 1, 32)
OWN_NAMES = b"own\0first\0next\0"
OWN = struct.pack("<III", 0, PTR, 2) + struct.pack(
    "<9I", len(NAMES), STRUCT | 2, 16, len(NAMES) + 4, 2, 0, len(NAMES) + 10, 3, 64
)
KERNEL = btf(OUTER, NAMES)


@pytest.fixture
def split(compile_module: Compile) -> ModuleImage:  # noqa: F811
    return with_btf(compile_module(init("return 0;")), btf(OWN, OWN_NAMES))


def with_btf(module: ModuleImage, data: bytes) -> ModuleImage:
    file = module.path.with_suffix(".btf")
    file.write_bytes(data)
    subprocess.run(["objcopy", "--remove-section", ".BTF", "--add-section", f".BTF={file}", module.path], check=True)
    return read_module(module.path)


def test_a_modules_btf_builds_on_the_kernels(split: ModuleImage) -> None:
    found = Types(KernelImage(btf=KERNEL)).struct(split, "own")
    assert (found.source, found.size) == ("BTF", 16)
    assert [(one.name, one.type, one.offset, one.size) for one in found.members] == [
        ("first", "struct outer", 0, 8),
        ("next", "struct outer *", 8, 8),
    ]
    assert Types(KernelImage(btf=KERNEL)).struct(split, "outer").size == 8


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (None, "give that kernel's bzImage"),
        (KernelImage(), "the kernel that was given has no BTF"),
        (KernelImage(btf=btf(OUTER, NAMES + b"more\0")), "give the kernel of its build"),
        (KernelImage(btf=btf(b"", NAMES)), "give the kernel of its build"),
    ],
)
def test_without_its_kernel_nothing_is_guessed(split: ModuleImage, kernel: KernelImage | None, why: str) -> None:
    found = Types(kernel).struct(split, "own")
    assert (found.source, found.size) == (None, None)
    assert why in str(found.why)


def test_damaged_btf_ends_in_one_line(split: ModuleImage) -> None:
    data = btf(OWN, OWN_NAMES)
    for place in range(len(data)):
        for damaged in (
            data[:place],
            data[:place] + b"\xff" + data[place + 1 :],
            data[:place] + b"\4" + data[place + 1 :],
        ):
            with contextlib.suppress(UserError):
                Types(KernelImage(btf=KERNEL)).struct(with_content(split, damaged), "own")


def with_content(module: ModuleImage, data: bytes) -> ModuleImage:
    """With other bytes in its BTF, of the same length: what is cut off is zero."""
    elf = ElfObject(module.path.read_bytes())
    section = elf.by_name[".BTF"]
    content = (data + bytes(section.size))[: section.size]
    module.path.write_bytes(elf.data[: section.offset] + content + elf.data[section.offset + section.size :])
    return module


# What is made of it.


def budget(modules: Sequence[ModuleImage], **options: object) -> list[tuple[str | None, Status, str]]:
    rules = Rules(budgets=(msgspec.convert({"id": "x", **options}, BudgetRule),))
    found = inspect([module.path for module in modules], None, rules).findings
    return [(one.module, one.status, one.message) for one in found if one.rule == "x"]


def test_a_budget_of_a_struct(compile_module: Compile) -> None:  # noqa: F811
    modules = [compile_module(SOURCE, flags=["-O2", "-gbtf"]), compile_module(init("return 0;"), "other")]
    size = compilers_word(modules[0])[0]
    for limit, status in ((size, Status.PASS), (size - 1, Status.FAIL)):
        ((module, found, message),) = budget(modules, struct="desc", max_bytes=limit)
        assert (module, found) == ("m", status)
        assert f"struct desc has {size} bytes" in message
    ((module, found, message),) = budget(modules, struct="desk", max_bytes=1)
    assert (module, found) == ("set", Status.ERROR)
    assert "is called desk; the module has no type information" in message
    ((module, found, _),) = budget(modules, struct="desc", max_bytes=1, module="other")
    assert (module, found) == ("other", Status.ERROR)
    assert budget(modules, struct="desk", max_bytes=1, module="m", optional=True)[0][1] == Status.PASS


def test_a_person_is_shown_it_once(compile_module: Compile) -> None:  # noqa: F811
    modules = [compile_module(SOURCE, name, ["-O2", "-gbtf"]) for name in ("one", "two")]
    data = to_json(inspect([module.path for module in modules]), layout=False, structs=["desc", "nothing"])
    out = io.StringIO()
    render(data, out)
    text = out.getvalue()
    assert text.count("struct desc: ") == 1
    assert "(one, two; from BTF)" in text
    assert "nothing: no struct" in text
