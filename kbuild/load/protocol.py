"""The host's side of the agent's protocol: commands to bytes, bytes to typed messages. No I/O.

The contract is `docs/agent.md`. Everything read here comes from a kernel under test: a line that is
not as the contract says becomes `Broken`, and nothing that a host sends raises an exception.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import msgspec

from kbuild.errors import UserError

PROTOCOL_VERSION = 1
COMMAND_BYTES = 1024
"""The longest command, without its newline."""
LINE_BYTES = 4096
"""The longest answer, without its newline."""
BROKEN_BYTES = 512
"""What is kept of a broken line, as evidence."""


# Commands


class Verb(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    MEMORY = "memory"
    HOLD = "hold"
    RELEASE = "release"
    PARAM = "param"
    REARM = "rearm"
    LOUD = "loud"
    MODULES = "modules"
    STATE = "state"
    DETAIL = "detail"
    SMOKE = "smoke"
    FETCH = "fetch"
    TRACE = "trace"
    TRACED = "traced"
    SECTIONS = "sections"
    FAULT = "fault"
    SWEEP = "sweep"
    LOOK = "look"
    LEAKS = "leaks"
    CPU = "cpu"
    ON = "on"
    TOGETHER = "together"
    SUSPEND = "suspend"
    SELFTEST = "selftest"
    POWEROFF = "poweroff"
    RESTART = "restart"


def encode(number: int, verb: Verb, *arguments: str) -> bytes:
    """A command as a line. `number` comes back in all that answers it; from 1, for 0 is what the agent says unasked.

    When `Refused` with id 0 comes, the line was damaged on its way: send the very same once more.
    Raises UserError for an argument that no command can carry: empty, with a NUL, or too long.
    """
    words = [str(number), verb.value]
    for argument in arguments:
        if not argument or "\0" in argument:
            raise UserError(f"{verb}: {argument!r} cannot be an argument: it is empty or has a NUL byte")
        words.append("".join(map(_escaped, argument.encode("utf-8", "surrogateescape"))))
    command = " ".join(words).encode("ascii")
    line = b"%08x %s" % (fnv1a(command, 32), command)
    if len(line) > COMMAND_BYTES:
        raise UserError(f"{verb}: {len(line)} bytes of arguments, and the agent takes {COMMAND_BYTES}: shorten them")
    return line + b"\n"


_FNV1A = {32: (0x811C9DC5, 0x01000193), 64: (0xCBF29CE484222325, 0x100000001B3)}
"""Offset basis and prime, by the number of bits."""


def fnv1a(data: bytes, bits: int) -> int:
    """FNV-1a, of 32 or 64 bits."""
    value, prime = _FNV1A[bits]
    for byte in data:
        value = (value ^ byte) * prime & ((1 << bits) - 1)
    return value


def _escaped(byte: int) -> str:
    plain = 0x20 < byte < 0x7F and byte != ord("%")
    return chr(byte) if plain else f"%{byte:02X}"


# Answers

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]


class _Message(msgspec.Struct, frozen=True, tag_field="ev", forbid_unknown_fields=True, kw_only=True):
    pass


class Hello(_Message, frozen=True, tag="hello"):
    """The first line of a boot."""

    protocol: int
    kernel: str
    vendor: str
    """CPUID's: `GenuineIntel`, `AuthenticAMD`."""
    flags: tuple[str, ...] = ()
    """Of `vmx`, `ept`, `unrestricted-guest`, `svm`, `npt`."""


class _LogLine(_Message, frozen=True, kw_only=True):
    """What a record of the kernel's log says. In `text`, each character is one byte (Latin-1)."""

    level: Annotated[int, msgspec.Meta(ge=0, le=7)]
    text: str
    facility: Count = 0
    caller: str | None = None
    """`T` and a thread's number, or `C` and a processor's."""
    cont: bool = False
    """It goes on with the line of the same caller's previous record."""
    cut: Count = 0
    """Bytes that are left out at the end of `text`."""


