"""Protects what is said of documentation: what a patch brings is new, what moved by some lines is not, and what
is said only because the rest of the tree was not made is no warning.

The lines are what sphinx 5.3.0 printed of 6.1's Documentation/virt/kvm/x86 with a section that refers to nothing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.bar.docs import folders_of, leads_elsewhere, new_warnings, warnings_in

SOURCE = Path("/build/src")
SAID = f"""\
make: Entering directory '{SOURCE}'
  SPHINX  htmldocs --> file:///out/Documentation/output/virt/kvm/x86
  PARSE   include/uapi/linux/lirc.h
Using classic theme
source directory: virt/kvm/x86
WARNING: dot(1) not found, for better output quality install graphviz from https://www.graphviz.org
{SOURCE}/Documentation/virt/kvm/x86/mmu.rst:489: WARNING: undefined label: 'nowhere-at-all'
{SOURCE}/virt/kvm/kvm_main.c:12: warning: Function parameter or member 'x' not described in 'f'
make: Leaving directory '{SOURCE}'
""".splitlines()


def test_warnings_of_sphinx_and_of_kernel_doc() -> None:
    found = warnings_in(SAID, SOURCE)
    assert found[1:] == [
        "Documentation/virt/kvm/x86/mmu.rst:489: WARNING: undefined label: 'nowhere-at-all'",
        "virt/kvm/kvm_main.c:12: warning: Function parameter or member 'x' not described in 'f'",
    ]
    assert found[0].startswith("WARNING: dot(1)")


def test_a_line_that_moved_is_not_new() -> None:
    before = ["a.rst:10: WARNING: x", "a.rst:20: WARNING: y"]
    assert new_warnings(before, ["a.rst:14: WARNING: x", "b.rst:14: WARNING: x"]) == ["b.rst:14: WARNING: x"]


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (("Documentation/virt/kvm/api.rst", "Documentation/virt/kvm/x86/mmu.rst"), ("virt/kvm",)),
        (("Documentation/virt/kvm/x86/mmu.rst", "Documentation/virt/kvmx/a.rst"), ("virt/kvm/x86", "virt/kvmx")),
        (("Documentation/index.rst",), ("",)),
    ],
)
def test_folders_that_are_made(files: tuple[str, ...], folders: tuple[str, ...]) -> None:
    assert folders_of(files) == folders


def test_what_is_in_another_folder_is_not_missing(tmp_path: Path) -> None:
    folder = tmp_path / "Documentation/process"
    folder.mkdir(parents=True)
    (folder / "there.rst").write_text(".. _A Label:\n\nText\n====\n")
    for argv in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", "-C", tmp_path, *argv], check=True)
    for text, elsewhere in (
        ("undefined label: 'a label'", True),
        ("undefined label: 'a labe'", False),
        ("undefined label: a label (if the link has no caption the label must precede a section header)", True),
        ("unknown document: process/there", True),
        ("unknown document: '../process/there'", True),
        ("unknown document: '/process/there'", True),
        ("unknown document: '../process/nowhere'", False),
        ("Title underline too short.", False),
    ):
        warning = f"Documentation/virt/x.rst:1: WARNING: {text}"
        assert leads_elsewhere(warning, tmp_path) == elsewhere, text
