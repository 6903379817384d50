"""kconfiglib as we run it: the syntax of kernels up to 7.2, the lines that it names, and life without a compiler.

The trees are small Kconfig files; each rule that is tested is one of the kernel's scripts/kconfig or of its tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kbuild.configure.answer import Answer, Explanation, Problem, Question
from kbuild.configure.fragment import Fragment
from kbuild.configure.kconfig import ask
from kbuild.errors import HarnessError

HEAD = """\
config MODULES
	bool "modules"
	modules

"""


class Asker:
    """A Kconfig tree and questions to it."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.machine = True

    def write(self, text: str, name: str = "Kconfig") -> None:
        path = self._source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def ask(self, requests: str, **what: Any) -> Answer:
        environment = {"srctree": str(self._source), "SRCARCH": "x86", "PATH": os.environ["PATH"]}
        return ask(
            Question(
                environment=environment,
                folder=str(self._source),
                machine=self.machine,
                options=Fragment.parse(requests, "f.config").options,
                **what,
            )
        )

    def predict(self, requests: str) -> dict[str, str]:
        return self.ask(requests, predict=True).predicted or {}

    def problem(self, name: str, requests: str, result: str = "") -> Problem:
        """Why `name` did not take effect, in the configuration `result`."""
        self.write(result, "result")
        (problem,) = self.ask(requests, refused=(name,), config=str(self._source / "result")).problems
        return problem

    def explain(self, name: str, requests: str = "") -> Explanation:
        explanation = self.ask(requests, explain=name).explanation
        assert explanation is not None
        return explanation


@pytest.fixture
def tree(tmp_path: Path) -> Asker:
    return Asker(tmp_path)


@pytest.mark.parametrize(("condition", "most"), [("y", "m"), ("m", "m"), ("n", "y")])
def test_depends_on_x_if_y_holds_for_m_as_well(tree: Asker, condition: str, most: str) -> None:
    tree.write(
        HEAD + 'config X\n\ttristate "x"\n\nconfig Y\n\ttristate "y"\n\n'
        'config Z\n\ttristate "z"\n\tdepends on X if Y # why\n'
    )
    got = tree.predict(f"CONFIG_MODULES=y\nCONFIG_X=m\nCONFIG_Y={condition}\nCONFIG_Z=y\n")
    assert got["Z"] == most


def test_depends_on_if_with_a_condition_of_several_parts(tree: Asker) -> None:
    tree.write(
        "".join(f'config {name}\n\tbool "{name}"\n\n' for name in "ABX")
        + 'config Z\n\tbool "z"\n\tdepends on X if A && \\\n\t\t!B\n'
    )
    asked = {"": "y", "CONFIG_A=y\n": "", "CONFIG_A=y\nCONFIG_B=y\n": "y", "CONFIG_A=y\nCONFIG_X=y\n": "y"}
    assert {more: tree.predict(f"{more}CONFIG_Z=y\n").get("Z", "") for more in asked} == asked


def test_transitional_symbols_are_read_and_have_no_say(tree: Asker) -> None:
    tree.write(
        HEAD + "config OLD\n\tbool\n\ttransitional\n\thelp\n\t  modules\n\t  transitional\n\n"
        'config NEW\n\tbool "new"\n\tdefault OLD\n'
    )
    assert tree.predict("CONFIG_NEW=y\n") == {"MODULES": "n", "NEW": "y"}
    assert tree.explain("OLD").help == "modules\ntransitional"


@pytest.mark.parametrize(("conf", "expected"), [('"0x0"', "y"), ("", "n")])
def test_an_unset_number_reads_zero_where_the_trees_own_conf_says_so(tree: Asker, conf: str, expected: str) -> None:
    tree.write(f"newval.val = {conf};\n", "scripts/kconfig/symbol.c")
    tree.write("config SIZE\n\tint\n\nconfig NONE\n\tdef_bool SIZE = 0\n")
    assert tree.predict("").get("NONE", "n") == expected


NESTED = """\
config OUTER
	bool "outer"

if OUTER
source "sub/Kconfig"
endif
"""
NESTED_SUB = """\
config NEAR
	bool "near, and of another symbol"
	depends on INNER

config INNER
	bool "inner"

menu "menu"
	depends on INNER
	visible if SHOWN

config DEEP
	bool "deep"
	depends on INNER && \\
		!OTHER
endmenu

config SHOWN
	bool "shown"

config OTHER
	bool "other"
"""


