"""Protects limits against what is not the kernel's doing: a busy or stopped host, and a wall clock that jumps."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kbuild.hosts.bochs_debugger import ANSWER_S
from kbuild.hosts.qmp import MONITOR_S
from kbuild.load.patience import WALL_TIMES
from kbuild.paths import PROJECT
from tests.integration.conftest import Tool, wait_for

pytestmark = pytest.mark.kernel

EMULATORS = ("qemu-system-x86", "bochs-bin")
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def tight_host(folder: Path, name: str, silent: float) -> Path:
    """The project's host with limits that leave no room for anything but the guest's own work, and never grow."""
    text = (PROJECT / f"profiles/hosts/{name}.toml").read_text()
    limits = f"limits = {{ boot_s = 60, step_s = 6, silent_s = {silent}, usual_boot_s = 1000 }}"
    text, count = re.subn(r"^limits = .*", limits, text, count=1, flags=re.MULTILINE)
    assert count == 1
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


@contextmanager
def loading(
    tool: Tool, kernel_build: Path, hosts: list[str | Path], **environment: str
) -> Iterator[subprocess.Popen[str]]:
    words: list[str | Path] = [word for host in hosts for word in ("--host", host)]
    kernel = kernel_build / "arch/x86/boot/bzImage"
    words += ["--modules", kernel_build, "--kernel", kernel, "--order", "vendor-alone", "--json"]
    with tool.start("load", *words, **environment) as process:
        yield process


def boots(tool: Tool) -> list[Path]:
    """Logs of the agents that have said their first line, all of it: in the middle of it a host still boots."""
    logs = tool.runs.glob("*/hosts/*/boot-*/agent.log")
    return [path for path in logs if re.search(rb'"ev":"hello".*\}\n', path.read_bytes())]


def emulators(tool: Tool) -> list[int]:
    return [pid for pid, name in tool.processes().items() if name in EMULATORS]


def judged(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert out, err
    data: dict[str, Any] = json.loads(out)
    return data


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def test_emulators_that_run_a_quarter_of_the_time_are_waited_for(
    tool: Tool, kernel_build: Path, tmp_path: Path
) -> None:
    """And that do not run at all for longer than a guest may be silent."""
    silent = 1.5
    longer = silent + max(MONITOR_S, ANSWER_S) + 1  # it is also asked where it is, and could answer that late
    over = threading.Event()

    def throttle() -> None:
        paused = False
        while not over.wait(0.1):
            pids = emulators(tool)
            send(pids, signal.SIGSTOP)
            over.wait(0.3)
            if len(boots(tool)) == 2 and not paused:
                paused = True
                over.wait(longer)
            send(pids, signal.SIGCONT)

    with loading(tool, kernel_build, [tight_host(tmp_path, name, silent) for name in ("qemu-svm", "bochs-vmx")]) as it:
        throttling = threading.Thread(target=throttle)
        throttling.start()
        try:
            data = judged(it)
        finally:
            over.set()
            throttling.join()
    assert data["verdict"] == "PASS", data["findings"]


def test_an_emulator_that_is_stopped_for_good_is_missed_and_not_blamed(
    tool: Tool, kernel_build: Path, tmp_path: Path
) -> None:
    silent = 0.5
    with loading(tool, kernel_build, [tight_host(tmp_path, "qemu-svm", silent)]) as process:
        wait_for(lambda: bool(boots(tool)), process)
        send(emulators(tool), signal.SIGSTOP)
        data = judged(process)
    assert (data["verdict"], process.returncode) == ("MISS", 3), data
    assert any("did not get to run" in str(one["reason"]) for one in data["transcripts"])
    assert not [one for one in data["findings"] if one["status"] in ("FAIL", "ERROR")]
    assert WALL_TIMES * silent < 60, "this test waits for it"


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed (Debian: faketime)")
@pytest.mark.parametrize("hours", [-30, 30])
def test_a_wall_clock_that_jumps_changes_nothing(tool: Tool, kernel_build: Path, tmp_path: Path, hours: int) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    faked = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    begun = time.monotonic()
    with loading(tool, kernel_build, ["qemu-svm", "bochs-vmx"], **faked) as process:
        wait_for(lambda: bool(boots(tool)), process)
        clock.write_text(f"{hours:+}h\n")
        data = judged(process)
    took = time.monotonic() - begun
    assert data["verdict"] == "PASS", data["findings"]
    record = tool.record()
    stamps = [json.loads(line)["timestamp"] for line in (tool.latest() / "log.jsonl").read_text().splitlines()]
    first, last = (datetime.datetime.fromisoformat(stamp) for stamp in (stamps[0], stamps[-1]))
    assert abs((last - first).total_seconds() / 3600 - hours) < 1, "the clock did not jump"
    assert record["started"] <= record["ended"]
    assert all(0 <= stage["seconds"] <= took for stage in record["stages"])
    assert all(0 <= step["seconds"] <= took for one in record["transcripts"] for step in one["steps"])
    shown = tool.run("report", "latest", **faked)
    assert shown.returncode == 0, shown.stderr
