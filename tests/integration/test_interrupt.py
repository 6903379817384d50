"""Protects the machine and the record when a run does not come to its end: Ctrl-C, kill, an emulator that dies."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.configure.tree import Tree
from kbuild.gate.wanted import build_request, requested_symbols
from kbuild.profile import read_profile
from kbuild.record import TRANSCRIPTS
from tests.integration.conftest import Tool, wait_for, write_profile

pytestmark = pytest.mark.kernel


def in_stage(tool: Tool, stage: str) -> Callable[[], bool]:
    """Whether the newest run is at work in a stage."""

    def check() -> bool:
        if not tool.runs.is_dir() or not any((folder / "record.json").exists() for folder in tool.runs.iterdir()):
            return False
        stages = tool.record().get("stages", [])
        return bool(stages) and stages[-1]["name"] == stage and "status" not in stages[-1]

    return check


def interrupted(tool: Tool, process: subprocess.Popen[str], *stages: str, number: int = signal.SIGINT) -> None:
    """Interrupt a run in one of these stages; then nothing is left of it but a record that says how far it came."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert err.splitlines()[-1] == "interrupted"
    record = tool.record()
    assert record["interrupted"] in stages
    assert "verdict" not in record
    assert record["stages"][-1]["name"] == record["interrupted"]
    assert tool.processes() == {}


@pytest.fixture
def profile(tmp_path: Path, kernel_tree: Tree) -> Path:
    """A profile that nobody has built yet."""
    path = write_profile(tmp_path, "-interrupted")
    read = read_profile(str(path))
    shutil.rmtree(build_request(read, kernel_tree, requested_symbols(read)).objects, ignore_errors=True)
    return path


def test_in_tree(tool: Tool, kernel_source: Path, tmp_path: Path) -> None:
    """While a folder is being copied, into a cache that is thrown away."""
    process = tool.start("gate", "--tree", kernel_source, XDG_CACHE_HOME=str(tmp_path / "cache"))
    wait_for(lambda: any((tmp_path / "cache").glob("kvm-kbuild/trees/*/src/Makefile")), process)
    interrupted(tool, process, "tree")


def test_in_configure(tool: Tool, profile: Path) -> None:
    process = tool.start("gate", "--profile", profile)
    wait_for(in_stage(tool, "configure"), process)
    interrupted(tool, process, "configure")


def test_in_build_and_the_next_build_is_whole(tool: Tool, profile: Path, kernel_tree: Tree) -> None:
    process = tool.start("build", "--profile", profile)
    wait_for(lambda: in_stage(tool, "build")() and "  CC " in build_log(tool), process)
    interrupted(tool, process, "build")
    # What make left behind is not trusted: a compiler's message may have been lost with it.
    first, second = (tool.start("build", "--profile", profile, "--json") for _ in range(2))
    results = [json.loads(process.communicate(timeout=1500)[0]) for process in (first, second)]
    assert [result["verdict"] for result in results] == ["PASS", "PASS"]
    assert results[0]["artifacts"] == results[1]["artifacts"], "two at once: one builds, the other waits and takes it"
    builds = [next(stage["summary"] for stage in r["stages"] if stage["name"] == "build") for r in results]
    assert sorted(summary.rpartition(", ")[2] for summary in builds) == ["as built before", "built"]
    read = read_profile(str(profile))
    shutil.rmtree(build_request(read, kernel_tree, requested_symbols(read)).objects)


def build_log(tool: Tool) -> str:
    path = tool.latest() / "build.log"
    return path.read_text() if path.exists() else ""


EMULATORS = {"qemu-system-x86", "bochs-bin"}


def agent_at_work(tool: Tool, host: str) -> bool:
    """Whether a host has said something over the agent's line."""
    return any(log.stat().st_size for log in tool.runs.glob(f"*/hosts/{host}/boot-1/agent.log"))