def test_blockers_are_the_lines_that_demand_them(tree: Asker) -> None:
    tree.write(NESTED)
    tree.write(NESTED_SUB, "sub/Kconfig")
    problem = tree.problem("DEEP", "CONFIG_DEEP=y\n")
    assert problem.kind == "blocked"
    assert [(part.word, part.expression, str(part.place)) for part in problem.blockers] == [
        ("depends on", "INNER", "sub/Kconfig:15"),
        ("visible if", "SHOWN", "sub/Kconfig:10"),
        ("if", "OUTER", "Kconfig:4"),
    ]
    assert "INNER is n (sub/Kconfig:5), for 'if OUTER' (Kconfig:4)" in problem.message
    assert str(problem).startswith("f.config:1: ")
    met = "CONFIG_OUTER=y\nCONFIG_INNER=y\nCONFIG_SHOWN=y\nCONFIG_OTHER=y\n"
    assert [part.expression for part in tree.problem("DEEP", "CONFIG_DEEP=y\n", met).blockers] == ["!OTHER"]


KINDS = (
    HEAD
    + """\
config HIDDEN
	bool

config FORCED
	tristate "forced"

config FORCER
	bool "forcer"
	select FORCED
	select HIDDEN

config LIMIT
	tristate "limit"

config LIMITED
	tristate "limited"
	depends on LIMIT

config NUMBER
	int "number"
	range 2 8
	default 4

choice
	prompt "one"
config ONE
	bool "one"
config TWO
	bool "two"
endchoice
"""
)


@pytest.mark.parametrize(
    ("name", "wanted", "result", "kind", "words"),
    [
        ("HIDDEN", "y", "", "promptless", "it is selected by FORCER (Kconfig:14)"),
        ("FORCED", "n", "CONFIG_FORCER=y\n", "forced", "selected by FORCER (Kconfig:13)"),
        (
            "LIMITED",
            "y",
            "CONFIG_MODULES=y\nCONFIG_LIMIT=m\nCONFIG_LIMITED=m\n",
            "limited",
            "limits it to m: LIMIT is m",
        ),
        ("FORCED", "m", "CONFIG_FORCED=y\n", "forced", "without MODULES there is no m"),
        ("NUMBER", "9", "CONFIG_NUMBER=4\n", "range", "its range is 2 to 8"),
        ("TWO", "y", "CONFIG_ONE=y\n", "choice", "where ONE is taken"),
        ("FORCER", "m", "", "type", "a bool takes y or n"),
        ("NUMBER", "0x9", "", "type", "an int takes a decimal number"),
        ("FORCDE", "y", "", "unknown", "nearest: FORCE"),
    ],
)
def test_each_way_in_which_a_request_can_fail(
    tree: Asker, name: str, wanted: str, result: str, kind: str, words: str
) -> None:
    tree.write(KINDS)
    problem = tree.problem(name, f"CONFIG_{name}={wanted}\n", result)
    assert (problem.kind, words in problem.message) == (kind, True), problem.message
    assert "\n" not in problem.message


def test_a_symbol_of_another_architecture_is_named_so(tree: Asker) -> None:
    tree.write("config A\n\tbool\n")
    tree.write("\nconfig ARM64_PAN\n\tbool\n", "arch/arm64/Kconfig")
    assert "another architecture (arch/arm64/Kconfig:2)" in tree.problem("ARM64_PAN", "CONFIG_ARM64_PAN=y\n").message


def test_without_a_compiler_what_asks_it_reads_n_and_is_said(tree: Asker) -> None:
    tree.machine = False
    tree.write(
        "$(error-if,$(shell,command -v no-such-compiler >/dev/null && echo n || echo y),there is no compiler)\n"
        'config CAN\n\tdef_bool $(shell,no-such-compiler && echo y)\n\nconfig USES\n\tbool "uses"\n\tdepends on CAN\n'
    )
    explanation = tree.explain("USES", "CONFIG_USES=y\n")
    assert explanation.value == "n"
    assert "could not be evaluated" in explanation.note
    assert explanation.note.endswith("CAN")
    assert "'depends on CAN' (Kconfig:7) does not hold" in explanation.answer


def test_kconfig_files_that_cannot_be_read_are_one_line(tree: Asker) -> None:
    tree.write("config A\n\tbogus\n")
    with pytest.raises(HarnessError, match="Kconfig:2") as caught:
        tree.predict("")
    assert "\n" not in str(caught.value)
