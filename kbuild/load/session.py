"""A conversation with the agent on a running machine: one command at a time, bounded in time and size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from kbuild import log
from kbuild.dmesg.record import Console, ConsoleParser
from kbuild.hosts.base import Chunk, Limits, Machine
from kbuild.load.protocol import (
    PROTOCOL_VERSION,
    Broken,
    Bye,
    Died,
    Hello,
    Items,
    LineReader,
    LogRecord,
    Lost,
    Refused,
    Result,
    Verb,
    encode,
)

MAX_RESENT = 3
"""Times that a command is sent again, when the guest's serial port lost bytes of it."""
MAX_BROKEN = 20
"""Broken lines that are kept of one command; more are counted."""
MAX_RECORDS = 20_000
"""Log records that are kept of one command, whatever comes over the line; the agent itself sends 5,000."""
PANIC = b"Kernel panic - not syncing"
AFTER_PANIC_S = 1.5
"""Without a byte after a panic, all of its report has come: nothing follows that is worth waiting for."""


class End(StrEnum):
    """Why a command has no answer."""

    PANIC = "the kernel panicked"
    REBOOT = "the guest rebooted without being asked to"
    EXIT = "the machine went off without being asked to"
    EMULATOR = "the emulator failed"
    SILENT = "nothing came from the guest"
    SLOW = "the guest did not come to an end"
    CANCELLED = "interrupted"


@dataclass
class Reply:
    """All that came back while one command was under way."""

    number: int
    answer: Result | Died | Refused | None = None
    end: End | None = None
    """Set when there is no answer."""
    detail: str = ""
    """How it ended, for a person."""
    log: list[LogRecord] = field(default_factory=list)
    earlier: list[LogRecord] = field(default_factory=list)
    """Records that came with this command and belong to an earlier one; with number 0 to the boot."""
    lost: int = 0
    items: list[Items] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    broken_more: int = 0
    console: Console = field(default_factory=lambda: Console(()))
    resent: int = 0
    """Times that the command was sent again, because it was damaged on its way."""
    seconds: float = 0.0
    """Of wall clock, on our side."""


class Session:
    """The only one who reads and writes a machine's lines."""

    def __init__(self, machine: Machine, limits: Limits, cancelled: Callable[[], bool]) -> None:
        self._machine = machine
        self._limits = limits
        self._cancelled = cancelled
        self._reader = LineReader()
        self._number = 0
        self._line = b""
        self.hello: Hello | None = None
        self.ended: End | None = None
        """Once set, the machine answers no more commands."""
        self.said_bye = False

    @property
    def last_number(self) -> int:
        """Of the last command that was sent."""
        return self._number

    def boot(self) -> Reply:
        """Wait for the agent's first line. The reply's console and log are the boot's."""
        reply = self._receive(Reply(0), lambda _: self.hello is not None, self._limits.boot_s)
        if self.hello is not None and self.hello.protocol != PROTOCOL_VERSION:
            reply.end = self.ended = End.EMULATOR
            reply.detail = f"the agent speaks protocol {self.hello.protocol}, not {PROTOCOL_VERSION}"
        return reply

    def command(self, verb: Verb, *arguments: str) -> Reply:
        """Send a command and wait for its end."""
        self._number += 1
        reply = Reply(self._number)
        self._line = encode(self._number, verb, *arguments)
        log.get().debug("agent.command", line=self._line.decode().strip())
        self._machine.send(self._line)
        reply = self._receive(reply, lambda reply: reply.answer is not None, self._limits.step_s)
        log.get().debug("agent.answer", answer=str(reply.answer), end=reply.end, seconds=round(reply.seconds, 3))
        return reply

    def power_off(self) -> Reply:
        """Ask for power-off and wait until the machine is off, or the step's time is up."""
        self._number += 1
        self._line = encode(self._number, Verb.POWEROFF)
        self._machine.send(self._line)
        return self._receive(Reply(self._number), lambda _: False, self._limits.step_s)

    def _receive(self, reply: Reply, complete: Callable[[Reply], bool], limit: float) -> Reply:
        if self.ended is not None:
            reply.end, reply.detail = self.ended, "before this command"
            return reply
        console = ConsoleParser()
        start = heard = time.monotonic()
        panicked = False
        tail = b""
        while not complete(reply) and reply.end is None:
            now = time.monotonic()
            # A panic's report is worth a moment; after it only a reboot would come.
            silent = AFTER_PANIC_S if panicked else self._limits.silent_s
            left = min(start + limit, heard + silent) - now
            chunks = self._machine.receive(max(left, 0.0))
            if self._cancelled():
                reply.end = End.CANCELLED
            elif not chunks and left <= 0:
                too_long = now - start >= limit
                reply.end = End.PANIC if panicked else End.SLOW if too_long else End.SILENT
                reply.detail = f"within {limit:.0f} s" if too_long else f"for {silent:.0f} s"
            for chunk in chunks:
                heard = time.monotonic()
                if chunk.source == "console":
                    console.feed(chunk.data)
                    tail = tail[-len(PANIC) :] + chunk.data
                    panicked = panicked or PANIC in tail
                elif chunk.source == "agent":
                    self._read(reply, chunk.data)
                else:
                    self._exit(reply, chunk, panicked)
        reply.console = console.finish()
        reply.seconds = time.monotonic() - start
        self.ended = self.ended or reply.end
        return reply

    def _exit(self, reply: Reply, chunk: Chunk, panicked: bool) -> None:
        for broken in self._reader.finish():
            _keep(reply, broken)
        reply.detail = chunk.data.decode("utf-8", "replace")
        if panicked:
            reply.end = End.PANIC
        elif reply.answer is None:
            reply.end = End.EMULATOR if chunk.failed else End.EXIT

    def _read(self, reply: Reply, data: bytes) -> None:
        for message in self._reader.feed(data):
            match message:
                case Hello() if self.hello is None:
                    self.hello = message
                case Hello():
                    reply.end = End.REBOOT
                case Bye():
                    self.said_bye = True
                case Broken():
                    _keep(reply, message)
                case LogRecord() if len(reply.log) + len(reply.earlier) >= MAX_RECORDS:
                    reply.lost += 1
                case LogRecord() if message.id == reply.number:
                    reply.log.append(message)
                case LogRecord():
                    reply.earlier.append(message)
                case Lost():
                    # Of what the kernel said before the first command nothing is judged.
                    reply.lost += message.records if message.id else 0
                case Items() if message.id == reply.number:
                    reply.items.append(message)
                case Refused(id=0) if reply.answer is None and reply.resent == MAX_RESENT:
                    reply.answer = message
                case Refused(id=0) if reply.answer is None:
                    # Never done twice: the agent knows the number of the command that it did last.
                    reply.resent += 1
                    log.get().info("agent.resend", number=reply.number, why=message.why)
                    self._machine.send(self._line)
                case Result() | Died() | Refused() if message.id == reply.number and reply.answer is None:
                    reply.answer = message
                case _:
                    _keep(reply, Broken(str(message).encode()[:200], f"answers another command than {reply.number}"))


def _keep(reply: Reply, broken: Broken) -> None:
    if len(reply.broken) < MAX_BROKEN:
        reply.broken.append(broken)
    else:
        reply.broken_more += 1
