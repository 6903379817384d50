"""External commands: logged so that they can be pasted, bounded in time, never left behind."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild import log
from kbuild.errors import HarnessError, os_errors
from kbuild.paths import lock_to_share

MAX_LINE = 1 << 16
"""Bytes after which a line is taken as ended."""
KEEP_LINES = 200_000
"""Lines of output that stay in memory; the whole of it is in the log file where one is asked for."""


HOST_FAILED = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|internal compiler error: Killed"
    r"|Killed signal terminated program|out of memory allocating"
    r"|Cannot allocate memory|virtual memory exhausted|Input/output error"
    # A program that is missing, by bash and by dash; and what make says of one that was killed, or is missing.
    r"|: command not found|: \d+: \S+: not found$|\*\*\* \[[^]]*\] (?:Killed|Error 137|Error 127)\b"
    # Of a full disk: scripts/basic/fixdep.c of the kernel, and xorriso.
    r"|fixdep: not all data was written|exceeds free space on media"
)
"""Messages of a program that blame the machine, and not what it was given."""

# Reads until the tool closes its end of a pipe, or dies, and then kills the group, which it is in itself. What make
# started goes on when make alone is killed, and writes into the folder that the next make builds in.
_TOGETHER = '{ read -r _ <"/proc/self/fd/$0"; kill -KILL 0; } </dev/null >/dev/null 2>&1 & exec "$@"'


@dataclass(frozen=True)
class Completed:
    """An ended command. `status` is as in the shell: 128 + N for signal N."""

    argv: tuple[str, ...]
    status: int
    output: str
    seconds: float


def pasteable(argv: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The command as a line for a shell; `env` holds only what differs from the caller's."""
    words = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    line = " ".join([*words, shlex.join(str(word) for word in argv)])
    return f"cd {shlex.quote(str(cwd))} && {line}" if cwd else line


def missing(argv: Sequence[str | Path]) -> HarnessError | None:
    """An error when the program is not installed."""
    if shutil.which(str(argv[0])) is None:
        return HarnessError(f"'{argv[0]}' is not installed: run ./scripts/inv, which installs what is missing")
    return None


def leashed(argv: Sequence[str | Path]) -> list[str]:
    """`argv`, to be killed by the kernel when the thread that started it ends, even by SIGKILL."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]


def end(process: subprocess.Popen[bytes], grace: float = 2.0) -> None:
    """End a process that was started with `start_new_session`, and all of its group; return when they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # What the process started is not ours to reap, and on a busy machine takes its time to die.
    deadline = time.monotonic() + grace
    for member in _group(process.pid):
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(member)
            try:
                select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            finally:
                os.close(handle)


def _group(leader: int) -> list[int]:
    """The processes of a group. /proc/PID/stat has the group as the third word after the name in parentheses."""
    members: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if (folder / "stat").read_text().rpartition(")")[2].split()[2] == str(leader):
                    members.append(int(folder.name))
    return members


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold interrupts back until the block has ended.

    One that came between a child's start and the line that remembers it would leave the child behind. Python
    calls signal handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in handlers.items() if callable(handler)]
    for number in ours:
        signal.signal(number, lambda number, frame: held.append(number))  # noqa: ARG005
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, handlers[number])
        if held:
            signal.raise_signal(held[0])


@contextlib.contextmanager
def _child(
    argv: Sequence[str | Path], cwd: Path | None, env: Mapping[str, str] | None, *, piped: bool, lock: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command; where the block is left by an exception, end it and what it started."""
    with contextlib.ExitStack() as stack:
        shared = [stack.enter_context(lock_to_share(lock))] if lock else []
        theirs, ours = os.pipe()
        stack.callback(os.close, ours)
        stack.callback(os.close, theirs)
        process: subprocess.Popen[bytes] | None = None
        try:
            with _interrupts_wait(), os_errors(f"'{argv[0]}' cannot be started"):
                process = subprocess.Popen(
                    ["sh", "-c", _TOGETHER, str(theirs), *map(str, argv)],
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(theirs, *shared),
                )
            yield process
        except BaseException:
            if process is not None:
                end(process)
            raise


class _Sink:
    """A file that gets all of a command's output. Raises HarnessError when it does not take it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        with self._errors():
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        with self._errors():
            self._file.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HarnessError(f"{self._path}: cannot be written: {error.strerror}") from None


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    log_file: Path | None = None,
    stdin: bytes | None = None,
    check: bool = True,
    lock: Path | None = None,
) -> Completed:
    """Run a command to its end, with standard error joined to standard output.

    `env` is added to this process's own. `on_line` gets each line as it comes. `timeout` is in
    seconds. What the command started is killed when the command has ended; both are when this process dies, even
    by SIGKILL. The file `lock` is locked until the last of them is gone. Raises HarnessError when the program is
    missing or cannot be started, when time is up, when `log_file` takes no more, and, with `check`, when it ends
    with another status than 0. On any exception, Ctrl-C included, the command and what it started are ended first.
    """
    if error := missing(argv):
        raise error
    text = pasteable(argv, cwd, env)
    start = time.monotonic()
    log.get().debug("command", command=text)
    kept: collections.deque[str] = collections.deque(maxlen=KEEP_LINES)
    sink = _Sink(log_file) if log_file else None

    def line(raw: bytes) -> None:
        decoded = raw.decode("utf-8", "replace").rstrip("\n")
        kept.append(decoded)
        if on_line:
            on_line(decoded)

    try:
        with _child(argv, cwd, env, piped=stdin is not None, lock=lock) as process:
            assert process.stdout is not None
            if stdin is not None and process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(stdin)
                    process.stdin.close()
            pending = b""
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while True:
                    left = None if timeout is None else timeout - (time.monotonic() - start)
                    if (left is not None and left <= 0) or not selector.select(left):
                        raise HarnessError(f"no end after {timeout:.0f} s: {text}")
                    chunk = os.read(process.stdout.fileno(), 1 << 16)
                    if sink:
                        sink.write(chunk)
                    if not chunk:
                        break
                    *lines, pending = (pending + chunk).split(b"\n")
                    if len(pending) > MAX_LINE:
                        lines, pending = [*lines, pending], b""
                    for one in lines:
                        line(one)
            if pending:
                line(pending)
            status = process.wait()
    finally:
        if sink:
            sink.close()
    seconds = time.monotonic() - start
    status = 128 - status if status < 0 else status
    log.get().debug("command.end", command=text, status=status, seconds=round(seconds, 3))
    if check and status:
        said = [one for one in kept if one.strip()]
        # A full disk is told first, and then what came of it.
        last = next((one for one in said if HOST_FAILED.search(one)), said[-1] if said else "it said nothing")
        raise HarnessError(f"status {status} from: {text}: {last.strip()}")
    return Completed(tuple(map(str, argv)), status, "\n".join(kept), seconds)
