"""Kernel log records, and the two texts that they come in: a serial console's and /dev/kmsg's.

A console is read when the guest died and its agent can no longer send records. What comes over it is untrusted: lines
are bounded, bytes that are not printable are escaped, and of an endless log the beginning (the first oops is the one
that counts) and the end are kept.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable

import msgspec

MAX_TEXT = 4096
"""Characters of one line that are kept; as many as the agent sends."""
FIRST_RECORDS = 50_000
LAST_RECORDS = 10_000
FIRST_CHARACTERS = 16 << 20
LAST_CHARACTERS = 4 << 20

_CONSOLE = re.compile(
    # console_msg_format=syslog gives the priority; time and caller are as in kernel/printk/printk.c, print_time() and
    # print_caller() (6.1). Later kernels may put more than a number behind the caller.
    r"(?:<(?P<priority>\d{1,3})>)?"
    r"(?:\[ *(?P<seconds>\d{1,10})\.(?P<fraction>\d{6})\](?:\[ *(?P<caller>[TC]\d{1,10})[^\]]{0,40}\])? ?)?"
)
_MARK = re.compile(r"kvm-kbuild: step (\d{1,9}) (?:begin|end)")
_UNPRINTABLE = re.compile(r"[^\t\x20-\x7e]")
_KMSG = re.compile(r"(?P<priority>\d{1,5}),(?P<seq>\d{1,20}),(?P<us>\d{1,20}),[^;]{1,200};")
_KMSG_CALLER = re.compile(r",caller=([TC]\d{1,10})")


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of the kernel log.

    `level` is 0 (emergency) to 7 (debug); None where a console does not say it. `us` is the kernel's monotonic clock in
    microseconds. `step` is the number of the step during which, or after which, it was made; None before the first.
    """

    seq: int | None
    us: int | None
    level: int | None
    text: str
    caller: str | None = None
    """`T15` for task 15, `C0` for an interrupt on CPU 0: what keeps reports apart that two of them print at once."""
    step: int | None = None
    facility: int = 0
    """0 for the kernel's own; anything else was written by user space and is no evidence about the kernel."""


@dataclasses.dataclass(frozen=True)
class Console:
    """What a console said. `dropped` records are missing before `records[dropped_at]`, for there were too many."""

    records: tuple[Record, ...]
    dropped: int = 0
    dropped_at: int | None = None


class ConsoleParser:
    """Takes a console's bytes as they come, in pieces of any size."""

    def __init__(self) -> None:
        self._pending = b""
        self._cut = False
        self._step: int | None = None
        self._first: list[Record] = []
        self._first_characters = 0
        self._full = False
        self._last: collections.deque[Record] = collections.deque()
        self._last_characters = 0
        self._dropped = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, pending = data.split(b"\n")
        for line in lines:
            self._end_line(self._pending + line[: MAX_TEXT + 1])
            self._pending, self._cut = b"", False
        if not self._cut:
            self._pending += pending[: MAX_TEXT + 1]
            self._cut = len(self._pending) > MAX_TEXT

    def finish(self) -> Console:
        """All records. A last line that no line end followed is one too: a guest that died ends so."""
        if self._pending:
            self._end_line(self._pending)
            self._pending, self._cut = b"", False
        return Console((*self._first, *self._last), self._dropped, len(self._first) if self._dropped else None)

    def _end_line(self, line: bytes) -> None:
        record = parse_console_line(line, self._step)
        if record is None:
            return
        self._step = record.step
        if not self._full:
            self._first.append(record)
            self._first_characters += len(record.text)
            self._full = len(self._first) >= FIRST_RECORDS or self._first_characters >= FIRST_CHARACTERS
            return
        self._last.append(record)
        self._last_characters += len(record.text)
        while len(self._last) > LAST_RECORDS or self._last_characters > LAST_CHARACTERS:
            self._last_characters -= len(self._last.popleft().text)
            self._dropped += 1


def parse_console(data: bytes | Iterable[bytes]) -> Console:
    """A console's whole output, as bytes or in pieces."""
    parser = ConsoleParser()
    for piece in [data] if isinstance(data, bytes) else data:
        parser.feed(piece)
    return parser.finish()


def parse_console_line(line: bytes, step: int | None = None) -> Record | None:
    """One line of a console, without its line end; `step` is that of the line before. None for an empty line."""
    text = line.strip(b"\r").decode("latin-1")
    match = _CONSOLE.match(text)
    assert match is not None  # every part of it is optional
    priority, seconds = match["priority"], match["seconds"]
    prefixed = match.end() > 0
    text = escape(text[match.end() : match.end() + MAX_TEXT])
    if not text and not prefixed:
        return None
    mark = _MARK.fullmatch(text)
    return Record(
        seq=None,
        us=int(seconds) * 1_000_000 + int(match["fraction"]) if seconds else None,
        level=int(priority) & 7 if priority else None,
        text=text,
        caller=match["caller"],
        step=int(mark[1]) if mark else step,
        # Where no priority is shown, our own marks are still known by their text.
        facility=int(priority) >> 3 if priority else 1 if mark else 0,
    )


def parse_kmsg(line: str, step: int | None = None) -> Record | None:
    r"""One record as `read(2)` on /dev/kmsg gives it (Documentation/ABI/testing/dev-kmsg, 6.1).

    `\x0a` becomes the line end that it was; continuation lines (` SUBSYSTEM=…`) are dropped. None where it is no
    record.
    """
    match = _KMSG.match(line)
    if match is None:
        return None
    text = line[match.end() :].split("\n", 1)[0].replace("\\x0a", "\n")
    caller = _KMSG_CALLER.search(match[0])
    return Record(
        seq=int(match["seq"]),
        us=int(match["us"]),
        level=int(match["priority"]) & 7,
        text=text[:MAX_TEXT],
        caller=caller[1] if caller else None,
        step=step,
        facility=int(match["priority"]) >> 3,
    )


def escape(text: str) -> str:
    r"""Every character outside of printable ASCII as `\xNN`, as the kernel does in /dev/kmsg."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
