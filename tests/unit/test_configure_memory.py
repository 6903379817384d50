"""Protects a configuration that is not made again: only as long as nothing that it was made of has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kbuild.configure.fragment import Fragment
from kbuild.configure.memory import recall, remember
from kbuild.configure.request import Request
from kbuild.outcome import Finding, Status

VARIABLES = {"CC": "gcc", "LOCALVERSION": "-test"}
FINDING = Finding(id="configure:overridden:KVM:fragment", status=Status.DONE, message="m")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A source with what conf reads, and an output with a configuration that is remembered."""
    source, output = tmp_path / "src", tmp_path / "obj"
    for name in ("Kconfig", "Makefile", "arch/x86/Makefile", "arch/x86/kvm/Kconfig", "scripts/cc-version.sh", "x86.c"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    output.mkdir()
    (output / ".config").write_text("CONFIG_KVM=m\n")
    return source, output


def request(text: str = "CONFIG_KVM=m\n") -> Request:
    return Request(fragments=(Fragment.parse(text, "asked.config"),))


def keep(source: Path, output: Path) -> None:
    remember(
        source,
        output,
        request(),
        VARIABLES,
        kconfig_files=["Kconfig", "arch/x86/kvm/Kconfig", "drivers/Kconfig"],
        findings=(FINDING,),
        command="make allnoconfig",
    )


def test_what_did_not_change_is_known(folders: tuple[Path, Path]) -> None:
    source, output = folders
    assert recall(source, output, request(), VARIABLES) is None
    keep(source, output)
    (source / "x86.c").write_text("no configuration reads this")
    known = recall(source, output, request(), VARIABLES)
    assert known
    assert known.findings == (FINDING,)


def write(name: str) -> Callable[[Path, Path], object]:
    def change(source: Path, output: Path) -> object:
        return (output if name == ".config" else source).joinpath(name).write_text("another")

    return change


@pytest.mark.parametrize(
    "change",
    [
        write("arch/x86/kvm/Kconfig"),
        write("scripts/cc-version.sh"),
        write("scripts/new.sh"),
        write("Makefile"),
        write(".config"),
        lambda source, _: (source / "scripts/cc-version.sh").unlink(),
        lambda source, _: ((source / "drivers").mkdir(), (source / "drivers/Kconfig").write_text("it is there now")),
        lambda _, output: (output / "kvm-kbuild.configuration.json").write_text("{"),
    ],
    ids=["a Kconfig file", "a script", "a new script", "the Makefile", ".config", "gone", "come into being", "damage"],
)
def test_what_changed_is_not(folders: tuple[Path, Path], change: Callable[[Path, Path], object]) -> None:
    source, output = folders
    keep(source, output)
    change(source, output)
    assert recall(source, output, request(), VARIABLES) is None


def test_another_request_is_not(folders: tuple[Path, Path]) -> None:
    source, output = folders
    keep(source, output)
    assert recall(source, output, request("CONFIG_KVM=y\n"), VARIABLES) is None
    assert recall(source, output, msgspec.structs.replace(request(), base="defconfig"), VARIABLES) is None
    assert recall(source, output, request(), {**VARIABLES, "CC": "clang"}) is None
