"""What a distribution ships: kernel packages of Debian's archive, unpacked and never installed."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbuild import command, log
from kbuild.configure.apt import Apt, find, oldest_first
from kbuild.errors import UserError
from kbuild.paths import cache_home, locked, make_folder, mark_used

_PARTS = re.compile(r"linux-(?:image|binary|modules)-")
"""What a package without a kernel depends on for one: `linux-image-amd64` on the newest image, and since 7.x
`linux-image-…` is empty and depends on the others."""
_SERIES = re.compile(r"linux-image-(\d+\.\d+)(?:\.|-)")


@dataclass(frozen=True)
class Shipped:
    """An unpacked kernel package."""

    package: str
    version: str
    kernel: Path
    """A bzImage."""
    modules: Path
    """The folder with all of its modules."""
    config: Path | None = None
    """The configuration that it was built with, where the package has it."""


@contextmanager
def open_package(asked: str, *, refresh: bool = False) -> Iterator[Shipped]:
    """The kernel package `NAME` or `NAME=VERSION`, with the parts that it is made of.

    It stays as it is while the context is open. Without a version, the newest that was fetched before; the archive is
    asked only when there is none, or with `refresh`. Raises UserError for a name or version that the archive does not
    have or that holds no kernel, HarnessError when it cannot be reached.
    """
    name, _, version = asked.partition("=")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name):
        raise UserError(
            f"--package {asked}: write a package's name, such as linux-image-6.1.0-56-amd64, or NAME=VERSION"
        )
    packages = make_folder(cache_home() / "packages")
    with locked(package_lock(packages, name)):
        chosen = _present(name, version, packages) if not refresh else None
        if chosen is None:
            chosen = _fetch(asked, name, version, packages)
        folder = packages / f"{name}_{chosen}"
        mark_used(folder)
        yield _look(name, chosen, folder)


def package_lock(packages: Path, name: str) -> Path:
    """Held while a package of this name is fetched, unpacked and read."""
    return packages / f"{name}.lock"


def _present(name: str, version: str, packages: Path) -> str | None:
    """The version that is there already: the one that is asked for, or the newest."""
    present = oldest_first(path.name.split("_", 1)[1] for path in packages.glob(f"{name}_*"))
    if version:
        return version if version in present else None
    return present[-1] if present else None


def _fetch(asked: str, name: str, version: str, packages: Path) -> str:
    """Fetch a version, or the newest, and say which one it is."""
    series = _SERIES.match(name)
    apt, available = find(name, series and series[1], version or None)
    if not available:
        near = difflib.get_close_matches(name, apt.names("linux-image-"), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--package {name}: the archive has no such package{hint}")
    if version and version not in available:
        raise UserError(f"--package {asked}: the archive has no such version; it has {', '.join(available)}")
    chosen = version or available[0]
    folder = packages / f"{name}_{chosen}"
    if not folder.is_dir():
        _unpack(apt, name, chosen, folder)
    return chosen


def _unpack(apt: Apt, name: str, version: str, folder: Path) -> None:
    """Download and unpack a package and its parts; the folder gets its name only when it is whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".unpack-{name}_") as scratch:
        root = make_folder(Path(scratch, "root"))
        waiting, seen = [(name, version)], {name}
        while waiting:
            part, exact = waiting.pop()
            deb = apt.download(part, exact)
            with log.timed("unpack", package=deb.name):
                command.run(["dpkg-deb", "-x", deb, root])
            deb.unlink()
            for one, _, needed in (depended.partition("=") for depended in apt.depends(part, exact)):
                if _PARTS.match(one) and one not in seen:
                    seen.add(one)
                    waiting.append((one, needed or apt.versions(one)[0]))
        _look(name, version, root)  # what holds no kernel is not kept
        root.rename(folder)


def _look(name: str, version: str, folder: Path) -> Shipped:
    kernels = [*folder.glob("boot/vmlinuz-*"), *folder.glob("usr/lib/modules/*/vmlinuz")]
    modules = [*folder.glob("lib/modules/*"), *folder.glob("usr/lib/modules/*")]
    if len(kernels) != 1 or len(modules) != 1:
        raise UserError(f"--package {name}: {version} holds no kernel with modules; name a linux-image-… package")
    configs = [*folder.glob("boot/config-*"), *folder.glob("usr/lib/modules/*/config")]
    return Shipped(name, version, kernels[0], modules[0], configs[0] if len(configs) == 1 else None)
