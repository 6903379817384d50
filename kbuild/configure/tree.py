"""Kernel source trees: Debian's packages, plain folders, git checkouts and their commits.

Whatever the user names, the build reads a copy that belongs to this tool: `SLOT/src`, with one
object folder for each configuration beside it (`SLOT/obj-KEY`). All slots have the same shape,
so that the paths in compiler commands are the same in each and ccache hits across trees.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from kbuild import log
from kbuild.configure import debian, git
from kbuild.configure.mirror import mirror, walk_source
from kbuild.configure.overlay import digest as overlay_digest
from kbuild.configure.overlay import lay_over
from kbuild.configure.patch import Patch, apply_patches, read_patch
from kbuild.errors import UserError
from kbuild.paths import cache_home, locked, make_folder, mark_used


@dataclass(frozen=True)
class Tree:
    """A source tree that is ready to be built; it stays as it is while its context is open."""

    asked: str
    """As the user named it."""
    source: Path
    slot: Path
    version: str
    """From its Makefile, such as `6.1.192`."""
    identity: str
    """What these bytes are: package and version, commit, or digest of the contents. Equal identities
    are equal trees."""
    commit: str | None = None
    patch: bytes | None = None
    """What a git checkout has over its commit (`git diff HEAD`), for the record."""
    package: str | None = None
    patches: tuple[Patch, ...] = ()
    """What was asked for on top."""

    def objects(self, key: str) -> Path:
        """The object folder (`O=`) for a configuration's key."""
        return self.slot / f"obj-{key}"


@contextlib.contextmanager
def open_tree(
    asked: str, rev: str | None = None, *, patches: Sequence[str] = (), refresh: bool = False
) -> Iterator[Tree]:
    """Make a tree ready, and keep it as it is until the context ends.

    Of a package several runs may have the source at once, for nobody changes it; any other tree is one run's alone.
    Object folders have a lock of their own (`kbuild.build.kernel.building`).

    `asked` is `debian:6.1`, `debian:6.1=VERSION` or a folder; `rev` a commit of a git checkout;
    `patches` are files that are applied in this order. `refresh` asks Debian's archive for a newer
    version than the one at hand. Raises UserError for what is no tree or no patch and for a patch
    that does not apply, HarnessError when the tree cannot be fetched or copied.
    """
    files = tuple(map(read_patch, patches))
    slot, make = _locate(asked, rev, files, refresh=refresh)
    package = asked.startswith("debian:")
    if not files:
        with waiting_lock(slot / "lock", asked, shared=package):
            yield make()
        return
    patched_slot = make_folder(slot.with_name(f"patched-{slot.name}"))
    with waiting_lock(patched_slot / "lock", asked):
        with waiting_lock(slot / "lock", asked, shared=package):
            tree = _patched(make(), files, patched_slot)
        yield tree


def _locate(asked: str, rev: str | None, patches: Sequence[Patch], *, refresh: bool) -> tuple[Path, Callable[[], Tree]]:
    """The slot of what the user names, and what makes it ready once the slot is locked."""
    trees = make_folder(cache_home() / "trees")
    if match := re.fullmatch(r"debian:(\d+\.\d+)(?:=(.+))?", asked):
        if rev is not None:
            raise UserError(f"--rev {rev}: {asked} is a package, not a git checkout")
        series = match[1]
        with waiting_lock(series_lock(trees, series), asked):
            source, version = debian.fetch_source(series, match[2], trees, refresh=refresh)
        return source.parent, lambda: _debian(asked, series, version, source)
    if asked.startswith("debian:"):
        raise UserError(f"--tree {asked}: write debian:X.Y or debian:X.Y=VERSION")
    folder = Path(asked).expanduser().resolve()
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"--tree {asked}: {what}; give a kernel tree or debian:6.1")
    checkout = git.is_checkout(folder)
    if rev is not None and not checkout:
        raise UserError(f"--rev {rev}: {folder} is no git checkout")
    if rev is None:
        kernel_version(folder)  # refuses what is no kernel tree before a copy is made
    name = re.sub(r"[^\w.-]", "_", folder.name) or "tree"
    kind = "rev" if rev is not None else "work"
    slot = make_folder(trees / f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}-{kind}")
    if rev is not None:
        commit = git.commit_of(folder, rev)
        return slot, lambda: _checked_out(asked, folder, commit, slot)
    # A patch that lies in the checkout for the moment is no part of the kernel.
    beside = {Path(patch.name).expanduser().resolve() for patch in patches}
    beside_paths = {str(path.relative_to(folder)) for path in beside if path.is_relative_to(folder)}
    if checkout and patches:
        git.refuse_changes(folder, beside_paths)
    return slot, lambda: _copied(asked, folder, slot, beside_paths)


