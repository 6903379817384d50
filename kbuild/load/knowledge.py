"""What hosts have been seen to do: a host that once loaded a module is no excuse for a kernel that cannot."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from kbuild.paths import locked, make_folder, state_home, write_atomically

_File = dict[str, str]
_SLOWNESS = "slowness"


class Knowledge:
    """What has worked on a host: `load:kvm_intel`, `smoke:long-mode`, each for a kind of kernel.

    A host is its file and its emulator (`digest`): with another emulator nothing is known any more.
    Kept between runs, for all of them.
    """

    def __init__(self, host: str, digest: str, folder: Path | None = None) -> None:
        folder = folder or state_home() / "hosts"
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}-{digest[:16]}.json"

    def has_done(self, what: str, kind: str) -> str | None:
        """The run in which this host did that with a kernel of that kind (`LoadRequest.kind`), if there is one."""
        return self._read().get(f"{what}@{kind}")

    def note(self, what: str, kind: str, run: str) -> None:
        """This host did that with a kernel of that kind, in this run."""
        if self.has_done(what, kind) is None:
            self._write({f"{what}@{kind}": run})

    def slowness(self) -> float | None:
        """How many times longer than usual this host's last boot took on this machine."""
        try:
            return float(self._read()[_SLOWNESS])
        except (KeyError, ValueError):
            return None

    def note_slowness(self, slowness: float) -> None:
        """This host's last boot took so many times longer than usual."""
        self._write({_SLOWNESS: f"{slowness:.2f}"})

    def _write(self, news: _File) -> None:
        make_folder(self._path.parent)
        with locked(self._path.with_suffix(".lock")):
            known = self._read()
            if known != known | news:
                write_atomically(self._path, msgspec.json.encode(known | news))

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError):
            return {}
