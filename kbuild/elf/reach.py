"""Which functions that stay in memory are reached from init code only, or from exit code only.

Said of the code, not of its source: a function comes out where every reference to it that there is in its module is a
call or a jump, and each of them stands in init code or in another such function. So nobody keeps its address: no table,
no register, and no other module, for it is not exported. docs/inspect.md says what that does not tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

import msgspec

from kbuild.elf.functions import COLD, Function, Piece, Pieces
from kbuild.elf.image import ModuleImage
from kbuild.elf.names import LOADER_CALLS
from kbuild.elf.object import ElfObject, Section
from kbuild.elf.references import Owners, references_to

_BY_NAME = "__BTF_ID__func__"
"""Begins a symbol for a function that BPF programs call by name: a kfunc (include/linux/btf_ids.h)."""
_TRAMPOLINES = ".static_call.text"
"""Code in it is patched at run time, and jumps to what a key in data says."""
_LOADER = "the module loader"

Base = Literal["init", "exit"]
_BASES: tuple[Base, ...] = ("init", "exit")


class Candidate(msgspec.Struct, frozen=True):
    """A function that stays, and that nothing reaches when init has returned (or before exit begins)."""

    name: str
    section: str
    size: int
    """In bytes, with its `.cold` part."""
    static: bool
    """Known in its own source file only. It may be inlined elsewhere too, as a header's functions are: then this copy
    of it is reached as said, and its source cannot be declared so."""
    could_be: Literal["__init", "__exit"]
    frees: int
    """Bytes that are freed when init has returned, if it is `__init`; exit code is there until the module goes."""
    referenced_from: tuple[str, ...]
    """Functions that call or jump to it, each with its section."""


def candidates(module: ModuleImage, elf: ElfObject, pieces: Pieces) -> list[Candidate]:
    """What of a module could be `__init` or `__exit`, largest first. Raises MalformedError."""
    references = _References(module, elf, pieces)
    found: list[Candidate] = []
    for base in _BASES:
        some = references.only_from(base)
        whole = {piece: _whole(piece, some) for piece in some}
        sizes = dict.fromkeys(some, 0)
        for piece, of in whole.items():
            sizes[of] += piece.function.size
        for piece in some:
            if whole[piece] is not piece:
                continue
            callers = [str(one) for one in piece.callers if one is not piece and whole.get(one) is not piece]
            found.append(
                Candidate(
                    piece.function.name,
                    piece.function.section,
                    sizes[piece],
                    piece.static,
                    "__init" if base == "init" else "__exit",
                    sizes[piece] if base == "init" else 0,
                    (*([_LOADER] if references.entries.get(piece) == base else []), *sorted(set(callers))),
                )
            )
    return sorted(found, key=lambda one: (one.could_be == "__exit", -one.size, one.name))


def _whole(piece: Piece, among: set[Piece]) -> Piece:
    """The function that a `.cold` part belongs to; of others, and where that is not among them, itself."""
    name, is_cold, _ = piece.function.name.partition(COLD)
    wholes = [one for one in piece.callers & among if one.function.name == name] if is_cold else []
    return wholes[0] if wholes else piece


class _References:
    """Who refers to the functions of one module that stay."""

    def __init__(self, module: ModuleImage, elf: ElfObject, pieces: Pieces) -> None:
        self._elf, self._pieces = elf, pieces
        self._owners = Owners(elf)
        self._code = [one for one in elf.sections if "X" in one.flags and one.part != "not loaded"]
        self._unnamed: dict[int, Piece] = {}
        self.entries: dict[Piece, Base] = {}
        """What the loader calls."""
        self._note_names(module)
        self._look(one for one in self._code if one.part != "core")
        if self._begins():
            self._look_at_data()
        if self._begins():  # Of most modules nothing is left here, and all of their code need not be looked at.
            self._look(one for one in self._code if one.part == "core")

    def only_from(self, base: Base) -> set[Piece]:
        """The functions that stay and that are reached from init code only, or exit code."""
        lasting = [piece for piece in self._pieces if piece.function.part == "core"]
        callees: dict[Piece, list[Piece]] = {}
        for piece in lasting:
            for caller in piece.callers:
                callees.setdefault(caller, []).append(piece)
        begins = {piece for piece in lasting if self._is_called(piece, base)}
        found = set(lasting)
        _take(found, (piece for piece in lasting if self._is_reached_otherwise(piece, base)), callees)
        # What nothing refers to, and calls in a circle, are not reached from init either: whatever they call may be.
        reached = begins & found
        waiting = list(reached)
        while waiting:
            new = [piece for piece in callees.get(waiting.pop(), ()) if piece in found and piece not in reached]
            reached.update(new)
            waiting += new
        _take(found, found - reached, callees)
        return found

    def _is_called(self, piece: Piece, base: Base) -> bool:
        return self.entries.get(piece) == base or any(one.function.part == base for one in piece.callers)

    def _is_reached_otherwise(self, piece: Piece, base: Base) -> bool:
        others = (one for one in piece.callers if one.function.part != base)
        return (
            piece.stays
            or self.entries.get(piece, base) != base
            or any(one.function.part != "core" or one in self._unnamed.values() for one in others)
        )

    def _begins(self) -> bool:
        """Whether anything can come out: what init or exit code calls itself."""
        lasting = (piece for piece in self._pieces if piece.function.part == "core" and not piece.stays)
        return any(self._is_called(piece, base) for piece in lasting for base in _BASES)

    def _note_names(self, module: ModuleImage) -> None:
        known = {one.name for one in module.exports}
        for symbol in self._elf.symbols:
            if symbol.name.startswith(_BY_NAME):
                known.add(symbol.name.removeprefix(_BY_NAME).rpartition("__")[0])
        for symbol in self._elf.symbols:
            piece = self._pieces.at(symbol.section, symbol.value)
            if piece is not None and symbol.name in LOADER_CALLS:
                self.entries[piece] = _BASES[LOADER_CALLS.index(symbol.name)]
            if piece is not None and symbol.name in known:
                piece.stays = True
        for section in self._code:
            inside = self._pieces.within(section.index)
            for piece in inside if section.name == _TRAMPOLINES else ():
                piece.stays = True
            for one, other in itertools.pairwise(inside):
                if one.end > other.start:  # It cannot be told who of them refers, and is referred to.
                    one.stays = other.stays = True

    def _look(self, sections: Iterable[Section]) -> None:
        """Note what code refers to."""
        from kbuild.elf.code.branches import mentions

        for section in sections:
            for one in mentions(self._elf, section, [piece.start for piece in self._pieces.within(section.index)]):
                target = self._pieces.at(one.section, one.target)
                if target is None or target.stays or target.function.part != "core":
                    continue
                who = self._piece(*self._owners.of(section.index, one.offset))
                if one.branch:
                    target.callers.add(who)
                elif who is not target or one.target == target.start:
                    target.stays = True

    def _piece(self, section: int, offset: int) -> Piece:
        """The function that a place is in; where there is none, all that has no name in its section."""
        piece = self._pieces.at(section, offset) or self._unnamed.get(section)
        if piece is None:
            place = self._elf.sections[section]
            piece = self._unnamed[section] = Piece(Function(place.name, place.name, place.part, place.size), section, 0)
        return piece

    def _look_at_data(self) -> None:
        """A function whose address data holds stays: also init data, for that may be copied.

        An address within a function is in a switch table of that function, as is the one of a `.cold` part.
        """
        code = {section.index for section in self._code if section.part == "core"}
        for section, _, _, number, addend in references_to(self._elf, code):
            symbol = self._elf.symbols[number]
            target = self._pieces.at(symbol.section, symbol.value + addend)
            if "X" not in section.flags and target is not None and target.start == symbol.value + addend:
                target.stays |= COLD not in target.function.name


def _take(found: set[Piece], lost: Iterable[Piece], callees: dict[Piece, list[Piece]]) -> None:
    """Take some functions out, and with each all that it calls."""
    waiting = [piece for piece in lost if piece in found]
    found.difference_update(waiting)
    while waiting:
        new = [piece for piece in callees.get(waiting.pop(), ()) if piece in found]
        found.difference_update(new)
        waiting += new