def _checked_out(asked: str, folder: Path, commit: str, slot: Path) -> Tree:
    """One commit of a git checkout."""
    source = slot / "src"
    with log.timed("tree.checkout", commit=commit):
        git.check_out(folder, commit, source)
    version = kernel_version(source, f"{folder} at {commit[:12]}")
    return Tree(asked, source, slot, version, f"commit {commit}", commit=commit)


def _copied(asked: str, folder: Path, slot: Path, without: Set[str]) -> Tree:
    """A folder as it is now, but for some files that are not the kernel's."""
    source = slot / "src"
    checkout = git.is_checkout(folder)
    with log.timed("tree.copy", folder=str(folder)):
        paths = git.files_of(folder) if checkout else walk_source(folder)
        digest = mirror(folder, (path for path in paths if path not in without), source)
    commit = patch = None
    if checkout:
        commit = git.commit_of(folder, "HEAD")
        patch = git.diff(folder, without) or None
    return Tree(asked, source, slot, kernel_version(source), f"contents {digest}", commit, patch)


def _patched(base: Tree, patches: tuple[Patch, ...], slot: Path) -> Tree:
    """The tree with patches on top, in a slot of its own."""
    known = base.package or (base.commit and base.commit[:12])
    scratch = slot / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        with log.timed("tree.patch"):
            name = f"{base.asked} ({known})" if known else base.asked
            overlay = apply_patches(base.source, patches, make_folder(scratch), name)
            identity = f"{base.identity} with patches {overlay_digest(overlay)}"
            source = lay_over(base.source, base.identity, overlay, slot)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    version = kernel_version(source, f"{base.asked} with its patches")
    return replace(base, source=source, slot=slot, version=version, identity=identity, patches=patches)


def _debian(asked: str, series: str, version: str, source: Path) -> Tree:
    """Debian's source, fetched before; once more where a clean-up came before its slot was locked."""
    if not source.is_dir():
        trees = source.parent.parent
        with waiting_lock(series_lock(trees, series), asked):
            debian.fetch_source(series, version, trees, refresh=False)
    package = f"linux-source-{series} {version}"
    return Tree(asked, source, source.parent, kernel_version(source), package, package=package)


def series_lock(trees: Path, series: str) -> Path:
    """Held while a Debian source of this series is looked for, fetched and unpacked."""
    return trees / f"debian-{series}.lock"


@contextlib.contextmanager
def waiting_lock(path: Path, asked: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock of what the user asked for; say so when another run has it."""
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locked(path, blocking=False, shared=shared)):
            log.get().warning("waiting for another run that uses this tree", tree=asked)
            stack.enter_context(locked(path, shared=shared))
        mark_used(path)
        yield


def kernel_version(folder: Path, name: str | None = None) -> str:
    """The version in a tree's Makefile. Raises UserError where this is no Linux tree with KVM for x86.

    `name` is what the user knows it by.
    """
    name = name or str(folder)
    try:
        head = (folder / "Makefile").open(encoding="utf-8", errors="replace").read(4096)
    except OSError:
        raise UserError(f"{name}: not a kernel tree: there is no Makefile") from None
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*) *$", head, re.MULTILINE))
    if not found.get("VERSION", "").isdigit() or not found.get("PATCHLEVEL", "").isdigit():
        raise UserError(f"{name}: Makefile: not a kernel tree: it sets no VERSION and PATCHLEVEL")
    if not (folder / "arch/x86/kvm").is_dir():
        raise UserError(f"{name}: a kernel tree without arch/x86/kvm: nothing to build here")
    return "{VERSION}.{PATCHLEVEL}.{SUBLEVEL}{EXTRAVERSION}".format(
        **{"SUBLEVEL": "0", "EXTRAVERSION": "", **{name: value for name, value in found.items() if value}}
    )
