"""Where the bytes of a module are: in which part of memory, in which function, and which of them could be freed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kbuild.elf.contents import MalformedError
from kbuild.elf.functions import Function, Pieces
from kbuild.elf.image import ModuleImage
from kbuild.elf.reach import Candidate, candidates
from kbuild.errors import UserError

PARTS = ("init", "exit", "text", "data", "core", "total")
"""What has a size: init and exit part, code and data of what stays, both of them, and all."""


class ModuleLayout(msgspec.Struct, frozen=True):
    """Of one module. Sizes are in bytes."""

    cold: int
    """Of the text that stays, what the compiler thinks seldom runs."""
    functions: tuple[Function, ...]
    """Sorted by name, then section and size."""
    candidates: tuple[Candidate, ...]
    """What could be `__init` or `__exit`."""


def part_sizes(module: ModuleImage) -> Mapping[str, int]:
    """The size of each of `PARTS`: sums of section sizes, without padding."""
    text, data = module.bytes_in("core", "text"), module.bytes_in("core", "data")
    init, leaves = module.bytes_in("init"), module.bytes_in("exit")
    return dict(zip(PARTS, (init, leaves, text, data, text + data, init + leaves + text + data), strict=True))


def layout_of(module: ModuleImage) -> ModuleLayout:
    """The layout of a module. Raises UserError where its file contradicts itself."""
    try:
        elf = module.object()
        pieces = Pieces(elf)
        functions = sorted((piece.function for piece in pieces), key=lambda one: (one.name, one.section, one.size))
        found = candidates(module, elf, pieces)
    except MalformedError as problem:
        raise UserError(f"{module.path}: {problem}") from None
    return ModuleLayout(sum(one.size for one in functions if one.cold), tuple(functions), tuple(found))
