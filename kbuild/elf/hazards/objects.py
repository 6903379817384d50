"""What kind of object an address is in: a parameter, settled by init, or something that is written all the time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.link import Linked, Program
from kbuild.elf.names import plain_name
from kbuild.elf.rules.events import string_at

Kind = Literal["parameter", "ro_after_init", "data", "kernel", "once", "per-cpu"]

_PARAMETER = 40
"""sizeof(struct kernel_param); `name` comes first, `arg` is its last eight bytes (include/linux/moduleparam.h)."""
_ARGUMENT = 32
_CONSTANT = 64
"""More than sizeof(struct kparam_array), and than that of kparam_string."""
_ONCE = re.compile(r"__already_done|__warned|__already_printed|_rs(\.|$)")
"""Flags and rate limits of macros that print (include/linux/once.h, printk.h)."""


@dataclass(frozen=True, slots=True)
class Object:
    """What is at an address."""

    name: str
    module: str | None
    """None: the kernel's."""
    section: str | None
    kind: Kind
    offset: int
    parameter: str | None = None
    """The parameter's name, which may be another one than the object's."""


class Objects:
    """Objects of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._parameters = {
            address: name for linked in program.modules.values() for address, name in self._of_module(linked)
        }

    def at(self, address: int) -> Object | None:
        """The object that an address is in; None where nothing has a name."""
        name = self._program.name(address)
        if name is None:
            return None
        place = self._program.place(address)
        section = place[1].name if place is not None else None
        parameter = self._parameters.get(address - name.offset) or self._parameters.get(address)
        kind: Kind = "data"
        if name.module is None:
            kind = "kernel"
        elif _ONCE.match(name.symbol) or (section or "").startswith((".data.once", ".data..once")):
            kind = "once"
        elif (section or "").startswith(".data..percpu"):
            kind = "per-cpu"
        elif parameter is not None:
            kind = "parameter"
        elif (section or "").startswith(".data..ro_after_init"):
            kind = "ro_after_init"
        return Object(plain_name(name.symbol), name.module, section, kind, name.offset, parameter)

    def _of_module(self, linked: Linked) -> Iterator[tuple[int, str]]:
        """Where a module's parameters are kept, and their names."""
        for section in linked.loaded:
            if section.name == "__param" and section.kind != "NOBITS":
                start = linked.base[section.index]
                for entry in range(start, start + section.size // _PARAMETER * _PARAMETER, _PARAMETER):
                    name = string_at(self._program, self._pointer(entry)) or ""
                    argument = self._pointer(entry + _ARGUMENT)
                    if self._program.is_constant(argument):
                        # A string or an array: a constant that says where it is, how long, and how many there are.
                        ends = min(self._program.object_end(argument), argument + _CONSTANT)
                        kept = [self._pointer(place) for place in range(argument, ends - 7, 8)]
                    else:
                        kept = [argument]
                    for address in kept:
                        if self._program.module_at(address) is not None and not self._program.is_constant(address):
                            yield address, name

    def _pointer(self, address: int) -> int:
        return int.from_bytes(self._program.read(address, 8) or b"", "little")