class LogRecord(_LogLine, frozen=True, tag="log"):
    """One record of the kernel's log."""

    id: Id
    seq: Count
    us: Count
    part: Count = 0
    """Of a command in parts."""


class Text(_LogLine, frozen=True, tag="text"):
    """A line of the log of a command in parts: what all its records have that consist of it."""

    id: Id
    number: Annotated[int, msgspec.Meta(ge=0, le=4095)]


class Said(_Message, frozen=True, tag="said"):
    """Records of one part of a command, one after the other, by the numbers of their texts."""

    id: Id
    part: Count
    seq: Count
    """Of the first one."""
    us: Count
    texts: tuple[Count, ...]

    def records(self, texts: Mapping[int, Text]) -> list[LogRecord]:
        """As if each had come by itself. Raises KeyError for a number that stands for nothing."""
        return [
            LogRecord(id=self.id, seq=self.seq + at, us=self.us, part=self.part, **_said_by(texts[number]))
            for at, number in enumerate(self.texts)
        ]


def _said_by(line: _LogLine) -> dict[str, Any]:
    return {name: getattr(line, name) for name in _LogLine.__struct_fields__}


class Lost(_Message, frozen=True, tag="lost"):
    """Records that are missing at this place."""

    id: Id
    records: Count
    part: Count = 0


class Items(_Message, frozen=True, tag="items"):
    """A part of the answer to `state`."""

    id: Id
    what: str
    items: tuple[str, ...]


class Result(_Message, frozen=True, tag="result"):
    """The command is done. The keys after `us` belong to single verbs."""

    id: Id
    errno: Errno
    us: Count
    refs: Count | None = None
    holders: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    """Open files of KVM's: `57 3 /dev/kvm qemu-system-x86` is a process, its descriptor, the file, the program."""
    text: Count | None = None
    """Where a module's `.text` is that was loaded, and its `.init.text` was."""
    init_text: Count | None = None
    value: str | None = None
    hash: str | None = None
    same: bool | None = None
    output: Count | None = None
    where: str | None = None
    exit_reason: Count | None = None
    exit_detail: Count | None = None
    more: bool | None = None
    lost: Count | None = None
    parts: tuple[str, ...] = ()
    """Of `together`, for each command: `17 240 1250` is its errno, when it began, and how long it took, in µs."""
    part: Count = 0
    """Of a command in parts: this is the result of one of them. 0: of the whole command."""
    status: Count | None = None
    """The exit status of a program, or the signal that ended it."""
    signal: Count | None = None
    cut: Count | None = None
    """Bytes in the middle of what the program said that did not come."""
    left: Count | None = None
    """Allocations that were still to come before the one that was to fail; 0: it has failed."""


class Died(_Message, frozen=True, tag="died"):
    """The process that did the command was killed; in place of a result."""

    id: Id
    signal: Count
    doing: str | None = None
    """What it was at, where it says so: a kind of the state."""


class Refused(_Message, frozen=True, tag="refused"):
    """The command could not be read; nothing was done."""

    id: Id
    """0: it was damaged on its way, and is to be sent again. Otherwise this tool's mistake."""
    why: str


class Bye(_Message, frozen=True, tag="bye"):
    """The last line before power-off."""


Message = Hello | LogRecord | Text | Said | Lost | Items | Result | Died | Refused | Bye


class Broken(msgspec.Struct, frozen=True):
    """A line that is not as the contract says."""

    raw: bytes
    """Its first BROKEN_BYTES bytes."""
    why: str


