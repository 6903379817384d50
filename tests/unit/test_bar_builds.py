"""Protects what stands in for modpost where KVM alone was built: what a module wants since the base, and nobody gives.

The modules are those of the kernel under test, with names of imports written over.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kbuild.bar.builds import unprovided
from kbuild.build.artifacts import put
from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.outcome import Status

pytestmark = pytest.mark.kernel
FILES = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko")


@pytest.fixture
def modules(kernel_build: Path) -> dict[str, Path]:
    return {path.name: path for path in (kernel_build / file for file in FILES)}


def kept(modules: dict[str, Path]) -> dict[str, str]:
    """As a build keeps them."""
    return {name: put(path) for name, path in modules.items()}


def wants(modules: dict[str, Path], folder: Path, before: str, after: str) -> dict[str, Path]:
    """The modules, of which kvm-amd.ko imports another symbol."""
    assert len(before) == len(after)
    path = folder / "kvm-amd.ko"
    path.write_bytes(modules[path.name].read_bytes().replace(f"\0{before}\0".encode(), f"\0{after}\0".encode()))
    return {**modules, path.name: path}


def images(modules: dict[str, Path]) -> tuple[ModuleImage, ModuleImage, list[str]]:
    """kvm.ko, kvm-amd.ko, and what this one imports of that one."""
    found = ModuleSet.of(map(read_module, modules.values()), None)
    amd = found["kvm-amd"]
    return found["kvm"], amd, [wanted.name for wanted, provider in found.providers(amd) if provider.name == "kvm"]


def test_the_base_s_own_imports_are_nobody_s_fault(modules: dict[str, Path], kernel_source: Path) -> None:
    assert unprovided(kept(modules), kept(modules), kernel_source) == []


def test_a_symbol_that_kvm_does_not_export(modules: dict[str, Path], kernel_source: Path, tmp_path: Path) -> None:
    kvm, _, imports = images(modules)
    exported = {one.name for one in kvm.exports}
    own = [one.name for one in kvm.symbols if one.defined and one.binding == "global" and one.kind == "func"]
    hidden, instead = next(
        (name, wanted) for name in own for wanted in imports if name not in exported and len(name) == len(wanted)
    )
    after = kept(wants(modules, tmp_path, instead, hidden))
    (finding,) = unprovided(kept(modules), after, kernel_source)
    assert finding.status == Status.FAIL
    assert finding.message.endswith(f"needs {hidden}: kvm has it and does not export it")


def test_a_symbol_of_the_kernel(modules: dict[str, Path], kernel_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "lib/vsprintf.c"
    source.parent.mkdir()
    shutil.copy(kernel_source / "lib/vsprintf.c", source)
    _, amd, imports = images(modules)
    known = {wanted.name for wanted in amd.imports}
    # lib/vsprintf.c exports it, in whatever configuration; nobody has the other one.
    for name, status in (("snprintf", None), ("snprimtf", Status.ERROR)):
        assert name not in known
        instead = next(one for one in [*imports, *known] if len(one) == len(name))
        after = kept(wants(modules, tmp_path, instead, name))
        found = unprovided(kept(modules), after, tmp_path)
        assert [one.status for one in found] == ([status] if status else [])


def test_what_cannot_be_looked_into_is_not_taken_for_right(
    modules: dict[str, Path], kernel_source: Path, tmp_path: Path
) -> None:
    before = kept(modules)
    broken = tmp_path / "kvm-amd.ko"
    broken.write_bytes(b"no ELF file")
    for after, why in (
        ({**before, "kvm-amd.ko": put(broken)}, "not an ELF object$"),
        ({**before, "kvm-amd.ko": "0" * 64}, "kvm-amd.ko is not in the cache any more"),
    ):
        (found,) = unprovided(before, after, kernel_source)
        assert found.status == Status.ERROR
        assert re.search(why, found.message)
