"""The host file: what a machine is, what it gives, and how long it may take."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from kbuild import toml
from kbuild.cpus import Cpus
from kbuild.hosts.base import BootImage, Limits, Machine

Vendor = Literal["intel", "amd"]
Kind = Literal["qemu", "bochs", "ssh", "labgrid"]

Capability = Literal[
    "intel",
    "amd",
    "vmx",
    "svm",
    "ept",
    "npt",
    "unrestricted-guest",
    "shadow-vmcs",
    "pml",
    "smp",
    "s3",
]
"""What an order's `needs` may ask for. A closed list: a misspelt word would skip orders without a word."""

CPUID_VENDOR: Mapping[Vendor, str] = {"intel": "GenuineIntel", "amd": "AuthenticAMD"}
IN_CPUID = frozenset({"vmx", "svm", "npt"})
"""What user space sees for sure: all else is in MSRs, and not every kernel tells what it read there."""


MIN_SILENT_S = 20
"""Of a machine that is reached by SSH: ssh(1) gives a connection up after 15 (client.py), and says so then."""


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[qemu]`."""

    cpu: Annotated[str, msgspec.Meta(pattern=r"^[\w.,+=-]+$")]
    """As for `-cpu`: a model and flags."""
    machine: Annotated[str, msgspec.Meta(pattern=r"^[\w.,+=-]+$")] = "pc"
    """As for `-machine`."""
    accel: Literal["tcg", "kvm"] = "tcg"
    """As for `-accel`: `kvm` is used where a guest was seen to get VMX or SVM from it (nested virtualization)."""


class BochsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[bochs]`."""

    model: Annotated[str, msgspec.Meta(pattern=r"^\w+$")]
    """As for `cpu: model=`."""
    ips: Annotated[int, msgspec.Meta(ge=1_000_000, le=1_000_000_000)] = 20_000_000
    """Instructions that are one second for the guest. docs/hosts.md says why not fewer."""


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[ssh.power]`: command lines for this machine's shell."""

    cycle: str | None = None
    """Off and on again; absent: `off`, then `on`."""
    off: str | None = None
    """Where there is no `cycle`."""
    on: str | None = None
    """Where there is no `cycle`."""

    @property
    def words(self) -> str:
        """The command lines, for a person."""
        return self.cycle or f"{self.off}; {self.on}"

    def __post_init__(self) -> None:
        if not self.cycle and not (self.off and self.on):
            raise ValueError("give cycle, or both off and on")


class RemoteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the tables of all machines have that are reached by SSH."""

    options: tuple[str, ...] = ()
    """More words for ssh(1), such as `-F` and a file."""
    sudo: bool = False
    """Become root by `sudo -n`. Else ssh logs root in."""
    program: str | None = None
    """What provisioning has installed there, the only thing that sudo lets this user do."""
    kernel: Literal["kexec", "install", "running"] = "kexec"
    """The way to a kernel under test: by kexec, by GRUB once and a reboot, or none but the one that runs."""
    virtual_machines: Literal["refuse", "end"] = "refuse"
    """Where some run: leave the host alone, or do as if there were none."""
    network: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+$")] | None = None
    """In which it is: of a cluster only workers that were started with `--network` and this name run its orders."""


class SshSettings(RemoteSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[ssh]`."""

    target: Annotated[str, msgspec.Meta(pattern=r"^[^\s-]\S*$")]
    """As for ssh(1): a name of its configuration, USER@HOST, or a URI."""
    console: str | None = None
    """A command line for this machine's shell, whose output is the host's console."""
    power: Power | None = None
    """How it is switched off and on. Absent: after a hang it waits for somebody who does that."""
    alone: bool = False
    """Nobody else is at work there, as in a lab's place: one that does not answer is switched off and on."""


class LabNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[labgrid.names]`: which one, where a place has several of a kind."""

    service: str | None = None
    """Of its NetworkServices."""
    console: str | None = None
    """Of its NetworkSerialPorts, or of the environment's console drivers."""
    power: str | None = None
    """Of its power ports, or of the environment's power drivers."""


class LabgridSettings(RemoteSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[labgrid]`."""

    coordinator: Annotated[str, msgspec.Meta(pattern=r"^([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?$")]
    """HOST or HOST:PORT (20408)."""
    place: Annotated[str, msgspec.Meta(pattern=r"^[^\s-]\S*$")]
    """Its name there."""
    wait_s: Annotated[float, msgspec.Meta(ge=0)] = 600
    """Seconds to wait for a place that somebody else holds."""
    environment: str | None = None
    """A labgrid environment (YAML) that gives the place drivers, as for `labgrid-client -c`; beside the host file."""
    names: LabNames = LabNames()
    """Which one, where a place has several of a kind."""


class BigKernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[big_kernel]`: what a kernel needs that has everything on, as distributions ship them."""

    memory_mb: Annotated[int, msgspec.Meta(ge=64, le=65536)]
    """Of the machine, in MiB, in place of the host's own."""
    limits: Limits
    """In place of the host's own."""
    from_mb: Annotated[float, msgspec.Meta(gt=0)] = 6
    """Size of its bzImage from which it is one; the fast kernel of the default profile has 3."""


class Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table `[[gap]]`: what a real machine can and this one cannot."""

    selftest: str
    """A test of KVM's selftests, or a glob over them."""
    reason: str
    """What the emulator lacks."""


class HostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A host file (`profiles/hosts/*.toml`)."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+$")]
    """Its name in orders, findings and records."""
    kind: Kind
    """What runs it: the table of that name must be there, and no other."""
    gives: tuple[Capability, ...]
    """What orders may need; exactly one of `intel` and `amd`."""
    memory_mb: Annotated[int, msgspec.Meta(ge=64, le=65536)] = 256
    """Of the machine, in MiB."""
    cpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Of the machine."""
    limits: Limits = Limits()
    """Seconds that something may take, in which the emulator could run, where a boot takes `usual_boot_s`."""
    big_kernel: BigKernel | None = None
    """What a kernel needs that has everything on, as distributions ship them."""
    gap: tuple[Gap, ...] = ()
    """What a real machine can and this one cannot."""
    qemu: QemuSettings | None = None
    """Of kind `qemu`."""
    bochs: BochsSettings | None = None
    """Of kind `bochs`."""
    ssh: SshSettings | None = None
    """Of kind `ssh`."""
    labgrid: LabgridSettings | None = None
    """Of kind `labgrid`."""

    def __post_init__(self) -> None:
        for kind in get_args(Kind):
            there = getattr(self, kind) is not None
            if there != (kind == self.kind):
                state = "must not be there" if there else "is missing"
                raise ValueError(f"kind is '{self.kind}': the table [{kind}] {state}")
        if not all(gap.reason.strip() for gap in self.gap):
            raise ValueError("a gap has a reason: say what the emulator lacks")
        if is_remote(self) and self.limits.silent_s < MIN_SILENT_S:
            raise ValueError(
                f"limits.silent_s: at least {MIN_SILENT_S} for a machine that is reached by SSH: "
                "before that nobody knows whether the connection was lost"
            )
        if len({"intel", "amd"} & set(self.gives)) != 1:
            raise ValueError("gives must name one vendor: 'intel' or 'amd'")

    def for_kernel(self, size: int, slowness: float = 1.0) -> HostSpec:
        """This host as it is for a bzImage of so many bytes, which takes so many times as long as one of that size."""
        spec = self
        if self.big_kernel is not None and size >= self.big_kernel.from_mb * (1 << 20):
            spec = msgspec.structs.replace(self, memory_mb=self.big_kernel.memory_mb, limits=self.big_kernel.limits)
        return msgspec.structs.replace(spec, limits=spec.limits.times(slowness))

    def contradicted(self, vendor: str, flags: Collection[str]) -> str | None:
        """What the guest's agent says of its CPU against this file, for a person. None: nothing.

        `vendor` and `flags` are those of its first line (docs/agent.md).
        """
        if vendor != CPUID_VENDOR[self.vendor]:
            return f"its CPU is {vendor or 'of no vendor'}, and it gives {self.vendor}"
        if more := sorted({*flags} - {*self.gives}):
            return f"its CPU has {', '.join(more)}, and gives does not say so"
        if less := sorted(IN_CPUID & {*self.gives} - {*flags}):
            return f"its CPU has no {', '.join(less)}, and gives says so"
        return None

    @property
    def vendor(self) -> Vendor:
        """Whose CPU it has."""
        return "intel" if "intel" in self.gives else "amd"


def read_host(path: Path) -> HostSpec:
    """Read a host file. Raises UserError in one line."""
    spec = toml.read(path, HostSpec)
    lab = spec.labgrid
    if lab is None or lab.environment is None:
        return spec
    beside = str((path.parent / Path(lab.environment).expanduser()).resolve())
    return msgspec.structs.replace(spec, labgrid=msgspec.structs.replace(lab, environment=beside))


def is_remote(spec: HostSpec) -> bool:
    """Whether it is a machine of its own, with a system that is there before a run and after it (`visit`)."""
    return spec.ssh is not None or spec.labgrid is not None


def cpus_of(spec: HostSpec) -> Cpus:
    """What its CPUs are."""
    if is_remote(spec):
        return Cpus.OWN
    return Cpus.NESTED if spec.qemu is not None and spec.qemu.accel == "kvm" else Cpus.EMULATED


def start(spec: HostSpec, image: BootImage, folder: Path) -> Machine:
    """Start a machine of that host; `folder` (made if missing) gets its logs.

    The emulator dies with the thread that calls this: let that thread outlive the machine. Raises
    HarnessError when it cannot be started. What it refuses later comes as an `exit` chunk.
    """
    # Imported here, for each kind imports this module's structs.
    if spec.kind == "qemu":
        from kbuild.hosts import qemu

        return qemu.start(spec, image, folder)
    from kbuild.hosts import bochs

    return bochs.start(spec, image, folder)


def keeps(spec: HostSpec) -> bool:
    """Whether its machines can be kept as they are, as a rule (`Machine.snapshot`): one boot is then enough."""
    return spec.kind == "qemu"


def check(spec: HostSpec) -> list[str]:
    """What this machine lacks to start such a host, one line each, with what to do; empty: nothing."""
    if spec.kind == "qemu":
        from kbuild.hosts import qemu

        return qemu.missing()
    if is_remote(spec):
        lacks = [] if shutil.which("ssh") else ["ssh is not installed (Debian: openssh-client)"]
        if spec.labgrid is not None and find_spec("labgrid") is None:
            lacks.append("labgrid is not installed in this Python's environment: pip install labgrid")
        return lacks
    from kbuild.hosts import bochs

    return bochs.missing()


def hindrance(spec: HostSpec) -> str | None:
    """Why this machine can be no such host, whatever is installed; None: it can. May start an emulator for a second."""
    if spec.qemu is None or spec.qemu.accel != "kvm":
        return None
    from kbuild.hosts import nested, qemu

    return nested.hindrance(qemu.PROGRAM, spec.qemu.cpu, "vmx" if spec.vendor == "intel" else "svm")


def describe(spec: HostSpec) -> str:
    """The emulator's name and version, for the record. Starts it once, for some 30 ms: keep the answer.

    Raises HarnessError where it is not installed or does not say.
    """
    if spec.kind == "qemu":
        from kbuild.hosts import qemu

        return qemu.version()
    if spec.ssh is not None:
        return f"{spec.ssh.target} by SSH"
    if spec.labgrid is not None:
        return f"place {spec.labgrid.place} of {spec.labgrid.coordinator} by SSH"
    from kbuild.hosts import bochs

    return bochs.version()


def digest(spec: HostSpec, description: str) -> str:
    """SHA-256, in hexadecimal, of what decides what the host can do: its machine and `describe()`'s answer.

    Not its memory and its limits: with more of these it can do the same.
    """
    machine = [spec.id, spec.kind, spec.gives, spec.cpus, spec.qemu, spec.bochs]
    return hashlib.sha256(msgspec.json.encode([machine, description])).hexdigest()
