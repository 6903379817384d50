"""Where this tool keeps its files (XDG base directories), and how it writes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
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
    except OSError as error:
        raise HarnessError(f"{path}: cannot be made: {error.strerror}") from None
    return path


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


@contextlib.contextmanager
def locked(path: Path, *, blocking: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path` (made if missing), also against other processes.

    Gives whether it is held: always, unless `blocking` is false and somebody else has it. The
    kernel releases it when this process ends, however it ends.
    """
    make_folder(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
