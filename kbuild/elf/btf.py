"""Types as BTF describes them: structs and unions, by name, with their members.

A module's BTF goes on where the kernel's ends: its types count from there, and so do its strings. The format is that of
Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from kbuild.elf.contents import MalformedError
from kbuild.elf.object import printable
from kbuild.elf.structs import Member, StructLayout, qualified

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MAGIC = 0xEB9F
MAX_TYPES = 1 << 20
"""A distribution's kernel has some 150,000."""
MAX_MEMBERS = 1 << 16
_MAX_DEPTH = 32
"""Of pointers to arrays of pointers: what is deeper is damaged, or goes in a circle."""

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
"""Bytes behind a type, and for each of its members."""
_ABOUT = {_PTR, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DECL_TAG, _TYPE_TAG}
"""Those that say a type where others say a size."""
_WORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _ENUM64: "enum ", _FWD: "struct "}
_KINDS: dict[int, Literal["struct", "union"]] = {_STRUCT: "struct", _UNION: "union"}
_QUALIFIERS = {_VOLATILE: "volatile ", _CONST: "const ", _RESTRICT: "", _TYPE_TAG: ""}
_POINTER = 8


class SplitBtfError(MalformedError):
    """BTF that goes on where another one ends, which is not the one at hand."""


class Btf:
    """The types of one file. Raises MalformedError where it contradicts itself, also later."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        self._base = base
        self._first: int = base.end if base else 1
        self._strings_from: int = base.strings_end if base else 0
        if len(data) < _HEADER.size:
            raise MalformedError("its BTF is shorter than its header")
        magic, version, _, size, type_at, type_size, string_at, string_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise MalformedError(f"its BTF is of an unknown kind ({magic:#x}, version {version})")
        if max(size + type_at + type_size, size + string_at + string_size) > len(data):
            raise MalformedError("its BTF goes past the end of its section")
        self._types = data[size + type_at :][:type_size]
        self._strings = data[size + string_at :][:string_size]
        self._places = array("I", self._walk())

    @property
    def end(self) -> int:
        """The number behind that of the last type."""
        return self._first + len(self._places)

    @property
    def strings_end(self) -> int:
        """Bytes of strings, with those of the base."""
        return self._strings_from + len(self._strings)

    def struct(self, name: str) -> StructLayout | None:
        """A struct or union of that name; where there is none, the base's."""
        for place in self._places:
            name_at, info, size = _TYPE.unpack_from(self._types, place)
            kind = _KINDS.get(info >> 24 & 0x1F)
            if kind is not None and name_at and self._string(name_at) == name:
                return StructLayout(name, "BTF", kind, size, tuple(islice(self._members(place), MAX_MEMBERS)))
        return self._base.struct(name) if self._base else None

    def _walk(self) -> Iterator[int]:
        """Where the types are."""
        at, count = 0, 0
        while at < len(self._types):
            if at + _TYPE.size > len(self._types) or count > MAX_TYPES:
                raise MalformedError("its BTF ends in the middle of a type, or has too many")
            info = _TYPE.unpack_from(self._types, at)[1]
            kind, count = info >> 24 & 0x1F, count + 1
            if not _INT <= kind <= _ENUM64:
                raise MalformedError(f"its BTF has a type of the unknown kind {kind}")
            yield at
            at += _TYPE.size + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        if at != len(self._types):
            raise MalformedError("its BTF ends in the middle of a type")

    def check(self) -> None:
        """Raises SplitBtfError where names and types are not those of this base, or of none.

        Each name begins where a string does, and no string is there for nothing (btf__dedup() of libbpf leaves them
        out): so with another base, whose strings end elsewhere, the last string is not what the last name is.
        """
        last = 0
        for name, number in self._mentioned():
            btf, offset = self._where(name)
            if offset >= max(len(btf._strings), 1) or (offset and btf._strings[offset - 1]) or number >= self.end:
                raise SplitBtfError("its BTF goes on where that of another kernel ends")
            last = max(last, offset if btf is self else 0)
        if self._base is not None and self._strings.find(b"\0", last) + 1 != len(self._strings):
            raise SplitBtfError("its BTF goes on where that of another kernel ends")

    def _mentioned(self) -> Iterator[tuple[int, int]]:
        """All names and types that its types mention."""
        for place in self._places:
            name, info, other = _TYPE.unpack_from(self._types, place)
            kind, at = info >> 24 & 0x1F, place + _TYPE.size
            yield name, other if kind in _ABOUT else 0
            if kind == _ARRAY:
                element, index, _ = _TYPE.unpack_from(self._types, at)
                yield 0, element
                yield 0, index
            for start in range(at, at + _EACH.get(kind, 0) * (info & 0xFFFF), _EACH.get(kind, 1)):
                first, second = struct.unpack_from("<II", self._types, start)
                if kind in (_ENUM, _ENUM64):
                    yield first, 0
                else:
                    yield (0, first) if kind == _DATASEC else (first, second)

    def _where(self, at: int) -> tuple[Btf, int]:
        if at < self._strings_from and self._base is not None:
            return self._base._where(at)
        return self, at - self._strings_from

    def _string(self, at: int) -> str:
        btf, offset = self._where(at)
        end = btf._strings.find(b"\0", offset)
        if end < 0:
            raise MalformedError("its BTF has a name that does not end")
        return printable(btf._strings[offset:end])

    def _type(self, number: int) -> tuple[Btf, int, int, int, int]:
        """Whose it is, its place, kind, name, and its size or the type that it is about."""
        if number < self._first and self._base is not None:
            return self._base._type(number)
        if not 0 <= number - self._first < len(self._places):
            raise SplitBtfError(f"its BTF refers to type {number}, which is not there")
        place = self._places[number - self._first]
        name, info, size = _TYPE.unpack_from(self._types, place)
        return self, place, info >> 24 & 0x1F, name, size

    def _members(self, place: int, start: int = 0, depth: int = 0) -> Iterator[Member]:
        """Also those of structs and unions without a name, behind each. `start`: where the struct begins, in bits."""
        if depth > _MAX_DEPTH:
            raise MalformedError("its BTF has a struct that is within itself")
        at, info = place + _TYPE.size, _TYPE.unpack_from(self._types, place)[1]
        for _ in range(info & 0xFFFF):
            name, number, offset = _TYPE.unpack_from(self._types, at)
            at += _TYPE.size
            bits = offset >> 24 if info >> 31 else 0
            offset = start + (offset & 0xFFFFFF if info >> 31 else offset)
            yield Member(
                self._string(name) if name else "",
                self._name(number),
                offset // 8,
                self._size(number),
                offset % 8 if bits else None,
                bits or None,
            )
            if not name and number:
                btf, inner, kind, _, _ = self._type(number)
                if kind in _KINDS:
                    yield from btf._members(inner, offset, depth + 1)

    def _name(self, number: int, depth: int = 0) -> str:
        """A type as C writes it, more or less."""
        if number == 0:
            return "void"
        if depth > _MAX_DEPTH:
            raise MalformedError("its BTF has a type that goes in a circle")
        btf, place, kind, name, other = self._type(number)
        if kind in _QUALIFIERS:
            return qualified(_QUALIFIERS[kind], btf._name(other, depth + 1))
        if kind == _PTR:
            inner = btf._name(other, depth + 1)
            return f"{inner}*" if inner.endswith("*") else f"{inner} *"
        if kind == _ARRAY:
            element, _, count = _TYPE.unpack_from(btf._types, place + _TYPE.size)
            of, bracket, inner = btf._name(element, depth + 1).partition("[")
            return f"{of}[{count}]{bracket}{inner}"
        if kind == _FUNC_PROTO:
            return f"{btf._name(other, depth + 1)} ()"
        return _WORDS.get(kind, "") + (btf._string(name) if name else "{…}")

    def _size(self, number: int) -> int | None:
        """Bytes; None: not known, as of a type that is declared only."""
        factor = 1
        btf: Btf = self
        for _ in range(_MAX_DEPTH):
            if number == 0:
                return None
            btf, place, kind, _, other = btf._type(number)
            if kind in (_INT, _STRUCT, _UNION, _ENUM, _ENUM64, _FLOAT):
                return factor * other
            if kind == _PTR:
                return factor * _POINTER
            if kind == _ARRAY:
                number, _, count = _TYPE.unpack_from(btf._types, place + _TYPE.size)
                factor *= count
            elif kind == _TYPEDEF or kind in _QUALIFIERS:
                number = other
            else:
                return None
        raise MalformedError("its BTF has a type that goes in a circle")
