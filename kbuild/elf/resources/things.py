"""What may be acquired, and what releases it: the table, asked of calls, and what was found to be acquired."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kbuild.elf.code.calls import Call
from kbuild.elf.names import stem
from kbuild.elf.rules.spec import Resource

MAX_THINGS = 4096


@dataclass(frozen=True)
class Thing:
    """Something that is acquired: always at the same place."""

    resource: Resource
    chain: tuple[int, ...]
    """The calls that lead there, from the entry's on; the last one acquires it."""
    object: int | None
    """What it is released by, where that is a number: an address, mostly."""
    acquire: str
    """The function."""
    name: int | None
    """The address of the string that names it."""


class Things:
    """All of one module, for all of its runs."""

    def __init__(self, table: Iterable[Resource]) -> None:
        self._table = tuple(table)
        self._known: dict[str, tuple[tuple[Resource, ...], tuple[Resource, ...]]] = {}
        self._numbers: dict[Thing, int] = {}
        self._alike: dict[Thing, list[int]] = {}
        self.every: list[Thing] = []
        self.chains: list[dict[tuple[int, ...], None]] = []
        """Of each, all calls that lead to it, those of `Thing.chain` first."""
        self.of: dict[str, list[int]] = {}
        """By the resource's id."""

    def about(self, symbol: str) -> tuple[tuple[Resource, ...], tuple[Resource, ...]]:
        """What a function acquires, and what it releases."""
        found = self._known.get(symbol)
        if found is None:
            name = stem(symbol)
            found = self._known[symbol] = (
                tuple(one for one in self._table if any(fnmatch.fnmatchcase(name, each) for each in one.acquire)),
                tuple(one for one in self._table if any(fnmatch.fnmatchcase(name, each) for each in one.release)),
            )
        return found

    def may_be_positive(self, call: Call) -> bool:
        """Whether a call may return a positive number for success."""
        return call.name is not None and any(one.success == "positive" for one in self.about(call.name.symbol)[0])

    def is_given_or_returned(self, resource: Resource) -> bool:
        """Whether it is acquired by number, by functions that return another one where they are asked for any."""
        others = (one for one in self._table if one.success == "positive" and resource.success == "zero")
        return any(set(one.acquire) & set(resource.acquire) for one in others)

    def alike(self, thing: Thing) -> Sequence[int]:
        """Numbers of those that are acquired by the same call, whoever leads to it, in order."""
        return self._alike.get(replace(thing, chain=thing.chain[-1:]), ())

    def number(self, thing: Thing) -> int | None:
        """Its number; None: there are too many."""
        number = self._numbers.get(thing)
        if number is None and len(self.every) < MAX_THINGS:
            number = self._numbers[thing] = len(self.every)
            self.every.append(thing)
            self.of.setdefault(thing.resource.id, []).append(number)
            self._alike.setdefault(replace(thing, chain=thing.chain[-1:]), []).append(number)
            self.chains.append({thing.chain: None})
        return number
