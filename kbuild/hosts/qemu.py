"""QEMU without KVM (TCG): boots a kernel directly, emulates SVM and no VMX (7.2)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from kbuild import command, log
from kbuild.errors import HarnessError, UserError
from kbuild.hosts import cpu
from kbuild.hosts.base import BootImage
from kbuild.hosts.cpu import CpuSample, Registers
from kbuild.hosts.emulator import POWERED_OFF, REBOOTED, Emulator, Lines
from kbuild.hosts.qmp import Monitor
from kbuild.hosts.spec import HostSpec
from kbuild.paths import make_folder

PROGRAM = "qemu-system-x86_64"
MIGRATION = {
    "capabilities": [
        {"capability": "events", "state": True},
        # Memory that is a shared file stays where it is: only the devices' state is written, some 300 KiB.
        {"capability": "x-ignore-shared", "state": True},
    ]
}
MIGRATION_S = 60.0
"""It takes some hundredths of a second; a machine may be busy."""
ONE_THREAD = "tcg,thread=single"
"""CPUs take turns in one thread. With a thread each (QEMU 7.2), one was seen to run a breakpoint that the other had
taken away again: an int3 oops in finish_task_switch(), where the kernel switches a static branch; once in 30 runs."""
CONSOLE = "console=ttyS0"
NO_TIMER_CHECK = "no_timer_check"
"""The kernel waits for ten ticks by the TSC, which runs on while this process does not get to run, and panics when they
do not come (arch/x86/kernel/apic/io_apic.c, timer_irq_works()): on a busy machine it was seen to."""

_REGISTER = re.compile(r"\b(RIP|RSP|RFL|CPL|HLT)\s*=\s*([0-9a-f]+)")
_MEMORY = re.compile(r"\b0x([0-9a-f]{2})\b(?!:)")
_INTERRUPTS = 1 << 9
"""EFLAGS.IF."""


def missing() -> list[str]:
    """See `spec.check`."""
    return [] if shutil.which(PROGRAM) else [f"{PROGRAM} is not installed (Debian: qemu-system-x86)"]


def version() -> str:
    """Such as `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`."""
    return command.run([PROGRAM, "--version"], timeout=10).output.partition("\n")[0]


def kernel_words(words: Sequence[str]) -> str:
    """A kernel command line. Raises UserError for a word that would become several, or a line of another file."""
    for word in words:
        if not word or not word.isascii() or not word.isprintable() or " " in word:
            raise UserError(f"{word!r} can not be a word of the kernel command line")
    return " ".join(words)


def start(spec: HostSpec, image: BootImage, folder: Path) -> QemuMachine:
    """See `spec.start`."""
    if spec.qemu is None:
        raise ValueError(f"host {spec.id} is not of kind qemu")
    if lacks := missing():
        raise HarnessError(f"host {spec.id}: {lacks[0]}")
    argv = [
        PROGRAM,
        # Nothing that this machine's configuration or QEMU's defaults would add, no network above all.
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", ONE_THREAD if spec.qemu.accel == "tcg" and spec.cpus > 1 else spec.qemu.accel),
        *("-cpu", spec.qemu.cpu),
        *("-smp", str(spec.cpus), "-m", str(spec.memory_mb)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", kernel_words([CONSOLE, NO_TIMER_CHECK, *image.command_line])),
    ]
    if image.disk:
        # A comma in an option's value is written twice.
        file = str(image.disk).replace(",", ",,")
        argv += ["-drive", f"if=none,id=disk,format=raw,file={file}", "-device", "ide-hd,bus=ide.0,unit=1,drive=disk"]
    settings = _Settings(tuple(argv), spec.qemu.machine, spec.memory_mb, spec.cpus)
    cleanup = contextlib.ExitStack()
    with closed_if_raised(cleanup):
        # With a name only in /proc: its pages go with the last one who has it open.
        memory = os.memfd_create("guest")
        cleanup.callback(os.close, memory)
        return QemuMachine(settings, memory, make_folder(folder), cleanup)


@contextlib.contextmanager
def closed_if_raised(cleanup: contextlib.ExitStack) -> Iterator[None]:
    """What was made so far goes when the rest cannot be made."""
    try:
        yield
    except BaseException:
        cleanup.close()
        raise


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the machines of one snapshot have in common."""

    argv: tuple[str, ...]
    machine: str
    memory_mb: int
    cpus: int

    def command(self, memory: int, *, own: bool) -> list[str]:
        """With guest memory in that file; with `own`, changes to it stay this machine's."""
        share = "off" if own else "on"
        file = f"memory-backend-file,id=ram,size={self.memory_mb}M,mem-path=/proc/self/fd/{memory},share={share}"
        return [*self.argv, "-object", file, "-machine", f"{self.machine},memory-backend=ram"]

    @property
    def by_hand(self) -> str:
        """To boot such a machine from a shell."""
        return shlex.join([*self.argv, "-machine", self.machine, "-serial", "mon:stdio", "-serial", "pty"])


