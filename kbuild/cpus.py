"""What a host's CPUs are: what a report may say of where something ran, and what a stall there means."""

from __future__ import annotations

from enum import StrEnum


class Cpus(StrEnum):
    """Of a host; in this order they are told."""

    OWN = "its own"
    """A machine that is reached by SSH. Nothing here tells whether that is a virtual one itself."""
    NESTED = "virtual, by KVM"
    """QEMU with KVM: the CPU of the machine that it runs on, with nested virtualization."""
    EMULATED = "emulated"
    """By QEMU's TCG, or Bochs."""
