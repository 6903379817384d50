"""A conversation with the agent on a running machine: one command at a time, bounded in time and size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from kbuild import log
from kbuild.dmesg.record import Console, ConsoleParser
from kbuild.hosts.base import Chunk, Limits, Machine
from kbuild.hosts.cpu import CpuSample
from kbuild.load.patience import POLL_S, WALL_TIMES, Patience
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
    Said,
    Text,
    Verb,
    encode,
)

MAX_RESENT = 100
"""Times that a command is sent again, when the guest's serial port lost bytes of it. With lockdep in Bochs one of four
is damaged, and while the guest is busy each, some 25 ms long."""
MAX_BROKEN = 20
"""Broken lines that are kept of one command; more are counted."""
MAX_RECORDS = 20_000
"""Log records that are kept of one command, whatever comes over the line; the agent itself sends 5,000."""
MAX_PARTS = 1_000
"""Parts of one command, far more than any has."""
MAX_SLOWNESS = 10.0
"""A boot that took longer than so many times the usual has another reason than a slow machine."""
QUIET_BOOTS = 3
"""A booting kernel may be silent for so many usual boots: with `quiet` it says nothing until the agent does."""
GUEST_SECOND = 4
"""Seconds of the wall that one of the guest may take, where its time runs by instructions (docs/hosts.md)."""
PANIC = b"Kernel panic - not syncing"
SAMPLES = 8
"""Looks at the CPU of a guest that does not come back."""
BETWEEN_SAMPLES_S = 0.25
AFTER_PANIC_S = 1.5
"""Without a byte after a panic, all of its report has come: nothing follows that is worth waiting for."""


class End(StrEnum):
    """Why a command has no answer."""

    PANIC = "the kernel panicked"
    REBOOT = "the guest rebooted without being asked to"
    EXIT = "the machine went off without being asked to"
    HOST = "the host failed"
    UNCLEAR = "the host went away"
    SILENT = "nothing came from the guest"
    SLOW = "the guest did not come to an end"
    STARVED = "the emulator did not get to run"
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
    parts: list[Result] = field(default_factory=list)
    """Of a command in parts: what came of each."""
    lost_in: set[int] = field(default_factory=set)
    """Its parts in which records were lost."""
    items: list[Items] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    broken_more: int = 0
    console: Console = field(default_factory=lambda: Console(()))
    resent: int = 0
    """Times that the command was sent again, because it was damaged on its way."""
    seconds: float = 0.0
    """Of wall clock, on our side."""
    fair_seconds: float = 0.0
    """Of these, the ones in which the emulator could run."""
    kept_seconds: float = 0.0
    """Of the others, the ones in which the guest's clock went on all the same: it takes them for its own."""
    samples: list[CpuSample] = field(default_factory=list)
    """What the CPU did when the time was up."""
    kept: bool = False
    """A step has been made of it, with its log."""


def scaled(limits: Limits, slowness: float) -> Limits:
    """Limits for a machine that takes so many times longer than the one for which they were set."""
    longer = limits.times(min(max(slowness, 1.0), MAX_SLOWNESS))
    return msgspec.structs.replace(longer, usual_boot_s=limits.usual_boot_s)


