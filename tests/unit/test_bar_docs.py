"""Protects what is said of documentation: what a patch brings is new, what moved by some lines is not, and what
is said only because the rest of the tree was not made is no warning.

The lines are what sphinx 5.3.0 printed of 6.1's Documentation/virt/kvm/x86 with a section that refers to nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kbuild.bar.docs import folders_of, leads_elsewhere, made_folders, new_warnings, warnings_in

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


def test_the_same_once_more_is_new() -> None:
    before = ["a.rst:10: WARNING: x"]
    assert new_warnings(before, ["a.rst:4: WARNING: x", "a.rst:14: WARNING: x"]) == ["a.rst:14: WARNING: x"]


def committed(tree: Path, *files: str) -> str:
    """A commit that has these files of Documentation/ and no others."""
    shutil.rmtree(tree / "Documentation", ignore_errors=True)
    for name in files:
        path = tree / "Documentation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Text\n====\n")
    for argv in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=c"]):
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tree, *who, *argv], check=True)
    done = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_of_a_folder_that_is_deleted_the_one_above_is_made(tmp_path: Path) -> None:
    """There stands what still leads to its pages. To make nothing would be to find nothing."""
    tree = tmp_path / "tree"
    tree.mkdir()
    base = committed(tree, "virt/index.rst", "virt/kvm/x86/mmu.rst", "arch/a.rst")
    tip = committed(tree, "virt/index.rst", "arch/a.rst", "arch/new/b.rst")

    def made(*files: str) -> tuple[str, ...]:
        return made_folders(str(tree), (base, tip), [f"Documentation/{one}" for one in files])

    assert made("virt/kvm/x86/mmu.rst") == ("virt",)
    assert made("virt/kvm/x86/mmu.rst", "arch/new/b.rst") == ("arch", "virt")
    assert made("arch/a.rst") == ("arch",)
    assert made_folders(str(tree), (base, committed(tree, "index.rst")), ["Documentation/arch/a.rst"]) == ("",)


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
