"""Protects answers to rules, whatever compiler and options made the code, and whatever its functions are called."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kbuild.elf.code.decode import Code
from kbuild.elf.code.inlined import Inlined
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Runs
from kbuild.elf.image import read_module
from kbuild.elf.inspect import inspect
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.events import find
from kbuild.elf.rules.orders import Answer, Orders
from kbuild.elf.rules.spec import Event, OrderRule, Rules, read_rules
from kbuild.paths import PROJECT

FOLDER = PROJECT / "tests/data/flow"
SOURCES = ("features.c", "mechanisms.c", "joins.c", "parameters.c")
LINES = (line.partition("#")[0].strip() for line in (FOLDER / "builds.txt").read_text().splitlines())
BUILDS = [line for line in LINES if line]
# What shapes the code in arch/x86/Makefile; each build may say otherwise behind it.
FLAGS = [
    *("-r", "-nostdlib", "-w", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-mno-red-zone", "-mno-sse"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
]
FUNCTIONS = re.findall(r"used .*?int ((?:holds|breaks)_\w+)", "".join((FOLDER / name).read_text() for name in SOURCES))
# These are about what the module's own data is at the start, which is known of a vendor's init.
KNOWS_ITS_DATA = re.compile(r"lent|push_flags|key_known|parameter")


def compiled(build: str, path: Path, *more: str) -> Path:
    """A module of the features, linked of one object each, as Kbuild links it."""
    one, others, rest = build.rpartition(".c ")
    sources = [FOLDER / (one + ".c")] if others else [FOLDER / name for name in SOURCES]
    compiler, *options = rest.split()
    runtime = ["-fno-sanitize-link-runtime"] if "clang" in compiler else []
    subprocess.run([compiler, *FLAGS, *options, *runtime, *more, "-o", path, *sources], check=True)
    return path


class RunsOf(Runs):
    """Runs that take one function for the module's init: its data is then as in its file."""

    init = ""

    def entry(self, module: str, name: str) -> int | None:
        return super().entry(module, self.init if name == "init" else name)


def asked(path: Path, names: Mapping[str, str] | None = None) -> dict[str, Answer]:
    """The answer for each function of the features, which may have other names in the file."""
    renamed = dict(names or {})
    runs = RunsOf(Code(Program(ModuleSet.of([read_module(path)], None))))
    answers = {}
    for function in FUNCTIONS:
        runs.init, first, then = (renamed.get(name, name) for name in (function, "first", "then"))
        if runs.entry("flow", "init") is None:
            continue
        rule = OrderRule(id="x", first=Event(call=first), then=Event(call=then), entry=runs.init)
        orders = Orders(runs, "flow", runs.init, [rule], is_vendor=False)
        if KNOWS_ITS_DATA.search(function):
            orders.job = replace(orders.job, entry="init")
        (answers[function],) = orders.answers(runs.run(orders.job))
    return answers


def assert_right(answers: Mapping[str, Answer]) -> None:
    wanted = {function: "violated" if function.startswith("breaks") else "proved" for function in answers}
    assert {name: f"{one.answer}: {one.why}" for name, one in answers.items() if one.answer != wanted[name]} == {}
    assert all((one.witness is not None) == (one.answer == "violated") for one in answers.values())


@pytest.mark.parametrize("build", BUILDS)
def test_each_feature_is_answered_rightly(build: str, tmp_path: Path) -> None:
    """Also those with ways that contradict themselves: there, nothing is violated."""
    answers = asked(compiled(build, tmp_path / "flow.ko"))
    assert len(answers) > 20
    assert_right(answers)


@pytest.mark.parametrize("build", ["gcc -O2", "clang-19 -O2"])
def test_a_write_at_an_index_may_be_what_a_rule_asks_for(build: str, tmp_path: Path) -> None:
    """In holds_index(), others[something() & 7] is written before first() is called."""
    runs = RunsOf(Code(Program(ModuleSet.of([read_module(compiled(build, tmp_path / "flow.ko"))], None))))
    answers = []
    for name in ("others", "lent_here"):
        rule = OrderRule(id="x", first=Event(call="first"), then=Event(store=name), entry="holds_index")
        orders = Orders(runs, "flow", "holds_index", [rule], is_vendor=False)
        answers += orders.answers(runs.run(orders.job))
    assert [one.answer for one in answers] == ["unknown", "unreached"]
    assert "may be the store to others" in answers[0].why


def test_relocations_that_are_not_understood_are_named(tmp_path: Path) -> None:
    """A table of global offsets, which no module may have (arch/x86/kernel/module.c): nothing behind it is proved."""
    answers = asked(compiled("gcc -O2 -fpie -mcmodel=small -fno-plt -mno-direct-extern-access", tmp_path / "flow.ko"))
    assert {one.answer for one in answers.values()} == {"unknown"}
    assert all(re.search(r"relocation at \S+\+0x\w+ \(flow\) is of type \d+", one.why) for one in answers.values())


