"""Protects the differences of two builds: what a patch did to the objects, and nothing that it did not."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kbuild.elf.differences import compare
from kbuild.elf.inspect import find_modules, inspect
from kbuild.report.differences import render_differences

SOURCE = """
int printk(const char *, ...);
int one(void), two(void);
int shared;
static int table[4];
static const char *const names[] = {"a", "b"};
__attribute__((section(".modinfo"), used)) static const char info[] = "name=m\\0vermagic=6.1.0 mod_unload";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
__attribute__((noinline)) int moves(int x) { return table[x] + shared; }
__attribute__((noinline)) int calls(int x) { return moves(x) + one(); }
__attribute__((noinline)) int says(void) { return printk("text %d", 1); }
__attribute__((noinline)) const char *looks(int x) { return names[x]; }
int init_module(void) { table[1] = 3; return calls(1) + says(); }
"""
FLAGS = ["-c", "-r", "-O2", "-mcmodel=kernel", "-fno-pic", "-fno-pie", "-fno-asynchronous-unwind-tables"]
Differ = Callable[[Mapping[str, str]], dict[str, Any]]


@pytest.fixture
def differ(tmp_path: Path) -> Differ:
    """What changes in a text make different in the module that it is compiled to."""

    def compiled(name: str, text: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "m.c").write_text(text)
        subprocess.run(["gcc", *FLAGS, "-o", folder / "m.ko", folder / "m.c"], check=True)
        return folder

    def differ(changes: Mapping[str, str]) -> dict[str, Any]:
        text = SOURCE
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        sides = [inspect(find_modules(compiled(*side)), flow=True) for side in (("before", SOURCE), ("after", text))]
        found = compare(sides[0], sides[1])
        stream = io.StringIO()
        render_differences(found, Console(file=stream, width=140))
        (module,) = found["modules"]
        return {**module, "flow": found["flow"], "shown": stream.getvalue()}

    return differ


def told(module: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["change"], one["name"]) for one in module["symbols"]]


def test_nothing(differ: Differ) -> None:
    module = differ({})
    assert module["change"] == "same"
    assert "same bytes: m" in module["shown"]


def test_what_only_is_elsewhere_is_no_change(differ: Differ) -> None:
    """A function in front of all others, and an object in front of all others."""
    module = differ(
        {"static int table": "int before(int x) { return x + 1; }\nint first[2] = {1, 2};\nstatic int table"}
    )
    assert told(module) == [("came", "before"), ("came", "first")]
    assert module["code"] == []


def test_symbols(differ: Differ) -> None:
    module = differ(
        {
            "__attribute__((noinline)) int calls": '__attribute__((noinline, section(".init.text"))) int calls',
            "int shared;": "long shared;",
            "const char *looks": "const char *gazes",
        }
    )
    assert told(module) == [("moved", "calls"), ("came", "gazes"), ("went", "looks"), ("resized", "shared")]
    assert "~ calls: .text → .init.text" in module["shown"]
    assert module["bytes"]["init"][0] == 0
    assert [(one["change"], one["name"]) for one in module["sections"]] == [("came", ".init.text")]


@pytest.mark.parametrize(
    ("old", "new", "function"),
    [
        ("moves(x) + one()", "moves(x) + two()", "calls"),
        ("table[x] + shared", "table[x] - shared", "moves"),
        ("table[x] + shared", "table[x] + other", "moves"),
        ("text %d", "tent %d", "says"),
        ('d", 1)', 'd", 2)', "says"),
        ("table[1] = 3", "table[2] = 3", "init_module"),
    ],
)
def test_code_of_the_same_size(differ: Differ, old: str, new: str, function: str) -> None:
    module = differ({"int shared;": "int shared, other;" if "other" in new else "int shared;", old: new})
    assert function in module["code"]
    assert not [one for one in module["symbols"] if one["change"] in ("resized", "moved")]
    assert f"~ {function}" in module["shown"]


def test_imports(differ: Differ) -> None:
    module = differ({"+ one()": "+ two()"})
    assert [(one["change"], one["name"]) for one in module["imports"]] == [("went", "one"), ("came", "two")]


def test_calls(differ: Differ) -> None:
    """Once each, also where init calls the function that differs twice; what leads there is shown with it."""
    module = differ(
        {
            '("text %d", 1)': '("text %d", 2)',
            "moves(x) + one()": "moves(x) + two() + one()",
            "return calls(1) + says()": "return calls(1) + says() + calls(2)",
        }
    )
    (tree,) = module["flow"]
    assert (tree["module"], tree["entry"], tree["change"]) == ("m", "init", "same")
    headline, _, rest = module["shown"].partition("~ init_module()  m, init\n")
    assert rest, headline
    assert {line.rstrip() for line in rest.splitlines()} - {""} == {
        "    calls(1)  m",
        "+     two()  kernel",
        "    says()  m",
        '~     printk("text %d", 2), was printk("text %d", 1)  kernel',
        "+   calls(2)  m, and 3 more below",
    }


@pytest.mark.kernel
def test_a_module_that_is_not_there_any_more(kernel_build: Path) -> None:
    paths = find_modules(kernel_build)
    fewer = [path for path in paths if path.name != "kvm-amd.ko"]
    found = compare(inspect(paths), inspect(fewer))
    assert {module["name"]: module["change"] for module in found["modules"]} == {
        "irqbypass": "same",
        "kvm": "same",
        "kvm-amd": "went",
        "kvm-intel": "same",
    }