class LineReader:
    """Turns bytes, in whatever pieces they come, into messages. Keeps at most one line.

    What something else wrote in front of a message, on the same line, is broken; the message is whole all the same.
    """

    _WELL_FORMED: ClassVar = re.compile(rb"(?:[\x20-\x5b\x5d-\x7e]|\\u00[0-9a-f]{2})*")
    """A backslash is never anything but the start of one byte's escape: what decodes is Latin-1."""
    _BEGIN: ClassVar = b'{"ev":'
    """Of each message, and nowhere else in one: a quote in a string is escaped."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skipping = False
        self._decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

    def feed(self, data: bytes) -> list[Message | Broken]:
        """What is complete with these bytes."""
        found: list[Message | Broken] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            found += self._grow(piece)
            found += self._end_line(bytes(self._pending))
            self._pending.clear()
            self._skipping = False
        return found + self._grow(rest)

    def finish(self) -> list[Broken]:
        """What is left when the line has ended for good: a line that was cut."""
        left = [_broken(self._pending, "cut")] if self._pending and not self._skipping else []
        self._pending.clear()
        return left

    def _grow(self, piece: bytes) -> list[Broken]:
        broken: list[Broken] = []
        if not self._skipping and len(self._pending) + len(piece) > LINE_BYTES:
            start = bytes(self._pending) + piece[:BROKEN_BYTES]
            broken.append(_broken(start, f"longer than {LINE_BYTES} bytes"))
            self._skipping = True
        # Of a line that is too long the end is kept: a whole message may be there.
        self._pending += piece[-LINE_BYTES:]
        del self._pending[:-LINE_BYTES]
        return broken

    def _end_line(self, line: bytes) -> list[Message | Broken]:
        found = self._decode(line)
        begin = line.rfind(self._BEGIN)
        if self._skipping:
            whole = self._decode(line[begin:]) if begin >= 0 else None
            return [whole] if whole is not None and not isinstance(whole, Broken) else []
        if isinstance(found, Broken) and begin > 0 and not isinstance(whole := self._decode(line[begin:]), Broken):
            return [_broken(line[:begin], found.why), whole]
        return [found]

    def _decode(self, line: bytes) -> Message | Broken:
        if not self._WELL_FORMED.fullmatch(line):
            return _broken(line, "not the contract's ASCII")
        try:
            return self._decoder.decode(line)
        except msgspec.ValidationError as error:
            return _broken(line, f"not a message: {error}")
        except (msgspec.DecodeError, RecursionError) as error:
            return _broken(line, f"not JSON: {error}")


def _broken(raw: bytes | bytearray, why: str) -> Broken:
    return Broken(bytes(raw[:BROKEN_BYTES]), why)


# Errors by name

_KERNEL_ONLY = {
    133: "EHWPOISON",
    512: "ERESTARTSYS",
    513: "ERESTARTNOINTR",
    514: "ERESTARTNOHAND",
    515: "ENOIOCTLCMD",
    516: "ERESTART_RESTARTBLOCK",
    517: "EPROBE_DEFER",
    518: "EOPENSTALE",
    519: "ENOPARAM",
    521: "EBADHANDLE",
    522: "ENOTSYNC",
    523: "EBADCOOKIE",
    524: "ENOTSUPP",
    525: "ETOOSMALL",
    526: "ESERVERFAULT",
    527: "EBADTYPE",
    528: "EJUKEBOX",
    529: "EIOCBQUEUED",
    530: "ERECALLCONFLICT",
    531: "ENOGRACE",
}
"""include/linux/errno.h (6.1): not meant for user space, and a module's init may leak them all the same."""
_PREFERRED = ("EWOULDBLOCK", "EOPNOTSUPP", "EDEADLK")
"""Of two names of one number, those that kernel/module/main.c and KVM use."""
_NUMBERS: Mapping[str, int] = {
    **{name: number for name, number in vars(errno).items() if name.startswith("E") and isinstance(number, int)},
    **{name: number for number, name in _KERNEL_ONLY.items()},
}
_NAMES: Mapping[int, str] = {
    **errno.errorcode,
    **_KERNEL_ONLY,
    **{_NUMBERS[name]: name for name in _PREFERRED},
}


def errno_name(number: int) -> str | None:
    """`EEXIST` for 17, None for 0; a number that has no name comes as `errno 4000`."""
    return None if number == 0 else _NAMES.get(number, f"errno {number}")


def errno_number(name: str) -> int:
    """17 for `EEXIST`; all names of a number are known. Raises UserError."""
    try:
        return _NUMBERS[name]
    except KeyError:
        raise UserError(f"'{name}' is no errno: write a name from errno(3), such as EEXIST") from None
