"""Protects what is worked out from a diff: which areas a series is in, and which module parameters it may change.

A parameter that is overlooked is one that nobody tries; the modules of the kernel under test say which there are.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from kbuild.bar.ask import both_of
from kbuild.bar.touched import (
    areas_of,
    changed_files,
    code_files,
    file_at,
    modules_of_objects,
    parameter_order,
    parameters_in,
    touched,
    with_parameters,
)
from kbuild.barrecord import Parameter
from kbuild.barspec import BarSettings
from kbuild.elf.image import read_module
from kbuild.errors import HarnessError
from kbuild.load.orders.read import read_order
from kbuild.profile import read_profile

MMU = "arch/x86/kvm/mmu/mmu.c"
GIT = {
    **os.environ,
    **{
        f"GIT_{who}_{what}": "a@example.org" if what == "EMAIL" else "A"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


@pytest.fixture(scope="module")
def settings() -> BarSettings:
    found = read_profile("kvm-x86").settings.bar
    assert found is not None
    return found


@pytest.mark.kernel
def test_each_parameter_of_the_modules_is_found_in_the_source(kernel_source: Path, kernel_build: Path) -> None:
    """What the modules say of themselves is complete; a source that is not compiled has more."""
    modules = modules_of_objects(kernel_build)
    declared: dict[str, dict[str, str]] = {}
    for source, module in modules.items():
        file = kernel_source / f"{source}.c"
        for one in parameters_in(file.read_text("utf-8", "replace")) if file.is_file() else ():
            declared.setdefault(module, {})[one.name] = one.kind
    for module in ("kvm", "kvm-intel", "kvm-amd"):
        image = read_module(kernel_build / f"arch/x86/kvm/{module}.ko")
        there = {one.name: one.type for one in image.parameters}
        assert there
        assert there.keys() <= declared[module].keys(), module
        for name, kind in there.items():
            # Operations of their own have no type, or one that __MODULE_PARM_TYPE() says.
            assert kind in (None, declared[module][name]) or declared[module][name].endswith("_ops"), name
        # kvm_main.c is kvm.ko's, wherever Kbuild found it.
    assert modules["virt/kvm/kvm_main"] == "kvm"
    assert modules["arch/x86/kvm/vmx/vmx"] == "kvm-intel"


def test_parameters_of_every_form() -> None:
    source = """
/* module_param(commented, bool, 0444); */
module_param(plain, bool, 0444); // module_param(behind, int, 0444);
module_param_named(shown, variable, int, S_IRUGO | S_IWUSR);
static const struct kernel_param_ops my_ops = { .set = set };
module_param_cb(called, &my_ops, &variable,
                0644);
