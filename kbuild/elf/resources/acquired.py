"""What the inits of a module set acquire, by name: to say of something that is there whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kbuild import log
from kbuild.elf.code.decode import Code
from kbuild.elf.code.link import Program
from kbuild.elf.code.runs import Job, Runs, uncollected
from kbuild.elf.contents import MalformedError
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.names import stem
from kbuild.elf.resources.ledger import Ledger
from kbuild.elf.resources.things import Thing, Things
from kbuild.elf.rules.events import string_at
from kbuild.elf.rules.spec import Resource
from kbuild.errors import UserError

POINTER = 8


@dataclass(frozen=True)
class Acquired:
    """Something that a module's init acquires, on any way."""

    module: str
    """Whose init."""
    what: str
    """The resource's, in words: `slab cache`."""
    kinds: tuple[str, ...]
    """Of a state, as `Resource.seen`."""
    name: str
    acquire: str
    """The function of the kernel."""
    function: str
    """That calls it, and the module which that is in."""
    of: str


def find_acquired(modules: ModuleSet, table: Sequence[Resource]) -> list[Acquired]:
    """All that can be seen from outside and has a name that is known. Raises UserError for a damaged module."""
    seen = [one for one in table if one.seen]
    with log.timed("acquired", modules=len(modules.modules)) as extra:
        try:
            with uncollected():
                found = list(dict.fromkeys(_acquired(modules, seen)))
        except MalformedError as error:
            raise UserError(f"what these modules acquire cannot be looked for: {error}") from None
        extra["found"] = len(found)
    return found


def _acquired(modules: ModuleSet, table: Sequence[Resource]) -> Iterator[Acquired]:
    runs = Runs(Code(Program(modules)))
    names = [name for name in runs.program.modules if runs.entry(name, "init") is not None]
    asked = [Things(table) for _ in names]
    jobs = [Job(name, "init", Ledger(things, "init")) for name, things in zip(names, asked, strict=True)]
    runs.settle(jobs)
    for module, things in zip(names, asked, strict=True):
        for thing in things.every:
            name, caller = _name(runs.program, thing), runs.program.name(thing.chain[-1])
            if name is not None and caller is not None and caller.module is not None:
                resource = thing.resource
                place = (stem(caller.symbol), caller.module)
                yield Acquired(module, resource.what, resource.seen, name, thing.acquire, *place)


def _name(program: Program, thing: Thing) -> str | None:
    """The string that it is called by."""
    if thing.name is not None:
        return string_at(program, thing.name)
    at = thing.resource.name_at
    if at is None or thing.object is None:
        return None
    pointer = program.read(thing.object + at, POINTER)
    return string_at(program, int.from_bytes(pointer, "little")) if pointer else None
