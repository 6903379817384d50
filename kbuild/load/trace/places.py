"""Functions by address, of modules that may be gone when their trace is read."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from kbuild.elf.image import ModuleImage, module_key
from kbuild.elf.moduleset import ModuleSet


@dataclass
class Places:
    """Where the sections of loaded modules were."""

    modules: ModuleSet
    _functions: dict[str, tuple[list[int], list[tuple[int, str]]]] = field(default_factory=dict)
    """Of a module ascending addresses, and of each the end and the name of the function there."""

    def note(self, module: str, sections: Iterable[str]) -> None:
        """A module is loaded: `sections` as the agent tells them, `NAME ADDRESS`. What is malformed is left out."""
        bases: dict[str, int] = {}
        for one in sections:
            name, _, address = one.rpartition(" ")
            try:
                bases[name] = int(address, 16)
            except ValueError:
                continue
        image = next((one for one in self.modules.modules.values() if module_key(one.name) == module), None)
        found = sorted(_functions(image, bases)) if image is not None else []
        self._functions[module] = [start for start, _, _ in found], [(end, name) for _, end, name in found]

    def function(self, address: int) -> tuple[str, str] | None:
        """The module and the name of the function that begins there, or goes on."""
        for module, (starts, rest) in self._functions.items():
            index = bisect.bisect_right(starts, address) - 1
            if index >= 0 and address < rest[index][0]:
                return module, rest[index][1]
        return None


def _functions(image: ModuleImage, bases: dict[str, int]) -> Iterable[tuple[int, int, str]]:
    names = {section.index: section.name for section in image.sections}
    for symbol in image.symbols:
        base = bases.get(names.get(symbol.section, "")) if symbol.section is not None else None
        if base is not None and symbol.kind == "func" and symbol.size:
            yield base + symbol.value, base + symbol.value + symbol.size, symbol.name
