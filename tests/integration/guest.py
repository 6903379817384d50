"""A Debian system in QEMU, with systemd and sshd: somebody's machine, for the tests.

It is reached over loopback, its serial line is its console, and the emulator's monitor switches its power. Its disk,
from which GRUB boots it, is made once, from Debian's packages, and kept in the cache, with the memory of a machine that
has booted from it: each machine begins there, and writes to a copy of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild.paths import cache_home, locked, make_folder

SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "openssh-server", "sudo", "kmod", "kexec-tools", "iproute2"),
    *("procps", "util-linux", "linux-image-amd64", "initramfs-tools", "zstd", "grub2-common", "grub-pc-bin"),
)
RECIPE = 3
"""Counted up where what is made below changes."""
UNUSED = (
    *("e2scrub_reap.service", "systemd-logind.service", "getty@tty1.service", "serial-getty@ttyS0.service"),
    *("systemd-update-utmp.service", "sys-fs-fuse-connections.mount", "modprobe@fuse.service", "modprobe@drm.service"),
    *("kexec-load.service", "kexec.service", "apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer"),
    *("e2scrub_all.timer", "fstrim.timer"),
)
"""Masked: an emulated CPU takes a third of each boot for what no test asks for. kexec's scripts are not ours either:
the tool loads its kernel itself. What tests make the kernel load, such as `loop`, is loaded at each boot."""
UNNEEDED = ("cfg80211", "aesni_intel", "ghash_clmulni_intel", "sha512_ssse3", "pcspkr", "evdev", "button", "floppy")
"""Modules that udev would load for devices and CPU features that no test asks for."""
DRIVERS = ("virtio_pci", "virtio_blk", "ext4")
"""All that its initial ramdisk has: with all of Debian's it is five times as large, and GRUB reads it byte by byte."""
SIZE_MB = 2048
FIRST_MB = 1
"""Where its only partition begins: GRUB's core is before it."""
MEMORY_MB = 768
SECTOR = 512
BOOT_CODE = 440
"""Bytes of a boot sector before the disk's signature and the partitions."""
TRANSLATED_MB = 64
"""Kept of translated code. QEMU 7.2 keeps it over a reset, by default up to 1 GiB, and a store into a page where much
code once lay takes milliseconds: GRUB, which copies an initrd byte by byte, then seems to stand still."""
MACHINE = (
    *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", str(MEMORY_MB), "-cpu", "EPYC,+svm"),
    *("-smp", "1,maxcpus=2"),
    *("-accel", f"tcg,tb-size={TRANSLATED_MB}", "-device", "virtio-rng-pci"),
)
RAMOOPS = ("ramoops.mem_address=0x18000000", "ramoops.mem_size=0x100000", "ramoops.record_size=0x40000")
"""In the middle of its memory, where `memmap` keeps the kernel out: at its end the initrd is put at each boot."""
BOOT_S = 300.0
SAVED = "booted"
"""The name of a snapshot, for QEMU."""
OWN_DISK = "own"
"""What a machine writes; the image's disk is below it."""
WORDS = ("console=ttyS0", "panic=5", "memmap=1M$0x18000000", *RAMOOPS)
# The shell that reads them, and GRUB, have a $ of their own.
QUOTED = " ".join(WORDS).replace("$", r"\\\$")
GRUB = f"""\
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_CMDLINE_LINUX_DEFAULT="{QUOTED}"
"""
FIRST = """\
#!/bin/sh
# In place of init, once: only a system that runs can tell GRUB where its disk is.
set -e
export PATH=/usr/sbin:/usr/bin
mount -o remount,rw /
update-grub
mount -o remount,ro /
echo made
echo o >/proc/sysrq-trigger
sleep 60
"""
"""The last line is until the machine is off."""


