"""Protects the analysis of init code against files that are cut, changed or made to mislead it: each is answered."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

import kbuild.elf.object
from kbuild.elf.code import budget, walk
from kbuild.elf.code.decode import Code
from kbuild.elf.code.graph import Shapes
from kbuild.elf.code.link import Program
from kbuild.elf.contents import MalformedError
from kbuild.elf.hazards.find import find_hazards
from kbuild.elf.image import parse_module, read_module
from kbuild.elf.inspect import inspect
from kbuild.elf.layout import layout_of
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.object import ElfObject, Section
from kbuild.elf.rules.spec import Event, OrderRule, Rules, VendorRule
from kbuild.elf.text import module_texts
from kbuild.elf.tree.differences import edits
from kbuild.errors import UserError
from tests.unit.test_corpus import FLAGS, FUNCTIONS, compiled

RULES = Rules(
    VendorRule(("something",)),
    tuple(
        OrderRule(id=f"x{number}", first=Event(call="first"), then=Event(call="then"), entry=name)
        for number, name in enumerate(FUNCTIONS)
    ),
)
TABLES = (".altinstructions", "__jump_table", "__bug_table", "__ex_table", ".rodata")
BYTES = (0, 1, 0x7F, 0x80, 0x90, 0xC3, 0xCC, 0xE9, 0xEB, 0xFF)


def changed(original: bytes, chance: random.Random) -> bytes:
    """One file cut, or changed in its headers, its symbols, its relocations, a table of the kernel's, or its code."""
    data = bytearray(original)
    sections = [one for one in ElfObject(original).sections if one.size and one.kind not in ("NOBITS", "NULL")]

    def of(wanted: list[Section]) -> tuple[int, int]:
        one = chance.choice(wanted or sections)
        return one.offset, one.offset + one.size

    where = {
        "header": (0, 64),
        "sections": (int.from_bytes(data[40:48], "little"), len(data)),
        "symbols": of([one for one in sections if one.kind == "SYMTAB"]),
        "relocations": of([one for one in sections if one.kind == "RELA"]),
        "tables": of([one for one in sections if one.name.removeprefix(".rela") in TABLES]),
        "code": of([one for one in sections if "X" in one.flags]),
        "any": of(sections),
    }
    how = chance.choice(["cut", *where, "code", "tables"])
    if how == "cut":
        return bytes(data[: chance.randrange(len(data))])
    low, high = where[how]
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        at = chance.randrange(low, high)
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice(BYTES)
            case 2:
                data[at] = chance.randrange(256)
            case _:
                number = chance.choice((1, 1 << 31, 1 << 63, (1 << 64) - 1, chance.randrange(len(data))))
                data[at : at + 8] = struct.pack("<Q", number)[: len(data) - at]
    return bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("gcc -O2", tmp_path_factory.mktemp("hostile") / "flow.ko")


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_file_is_answered_or_refused_in_one_line(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(budget, "LEAST_WORK", 500_000)
    chance = random.Random(seed)
    content = original.read_bytes()
    path = tmp_path / "flow.ko"
    outcomes: set[str | None] = set()
    for _ in range(40):
        path.write_bytes(changed(content, chance))
        try:
            findings = inspect([path], None, RULES).findings
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
        else:
            outcomes |= {one.answer for one in findings}
    assert {"refused", "proved", "violated"} <= outcomes


HEAD = """
.section .modinfo, "a"
.asciz "name=odd"
.section .gnu.linkonce.this_module, "aw"
.skip 64
.text
.globl init_module
.type init_module, @function
init_module:
"""


def odd(tmp_path: Path, code: str) -> Path:
    source, path = tmp_path / "odd.s", tmp_path / "odd.ko"
    source.write_text(f"{HEAD}{code}\n.size init_module, . - init_module\n")
    subprocess.run(["gcc", *FLAGS, "-o", path, source], check=True)
    parse_module(path.read_bytes(), path)
    return path


FIELDS = {"kind": (4, 4), "flags": (8, 8), "offset": (24, 8), "size": (32, 8), "align": (48, 8)}
"""Of a section header: place and size of what a test changes."""
NOBITS = 8


def forge(path: Path, section: str, **fields: int) -> None:
    """Change the header of a section."""
    data = bytearray(path.read_bytes())
    at = int.from_bytes(data[40:48], "little") + 64 * ElfObject(bytes(data)).by_name[section].index
    for name, number in fields.items():
        place, size = FIELDS[name]
        data[at + place : at + place + size] = number.to_bytes(size, "little")
    path.write_bytes(data)


RULE = Rules(
    VendorRule(("then",)),
    (OrderRule(id="x", first=Event(call="first"), then=Event(call="then")),),
)
ASK = "cmp $7, %rax\nje 1f\ncall first\n1: call then\nret"


def answer(path: Path) -> tuple[str | None, str]:
    (found,) = (one for one in inspect([path], None, RULE).findings if one.rule == "x")
    return found.answer, found.message


def test_values_that_take_for_ever_to_compute_are_not_computed(tmp_path: Path) -> None:
    """x + x, the sum again of that, a hundred times: in steps that are each easy."""
    said, why = answer(
        odd(tmp_path, "call something\n" + "lea 1(%rax,%rbx), %rcx\nxor %rcx, %rax\nadd %rax, %rax\n" * 99 + ASK)
    )
    assert said in ("violated", "unknown"), why


def test_ways_without_number_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that each call the next one twice: 2^30 calls."""
    code = "call f0\n" + ASK
    for number in range(30):
        code += f"\n.type f{number}, @function\nf{number}: call f{number + 1}\ncall something\ncall f{number + 1}\nret"
    code += "\n.type f30, @function\nf30: ret"
    monkeypatch.setattr(budget, "LEAST_WORK", 2_000_000)
    path = odd(tmp_path, code)
    said, why = answer(path)
    assert said == "unknown", why
    assert "there are too many ways to follow them all: given up at odd: f" in why


def test_of_exit_nothing_is_known_where_init_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where init lets static calls lead is not known then; behind an init that is followed it is plain."""
    many = "call f0\nret"
    for number in range(30):
        many += f"\n.type f{number}, @function\nf{number}: call f{number + 1}\ncall something\ncall f{number + 1}\nret"
    many += "\n.type f30, @function\nf30: ret"
    leave = "\n.globl cleanup_module\n.type cleanup_module, @function\ncleanup_module: call then\ncall first\nret"
    rules = Rules(RULE.vendor, (OrderRule(id="x", entry="exit", first=Event(call="first"), then=Event(call="then")),))
    monkeypatch.setattr(budget, "LEAST_WORK", 2_000_000)
    for init, wanted in ((many, "unknown"), ("call something\nret", "violated")):
        (found,) = (one for one in inspect([odd(tmp_path, init + leave)], None, rules).findings if one.rule == "x")
        assert found.answer == wanted, found.message


def test_a_section_of_more_than_there_is_memory_is_refused(tmp_path: Path) -> None:
    path = odd(tmp_path, "call then\ncall first\nret\n.pushsection .bss\n.skip 0x7fffffffff\n.popsection")
    with pytest.raises(UserError, match=r"odd: section \.bss of 0x7fffffffff bytes.*more than a module can have"):
        inspect([path], None, RULE)


@pytest.mark.parametrize("again", ["rep stosb", "call memcpy"])
def test_what_is_done_many_times_by_one_instruction_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """A page, two thousand times: each but a few instructions."""
    once = f"lea there(%rip), %rdi\nlea from(%rip), %rsi\nmov $4096, %ecx\nmov %rcx, %rdx\nxor %eax, %eax\n{again}\n"
    code = once * 2000 + "call something\n" + ASK
    monkeypatch.setattr(budget, "LEAST_WORK", 2_000_000)
    said, why = answer(odd(tmp_path, code + "\n.bss\nthere: .skip 4096\nfrom: .skip 4096\n.text"))
    assert said == "unknown", why
    assert "there are too many ways to follow them all" in why


def test_sections_that_overlap_are_refused(tmp_path: Path) -> None:
    """Sixty thousand tables of relocations, all of them the same bytes: a file of 4 MB that would take hours."""
    path = odd(tmp_path, "call then\n" * 1000 + "call first\nret")
    data = bytearray(path.read_bytes())
    elf = ElfObject(bytes(data))
    start, table = int.from_bytes(data[40:48], "little"), elf.by_name[".rela.text"]
    headers = data[start : start + 64 * len(elf.sections)]
    count = 60_000
    data[40:48] = len(data).to_bytes(8, "little")
    data[60:62] = count.to_bytes(2, "little")
    data += headers + headers[64 * table.index :][:64] * (count - len(elf.sections))
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"odd\.ko: its sections have more bytes than the file"):
        inspect([path], None, RULE)


