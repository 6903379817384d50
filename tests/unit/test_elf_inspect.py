"""Protects the inspection of real modules: one build is in order, what is taken from it or changed in it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kbuild import outcome
from kbuild.elf.inspect import find_modules, inspect, to_json
from kbuild.elf.kernel import KernelImage, read_build, read_kernel
from kbuild.outcome import Status

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(kernel_build: Path) -> KernelImage:
    return read_build(kernel_build)


@pytest.fixture
def modules(kernel_build: Path, tmp_path: Path) -> Path:
    """The modules of the build, to be changed."""
    for path in find_modules(kernel_build):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def test_one_build_is_in_order(kernel_build: Path, kernel: KernelImage) -> None:
    inspection = inspect(find_modules(kernel_build), kernel)
    assert inspection.findings == ()
    assert inspection.verdict == Status.PASS
    for vendor in ("kvm-intel", "kvm_amd"):
        assert inspection.modules.load_sequence(vendor) == ("irqbypass", "kvm")
    intel = inspection.modules["kvm-intel"]
    by = {used.name: (provider.by, provider.name) for used, provider in inspection.modules.providers(intel)}
    assert by["kvm_x86_vendor_init"] == ("module", "kvm")
    assert by["_printk"] == ("kernel", None)


def test_the_bzimage_alone_is_enough(kernel_build: Path, modules: Path) -> None:
    kernel = read_kernel(bzimage=kernel_build / "arch/x86/boot/bzImage")
    assert inspect(find_modules(modules), kernel).findings == ()
    (modules / "irqbypass.ko").unlink()
    found = inspect(find_modules(modules), kernel)
    assert {finding.id for finding in found.findings} == {
        f"inspect:unresolved-import:kvm:irq_bypass_{what}"
        for what in ("register_consumer", "unregister_consumer")
    }  # fmt: skip
    assert found.verdict == Status.FAIL


def test_without_a_kernel(modules: Path) -> None:
    inspection = inspect(find_modules(modules))
    assert [finding.status for finding in inspection.findings] == [Status.DONE]
    assert inspection.verdict == Status.PASS
    (modules / "kvm.ko").unlink()
    inspection = inspect(find_modules(modules))
    assert {"inspect:missing-dependency:kvm-amd:kvm", "inspect:missing-dependency:kvm-intel:kvm"} <= {
        finding.id for finding in inspection.findings
    }
    assert inspection.verdict == Status.ERROR


def test_a_changed_vermagic_is_found(modules: Path, kernel: KernelImage) -> None:
    path = modules / "kvm-amd.ko"
    assert kernel.vermagic is not None
    data = path.read_bytes()
    other = kernel.vermagic.replace("mod_unload", "mod_unlade")
    assert other != kernel.vermagic
    path.write_bytes(data.replace(b"vermagic=" + kernel.vermagic.encode(), b"vermagic=" + other.encode()))
    inspection = inspect(find_modules(modules), kernel)
    assert {finding.id for finding in inspection.findings} == {
        "inspect:vermagic:kvm-amd:differs",
        "inspect:mixed-builds:set:vermagic",
    }
    assert inspection.verdict == Status.FAIL


def test_json(kernel_build: Path, kernel: KernelImage) -> None:
    inspection = inspect(find_modules(kernel_build), kernel)
    data = json.loads(outcome.to_json(to_json(inspection)))
    assert data["verdict"] == "PASS"
    assert data["findings"] == []
    assert data["kernel"]["vermagic"] == kernel.vermagic
    by_name = {module["name"]: module for module in data["modules"]}
    assert set(by_name) == {"irqbypass", "kvm", "kvm-amd", "kvm-intel"}
    amd = by_name["kvm-amd"]
    assert amd["path"] == str(kernel_build / "arch/x86/kvm/kvm-amd.ko")
    assert amd["dependencies"] == ["kvm"]
    assert {"name": "npt", "type": "bool", "description": None} in amd["parameters"]
    imports = {used["name"]: used for used in amd["imports"]}
    assert imports["kvm_x86_vendor_init"]["provider"] == "kvm"
    assert imports["_printk"]["provider"] == imports["_printk"]["by"] == "kernel"
    init = next(symbol for symbol in amd["symbols"] if symbol["name"] == "init_module")
    assert init["section"] == ".init.text"
    parts = {section["name"]: section["part"] for section in amd["sections"]}
    assert parts[".init.text"] == "init"
    assert amd["bytes"]["init"] == sum(s["size"] for s in amd["sections"] if s["name"].startswith(".init"))


def test_a_finding_in_json_has_all_keys(modules: Path) -> None:
    (modules / "irqbypass.ko").unlink()
    data = to_json(inspect(find_modules(modules)))
    keys = {"id", "rule", "module", "status", "answer", "known", "message", "witness"}
    assert data["findings"]
    assert all(set(finding) == keys for finding in data["findings"])