def test_what_stands_before_a_function_is_not_the_function(tmp_path: Path) -> None:
    """kCFI puts `__cfi_NAME` there, objtool `__pfx_NAME`: neither is called, nor what a rule means."""
    path = compiled("clang-19 -O2 -fsanitize=kcfi -fpatchable-function-entry=16,16", tmp_path / "flow.ko")
    program = Program(ModuleSet.of([read_module(path)], None))
    assert program.symbol("flow", "__cfi_holds_cold") is not None
    found = find(Event(call="*holds_cold"), program, Inlined(program), None)
    assert (list(found.names), found.functions) == (["holds_cold"], {program.symbol("flow", "holds_cold")})
    for function in FUNCTIONS:
        address = program.symbol("flow", function)
        assert address is not None
        assert str(program.name(address)) == function


# No name, no offset, no order is known.


def symbols_of(path: Path) -> set[str]:
    """Names of functions and objects that a file defines, without what compilers put behind them."""
    image = read_module(path)
    defined = {one.name for one in image.symbols if one.section is not None and one.kind in ("func", "object")}
    kept = (
        "__SC",
        "__ksym",
        "__kstr",
        "__crc",
        "__this_module",
        "init_module",
        "cleanup_module",
        "__UNIQUE",
        "__param",
    )
    return {name.partition(".")[0] for name in defined if not name.startswith(kept)} - {""}


def rename(path: Path, names: Mapping[str, str]) -> None:
    """Give a file's symbols other names; the strings of its exports too, which need to be as long as before."""
    every = {one.name for one in read_module(path).symbols}
    pairs = {one: names[base] + one[len(base) :] for one in every if (base := one.partition(".")[0]) in names}
    table = path.with_suffix(".names")
    table.write_text("".join(f"{old} {new}\n" for old, new in pairs.items()))
    strings = path.with_suffix(".strings")
    argv: list[str | Path] = ["objcopy", f"--redefine-syms={table}"]
    if any(section.name == "__ksymtab_strings" for section in read_module(path).sections):
        subprocess.run(["objcopy", "-O", "binary", "-j", "__ksymtab_strings", path, strings], check=True)
        exported = strings.read_bytes().split(b"\0")
        strings.write_bytes(b"\0".join(names.get(name.decode(), name.decode()).encode() for name in exported))
        argv.append(f"--update-section=__ksymtab_strings={strings}")
    subprocess.run([*argv, path], check=True)


@pytest.mark.parametrize("seed", range(3))
def test_functions_and_members_of_tables_may_change_their_names_and_places(tmp_path: Path, seed: int) -> None:
    """Each function gets the name of another one, and another place; members of structures too."""
    chance = random.Random(seed)
    members = ("-Drandomized=__attribute__((__randomize_layout__))", f"-frandomize-layout-seed={seed}")
    path = compiled("clang-19 -O2 -ffunction-sections", tmp_path / "flow.ko", *members)
    old = sorted(symbols_of(path))
    kernel = ["first", "then", "something", "report"]
    names = dict(
        zip([*old, *kernel], [*chance.sample(old, len(old)), *chance.sample(kernel, len(kernel))], strict=True)
    )
    sections = [section.name for section in read_module(path).sections if section.name.startswith(".text.")]
    script = tmp_path / "order.lds"
    order = " ".join(f"*({name})" for name in chance.sample(sections, len(sections)))
    script.write_text(f"SECTIONS {{ .text : {{ {order} *(.text) }} }}")
    subprocess.run(["ld", "-r", "-T", script, "-o", tmp_path / "ordered.ko", path], check=True)
    (tmp_path / "ordered.ko").rename(path)
    rename(path, names)
    answers = asked(path, names)
    assert len(answers) == len(FUNCTIONS)
    assert_right(answers)


def renamed_event(event: Event | None, names: Mapping[str, str]) -> Event | None:
    if event is None:
        return None
    changed = {kind: [names.get(name, name) for name in event.names] for kind in (event.kind,)}
    return msgspec.structs.replace(event, **changed)


@pytest.mark.kernel
def test_no_function_of_kvm_is_known(kernel_build: Path, tmp_path: Path) -> None:
    """Every function and object of the real modules gets a name by chance, also in the rules: the answers stay."""
    paths = [kernel_build / "arch/x86/kvm" / f"{name}.ko" for name in ("kvm", "kvm-intel", "kvm-amd")]
    rules = read_rules(tuple(PROJECT / "profiles/rules" / f"{name}.toml" for name in ("kvm", "mmu-setup-thread")))
    chance = random.Random(1)
    old = sorted(set[str]().union(*map(symbols_of, paths)))
    names = {name: "".join(chance.choices("abcdefgh", k=len(name))) for name in old}
    assert len(set(names.values())) > len(old) * 0.99, "some short ones may be the same by chance"
    copies = []
    for path in paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
        rename(copies[-1], names)
    orders = tuple(
        msgspec.structs.replace(
            rule,
            entry=names.get(rule.entry, rule.entry),
            **{part: renamed_event(getattr(rule, part), names) for part in ("first", "then", "within")},
        )
        for rule in rules.orders
    )
    vendor = msgspec.structs.replace(
        rules.vendor, imports=tuple(names.get(name, name) for name in rules.vendor.imports)
    )

    def answers(files: Sequence[Path], asked: Rules) -> list[tuple[str, str | None]]:
        return [(one.id, one.answer) for one in inspect(files, None, asked).findings if one.answer is not None]

    expected = answers(paths, Rules(rules.vendor, rules.orders))
    assert {"proved", "violated"} <= {answer for _, answer in expected}
    assert answers(copies, Rules(vendor, orders)) == expected
