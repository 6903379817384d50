"""The kinds of guests that the agent runs (`agent/guest_*.S`), and what each answers: docs/agent.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

_U8, _U16, _U32, _U64 = ((1 << bits) - 1 for bits in (8, 16, 32, 64))

# agent/guest.h
ALIASES = 256
DIRTY_ROUNDS, DIRTY_STRIDE = 16, 17
DATA_PAGES = 8
WINDOW = 0x200000
FIRST_VECTOR, VECTORS, INTERRUPTS = 32, 64, 3
TURNS = 8
REGISTERS = 58


class SmokeKind(StrEnum):
    REAL_MODE = "real-mode"
    PROTECTED_MODE = "protected-mode"
    LONG_MODE = "long-mode"
    PAGE_FAULTS = "page-faults"
    ALIASES = "aliases"
    PORTS = "ports"
    MMIO = "mmio"
    CPUID = "cpuid"
    TIMER = "timer"
    INTERRUPTS = "interrupts"
    REGISTERS = "registers"
    TWO_VCPUS = "two-vcpus"
    IPI = "ipi"


def expected_output(kind: SmokeKind, value: int) -> int:
    """What a guest of this kind that ran answers to `value` (64 bits)."""
    return _ANSWERS[kind](value)


def _rotated(value: int, by: int, bits: int) -> int:
    return (value << by | value >> (bits - by)) & ((1 << bits) - 1)


def _mix(to: int, *values: int) -> int:
    """Take one value after the other in: guest_macros.h, MIX."""
    for value in values:
        to = (to * 0x9E3779B97F4A7C15 + _rotated(value & _U64, 23, 64)) & _U64
    return to


def _word(value: int, n: int) -> int:
    """Word `n` of what the agent prepares from the input."""
    return value * (2 * n + 1) & _U64


def _real_mode(value: int) -> int:
    return ((value & _U16) * 0x4F1B + 0x3C21) & _U16


def _protected_mode(value: int) -> int:
    low, high = value & _U32, value >> 32
    low, kept = (low * 0x9E3779B9 + _rotated(high, 7, 32)) & _U32, high
    return low | (((kept * 0x9E3779B9 + _rotated(low, 7, 32)) & _U32) << 32)


def _long_mode(value: int) -> int:
    return _mix(value, value)


def _page_faults(value: int) -> int:
    not_present, read_only = 0, 0b11
    """Error codes of a read of what is not mapped, and of a write to what is mapped read-only (SDM 4.7)."""
    accessed, accessed_and_dirty = 0x21, 0x63
    """The lowest byte of the page table's entry: present, writable, accessed, dirty."""
    data = [_word(value, n) for n in range(DATA_PAGES * 512)]
    for round_ in range(2 * DATA_PAGES, 0, -1):
        page = round_ % DATA_PAGES
        address = WINDOW + (value & 511) * 4096 + page * 8
        cell = page * 512 + page
        value = _mix(value, not_present, address, data[cell], accessed)
        # The handler has computed on when the write that it lets pass is done anew.
        data[cell] = value = _mix(value, read_only, address)
        value = _mix(value, accessed_and_dirty)
    return value


def _aliases(value: int) -> int:
    first = [_word(value, n) for n in range(ALIASES)]
    second = [_word(~value & _U64, n) for n in range(ALIASES)]
    for alias in range(ALIASES):
        first[alias] = value = _mix(value, first[alias])
    for alias in range(0, DIRTY_ROUNDS * DIRTY_STRIDE, DIRTY_STRIDE):
        first[alias] = value
        value = _mix(value, 1)  # the dirty log's bitmap
    return _mix(value, *second, *first)


def _ports(value: int) -> int:
    return _mix(*(_word(value, n) for n in range(3)))


def _mmio(value: int) -> int:
    low = value & _U32
    read = [~value, ~low & _U32, ~value & _U16, _sign_extended(~value & _U8)]
    # Read, add, write: and what was written reads as its complement again.
    mixed = _mix(value, *read)
    return _mix(mixed, ~((~low & _U32) + mixed) & _U32)


def _sign_extended(byte: int) -> int:
    return byte - 0x100 if byte & 0x80 else byte


def _cpuid(value: int) -> int:
    return _mix(value, *(_word(value, n) for n in range(6)))


def _timer(value: int) -> int:
    for _ in range(INTERRUPTS):
        value = _mix(value, FIRST_VECTOR + value % VECTORS)
    return value


def _interrupts(value: int) -> int:
    return _mix(value, *(FIRST_VECTOR + (value >> 8 * n) % VECTORS for n in range(INTERRUPTS)))


def _registers(value: int) -> int:
    made, table = value, []
    for n in range(REGISTERS):
        made = _mix(made, n)
        table.append(made >> 18)
    return _mix(value, *table)


def _two_vcpus(value: int) -> int:
    ball, own = 0, [value, value]
    for turn in range(TURNS):
        player = turn % 2
        ball = own[player] = _mix(own[player], ball, 1 + player + 2 * turn)
    return ball


def _ipi(value: int) -> int:
    handed = ((value & _U32) * 0x9E3779B9 + _rotated(value >> 32, 7, 32)) & _U32
    return _mix(value, FIRST_VECTOR + handed % VECTORS, handed)


_ANSWERS: Mapping[SmokeKind, Callable[[int], int]] = {
    SmokeKind.REAL_MODE: _real_mode,
    SmokeKind.PROTECTED_MODE: _protected_mode,
    SmokeKind.LONG_MODE: _long_mode,
    SmokeKind.PAGE_FAULTS: _page_faults,
    SmokeKind.ALIASES: _aliases,
    SmokeKind.PORTS: _ports,
    SmokeKind.MMIO: _mmio,
    SmokeKind.CPUID: _cpuid,
    SmokeKind.TIMER: _timer,
    SmokeKind.INTERRUPTS: _interrupts,
    SmokeKind.REGISTERS: _registers,
    SmokeKind.TWO_VCPUS: _two_vcpus,
    SmokeKind.IPI: _ipi,
}
