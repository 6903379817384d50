"""What a host says of itself (`host.sh facts`), and what that means for somebody who wants to load modules there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from kbuild.dmesg.record import escape
from kbuild.errors import HarnessError
from kbuild.hosts.spec import CPUID_VENDOR, HostSpec
from kbuild.hosts.ssh.client import SCRIPT

NEEDED_MB = 200
"""Of disk: a kernel and its modules, with debug information."""
NEEDED_BOOT_MB = 64
"""Of the disk with /boot/grub, for `kernel = "install"`: a distribution's kernel, and an initrd from another disk."""
GRUB_WRITES = ("ext2", "ext3", "ext4", "vfat", "xfs")
"""File systems in which GRUB changes its environment. Of Btrfs, ZFS, LVM and RAID it only reads: it would boot the same
kernel again and again."""
OF_CPUINFO = ("vmx", "svm", "npt")
"""Words of /proc/cpuinfo's flags that host files have too."""
OF_VMX_FLAGS = {
    "ept": "ept",
    "unrestricted_guest": "unrestricted-guest",
    "shadow_vmcs": "shadow-vmcs",
    "pml": "pml",
}
"""Words of its `vmx flags`, and what a host file calls them."""
_MANY = ("module", "parameter", "guest", "opened")


@dataclass(frozen=True)
class Facts:
    """Of one moment. What the host does not tell is an empty string."""

    one: dict[str, str] = field(default_factory=dict)
    """By host.sh's keys."""
    many: dict[str, list[str]] = field(default_factory=dict)
    """The same of keys that come more than once."""

    def __getitem__(self, key: str) -> str:
        return self.one.get(key, "")

    @property
    def goes_down(self) -> bool:
        """Whether it is on its way to another boot, or off."""
        return self["state"] == "stopping"

    @property
    def boot(self) -> str:
        """Another one after each boot."""
        return self["boot"]

    @property
    def kernel(self) -> tuple[str, str]:
        """Release and version, as uname(2) has them: two builds of a release differ in the version."""
        # The date in a version may have two blanks; what a bzImage says of itself is read word by word.
        return self["release"], " ".join(self["version"].split())

    @property
    def gives(self) -> tuple[str, ...]:
        """What its CPU gives, in a host file's words, as far as the kernel tells."""
        vendor = next((name for name, words in CPUID_VENDOR.items() if words == self["vendor"]), None)
        flags, vmx = set(self["flags"].split()), set(self["vmx_flags"].split())
        found = [name for name in OF_CPUINFO if name in flags]
        found += [name for flag, name in OF_VMX_FLAGS.items() if flag in vmx]
        smp = ["smp"] if self["cpus"].isdigit() and int(self["cpus"]) > 1 else []
        return (*([vendor] if vendor else []), *found, *smp)

    @property
    def pstore(self) -> bool:
        """Whether its kernel writes its last words where the next boot finds them."""
        return self["pstore"] not in ("", "(null)")

    @property
    def crashed(self) -> bool:
        """Whether its kernel has had an oops since it was booted (TAINT_DIE, include/linux/panic.h)."""
        return self["tainted"].isdigit() and bool(int(self["tainted"]) & 1 << 7)

    @property
    def modules(self) -> list[str]:
        """KVM's, as far as they are loaded."""
        return [line.split()[0] for line in self.many.get("module", []) if line.split()]


def read_facts(text: str) -> Facts:
    """From host.sh's lines. Raises HarnessError for what does not begin as it should."""
    facts = Facts()
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or not key.isidentifier():
            continue  # a login shell may greet
        # It comes to a terminal, and a process there may call itself as it likes.
        value = escape(value.strip())
        if key in _MANY:
            facts.many.setdefault(key, []).append(value)
        else:
            facts.one.setdefault(key, value)
    if not facts.boot or not facts["release"]:
        words = next((line for line in text.splitlines() if line.strip()), "nothing")
        raise HarnessError(f"the host does not say what it is, but: {words[:200]}")
    return facts


