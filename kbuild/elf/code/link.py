"""Modules linked as the loader links them: one address space, relocations applied, names for addresses.

So everything behind it reads plain machine code and plain pointers, whatever the relocation was. Sections
are linked when they are first read. What the kernel exports has an address of its own and no contents.
"""

from __future__ import annotations

import bisect
import fnmatch
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec

from kbuild.elf import contents
from kbuild.elf.code.loaded import LoadedSection
from kbuild.elf.image import ModuleImage
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import LOADER_CALLS, stem
from kbuild.elf.object import ElfObject, Section, Symbol

MODULES = 0xFFFF_FFFF_C000_0000
"""Where modules begin (arch/x86/include/asm/pgtable_64_types.h): 32-bit places can hold addresses from there on."""
KERNEL = 0xFFFF_FFFF_8100_0000
KERNEL_STEP = 0x1_0000
"""Between two symbols of the kernel: what is at an offset of one is not the next one."""
MASK = (1 << 64) - 1


class Name(msgspec.Struct, frozen=True, gc=False):
    """What is at an address."""

    module: str | None
    """None: the kernel's."""
    symbol: str
    offset: int
    function: bool = True

    def __str__(self) -> str:
        return f"{self.symbol}+{self.offset:#x}" if self.offset else self.symbol


def has_code(section: Section) -> bool:
    """Whether it has any: zeros are none, of which a file of a few bytes may ask for as many as it likes."""
    return "X" in section.flags and section.kind != "NOBITS"


class Linked:
    """One module in the address space. Raises MalformedError where it needs more of it than a module can have."""

    def __init__(self, image: ModuleImage, elf: ElfObject, base: int) -> None:
        begin = base
        self.image = image
        self.name = image.name
        self.elf = elf
        self.starts: list[int] = []
        """Of the loaded sections, ascending."""
        self.loaded: list[Section] = []
        self.base: dict[int, int] = {}
        """Section index to address."""
        self._matching: dict[str, list[str]] = {}
        for section in elf.sections:
            if "A" in section.flags and section.part != "not loaded":
                align = max(section.align, 16)
                base = (base + align - 1) // align * align
                if base + section.size - begin > contents.MAX_BYTES:
                    text = f"{image.name}: section {section.name} of {section.size:#x} bytes, aligned to {align:#x}"
                    raise contents.MalformedError(f"{text}: more than a module can have")
                self.starts.append(base)
                self.loaded.append(section)
                self.base[section.index] = base
                base += section.size
        self.end = base

    def section_at(self, address: int) -> tuple[Section, int] | None:
        """The section that an address is in, and the offset in it."""
        index = bisect.bisect_right(self.starts, address) - 1
        if index < 0:
            return None
        section = self.loaded[index]
        offset = address - self.starts[index]
        return (section, offset) if offset < section.size else None

    @cached_property
    def code_bytes(self) -> int:
        """How much code it has."""
        return sum(section.size for section in self.loaded if has_code(section))

    @cached_property
    def stems(self) -> dict[str, list[int]]:
        """Names, without what compilers add, to the symbols' numbers: every rule asks for some."""
        found: dict[str, list[int]] = {}
        for number, symbol in enumerate(self.elf.symbols):
            found.setdefault(stem(symbol.name), []).append(number)
        return found

    def matching(self, pattern: str) -> Sequence[str]:
        """Such names that a glob is for: many rules have the same one."""
        found = self._matching.get(pattern)
        if found is None:
            match = re.compile(fnmatch.translate(pattern)).match
            found = self._matching[pattern] = [name for name in self.stems if match(name)]
        return found

    @cached_property
    def names(self) -> tuple[list[int], list[Symbol]]:
        """Addresses of functions and objects, ascending, with the symbol that names each best."""
        best: dict[int, Symbol] = {}
        for symbol in self.elf.symbols:
            if symbol.section in self.base and symbol.kind in ("func", "object", "notype") and symbol.name:
                address = self.base[symbol.section] + symbol.value
                other = best.get(address)
                if other is None or _rank(symbol) < _rank(other):
                    best[address] = symbol
        addresses = sorted(best)
        return addresses, [best[address] for address in addresses]


