"""A patched tree in a slot of its own: the files of another slot by hard links, but for those that patches change.

No write goes through a link: what differs is a new file. What is put back or patched anew gets the time of that
moment, and what has the right content already keeps its own, so that make rebuilds what differs and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kbuild.configure.patch import find, parents
from kbuild.errors import HarnessError
from kbuild.paths import write_atomically


class _State(msgspec.Struct, frozen=True):
    base: str
    """The identity of the tree that the files were last taken from."""
    own: list[str]
    """Paths that may differ from it."""


def digest(overlay: Mapping[str, Path | None]) -> str:
    """The SHA-256 of what differs: names, modes and contents."""
    whole = hashlib.sha256()
    for path, file in sorted(overlay.items()):
        what = "absent" if file is None else f"{_mode(file)} {hashlib.sha256(_content(file)).hexdigest()}"
        whole.update(f"{path}\0{what}\0".encode(errors="surrogateescape"))
    return whole.hexdigest()


def lay_over(base: Path, identity: str, overlay: Mapping[str, Path | None], slot: Path) -> Path:
    """Make `SLOT/src` hold the files of `base` with those of `overlay` in their place; None: there is no such file.

    `identity` is the base's: as long as it stays the same, only what patches change or changed is looked at. Raises
    HarnessError when a file cannot be read or written.
    """
    target, state_file = slot / "src", slot / "src.json"
    try:
        if not target.is_dir():
            _link_all(base, target)
            changed: set[str] = set()
        else:
            state = _read(state_file)
            same = state is not None and state.base == identity
            changed = set(state.own) if state and same else set(_differing(base, target))
        # Without it, everything is compared: this may be cut off in the middle.
        state_file.unlink(missing_ok=True)
        wanted = {path: overlay[path] if path in overlay else find(base, path) for path in changed | overlay.keys()}
        for path in sorted(path for path, file in wanted.items() if file is None):
            _remove(base, target, path)
        for path, file in sorted(wanted.items()):
            if file is not None:
                _place(file, target, path)
    except OSError as error:
        raise HarnessError(f"{target}: the patched tree cannot be made: {error}") from None
    write_atomically(state_file, msgspec.json.encode(_State(identity, sorted(overlay))))
    return target


def _read(path: Path) -> _State | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _link_all(base: Path, target: Path) -> None:
    """Every file of the base under a second name. Objects of an earlier tree would be newer than these: they go."""
    for objects in target.parent.glob("obj-*"):
        shutil.rmtree(objects)
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)

    def leave_out(folder: str, names: list[str]) -> list[str]:
        return [".git"] if folder == str(base) and ".git" in names else []

    shutil.copytree(base, new, symlinks=True, ignore=leave_out, copy_function=_link)
    new.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)  # a file system without links, or a file with too many


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Path and inode of every file and symbolic link."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if prefix or entry.name != ".git":
                        folders.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)


def _differing(base: Path, target: Path) -> Iterator[str]:
    """Paths that are not one and the same file in both."""
    there = {path: (status.st_dev, status.st_ino) for path, status in _walk(target)}
    for path, status in _walk(base):
        if there.pop(path, None) != (status.st_dev, status.st_ino):
            yield path
    yield from there


def _mode(file: Path) -> str:
    if file.is_symlink():
        return "link"
    return "executable" if file.stat().st_mode & 0o111 else "plain"


def _content(file: Path) -> bytes:
    return os.fsencode(file.readlink()) if file.is_symlink() else file.read_bytes()


def _remove(base: Path, target: Path, path: str) -> None:
    """Remove a file, and the folders that are empty then, and that the base does not have."""
    if (file := find(target, path)) is None:
        return
    file.unlink()
    for parent in reversed(list(parents(path))):
        if (base / parent).is_dir() or any((target / parent).iterdir()):
            return
        (target / parent).rmdir()


def _place(file: Path, target: Path, path: str) -> None:
    """Put a copy of a file, with the time of now, unless what is there is equal."""
    for parent in parents(path):
        folder = target / parent
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    copy = target / path
    if find(target, path) and (_mode(copy), _content(copy)) == (_mode(file), _content(file)):
        return
    copy.unlink(missing_ok=True)
    if file.is_symlink():
        copy.symlink_to(file.readlink())
    else:
        shutil.copyfile(file, copy)
        copy.chmod(0o755 if file.stat().st_mode & 0o111 else 0o644)
