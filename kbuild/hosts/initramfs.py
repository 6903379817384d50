"""Writes the archive that the kernel unpacks as its first root: newc cpio, not compressed.

The format is the kernel's own description, Documentation/driver-api/early-userspace/buffer-format.rst
(6.1). Uncompressed, because an emulated CPU takes longer to unpack it than to read it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from kbuild.errors import HarnessError, UserError

_MAX_SIZE = 0xFFFF_FFFF
"""The header has eight hexadecimal digits for a file's size."""

_CONSOLE = "dev/console"
"""init/main.c console_on_rootfs() (6.1) opens it before anything could have mounted devtmpfs."""

_EXECUTABLE = "init"
_TRAILER = "TRAILER!!!"


def write_initramfs(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """Write `files` (name inside the archive, such as `/modules/kvm.ko`, to a file or its content).

    The folders they need and `/dev/console` come by themselves; `/init` gets mode 0755, all else
    0644, all belongs to root. The same files give the same bytes. Whole or not at all. Raises
    UserError for a name that no archive can hold, HarnessError when a file cannot be read or written.
    """
    contents = {_clean(name): content for name, content in files.items()}
    if len(contents) != len(files):
        raise UserError(f"{path.name}: two of its files have the same name")
    folders = {str(parent) for name in [*contents, _CONSOLE] for parent in PurePosixPath(name).parents} - {"."}
    if clash := (folders | {_CONSOLE}) & contents.keys():
        raise UserError(f"{path.name}: {min(clash)} can not be one of its files")
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            # A folder sorts before what is in it, as the kernel needs it.
            for inode, name in enumerate(sorted(folders | contents.keys() | {_CONSOLE}), 1):
                if name in folders:
                    _entry(file, name, inode, stat.S_IFDIR | 0o755)
                elif name == _CONSOLE:
                    _entry(file, name, inode, stat.S_IFCHR | 0o600, device=(5, 1))
                else:
                    _file(file, name, inode, contents[name])
            _entry(file, _TRAILER, 0, 0)
            os.fchmod(file.fileno(), 0o644)
        os.rename(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise HarnessError(f"{error.filename or path}: {error.strerror}: no initramfs was written") from None
        raise


def _clean(name: str) -> str:
    parts = PurePosixPath(name.lstrip("/")).parts
    if not parts or ".." in parts or "\0" in name or parts == (_TRAILER,):
        raise UserError(f"{name!r} can not be the name of a file in an initramfs")
    return "/".join(parts)


def _file(archive: BinaryIO, name: str, inode: int, content: Path | bytes) -> None:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        if size > _MAX_SIZE:
            raise UserError(f"{name}: too large for an initramfs")
        _entry(archive, name, inode, stat.S_IFREG | (0o755 if name == _EXECUTABLE else 0o644), size=size)
        start = archive.tell()
        shutil.copyfileobj(source, archive, 1 << 20)
        if archive.tell() - start != size:
            raise HarnessError(f"{name}: changed while it was copied into the initramfs")
        _pad(archive)


def _entry(
    archive: BinaryIO, name: str, inode: int, mode: int, *, size: int = 0, device: tuple[int, int] = (0, 0)
) -> None:
    encoded = os.fsencode(name) + b"\0"
    owner, links, time, on_device, checksum = 0, 1, 0, 0, 0
    fields = (inode, mode, owner, owner, links, time, size, on_device, on_device, *device, len(encoded), checksum)
    archive.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
    _pad(archive)


def _pad(archive: BinaryIO) -> None:
    archive.write(bytes(-archive.tell() % 4))
