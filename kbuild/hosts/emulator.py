"""What all emulators have in common: a process, its lines, its logs, and an end that nothing outlives."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kbuild import command, log
from kbuild.errors import HarnessError
from kbuild.hosts.base import Chunk, Snapshot
from kbuild.hosts.cpu import CpuSample
from kbuild.hosts.running import Starved
from kbuild.paths import write_atomically

MAX_LOG = 16 << 20
"""Bytes of one line that are kept on disk: a guest that floods its console must not fill it."""
READ_SIZE = 1 << 16
MAX_SAID = 1 << 20
"""Bytes of the emulator's own messages that are kept on disk."""
KEEP_SAID = 1 << 12
"""Bytes of them that stay in memory: the end, which says why it ended."""
LAST_WORDS = 300
"""Characters of an emulator's last message in the description of its end."""
POWERED_OFF = "the guest powered off"
REBOOTED = "the guest rebooted"
TRIPLE_FAULT = "the guest had a triple fault"
DRAIN_S = 5.0
"""What is still in the pipes of an ended process is there at once; this bounds a defect of ours."""


class CappedFile:
    """A file that stops growing at a limit; its last line then says what was cut."""

    def __init__(self, path: Path, limit: int = MAX_LOG) -> None:
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise HarnessError(f"{path}: cannot be made: {error.strerror}") from None
        self._left = limit
        self._cut = 0

    def write(self, data: bytes) -> None:
        """Append what still fits. A full disk stops the log and not the run: the caller has the bytes too."""
        kept = data[: self._left]
        self._left -= len(kept)
        self._cut += len(data) - len(kept)
        try:
            while kept:
                kept = kept[self._file.write(kept) :]
        except OSError as error:
            self._left = 0
            self._cut += len(kept)
            log.get().warning("log.stopped", file=self._file.name, reason=error.strerror)

    def close(self) -> None:
        """Say what was cut, and close."""
        with contextlib.suppress(OSError):
            if self._cut:
                self._file.write(f"\n[kvm-kbuild: {self._cut} more bytes came and were cut here]\n".encode())
        self._file.close()


class Tail:
    """The last bytes of something."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.data = bytearray()

    def add(self, data: bytes) -> None:
        """Append, and forget what is older than the limit."""
        self.data += data[-self._limit :]
        del self.data[: -self._limit]


@dataclasses.dataclass(frozen=True)
class Lines:
    """Our ends of the machine's lines. None of them may block."""

    console: int
    agent: int
    commands: int
    """To write. Another descriptor than `agent`, even where both are one socket."""


