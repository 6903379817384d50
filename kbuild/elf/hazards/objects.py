"""What kind of object an address is in: a parameter, settled by init, or something that is written all the time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.link import Program
from kbuild.elf.code.parameters import parameters
from kbuild.elf.names import plain_name

Kind = Literal["parameter", "ro_after_init", "data", "kernel", "once", "per-cpu"]

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
            one.start: one.name for linked in program.modules.values() for one in parameters(program, linked)
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
