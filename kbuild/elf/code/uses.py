"""Who uses an object of a module, and how: asked of the few objects that name something of the init part.

Works on the file as it is, relocation by relocation, so that it need not link a module to look at three instructions.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iced_x86 import (
    Decoder,
    Mnemonic,
    OpKind,
    Register,
)
from iced_x86 import RegisterExt as Registers

from kbuild.elf.code.follow import Budget, Follow, Load, Operation, Place, Uses
from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Relocation, Section, Symbol
from kbuild.elf.references import Owners, references_to

MAX_FUNCTION = 1 << 17
MAX_OVERLAP = 4
"""Times that the code of a module may be decoded: functions can be in each other."""
_PC_RELATIVE = {2, 4}
"""R_X86_64_PC32 and R_X86_64_PLT32."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in memory, or what lies between two places that are referred to, such as a switch table."""

    section: Section
    start: int
    end: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Use:
    """One reference to an object."""

    section: Section
    offset: int
    who: str
    init: bool
    """By init code or init data."""
    code: Uses | None
    """None: data holds its address."""


class Code:
    """A module's code and objects, by section and offset. Its methods raise MalformedError."""

    def __init__(self, elf: ElfObject) -> None:
        self.elf = elf
        self.owners = Owners(elf)
        self._budget = Budget()
        self._names: dict[int, tuple[list[int], list[Symbol]]] = {}
        self._relocations: dict[int, tuple[list[int], list[Relocation]]] = {}
        self._functions: dict[tuple[int, int], list[Operation]] = {}
        self._left = MAX_OVERLAP * sum(len(elf.content(one)) for one in elf.sections if "X" in one.flags)
        """Bytes that may still be decoded."""
        self._uses: dict[Thing, list[Use]] = {}
        self._references: dict[int, list[tuple[int, Section, int]]] = {}
        for symbol in elf.symbols:
            if symbol.section is not None and symbol.name and symbol.kind in ("func", "object", "notype"):
                self._names.setdefault(symbol.section, ([], []))[1].append(symbol)
        for starts, symbols in self._names.values():
            symbols.sort(
                key=lambda one: (one.value, one.size, one.kind != "notype", not one.name.startswith("init_mod"))
            )
            starts += [symbol.value for symbol in symbols]

    def symbol_at(self, section: int, offset: int) -> Symbol | None:
        """What begins there or before; of several the one that says most."""
        starts, symbols = self._names.get(section, ([], []))
        index = bisect.bisect_right(starts, offset) - 1
        return symbols[index] if index >= 0 else None

    def label(self, section: int, offset: int) -> str:
        """A name for a place: the object or function that it is in, else the section."""
        symbol = self.symbol_at(section, offset)
        inside = symbol is not None and offset < symbol.value + max(symbol.size, 1)
        return symbol.name if symbol is not None and inside else self.elf.sections[section].name

    def thing(self, section: int, offset: int) -> Thing:
        """The object that a place is in."""
        place = self.elf.sections[section]
        starts, symbols = self._names.get(section, ([], []))
        index = bisect.bisect_right(starts, offset) - 1
        low = 0
        if index >= 0:
            low = symbols[index].value + symbols[index].size
            if offset < low:
                return Thing(place, symbols[index].value, low, symbols[index].name)
        high = starts[index + 1] if index + 1 < len(starts) else place.size
        references = self._references_to(section)
        after = bisect.bisect_right(references, offset, key=lambda one: one[0])
        start = references[after - 1][0] if after else low
        end = references[after][0] if after < len(references) else high
        return Thing(place, max(start, low), min(end, high), None)

    def pointer_uses(self, load: Load) -> Uses:
        """How code goes on with what it has loaded from an object: a pointer to another one's beginning."""
        uses = Uses()
        Follow(self.function, uses, self._budget, keeps_on_stack=True).through(
            load.code, load.index + 1, {load.register: Place(0, False)}
        )
        return uses

    def operation(self, section: int, offset: int) -> Operation | None:
        """The instruction that holds a place."""
        code = self.function(section, offset)
        index = _index(code, offset)
        return None if index is None else code[index]

    def target(self, section: int, offset: int, number: int, addend: int) -> tuple[int, int]:
        """Section and offset of what a place refers to with a symbol, which is defined, and an addend."""
        symbol = self.elf.symbols[number]
        if "X" in self.elf.sections[section].flags and (one := self.operation(section, offset)) is not None:
            filled = [found for found in (one.displacement, one.immediate) if found and found[0] is symbol]
            addend = filled[0][1] if filled else addend
        return symbol.section or 0, symbol.value + addend

    def kind(self, section: int, offset: int) -> str:
        """The rule that a reference breaks if it is one to what is gone."""
        if "X" not in self.elf.sections[section].flags:
            return "lifetime-data"
        one = self.operation(section, offset)
        branch = one is not None and one.raw.op_count and one.raw.op0_kind == OpKind.NEAR_BRANCH64
        return "lifetime-call" if branch else "lifetime-address"

    def is_init(self, section: int, offset: int) -> bool:
        """Whether code or data is the init part's, or stands in for what is."""
        return self.elf.sections[self.owners.of(section, offset)[0]].part == "init"

    def uses(self, thing: Thing) -> list[Use]:
        """All references to an object that are seen, but for the loader's."""
        if thing not in self._uses:
            self._uses[thing] = list(self._uses_of(thing))
        return self._uses[thing]

    def _uses_of(self, thing: Thing) -> Iterator[Use]:
        references = self._references_to(thing.section.index)
        # An instruction's immediate lies between what is filled in and the end that it counts from: up to 4 bytes.
        first = bisect.bisect_left(references, thing.start - 4, key=lambda one: one[0])
        for target, section, offset in references[first:]:
            if target >= thing.end:
                return
            who = self.label(*self.owners.of(section.index, offset))
            init = self.is_init(section.index, offset)
            if "X" not in section.flags:
                if target >= thing.start:
                    yield Use(section, offset, who, init, None)
                continue
            found = self._use(thing, section.index, offset)
            if found is not None:
                yield Use(section, offset, who, init, found)

    def _references_to(self, section: int) -> list[tuple[int, Section, int]]:
        """Offsets in a section that something refers to, ascending, with the places that do."""
        found = self._references.get(section)
        if found is None:
            found = []
            for source, offset, kind, number, addend in references_to(self.elf, {section}):
                bias = 4 if kind in _PC_RELATIVE and "X" in source.flags else 0
                found.append((self.elf.symbols[number].value + addend + bias, source, offset))
            found.sort(key=lambda one: (one[0], one[1].index, one[2]))
            self._references[section] = found
        return found

    def function(self, section: int, offset: int) -> list[Operation]:
        """The instructions of the function that a place is in; where no function is known, of the section."""
        symbol = self.symbol_at(section, offset)
        inside = symbol is not None and symbol.kind == "func" and offset < symbol.value + symbol.size
        place = self.elf.sections[section]
        start, end = (symbol.value, symbol.value + symbol.size) if symbol and inside else (0, place.size)
        key = (section, start)
        if key not in self._functions:
            self._functions[key] = list(self._decode(place, start, min(end, place.size, start + MAX_FUNCTION)))
        return self._functions[key]

    def _decode(self, section: Section, start: int, end: int) -> Iterator[Operation]:
        offsets, relocations = self._relocations_of(section)
        self._left -= end - start
        if self._left < 0:
            raise MalformedError("its functions overlap: together they have many times the code that there is")
        decoder = Decoder(64, self.elf.content(section)[start:end], ip=start)
        at = bisect.bisect_left(offsets, start)
        for raw in decoder:
            constants = decoder.get_constant_offsets(raw)
            filled: dict[int, tuple[Symbol, int]] = {}
            while at < len(offsets) and offsets[at] < raw.next_ip:
                one = relocations[at]
                to_next = raw.next_ip - one.offset if one.kind in _PC_RELATIVE else 0
                if one.symbol < len(self.elf.symbols):
                    filled[one.offset - raw.ip] = (self.elf.symbols[one.symbol], one.addend + to_next)
                at += 1
            displacement = filled.get(constants.displacement_offset) if constants.has_displacement else None
            immediate = filled.get(constants.immediate_offset) if constants.has_immediate else None
            yield Operation(raw, section.index, displacement, immediate)

    def _relocations_of(self, section: Section) -> tuple[list[int], list[Relocation]]:
        found = self._relocations.get(section.index)
        if found is None:
            relocations = sorted(self.elf.relocations(section), key=lambda one: one.offset)
            found = self._relocations[section.index] = ([one.offset for one in relocations], relocations)
        return found

    def _use(self, thing: Thing, section: int, offset: int) -> Uses | None:
        """What the code at a place does with an object; None where it is about another one."""
        code = self.function(section, offset)
        index = _index(code, offset)
        uses = Uses()
        if index is None:
            uses.given.append("has its address where no instruction is")
            return uses
        one = code[index]
        about = _within(thing, one.displacement)
        if about is not None:
            raw = one.raw
            indexed = raw.memory_index != Register.NONE or raw.memory_base not in (Register.NONE, Register.RIP)
            if raw.mnemonic == Mnemonic.LEA:
                lent: dict[int, Place] = {Registers.full_register(raw.op0_register): Place(about, indexed)}
                Follow(self.function, uses, self._budget).through(code, index + 1, lent)
            else:
                Follow(self.function, uses, self._budget).access(code, index, Place(about, indexed))
            return uses
        about = _within(thing, one.immediate)
        if about is None:
            return None
        into = Registers.full_register(one.raw.op0_register) if one.raw.op0_kind == OpKind.REGISTER else None
        if one.raw.mnemonic in (Mnemonic.MOV, Mnemonic.ADD) and into is not None:
            held: dict[int, Place] = {into: Place(about, one.raw.mnemonic == Mnemonic.ADD)}
            Follow(self.function, uses, self._budget).through(code, index + 1, held)
        elif one.raw.mnemonic not in (Mnemonic.CMP, Mnemonic.SUB):
            uses.given.append("stores its address")
        return uses


def _index(code: Sequence[Operation], offset: int) -> int | None:
    """Which instruction holds a place."""
    index = bisect.bisect_right(code, offset, key=lambda one: one.raw.ip) - 1
    return index if index >= 0 and offset < code[index].raw.next_ip else None


def _within(thing: Thing, target: tuple[Symbol, int] | None) -> int | None:
    """How far in an object something that is filled in points; None where it points elsewhere."""
    if target is None or target[0].section != thing.section.index:
        return None
    offset = target[0].value + target[1]
    return offset - thing.start if thing.start <= offset < thing.end else None
