"""What was called while a module loaded or unloaded, in the form that runs keep and reports read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from kbuild.errors import UserError
from kbuild.outcome import to_json
from kbuild.paths import write_atomically

Seen = Literal["kept", "broken", "not seen", "incomplete", "not observable"]
"""How a rule fared in a trace, as `Observation` says."""


class Call(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One call of a function."""

    function: str
    """With what compilers add to its name."""
    module: str | None = None
    """That it belongs to, by the kernel's name; None: the kernel itself."""
    task: str
    """`NAME-PID`."""
    depth: int
    """Calls around it, in the same task."""
    us: float
    """Microseconds since the first call of its part."""
    entered: int
    """Its place in the part, from 0; places at which calls return count, too."""
    returned: int | None = None
    """The place at which it returned; None: it did not, or that could not be seen."""
    duration_us: float | None = None
    result: int | None = None
    """What it returned, as 64 bits; None: nobody asked."""
    strings: tuple[str, ...] = ()
    """Arguments that are strings, where a rule asks for one."""
    caller: str | None = None
    """Of a function of the kernel: `FUNCTION+0x19/0x60 [MODULE]`, where its return address leads."""


class Part(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What was called during one load or unload."""

    action: str
    """`load` or `unload`."""
    module: str
    """By the kernel's name."""
    calls: list[Call] = []
    """In the order in which they were entered."""
    lost: int = 0
    """Events that the kernel had no room for."""
    unread: int = 0
    """Lines that could not be understood."""

    @property
    def whole(self) -> bool:
        """Whether nothing is missing in it."""
        return not self.lost and not self.unread


class Trace(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a `trace` step recorded."""

    parts: list[Part] = []
    blind: list[str] = []
    """Functions that a rule names and that could not be watched, or not each time that they were called."""


class Observation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A rule, held against what was seen of one module.

    `kept`: `then` came, each time as the rule says. `broken`: once it did not. `not seen`: `then` did not come.
    `incomplete`: nothing speaks against it, but events were lost. `not observable`: a trace cannot show it.
    """

    rule: str
    module: str
    seen: Seen
    why: str
    """One line."""
    answer: str | None = None
    """What the rule's own analysis says of the module (docs/rules.md); None: it was not asked."""


def write_trace(path: Path, trace: Trace) -> None:
    """Keep a trace in a run's folder."""
    write_atomically(path, to_json(trace))


def read_trace(path: Path) -> Trace:
    """The trace of a run. Raises UserError in one line."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trace)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not a trace: {error}") from None
