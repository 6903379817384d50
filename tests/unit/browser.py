"""Chromium without a window, asked over its own pipe: what a page looks like at a width, and what keys do."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds for an answer, on a busy machine."""
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """One tab. Commands are those of the DevTools protocol, JSON that ends with a NUL."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self._pending = b""
        self._session = ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def open(self, page: Path, width: int = 1280, *, dark: bool = False) -> None:
        """Show a page, which is loaded when this returns."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=page.as_uri())
        self._read(lambda said: said.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """What an expression is worth; it may wait. The page's policy does not hold for it."""
        said = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            what = {"key": key, "windowsVirtualKeyCode": KEYS[key], "text": text if kind == "keyDown" else ""}
            self._ask("Input.dispatchKeyEvent", type=kind, **what)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        said = self._read(lambda one: one.get("id") == number)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    def _read(self, wanted: Any) -> dict[str, Any]:
        """The next message that is wanted; others are passed over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\0" in self._pending:
                raw, _, self._pending = self._pending.partition(b"\0")
                said: dict[str, Any] = json.loads(raw)
                if wanted(said):
                    return said
            left = deadline - time.monotonic()
            ready = select.select([self._receive], [], [], max(left, 0))[0]
            assert ready, "the browser does not answer"
            chunk = os.read(self._receive, 1 << 16)
            assert chunk, "the browser ended"
            self._pending += chunk


def chromium() -> str | None:
    """The program, where it is installed."""
    return shutil.which("chromium")


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in that folder."""
    to_child, send = os.pipe()
    receive, from_child = os.pipe()
    program = chromium()
    assert program is not None
    # It reads commands from descriptor 3 and answers on 4.
    argv = ["bash", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "bash", program]
    process = subprocess.Popen(
        [*argv, *FLAGS[:-1], f"--user-data-dir={folder}", FLAGS[-1]],
        pass_fds=(to_child, from_child),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Browser(send, receive)
    finally:
        os.close(send)
        os.close(receive)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