@pytest.mark.parametrize("name", ["__ksymtab", "__ksymtab_gpl"])
def test_a_table_of_exports_without_contents_is_refused(tmp_path: Path, name: str) -> None:
    """It would have a billion entries."""
    path = odd(tmp_path, f'call then\nret\n.pushsection {name}, "a"\n.skip 12\n.popsection')
    forge(path, name, kind=NOBITS, size=12 << 40)
    with pytest.raises(UserError, match=rf"odd\.ko: {name} of 13194139533312 bytes is no table"):
        inspect([path])


def test_code_without_contents_is_none(tmp_path: Path) -> None:
    """A hundred million instructions, of zeros, that are in no file."""
    path = odd(
        tmp_path, 'call then\ncall first\nret\n.section .text.zero, "ax"\n.globl zero\nzero: ret\n.text\ncall zero'
    )
    forge(path, ".text.zero", kind=NOBITS, size=200 << 20)
    assert answer(path)[0] == "violated"
    assert inspect([path], flow=True).trees is not None
    layout_of(inspect([path]).modules["odd"])


def test_parameters_without_contents_are_none(tmp_path: Path) -> None:
    path = odd(tmp_path, 'call then\nret\n.pushsection __param, "a"\n.skip 40\n.popsection')
    forge(path, "__param", kind=NOBITS, size=200 << 20)
    assert find_hazards(inspect([path]).modules)["found"] == []


