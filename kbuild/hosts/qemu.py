"""QEMU without KVM (TCG): boots a kernel directly, emulates SVM and no VMX (7.2)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kbuild import command, log
from kbuild.errors import HarnessError, UserError
from kbuild.hosts import cpu
from kbuild.hosts.base import BootImage
from kbuild.hosts.cpu import CpuSample, Registers
from kbuild.hosts.emulator import POWERED_OFF, REBOOTED, Emulator, Lines
from kbuild.hosts.spec import HostSpec
from kbuild.paths import make_folder

PROGRAM = "qemu-system-x86_64"
MONITOR_S = 5.0
"""A monitor that does not answer in this time will not."""
MAX_ANSWER = 1 << 20
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
        # /dev/kvm being there says nothing about nested virtualization.
        *("-accel", "tcg", "-machine", spec.qemu.machine, "-cpu", spec.qemu.cpu),
        *("-smp", str(spec.cpus), "-m", str(spec.memory_mb)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", kernel_words([CONSOLE, NO_TIMER_CHECK, *image.command_line])),
    ]
    if image.disk:
        # A comma in an option's value is written twice.
        file = str(image.disk).replace(",", ",,")
        argv += ["-drive", f"if=none,id=disk,format=raw,file={file}", "-device", "ide-hd,bus=ide.0,unit=1,drive=disk"]
    cleanup = contextlib.ExitStack()
    try:
        return QemuMachine(argv, spec.cpus, make_folder(folder), cleanup)
    except BaseException:
        cleanup.close()
        raise


class QemuMachine(Emulator):
    """A running QEMU. All lines are socket pairs: no port, no name in the file system, nothing to remove."""

    def __init__(self, argv: Sequence[str], cpus: int, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self._cpus = cpus
        console, console_end = _pair(cleanup)
        agent, agent_end = _pair(cleanup)
        self._monitor, monitor_end = _pair(cleanup)
        self._asking = threading.Lock()
        self._heard = bytearray()
        self._shutdown = ""
        commands = os.dup(agent.fileno())
        cleanup.callback(os.close, commands)
        ends = (console_end, agent_end, monitor_end)
        devices = [
            *("-chardev", f"socket,id=console,fd={console_end.fileno()}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,fd={agent_end.fileno()}", "-serial", "chardev:agent"),
            *("-chardev", f"socket,id=qmp,fd={monitor_end.fileno()}", "-mon", "chardev=qmp,mode=control"),
        ]
        super().__init__(
            [*argv, *devices],
            Lines(console.fileno(), agent.fileno(), commands),
            folder,
            cleanup,
            pass_fds=[end.fileno() for end in ends],
            by_hand=shlex.join([*argv, "-serial", "mon:stdio", "-serial", "pty"]),
        )
        for end in ends:
            end.close()
        # Before this QEMU sends no event, and SHUTDOWN is one.
        self._monitor.send(b'{"execute": "qmp_capabilities"}\n')

    def sample(self) -> CpuSample | None:
        """See `Machine.sample`."""
        if self._cpus > 1:
            return None
        try:
            self._ask("stop")
            try:
                found = dict(_REGISTER.findall(self._monitor_says("info registers")))
                rip, rsp, flags, cpl, halted = (int(found[name], 16) for name in ("RIP", "RSP", "RFL", "CPL", "HLT"))
                registers = Registers(rip, rsp, cpl == 3, bool(flags & _INTERRUPTS), bool(halted))
                return cpu.take(registers, self._memory)
            finally:
                self._ask("cont")
        except (HarnessError, KeyError) as error:
            log.get().warning("emulator.no-sample", reason=str(error))
            return None

    def _memory(self, address: int, size: int) -> bytes:
        # `ADDRESS: 0x12 0x34 …`; an address that is not mapped ends it with a sentence.
        text = self._monitor_says(f"x/{size}xb {address:#x}")
        lines = (line.partition(": ") for line in text.splitlines())
        return bytes(int(byte, 16) for _, _, data in lines for byte in _MEMORY.findall(data))

    def _monitor_says(self, line: str) -> str:
        return str(self._ask("human-monitor-command", {"command-line": line}))

    def _ask(self, command: str, arguments: dict[str, str] | None = None) -> Any:
        """What QEMU's monitor returns for a command. Raises HarnessError when it does not answer."""
        request = {"execute": command, "arguments": arguments or {}, "id": command}
        try:
            with self._asking:
                self._monitor.settimeout(MONITOR_S)
                self._monitor.sendall(json.dumps(request).encode() + b"\n")
                while True:
                    for message in self._messages():
                        if message.get("id") == command:
                            return message.get("return", message.get("error"))
        except OSError as error:
            raise HarnessError(f"{PROGRAM}: its monitor does not answer: {error}") from None

    def guest_did(self) -> str:
        """The monitor tells what made QEMU end (qapi/run-state.json, ShutdownCause)."""
        with contextlib.suppress(OSError), self._asking:
            self._monitor.settimeout(0)
            while True:
                self._messages()
        return {"guest-shutdown": POWERED_OFF, "guest-reset": REBOOTED}.get(self._shutdown, "")

    def _messages(self) -> list[dict[str, Any]]:
        """The monitor's next messages. Raises OSError when there is none in time, or no monitor."""
        data = self._monitor.recv(1 << 16)
        if not data or len(self._heard) > MAX_ANSWER:
            raise ConnectionError("it is gone")
        self._heard += data
        *lines, rest = self._heard.split(b"\n")
        self._heard = rest
        messages = [json.loads(line) for line in lines if line.strip()]
        for message in messages:
            if message.get("event") == "SHUTDOWN":
                self._shutdown = str(message.get("data", {}).get("reason", ""))
        return messages


def _pair(cleanup: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Our end, which does not block, and QEMU's."""
    ours, its = socket.socketpair()
    cleanup.callback(ours.close)
    cleanup.callback(its.close)
    ours.setblocking(False)
    return ours, its
