"""Protects whoever is not to blame: outcomes that look like a kernel's defect and need not be one, each made to happen.

A process that is killed for want of memory, a lockup report that the emulator's own pause made, one that may be
slowness; and an unload that never comes back, which is the kernel's.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kbuild.paths import PROJECT
from tests.integration.conftest import Tool, build_modules, make_tool, wait_for

pytestmark = pytest.mark.kernel

HOSTS = ("qemu-svm", "bochs-vmx")
MODULES = ("dt_kill", "dt_oom", "dt_stuck", "dt_stall")

ORDER = """
id = "{name}"
title = "a module that misbehaves"
modules = ["{module}"]

[[step]]
load = "{module}"
params = {{ {params} }}

[[step]]
unload = "{module}"

[[step]]
check = "footprint"
"""

# An order's module and parameters; of its findings that count, status and kind; the reason, in words of the answer.
EXPECTED: dict[str, tuple[str, str, set[tuple[str, str]], str]] = {
    # Whoever sent the signal said nothing: it is in the kernel, for nobody else is there.
    "kill": ("dt_kill", "", {("FAIL", "no-answer")}, "was killed (signal 9)"),
    # mm/oom_kill.c, __oom_kill_process(): "Out of memory: Killed process".
    "oom": ("dt_oom", "", {("ERROR", "out-of-memory")}, "the host has too little (memory_mb)"),
    # mm/oom_kill.c, out_of_memory(): nothing is left to kill, for PID 1 is not killed.
    "oom-for-good": (
        "dt_oom",
        "thread = true",
        {("ERROR", "out-of-memory"), ("ERROR", "out-of-memory-panic")},
        "the host has too little (memory_mb)",
    ),
    # kernel/watchdog.c, watchdog_timer_fn(): it also sets the taint L, which is no leftover.
    "stall": ("dt_stall", "", {("ERROR", "soft-lockup")}, "emulated slowly, cannot be told"),
    # kernel/hung_task.c, check_hung_task(): its stack has the module's exit function.
    "stuck": ("dt_stuck", "", {("FAIL", "hang"), ("ERROR", "hung-task")}, "dt_stuck_exit"),
}


@pytest.fixture(scope="module")
def modules(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules, built out of tree."""
    sources = [PROJECT / f"tests/data/modules/{name}.c" for name in MODULES]
    return build_modules(tmp_path_factory.mktemp("modules"), sources, kernel_source, kernel_build)


@pytest.fixture(scope="module")
def judged(modules: Path, kernel_build: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All orders on both hosts, in one run."""
    folder = tmp_path_factory.mktemp("outcomes")
    words: list[str | Path] = [word for host in HOSTS for word in ("--host", host)]
    for name, (module, params, _, _) in EXPECTED.items():
        words += ["--order", write_order(folder, name, module, params)]
    for tool in make_tool(folder):
        data = load(tool, modules, kernel_build, words)
    return data


def write_order(folder: Path, name: str, module: str, params: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(ORDER.format(name=name, module=module, params=params))
    return path


def load(tool: Tool, modules: Path, kernel_build: Path, words: list[str | Path]) -> dict[str, Any]:
    kernel = kernel_build / "arch/x86/boot/bzImage"
    done = tool.run("load", "--modules", modules, "--kernel", kernel, *words, "--json")
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", EXPECTED)
def test_who_is_to_blame_and_why(judged: dict[str, Any], host: str, name: str) -> None:
    _, _, expected, words = EXPECTED[name]
    (transcript,) = (one for one in judged["transcripts"] if (one["host"], one["order"]) == (host, name))
    findings = [one for one in judged["findings"] if (one["host"], one["order"]) == (host, name)]
    counting = [(one["status"], one["id"].split(":")[1]) for one in findings if one["status"] != "DONE"]
    if name == "stall" and counting == [("MISS", "soft-lockup")]:
        # Other tests on the same CPUs have kept the emulator from running for most of it: that is told instead.
        assert transcript["status"] == "MISS"
        assert "kept from running" in transcript["reason"]
        return
    assert set(counting) == expected
    assert len(counting) == len(expected), "each is told once"
    assert transcript["status"] == ("FAIL" if any(status == "FAIL" for status, _ in expected) else "ERROR")
    assert words in transcript["reason"]


def test_an_emulator_s_pause_is_not_the_kernel_s_stall(
    tool: Tool, modules: Path, kernel_build: Path, tmp_path: Path
) -> None:
    """QEMU's clock goes on while QEMU is stopped: the guest's watchdog takes that for a CPU that was stuck."""
    order = write_order(tmp_path, "paused", "dt_stall", "seconds = 3")
    kernel = kernel_build / "arch/x86/boot/bzImage"
    words: list[str | Path] = [
        "--modules",
        modules,
        "--kernel",
        kernel,
        "--host",
        "qemu-svm",
        "--order",
        order,
        "--json",
    ]
    with tool.start("load", *words) as process:
        # The guest has begun: before that its watchdog would blame what is done between two steps.
        begun = b"dt_stall: keeps its CPU"
        wait_for(lambda: any(begun in log.read_bytes() for log in tool.runs.rglob("agent.log")), process)
        emulators = [pid for pid, name in tool.processes().items() if name == "qemu-system-x86"]
        for pid in emulators:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(12)  # the soft lockup detector's 10 s (twice watchdog_thresh, profiles/default.toml), and some
        for pid in emulators:
            os.kill(pid, signal.SIGCONT)
        out, err = process.communicate(timeout=300)
    assert out, err
    data = json.loads(out)
    assert [(one["status"], one["id"].split(":")[1]) for one in data["findings"]] == [("MISS", "soft-lockup")]
    assert (data["verdict"], process.returncode) == ("MISS", 3)
    assert "not the kernel's doing" in data["findings"][0]["message"]


GONE = """
id = "gone"
title = "a module that is not there"
modules = ["dt_stall"]

[[step]]
load = "no-such-module"
"""
ELSEWHERE = """
id = "elsewhere"
title = "it is there with another kernel only"
modules = ["dt_stall"]

[[step]]
load = "no-such-module"
when = { kernel = "99 -" }

[[step]]
load = "dt_stall"
params = { seconds = 0 }
"""


def test_a_module_that_is_not_there_is_no_matter_of_another_order(
    tool: Tool, modules: Path, kernel_build: Path, tmp_path: Path
) -> None:
    """Its own order is SKIP, and says what is missing; what is asked for besides is run."""
    words: list[str | Path] = [word for host in HOSTS for word in ("--host", host)]
    for name, text in (("gone", GONE), ("elsewhere", ELSEWHERE)):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        words += ["--order", path]
    data = load(tool, modules, kernel_build, words)
    told = {(one["host"], one["order"]): (one["status"], one["reason"]) for one in data["transcripts"]}
    for host in HOSTS:
        assert told[host, "gone"] == ("SKIP", "step 1: there is no no-such-module.ko")
        assert told[host, "elsewhere"] == ("PASS", None)
    assert data["verdict"] == "PASS"
