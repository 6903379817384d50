"""A copy of a source folder that belongs to this tool, brought up to date in place.

The user's folder is only read: nothing is written, locked or locked out there, its build output and
index stay as they are, and edits during a build cannot leak into what is judged. Unchanged files
keep their time in the copy, so that make rebuilds what changed and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kbuild.errors import HarnessError
from kbuild.paths import make_folder, write_atomically

_OUTPUT_SUFFIXES = (
    *(".o", ".a", ".ko", ".cmd", ".d", ".mod", ".mod.c", ".order", ".symvers", ".dtb", ".dwo", ".su", ".gcno"),
    *(".i", ".s", ".lst", ".rej", ".orig", ".elf", ".builtin"),
)
_OUTPUT_FOLDERS = frozenset({".git", "include/config", "include/generated"})
"""What an in-tree build leaves in a folder without git, where nothing else tells it from source."""


class _Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    size: int
    mtime_ns: int
    mode: int
    digest: str


_Manifest = dict[str, _Entry]


def walk_source(folder: Path) -> Iterator[str]:
    """Paths of all source files below a folder that is no git checkout, without build output."""
    for base, folders, files in os.walk(folder):
        relative = os.path.relpath(base, folder)
        prefix = "" if relative == "." else relative + "/"
        folders[:] = sorted(
            name
            for name in folders
            if prefix + name not in _OUTPUT_FOLDERS and not (prefix.startswith("arch/") and name == "generated")
        )
        # A link to a folder is no folder to go down into, but a file.
        for name in (*files, *(name for name in folders if Path(base, name).is_symlink())):
            if not name.endswith(_OUTPUT_SUFFIXES) and not name.startswith((".config", ".tmp_")):
                yield prefix + name


def mirror(source: Path, paths: Iterable[str], target: Path) -> str:
    """Make `target` hold exactly `paths` of `source`, and return the SHA-256 of names, modes and contents.

    What has not changed in size and time since the last call is not read again. Raises HarnessError
    when a file cannot be read or written.
    """
    manifest_path = target.with_name(target.name + ".manifest")
    old = _read_manifest(manifest_path)
    new: _Manifest = {}
    make_folder(target)
    made: set[str] = set()
    place = ""
    prefix = f"{source}/"
    try:
        wanted = sorted(paths)
        # What is gone goes first: a folder may stand where a file or link stood, and the other way round.
        there = set(old) or _files(target)
        gone = there - set(wanted)
        for path in gone:
            place = path
            manifest_path.unlink(missing_ok=True)
            _remove(target, path)
        links: tuple[str, ...] = ()
        # Each line here is done 80,000 times, mostly for files that have not changed: plain strings, no Path.
        for path in wanted:
            place = path
            try:
                status = os.lstat(prefix + path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted in the checkout, still in git's index
            mode = status.st_mode
            if links and path.startswith(links):
                continue  # so too: a link stands for its folder
            if stat.S_ISLNK(mode) and Path(prefix + path).is_dir():
                links += (f"{path}/",)
            known = old.get(path)
            if known and known.mtime_ns == status.st_mtime_ns and known.size == status.st_size and known.mode == mode:
                new[path] = known
                continue
            if stat.S_ISDIR(mode):
                continue  # a git submodule: the kernel has none
            parent = os.path.dirname(path)
            if parent not in made:
                _make_parents(target, parent)
                made.add(parent)
            # A copy that stops half-way, however that comes, has no manifest: then everything is compared anew.
            manifest_path.unlink(missing_ok=True)
            digest = _copy(source / path, target / path, mode)
            new[path] = _Entry(status.st_size, status.st_mtime_ns, mode, digest)
        for path in there - gone - new.keys():
            place = path
            manifest_path.unlink(missing_ok=True)
            _remove(target, path)
    except OSError as error:
        raise HarnessError(f"{source / place}: cannot be copied to {target}: {error.strerror}") from None
    if new != old:
        write_atomically(manifest_path, msgspec.json.encode(new))
    whole = "".join([f"{path}\0{entry.mode & 0o111:o}\0{entry.digest}\0" for path, entry in new.items()])
    return hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()


def _read_manifest(path: Path) -> _Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _files(folder: Path) -> set[str]:
    """Paths of all files and links below a folder."""
    found: set[str] = set()
    for base, folders, files in os.walk(folder):
        links = [name for name in folders if Path(base, name).is_symlink()]
        found |= {os.path.relpath(os.path.join(base, name), folder) for name in (*files, *links)}
    return found


def _make_parents(target: Path, parent: str) -> None:
    """Make a folder in the copy, and never go through a link there."""
    place = target
    for name in Path(parent).parts:
        place /= name
        if place.is_symlink() or place.is_file():
            place.unlink()
        place.mkdir(exist_ok=True)


def _remove(target: Path, path: str) -> None:
    """Remove a file or link from the copy, unless something of another kind has taken its place, or its folder's."""
    place = target
    for name in Path(path).parts[:-1]:
        place /= name
        if place.is_symlink() or not place.is_dir():
            return
    place = target / path
    if place.is_symlink() or not place.is_dir():
        place.unlink(missing_ok=True)


def _copy(origin: Path, target: Path, mode: int) -> str:
    """Copy one file or symbolic link; a content that is there already keeps the copy's time."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    if stat.S_ISLNK(mode):
        link = str(origin.readlink())
        target.unlink(missing_ok=True)
        target.symlink_to(link)
        return hashlib.sha256(link.encode(errors="surrogateescape")).hexdigest()
    content = origin.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if target.is_symlink() or not target.is_file() or target.read_bytes() != content:
        # A new inode: the old one may be shared with, or open in, something else.
        target.unlink(missing_ok=True)
        target.write_bytes(content)
    target.chmod(stat.S_IMODE(mode) | stat.S_IWUSR)
    return digest
