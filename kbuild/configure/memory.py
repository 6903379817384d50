"""What a configuration was made of and what came of it: as long as nothing of that changes, it need not be made again.

The kernel's own conf and kconfiglib take 3 s, and most edits are to no file that they read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from kbuild.configure.request import Request
from kbuild.outcome import Finding, to_json
from kbuild.paths import write_atomically

_FILE = "kvm-kbuild.configuration.json"
_FOLDERS = ("scripts", "arch/x86/configs", "kernel/configs")
"""What Kconfig files call by `$(shell,…)` is below scripts/, as is conf itself; the others hold what a base names."""
_MAKEFILES = ("Makefile", "arch/x86/Makefile")

_State = tuple[int, int, int]
"""Of a file: size, time, inode. The tree is the tool's own: what changes there gets another time."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Kept in the output folder."""

    asked: str
    """Digest of the request and of make's variables."""
    inputs: dict[str, _State]
    config: str
    """SHA-256 of `.config`."""
    findings: tuple[Finding, ...]
    command: str


def recall(source: Path, output: Path, request: Request, variables: Mapping[str, str]) -> Memory | None:
    """What came of the same request before, if all that it was made of and `.config` are as they were."""
    try:
        memory = msgspec.json.decode((output / _FILE).read_bytes(), type=Memory)
        same = memory.asked == _asked(request, variables) and memory.config == _digest(output / ".config")
        files = set(memory.inputs) | set(_always(source))
        return memory if same and _states(source, files) == memory.inputs else None
    except (OSError, msgspec.DecodeError):
        return None


def remember(
    source: Path,
    output: Path,
    request: Request,
    variables: Mapping[str, str],
    *,
    kconfig_files: Iterable[str],
    findings: tuple[Finding, ...],
    command: str,
) -> None:
    """Keep what came of a request; `kconfig_files` are all that were read."""
    if request.start is not None:
        return  # a file of the user's, which may lie anywhere
    memory = Memory(
        asked=_asked(request, variables),
        inputs=_states(source, {*kconfig_files, *_always(source)}),
        config=_digest(output / ".config"),
        findings=findings,
        command=command,
    )
    write_atomically(output / _FILE, to_json(memory))


def _asked(request: Request, variables: Mapping[str, str]) -> str:
    return hashlib.sha256(to_json([request, sorted(variables.items())])).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _always(source: Path) -> Iterable[str]:
    """What any configuration of a tree may read besides its Kconfig files."""
    yield from _MAKEFILES
    for top in _FOLDERS:
        for folder, _, files in os.walk(source / top):
            prefix = os.path.relpath(folder, source)
            yield from (f"{prefix}/{name}" for name in files)


def _states(source: Path, files: Iterable[str]) -> dict[str, _State]:
    states: dict[str, _State] = {}
    for name in files:
        try:
            status = os.stat(f"{source}/{name}")
        except FileNotFoundError:
            states[name] = (-1, 0, 0)  # to come into being is a change too
        else:
            states[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return states