class Emulator:
    """A running emulator; a `Machine`. Its end is seen on a pidfd, so nothing is polled.

    `cleanup` holds what has to be closed and removed when it has ended. On disk: `console.log`,
    `agent.log`, `emulator.log` (what the emulator itself said), `command.txt`.
    """

    clock_goes_on = False
    """See `Machine.clock_goes_on`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        lines: Lines,
        folder: Path,
        cleanup: contextlib.ExitStack,
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        by_hand: str | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        if absent := command.missing(argv):
            raise absent
        self.name = str(argv[0])
        self._lines = lines
        self._cleanup = cleanup
        self._reading = threading.Lock()  # held by receive(): stop() closes only what nobody reads
        self._sending = threading.Lock()
        self._reaping = threading.Lock()  # a process that is not reaped keeps its number: no other one is killed
        self._outgoing = bytearray()
        self._reason = ""
        self._stopped = False
        self._closed = False
        self._exit_told = False
        self._pending: list[Chunk] = []
        """What came while something else was waited for."""
        self._said = Tail(KEEP_SAID)
        self._selector = selectors.DefaultSelector()
        cleanup.callback(self._selector.close)

        text = command.pasteable(argv, cwd, env)
        note = f"# by hand, with the lines on the terminal:\n{by_hand}\n" if by_hand else ""
        write_atomically(folder / "command.txt", f"{text}\n{note}")
        log.get().debug("emulator", command=text)
        self._watch_line(lines.console, "console", self._capped(folder / "console.log"))
        self._watch_line(lines.agent, "agent", self._capped(folder / "agent.log"))
        own = self._capped(folder / "emulator.log", MAX_SAID)
        try:
            # A process group and no session of its own: the leader of a session that has no terminal
            # would get the agent's pseudo-terminal as one, and its end would then throw away what
            # is still on its way (drivers/tty/tty_jobctrl.c disassociate_ctty()).
            self._process = subprocess.Popen(
                command.leashed(argv),
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                process_group=0,
            )
        except OSError as error:
            raise HarnessError(f"{self.name} cannot be started: {error.strerror}") from None
        cleanup.callback(self._kill)
        self._starved = Starved(self._process.pid)
        assert self._process.stdout is not None
        cleanup.callback(self._process.stdout.close)
        said = self._process.stdout.fileno()
        os.set_blocking(said, False)

        def heard(data: bytes) -> None:
            own.write(data)
            self._said.add(data)
            self.said(data)

        self.watch(said, heard)
        self._pidfd = os.pidfd_open(self._process.pid)
        cleanup.callback(os.close, self._pidfd)
        self._selector.register(self._pidfd, selectors.EVENT_READ)

    # What an emulator adds of its own.

    def said(self, data: bytes) -> None:
        """Called with each piece of what the emulator itself prints."""

    def ended(self) -> None:
        """Called when the process has ended, before its lines are read to their end."""

    def guest_did(self) -> str:
        """POWERED_OFF, REBOOTED or TRIPLE_FAULT, where that is why the emulator ended; else empty."""
        return ""

    def last_words(self) -> str:
        """The emulator's own reason for its end, one line; empty where it gave none."""
        lines = self._said.data.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def watch(self, handle: int, use: Callable[[bytes], None]) -> None:
        """Read a further descriptor (it must not block) while `receive` waits."""

        def read() -> Chunk | None:
            if data := self._read(handle):
                use(data)
            return None

        self._selector.register(handle, selectors.EVENT_READ, read)

    def end(self, reason: str) -> None:
        """End the emulator for something that the guest did, which `exit` then gives."""
        self._reason = self._reason or reason
        self._kill()

    @property
    def pid(self) -> int:
        """The process, and its group."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        with self._reaping:
            return self._process.returncode is None and not self._has_ended()

    # The machine.

    def send(self, data: bytes) -> None:
        """Write to the agent's line. Never blocks: what does not fit now goes while `receive` waits."""
        with self._sending:
            if self._closed:
                return
            self._outgoing += data
            self._flush()

    def receive(self, timeout: float) -> list[Chunk]:
        """See `Machine.receive`. Gives up to 64 KiB of each line at once."""
        deadline = time.monotonic() + timeout
        with self._reading:
            chunks, self._pending = self._pending, []
            if self._closed:
                return chunks + self._exit("stopped")
            self._watch_outgoing()
            while not chunks and not self._exit_told:
                ready = self._selector.select(max(0.0, deadline - time.monotonic()))
                chunks = self._handle(ready)
                if any(key.fd == self._pidfd for key, _ in ready):
                    chunks += self._finish()
                # Also where the emulator itself never stops talking.
                if time.monotonic() >= deadline:
                    break
        return chunks

    def sample(self) -> CpuSample | None:
        """See `Machine.sample`."""
        return None

    def starved(self) -> float:
        """See `Machine.starved`."""
        return self._starved.seconds()

    def excused(self) -> float:
        """See `Machine.excused`."""
        return 0.0

    def snapshot(self) -> Snapshot | None:
        """See `Machine.snapshot`."""
        return None

    def pause(self) -> None:
        """See `Machine.pause`."""

    def resume(self) -> None:
        """See `Machine.resume`."""

    def send_signal(self, number: signal.Signals) -> None:
        """To the emulator, if it has not ended."""
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self._process.pid, number)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Lead the lines on until something is so, at most for some seconds; for use in `sample`."""
        deadline = time.monotonic() + seconds
        with self._reading:
            while not condition():
                if self._closed or self._exit_told or time.monotonic() >= deadline:
                    return False
                ready = self._selector.select(max(0.0, deadline - time.monotonic()))
                self._pending += self._handle(ready)
                if any(key.fd == self._pidfd for key, _ in ready):
                    return False  # its end is for `receive` to tell
        return True

    def stop(self) -> None:
        """End the emulator now and remove what it used. From any thread, more than once."""
        self._stopped = True
        self._kill()
        with self._reading, self._sending:
            if not self._closed:
                self._closed = True
                self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Inside.

    def _capped(self, path: Path, limit: int = MAX_LOG) -> CappedFile:
        file = CappedFile(path, limit)
        self._cleanup.callback(file.close)
        return file

    def _watch_line(self, handle: int, source: Literal["agent", "console"], kept: CappedFile) -> None:
        def read() -> Chunk | None:
            data = self._read(handle)
            kept.write(data)
            return Chunk(source, data) if data else None

        self._selector.register(handle, selectors.EVENT_READ, read)

    def _read(self, handle: int) -> bytes:
        """What is there; at the end of the line, nothing, and it is not looked at again."""
        try:
            data = os.read(handle, READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError:  # a pseudo-terminal whose other side is gone says EIO
            data = b""
        if not data:
            self._selector.unregister(handle)
        return data

    def _handle(self, ready: list[tuple[selectors.SelectorKey, int]]) -> list[Chunk]:
        chunks = (key.data() for key, _ in ready if key.data is not None)
        return [chunk for chunk in chunks if chunk is not None]

    def _watch_outgoing(self) -> None:
        with self._sending:
            watched = self._lines.commands in self._selector.get_map()
            if self._outgoing and not watched:
                self._selector.register(self._lines.commands, selectors.EVENT_WRITE, self._flush_locked)

    def _flush_locked(self) -> None:
        with self._sending:
            self._flush()
            if not self._outgoing:
                self._selector.unregister(self._lines.commands)

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._outgoing:
                try:
                    written = os.write(self._lines.commands, self._outgoing[:READ_SIZE])
                except BlockingIOError:
                    raise
                except OSError:  # the other side is gone: receive() tells it
                    written = len(self._outgoing)
                del self._outgoing[:written]

    def _finish(self) -> list[Chunk]:
        """The process has ended: what is still on its way, then how it ended."""
        self._selector.unregister(self._pidfd)
        with self._sending:
            if self._lines.commands in self._selector.get_map():
                self._selector.unregister(self._lines.commands)
            self._outgoing.clear()
        # What it started goes with it, and holds none of its lines open.
        self._kill()
        self.ended()
        chunks: list[Chunk] = []
        deadline = time.monotonic() + DRAIN_S
        while self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            chunks += self._handle(self._selector.select(left))
        return [*chunks, *self._told_end()]

    def _exit(self, how: str, *, failed: bool = False, unclear: bool = False) -> list[Chunk]:
        if self._exit_told:
            return []
        self._exit_told = True
        log.get().debug("emulator.end", emulator=self.name, how=how)
        return [Chunk("exit", how.encode(), failed, unclear)]

    def _told_end(self) -> list[Chunk]:
        """How the process ended, and whether that was the guest's doing."""
        if did := self._reason or self.guest_did():
            return self._exit(f"{self.name}: {did}")
        if self._stopped:
            return self._exit(f"{self.name} was stopped")
        status = self._process.returncode
        how = self.how_it_ended(status, self.last_words()[:LAST_WORDS])
        return self._exit(how, failed=True, unclear=self.is_unclear(status))

    def is_unclear(self, status: int) -> bool:  # noqa: ARG002
        """Whether the guest may have made it end so, for all that is known. An emulator's own failure is its own."""
        return False

    def how_it_ended(self, status: int, words: str) -> str:
        """For a person, where it ended by itself and not for what the guest did; `words` are its last ones."""
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}" + (f": {words}" if words else "")

    def _kill(self) -> None:
        """End it, and its group. Nobody else reaps it: until then no other group can have its number."""
        with self._reaping:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _has_ended(self) -> bool:
        """Without reaping it."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
