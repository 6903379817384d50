"""Protects gates over other machines' CPUs: the verdict is that of this machine alone, whatever becomes of a worker.

Scheduler and workers are Dask's own processes, each worker with a cache of its own, as on another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kbuild.paths import PROJECT
from tests.integration.conftest import Tool, build_modules, wait_for
from tests.integration.test_outcomes import write_order

pytestmark = pytest.mark.kernel

ORDERS = ("vendor-alone", "load-unload-load", "tdp-off", "wrong-vendor-first")
KVM = ("irqbypass.ko", "kvm.ko", "kvm-amd.ko", "kvm-intel.ko")
LONG = "twenty-cycles"
"""An order that is not over before something happens to its worker."""
UP_S = 60.0
EMULATORS = ("qemu", "bochs")


class Cluster:
    """A scheduler, and workers that come and go."""

    def __init__(self, tool: Tool, folder: Path) -> None:
        self._tool = tool
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[str]] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        argv = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
        self._start("scheduler", [str(PROJECT / ".venv/bin/python"), *argv], "Scheduler at:")

    def worker(self, name: str, *words: str) -> None:
        """Start one that takes one cell at a time, and wait until the scheduler knows it."""
        argv = self._tool.argv("worker", self.address, "--cpus", "1", "--name", name, *words)
        self._start(name, argv, "Registered to:")

    def cache(self, name: str) -> Path:
        """A worker's own."""
        return self.folder / name / "cache"

    def kill(self, name: str) -> None:
        """`kill -9` of all that a worker is, its nanny too; its emulators have to die by themselves."""
        process = self._processes.pop(name)
        for pid, program in self.processes(name).items():
            if not program.startswith(EMULATORS):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait(UP_S)

    def end(self, name: str) -> None:
        """`kill -9` of one process."""
        process = self._processes.pop(name)
        process.kill()
        process.wait(UP_S)

    def processes(self, name: str) -> dict[int, str]:
        """All that a worker is: process id to program."""
        mine = f"XDG_CACHE_HOME={self.cache(name)}".encode()
        return {pid: program for pid, program in self._tool.processes().items() if mine in _environment(pid)}

    def emulators(self, name: str) -> list[int]:
        """What runs on a worker."""
        return [pid for pid, program in self.processes(name).items() if program.startswith(EMULATORS)]

    def _start(self, name: str, argv: list[str], word: str) -> None:
        log = self.folder / f"{name}.log"
        home = {"XDG_CACHE_HOME": str(self.cache(name)), "XDG_STATE_HOME": str(self.folder / name / "state")}
        with log.open("w") as file:
            process = subprocess.Popen(
                argv,
                env={**self._tool.environment, **home},
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self._processes[name] = process
        wait_for(lambda: word in log.read_text(), process, UP_S)

    def close(self) -> None:
        """End them, the scheduler last."""
        for process in reversed(self._processes.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.fixture
def cluster(tool: Tool, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and no worker."""
    one = Cluster(tool, tmp_path)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def modules(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KVM's, and some that misbehave."""
    names = ("dt_loop", "dt_off", "dt_triple")
    sources = [PROJECT / f"tests/data/modules/{name}.c" for name in names]
    folder = build_modules(tmp_path_factory.mktemp("modules"), sources, kernel_source, kernel_build)
    for path in (*kernel_build.glob("arch/x86/kvm/*.ko"), kernel_build / "virt/lib/irqbypass.ko"):
        shutil.copy(path, folder)
    return folder


def load(modules: Path, kernel_build: Path, *words: str | Path) -> list[str | Path]:
    """The words of `inv load`."""
    kernel = kernel_build / "arch/x86/boot/bzImage"
    return ["load", "--modules", modules, "--kernel", kernel, "--host", "qemu-svm", *words]


def orders(*names: str | Path) -> list[str | Path]:
    return [word for name in names for word in ("--order", name)]


def outcome(record: dict[str, Any]) -> tuple[str, list[tuple[str, ...]]]:
    """The verdict, and of each order what makes it."""
    cells = [
        (one["host"], one["order"], one["status"], *(finding["id"] for finding in one.get("findings", ())))
        for one in record["transcripts"]
    ]
    return record["verdict"], cells


def sent(tool: Tool) -> list[tuple[str, str]]:
    """The files that the newest run gave to workers: SHA-256 and the worker's address."""
    events = [json.loads(line) for line in (tool.latest() / "log.jsonl").read_text().splitlines()]
    return [
        (event["digest"], worker) for event in events if event["event"] == "cluster.sent" for worker in event["workers"]
    ]


def logs(tool: Tool) -> list[str]:
    """The folders of the newest run's transcripts; each has its logs, be it a boot's or a snapshot's."""
    folders = [one["folder"] for one in tool.record()["transcripts"]]
    for folder in folders:
        assert (tool.latest() / "hosts" / folder / "agent.log").is_file()
    return folders


def test_a_killed_worker_loses_nothing(tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path) -> None:
    """The verdict is that of this machine alone; a kernel that goes down is the kernel's, a worker that does is not."""
    crash = write_order(cluster.folder, "off", "dt_off", "")
    words = load(modules, kernel_build, *orders(*ORDERS, crash, LONG))
    alone = tool.run(*words)
    assert alone.returncode == 10, alone.stdout + alone.stderr
    expected = outcome(tool.record())
    assert {status for _, _, status, *_ in expected[1]} == {"PASS", "FAIL"}

    cluster.worker("one")
    with tool.start(*words, "--cluster", cluster.address) as process:
        cluster.worker("two")
        wait_for(lambda: bool(cluster.emulators("one")), process)
        emulators = [os.pidfd_open(pid) for pid in cluster.emulators("one")]
        cluster.kill("one")
        out, err = process.communicate(timeout=300)
    assert process.returncode == 10, out + err
    assert outcome(tool.record()) == expected
    assert tool.record()["hosts"]["qemu-svm"].startswith("QEMU")
    for handle in emulators:
        assert select.select([handle], [], [], 10)[0], "an emulator outlived its worker"
    assert logs(tool)


def test_files_travel_once_and_by_content(tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path) -> None:
    """A worker that has a kernel from an earlier run is not sent it again, whatever another one lacks."""
    words = [*load(modules, kernel_build, *orders(*ORDERS)), "--cluster", cluster.address]
    for name in ("one", "two"):
        cluster.worker(name)
        assert tool.run(*words).returncode == 0
        assert len({*logs(tool)}) == len(ORDERS), "one worker alone takes them from a snapshot"
        given = sent(tool)
        assert len({worker for _, worker in given}) == 1
        assert len(given) == len(set(given)) > len(KVM)
        for digest, _ in given:
            assert (cluster.cache(name) / "kvm-kbuild/artifacts" / digest[:2] / digest).is_file()
    assert tool.run(*words).returncode == 0
    assert not sent(tool)


def test_ctrl_c_ends_what_workers_do(tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path) -> None:
    """No emulator goes on for a run that was interrupted; the worker takes the next one."""
    cluster.worker("one")
    with tool.start(*load(modules, kernel_build, *orders(LONG)), "--cluster", cluster.address) as process:
        wait_for(lambda: bool(cluster.emulators("one")), process)
        emulators = [os.pidfd_open(pid) for pid in cluster.emulators("one")]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    for handle in emulators:
        assert select.select([handle], [], [], 20)[0], "it goes on"
    assert tool.run(*load(modules, kernel_build, *orders("vendor-alone")), "--cluster", cluster.address).returncode == 0


def test_where_nobody_can_load_one_line_says_so(
    tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path
) -> None:
    """No scheduler, no address: nothing is begun."""
    words = load(modules, kernel_build, *orders("vendor-alone"))
    wrong = tool.run(*words, "--cluster", "lab:8786")
    assert (wrong.returncode, wrong.stderr) == (2, "'lab:8786' is no address of a Dask scheduler: tcp://HOST:PORT\n")
    cluster.close()
    nobody = tool.run(*words, "--cluster", cluster.address)
    assert nobody.returncode == 3
    assert f"--cluster {cluster.address}: no Dask scheduler answers there" in nobody.stdout


def test_a_scheduler_that_goes_away_is_said_in_one_line(
    tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path
) -> None:
    """Whoever waits for its workers does not wait for ever, and the run is none that passed."""
    cluster.worker("one")
    with tool.start(*load(modules, kernel_build, *orders(LONG)), "--cluster", cluster.address) as process:
        wait_for(lambda: bool(cluster.emulators("one")), process)
        cluster.end("scheduler")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, tool.record()["verdict"]) == (3, "MISS"), out
    assert "the Dask scheduler went away" in tool.record()["error"]
    assert "Traceback" not in err


@pytest.mark.usefixtures("all_kernels")
def test_a_cell_that_no_worker_can_take_is_given_up(
    tool: Tool, cluster: Cluster, modules: Path, kernel_build: Path, tmp_path: Path
) -> None:
    """Whether a machine in a lab's network is missing is said, with what would help; the others' cells go on."""
    cluster.worker("one")
    host = tmp_path / "far.toml"
    host.write_text(
        'id = "far"\nkind = "ssh"\ngives = ["amd", "svm"]\n[ssh]\ntarget = "far.invalid"\nnetwork = "lab-a"\n'
    )
    done = tool.run(*load(modules, kernel_build, *orders("vendor-alone"), "--host", host), "--cluster", cluster.address)
    assert done.returncode == 3
    near, far = tool.record()["transcripts"]
    assert near["status"] == "PASS"
    assert (far["status"], "none of the cluster's 1 workers has network-lab-a" in far["reason"]) == ("MISS", True)
