"""One call of make: progress by the lines it prints, its whole output in a file."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild import command
from kbuild.build.diagnostics import machines_fault
from kbuild.errors import HarnessError
from kbuild.paths import require_room

_STEP = re.compile(r"  (?P<verb>[A-Z][A-Z0-9_+.-]*)(?: \[M\])? +(?P<what>\S.*)")
"""Kbuild's short form of a command: `  CC [M]  arch/x86/kvm/x86.o`."""

ROOM_MB = 16
"""With less of it free, a build that failed says nothing about the kernel: a compiler may have found no space."""


@dataclass(frozen=True)
class Progress:
    """How far a build has come."""

    done: int
    """Commands."""
    expected: int | None
    """Commands of the last build from nothing, if there was one; more may come."""
    what: str
    seconds: float


@dataclass(frozen=True)
class MakeResult:
    """A call of make that came to an end, good or bad."""

    status: int
    units: dict[str, list[str]]
    """What was made (`arch/x86/kvm/x86.o`) to the messages that came with it; `""` is make itself."""
    steps: int
    seconds: float

    @property
    def messages(self) -> list[str]:
        """All messages in order."""
        return [line for lines in self.units.values() for line in lines]


def call(source: Path, objects: Path, variables: Mapping[str, str], targets: Sequence[str], jobs: int) -> list[str]:
    """The command line of make."""
    assignments = [f"{name}={value}" for name, value in variables.items()]
    # Synchronized output keeps a compiler's message in one piece.
    return ["make", "-C", str(source), f"O={objects}", f"-j{jobs}", "-Otarget", *assignments, *targets]


def refuse_machines_fault(status: int, messages: Iterable[str], what: str, objects: Path, log_file: Path) -> None:
    """Raise HarnessError where a make failed for the machine: by what was said, by a signal, or for a full disk."""
    blame = machines_fault(messages)
    if blame or status > 128:
        why = (blame or f"make ended with status {status}").strip()
        raise HarnessError(f"{what} in {objects} did not end: {why}; see {log_file}")
    # Not every program says why it could not write, and what it left cut off looks like a defect to the next one.
    for place in (objects, Path(tempfile.gettempdir())):
        require_room(place, ROOM_MB, f"{what} (that failed; see {log_file})")


def run_make(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    log_file: Path,
    lock: Path,
    expected: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> MakeResult:
    """Run make and tell of its progress. Raises HarnessError when make cannot be started.

    `lock` is as in `command.run()`.
    """
    units: dict[str, list[str]] = {"": []}
    unit = ""
    steps = 0
    start = time.monotonic()

    def line(text: str) -> None:
        nonlocal steps, unit
        if match := _STEP.fullmatch(text):
            steps += 1
            unit = match["what"]
            units.setdefault(unit, [])
            if report:
                report(Progress(steps, expected, f"{match['verb']} {unit}", time.monotonic() - start))
        elif text:
            # make speaks for itself, whatever it made last.
            units["" if text.startswith("make") else unit].append(text)

    done = command.run(argv, env=environment, on_line=line, log_file=log_file, check=False, lock=lock)
    return MakeResult(done.status, units, steps, done.seconds)
