"""Where this tool keeps its files (XDG base directories), and how it writes them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from kbuild.errors import HarnessError, UserError

PROJECT = Path(__file__).resolve().parent.parent
"""The checkout that this package is installed from (editable, by `scripts/inv`)."""


def cache_home() -> Path:
    """What can be made again: trees, builds, artifacts, boot images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvm-kbuild"


def state_home() -> Path:
    """What cannot: records of runs, and what hosts have been seen to do."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kvm-kbuild"


def make_folder(path: Path) -> Path:
    """Make a folder and its parents. Raises HarnessError in one line."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        if os.path.lexists(path):
            raise HarnessError(f"{path}: cannot be made: {error.strerror}") from None
        return make_folder(path)  # it was there, and a clean-up took it away before it was looked at
    except OSError as error:
        raise HarnessError(f"{path}: cannot be made: {error.strerror}") from None
    return path


def require_room(folder: Path, megabytes: int, what: str) -> Path:
    """The folder, where its disk still has room for `what`. Raises HarnessError in one line."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise HarnessError(f"{folder}: cannot be used: {error.strerror}") from None
    free = disk.f_bavail * disk.f_frsize
    if free < megabytes << 20:
        raise HarnessError(
            f"{folder}: {what} takes {megabytes} MB, and {free >> 20} MB are free: {os.strerror(errno.ENOSPC)}"
        )
    return folder


def read_text(path: Path, limit: int = 1 << 20) -> str:
    """A text file that a person wrote. Raises UserError in one line, also where it is larger than `limit` bytes."""
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path}: larger than {limit} bytes; this is no file of ours")
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read: is not UTF-8") from None


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a whole file or nothing: temporary file in the same folder, flush to disk, rename.

    Raises HarnessError in one line, such as a full disk.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise HarnessError(f"{path}: cannot be written: {error.strerror}") from None


def write_output(path: Path, content: str) -> None:
    """Write where a user said: a file is whole or not there; a device or pipe is written to, and never replaced.

    To rename a file to /dev/null is what root can do, and what nobody means. Raises HarnessError in one line.
    """
    try:
        special = not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        special = False
    if not special:
        write_atomically(path.resolve(), content)
        return
    try:
        with path.open("wb") as file:
            file.write(content.encode())
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error.strerror}") from None


def link_or_copy(source: Path, target: Path) -> Path:
    """Give a file another name, unless it is there: for the same bytes where the disk allows it, or for a copy.

    So it must be this tool's own, which nobody writes in place later. Raises HarnessError in one line.
    """
    make_folder(target.parent)
    if target.exists():
        return target
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    temporary = target.with_name(f".{target.name}.new")
    try:
        shutil.copy2(source, temporary)
        os.rename(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise HarnessError(f"{target}: cannot be written: {error.strerror}") from None
    return target


@contextlib.contextmanager
def locked(path: Path, *, blocking: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on the file `path` (made if missing), also against other processes.

    Gives whether it is held: always, unless `blocking` is false and somebody else has it. `shared`
    keeps away only those who want it for themselves. The kernel releases it when this process ends,
    however it ends. A clean-up may remove the file, with the folder that it is in, while somebody waits
    for it: then it is made and locked anew.
    """
    with _lock(path, blocking=blocking, shared=shared) as handle:
        yield handle is not None


@contextlib.contextmanager
def lock_to_share(path: Path) -> Iterator[int]:
    """Hold a lock on the file `path`, with every process that is given the file descriptor and has not closed it."""
    with _lock(path, blocking=True, shared=False) as handle:
        assert handle is not None
        yield handle


@contextlib.contextmanager
def _lock(path: Path, *, blocking: bool, shared: bool) -> Iterator[int | None]:
    while True:
        make_folder(path.parent)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # the folder went in this moment
        except OSError as error:
            raise HarnessError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            held = _flock(handle, blocking=blocking, shared=shared)
            if not held or _is_at(handle, path):
                yield handle if held else None
                return
        finally:
            os.close(handle)


def hold_folder(path: Path, owner: object) -> None:
    """Make a folder, and keep clean-ups away from it for as long as `owner` (or this process) lives."""
    while True:
        try:
            handle = os.open(make_folder(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        _flock(handle, blocking=True, shared=True)
        if _is_at(handle, path):
            weakref.finalize(owner, os.close, handle)
            return
        os.close(handle)


@contextlib.contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether nobody holds the folder; if so, nobody can until the context ends."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _flock(handle, blocking=False, shared=False)
    finally:
        os.close(handle)


def _flock(handle: int, *, blocking: bool, shared: bool) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def mark_used(path: Path) -> None:
    """Give a file or folder the time of now: what was not used for long goes first when the cache is full."""
    with contextlib.suppress(OSError):
        os.utime(path)
