"""QEMU's monitor: commands, answers and events as JSON lines over a socket pair (docs/interop/qemu-qmp-ref)."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from kbuild.errors import HarnessError

MONITOR_S = 5.0
"""A monitor that does not answer in this time will not."""
MAX_ANSWER = 1 << 20


class Monitor:
    """Our end of the monitor's line. Commands may come from several threads; one is under way at a time."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._asking = threading.Lock()
        self._heard = bytearray()
        self._shutdown = ""
        self._migration = ""
        # Before this QEMU sends no event, and SHUTDOWN is one.
        line.send(b'{"execute": "qmp_capabilities"}\n')

    def says(self, line: str) -> str:
        """What its human form answers."""
        return str(self.ask("human-monitor-command", {"command-line": line}))

    def ask(self, command: str, arguments: dict[str, Any] | None = None, descriptors: Sequence[int] = ()) -> Any:
        """What QEMU returns for a command. Raises HarnessError when it does not answer, or refuses."""
        request = {"execute": command, "arguments": arguments or {}, "id": command}
        try:
            with self._asking:
                self._line.settimeout(MONITOR_S)
                socket.send_fds(self._line, [json.dumps(request).encode() + b"\n"], [*descriptors])
                while True:
                    for message in self._messages():
                        if message.get("id") != command:
                            continue
                        if "error" in message:
                            raise HarnessError(f"QEMU refuses {command}: {message['error'].get('desc')}")
                        return message.get("return")
        except OSError as error:
            raise HarnessError(f"QEMU: its monitor does not answer: {error}") from None

    def migrated(self, seconds: float) -> bool:
        """Wait for the end of a migration, in or out (capability `events`): whether it went well.

        Raises HarnessError when QEMU ends, or there is no end in that time.
        """
        deadline = time.monotonic() + seconds
        try:
            with self._asking:
                while self._migration not in ("completed", "failed"):
                    self._line.settimeout(max(deadline - time.monotonic(), 0.001))
                    self._messages()
        except OSError as error:
            raise HarnessError(f"QEMU: its state was not moved: {error}") from None
        return self._migration == "completed"

    def shutdown_reason(self) -> str:
        """What made QEMU end, where it said so (qapi/run-state.json, ShutdownCause); else empty."""
        with contextlib.suppress(OSError), self._asking:
            self._line.settimeout(0)
            while True:
                self._messages()
        return self._shutdown

    def _messages(self) -> list[dict[str, Any]]:
        """The next ones. Raises OSError when there is none in time, or no monitor."""
        data = self._line.recv(1 << 16)
        if not data or len(self._heard) > MAX_ANSWER:
            raise ConnectionError("it is gone")
        self._heard += data
        *lines, rest = self._heard.split(b"\n")
        self._heard = rest
        messages = [json.loads(line) for line in lines if line.strip()]
        for message in messages:
            data_of = message.get("data", {})
            match message.get("event"):
                case "SHUTDOWN":
                    self._shutdown = str(data_of.get("reason", ""))
                case "MIGRATION":
                    self._migration = str(data_of.get("status", ""))
        return messages
