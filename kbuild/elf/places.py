"""Places in code, by names: function and offset, module, section, and source line where there is debug information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.elf.code.link import Name, Program
from kbuild.elf.contents import MalformedError

if TYPE_CHECKING:  # Most ask for no place.
    from kbuild.elf.lines import Source, SourceLines


@dataclass(frozen=True, slots=True)
class Place:
    """An address in a module."""

    name: Name
    module: str
    section: str
    source: Source | None

    def __str__(self) -> str:
        """`svm_init+0x1f (kvm-amd, .init.text)`, with file and line where they are known."""
        line = f", {self.source}" if self.source is not None else ""
        return f"{self.name} ({self.module}, {self.section}{line})"


class Places:
    """Of one program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lines: dict[str, SourceLines] = {}

    def at(self, address: int) -> Place | None:
        """None: no module has a name there. Debug information that contradicts itself says no line."""
        name = self._program.name(address)
        found = self._program.place(address)
        if name is None or found is None:
            return None
        linked, section, offset = found
        lines = self._lines.get(linked.name)
        if lines is None:
            from kbuild.elf.lines import SourceLines

            lines = self._lines[linked.name] = SourceLines(linked.elf)
        try:
            source = lines.at(section.index, offset)
        except MalformedError:
            source = None
        return Place(name, linked.name, section.name, source)

    def told(self, address: int) -> str:
        """The place in words, or the address."""
        place = self.at(address)
        return f"{address:#x}" if place is None else str(place)
