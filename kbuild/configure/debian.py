"""Debian's kernel source packages: fetched, unpacked, never installed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kbuild import command, log
from kbuild.configure.apt import find, oldest_first
from kbuild.errors import HarnessError, UserError
from kbuild.paths import make_folder, require_room

ROOM_MB = 2500
"""For a package, what is in it and what is in that: 1.9 GB for 6.1, 2.2 GB for 7.2."""


def fetch_source(series: str, version: str | None, trees: Path, *, refresh: bool) -> tuple[Path, str]:
    """The unpacked `linux-source-SERIES` package and its exact version.

    Without `version`, the newest that was fetched before; the archive is asked only when there is
    none, or with `refresh`. Unpacked to `trees/linux-source-SERIES_VERSION/src`. The caller holds
    a lock. Raises UserError for a series or version that the archive does not have, HarnessError
    when it cannot be reached.
    """
    package = f"linux-source-{series}"
    if not refresh:
        present = _present(package, trees)
        if version in present or (version is None and present):
            chosen = version or present[-1]
            return _folder(package, chosen, trees) / "src", chosen
    # apt, for one, tries again for minutes when it finds no space for its lists.
    require_room(trees, ROOM_MB, f"to fetch and unpack {package}")
    apt, available = find(package, series, version)
    if not available:
        raise UserError(f"debian:{series}: the archive has no {package}")
    if version is not None and version not in available:
        raise UserError(f"debian:{series}={version}: the archive has no such version; it has {', '.join(available)}")
    chosen = version or available[0]
    folder = _folder(package, chosen, trees)
    if not (folder / "src").is_dir():
        _unpack(apt.download(package, chosen), series, folder)
    return folder / "src", chosen


def _folder(package: str, version: str, trees: Path) -> Path:
    return trees / f"{package}_{version}"


def _present(package: str, trees: Path) -> list[str]:
    """Versions that are unpacked already, oldest first."""
    return oldest_first(path.parent.name.split("_", 1)[1] for path in trees.glob(f"{package}_*/src"))


def _unpack(deb: Path, series: str, folder: Path) -> None:
    """Unpack the source out of the package; the folder gets its name only when it is whole."""
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as name:
        temporary = Path(name)
        with log.timed("unpack", package=deb.name):
            command.run(["dpkg-deb", "-x", deb, temporary])
            tarball = next(temporary.glob("usr/src/linux-source-*.tar.xz"), None)
            if tarball is None:
                raise HarnessError(f"{deb.name}: holds no usr/src/linux-source-{series}.tar.xz")
            command.run(["tar", "-xf", tarball, "-C", temporary])
        (temporary / f"linux-source-{series}").rename(folder / "src")
    deb.unlink()
