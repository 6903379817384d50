"""Artifacts by content: a file that was built is kept once under its SHA-256 and shared between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kbuild.errors import HarnessError
from kbuild.outcome import Finding
from kbuild.paths import cache_home, locked, make_folder


class Built(msgspec.Struct, frozen=True):
    """A finished build, as it is kept beside its object folder."""

    tree: str
    """The tree's identity."""
    release: str
    """`make kernelrelease`: what `uname -r` says when it is booted."""
    files: dict[str, str]
    """File name to SHA-256: `bzImage`, `System.map`, `Module.symvers`, `vmlinux`, `config`, the modules."""
    findings: tuple[Finding, ...]
    seconds: float
    """Of wall clock."""


def store() -> Path:
    """The folder of all artifacts."""
    return cache_home() / "artifacts"


def store_lock() -> Path:
    """Shared by those who use artifacts; a clean-up wants it for itself."""
    return store() / "lock"


@contextmanager
def artifacts_in_use() -> Iterator[None]:
    """No artifact is removed until the context ends: what is found or kept in it can be linked or remembered."""
    with locked(store_lock(), shared=True):
        yield


def artifact(digest: str) -> Path:
    """Where the bytes with this SHA-256 are kept."""
    return store() / digest[:2] / digest


def file_digest(path: Path) -> str:
    """The SHA-256 of a file. Raises HarnessError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None


def put(path: Path) -> str:
    """Keep a copy of a file and return its SHA-256. Raises HarnessError when the disk does not take it.

    Bytes that are kept already are read: damaged ones are replaced.
    """
    try:
        digest = file_digest(path)
        target = artifact(digest)
        if is_whole(digest):
            return digest
        make_folder(target.parent)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
        os.close(handle)
        try:
            shutil.copyfile(path, temporary)
            Path(temporary).chmod(0o444)
            os.rename(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HarnessError(f"{path}: cannot be kept below {store()}: {error.strerror}") from None
    return digest


def is_whole(digest: str) -> bool:
    """Whether the bytes with this SHA-256 are kept, and are still these bytes."""
    path = artifact(digest)
    return path.is_file() and file_digest(path) == digest
