"""The prompt of the debugger that Debian's Bochs has built in: how a running guest is stopped, looked at and let go.

It reads its commands from standard input, byte by byte (readline, on what is no terminal), and only while the guest
stands still. Bochs' idle loop wants standard input to be readable at every moment (docs/hosts.md). So there is always
one blank in the pipe, which the next command then begins with, and which no command minds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator

from kbuild.errors import HarnessError
from kbuild.hosts.cpu import Registers

FILLER = b" "
ANSWER_S = 5.0
"""A debugger that does not answer in this time will not: it stops the guest between two instructions."""
AGAIN_S = 1.0
"""Bochs forgets an interrupt that comes just when it goes on from its last prompt (bx_dbg_continue_command()). It is
sent again after a time in which it would have been seen: one that comes at the prompt spoils what is read there."""
MAX_ANSWER = 1 << 16

_STOPPED = re.compile(rb"^Next at t=\d+", re.MULTILINE)
_PROMPT = re.compile(rb"<bochs:\d+>\s*\Z")
_CONTINUES = re.compile(rb"c\r?\n")
_RIP = re.compile(rb"^rip: ([0-9a-f]{8})_([0-9a-f]{8})", re.MULTILINE)
_RSP = re.compile(rb"^rsp: ([0-9a-f]{8})_([0-9a-f]{8})", re.MULTILINE)
_FLAGS = re.compile(rb"^eflags 0x([0-9a-f]{8})", re.MULTILINE)
_CS = re.compile(rb"^cs:0x([0-9a-f]{4})", re.MULTILINE)
_ACTIVITY = re.compile(rb"^activity_state = 0x([0-9a-f]+)", re.MULTILINE)
_BYTES = re.compile(rb"^0x[0-9a-f]+ <[^>]*>:((?:\t0x[0-9a-f]{2})+)", re.MULTILINE)
_INTERRUPTS = 1 << 9
"""EFLAGS.IF."""
_ACTIVE, _MWAIT_IF = 0, 5
"""cpu/cpu.h, BX_ACTIVITY_STATE_*; the other ones are kinds of waiting. The last one is woken by interrupts anyway."""

Wait = Callable[[Callable[[], bool], float], bool]


class Debugger:
    """Bochs' standard input, and what it answers among its other messages."""

    def __init__(self, cleanup: contextlib.ExitStack) -> None:
        self.stdin, self._commands = os.pipe()
        for handle in (self.stdin, self._commands):
            cleanup.callback(os.close, handle)
            fcntl.fcntl(handle, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.set_blocking(self._commands, False)
        os.write(self._commands, FILLER)
        self._heard: bytearray | None = None

    def said(self, data: bytes) -> None:
        """A piece of what Bochs prints."""
        if self._heard is not None:
            self._heard += data
            del self._heard[:-MAX_ANSWER]

    @contextlib.contextmanager
    def halted(self, interrupt: Callable[[], None], wait: Wait) -> Iterator[None]:
        """Stop the guest for the length of the block. Raises HarnessError when Bochs does not come to its prompt."""
        self._heard = bytearray()
        try:
            deadline = time.monotonic() + ANSWER_S
            interrupt()
            while not wait(lambda: bool(_STOPPED.search(self._answer) and _PROMPT.search(self._answer)), AGAIN_S):
                if time.monotonic() >= deadline:
                    raise HarnessError("Bochs does not come to its debugger's prompt")
                interrupt()
            try:
                yield
            finally:
                self._heard = bytearray()
                self._write(b"c\n" + FILLER)
                # It echoes the line when it has read all of it. An interrupt before that would spoil the line.
                wait(lambda: bool(_CONTINUES.search(self._answer)), ANSWER_S)
        finally:
            self._heard = None

    def registers(self, wait: Wait) -> Registers:
        """Of the CPU that stands still. Raises HarnessError."""
        text = self._ask(b"r", wait) + self._ask(b"sreg", wait) + self._ask(b'show "cpu0.activity_state"', wait)
        found = [pattern.search(text) for pattern in (_RIP, _RSP, _FLAGS, _CS, _ACTIVITY)]
        if not all(found):
            raise HarnessError("Bochs' debugger answers otherwise than version 2.7 does")
        rip, rsp, flags, selector, activity = (int(b"".join(one.groups()), 16) for one in found if one)
        return Registers(
            rip=rip,
            rsp=rsp,
            user=selector & 3 == 3,
            interrupts=bool(flags & _INTERRUPTS) or activity == _MWAIT_IF,
            halted=activity != _ACTIVE,
        )

    def memory(self, address: int, size: int, wait: Wait) -> bytes:
        """At a virtual address; of what is not mapped, nothing."""
        text = self._ask(b"x /%dbx %#x" % (size, address), wait)
        return bytes(int(byte, 16) for line in _BYTES.finditer(text) for byte in line[1].split())[:size]

    @property
    def _answer(self) -> bytes:
        return bytes(self._heard or b"")

    def _ask(self, command: bytes, wait: Wait) -> bytes:
        """What comes until the next prompt."""
        self._heard = bytearray()
        self._write(command + b"\n")
        # The command itself is echoed behind the prompt that was there before.
        if not wait(lambda: b"\n" in self._answer and bool(_PROMPT.search(self._answer)), ANSWER_S):
            raise HarnessError(f"Bochs' debugger does not answer to '{command.decode()}'")
        return self._answer

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # Bochs is gone: that is told by its end
            os.write(self._commands, data)
