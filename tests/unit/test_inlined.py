"""Protects answers to rules that name inlined functions: as if these were called, or none.

The same source is compiled with its small functions called and inlined. What may be told less of is listed; nothing may
be told wrongly.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from kbuild.elf.code.decode import Code
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Runs
from kbuild.elf.contents import MalformedError
from kbuild.elf.image import read_module
from kbuild.elf.inlined import InlinedFunctions
from kbuild.elf.inspect import inspect
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.object import ElfObject
from kbuild.elf.rules.orders import Answer, Orders
from kbuild.elf.rules.spec import Event, OrderRule, Rules, VendorRule
from kbuild.elf.rules.story import Story
from kbuild.paths import PROJECT
from tests.unit.test_corpus import FLAGS

SOURCE = PROJECT / "tests/data/flow/inlined.c"
FUNCTIONS = re.findall(r"used int ((?:holds|breaks)_\w+)", SOURCE.read_text())
NAMES = ("setup", "check", "region", "publish", "sum", "record", "create*")
RULES: dict[str, tuple[Event | None, Event, Event | None]] = {
    "first": (Event(call="setup"), Event(call="then"), None),
    "check": (Event(call="check"), Event(call="then"), None),
    "region": (Event(call="region"), Event(call="then"), None),
    "then": (Event(call="first"), Event(call="publish"), None),
    "both": (Event(call="setup"), Event(call="publish"), None),
    "within": (None, Event(call="then"), Event(call="region")),
    "store": (Event(call="setup"), Event(store="flag"), None),
    "stored": (Event(store="flag"), Event(call="setup"), None),
    "arg": (Event(call="first"), Event(call=("create", "create_it"), arg="a"), None),
    "success": (Event(call="check", success="zero"), Event(call="then"), None),
    "sum": (Event(call="sum"), Event(call="then"), None),
    "record": (Event(call="record"), Event(call="then"), None),
}
"""By the families of functions: first, then, within."""
COMPILERS = (
    *("gcc -O2 -gdwarf-5", "gcc -O2 -gdwarf-4", "gcc -O2 -gdwarf-3 -gstrict-dwarf", "gcc -O2 -gdwarf-2 -gz"),
    *(
        "gcc -Os -gdwarf-5",
        "gcc -O1 -gdwarf-5",
        "gcc -O3 -gdwarf-5",
        "gcc -O2 -gdwarf-5 -gno-inline-points",
        "gcc -O2 -g1",
    ),
    "gcc -O2 -gdwarf-4 -ffunction-sections",
    "gcc -O2 -gdwarf-5 -fcf-protection=branch -mfunction-return=thunk-extern -pg -mfentry",
    *("clang-19 -O2 -gdwarf-5", "clang-19 -O2 -gdwarf-4", "clang-19 -Os -gdwarf-5", "clang-19 -O1 -gdwarf-5"),
    "clang-19 -O2 -gdwarf-5 -ffunction-sections -fcf-protection=branch",
)
CALLED, INLINED = "__attribute__((noinline))", "inline __attribute__((always_inline))"
NOT_TOLD = {
    "holds_success": "check() is inlined, so that it is not known how it returns, and then comes then()",
    "holds_sum": "sum() is inlined, and it is not known whether it was called and is over when then() comes",
}
"""What can be told of no inlined function."""
PERHAPS_NOT_TOLD = {
    # A store may have been moved over what was inlined.
    *("breaks_store", "breaks_stored"),
    # gcc jumps into the middle, for it knows how a condition comes out the first time.
    *("holds_first_in_each", "holds_first_loop"),
    # gcc says nothing of a function whose body is that of another one.
    "holds_stored",
}


def compiled(build: str, body: str, path: Path) -> Path:
    compiler, *options = build.split()
    subprocess.run([compiler, *FLAGS, *options, f"-DBODY={body}", "-o", path, SOURCE], check=True)
    return path


def answered(path: Path) -> tuple[dict[str, Answer], Story]:
    """The answer for each function of the source."""
    program = Program(ModuleSet.of([read_module(path)], None))
    inlined = Inlined(program, NAMES)
    runs = Runs(Code(program, inlined.cuts), inlined=inlined)
    answers = {}
    for function in FUNCTIONS:
        first, then, within = RULES[function.split("_")[1]]
        rule = OrderRule(id="x", entry=function, first=first, then=then, within=within)
        orders = Orders(runs, "flow", function, [rule], is_vendor=False)
        (answers[function],) = orders.answers(runs.run(orders.job))
    return answers, Story(program)


def wanted(function: str) -> str:
    return "violated" if function.startswith("breaks") else "proved"


@pytest.mark.parametrize("build", COMPILERS)
def test_an_inlined_function_counts_as_its_call(build: str, tmp_path: Path) -> None:
    called, _ = answered(compiled(build, CALLED, tmp_path / "flow.ko"))
    assert {name: one.answer for name, one in called.items()} == {name: wanted(name) for name in FUNCTIONS}
    inlined, story = answered(compiled(build, INLINED, tmp_path / "flow.ko"))
    for function, one in inlined.items():
        if function in NOT_TOLD:
            assert one.answer == "unknown"
            assert one.why.startswith(NOT_TOLD[function])
        elif function in PERHAPS_NOT_TOLD:
            assert one.answer in (wanted(function), "unknown"), (function, one.why)
        else:
            assert one.answer == wanted(function), (function, one.why)
    told = [line.strip() for line in story.tell(inlined["breaks_region"])]
    assert told[0].startswith("region() (inlined) begins at breaks_region")
    assert told[-2].startswith("then() at breaks_region")
    assert "publish() (inlined) does something at breaks_then" in list(story.tell(inlined["breaks_then"]))[-2]


def test_without_debug_information_nothing_is_said_of_it(tmp_path: Path) -> None:
    answers, _ = answered(compiled("gcc -O2", INLINED, tmp_path / "flow.ko"))
    assert answers["holds_within"].why == "no symbol is called region: misspelt, or inlined"
    assert answers["holds_then_called"].answer == "proved", "one of the two is called"


def test_a_function_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    source = (
        SOURCE.read_text() + "\nstatic inline void nothing(void) {}\nused int calls(void) { nothing(); return 0; }\n"
    )
    path = tmp_path / "flow.c"
    path.write_text(source)
    subprocess.run(["gcc", *FLAGS, "-O2", "-gdwarf-5", "-DBODY=", "-o", tmp_path / "flow.ko", path], check=True)
    rule = OrderRule(id="x", entry="calls", first=Event(call="nothing"), then=Event(call="then"))
    (found,) = inspect([tmp_path / "flow.ko"], None, Rules(VendorRule(("first",)), (rule,))).findings[-1:]
    assert found.answer == "unknown"
    assert "nothing is inlined, and no instruction of it is left" in found.message


# Untrusted files.


@pytest.mark.parametrize("build", ["gcc -O2 -gdwarf-5", "gcc -O2 -gdwarf-4", "clang-19 -O2 -gdwarf-5"])
def test_damaged_debug_information_is_one_line_or_read(build: str, tmp_path: Path) -> None:
    whole = compiled(build, INLINED, tmp_path / "flow.ko").read_bytes()
    elf = ElfObject(whole)
    sections = [one for one in elf.sections if ".debug_" in one.name and one.size]
    chance = random.Random(1)
    read = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            section = chance.choice(sections)
            data[section.offset + chance.randrange(section.size)] = chance.choice((0, 0xFF, chance.randrange(256)))
        try:
            InlinedFunctions(ElfObject(bytes(data))).find(NAMES)
            read += 1
        except MalformedError as problem:
            assert "\n" not in str(problem)
    assert 0 < read < 400
