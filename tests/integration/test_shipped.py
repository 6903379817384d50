"""Protects the judgement of files that were built elsewhere: no build, compressed modules, a set that misses one."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

MODULES = ("irqbypass", "kvm", "kvm-amd", "kvm-intel")


@pytest.fixture
def shipped(kernel_build: Path, tmp_path: Path) -> Path:
    """A folder as a distribution ships it: in subfolders, each module compressed in another way."""
    folder = tmp_path / "lib/modules/kernel"
    for number, name in enumerate(MODULES):
        (path,) = kernel_build.glob(f"*/**/{name}.ko")
        target = folder / f"{number}/{name}.ko"
        target.parent.mkdir(parents=True)
        data = path.read_bytes()
        if number % 3 == 0:
            target.write_bytes(data)
        elif number % 3 == 1:
            target.with_name(f"{name}.ko.xz").write_bytes(lzma.compress(data, preset=0))
        else:
            target.with_name(f"{name}.ko.zst").write_bytes(zstandard.compress(data))
    return folder


def gate(tool: Tool, shipped: Path, kernel_build: Path) -> tuple[int, dict[str, Any]]:
    kernel = kernel_build / "arch/x86/boot/bzImage"
    done = tool.run("gate", "--modules", shipped, "--kernel", kernel, "--order", "vendor-alone", "--json")
    return done.returncode, json.loads(done.stdout)


def test_shipped_files_are_judged_without_a_build(tool: Tool, shipped: Path, kernel_build: Path) -> None:
    status, data = gate(tool, shipped, kernel_build)
    assert (status, data["verdict"]) == (0, "PASS")
    assert [stage["name"] for stage in data["stages"]] == ["files", "inspect", "load"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped.rglob("*.ko*")}
    assert digests.items() <= data["artifacts"].items()
    assert {path.name for path in (Path(data["folder"]) / "artifacts").iterdir()} == {*digests, "bzImage"}


def test_a_set_that_misses_one_is_said_to(tool: Tool, shipped: Path, kernel_build: Path) -> None:
    (missing,) = shipped.rglob("irqbypass.ko*")
    missing.unlink()
    status, data = gate(tool, shipped, kernel_build)
    assert status == 10
    found = [one for one in data["findings"] if one["id"].startswith("inspect:unresolved-import:kvm:")]
    assert found
    assert all("irq_bypass" in one["message"] for one in found)
