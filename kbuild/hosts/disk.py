"""A disk with module files for a machine that runs already: the agent's verb `fetch` reads it.

The layout is in docs/agent.md. The disk has its size from the start, as emulators want it, and is a
hole until files are written, in place: the emulator has it open.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from kbuild.errors import HarnessError, UserError

SECTOR = 512
HEADS, SECTORS = 16, 63
"""Of a cylinder, for an emulator that asks."""
CYLINDERS = 130
SIZE = CYLINDERS * HEADS * SECTORS * SECTOR
"""64 MiB: the modules of a distribution's KVM, with what they depend on, have 5."""
_TABLE = 8 * SECTOR
_MAGIC = "kvm-kbuild modules"


def make_disk(path: Path) -> None:
    """An empty disk. Raises HarnessError where it cannot be made."""
    try:
        with path.open("xb") as file:
            file.truncate(SIZE)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be made: {error.strerror}") from None


def fill_disk(path: Path, files: Mapping[str, bytes]) -> None:
    """Put files on a disk, by their names, in place of what it had.

    Raises UserError where they do not fit, HarnessError where they cannot be written.
    """
    lines = [_MAGIC]
    at = _TABLE
    try:
        with path.open("r+b") as file:
            for name, content in sorted(files.items()):
                padded = content + bytes(-len(content) % SECTOR)
                lines.append(f"{at // SECTOR} {len(content)} {_check(padded):016x} {name}")
                if at + len(padded) > SIZE:
                    raise UserError(f"{name}: the modules have more than {SIZE >> 20} MiB")
                file.seek(at)
                file.write(padded)
                at += len(padded)
            table = "".join(f"{line}\n" for line in [*lines, "end"]).encode()
            if len(table) > _TABLE:
                raise UserError(f"{len(files)} modules are more than a host is given at once")
            file.seek(0)
            file.write(table)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error.strerror}") from None


def _check(data: bytes) -> int:
    """As `fetch_file()` in agent/disk.c has it: FNV-1a over little-endian words of 64 bits."""
    value = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", data):
        value = (value ^ word) * 0x100000001B3 & 0xFFFF_FFFF_FFFF_FFFF
    return value
