"""The layout of a struct or union: its size, and where its members are."""

from __future__ import annotations

from typing import Literal

import msgspec


class Member(msgspec.Struct, frozen=True):
    """Of a struct or union."""

    name: str
    """Empty: it has none, as a struct or union within has that is only there for its own members."""
    type: str
    """As C writes it, more or less."""
    offset: int
    """In bytes, from the beginning."""
    size: int | None
    """In bytes, of its type; None: not known. What has no bound, as `x[]` at the end, has 0."""
    bit: int | None = None
    """Of a bit-field: its first bit, from `offset` on."""
    bits: int | None = None
    """Of a bit-field: how many it has."""


class StructLayout(msgspec.Struct, frozen=True):
    """A struct or union."""

    name: str
    source: Literal["BTF", "DWARF"] | None
    """What it was read from; None: it is not known, and `why` says why not."""
    kind: Literal["struct", "union"] | None
    size: int | None
    """In bytes."""
    members: tuple[Member, ...]
    """In the order of the source; behind one without a name those in it."""
    why: str | None = None


def qualified(word: str, name: str) -> str:
    """A type with `const` or the like before it; of an array compilers say it, and of its elements too."""
    return name if name.startswith(word) else word + name