def test_a_damaged_table_of_parameters_is_one_line_also_of_a_module_without_init(tmp_path: Path) -> None:
    """Nothing of it is run: who tells hazards is the first to read the table, whose relocation is of no symbol."""
    path = odd(
        tmp_path, 'ret\n.pushsection __param, "a"\n.quad there\n.skip 32\n.popsection\n.data\nthere: .quad 0\n.text'
    )
    data = bytearray(path.read_bytes().replace(b"\0init_module\0", b"\0some_module\0"))
    entry = ElfObject(bytes(data)).by_name[".rela__param"].offset
    data[entry + 12 : entry + 16] = (1 << 20).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"^hazards cannot be looked for .*: section __param refers to a symbol that is not"
    ):
        find_hazards(inspect([path]).modules)


def test_text_of_more_than_there_is_memory_is_refused(tmp_path: Path) -> None:
    path = odd(tmp_path, 'call then\nret\n.pushsection .text.far, "ax"\nret\n.popsection')
    forge(path, ".text.far", align=1 << 40)
    with pytest.raises(MalformedError, match="more than a module can have"):
        module_texts(path.read_bytes(), "odd")


def test_reads_and_writes_that_make_millions_of_pairs_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 600 writes comes behind each of 600 reads: a third of a million here, of a larger module any number."""
    reads, writes = "mov there(%rip), %rax\ncall something\n", "incl %ecx\nmov %ecx, there(%rip)\n"
    path = odd(tmp_path, f"{reads * 600}{writes * 600}xor %eax, %eax\nret\n.data\nthere: .quad 0\n.text")
    monkeypatch.setattr(budget, "LEAST_WORK", 2_000_000)
    assert find_hazards(inspect([path]).modules)["not_followed"]


def test_code_that_is_jumped_into_everywhere_is_not_decoded_over_and_over(tmp_path: Path) -> None:
    """Each of a thousand places begins a block that goes on through all behind it: half a million instructions."""
    places = "".join(f"p{n}: nop\n" for n in range(1000))
    jumps = "".join(f"call something\ntest %eax, %eax\nje p{n}\n" for n in range(1000))
    said, why = answer(odd(tmp_path, f"{places}{jumps}{ASK}"))
    assert said in ("violated", "unknown"), why
    assert "too much code is jumped into" in why


def test_loops_in_loops_come_to_an_end(tmp_path: Path) -> None:
    """Two thousand, each in the one before: to find out which is in which would take their square."""
    test = "call something\ntest %eax, %eax\n"
    heads = "".join(f"{test}js out\np{n}: " for n in range(2000))
    backs = "".join(f"{test}je p{n}\n" for n in reversed(range(2000)))
    program = Program(ModuleSet.of([read_module(odd(tmp_path, f"{heads}{backs}out: ret"))], None))
    entry = program.symbol("odd", "init_module")
    assert entry is not None
    shape = Shapes(Code(program)).of(entry)
    assert len(shape.order) > 8000
    assert len(shape.heads) >= 2000


def test_a_place_that_is_patched_in_any_number_of_ways_is_not_followed(tmp_path: Path) -> None:
    """By each of a hundred features of the CPU: any of them may be there, or not."""
    entry = ".long init_module - .\n.long other - .\n.word {}\n.byte 5, 5\n"
    table = "".join(entry.format(number) for number in range(100))
    code = 'call first\ncall then\nret\n.pushsection .altinstr_replacement, "ax"\nother: call first\n.popsection\n'
    said, why = answer(odd(tmp_path, f'{code}.pushsection .altinstructions, "a"\n{table}.popsection'))
    assert (said, "patched in more than 32 ways" in why) == ("unknown", True), why


def test_functions_that_are_in_each_other_are_not_decoded_over_and_over(tmp_path: Path) -> None:
    """A hundred functions, each from a place in the code to its end, and each refers to init data."""
    body = "".join(f".type f{n}, @function\nf{n}: mov gone(%rip), %eax\n.size f{n}, end - f{n}\n" for n in range(100))
    data = '.section .init.data, "aw"\ngone: .long 1\n.text\n'
    rest = "nop\n" * 2000
    path = odd(tmp_path, f"ret\n{data}{body}{rest}end: ret")
    with pytest.raises(UserError, match=r"odd\.ko: its functions overlap"):
        inspect([path])


def test_a_difference_between_thousands_of_equal_calls_is_found_in_time() -> None:
    a, b = [("x", "kernel"), ("y", "kernel")] * 3000, [("y", "kernel"), ("x", "kernel")] * 3000
    (what, *places), *_ = (one for one in edits(a, b) if one[0] != "equal")
    assert (what, places) == ("replace", [0, 6000, 0, 6000])
    some = [("x", "kernel"), ("y", "kernel"), ("z", "kernel")]
    assert [one[0] for one in edits(some, [some[0], some[2]]) if one[1:3] != (0, 0)] == ["equal", "delete", "equal"]


def test_names_that_overlap_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd(tmp_path, "call then\nret")
    monkeypatch.setattr(kbuild.elf.object, "MAX_NAMES", 10)
    with pytest.raises(UserError, match=r"odd\.ko: its symbols have names of more than 10 bytes"):
        inspect([path])


def test_ways_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches on the way to where the rule is broken: at each another way waits, with its state."""
    waiting: list[int] = []
    fork = walk.Walk._fork

    def noted(self: walk.Walk, places: list[walk._Place]) -> None:
        fork(self, places)
        waiting.append(len(self._waiting))

    monkeypatch.setattr(walk.Walk, "_fork", noted)
    monkeypatch.setattr(walk, "MAX_WAITING", 50)
    code = "".join(f"call something\ntest %eax, %eax\nje p{n}\nmov %eax, there(%rip)\np{n}:\n" for n in range(120))
    said, why = answer(odd(tmp_path, f"{code}{ASK}\n.bss\nthere: .skip 8\n.text"))
    assert said == "violated", why
    assert max(waiting) == 50
