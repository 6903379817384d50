"""What a run was made with, kept in its folder: the profile's files as they were read, and versions of programs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from kbuild import command
from kbuild.errors import os_errors
from kbuild.paths import PROJECT, make_folder
from kbuild.profile import Profile
from kbuild.record import Run

FOLDER = "profile"
_PROGRAMS = ("git", "ccache", "xorriso")
"""That have a hand in what is judged, besides the compiler and linker that the build names, and the emulators."""
_SECONDS = 10


def keep_profile(run: Run, profile: Profile) -> None:
    """Copy the profile and all that it names into the run's folder; the record has their digests.

    They lie as beside a profile, so that `--profile RUN/profile/NAME.toml` asks the same again, as long as the profile
    names no path. The folder is there whole or not at all. Raises HarnessError.
    """
    new = run.folder / f".{FOLDER}.new"
    digests: dict[str, str] = {}
    with os_errors(f"{run.folder / FOLDER}: cannot be written"):
        for name, path in files_of(profile):
            content = path.read_bytes()
            make_folder((new / name).parent)
            (new / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
        new.rename(run.folder / FOLDER)
    run.record.profile_files = digests


def files_of(profile: Profile) -> Iterator[tuple[str, Path]]:
    """The profile and all that it names, with their names in a run's folder, each once."""
    yield profile.path.name, profile.path
    seen = {profile.path.name}
    for kind in ("fragments", "rules", "orders", "hosts"):
        for path in getattr(profile, kind):
            name = f"{kind}/{path.name}"
            while name in seen:  # of the same name, in another folder
                name = f"{kind}/_{name.removeprefix(f'{kind}/')}"
            seen.add(name)
            yield name, path


def versions() -> dict[str, str]:
    """What the tool itself, Python and the programs that it calls say of themselves."""
    found = {"kvm-kbuild": _own_version(), "python": platform.python_version()}
    for name in _PROGRAMS:
        if shutil.which(name):
            found[name] = (
                command.run([name, "--version"], timeout=_SECONDS, check=False).output.partition("\n")[0].strip()
            )
    return found


def _own_version() -> str:
    """With the commit, where this is a checkout of the tool."""
    version = importlib.metadata.version("kvm-kbuild")
    if (PROJECT / ".git").exists() and shutil.which("git"):
        argv = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = command.run(argv, timeout=_SECONDS, check=False)
        if done.status == 0:
            version += f" ({done.output.strip()})"
    return version
