"""Whether QEMU with KVM can give a guest VMX or SVM here: a guest is asked, for /dev/kvm being there says nothing."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from kbuild import command
from kbuild.errors import HarnessError, os_errors

DEVICE = Path("/dev/kvm")
PROBE_S = 20.0
"""It takes one second. Some KVMs hang instead."""
SECTOR = 512
SAID = 0x10
"""In what the guest says, so that nothing else is taken for it."""
BIT = {"vmx": 1, "svm": 2}

# CPUID.1:ECX.VMX and CPUID.80000001:ECX.SVM, as bits 0 and 1 of what goes to isa-debug-exit. 16-bit code at 7c00.
_CODE = bytes.fromhex(
    "66b801000000 0fa2 66c1e905 83e101 89cf"  # mov $1, %eax; cpuid; shr $5, %ecx; and $1, %cx; mov %cx, %di
    "66b801000080 0fa2 66c1e902 83e101 d1e1 09cf"  # mov $0x80000001, %eax; cpuid; the same by 2, one up; or %cx, %di
    "89f8 0c10 baf400 ee"  # mov %di, %ax; or $SAID, %al; mov $0xf4, %dx; out %al, %dx
    "f4 ebfd"  # hlt, for ever
)
BOOT_SECTOR = _CODE.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


@functools.cache
def hindrance(program: str, cpu: str, feature: str, accel: str = "kvm") -> str | None:
    """Why a guest has no such feature (`vmx`, `svm`) with this accelerator and CPU; None: it has. Takes a second."""
    if accel == "kvm":
        try:
            os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"no nested virtualization: {DEVICE}: {error.strerror}"
    with os_errors("the probe for nested virtualization"), tempfile.TemporaryDirectory(prefix="kvm-kbuild-") as folder:
        disk = Path(folder) / "disk"
        disk.write_bytes(BOOT_SECTOR)
        argv = [
            *(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "64"),
            *("-accel", accel, "-cpu", cpu, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-drive", "if=ide,format=raw,file=disk"),
        ]
        try:
            done = command.run(argv, cwd=Path(folder), timeout=PROBE_S, check=False)
        except HarnessError as error:
            return f"no nested virtualization: a guest does not come to its end: {error}"
    # hw/misc/debugexit.c: the status is what the guest wrote, shifted, and 1.
    said = done.status >> 1
    if not (done.status & 1 and said & SAID and said & ~SAID <= sum(BIT.values())):
        words = done.output.strip().splitlines()
        return f"no nested virtualization: QEMU does not run a guest with {accel}: {words[0] if words else done.status}"
    return None if said & BIT[feature] else f"no nested virtualization: the guest's CPU has no {feature}"
