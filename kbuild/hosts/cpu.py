"""A look at the CPU of a running machine: where it is, in which mode, and the memory around that place."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

AROUND = 64
"""Bytes of code that are read before and after an address: enough to tell whose code it is."""
STACK_BYTES = 2048
"""Of the kernel's stack, from its pointer up."""
MAX_CALLERS = 24
PAGE = 4096
STACK_ALIGN = 1 << 14
"""THREAD_SIZE (arch/x86/include/asm/page_64_types.h, 6.1): no stack goes on past such an address."""
KERNEL = 0xFFFF_8000_0000_0000
"""The upper half of the address space is the kernel's (Documentation/x86/x86_64/mm.rst)."""
MODULES = range(0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000)
"""Where modules can be; with CONFIG_RANDOMIZE_BASE only above c0000000 (asm/pgtable_64_types.h, MODULES_VADDR)."""


class Place(msgspec.Struct, frozen=True):
    """An address of code and the memory around it; `data` is empty where that could not be read."""

    address: int
    start: int
    """Address of the first byte of `data`."""
    data: bytes


class CpuSample(msgspec.Struct, frozen=True):
    """What the machine's only CPU was doing at one moment."""

    at: Place
    """The instruction pointer; of a halted CPU, behind the instruction that halted it."""
    user: bool
    """In user mode (CPL 3)."""
    interrupts: bool
    """An interrupt would be taken."""
    halted: bool
    """It executes nothing until an interrupt comes."""
    callers: tuple[Place, ...] = ()
    """What stands on the kernel's stack and may be a return address into a module, innermost first."""
    seconds: float = 0.0
    """Since the first sample of its series."""


class Registers(msgspec.Struct, frozen=True):
    """What an emulator tells of its CPU."""

    rip: int
    rsp: int
    user: bool
    interrupts: bool
    halted: bool


def take(registers: Registers, read: Callable[[int, int], bytes]) -> CpuSample:
    """A sample of a CPU that stands still; `read` gives memory at a virtual address, or less or nothing of it."""

    def place(address: int) -> Place:
        page = address & -PAGE  # the next one may not be mapped
        start = max(address - AROUND, page)
        return Place(address, start, read(start, min(address + AROUND, page + PAGE) - start))

    callers: list[Place] = []
    if not registers.user and registers.rsp >= KERNEL:
        stack = read(registers.rsp, min(STACK_BYTES, STACK_ALIGN - registers.rsp % STACK_ALIGN))
        words = (int.from_bytes(stack[n : n + 8], "little") for n in range(0, len(stack) - 7, 8))
        found = list(dict.fromkeys(word for word in words if word in MODULES))
        callers = [place(word) for word in found[:MAX_CALLERS]]
    return CpuSample(place(registers.rip), registers.user, registers.interrupts, registers.halted, tuple(callers))
