"""Bochs as Debian ships it (2.7): emulates VMX and SVM, boots from a CD, and is made to keep quiet.

What its settings are for, and how its lines are led, is in docs/hosts.md; each was measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import tty
from pathlib import Path

from kbuild import command, log
from kbuild.errors import HarnessError
from kbuild.hosts import cpu, disk
from kbuild.hosts.base import BootImage
from kbuild.hosts.bochs_debugger import Debugger
from kbuild.hosts.cpu import CpuSample
from kbuild.hosts.emulator import POWERED_OFF, REBOOTED, TRIPLE_FAULT, Emulator, Lines, Tail
from kbuild.hosts.qemu import CONSOLE, kernel_words
from kbuild.hosts.spec import BochsSettings, HostSpec
from kbuild.paths import make_folder, write_atomically

PROGRAM = "bochs"
BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA_BIOS = Path("/usr/share/bochs/VGABIOS-lgpl-latest")
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
MAX_SCREEN = 1 << 16
"""Bytes of the screen's last output that are kept, as evidence where the serial lines say nothing."""
PIPE_SIZE = 1 << 20
"""What may wait on the agent's line while this process is busy: Bochs does not wait, it loses bytes."""
GRACE_S = 2.0
CD_SIZE = 100 << 20
"""Bytes, the rest a hole. Bochs' drive seeks for 80 ms over the whole of a CD (iodev/harddrv.cc, start_seek()),
so the next sector is far away on a small one, and the guest waits for it: a tenth of the boot."""

_SCREEN = re.compile(rb'Bochs connected to screen "(/dev/pts/\d+)"')
_RESET = re.compile(rb"\[SYS +\] bx_pc_system_c::Reset\(\w+\) called")
_LAST_WORDS = re.compile(r"Bochs is exiting with the following message:\n(.*)")
_BAD_LINE = re.compile(r"bochsrc:(\d+):")

# Paths are relative to the machine's private folder, so that none has to be quoted.
_CONFIGURATION = """\
config_interface: textconfig
# The only display that opens no port. It brings a terminal of its own.
display_library: term
romimage: file={bios}, options=fastboot
vgaromimage: file={vga_bios}
# Without speaker: it starts two threads and looks for a sound card.
plugin_ctrl: unmapped=true, biosdev=true, speaker=false, extfpuirq=true, parallel=false, serial=true, gameport=false, \
iodebug=false
sound: waveoutdrv=dummy
cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=1
megs: {memory_mb}
clock: sync=none
pci: enabled=1, chipset=i440fx
ata0-master: type=cdrom, path=boot.iso, status=inserted
{disk}
boot: cdrom
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=term, dev={agent}
panic: action=fatal
# A 6.1 kernel reads an unknown MSR in each tick, and each would be a line.
error: action=report, cpu0=ignore
# This one tells of resets: there is no -no-reboot.
info: action=ignore, pc_system=report
debug: action=ignore
log: /dev/stderr
"""

_DISK = "ata0-slave: type=disk, mode=flat, path=disk, cylinders={cylinders}, heads={heads}, spt={sectors}"
_NO_DISK = "# No disk: all is in the initramfs."

_BOOT_MENU = """\
DEFAULT kernel
PROMPT 0
LABEL kernel
 KERNEL /kernel
 INITRD /initrd
 APPEND {words}
"""


def missing() -> list[str]:
    """See `spec.check`."""
    packages = {"bochs": "bochs", "xorriso": "xorriso", "cat": "coreutils"}
    lacks = [
        f"{program} is not installed (Debian: {package})"
        for program, package in packages.items()
        if shutil.which(program) is None
    ]
    files = {BIOS: "bochsbios", VGA_BIOS: "bochsbios", ISOLINUX: "isolinux", LDLINUX: "syslinux-common"}
    lacks += [f"{file} is missing (Debian: {package})" for file, package in files.items() if not file.exists()]
    if not any(Path("/usr/lib").glob("*/bochs/plugins/libbx_term_gui.so*")):
        lacks.append("Bochs has no 'term' display (Debian: bochs-term)")
    return lacks


