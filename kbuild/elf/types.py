"""Structs of modules by name, from whatever type information there is: BTF, else DWARF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbuild.elf.btf import Btf, SplitBtfError
from kbuild.elf.contents import MalformedError
from kbuild.elf.image import ModuleImage
from kbuild.elf.kernel import KernelImage
from kbuild.elf.object import ElfObject
from kbuild.elf.structs import StructLayout
from kbuild.errors import UserError

if TYPE_CHECKING:
    from kbuild.elf.dwarftypes import DwarfTypes

_NOTHING = "the module has no type information, neither BTF (CONFIG_DEBUG_INFO_BTF_MODULES) nor DWARF"


class Types:
    """Of a set of modules and their kernel. Nothing is read before it is asked for."""

    def __init__(self, kernel: KernelImage | None) -> None:
        self._kernel_btf = kernel.btf if kernel is not None else None
        self._has_kernel = kernel is not None
        self._base: Btf | None = None
        self._modules: dict[str, tuple[Btf | str, DwarfTypes | None]] = {}

    def struct(self, module: ModuleImage, name: str) -> StructLayout:
        """A struct or union of a module. `name`: with or without that word. Raises UserError for a damaged file."""
        plain = name.removeprefix("struct ").removeprefix("union ").strip()
        try:
            btf, dwarf = self._of(module)
            found = btf.struct(plain) if isinstance(btf, Btf) else None
            found = found or (dwarf.struct(plain) if dwarf is not None else None)
        except MalformedError as problem:
            raise UserError(f"{module.path}: {problem}") from None
        if found is not None:
            return found
        sources = [*(["BTF"] if isinstance(btf, Btf) else []), *(["DWARF"] if dwarf is not None else [])]
        why = f"no struct or union in its {' and '.join(sources)} is called {plain}" if sources else ""
        if isinstance(btf, str) and (not sources or btf != _NOTHING):
            why = f"{why}; {btf}" if why else btf
        return StructLayout(plain, None, None, None, (), why)

    def _of(self, module: ModuleImage) -> tuple[Btf | str, DwarfTypes | None]:
        known = self._modules.get(module.name)
        if known is None:
            elf = module.object()
            dwarf = None
            if ".debug_info" in elf.by_name:
                from kbuild.elf.dwarftypes import DwarfTypes

                dwarf = DwarfTypes(elf)
            known = self._modules[module.name] = self._btf(elf), dwarf
        return known

    def _btf(self, elf: ElfObject) -> Btf | str:
        """A module's BTF, or why there is none that can be read."""
        data = elf.content(elf.by_name.get(".BTF"))
        if not data:
            return _NOTHING
        if distilled := elf.content(elf.by_name.get(".BTF.base")):
            return Btf(data, Btf(distilled))
        if (alone := _fitting(data, None)) is not None:
            return alone
        if self._kernel_btf is None:
            return (
                "the kernel that was given has no BTF, and the module's goes on where that ends"
                if self._has_kernel
                else "the module's BTF goes on where its kernel's ends: give that kernel's bzImage"
            )
        if self._base is None:
            self._base = Btf(self._kernel_btf)
        return _fitting(data, self._base) or (
            "the module's BTF does not go on where that of this kernel ends: give the kernel of its build"
        )


def _fitting(data: bytes, base: Btf | None) -> Btf | None:
    """A module's BTF, if that is what it goes on from."""
    found = Btf(data, base)
    try:
        found.check()
    except SplitBtfError:
        return None
    return found
