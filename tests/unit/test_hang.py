"""Protects the line between a kernel that hangs and an emulator that does: no verdict without somebody who saw it.

tests/data/hangs/ has samples of the CPU, the text of the module, and the log, as they were when modules of
tests/data/modules/ had hung in real emulators (what tests/integration/test_crashes.py makes anew).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kbuild.dmesg.classify import classify
from kbuild.dmesg.record import Record
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.elf.text import ModuleText, locate, module_texts
from kbuild.hosts.cpu import AROUND, KERNEL, CpuSample, Place, Registers, take
from kbuild.load.hang import MIN_SAMPLES, Hang, judge_hang
from kbuild.outcome import Status
from kbuild.paths import PROJECT

DATA = PROJECT / "tests/data/hangs"
HOSTS = ("qemu-svm", "bochs-vmx")


class Recorded(msgspec.Struct):
    texts: list[ModuleText]
    samples: list[CpuSample]
    records: list[Record]


def recorded(name: str) -> Recorded:
    return msgspec.json.decode((DATA / f"{name}.json").read_bytes(), type=Recorded)


def judged(one: Recorded, *, blame: bool = True) -> Hang:
    matches = classify(one.records, load_signatures(), "6.1.192")
    return judge_hang(one.samples, one.texts, matches, one.records, blame=blame)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("name", "cause", "says"),
    [
        ("loop", "dt_loop_wait", "the kernel is in dt_loop_wait"),
        ("spin", "dt_spin_init", "or in what it calls"),
        ("halt", "dt_halt_init", "halted with interrupts off in dt_halt_init"),
        ("deadlock", "dt_deadlock_init", "the kernel reports it in dt_deadlock_init"),
    ],
)
def test_a_kernel_that_was_seen_to_hang_is_blamed(host: str, name: str, cause: str, says: str) -> None:
    hang = judged(recorded(f"{host}-{name}"))
    assert (hang.status, hang.cause) == (Status.FAIL, cause)
    assert says in hang.what
    assert any(cause in line for line in hang.evidence)


@pytest.mark.parametrize("host", HOSTS)
def test_an_idle_cpu_and_a_process_in_user_mode_prove_nothing(host: str) -> None:
    silent = recorded(f"{host}-deadlock")
    silent.records = []
    assert (judged(silent).status, judged(silent).cause) == (Status.ERROR, "idle")
    assert (judged(recorded(f"{host}-user")).status, judged(recorded(f"{host}-user")).cause) == (Status.ERROR, "user")


Change = Callable[[Recorded, Recorded], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda one, other: one.samples.__setitem__(slice(2), other.samples[:2]),  # half of the time it is elsewhere
        lambda one, _: one.samples.__delitem__(slice(MIN_SAMPLES - 1, None)),  # too little was seen
        lambda one, _: one.samples.clear(),
        lambda one, _: one.texts.clear(),  # nobody knows whose code it is
        lambda one, other: setattr(one, "texts", other.texts),
    ],
)
@pytest.mark.parametrize("name", ["loop", "spin"])
def test_less_than_that_is_an_error_and_never_more(change: Change, name: str) -> None:
    one = recorded(f"qemu-svm-{name}")
    change(one, recorded("qemu-svm-deadlock"))
    assert judged(one).status == Status.ERROR


@pytest.mark.parametrize("name", ["loop", "spin"])
def test_what_keeps_a_module_busy_for_another_reason_than_a_load_is_not_blamed(name: str) -> None:
    assert judged(recorded(f"bochs-vmx-{name}"), blame=False).status == Status.ERROR


def test_one_sample_in_an_interrupt_does_not_acquit() -> None:
    one = recorded("qemu-svm-loop")
    elsewhere = msgspec.structs.replace(one.samples[0], at=Place(KERNEL, KERNEL, b""), callers=(), interrupts=False)
    one.samples[1] = elsewhere
    assert judged(one).status == Status.FAIL
    one.samples[2] = elsewhere
    assert judged(one).status == Status.ERROR


def test_a_report_that_names_no_module_is_no_evidence_against_one() -> None:
    one = recorded("bochs-vmx-deadlock")
    one.records = [msgspec.structs.replace(r, text=r.text.replace("[dt_deadlock]", "")) for r in one.records]
    assert judged(one).status == Status.ERROR


@pytest.mark.parametrize("module", ["arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "virt/lib/irqbypass.ko"])
def test_code_is_found_wherever_it_was_loaded_and_whatever_was_patched(kernel_build: Path, module: str) -> None:
    chance = random.Random(module)
    texts = [
        text
        for name in ("kvm", "kvm-intel", "kvm-amd")
        for text in module_texts((kernel_build / f"arch/x86/kvm/{name}.ko").read_bytes(), name)
    ] + module_texts((kernel_build / "virt/lib/irqbypass.ko").read_bytes(), "irqbypass")
    missed = 0
    for text in (text for text in texts if text.module == Path(module).stem):
        pairs = zip(text.code, text.mask, strict=True)
        memory = bytes(byte if mask else chance.randrange(256) for byte, mask in pairs)
        base = 0xFFFFFFFFC0000000 + 4096 * chance.randrange(1000)
        for _ in range(200):
            offset = chance.randrange(len(memory))
            start = max(offset - AROUND, 0)
            found = locate(texts, base + offset, base + start, memory[start : offset + AROUND])
            begin, name = max((one for one in text.functions if one[0] <= offset), default=(0, ""))
            assert found is None or (found.module, found.function, found.offset) == (text.module, name, offset - begin)
            missed += found is None
            # Neither something else nor the same thing at an address where the loader would not put it.
            assert locate(texts, base + offset, base + start, chance.randbytes(2 * AROUND)) is None
    assert missed < 20, "twins of a few bytes"


def test_a_sample_reads_no_more_than_is_mapped() -> None:
    asked: list[tuple[int, int]] = []

    def read(address: int, size: int) -> bytes:
        asked.append((address, size))
        return bytes(size)

    top = 0xFFFFC90000004000
    sample = take(Registers(0xFFFFFFFFA0001002, top - 24, user=False, interrupts=True, halted=False), read)
    assert sorted(asked) == [(top - 24, 24), (0xFFFFFFFFA0001000, AROUND + 2)]
    assert sample.at.start == 0xFFFFFFFFA0001000
    asked.clear()
    take(Registers(0x400FFF, 0x7FFF0000, user=True, interrupts=True, halted=False), read)
    assert asked == [(0x400FFF - AROUND, AROUND + 1)]
