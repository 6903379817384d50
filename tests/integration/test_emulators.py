"""Both emulators boot a real kernel, lead both lines without losing a byte, and never outlive their user."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kbuild.hosts import bochs_debugger, cpu, qmp, spec
from kbuild.hosts.base import BootImage, Chunk, Machine
from kbuild.hosts.cpu import CpuSample
from kbuild.hosts.emulator import POWERED_OFF, REBOOTED, Emulator
from kbuild.hosts.initramfs import write_initramfs
from kbuild.paths import PROJECT

pytestmark = pytest.mark.kernel

WORDS = ("quiet", "mitigations=off", "nokaslr", "panic=-1")
PATIENCE = 60.0
"""Seconds after which a machine that says nothing is taken for dead; no test is about time."""

INIT = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

static char big[2000];

static void put(int fd, const char *data, size_t size)
{
    for (ssize_t n; size && (n = write(fd, data, size)) > 0; data += n, size -= n)
        ;
}

int main(void)
{
    static char line[8192];
    struct termios raw;
    FILE *in;
    int count, fd, console;

    mount("dev", "/dev", "devtmpfs", 0, 0);
    fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
    console = open("/dev/console", O_WRONLY | O_NOCTTY);
    tcgetattr(fd, &raw);
    cfmakeraw(&raw);
    cfsetspeed(&raw, B115200);
    tcsetattr(fd, TCSANOW, &raw);
    in = fdopen(fd, "r");
    memset(big, 'x', sizeof(big));
    big[sizeof(big) - 1] = '\n';
    put(fd, "hello\n", 6);
    while (fgets(line, sizeof(line), in)) {
        if (sscanf(line, "agent %d", &count) == 1)
            for (; count > 0; count--)
                put(fd, big, sizeof(big));
        if (sscanf(line, "console %d", &count) == 1)
            for (; count > 0; count--)
                put(console, big, sizeof(big));
        put(fd, line, strlen(line));
        tcdrain(fd);
        tcdrain(console);
        if (!strcmp(line, "off\n"))
            reboot(RB_POWER_OFF);
        if (!strcmp(line, "reboot\n"))
            reboot(RB_AUTOBOOT);
        if (!strcmp(line, "panic\n"))
            return 1;
        while (!strcmp(line, "spin\n"))
            ;
    }
    return 2;
}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, kernel_build: Path) -> BootImage:
    folder = tmp_path_factory.mktemp("image")
    (folder / "init.c").write_text(INIT)
    subprocess.run(["gcc", "-Os", "-static", "-w", "-o", folder / "init", folder / "init.c"], check=True)
    write_initramfs(folder / "initramfs", {"/init": folder / "init"})
    return BootImage(kernel_build / "arch/x86/boot/bzImage", folder / "initramfs", WORDS)


@pytest.fixture(params=["qemu-svm", "bochs-vmx"])
def host(request: pytest.FixtureRequest) -> spec.HostSpec:
    found = spec.read_host(PROJECT / "profiles" / "hosts" / f"{request.param}.toml")
    assert spec.check(found) == []
    return found


class Guest:
    """What a machine has said so far."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.agent = b""
        self.console = b""
        self.end: str | None = None

    def until(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not there():
            assert self.end is None, self.end
            assert time.monotonic() < deadline, (self.agent[-200:], self.console[-2000:])
            self.take(self.machine.receive(1))

    def take(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            assert self.end is None, "something came after the end"
            if chunk.source == "agent":
                self.agent += chunk.data
            elif chunk.source == "console":
                self.console += chunk.data
            else:
                self.end = chunk.data.decode()

    def hello(self) -> Guest:
        self.until(lambda: self.agent.startswith(b"hello\n"))
        self.agent = b""
        return self

    def until_said(self, count: int) -> None:
        self.until(lambda: len(self.agent) >= count)

    def until_end(self) -> str:
        self.until(lambda: self.end is not None)
        assert self.end is not None
        return self.end


def test_both_directions_and_a_power_off(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    sent = b"".join(b"%d %s\n" % (size, b"abcdefghij"[: size % 10] * (size // 5)) for size in (3, 99, 100, 400, 2001))
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        for line in sent.splitlines(keepends=True):
            before = guest.agent
            machine.send(line)
            guest.until_said(len(before + line))
        assert guest.agent == sent
        machine.send(b"off\n")
        assert POWERED_OFF in guest.until_end()
        # What the guest drained before its power-off is not lost.
        assert guest.agent == sent + b"off\n"
        machine.send(b"to nobody\n")
        assert machine.receive(PATIENCE) == []
    assert (tmp_path / "agent.log").read_bytes() == b"hello\n" + sent + b"off\n"
    assert (tmp_path / "console.log").read_bytes() == guest.console
    assert "console=ttyS0" in (tmp_path / "command.txt").read_text() or host.kind == "bochs"


def test_nothing_is_lost_when_nobody_reads_for_a_while(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    lines = 50
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        machine.send(b"agent %d\n" % lines)
        time.sleep(1)  # the point: this process is busy with something else
        guest.until(lambda: guest.agent.endswith(b"agent %d\n" % lines))
        assert guest.agent == (b"x" * 1999 + b"\n") * lines + b"agent %d\n" % lines


def test_a_panic_ends_the_machine(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        machine.send(b"panic\n")
        assert REBOOTED in guest.until_end()
        assert b"Kernel panic - not syncing: Attempted to kill init!" in guest.console


def test_a_reboot_ends_the_machine(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        machine.send(b"reboot\n")
        assert REBOOTED in guest.until_end()


def test_an_emulator_killed_from_outside_is_told(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        assert isinstance(machine, Emulator)
        os.kill(machine.pid, signal.SIGKILL)
        assert "SIGKILL" in guest.until_end()


def test_a_cpu_that_the_emulator_does_not_know(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    changed = msgspec.structs.replace(
        host,
        qemu=host.qemu and msgspec.structs.replace(host.qemu, cpu="NoSuchCpu"),
        bochs=host.bochs and msgspec.structs.replace(host.bochs, model="no_such_cpu"),
    )
    with spec.start(changed, image, tmp_path) as machine:
        end = Guest(machine).until_end()
    assert "status 1" in end
    assert "no_such_cpu" in end or "NoSuchCpu" in end


def test_stop_from_another_thread_ends_a_wait(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        stopper = threading.Timer(0.1, machine.stop)
        stopper.start()
        assert "stopped" in guest.until_end()
        stopper.join()
        machine.stop()
        assert machine.receive(PATIENCE) == []


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_a_machine_leaves_nothing_behind(
    host: spec.HostSpec, image: BootImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    before = open_files()
    with spec.start(host, image, tmp_path / "logs") as machine:
        Guest(machine).hello()
    assert list(private.iterdir()) == []
    assert open_files() == before


def test_an_emulator_dies_with_its_user(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    program = f"""
        import pathlib, msgspec
        from kbuild.hosts import base, spec
        host = msgspec.json.decode({msgspec.json.encode(host)!r}, type=spec.HostSpec)
        image = base.BootImage(pathlib.Path({str(image.kernel)!r}), pathlib.Path({str(image.initramfs)!r}), {WORDS!r})
        with spec.start(host, image, pathlib.Path({str(tmp_path)!r})) as machine:
            while not any(chunk.source == "agent" for chunk in machine.receive(60)):
                pass
            print(machine.pid, flush=True)
            machine.receive(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as user:
        assert user.stdout is not None
        emulator = os.pidfd_open(int(user.stdout.readline()))
        user.kill()
    assert select.select([emulator], [], [], PATIENCE)[0]
    os.close(emulator)


def test_a_flood_of_the_console_is_led_through(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    lines = 40
    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        guest.console = b""
        machine.send(b"console %d\n" % lines)
        guest.until(lambda: guest.agent.endswith(b"console %d\n" % lines))
        machine.send(b"off\n")
        guest.until_end()
        # The console's tty makes \r\n of \n, and the kernel's own last words may stand in between.
        assert guest.console.count(b"x") >= lines * 1999


def test_the_cpu_is_looked_at_while_it_runs(host: spec.HostSpec, image: BootImage, tmp_path: Path) -> None:
    """And runs on as if nothing had been: what was said meanwhile comes, and what is asked later is answered."""

    def sees(machine: Machine, wanted: Callable[[CpuSample], bool]) -> CpuSample:
        deadline = time.monotonic() + PATIENCE
        while (sample := machine.sample()) is None or not wanted(sample):
            assert sample is not None
            assert time.monotonic() < deadline, sample
        return sample

    with spec.start(host, image, tmp_path) as machine:
        guest = Guest(machine).hello()
        idle = sees(machine, lambda sample: sample.halted)
        assert (idle.user, idle.interrupts) == (False, True)
        assert idle.at.address >= cpu.KERNEL
        assert idle.at.address - idle.at.start == cpu.AROUND
        assert len(idle.at.data) == 2 * cpu.AROUND
        machine.send(b"agent 20\n")
        while not guest.agent.endswith(b"agent 20\n"):
            assert machine.sample() is not None
            guest.take(machine.receive(0.01))
        assert guest.agent == (b"x" * 1999 + b"\n") * 20 + b"agent 20\n"
        machine.send(b"spin\n")
        spinning = sees(machine, lambda sample: sample.user)
        assert (spinning.halted, spinning.interrupts, spinning.callers) == (False, True, ())


def test_an_emulator_that_is_stopped_cannot_be_looked_at(
    host: spec.HostSpec, image: BootImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "MONITOR_S", 0.2)
    monkeypatch.setattr(bochs_debugger, "ANSWER_S", 0.2)
    with spec.start(host, image, tmp_path) as machine:
        Guest(machine).hello()
        assert isinstance(machine, Emulator)
        before = machine.starved()
        os.kill(machine.pid, signal.SIGSTOP)
        assert machine.sample() is None
        deadline = time.monotonic() + PATIENCE
        while machine.starved() < before + 1:
            assert time.monotonic() < deadline
            machine.receive(0.1)


def test_machines_from_a_snapshot_know_nothing_of_each_other(
    host: spec.HostSpec, image: BootImage, tmp_path: Path
) -> None:
    """Each goes on where the first one was, and what one does is no other one's; a host without it just runs on."""
    with spec.start(host, image, tmp_path / "first") as first:
        guest = Guest(first).hello()
        snapshot = first.snapshot()
        assert (snapshot is None) == (host.kind == "bochs")
        if snapshot is None:
            first.send(b"agent 1\n")
            guest.until(lambda: guest.agent.endswith(b"agent 1\n"))
            return
        guest.take(first.receive(PATIENCE))
        assert guest.end is not None, "the first one has ended"
        try:
            with snapshot.start(tmp_path / "broken") as machine:
                machine.send(b"panic\n")
                assert Guest(machine).until_end().endswith(REBOOTED)
            with snapshot.start(tmp_path / "one") as one, snapshot.start(tmp_path / "other") as other:
                for machine, count in ((one, 3), (other, 5)):
                    machine.send(b"agent %d\n" % count)
                for machine, count in ((one, 3), (other, 5)):
                    whole = (b"x" * 1999 + b"\n") * count + b"agent %d\n" % count
                    guest = Guest(machine)
                    while len(guest.agent) < len(whole):
                        guest.take(machine.receive(PATIENCE))
                    assert guest.agent == whole
        finally:
            snapshot.close()
