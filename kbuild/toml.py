"""Typed TOML: a file to a msgspec struct, with errors that name file, line, key and what was expected."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kbuild.errors import UserError
from kbuild.paths import read_text
from kbuild.versions import KernelRange

T = TypeVar("T")


def decode_hook(kind: type, value: Any) -> Any:
    """Types of ours that are written as text."""
    if kind is KernelRange:
        if not isinstance(value, str):
            raise ValueError("expected a kernel range such as '6.1 - 7.2'")
        return KernelRange(value)
    raise NotImplementedError(kind)


def read(path: Path, kind: type[T]) -> T:
    """Read a TOML file as `kind`. Raises UserError in one line: `file:line: key: what was expected`."""
    return parse(read_text(path), kind, str(path))


def parse(text: str, kind: type[T], name: str) -> T:
    """Like `read`, of text that came from the file `name`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"at line (\d+)", str(error))
        line = f":{where[1]}" if where else ""
        raise UserError(f"{name}{line}: not TOML: {str(error).splitlines()[0]}") from None
    try:
        return msgspec.convert(data, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        keys = path.rstrip("`").removeprefix("$").lstrip(".")
        if unknown := re.search(r"unknown field `([^`]*)`", message):
            keys = f"{keys}.{unknown[1]}".lstrip(".")
            allowed = ", ".join(_fields_at(kind, path))
            message = "no such key" + (f"; known here: {allowed}" if allowed else "")
        line_number = locate(text, keys)
        place = f":{line_number}" if line_number else ""
        raise UserError(f"{name}{place}: {keys + ': ' if keys else ''}{message[:1].lower()}{message[1:]}") from None


def locate(text: str, keys: str) -> int | None:
    """The line (from 1) of a key such as `step[1].expect[0].errno`, or of the nearest table around it.

    The standard library's reader keeps no places; this finds table headers and `key =` by their
    form, which is enough to point a person at the right line.
    """
    wanted = re.findall(r"([\w-]+)((?:\[\d+\])*)", keys)
    counts: dict[str, int] = {}
    table = ""
    best: tuple[int, int] | None = None
    full = [name + "".join(re.findall(r"\[\d+\]", index)[:1]) for name, index in wanted]
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([\w.-]+)\s*\]\]?", line):
            names = header[2].split(".")
            if header[1] == "[[":
                key = header[2]
                counts[key] = counts.get(key, -1) + 1
                for longer in [k for k in counts if k.startswith(key + ".")]:
                    del counts[longer]
            table = ".".join(
                name + (f"[{counts[prefix]}]" if (prefix := ".".join(names[: i + 1])) in counts else "")
                for i, name in enumerate(names)
            )
            parts = table.split(".")
        elif assignment := re.match(r"\s*([\w.-]+)\s*=", line):
            parts = [*(table.split(".") if table else []), *assignment[1].split(".")]
        else:
            continue
        depth = 0
        while depth < len(parts) and depth < len(full) and parts[depth] in (full[depth], wanted[depth][0]):
            depth += 1
        if depth == len(parts) and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _fields_at(kind: Any, path: str) -> list[str]:
    """The keys that may stand in the table at `path` of `kind`; none where that has several types."""
    for name in re.findall(r"\.([\w-]+)", path):
        for field in msgspec.structs.fields(kind) if _is_struct(kind) else ():
            if field.encode_name == name:
                kind = _element(field.type)
                break
        else:
            return []
    return [field.encode_name for field in msgspec.structs.fields(kind)] if _is_struct(kind) else []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _element(kind: Any) -> Any:
    """The struct inside `tuple[X, ...]`, `list[X]` or `X | None`."""
    candidates = [arg for arg in getattr(kind, "__args__", ()) if _is_struct(arg)]
    return candidates[0] if len(candidates) == 1 else kind
