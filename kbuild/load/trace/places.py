"""Functions by address, of modules that may be gone when their trace is read."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from kbuild.elf.image import ModuleImage, module_key
from kbuild.elf.moduleset import ModuleSet

Function = tuple[str, str]
"""A module, by the kernel's name, and its function."""
UNKNOWN = "?"
INIT = ".init"
"""Sections that are freed after the load begin so."""


@dataclass
class Places:
    """Where the sections of loaded modules were."""

    modules: ModuleSet
    _functions: dict[str, tuple[list[int], list[tuple[int, str]]]] = field(default_factory=dict)
    """Of a module ascending addresses of what stays, and of each the end and the name of the function there."""
    _init: dict[Function, tuple[int, int]] = field(default_factory=dict)
    """From where to where functions were that are freed after the load."""

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
        stays = [(start, end, name) for start, end, name, section in found if not section.startswith(INIT)]
        self._functions[module] = [start for start, _, _ in stays], [(end, name) for _, end, name in stays]
        names = {name for _, _, name in stays}
        self._init |= {
            (module, name): (start, end)
            for start, end, name, section in found
            if section.startswith(INIT) and name not in names
        }

    def function(self, address: int) -> Function | None:
        """The module and the name of the function that begins there, or goes on."""
        for module, (starts, rest) in self._functions.items():
            index = bisect.bisect_right(starts, address) - 1
            if index >= 0 and address < rest[index][0]:
                return module, rest[index][1]
        return None

    def really(self, module: str, name: str) -> Function:
        """The function that the kernel takes for another module's init function.

        That one was where this one is, the kernel keeps the names of init functions for traces, and this one's
        module is gone: kernel/trace/ftrace.c, ftrace_mod_address_lookup(). Where several functions begin there, `?`.
        """
        if (module, name) not in self._init:
            return module, name
        first, last = self._init[module, name]
        here = [
            (other, rest[index][1])
            for other, (starts, rest) in self._functions.items()
            for index in range(bisect.bisect_left(starts, first), bisect.bisect_left(starts, last))
        ]
        return next(iter(here)) if len(here) == 1 else (UNKNOWN, UNKNOWN) if here else (module, name)


def _functions(image: ModuleImage, bases: dict[str, int]) -> Iterable[tuple[int, int, str, str]]:
    names = {section.index: section.name for section in image.sections}
    for symbol in image.symbols:
        section = names.get(symbol.section, "") if symbol.section is not None else ""
        base = bases.get(section)
        if base is not None and symbol.kind == "func" and symbol.size:
            yield base + symbol.value, base + symbol.value + symbol.size, symbol.name, section