@dataclass(frozen=True)
class Image:
    """What is made once: a disk, its kernel, and the key that root takes."""

    folder: Path

    @property
    def disk(self) -> Path:
        """GRUB, and an ext4 file system in a partition."""
        return self.folder / "disk"

    @property
    def booted(self) -> Path:
        """What a machine has written to it and has in its memory when it has booted."""
        return self.folder / "booted"

    @property
    def kernel(self) -> Path:
        """Debian's bzImage."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its initial ramdisk."""
        return self.folder / "initrd"

    @property
    def modules(self) -> Path:
        """Its modules, as the package has them."""
        return self.folder / "modules"

    @property
    def key(self) -> Path:
        """Of root."""
        return self.folder / "key"

    @property
    def host_key(self) -> str:
        """The system's own, as known_hosts has it without the name."""
        return (self.folder / "host_key.pub").read_text().strip()


def make_image() -> Image:
    """The image, from the cache or from Debian's archive (four minutes)."""
    version = _run("qemu-system-x86_64", "--version").split("(")[0].split()[-1]
    # A machine's memory is for the QEMU that saved it.
    folder = make_folder(cache_home()) / f"test-guest-{SUITE}-{RECIPE}-{version}"
    with locked(cache_home() / "test-guest.lock"):
        if not folder.exists():
            scratch = folder.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            _make(scratch)
            _boot(Image(scratch))
            scratch.rename(folder)
    return Image(folder)


def _make(folder: Path) -> None:
    root = folder / "root"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}", '--aptopt=Acquire::Languages "none"']
    _run("mmdebstrap", "--quiet", *options, SUITE, root)
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text((folder / "key.pub").read_text())
    (ssh / "authorized_keys").chmod(0o600)
    (root / "etc/hostname").write_text("testhost\n")
    (root / "etc/fstab").write_text("/dev/vda1 / ext4 defaults 0 1\n")
    network = "[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
    (root / "etc/systemd/network/10-lan.network").write_text(network)
    (root / "etc/modprobe.d/ramoops.conf").write_text("")
    (root / "etc/modules-load.d/ramoops.conf").write_text("ramoops\n")
    _run("chroot", root, "systemctl", "enable", "systemd-networkd", "ssh")
    _run("chroot", root, "systemctl", "mask", *UNUSED)
    # Else each start makes one, which takes seconds.
    _run("chroot", root, "systemd-machine-id-setup")
    (root / "etc/modprobe.d/unneeded.conf").write_text("".join(f"blacklist {name}\n" for name in UNNEEDED))
    (root / "etc/initramfs-tools/conf.d/drivers").write_text("MODULES=list\n")
    listed = root / "etc/initramfs-tools/modules"
    listed.write_text(listed.read_text() + "".join(f"{name}\n" for name in DRIVERS))
    _run("chroot", root, "update-initramfs", "-u")
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    shutil.copy(kernel, folder / "vmlinuz")
    shutil.copy(initrd, folder / "initrd")
    (modules,) = (root / "usr/lib/modules").iterdir()
    kvm = modules / "kernel/arch/x86/kvm"
    (folder / "modules").mkdir()
    for file in (
        *kvm.glob("*.ko"),
        modules / "kernel/virt/lib/irqbypass.ko",
        modules / "kernel/drivers/crypto/ccp/ccp.ko",
    ):
        shutil.copy(file, folder / "modules")
    shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key.pub")
    (root / "etc/default/grub").write_text(GRUB)
    (root / "first").write_text(FIRST)
    (root / "first").chmod(0o755)
    _make_disk(root, folder / "disk")
    shutil.rmtree(root)
    words = "root=/dev/vda1 console=ttyS0 panic=-1 init=/first"
    argv = [*MACHINE, *_drive(folder / "disk"), "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd"), "-append", words]
    said = subprocess.run(argv, capture_output=True, timeout=600, stdin=subprocess.DEVNULL).stdout.decode(
        "utf-8", "replace"
    )
    assert "made\r\n" in said, said[-3000:]
    _run("debugfs", "-w", "-R", "rm first", f"{folder / 'disk'}?offset={FIRST_MB << 20}")


