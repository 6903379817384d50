"""Debian's archive with an apt state of our own.

Nothing in the system changes: its apt lists, its sources and its installed packages are not
touched. The mirror, proxy and keys are the system's own; apt checks the signatures.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import msgspec

from kbuild import command, log, toml
from kbuild.errors import HarnessError
from kbuild.paths import cache_home, hold_folder, locked, make_folder, write_atomically


class Suites(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the packages of a kernel series are found."""

    suites: tuple[str, ...]
    """In Debian's main archive."""
    security: tuple[str, ...] = ()
    """In its security archive."""


class Archive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`debian.toml`."""

    everywhere: Suites
    series: dict[str, Suites]
    """Series that are looked for in a few suites first, and that `test --all-kernels` looks at."""


KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def archive() -> Archive:
    """What is known of Debian's archive, from `debian.toml`."""
    return toml.read(Path(__file__).with_name("debian.toml"), Archive)


def find(package: str, series: str | None, version: str | None = None) -> tuple[Apt, list[str]]:
    """An apt that has the package, of that version if one is given, and the versions that there are, newest first.

    Looked for where that series (`6.1`) is, then everywhere. Raises HarnessError when the archive cannot be reached.
    """
    known = archive()
    places = [(series, known.series[series])] if series in known.series else []
    for name, suites in [*places, ("all", known.everywhere)]:
        apt = Apt(suites, str(name))
        apt.update()
        versions = apt.versions(package)
        if version in versions or (versions and not version):
            break
    return apt, versions


def oldest_first(versions: Iterable[str]) -> list[str]:
    """Package versions in Debian's order."""

    def compare(a: str, b: str) -> int:
        if a == b:
            return 0
        older = command.run(["dpkg", "--compare-versions", a, "lt", b], check=False).status == 0
        return -1 if older else 1

    return sorted(versions, key=cmp_to_key(compare))


class Apt:
    """apt-get with lists, cache and sources in a folder of our own."""

    def __init__(self, suites: Suites, name: str) -> None:
        """For these suites; `name` is the folder's, one for each set of them."""
        folder = cache_home() / "apt" / name
        hold_folder(folder, self)
        self._folder = folder
        for part in ("state/lists/partial", "cache/archives/partial", "download"):
            make_folder(folder / part)
        write_atomically(folder / "status", "")
        write_atomically(folder / "sources.list", _sources(suites))
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
        """Read the archive's lists, signatures checked. A suite that it no longer has is passed over."""
        with locked(self._folder / "lock"), log.timed("apt.update"):
            done = self._run("apt-get", "-qq", "update", check=False, timeout=600)
        problems = [line for line in done.output.splitlines() if line.startswith(("E:", "W:"))]
        gone = [line for line in problems if line.endswith("does not have a Release file.")]
        grave = [line for line in problems if line not in gone and (done.status or "Failed to fetch" in line)]
        if grave or (done.status and not gone) or not any(self._folder.glob("state/lists/*Packages*")):
            raise HarnessError(f"Debian's archive cannot be read: {(grave or gone or [done.output[-200:].strip()])[0]}")
        for line in gone:
            log.get().debug("the archive has no such suite", apt=line)

    def versions(self, package: str) -> list[str]:
        """All versions in the archive, newest first."""
        return self.versions_of([package]).get(package, [])

    def versions_of(self, packages: Sequence[str]) -> dict[str, list[str]]:
        """The same of several packages, in one question: each takes a second."""
        found: dict[str, dict[str, None]] = {}
        for line in self._run("apt-cache", "madison", *packages).output.splitlines() if packages else ():
            if line.count("|") == 2:
                package, version, _ = (part.strip() for part in line.split("|"))
                found.setdefault(package, {})[version] = None
        return {package: [*versions] for package, versions in found.items()}

    def names(self, prefix: str) -> list[str]:
        """Names of all packages that begin so."""
        return self._run("apt-cache", "pkgnames", prefix).output.split()

    def depends(self, package: str, version: str) -> list[str]:
        """What a package depends on, as `NAME` or `NAME=VERSION`; of alternatives the first."""
        done = self._run("apt-cache", "show", f"{package}={version}")
        line = next((one for one in done.output.splitlines() if one.startswith("Depends: ")), "Depends: ")
        matches = (
            re.match(r"([a-z0-9][a-z0-9.+-]+)(?: \(= ([^)]+)\))?", one)
            for one in line.removeprefix("Depends: ").split(", ")
        )
        return [f"{one[1]}={one[2]}" if one[2] else one[1] for one in matches if one]

    def download(self, package: str, version: str) -> Path:
        """Fetch a package file, which the caller removes."""
        folder = self._folder / "download"
        with log.timed("apt.download", package=package, version=version):
            self._run("apt-get", "-qq", "download", f"{package}={version}", cwd=folder, timeout=1800)
        # apt writes an epoch's colon as %3a.
        deb = next(folder.glob(f"{package}_{version.replace(':', '%3a')}_*.deb"), None)
        if deb is None:
            raise HarnessError(f"{package}={version}: apt-get download left no file in {folder}")
        return deb


def _sources(suites: Suites) -> str:
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
    lines = [f"deb [signed-by={KEYRING}] {mirrors['Debian']} {suite} main" for suite in suites.suites]
    if "Debian-Security" in mirrors:
        lines += [f"deb [signed-by={KEYRING}] {mirrors['Debian-Security']} {suite} main" for suite in suites.security]
    return "".join(line + "\n" for line in lines)