def _rank(symbol: Symbol) -> tuple[bool, bool, bool]:
    """A function's own name rather than the loader's alias for it, or a label in it."""
    return symbol.kind == "notype", symbol.name in LOADER_CALLS, symbol.size == 0


class Program:
    """A module set in one address space. Raises MalformedError where a file contradicts itself, also later."""

    def __init__(self, modules: ModuleSet) -> None:
        self._set = modules
        self.modules: dict[str, Linked] = {}
        self._sections: dict[tuple[str, int], LoadedSection] = {}
        self._names: dict[int, Name] = {}
        self._kernel: dict[str, int] = {}
        self._kernel_names: list[str] = []
        base = MODULES
        for image in modules.modules.values():
            linked = Linked(image, image.object(), base)
            self.modules[image.name] = linked
            base = (linked.end + 0xFFFF) & ~0xFFFF
        self._bases = [linked.starts[0] if linked.starts else linked.end for linked in self.modules.values()]
        self._ordered = list(self.modules.values())
        self._exported: dict[str, int] = {}
        for linked in self._ordered:
            wanted = {export.name for export in linked.image.exports}
            for symbol in linked.elf.symbols:
                if symbol.name in wanted and symbol.section in linked.base:
                    self._exported[symbol.name] = linked.base[symbol.section] + symbol.value
        self._targets: dict[str, list[int]] = {}

    # Addresses.

    @property
    def extent(self) -> tuple[int, int]:
        """Where the modules begin and end."""
        return MODULES, max((linked.end for linked in self._ordered), default=MODULES)

    def code_bytes(self, module: str) -> int:
        """How much code a module has, and those that it depends on."""
        names = {module}
        waiting = [module]
        while waiting:
            more = set(self._set.dependencies(self._set[waiting.pop()])) - names
            names |= more
            waiting += more
        return sum(self.modules[name].code_bytes for name in names)

    def module_at(self, address: int) -> Linked | None:
        """The module that an address is in."""
        index = bisect.bisect_right(self._bases, address) - 1
        if index < 0 or address >= self._ordered[index].end:
            return None
        return self._ordered[index]

    def kernel_address(self, name: str) -> int:
        """The address that stands for a symbol of the kernel."""
        address = self._kernel.get(name)
        if address is None:
            address = self._kernel[name] = KERNEL + len(self._kernel) * KERNEL_STEP
            self._kernel_names.append(name)
        return address

    def kernel_name(self, address: int) -> Name | None:
        """The kernel's symbol that an address belongs to."""
        index, offset = divmod(address - KERNEL, KERNEL_STEP)
        if 0 <= index < len(self._kernel_names):
            return Name(None, self._kernel_names[index], offset)
        return None

    def name(self, address: int) -> Name | None:
        """What is at an address."""
        found = self._names.get(address)
        if found is not None:
            return found
        linked = self.module_at(address)
        if linked is None:
            found = self.kernel_name(address)
            if found is not None:
                self._names[address] = found
            return found
        addresses, symbols = linked.names
        index = bisect.bisect_right(addresses, address) - 1
        if index < 0:
            return None
        symbol = symbols[index]
        found = Name(linked.name, symbol.name, address - addresses[index], symbol.kind == "func")
        self._names[address] = found
        return found

    def place(self, address: int) -> tuple[Linked, Section, int] | None:
        """The module and section that an address is in, and the offset in it."""
        linked = self.module_at(address)
        found = linked.section_at(address) if linked is not None else None
        return (linked, *found) if linked is not None and found is not None else None

    def is_code(self, address: int) -> bool:
        """Whether a module has code there."""
        place = self.place(address)
        return place is not None and has_code(place[1])

    def is_writable(self, address: int) -> bool:
        """Whether a module has something there that its code may write to."""
        place = self.place(address)
        return place is not None and "W" in place[1].flags

    def is_constant(self, address: int) -> bool:
        """Whether a module has something there that cannot change once it is linked."""
        place = self.place(address)
        return place is not None and ("W" not in place[1].flags or place[1].name.startswith(".data.rel.ro"))

    def symbol(self, module: str, name: str) -> int | None:
        """The address of a symbol that a module defines."""
        linked = self.modules[module]
        for symbol in linked.elf.symbols:
            if symbol.name == name and symbol.section in linked.base:
                return linked.base[symbol.section] + symbol.value
        return None

    def object_end(self, address: int) -> int:
        """Where the object that an address is in ends; without one, where the next one begins."""
        place = self.place(address)
        if place is None:
            return address
        linked, section, offset = place
        addresses, symbols = linked.names
        index = bisect.bisect_right(addresses, address) - 1
        end = address - offset + section.size
        if index >= 0 and addresses[index] + symbols[index].size > address:
            return addresses[index] + symbols[index].size
        return min(end, addresses[index + 1]) if index + 1 < len(addresses) else end

    def neighbours(self, address: int) -> tuple[int, int]:
        """Where the object before the one that an address is in begins, and the one behind it ends; in one section."""
        place = self.place(address)
        if place is None:
            return address, address
        linked, section, offset = place
        addresses, _ = linked.names
        index = bisect.bisect_right(addresses, address) - 1
        begin = max(address - offset, addresses[index - 1] if index > 0 else 0)
        end = address - offset + section.size
        return begin, min(end, addresses[index + 2]) if index + 2 < len(addresses) else end

    # Contents.

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes as they are when the module was just loaded; None where there are none."""
        place = self.place(address)
        if place is None:
            return None
        linked, section, offset = place
        if offset + size > section.size:
            return None
        return self.content(linked, section, offset, size)

    def unread(self, address: int, size: int) -> str | None:
        """Why bytes cannot be taken for what they will be; they have been read."""
        place = self.place(address)
        if place is None:
            return None
        linked, section, offset = place
        found = self.loaded(linked, section).unread(offset, offset + size)
        if found is None:
            return None
        where = f"{section.name}+{found[0]:#x} ({linked.name})"
        return f"the relocation at {where} is of type {found[1]}, which the module loader does not know"

    def content(self, linked: Linked, section: Section, offset: int = 0, size: int = MASK) -> bytes:
        """A section's bytes with its relocations applied, from an offset on."""
        return self.loaded(linked, section).read(offset, min(offset + size, section.size))

    def targets(self, linked: Linked, section: Section) -> Iterator[tuple[int, int]]:
        """Offsets in a section that the loader fills in, ascending, and the addresses that they are about."""
        return self.loaded(linked, section).targets()

    def loaded(self, linked: Linked, section: Section) -> LoadedSection:
        """A section as the loader leaves it."""
        key = (linked.name, section.index)
        loaded = self._sections.get(key)
        if loaded is None:
            base = linked.base.get(section.index, 0)
            loaded = self._sections[key] = LoadedSection(linked.elf, section, base, self._symbols_of(linked))
        return loaded

    def name_all(self) -> None:
        """Give each symbol of the kernel that any module needs its address now, and not when it is first met."""
        for linked in self._ordered:
            self._symbols_of(linked)

    def _symbols_of(self, linked: Linked) -> list[int]:
        targets = self._targets.get(linked.name)
        if targets is None:
            targets = []
            for symbol in linked.elf.symbols:
                if symbol.section is not None:
                    targets.append(linked.base.get(symbol.section, 0) + symbol.value)
                elif symbol.defined:
                    targets.append(symbol.value)
                elif symbol.name:
                    found = self._exported.get(symbol.name)
                    targets.append(self.kernel_address(symbol.name) if found is None else found)
                else:
                    targets.append(0)
            self._targets[linked.name] = targets
        return targets