def _boot(image: Image) -> None:
    """Boot it once, and keep its memory, with what it wrote to its disk."""
    folder = image.folder / "boot"
    folder.mkdir()
    # From where it lies: beside each machine's own there is a link of that name.
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk.name, "-F", "raw", image.booted)
    image.booted.rename(folder / OWN_DISK)
    with _machine(image, folder) as guest:
        guest.wait()
        said = guest.monitor(f"savevm {SAVED}")
        assert "Error" not in said, said
        guest.monitor("quit")
        assert guest.process.wait(BOOT_S) == 0
    (folder / OWN_DISK).rename(image.booted)
    shutil.rmtree(folder)


def _make_disk(root: Path, disk: Path) -> None:
    """A disk with that tree in its only partition, and GRUB before it, as grub-install would lay it out."""
    grub, core = root / "usr/lib/grub/i386-pc", root / "core"
    shutil.copytree(grub, root / "boot/grub/i386-pc")
    made = ("grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", "/core")
    _run("chroot", root, *made, "biosdisk", "part_msdos", "ext2")
    _run("chroot", root, "grub-editenv", "/boot/grub/grubenv", "create")
    # Its first sector reads the others from where they follow it, as grub-mkimage writes it.
    boot = (grub / "boot.img").read_bytes()[:BOOT_CODE]
    first, size = (FIRST_MB << 20) // SECTOR, ((SIZE_MB - FIRST_MB) << 20) // SECTOR
    partition = struct.pack("<B3sB3sII", 0x80, b"\xff" * 3, 0x83, b"\xff" * 3, first, size)
    signature = struct.pack("<IH", 0x6B766D6B, 0)
    head = boot.ljust(BOOT_CODE, b"\0") + signature + partition.ljust(64, b"\0") + b"\x55\xaa"
    head += core.read_bytes()
    assert len(head) <= FIRST_MB << 20
    core.unlink()
    with disk.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    where = ("-E", f"offset={FIRST_MB << 20}")
    _run("mke2fs", "-q", "-t", "ext4", *where, "-d", root, disk, f"{SIZE_MB - FIRST_MB}M")
    with disk.open("r+b") as file:
        file.write(head)


def _drive(disk: Path, kind: str = "raw") -> tuple[str, ...]:
    return ("-drive", f"if=virtio,format={kind},file={disk}")


