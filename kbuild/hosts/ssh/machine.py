"""A host that is reached by SSH, as a `Machine`: the bridge is its process, and takes an emulator's place."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from kbuild import log
from kbuild.hosts.emulator import Emulator, Lines
from kbuild.hosts.ssh.bridge import TALKING, UNCLEAR

STATE = "state "


class SshMachine(Emulator):
    """The lines of one boot of a host, or of one visit to the kernel that it runs."""

    def __init__(self, host: str, errand: Path, folder: Path) -> None:
        """`errand`: the file with the bridge's `Errand`."""
        self._host = host
        self._words = b""
        self._talks = False
        self._other_s = 0.0
        """Seconds in which the bridge was at something else than to let the agent talk."""
        self._since = time.monotonic()
        cleanup = contextlib.ExitStack()
        console, console_end = os.pipe()
        cleanup.callback(os.close, console)
        agent, agent_end = socket.socketpair()
        cleanup.callback(agent.close)
        agent.setblocking(False)
        os.set_blocking(console, False)
        commands = os.dup(agent.fileno())
        cleanup.callback(os.close, commands)
        try:
            super().__init__(
                # In the caller's folder: the words of a host file mean the same files as for ssh here.
                [
                    *(sys.executable, "-P", "-m", "kbuild.hosts.ssh.bridge"),
                    *(errand, str(console_end), str(agent_end.fileno())),
                ],
                Lines(console, agent.fileno(), commands),
                folder,
                cleanup,
                pass_fds=[console_end, agent_end.fileno()],
            )
        except BaseException:
            cleanup.close()
            raise
        finally:
            os.close(console_end)
            agent_end.close()

    def said(self, data: bytes) -> None:
        """The bridge's own words: the state that it is in, and what a person would like to know."""
        *lines, self._words = (self._words + data).split(b"\n")
        for line in (one.decode("utf-8", "replace") for one in lines):
            if line.startswith(STATE):
                self._turn(line.removeprefix(STATE) == TALKING)
            else:
                log.get().info("host.says", host=self._host, words=line)

    def _turn(self, talks: bool) -> None:
        now = time.monotonic()
        if not self._talks:
            self._other_s += now - self._since
        self._talks, self._since = talks, now

    def starved(self) -> float:
        """While the host boots, or is looked for, the agent cannot answer."""
        return self.excused()

    def excused(self) -> float:
        """The same: both have limits of their own."""
        return self._other_s + (0.0 if self._talks else time.monotonic() - self._since)

    def is_unclear(self, status: int) -> bool:
        """The bridge says so by its status."""
        return status == UNCLEAR

    def how_it_ended(self, status: int, words: str) -> str:
        """The bridge's last words are about the host."""
        return words or f"{self._host}: the bridge to it ended with status {status}"
