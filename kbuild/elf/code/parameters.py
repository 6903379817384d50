"""Parameters of a module: where they are kept, and what they can be when init begins.

From `__param`, a table of struct kernel_param (include/linux/moduleparam.h, the same from 6.1 to 7.2). The loader calls
each one's `set` with what the command line says before it calls init.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kbuild.elf.code.link import Linked, Program
from kbuild.elf.code.values import Ranges

_ENTRY = 40
"""sizeof(struct kernel_param)."""
_OPS, _ARGUMENT = 16, 32
"""`name` comes first, `arg` last."""
_SET = 8
"""In struct kernel_param_ops."""
_CONSTANT = 64
"""More than sizeof(struct kparam_array), and than that of kparam_string."""
_MAX_NAME = 256
_FLAG = ((0, 1),)
_TYPES: dict[str, tuple[int, Ranges | None]] = {
    **dict.fromkeys(("bool", "bool_enable_only", "invbool"), (1, _FLAG)),
    "bint": (4, _FLAG),
    "byte": (1, None),
    **dict.fromkeys(("short", "ushort"), (2, None)),
    **dict.fromkeys(("int", "uint", "hexint"), (4, None)),
    **dict.fromkeys(("long", "ulong", "ullong", "charp"), (8, None)),
}
"""By `param_ops_...` (kernel/params.c): bytes that it sets, and what it can set them to; None: anything."""
_PREFIX = "param_ops_"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A place that a parameter is kept in; of a string or an array there are several."""

    name: str
    start: int
    end: int
    ranges: Ranges | None = None
    """What a number of all its bytes can be; None: anything."""


def parameters(program: Program, linked: Linked) -> Iterator[Parameter]:
    """A module's parameters, as the file has them."""
    for entry in _entries(linked):
        yield from _of_entry(program, entry)


def setters(program: Program, linked: Linked) -> Iterator[int]:
    """The module's own functions that set its parameters: what they write is theirs to say."""
    for entry in _entries(linked):
        function = _pointer(program, _pointer(program, entry + _OPS) + _SET)
        if program.is_code(function):
            yield function


def _entries(linked: Linked) -> Iterator[int]:
    """Of the table; half an entry at the end of a damaged one is left out."""
    for section in linked.loaded:
        if section.name == "__param" and section.kind != "NOBITS":
            start = linked.base[section.index]
            yield from range(start, start + section.size // _ENTRY * _ENTRY, _ENTRY)


def _of_entry(program: Program, entry: int) -> Iterator[Parameter]:
    name = _string(program, _pointer(program, entry))
    argument = _pointer(program, entry + _ARGUMENT)
    ops = program.kernel_name(_pointer(program, entry + _OPS))
    size, ranges = 0, None
    if program.is_constant(argument):
        # A string or an array: a constant that says where it is, how long, and how many there are.
        ends = min(program.object_end(argument), argument + _CONSTANT)
        kept = [_pointer(program, place) for place in range(argument, ends - 7, 8)]
    else:
        kept = [argument]
        if ops is not None and not ops.offset and ops.symbol.startswith(_PREFIX):
            size, ranges = _TYPES.get(ops.symbol.removeprefix(_PREFIX), (0, None))
    for address in kept:
        if program.module_at(address) is not None and not program.is_constant(address):
            end = address + size if size else max(program.object_end(address), address + 1)
            yield Parameter(name, address, end, ranges)


def _pointer(program: Program, address: int) -> int:
    return int.from_bytes(program.read(address, 8) or b"", "little")


def _string(program: Program, address: int) -> str:
    place = program.place(address)
    text = program.content(*place, _MAX_NAME) if place is not None else b""
    return text.partition(b"\0")[0].decode("utf-8", "replace")