def _run(*argv: str | Path) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@dataclass
class Guest:
    """A running machine."""

    image: Image
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def console(self) -> Path:
        """A socket: what comes over the serial line."""
        return self.folder / "console"

    @property
    def known_hosts(self) -> Path:
        """Whom ssh trusts."""
        return self.folder / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F`: the host `testhost`."""
        return self.folder / "ssh_config"

    def monitor(self, command: str) -> str:
        """Say something to QEMU's monitor."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.folder / "monitor"))
            line.sendall(f"{command}\n".encode())
            line.shutdown(socket.SHUT_WR)
            said = b""
            while data := line.recv(4096):
                said += data
        return said.decode("utf-8", "replace")

    def ssh(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run something there as root."""
        argv = ["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
        # A machine that goes down under a command does not say so.
        argv += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2", "testhost", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def boot(self) -> str:
        """Another one after each boot."""
        return self.ssh("cat /proc/sys/kernel/random/boot_id").strip()

    def wait(self, but: str = "") -> None:
        """Until it lets somebody in, in another boot than that, which has come to an end: before all takes minutes."""
        other = f'[ "$(cat /proc/sys/kernel/random/boot_id)" != "{but}" ]'
        booted = f"if {other}; then systemctl is-system-running --wait; echo booted; fi"
        deadline = time.monotonic() + BOOT_S
        while (left := deadline - time.monotonic()) > 0:
            assert self.process.poll() is None, (self.folder / "qemu.log").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                if "booted" in self.ssh(booted, check=False, timeout=left):
                    return
            time.sleep(0.5)
        raise AssertionError(f"not up within {BOOT_S:.0f} s: {(self.folder / 'console.log').read_text()[-3000:]}")

    def host_file(self, *more: str, gives: str = '"amd", "svm", "npt"', **ssh: str) -> Path:
        """A host file for it; `ssh` replaces keys of that table, with their TOML values."""
        unix = f"UNIX-CONNECT:{self.folder}"
        table = {
            "target": '"testhost"',
            "options": f'["-F", "{self.ssh_config}"]',
            "console": f'"socat -u {unix}/console -"',
            "power": f"{{ cycle = \"printf 'system_reset\\\\ncont\\\\n' | socat - {unix}/monitor\" }}",
        } | ssh
        lines = [
            'id = "testhost"',
            'kind = "ssh"',
            f"gives = [{gives}]",
            "limits = { boot_s = 240, step_s = 60, silent_s = 40 }",
            *more,
            "[ssh]",
            *(f"{key} = {value}" for key, value in table.items() if value),
        ]
        path = self.folder / "testhost.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


@contextlib.contextmanager
def running(image: Image, folder: Path) -> Iterator[Guest]:
    """A machine that has booted and lets us in. It ends with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("cp", "--reflink=auto", "--sparse=always", image.booted, folder / OWN_DISK)
    with _machine(image, folder, "-loadvm", SAVED) as guest:
        guest.wait()
        # Its clock stood still meanwhile.
        guest.ssh(f"date --set=@{time.time():.0f}")
        yield guest


@contextlib.contextmanager
def _machine(image: Image, folder: Path, *more: str) -> Iterator[Guest]:
    """A machine whose own disk is in the folder. It ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / image.disk.name).symlink_to(image.disk)
    argv = [
        *(*MACHINE, *_drive(folder / OWN_DISK, "qcow2"), *more),
        *("-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=n,id=nic"),
        *("-chardev", f"socket,id=con,path={folder}/console,server=on,wait=off,logfile={folder}/console.log"),
        *("-serial", "chardev:con", "-chardev", f"socket,id=mon,path={folder}/monitor,server=on,wait=off"),
        *("-mon", "chardev=mon,mode=readline"),
    ]
    (folder / "known_hosts").write_text(f"testhost {image.host_key}\n")
    shutil.copy(image.key, folder / "key")
    (folder / "key").chmod(0o600)
    (folder / "ssh_config").write_text(
        f"Host testhost\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {folder}/key\n"
        f"  IdentitiesOnly yes\n  HostKeyAlias testhost\n  UserKnownHostsFile {folder}/known_hosts\n"
    )
    with (folder / "qemu.log").open("wb") as said:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv], stdout=said, stderr=said)
    try:
        yield Guest(image, folder, port, process)
    finally:
        process.kill()
        process.wait()


def load(image: Image, host: Path, *orders: str) -> list[str]:
    """The words for `inv load` with the kernel that the machine runs."""
    return load_files(image.modules, image.kernel, host, *orders)


def load_files(modules: Path, kernel: Path, host: Path, *orders: str) -> list[str]:
    """The words for `inv load` with a kernel and a folder of modules."""
    words = ["load", "--modules", str(modules), "--kernel", str(kernel), "--host", str(host)]
    return [*words, *(word for order in orders for word in ("--order", order))]


def state(guest: Guest) -> str:
    """What a run has to put back, as soon as the machine's own boot has come to an end."""
    guest.wait()
    modules = sorted(guest.ssh("cut -d' ' -f1,3,4 /proc/modules").splitlines())
    rest = guest.ssh(
        "grep -r . /sys/module/kvm*/parameters /proc/sys/kernel/printk_devkmsg; uname -a; ls /var/lib; "
        "cat /proc/cmdline /sys/devices/system/cpu/online"
    )
    # Without GRUB's own modules.
    boot = "find /boot -name '*.mod' -o -print | sort; cat /boot/grub/custom.cfg; grub-editenv /boot/grub/grubenv list"
    return "\n".join(modules) + rest + guest.ssh(boot, check=False)