def version() -> str:
    """Such as `Bochs x86 Emulator 2.7`. It says so only where it is about to start, which a missing file prevents."""
    output = command.run([PROGRAM, "-q", "-f", "/nonexistent"], timeout=10, check=False).output
    found = re.search(r"Bochs x86 Emulator \S+", output)
    if found is None:
        raise HarnessError(f"{PROGRAM} does not say its version")
    return found[0]


def start(spec: HostSpec, image: BootImage, folder: Path) -> BochsMachine:
    """See `spec.start`."""
    if spec.bochs is None:
        raise ValueError(f"host {spec.id} is not of kind bochs")
    if lacks := missing():
        raise HarnessError(f"host {spec.id}: {lacks[0]}")
    cleanup = contextlib.ExitStack()
    try:
        private = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="kvm-kbuild-")))
        write_iso(private / "boot.iso", image)
        if image.disk:
            (private / "disk").symlink_to(image.disk.absolute())
        return BochsMachine(spec, spec.bochs, private, make_folder(folder), cleanup)
    except BaseException:
        cleanup.close()
        raise


def write_iso(path: Path, image: BootImage) -> None:
    """A CD that boots `image` with isolinux. Raises HarnessError when xorriso fails."""
    menu = _BOOT_MENU.format(words=kernel_words([CONSOLE, *image.command_line]))
    write_atomically(path.with_name("isolinux.cfg"), menu)
    files = {
        "/isolinux.bin": ISOLINUX,
        "/ldlinux.c32": LDLINUX,
        "/isolinux.cfg": path.with_name("isolinux.cfg"),
        "/kernel": image.kernel.absolute(),
        "/initrd": image.initramfs.absolute(),
    }
    # The first free `=` parts the name on the CD from the file's.
    grafts = [name + "=" + re.sub(r"([=\\])", r"\\\1", str(file)) for name, file in files.items()]
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    command.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", path, *boot, "-graft-points", *grafts], timeout=60)
    try:
        os.truncate(path, max(CD_SIZE, path.stat().st_size))
    except OSError as error:
        raise HarnessError(f"{path}: cannot be made larger: {error.strerror}") from None