def hindrances(facts: Facts, spec: HostSpec) -> Iterator[str]:
    """What keeps this host from being used as its file says, each for a person."""
    ssh = spec.ssh
    assert ssh is not None
    if ssh.program and facts["script"] != hashlib.sha256(SCRIPT.read_bytes()).hexdigest():
        yield f"{ssh.program} there is of another version of this tool: inv host.provision once more"
    if facts["architecture"] != "x86_64":
        yield f"it is {facts['architecture']}, and this is about x86_64"
    if facts["vendor"] and facts["vendor"] != CPUID_VENDOR[spec.vendor]:
        yield f"its CPU is {facts['vendor']}, and its file gives {spec.vendor}"
    feature = "vmx" if spec.vendor == "intel" else "svm"
    if feature in spec.gives and feature not in facts.gives:
        locked = facts["disabled"] or "is it switched off in the firmware, or not handed to a virtual machine?"
        yield f"its CPU shows no {feature}: {locked}"
    if guests := facts.many.get("guest"):
        if ssh.virtual_machines == "refuse":
            yield (
                f"virtual machines run there ({', '.join(guests)}); they would be ended: "
                'stop them, or say virtual_machines = "end" in its file'
            )
    elif (opened := facts.many.get("opened")) and ssh.virtual_machines == "refuse":
        yield f"/dev/kvm is in use there ({', '.join(opened)}): stop that first"
    if facts["free_mb"].isdigit() and int(facts["free_mb"]) < NEEDED_MB:
        yield f"{facts['free_mb']} MB are free in /var/lib, and {NEEDED_MB} are needed"
    yield from _of_kernel(facts, spec)


def _of_kernel(facts: Facts, spec: HostSpec) -> Iterator[str]:
    """What keeps it from another kernel, or from modules that nobody signed."""
    ssh = spec.ssh
    assert ssh is not None
    locked = facts["lockdown"] not in ("", "none")
    if locked:
        boot = ", for it booted with secure boot" if facts["secure_boot"] == "1" else ""
        yield f"its kernel is locked down ({facts['lockdown']}{boot}): it takes signed modules and kernels only"
    elif facts["signed_only"] == "Y":
        yield "its kernel takes signed modules only (module.sig_enforce)"
    if ssh.kernel == "kexec" and (problem := no_kexec(facts)):
        yield problem if [*no_install(facts)] else f'{problem}; or say kernel = "install" in its file'
    if ssh.kernel == "install":
        yield from no_install(facts)


def no_kexec(facts: Facts) -> str | None:
    """What keeps another kernel from being booted by kexec. None: nothing."""
    if not facts["kexec"]:
        return "kexec is not installed there (Debian: kexec-tools)"
    if not facts["kexec_disabled"]:
        return "its kernel has no kexec (CONFIG_KEXEC)"
    if facts["kexec_disabled"] == "1":
        return "kexec is switched off there until the next boot (kernel.kexec_load_disabled)"
    return None


def no_install(facts: Facts) -> Iterator[str]:
    """What keeps another kernel from being installed there for one boot by GRUB."""
    if not facts["grub"]:
        yield 'it has no /boot/grub/grub.cfg, and kernel = "install" boots by GRUB: say kernel = "kexec" in its file'
        return
    if facts["secure_boot"] == "1":
        yield "it boots with secure boot, and GRUB refuses a kernel that nobody signed: switch that off in its firmware"
    if not facts["grub_custom"]:
        yield "its grub.cfg does not read custom.cfg: put Debian's 41_custom back into /etc/grub.d, then update-grub"
    if not facts["grub_once"]:
        yield "its grub.cfg does not know next_entry: put Debian's 00_header back into /etc/grub.d, then update-grub"
    if not facts["grub_editenv"]:
        yield "grub-editenv is not installed there (Debian: grub-common)"
    elif not facts["grub_env"]:
        yield "its GRUB has no environment to keep next_entry in: grub-editenv /boot/grub/grubenv create"
    elif facts["grub_next"]:
        yield (
            f"its GRUB is told to boot '{facts['grub_next']}' next, by somebody else: "
            "boot that, or grub-editenv /boot/grub/grubenv unset next_entry"
        )
    if "ro" in facts["boot_options"].split(","):
        yield "its /boot is mounted read only: mount -o remount,rw"
    elif facts["boot_fs"] not in GRUB_WRITES or facts["boot_device"] not in ("disk", "part"):
        where = " on ".join(word for word in (facts["boot_fs"], facts["boot_device"]) if word)
        yield (
            f"GRUB cannot write to its /boot ({where or 'nobody knows where'}), and would boot one kernel for ever: "
            "it has to be ext4, XFS or FAT in a partition"
        )
    if facts["boot_free_mb"].isdigit() and int(facts["boot_free_mb"]) < NEEDED_BOOT_MB:
        yield f"{facts['boot_free_mb']} MB are free in /boot, and {NEEDED_BOOT_MB} are needed: remove an old kernel"