class QemuMachine(Emulator):
    """A running QEMU. All lines are socket pairs: no port, no name in the file system, nothing to remove."""

    clock_goes_on = True

    def __init__(
        self, settings: _Settings, memory: int, folder: Path, cleanup: contextlib.ExitStack, *, restores: bool = False
    ) -> None:
        """`memory`: the file that is or, where it `restores`, that becomes the guest's memory."""
        self._settings = settings
        self._memory_file = memory
        console, console_end = _pair(cleanup)
        agent, agent_end = _pair(cleanup)
        monitor, monitor_end = _pair(cleanup)
        commands = os.dup(agent.fileno())
        cleanup.callback(os.close, commands)
        ends = (console_end, agent_end, monitor_end)
        devices = [
            *("-chardev", f"socket,id=console,fd={console_end.fileno()}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,fd={agent_end.fileno()}", "-serial", "chardev:agent"),
            *("-chardev", f"socket,id=qmp,fd={monitor_end.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *(("-incoming", "defer") if restores else ()),
        ]
        super().__init__(
            [*settings.command(memory, own=restores), *devices],
            Lines(console.fileno(), agent.fileno(), commands),
            folder,
            cleanup,
            pass_fds=[*(end.fileno() for end in ends), memory],
            by_hand=settings.by_hand,
        )
        for end in ends:
            end.close()
        self._monitor = Monitor(monitor)

    def restore(self, saved: int) -> None:
        """Become the guest whose state is in this file, and go on with it. Raises HarnessError when that fails."""
        self._monitor.ask("migrate-set-capabilities", MIGRATION)
        self._monitor.ask("getfd", {"fdname": "state"}, [saved])
        self._monitor.ask("migrate-incoming", {"uri": "fd:state"})
        if not self._monitor.migrated(MIGRATION_S):
            raise HarnessError(f"{PROGRAM}: the snapshot was not read")

    def sample(self) -> CpuSample | None:
        """See `Machine.sample`."""
        if self._settings.cpus > 1:
            return None
        try:
            self._monitor.ask("stop")
            try:
                found = dict(_REGISTER.findall(self._monitor.says("info registers")))
                rip, rsp, flags, cpl, halted = (int(found[name], 16) for name in ("RIP", "RSP", "RFL", "CPL", "HLT"))
                registers = Registers(rip, rsp, cpl == 3, bool(flags & _INTERRUPTS), bool(halted))
                return cpu.take(registers, self._memory)
            finally:
                self._monitor.ask("cont")
        except (HarnessError, KeyError) as error:
            log.get().warning("emulator.no-sample", reason=str(error))
            return None

    def _memory(self, address: int, size: int) -> bytes:
        # `ADDRESS: 0x12 0x34 …`; an address that is not mapped ends it with a sentence.
        text = self._monitor.says(f"x/{size}xb {address:#x}")
        lines = (line.partition(": ") for line in text.splitlines())
        return bytes(int(byte, 16) for _, _, data in lines for byte in _MEMORY.findall(data))

    def guest_did(self) -> str:
        """The monitor tells what made QEMU end."""
        reason = self._monitor.shutdown_reason()
        return {"guest-shutdown": POWERED_OFF, "guest-reset": REBOOTED}.get(reason, "")

    def snapshot(self) -> QemuSnapshot | None:
        """See `Machine.snapshot`."""
        saved = os.memfd_create("state")
        try:
            self._monitor.ask("migrate-set-capabilities", MIGRATION)
            self._monitor.ask("getfd", {"fdname": "state"}, [saved])
            self._monitor.ask("migrate", {"uri": "fd:state"})
            if not self._monitor.migrated(MIGRATION_S):
                raise HarnessError("QEMU could not save its state")
        except HarnessError as error:
            os.close(saved)
            log.get().warning("emulator.no-snapshot", reason=str(error))
            return None
        # From here on the guest stands still: its memory is the snapshot's.
        memory = os.dup(self._memory_file)
        self.stop()
        return QemuSnapshot(self._settings, memory, saved)


class QemuSnapshot:
    """A guest at one moment; see `Snapshot`. Its memory is one file that each machine maps as its own copy."""

    def __init__(self, settings: _Settings, memory: int, saved: int) -> None:
        self._settings = settings
        self._memory = memory
        self._saved = saved

    def start(self, folder: Path) -> QemuMachine:
        """See `Snapshot.start`."""
        cleanup = contextlib.ExitStack()
        with log.timed("emulator.restore"), closed_if_raised(cleanup):
            memory = os.dup(self._memory)
            cleanup.callback(os.close, memory)
            machine = QemuMachine(self._settings, memory, make_folder(folder), cleanup, restores=True)
            try:
                # With a position of its own, for each machine reads all of it.
                saved = os.open(f"/proc/self/fd/{self._saved}", os.O_RDONLY)
                try:
                    machine.restore(saved)
                finally:
                    os.close(saved)
            except BaseException:
                machine.stop()
                raise
        return machine

    def close(self) -> None:
        """See `Snapshot.close`."""
        os.close(self._memory)
        os.close(self._saved)


def _pair(cleanup: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Our end, which does not block, and QEMU's."""
    ours, its = socket.socketpair()
    cleanup.callback(ours.close)
    cleanup.callback(its.close)
    ours.setblocking(False)
    return ours, its
