"""Protects what is shown of init and exit: each call that can happen, where from, in which order, with what."""

from __future__ import annotations

import copy
import io
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kbuild import outcome
from kbuild.elf.code.calls import Call
from kbuild.elf.code.state import State
from kbuild.elf.inspect import inspect, to_json
from kbuild.elf.rules.spec import read_rules
from kbuild.elf.tree.arguments import Given
from kbuild.paths import PROJECT
from kbuild.report.calls import called
from kbuild.report.dot import dot, quoted
from kbuild.report.modules import render
from tests.unit.test_flow import FLAGS

SOURCE = PROJECT / "tests/data/flow/tree.c"
Data = dict[str, Any]


@pytest.fixture(scope="module", params=["-O2", "-O1", "-Os", "-O0", "-O2 -mindirect-branch=thunk-extern"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return answer(tmp_path_factory.mktemp("tree"), *request.param.split())


def answer(folder: Path, *flags: str) -> Data:
    """The whole answer, as a script gets it."""
    path = folder / "tree.ko"
    subprocess.run(["gcc", *FLAGS, *flags, "-o", path, SOURCE], check=True)
    data: Data = json.loads(outcome.to_json(to_json(inspect([path], flow=True))))
    return data


@pytest.fixture
def init(compiled: Data) -> Data:
    return entry(compiled, "tree", "init")


def entry(data: Data, module: str, which: str) -> Data:
    (found,) = (one for one in data["flow"] if (one["module"], one["entry"]) == (module, which))
    assert isinstance(found, dict)
    return found


def nodes(within: Mapping[str, Any]) -> Iterator[Data]:
    for node in within["calls"]:
        yield node
        yield from nodes(node)


def calls(within: Mapping[str, Any], function: str | None) -> list[Data]:
    return [node for node in nodes(within) if node["function"] == function]


def shown(within: Mapping[str, Any], function: str) -> list[str]:
    return [called(node) for node in calls(within, function)]


def names(within: Mapping[str, Any]) -> list[str]:
    return [str(node["function"]) for node in nodes(within)]


# Order, and what leads to what.


def test_an_entry_has_its_name_and_all_that_it_calls(compiled: Data) -> None:
    init = entry(compiled, "tree", "init")
    assert (init["function"], init["section"], init["cut"]) == ("tree_init", ".init.text", [])
    assert set(names(init)) >= {"order", "unwind", "arguments", "run_ops", "ops_set_up", "callback", "inside", "chosen"}
    order = calls(init, "order")[0]
    assert (order["module"], order["section"], order["how"]) == ("tree", ".text", "call")
    assert order["place"].startswith("tree_init+")
    kernel = calls(init, "before")[0]
    assert (kernel["module"], kernel["section"], kernel["calls"]) == ("kernel", None, [])


def test_a_call_has_its_line_where_there_is_debug_information(tmp_path: Path) -> None:
    data = answer(tmp_path, "-O1", "-g")
    source = next(line for line in SOURCE.read_text().splitlines() if "create(" in line and "a_cache" in line)
    number = SOURCE.read_text().splitlines().index(source) + 1
    first = calls(entry(data, "tree", "init"), "create")[0]
    assert first["source"].endswith(f"tree.c:{number}")


def test_calls_come_in_the_order_in_which_they_can_happen(init: Data) -> None:
    every = [name for name in names(calls(init, "order")[0]) if name != "something"]
    assert sorted(every[1:3]) == ["either", "or"]
    assert [every[0], *every[3:]] == ["before", "behind", "repeated", "at_last"]
    assert names(calls(init, "unwind")[0]) == ["get_first", "get_second", "undo_first", "print"]


def test_pointers_callbacks_and_static_calls_are_told_apart(compiled: Data) -> None:
    init, leave = entry(compiled, "tree", "init"), entry(compiled, "tree", "exit")
    (through,) = calls(init, "ops_set_up")
    assert through["how"] == "pointer"
    (given_to,) = calls(init, "smp_call_function_single")
    assert [(node["function"], node["how"]) for node in given_to["calls"]] == [("callback", "callback")]
    assert names(given_to["calls"][0]) == ["inside"]
    (static,) = calls(init, "chosen")
    assert (static["how"], static["candidate"]) == ("static call", False)
    # On exit nothing says which load it was that put what there.
    candidates = {node["function"]: node["how"] for node in nodes(leave) if node["candidate"]}
    assert candidates == {"chosen": "static call", "__SCT__static_one": "static call"}
    assert names(calls(leave, "__SCT__static_one")[0]) == ["as_in_the_file", "something"]
    assert leave["counts"]["candidates"] == 2


def test_what_is_not_resolved_is_named(compiled: Data) -> None:
    init, leave = entry(compiled, "tree", "init"), entry(compiled, "tree", "exit")
    known = {(one["place"].partition("+")[0], one["why"], one["through"]) for one in init["unresolved"]}
    assert known == {("not_known", "target not known", None), ("odd", "recursion or too deep", "even")}
    assert [(one["unresolved"], one["module"]) for one in calls(init, None)] == [
        ("target not known", None),
        ("recursion or too deep", None),
    ]
    (lost,) = leave["unresolved"]
    assert (lost["place"].partition("+")[0], lost["through"]) == ("tree_exit", "hook")
    assert (init["counts"]["unresolved"], leave["counts"]["unresolved"]) == (2, 1)


def test_counts_are_of_places_in_code(init: Data) -> None:
    counts = init["counts"]
    own = {node["symbol"] for node in nodes(init) if node["module"] == "tree"}
    kernel = {node["symbol"] for node in nodes(init) if node["module"] == "kernel"}
    assert counts["functions"] == len(own) + 1
    assert counts["kernel_functions"] == len(kernel)
    assert counts["callbacks"] == 1
    # pass_on() is called from two places, and calls from one; looks_at_one() likewise, and calls from two.
    assert counts["nodes"] - counts["calls"] - counts["callbacks"] == 1 + 2


def test_names_are_without_what_a_compiler_adds(init: Data) -> None:
    (node,) = calls(init, "cloned")
    assert node["symbol"] == "cloned.constprop.0"


# Arguments.


CREATED = ('"a_cache", 128, 8, 0x2000, 0', '"first", 16, 0, 0, 0', '"second", 16, 0, 0, 0')


@pytest.mark.parametrize(
    ("function", "calls_of_it"),
    [
        ("create", [f"create({given})" for given in CREATED]),
        ("one", ["one(2)", "one(1)", "one(3)", "one(4)"]),
        ("looks_at_one", ["looks_at_one(3)", "looks_at_one(4)"]),
        ("pair", ["pair(?, 7)"]),
        ("print", ['print("no more\\n")', 'print("%s %d\\n", "text", 5)']),
        ("at", ["at(&table)", 'at("in an object of its own")']),
        ("fill_in", ["fill_in(&local)"]),
        ("pass_on", ['pass_on("first")', 'pass_on("second")']),
        ("before", ["before()"]),
    ],
)  # fmt: skip
def test_arguments_are_shown_as_far_as_they_are_known(init: Data, function: str, calls_of_it: list[str]) -> None:
    """All that the function takes, and nothing of what happens to be in the registers behind."""
    assert shown(calls(init, "arguments")[0], function) == calls_of_it


def test_constants_of_different_ways_are_all_shown(init: Data) -> None:
    found = [argument for node in calls(calls(init, "arguments")[0], "number") for argument in node["arguments"]]
    # A compiler may have made two calls of the one.
    assert {one["number"] for constants in found for one in constants} == {64, 128}
    assert "number()" in shown(init, "number"), "what something() returned is not known"


def test_what_can_be_a_few_numbers_is_these() -> None:
    """A parameter that is a bool, as kvm_configure_mmu() is given one."""
    state, flag, byte = State(), (1, 0, 8), (2, 0, 8)
    state.know(flag, ((0, 1),))
    state.know(byte, ((0, 0xFF),))
    given = Given()
    given.meet(state, Call(0, None, None, (flag, byte, None, None, None, None), 0))
    assert given.known(6) == [frozenset((0, 1))]


def test_arguments_are_data(init: Data) -> None:
    (update,) = calls(init, "__static_call_update")
    assert update["arguments"][2] == [{"symbol": "chosen", "module": "tree", "offset": 0}]
    (filled,) = calls(init, "fill_in")
    assert filled["arguments"] == [[{"stack": True}]]


# How it is shown.


def test_the_tree_is_folded_to_what_matters(compiled: Data) -> None:
    stream, in_full = io.StringIO(), io.StringIO()
    render(compiled, stream, flow=True)
    render(compiled, in_full, flow=True, full=True)
    folded, full = stream.getvalue(), in_full.getvalue()
    assert re.search(r'^│   ├── create\("a_cache", 128, 8, 0x2000, 0\)  kernel$', folded, re.MULTILINE)
    assert re.search(r"^│   └── ops_set_up\(\)  tree \.text \[pointer(, tail)?\]$", folded, re.MULTILINE)
    assert "before()" not in folded
    assert "more call" not in full
    assert sum("──" in line for line in full.splitlines()) == sum(one["counts"]["nodes"] for one in compiled["flow"])
    assert re.search(r"^tree_init \(tree, init\): \d+ functions, \d+ calls, 2 unresolved$", folded, re.MULTILINE)
    assert "unresolved: target not known, through hook: at tree_exit+" in folded
    assert re.search(r"── \? target not known through hook  at tree_exit\+0x", folded)


STATEMENT = re.compile(
    r"digraph flow \{|rankdir=LR;|node \[shape=box, fontname=\"monospace\"\];"
    r"|subgraph \w+ \{|label=\"(?:[^\"\\]|\\.)*\";"
    r"|(?P<node>n\d+) \[label=\"(?P<name>(?:[^\"\\]|\\.)*)\", style=\w+\];"
    r"|(?P<tail>n\d+) -> (?P<head>n\d+) \[label=\"(?P<number>[^\"]*)\", style=\w+\];|\}"
)


def test_the_graph_is_well_formed_and_complete(init: Data) -> None:
    """Also with a name that is none in C: what a file says is not a part of the graph's own language."""
    strange = 'a"b\\c}\n'
    data = copy.deepcopy(init)
    calls(data, "behind")[0]["symbol"] = strange
    text = dot([data])
    assert text == dot([data])
    found = [STATEMENT.fullmatch(line.strip()) for line in text.splitlines()]
    assert all(found), [line for line, one in zip(text.splitlines(), found, strict=True) if one is None]
    statements = [one for one in found if one is not None]
    assert sum(one[0].endswith("{") for one in statements) == sum(one[0] == "}" for one in statements)
    functions = {one["node"]: one["name"] for one in statements if one["node"]}
    assert quoted(strange)[1:-1] in functions.values()
    symbols = {node["symbol"] for node in nodes(data) if node["symbol"] is not None}
    assert len(functions) == len(symbols) + 1 + data["counts"]["unresolved"]
    edges = {(functions[one["tail"]], functions[one["head"]]): one["number"] for one in statements if one["tail"]}
    assert edges["unwind", "get_first"] == "1"
    assert edges["unwind", "print"] == "4"
    assert ("callback", "inside") in edges


# On a kernel.


@pytest.fixture(scope="module")
def kvm(kernel_build: Path) -> Data:
    names = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
    rules = read_rules((PROJECT / "profiles/rules/mmu-setup-thread.toml",))
    found = inspect([kernel_build / name for name in names], None, rules, flow=True)
    data: Data = json.loads(outcome.to_json(to_json(found)))
    return data


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("vendor", "chain"),
    [
        ("kvm-amd", ["svm_init", "kvm_init", "kvm_arch_hardware_setup", "svm_hardware_setup", "kvm_configure_mmu"]),
        ("kvm-intel", ["vmx_init", "kvm_init", "kvm_arch_hardware_setup", "hardware_setup", "kvm_configure_mmu"]),
    ],
)
def test_a_vendor_s_init_is_shown_to_its_end(kvm: Data, vendor: str, chain: list[str]) -> None:
    """6.1; through both modules, and the vendor's ops table."""
    init = entry(kvm, vendor, "init")
    assert init["function"] == chain[0]
    assert (init["counts"]["unresolved"], init["unresolved"], init["cut"]) == (0, [], [])
    within = init
    for function in chain[1:]:
        within = next(node for node in within["calls"] if node["function"] == function)
    (setup, *_) = calls(init, chain[3])
    assert (setup["how"], setup["module"], setup["section"]) == ("pointer", vendor, ".init.text")
    # arch/x86/kvm/mmu/mmu.c, struct pte_list_desc: a pointer, a count, and fourteen pointers
    (made,) = [node for node in calls(init, "kmem_cache_create") if "pte_list_desc" in called(node)]
    assert called(made).startswith(f'kmem_cache_create("pte_list_desc", {16 * 8}, 0, ')
    assert {one["event"] for one in made["events"]} == {"then"}
    # virt/kvm/kvm_main.c, kvm_init(): "Registration _must_ be the very last thing done"
    inits = names(next(node for node in init["calls"] if node["function"] == "kvm_init"))
    steps = ["kvm_arch_init", "kvm_irqfd_init", "kvm_async_pf_init", "misc_register"]
    assert sorted(steps, key=inits.index) == steps


@pytest.mark.kernel
def test_the_tree_is_folded_to_what_rules_mention(kvm: Data) -> None:
    stream = io.StringIO()
    render(kvm, stream, flow=True, by_rules=True)
    text = stream.getvalue()
    store = "← first of pte-list-desc-cache-after-tdp-is-known: the store to tdp_enabled"
    assert all(
        re.search(r"─ kvm_configure_mmu\(.*\)  kvm \.text  ←", line) for line in text.splitlines() if store in line
    )
    assert text.count(store) >= 2
    assert '"x86_emulator"' not in text
    assert "kvm-amd, init): " in text
