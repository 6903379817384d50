"""Kernel source trees: Debian's packages, plain folders, git checkouts and their commits.

Whatever the user names, the build reads a copy that belongs to this tool: `SLOT/src`, with one
object folder for each configuration beside it (`SLOT/obj-KEY`). All slots have the same shape,
so that the paths in compiler commands are the same in each and ccache hits across trees.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild import log
from kbuild.configure import debian, git
from kbuild.configure.mirror import mirror, walk_source
from kbuild.errors import UserError
from kbuild.paths import cache_home, locked, make_folder


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

    def objects(self, key: str) -> Path:
        """The object folder (`O=`) for a configuration's key."""
        return self.slot / f"obj-{key}"


@contextlib.contextmanager
def open_tree(asked: str, rev: str | None = None, *, refresh: bool = False) -> Iterator[Tree]:
    """Make a tree ready, and keep every other run away from its slot until the context ends.

    `asked` is `debian:6.1`, `debian:6.1=VERSION` or a folder; `rev` a commit of a git checkout.
    `refresh` asks Debian's archive for a newer version than the one at hand. Raises UserError for
    what is no tree, HarnessError when it cannot be fetched or copied.
    """
    trees = make_folder(cache_home() / "trees")
    with contextlib.ExitStack() as stack:
        if match := re.fullmatch(r"debian:(\d+\.\d+)(?:=(.+))?", asked):
            if rev is not None:
                raise UserError(f"--rev {rev}: {asked} is a package, not a git checkout")
            with _waiting_lock(trees / f"debian-{match[1]}.lock", asked):
                source, version = debian.fetch_source(match[1], match[2], trees, refresh=refresh)
            slot = source.parent
            stack.enter_context(_waiting_lock(slot / "lock", asked))
            package = f"linux-source-{match[1]} {version}"
            yield Tree(asked, source, slot, kernel_version(source), package, package=package)
            return
        if asked.startswith("debian:"):
            raise UserError(f"--tree {asked}: write debian:X.Y or debian:X.Y=VERSION")
        folder = Path(asked).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--tree {asked}: no such folder; give a kernel tree or debian:6.1")
        checkout = git.is_checkout(folder)
        if rev is not None and not checkout:
            raise UserError(f"--rev {rev}: {folder} is no git checkout")
        name = re.sub(r"[^\w.-]", "_", folder.name) or "tree"
        kind = "rev" if rev is not None else "work"
        slot = make_folder(trees / f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}-{kind}")
        if rev is None:
            kernel_version(folder)  # refuses what is no kernel tree before a copy is made
        else:
            rev = git.commit_of(folder, rev)
        stack.enter_context(_waiting_lock(slot / "lock", asked))
        source = slot / "src"
        if rev is not None:
            with log.timed("tree.checkout", commit=rev):
                git.check_out(folder, rev, source)
            yield Tree(asked, source, slot, kernel_version(source), f"commit {rev}", commit=rev)
            return
        with log.timed("tree.copy", folder=str(folder)):
            digest = mirror(folder, git.files_of(folder) if checkout else walk_source(folder), source)
        commit = patch = None
        if checkout:
            commit = git.commit_of(folder, "HEAD")
            patch = git.diff(folder) or None
        yield Tree(asked, source, slot, kernel_version(source), f"contents {digest}", commit, patch)


@contextlib.contextmanager
def _waiting_lock(path: Path, asked: str) -> Iterator[None]:
    """Hold a lock; say so when another run has it."""
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locked(path, blocking=False)):
            log.get().warning("waiting for another run that uses this tree", tree=asked)
            stack.enter_context(locked(path))
        yield


def kernel_version(folder: Path) -> str:
    """The version in a tree's Makefile. Raises UserError where this is no Linux tree with KVM for x86."""
    try:
        head = (folder / "Makefile").open(encoding="utf-8", errors="replace").read(4096)
    except OSError:
        raise UserError(f"{folder}: not a kernel tree: there is no Makefile") from None
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*) *$", head, re.MULTILINE))
    if not found.get("VERSION", "").isdigit() or not found.get("PATCHLEVEL", "").isdigit():
        raise UserError(f"{folder}/Makefile: not a kernel tree: it sets no VERSION and PATCHLEVEL")
    if not (folder / "arch/x86/kvm").is_dir():
        raise UserError(f"{folder}: a kernel tree without arch/x86/kvm: nothing to build here")
    return "{VERSION}.{PATCHLEVEL}.{SUBLEVEL}{EXTRAVERSION}".format(
        **{"SUBLEVEL": "0", "EXTRAVERSION": "", **{name: value for name, value in found.items() if value}}
    )