module_param_array(several, ushort, NULL, 0444);
module_param_array_named(others, variable, int, &count, 0444);
module_param_string(text, buffer, sizeof(buffer), 0);
module_param_unsafe(tainted, bint, 0444);
module_param_hw_named(port, variable, uint, ioport, 0444);
#define mine(x) module_param(x, bool, 0)
"""
    assert [(one.name, one.kind) for one in parameters_in(source)] == [
        ("plain", "bool"),
        ("shown", "int"),
        ("called", "my_ops"),
        ("several", "array of ushort"),
        ("others", "array of int"),
        ("text", "string"),
        ("tainted", "bint"),
        ("port", "uint"),
    ]


def test_a_file_is_in_the_first_area_that_has_it(settings: BarSettings) -> None:
    files = (MMU, "arch/x86/kvm/mmu/tdp_mmu.c", "arch/x86/kvm/x86.c", "arch/x86/kvm/mmu.h")
    shadow, common = areas_of(files, settings.area)
    assert (shadow.name, shadow.files, shadow.must) == ("shadow paging", (MMU,), True)
    assert (common.name, common.files, common.must) == (
        "common MMU code",
        ("arch/x86/kvm/mmu/tdp_mmu.c", "arch/x86/kvm/mmu.h"),
        False,
    )
    assert not [*areas_of(("arch/x86/kvm/vmx/vmx.c",), settings.area)]


def test_what_two_commits_differ_in(tmp_path: Path, settings: BarSettings) -> None:
    tree = tmp_path / "tree"

    def commit(files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for argv in (["add", "--all"], ["commit", "--quiet", "--message=c"]):
            subprocess.run(["git", "-C", tree, *argv], check=True, env=GIT)
        done = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    tree.mkdir()
    subprocess.run(["git", "-C", tree, "init", "--quiet"], check=True)
    base = commit({MMU: "module_param(old, bool, 0444);\nmodule_param(kept, bool, 0444);\n", "README": "a\n"})
    tip = commit(
        {
            MMU: "module_param(kept, bool, 0444);\nmodule_param(fresh, int, 0444);\nmodule_param(off, bool, 0);\n"
            "module_param_cb(typed, &my_ops, &typed, 0);\n",
            "Documentation/virt/kvm/a b\x07.rst": "x\n",
            "tools/testing/selftests/kvm/x86/new_test.c": "\n",
            "arch/x86/kvm/vmx/a.h": "module_param(no_code, bool, 0);\n",
        }
    )
    found = touched(settings, str(tree), base, tip)
    assert {*changed_files(str(tree), base, tip)} == {*found.files} == {*found.files} - {"README"}
    assert found.docs == ("Documentation/virt/kvm/a b\x07.rst",)
    assert found.tests == ("tools/testing/selftests/kvm/x86/new_test.c",)
    assert [area.name for area in found.areas] == ["shadow paging"]
    assert code_files(settings, found.files) == (MMU,)
    assert file_at(str(tree), base, "nothing") == ""
    with pytest.raises(HarnessError, match="cannot be read"):
        file_at(str(tree), "0" * 40, MMU)
    assert touched(settings, str(tree), tip, base).tests == (), "it is gone there"
    sources = {MMU: (file_at(str(tree), base, MMU), file_at(str(tree), tip, MMU))}
    modules = {"arch/x86/kvm/mmu/mmu": "kvm"}
    parameters = with_parameters(settings, sources, modules, {"kvm": {"kept": "bool", "fresh": "int", "typed": "bool"}})
    assert {one.full: (one.values, one.gone, one.absent) for one in parameters} == {
        "kvm.old": ((), True, False),
        "kvm.kept": ((1, 0), False, False),
        "kvm.fresh": ((), False, False),  # no switch, and nobody gave values
        "kvm.off": ((), False, True),
        "kvm.typed": ((1, 0), False, False),
    }
    assert all(not one.module for one in with_parameters(settings, sources, {}, {}))


def test_an_area_takes_no_run_of_an_order_away() -> None:
    """Nor does it bring those back that nobody asked for."""
    a, b, c = (Path(name) for name in "abc")
    assert both_of({a: ("1",), b: ()}, {a: ("2", "1"), b: ("1",), c: ("3",)}) == {a: ("1", "2"), b: (), c: ("3",)}
    assert both_of({a: ("1",)}, {a: ()}) == {a: ()}


def test_the_order_is_one_that_can_be_run(tmp_path: Path) -> None:
    parameters = [
        Parameter("kvm", "nx_huge_pages", "ops", MMU, values=("off", 'a"\\b')),
        Parameter("kvm-intel", "ept", "bool", "v", values=(1, 0)),
        Parameter("kvm-amd", "npt", "bool", "v", values=(1, 0)),
        Parameter("kvm", "left", "int", MMU),
    ]
    text = parameter_order(parameters)
    assert text is not None
    assert "left" not in text
    path = tmp_path / "touched-parameters.toml"
    path.write_text(text)
    order = read_order(path)
    assert [(table.module, table.when.cpu) for table in order.matrix] == [
        ("kvm", None),
        ("kvm-intel", "intel"),
        ("kvm-amd", "amd"),
    ]
    assert tomllib.loads(text)["matrix"][0]["params"]["nx_huge_pages"] == ["off", 'a"\\b']
    assert parameter_order(parameters[3:]) is None