class Session:
    """The only one who reads and writes a machine's lines."""

    def __init__(
        self, machine: Machine, limits: Limits, cancelled: Callable[[], bool], slowness: float | None = None
    ) -> None:
        """`slowness`: how many times longer than usual the last boot took here, where that is known."""
        self._machine = machine
        self._limits = limits
        self._slowness = slowness or 1.0
        self.slowness: float | None = None
        """The same of this boot, once it is up; None where the host file does not say what is usual."""
        self._cancelled = cancelled
        self._reader = LineReader()
        self._number = 0
        self._line = b""
        self._first_look = 0.0
        self._texts: dict[int, Text] = {}
        """Of the command in parts that is under way."""
        self.hello: Hello | None = None
        self.ended: End | None = None
        """Once set, the machine answers no more commands."""
        self._how = ""
        """In words, where no reply has told that."""
        self.said_bye = False

    def on(self, machine: Machine) -> Session:
        """This conversation, gone on with on a machine that was started from a snapshot of this one's."""
        session = Session(machine, self._limits, self._cancelled)
        session.slowness, session.hello, session._number = self.slowness, self.hello, self._number
        return session

    @property
    def last_number(self) -> int:
        """Of the last command that was sent."""
        return self._number

    def boot(self, tell: Callable[[float, float | None], None] = lambda *_: None) -> Reply:
        """Wait for the agent's first line. The reply's console and log are the boot's.

        `tell` is called several times a second: how long it takes already, and what it takes as a rule, in seconds.
        """
        limits = scaled(self._limits, self._slowness)
        usual = limits.usual_boot_s or 0.0
        silent = max(limits.silent_s, usual * QUIET_BOOTS * limits.boot_s / self._limits.boot_s)
        start = time.monotonic()

        def up(_: Reply) -> bool:
            tell(time.monotonic() - start, usual * self._slowness or None)
            return self.hello is not None

        reply = self._receive(Reply(0), up, limits.boot_s, silent)
        if self.hello is not None and usual:
            self.slowness = max(1.0, reply.fair_seconds / usual)
            self._limits = scaled(self._limits, self.slowness)
        if self.hello is not None and self.hello.protocol != PROTOCOL_VERSION:
            reply.end = self.ended = End.HOST
            reply.detail = f"the agent speaks protocol {self.hello.protocol}, not {PROTOCOL_VERSION}"
        return reply

    def command(self, verb: Verb, *arguments: str, seconds: float = 0) -> Reply:
        """Send a command and wait for its end.

        `seconds`: that the agent itself gives what it does, by the guest's clock.
        """
        self._number += 1
        self._texts.clear()
        reply = Reply(self._number)
        self._line = encode(self._number, verb, *arguments)
        log.get().debug("agent.command", line=self._line.decode().strip())
        self._machine.send(self._line)
        more = seconds * GUEST_SECOND
        limit, silent = self._limits.step_s + more, self._limits.silent_s + more
        reply = self._receive(reply, lambda reply: reply.answer is not None, limit, silent)
        log.get().debug("agent.answer", answer=str(reply.answer), end=reply.end, seconds=round(reply.seconds, 3))
        return reply

    def power_off(self, verb: Verb = Verb.POWEROFF) -> Reply:
        """Ask for power-off, or a restart, and wait until the machine is off, or the step's time is up."""
        self._number += 1
        self._line = encode(self._number, verb)
        self._machine.send(self._line)
        return self._receive(Reply(self._number), lambda _: False, self._limits.step_s, self._limits.silent_s)

    def _receive(self, reply: Reply, complete: Callable[[Reply], bool], limit: float, silent: float) -> Reply:
        if self.ended is not None:
            reply.end, reply.detail = self.ended, self._how or "before this command"
            return reply
        console = ConsoleParser()
        start = time.monotonic()
        patience = Patience(self._machine, limit, silent)
        panicked = False
        tail = b""
        look_at = 0.0
        parts = 0

        def over() -> bool:
            # An answer may come at once with a panic: its report is waited for, and told with this command.
            return reply.end is not None or (complete(reply) and not panicked)

        while not over():
            waits = max(look_at - time.monotonic(), 0.0) if reply.samples else patience.left
            chunks = self._machine.receive(min(max(waits, 0.0), POLL_S))
            if self._cancelled():
                reply.end = End.CANCELLED
            for chunk in chunks:
                if chunk.source == "console":
                    console.feed(chunk.data)
                    tail = tail[-len(PANIC) :] + chunk.data
                    if not panicked and PANIC in tail:
                        panicked = True
                        # Its report is worth a moment; after it only a reboot would come.
                        patience.silent = AFTER_PANIC_S
                elif chunk.source == "agent":
                    self._read(reply, chunk.data)
                else:
                    self._exit(reply, chunk, panicked)
            if chunks:
                patience.heard()
            if len(reply.parts) > parts:
                parts = len(reply.parts)
                patience.start()
            if over():
                break
            if patience.left > 0:
                # It speaks again: what was seen meanwhile shows no hang.
                reply.samples.clear()
                if patience.starved:
                    reply.end, reply.detail = End.STARVED, f"enough within {WALL_TIMES} times its limit"
            elif panicked:
                reply.end = End.PANIC
            elif not reply.samples or time.monotonic() >= look_at:
                look_at = time.monotonic() + BETWEEN_SAMPLES_S
                if not self._look(reply) or len(reply.samples) >= SAMPLES:
                    reply.end = End.SLOW if patience.too_long else End.SILENT
                    reply.detail = f"within {limit:.0f} s" if patience.too_long else f"for {patience.silent:.0f} s"
        if complete(reply):
            reply.samples.clear()
        reply.console = console.finish()
        reply.seconds = time.monotonic() - start
        reply.fair_seconds = patience.seconds
        if self._machine.clock_goes_on:
            reply.kept_seconds = max(0.0, reply.seconds - reply.fair_seconds)
        self.ended = self.ended or reply.end
        return reply

    def _look(self, reply: Reply) -> bool:
        """Take one sample of the CPU. False where the host has none to give."""
        now = time.monotonic()
        sample = self._machine.sample()
        if sample is None:
            return False
        if not reply.samples:
            self._first_look = now
        reply.samples.append(msgspec.structs.replace(sample, seconds=round(now - self._first_look, 3)))
        return True

    def _exit(self, reply: Reply, chunk: Chunk, panicked: bool) -> None:
        for broken in self._reader.finish():
            _keep(reply, broken)
        reply.detail = chunk.data.decode("utf-8", "replace")
        if panicked:
            reply.end = End.PANIC
            return
        end = End.UNCLEAR if chunk.unclear else End.HOST if chunk.failed else End.EXIT
        if self._cancelled():
            end = End.CANCELLED  # who cancels ends the machine, too
        if reply.answer is None:
            reply.end = end
        else:
            # It came at once with the answer, which counts; a machine tells of its exit only once.
            self.ended, self._how = end, reply.detail

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
                case Text() if message.id == reply.number:
                    self._texts[message.number] = message
                case Said() if message.id == reply.number and self._texts.keys() >= {*message.texts}:
                    room = max(0, MAX_RECORDS - len(reply.log) - len(reply.earlier))
                    reply.log += message.records(self._texts)[:room]
                    _lose(reply, max(0, len(message.texts) - room), message.part)
                case LogRecord() if len(reply.log) + len(reply.earlier) >= MAX_RECORDS:
                    reply.lost += 1
                case LogRecord() if message.id == reply.number:
                    reply.log.append(message)
                case LogRecord():
                    reply.earlier.append(message)
                case Lost():
                    # Of what the kernel said before the first command nothing is judged.
                    _lose(reply, message.records if message.id else 0, message.part)
                case Items() if message.id == reply.number:
                    reply.items.append(message)
                case Refused(id=0) if reply.answer is None and reply.resent == MAX_RESENT:
                    reply.answer = message
                case Refused(id=0) if reply.answer is None:
                    # Never done twice: the agent knows the number of the command that it did last.
                    reply.resent += 1
                    log.get().info("agent.resend", number=reply.number, why=message.why)
                    self._machine.send(self._line)
                case Refused(id=0):
                    # Of a command that lost its end of line: the agent told of both parts, and each was sent again.
                    log.get().info("agent.refused-late", why=message.why)
                case Result(part=part) if part and message.id == reply.number and len(reply.parts) < MAX_PARTS:
                    reply.parts.append(message)
                case Result(part=0) | Died() | Refused() if message.id == reply.number and reply.answer is None:
                    reply.answer = message
                case _:
                    _keep(reply, Broken(str(message).encode()[:200], f"answers another command than {reply.number}"))


def _lose(reply: Reply, records: int, part: int) -> None:
    reply.lost += records
    if records:
        reply.lost_in.add(part)


def _keep(reply: Reply, broken: Broken) -> None:
    if len(reply.broken) < MAX_BROKEN:
        reply.broken.append(broken)
    else:
        reply.broken_more += 1
