"""Debian's kernel source packages, fetched with an apt state of our own.

Nothing in the system changes: its apt lists, its sources and its installed packages are not
touched. The mirror, proxy and keys are the system's own; apt checks the signatures.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import msgspec

from kbuild import command, log, toml
from kbuild.errors import HarnessError, UserError
from kbuild.paths import make_folder, write_atomically


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the source package of a kernel series is found."""

    suites: tuple[str, ...]
    """In Debian's main archive."""
    security: tuple[str, ...] = ()
    """In its security archive."""


class _SeriesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    series: dict[str, Series]


KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def known_series() -> dict[str, Series]:
    """The series that can be asked for, from `debian.toml`."""
    return toml.read(Path(__file__).with_name("debian.toml"), _SeriesFile).series


def fetch_source(series: str, version: str | None, trees: Path, *, refresh: bool) -> tuple[Path, str]:
    """The unpacked `linux-source-SERIES` package and its exact version.

    Without `version`, the newest that was fetched before; the archive is asked only when there is
    none, or with `refresh`. Unpacked to `trees/linux-source-SERIES_VERSION/src`. The caller holds
    a lock. Raises UserError for a series or version that the archive does not have, HarnessError
    when it cannot be reached.
    """
    package = f"linux-source-{series}"
    known = known_series()
    if series not in known:
        raise UserError(f"debian:{series}: no such series; known: {', '.join(f'debian:{name}' for name in known)}")
    if not refresh:
        present = _present(package, trees)
        if version in present or (version is None and present):
            chosen = version or present[-1]
            return _folder(package, chosen, trees) / "src", chosen
    apt = _Apt(trees.parent / "apt" / series, known[series])
    apt.update()
    available = apt.versions(package)
    if version is not None and version not in available:
        raise UserError(
            f"debian:{series}={version}: the archive has no such version; it has {', '.join(available) or 'none'}"
        )
    if not available:
        raise HarnessError(f"{package}: not in the archive's {', '.join(known[series].suites)}")
    chosen = version or available[0]
    folder = _folder(package, chosen, trees)
    if not (folder / "src").is_dir():
        _unpack(apt.download(package, chosen), series, folder)
    return folder / "src", chosen


def _folder(package: str, version: str, trees: Path) -> Path:
    return trees / f"{package}_{version}"


def _present(package: str, trees: Path) -> list[str]:
    """Versions that are unpacked already, oldest first."""
    versions = [path.parent.name.split("_", 1)[1] for path in trees.glob(f"{package}_*/src")]

    def compare(a: str, b: str) -> int:
        if a == b:
            return 0
        older = command.run(["dpkg", "--compare-versions", a, "lt", b], check=False).status == 0
        return -1 if older else 1

    return sorted(versions, key=cmp_to_key(compare))


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


class _Apt:
    """apt-get with lists, cache and sources in a folder of our own."""

    def __init__(self, folder: Path, series: Series) -> None:
        self._folder = folder
        for part in ("state/lists/partial", "cache/archives/partial", "download"):
            make_folder(folder / part)
        write_atomically(folder / "status", "")
        write_atomically(folder / "sources.list", _sources(series))
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            # Old suites stop being renewed while their signatures stay good.
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # The folder is the user's, perhaps below /root, where apt's own user cannot write.
            "APT::Sandbox::User": "",
        }
        write_atomically(folder / "apt.conf", "".join(f'{name} "{value}";\n' for name, value in settings.items()))

    def _run(self, *argv: str, **options: Any) -> command.Completed:
        return command.run(argv, env={"APT_CONFIG": str(self._folder / "apt.conf")}, **options)

    def update(self) -> None:
        with log.timed("apt.update"):
            done = self._run("apt-get", "-qq", "update", check=False, timeout=600)
        problem = next((line for line in done.output.splitlines() if line.startswith(("E:", "W:"))), None)
        if done.status or (problem and "Failed to fetch" in problem):
            raise HarnessError(f"Debian's archive cannot be read: {problem or done.output[-200:].strip()}")

    def versions(self, package: str) -> list[str]:
        """All versions in the archive, newest first."""
        done = self._run("apt-cache", "madison", package)
        found = [line.split("|")[1].strip() for line in done.output.splitlines() if line.count("|") == 2]
        return list(dict.fromkeys(found))

    def download(self, package: str, version: str) -> Path:
        folder = self._folder / "download"
        with log.timed("apt.download", package=package, version=version):
            self._run("apt-get", "-qq", "download", f"{package}={version}", cwd=folder, timeout=1800)
        # apt writes an epoch's colon as %3a.
        deb = next(folder.glob(f"{package}_{version.replace(':', '%3a')}_*.deb"), None)
        if deb is None:
            raise HarnessError(f"{package}={version}: apt-get download left no file in {folder}")
        return deb


def _sources(series: Series) -> str:
    """Source lines for the wanted suites, on the mirrors that this system uses."""
    if shutil.which("apt-get") is None:
        raise HarnessError("there is no apt-get here: give a kernel tree with --tree PATH")
    listing = command.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"]
    ).output
    mirrors: dict[str, str] = {}
    for line in listing.splitlines():
        if match := re.fullmatch(r"(\S+) (Debian|Debian-Security)", line.strip()):
            mirrors.setdefault(match[2], match[1])
    if "Debian" not in mirrors:
        raise HarnessError("apt knows no Debian archive here: run 'apt-get update', or give a tree with --tree PATH")
    if not KEYRING.is_file():
        raise HarnessError(f"{KEYRING} is missing: install debian-archive-keyring")
    lines = [f"deb [signed-by={KEYRING}] {mirrors['Debian']} {suite} main" for suite in series.suites]
    if "Debian-Security" in mirrors:
        lines += [f"deb [signed-by={KEYRING}] {mirrors['Debian-Security']} {suite} main" for suite in series.security]
    return "".join(line + "\n" for line in lines)
