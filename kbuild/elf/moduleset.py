"""Several modules and their kernel: who provides each import, and what has to be loaded first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec

from kbuild.elf.exports import Export
from kbuild.elf.image import Import, ModuleImage, module_key
from kbuild.elf.kernel import KernelImage
from kbuild.errors import UserError


class Provider(msgspec.Struct, frozen=True):
    """Who gives a module one of its imports."""

    by: Literal["module", "kernel", "nobody", "unknown"]
    """`unknown`: none of the modules does, and the kernel's exports are not at hand."""
    name: str | None = None
    """The module. With `nobody` and `unknown`: the module that should, but is not in the set, where that is known."""
    export: Export | None = None


@dataclass(frozen=True)
class ModuleSet:
    """Modules by name, with the kernel's own exports where they are at hand."""

    modules: Mapping[str, ModuleImage]
    """By `module_key`, sorted."""
    kernel: KernelImage | None

    @classmethod
    def of(cls, images: Iterable[ModuleImage], kernel: KernelImage | None) -> ModuleSet:
        """Raises UserError when two files are the same module."""
        found: dict[str, ModuleImage] = {}
        for image in images:
            other = found.setdefault(module_key(image.name), image)
            if other is not image:
                raise UserError(f"the module {image.name} is there twice: {other.path} and {image.path}; remove one")
        return cls(dict(sorted(found.items())), kernel)

    def __getitem__(self, name: str) -> ModuleImage:
        """The module of that name, however it spells `-` and `_`. Raises UserError."""
        try:
            return self.modules[module_key(name)]
        except KeyError:
            there = ", ".join(image.name for image in self.modules.values())
            raise UserError(f"there is no module {name}; there are: {there}") from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and module_key(name) in self.modules

    @cached_property
    def exporters(self) -> Mapping[str, tuple[tuple[ModuleImage, Export], ...]]:
        """The modules that export a symbol; one, unless something is wrong."""
        found: dict[str, list[tuple[ModuleImage, Export]]] = {}
        for image in self.modules.values():
            for export in image.exports:
                found.setdefault(export.name, []).append((image, export))
        return {name: tuple(pairs) for name, pairs in found.items()}

    def provider(self, module: ModuleImage, symbol: str) -> Provider:
        """Who provides `symbol` to `module`. The kernel comes first, as in `find_symbol()` (kernel/module/main.c)."""
        exports = self.kernel.exports if self.kernel else None
        if exports is not None and symbol in exports:
            return Provider("kernel", export=exports[symbol])
        for image, export in self.exporters.get(symbol, ()):
            if image is not module:
                return Provider("module", image.name, export)
        owner = self.kernel.module_exports.get(symbol) if self.kernel else None
        if owner is not None and owner in self:
            owner = None  # Another build's file of that name exports it, this one does not.
        elif owner is None and len(missing := self.missing_dependencies(module)) == 1 and exports is not None:
            owner = missing[0]
        return Provider("unknown" if exports is None else "nobody", owner)

    def providers(self, module: ModuleImage) -> list[tuple[Import, Provider]]:
        """Each import with its provider, in the file's order."""
        return [(wanted, self.provider(module, wanted.name)) for wanted in module.imports]

    def missing_dependencies(self, module: ModuleImage) -> tuple[str, ...]:
        """What `depends` names and is not in the set."""
        return tuple(name for name in module.depends if name not in self)

    def dependencies(self, module: ModuleImage) -> tuple[str, ...]:
        """The modules of the set that have to be there before `module`, by `depends` and by its imports; sorted."""
        by_imports = {provider.name for _, provider in self.providers(module) if provider.by == "module"}
        names = {module_key(name) for name in by_imports | set(module.depends) if name is not None and name in self}
        return tuple(self.modules[key].name for key in sorted(names - {module_key(module.name)}))

    def load_sequence(self, name: str) -> tuple[str, ...]:
        """What of the set must be loaded before the module `name`, in this order; without the module itself.

        Raises UserError when there is no such module, or when modules need each other in a circle.
        """
        import graphlib

        graph: dict[str, tuple[str, ...]] = {}
        waiting = [self[name].name]
        while waiting:
            current = waiting.pop()
            if current not in graph:
                graph[current] = self.dependencies(self[current])
                waiting += graph[current]
        try:
            order = tuple(graphlib.TopologicalSorter(dict(sorted(graph.items()))).static_order())
        except graphlib.CycleError as error:
            circle = " needs ".join(reversed(error.args[1]))
            raise UserError(f"no order loads {name}: {circle}") from None
        return order[:-1]
