"""Protects what is remembered of a build, and what reaches it: nothing of a file that has left the tree, and nothing of
the user's own environment; and what is asked for is one thing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kbuild.build.kernel import _is_there
from kbuild.build.toolchain import make_environment
from kbuild.command import run
from kbuild.errors import UserError
from kbuild.gate.judging import Judging
from kbuild.gate.request import GateRequest
from kbuild.progress import Silent


def test_a_message_goes_with_the_source_that_it_was_about(tmp_path: Path) -> None:
    """As Kbuild writes it beside an object (scripts/basic/fixdep.c); make removes no object of a file that is gone."""
    objects = tmp_path / "obj/arch/x86/kvm"
    objects.mkdir(parents=True)
    source = tmp_path / "src/arch/x86/kvm/foo.c"
    source.parent.mkdir(parents=True)
    source.touch()
    (objects / "foo.o").touch()
    (objects / ".foo.o.cmd").write_text(
        "cmd_arch/x86/kvm/foo.o := gcc -c\n\nsource_arch/x86/kvm/foo.o := ../src/arch/x86/kvm/foo.c\n"
    )
    assert _is_there(tmp_path / "obj", "arch/x86/kvm/foo.o")
    source.unlink()
    assert not _is_there(tmp_path / "obj", "arch/x86/kvm/foo.o")
    assert not _is_there(tmp_path / "obj", "arch/x86/kvm/bar.o")
    assert _is_there(tmp_path / "obj", "vmlinux"), "not all names of Kbuild are files"


def test_the_users_environment_is_not_kbuilds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By make itself: what its Makefile is given of the variables that the kernel's takes from there."""
    names = ("LLVM", "LLVM_IAS", "KCPPFLAGS", "KAFLAGS", "KBUILD_VERBOSE", "KBUILD_EXTRA_WARN")
    for name in (*names, "KCONFIG_CONFIG"):
        monkeypatch.setenv(name, "1")
    lines = [f"ifneq ($({name}),)\n$(error {name} = $({name}))\nendif" for name in names]
    lines += ["KCONFIG_CONFIG ?= .config", "all:\n\t@echo $(KCONFIG_CONFIG)"]
    (tmp_path / "Makefile").write_text("\n".join(lines) + "\n")
    assert run(["make", "-s", "-C", tmp_path], env=make_environment(tmp_path)).output == ".config"
    assert os.environ["LLVM"] == "1"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"kernel": "bzImage"}, "--kernel bzImage: give --modules DIR as well"),
        ({"package": "p", "modules": "d", "kernel": "k"}, "--package p and --modules d: give one of them"),
        ({"package": "p", "rev": "HEAD"}, "--rev HEAD: p is built already"),
        ({"modules": "d", "kernel": "k", "rev": "HEAD"}, "--rev HEAD: d is built already"),
    ],
)
def test_sources_that_exclude_each_other_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Judging(GateRequest(task="gate", command="", **asked), Silent())
