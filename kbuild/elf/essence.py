"""What a module is, but for what changes with each build: two of the same essence load, run and answer alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kbuild.elf import contents
from kbuild.elf.contents import MalformedError
from kbuild.elf.object import ElfObject, Section
from kbuild.errors import UserError

_PASSED_OVER = (".note.gnu.build-id", ".comment", ".symtab", ".strtab", ".shstrtab")
"""The build id is a hash of all the rest; names and symbols are taken as they are read."""
_VERSIONS = (b"vermagic=", b"srcversion=", b"scmversion=")
"""In `.modinfo`: of which kernel's build, and of which source text (scripts/mod/modpost.c)."""
_LINE_BYTES = 2
"""`struct bug_entry` ends with `unsigned short line, flags` (include/asm-generic/bug.h)."""
_ENTRY_END = 4


def essence(path: Path) -> str:
    """A digest of a module's file without build id, version strings, debug information, line numbers of bug tables.

    Raises UserError for what is no module.
    """
    try:
        elf = ElfObject(contents.decompressed(contents.read(path)))
        digest = hashlib.sha256()
        for section in elf.sections:
            if section.name in _PASSED_OVER or section.name.startswith((".debug_", ".rela")):
                continue
            digest.update(f"\0{section.name}\0{section.kind}\0{section.flags}\0{section.align}\0".encode())
            digest.update(_content(elf, section))
            for one in elf.relocation_entries(section):
                digest.update(str(one).encode())
        for symbol in elf.symbols:
            digest.update(repr(symbol).encode())
    except MalformedError as error:
        raise UserError(f"{path}: {error}") from None
    return digest.hexdigest()


def _content(elf: ElfObject, section: Section) -> bytes:
    data = elf.content(section)
    if section.name == ".modinfo":
        return b"\0".join(one for one in data.split(b"\0") if not one.startswith(_VERSIONS))
    if section.name == "__bug_table":
        return _without_lines(data, sorted(offset for offset, _, _ in elf.relocation_entries(section)))
    return data


def _without_lines(data: bytes, relocated: list[int]) -> bytes:
    """A bug table with its line numbers zeroed: they stand behind an entry's last reference, with its flags.

    Where all that would be the flags is zero it may be padding, and the line the flags (no CONFIG_DEBUG_BUGVERBOSE):
    then nothing is left out.
    """
    starts = {*relocated}
    ends = [offset + 4 for offset in relocated if offset + 4 not in starts]
    flags = [data[end + _LINE_BYTES : end + _ENTRY_END] for end in ends]
    if len(relocated) < 2 * len(ends) or not any(map(any, flags)):
        return data
    found = bytearray(data)
    for end in ends:
        found[end : min(end + _LINE_BYTES, len(found))] = bytes(max(0, min(_LINE_BYTES, len(found) - end)))
    return bytes(found)