class BochsMachine(Emulator):
    """A running Bochs: the console comes through a FIFO, the agent's line through a pseudo-terminal."""

    def __init__(
        self, spec: HostSpec, settings: BochsSettings, private: Path, folder: Path, cleanup: contextlib.ExitStack
    ) -> None:
        self._fifo = private / "console"
        os.mkfifo(self._fifo, 0o600)
        console = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        cleanup.callback(os.close, console)
        agent, commands, self._terminal = _terminal_as_pipes(cleanup)
        self._terminal_open = True
        cleanup.callback(self.ended)
        self._cpus = spec.cpus
        self._debugger = Debugger(cleanup)
        self._screen = Tail(MAX_SCREEN)
        self._screen_open = False
        self._resets = 0
        self._unsearched = b""
        self._at_end = cleanup
        cleanup.callback(self._keep_screen, folder / "bochs-screen.log")
        configuration = _CONFIGURATION.format(
            bios=BIOS,
            vga_bios=VGA_BIOS,
            model=settings.model,
            ips=settings.ips,
            cpus=spec.cpus,
            memory_mb=spec.memory_mb,
            agent=os.ttyname(self._terminal),
            disk=_DISK.format(cylinders=disk.CYLINDERS, heads=disk.HEADS, sectors=disk.SECTORS)
            if (private / "disk").exists()
            else _NO_DISK,
        )
        self._configuration = configuration.splitlines()
        write_atomically(private / "bochsrc", configuration)
        write_atomically(folder / "bochsrc", configuration)
        # Debian's Bochs has its debugger built in, which waits for a command.
        write_atomically(private / "continue", "c\n")
        super().__init__(
            [PROGRAM, "-q", "-f", "bochsrc", "-rc", "continue"],
            Lines(console, agent, commands),
            folder,
            cleanup,
            # ncurses needs a terminal that it knows everywhere.
            env={"TERM": "vt100"},
            cwd=private,
            stdin=self._debugger.stdin,
        )

    def sample(self) -> CpuSample | None:
        """See `Machine.sample`."""
        if self._cpus > 1:
            return None
        try:
            with self._debugger.halted(self._interrupt, self.wait_for):
                registers = self._debugger.registers(self.wait_for)
                return cpu.take(registers, lambda at, size: self._debugger.memory(at, size, self.wait_for))
        except HarnessError as error:
            log.get().warning("emulator.no-sample", reason=str(error))
            return None

    def pause(self) -> None:
        """See `Machine.pause`. Its clock counts instructions: an idle guest's runs ahead, and takes a CPU for it."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """See `Machine.resume`."""
        self.send_signal(signal.SIGCONT)

    def _interrupt(self) -> None:
        """Make Bochs stop at its debugger's prompt; its guest sees nothing of it."""
        self.send_signal(signal.SIGINT)

    def said(self, data: bytes) -> None:
        """Watch for the screen's terminal, and for a reset: the second one is a reboot of the guest."""
        self._debugger.said(data)
        *lines, self._unsearched = (self._unsearched + data)[-MAX_SCREEN:].split(b"\n")
        for line in lines:
            if not self._screen_open and (found := _SCREEN.search(line)):
                self._watch_screen(Path(os.fsdecode(found[1])))
            elif _RESET.search(line):
                self._resets += 1
                if self._resets == 2:
                    self.end(REBOOTED)

    def ended(self) -> None:
        """Let go of the agent's terminal: now its pipes come to their end."""
        if self._terminal_open:
            self._terminal_open = False
            os.close(self._terminal)
            # Bochs opens the FIFO at the console's first byte; one that never had a writer has no end.
            os.close(os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def guest_did(self) -> str:
        """Bochs takes a power-off and a triple fault for panics of its own, with status 1."""
        words = self.last_words()
        if words.endswith("ACPI control: soft power off"):
            return POWERED_OFF
        # cpu/exception.cc: `exception(): 3rd (13) exception with no resolution`
        return TRIPLE_FAULT if "exception with no resolution" in words else ""

    def last_words(self) -> str:
        """What Bochs says of its end: such as a triple fault."""
        found = list(_LAST_WORDS.finditer(self._said.data.decode("utf-8", "replace")))
        words = found[-1][1].strip() if found else super().last_words()
        if at := _BAD_LINE.search(words):  # it says which line it could not read, and not what stands there
            words += f" ({self._configuration[int(at[1]) - 1]})"
        return words

    def _watch_screen(self, path: Path) -> None:
        """Read the terminal that Bochs draws its screen on; a full one would make it wait for ever.

        Nobody has set it up: as it is, it would hand what is drawn back to Bochs, as if typed.
        """
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._at_end.callback(os.close, handle)
            # It keeps this terminal for as long as it lives; after that the name may be somebody else's.
            if self.alive():
                self._screen_open = True
                tty.setraw(handle)
                self.watch(handle, self._screen.add)

    def _keep_screen(self, path: Path) -> None:
        with contextlib.suppress(HarnessError):
            write_atomically(path, bytes(self._screen.data))


def _terminal_as_pipes(cleanup: contextlib.ExitStack) -> tuple[int, int, int]:
    """A pseudo-terminal for Bochs: a pipe from it, a pipe to it, and the side that Bochs opens by its name.

    Bochs (iodev/serial.cc) writes to it without waiting and drops what does not fit, some 20 KB, which
    it fills in a tenth of a second. So `cat` reads it, which does nothing else, into a large pipe.
    """
    master, slave = pty.openpty()
    try:
        tty.setraw(slave)
        from_agent, to_us = os.pipe()
        with contextlib.suppress(OSError):  # a smaller one than asked for works too
            fcntl.fcntl(from_agent, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        from_us, to_agent = os.pipe()
        for handle in (from_agent, to_agent):
            os.set_blocking(handle, False)
            cleanup.callback(os.close, handle)
        for source, sink in ((master, to_us), (from_us, master)):
            cat = subprocess.Popen(
                command.leashed(["cat"]), stdin=source, stdout=sink, stderr=subprocess.DEVNULL, process_group=0
            )
            cleanup.callback(_end, cat)
        os.close(to_us)
        os.close(from_us)
    except BaseException:
        os.close(slave)
        raise
    finally:
        os.close(master)
    return from_agent, to_agent, slave


def _end(cat: subprocess.Popen[bytes]) -> None:
    cat.kill()
    cat.wait(GRACE_S)