def emulators_at_work(tool: Tool) -> bool:
    """Whether both are running, and an agent is: QEMU's is the first one and done first."""
    return agent_at_work(tool, "qemu-svm") and set(tool.processes().values()) >= EMULATORS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: signal.Signals(number).name)
def test_in_load(tool: Tool, kernel_build: Path, number: int) -> None:  # noqa: ARG001 (what the gate loads)
    process = tool.start("gate")
    wait_for(lambda: emulators_at_work(tool), process)
    # Hosts are at work from when modules are inspected on.
    interrupted(tool, process, "inspect", "load", number=number)


def test_killed_without_warning(tool: Tool, kernel_build: Path) -> None:  # noqa: ARG001
    """The kernel ends the emulators; the record is that of the moment."""
    process = tool.start("gate")
    wait_for(lambda: emulators_at_work(tool), process)
    handles = [os.pidfd_open(pid) for pid, name in tool.processes().items() if name in EMULATORS]
    process.kill()
    process.communicate(timeout=60)
    for handle in handles:
        assert select.select([handle], [], [], 30)[0], "an emulator outlived the tool"
        os.close(handle)
    record = tool.record()
    names = [stage["name"] for stage in record["stages"]]
    assert names[:4] == ["tree", "configure", "build", "inspect"]
    assert names[4:] in ([], ["load"])
    shown = tool.run("report", "latest")
    assert shown.returncode == 3
    assert shown.stdout.startswith("not finished")


def test_killed_after_an_order_came_to_its_end(tool: Tool, kernel_build: Path) -> None:  # noqa: ARG001
    """What was done by then is on record, though the load stage is not over; the next gate is not hindered."""
    orders = ["vendor-alone", "load-unload-load", "tdp-off", "tdp-off-then-on", "guests"]
    argv = ["gate", "--host", "qemu-svm", *(word for order in orders for word in ("--order", order))]
    process = tool.start(*argv)
    wait_for(lambda: any(path.stat().st_size for path in tool.runs.glob(f"*/{TRANSCRIPTS}")), process)
    process.kill()
    process.communicate(timeout=60)
    shown = tool.run("report", "latest", "--json")
    assert shown.returncode == 3
    record = json.loads(shown.stdout)
    assert record["verdict"] is None
    done = [(one["order"], one["status"]) for one in record["transcripts"]]
    # Two machines of a host take its orders: which one is done first is nobody's promise.
    assert done
    assert {order for order, _ in done} <= {*orders}
    assert {status for _, status in done} == {"PASS"}
    assert len(done) < len(orders)
    assert record["profile_files"].keys() >= {"default.toml", "orders/guests.toml", "hosts/qemu-svm.toml"}
    assert tool.run("gate", "--host", "qemu-svm", "--order", "vendor-alone").returncode == 0


def is_host(pid: int) -> bool:
    """Whether that emulator runs a guest, and is not only asked for its version."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return not {b"--version", b"/nonexistent"} & {*words}


@pytest.mark.parametrize(("program", "host"), [("qemu-system-x86", "qemu-svm"), ("bochs-bin", "bochs-vmx")])
def test_an_emulator_that_is_killed_says_nothing_about_the_kernel(
    tool: Tool,
    kernel_build: Path,  # noqa: ARG001
    program: str,
    host: str,
) -> None:
    process = tool.start("gate", "--json")
    wait_for(lambda: agent_at_work(tool, host), process)
    (pid,) = (pid for pid, name in tool.processes().items() if name == program and is_host(pid))
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3, err
    data = json.loads(out)
    assert data["verdict"] == "MISS"
    missed = [one for one in data["transcripts"] if one["status"] != "PASS"]
    assert [(one["host"], one["status"]) for one in missed] == [(host, "MISS")], (
        "the other orders got a boot of their own"
    )
    assert "was killed by SIGKILL" in missed[0]["reason"]
    assert not any(finding["status"] == "FAIL" and finding["known"] is None for finding in data["findings"])
