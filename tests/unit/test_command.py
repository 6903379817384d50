"""Protects the machine: a command is bounded, never left behind, and says in one line why it failed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kbuild import command
from kbuild.errors import HarnessError
from kbuild.paths import locked


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_output_and_status() -> None:
    seen: list[str] = []
    done = command.run(["sh", "-c", "echo one; echo two >&2; exit 3"], check=False, on_line=seen.append)
    assert (done.status, done.output, seen) == (3, "one\ntwo", ["one", "two"])


def test_failure_is_one_line() -> None:
    with pytest.raises(HarnessError, match=r"^status 2 from: ls --nonsense: "):
        command.run(["ls", "--nonsense"])
    with pytest.raises(HarnessError, match="'no-such-program' is not installed"):
        command.run(["no-such-program"])


def test_timeout_ends_what_the_command_started(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no end after"):
        command.run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; wait"], timeout=0.5)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_nothing_of_a_group_is_left_when_it_was_ended(tmp_path: Path) -> None:
    """Grandchildren that ignore SIGTERM, as many as a build has, while both cores are busy."""
    script = (
        f"trap '' TERM; for i in $(seq 40); do (echo $BASHPID >> {tmp_path}/pids; while :; do :; done) & done; wait"
    )
    with pytest.raises(HarnessError, match="no end after"):
        command.run(["bash", "-c", script], timeout=1)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    assert not [pid for pid in pids if alive(pid)]


def test_an_interrupt_at_any_moment_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also between the child's start and the line that remembers it, which only many tries meet."""
    code = (
        "import os, signal, sys, threading\n"
        "from kbuild import command\n"
        "delay = float(sys.argv[1])\n"
        "threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    while True:\n"
        f"        command.run(['sh', '-c', 'echo $$ >> {tmp_path}/pids; sleep 600 & sleep 0.001; kill $!'])\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    for number in range(15):
        delay = str(0.05 + number / 997)
        done = subprocess.run([sys.executable, "-c", code, delay], capture_output=True, text=True, timeout=60)
        assert done.stdout == "interrupted\n", done.stderr
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not [pid for pid in pids if alive(pid)]


def test_a_command_and_what_it_started_die_with_the_tool_even_when_that_is_killed(tmp_path: Path) -> None:
    """And whoever waits for the lock goes on when the last of them has closed its files, not before."""
    lock = tmp_path / "lock"
    code = (
        "import pathlib; from kbuild import command;"
        "argv = ['sh', '-c', 'echo $$; sh -c \"trap : TERM; echo \\$\\$; sleep 600; :\"; :'];"
        f"command.run(argv, on_line=lambda line: print(line, flush=True), lock=pathlib.Path({str(lock)!r}))"
    )
    tool = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert tool.stdout is not None
    pids = [int(tool.stdout.readline()) for _ in range(2)]
    handles = [os.pidfd_open(pid) for pid in pids]
    assert all(map(alive, pids))
    with locked(lock, blocking=False) as free:
        assert not free
    tool.send_signal(signal.SIGKILL)
    tool.wait()
    with locked(lock):
        for pid, handle in zip(pids, handles, strict=True):
            assert not list(Path(f"/proc/{pid}").glob("fd/*")), "it can still write"
            assert select.select([handle], [], [], 10)[0], "it outlived the tool"


def test_what_a_command_left_in_the_background_ends_with_it() -> None:
    done = command.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"])
    handle = os.pidfd_open(int(done.output))
    assert select.select([handle], [], [], 10)[0]


def test_pasteable() -> None:
    assert command.pasteable(["a", "b c"], Path("/x y"), {"K": "v w"}) == "cd '/x y' && K='v w' a 'b c'"


def test_a_log_that_takes_no_more_is_the_machine_s_failure() -> None:
    with pytest.raises(HarnessError, match=r"^/dev/full: cannot be written: No space left on device$"):
        command.run(["echo", "something"], log_file=Path("/dev/full"))


def test_of_a_full_disk_the_first_line_is_told_and_not_what_came_of_it() -> None:
    said = "echo 'ld: a.o: No space left on device'; echo 'collect2: error'; exit 1"
    with pytest.raises(HarnessError, match=r"ld: a\.o: No space left on device$"):
        command.run(["sh", "-c", said])
