"""Protects the line between "the kernel is wrong" and "the host may not be able to": what a host was seen to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kbuild.load.knowledge import Knowledge


def test_what_was_seen_holds_for_the_series_the_host_and_its_emulator(tmp_path: Path) -> None:
    Knowledge("bochs-vmx", "d1", tmp_path).note("load:kvm_intel", "6.1.192-kbuild", "run-1")
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_intel", "6.1.7") == "run-1"
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_intel", "6.12.1") is None
    assert Knowledge("bochs-vmx", "d2", tmp_path).has_done("load:kvm_intel", "6.1.192") is None
    assert Knowledge("other", "d1", tmp_path).has_done("load:kvm_intel", "6.1.192") is None
    assert Knowledge("bochs-vmx", "d1", tmp_path).has_done("load:kvm_amd", "6.1.192") is None


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    def note(number: int) -> None:
        Knowledge("h", "d", tmp_path).note(f"load:m{number}", "6.1", f"run-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    seen = Knowledge("h", "d", tmp_path)
    assert [seen.has_done(f"load:m{n}", "6.1") for n in range(40)] == [f"run-{n}" for n in range(40)]


def test_a_damaged_file_is_no_knowledge(tmp_path: Path) -> None:
    Knowledge("h", "d", tmp_path).note("load:m", "6.1", "r")
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(b"{")
    assert Knowledge("h", "d", tmp_path).has_done("load:m", "6.1") is None


def test_how_slow_the_last_boot_was_is_kept(tmp_path: Path) -> None:
    seen = Knowledge("h", "d", tmp_path)
    assert seen.slowness() is None
    seen.note("load:m", "6.1", "r")
    seen.note_slowness(3.14159)
    seen.note_slowness(1.5)
    assert Knowledge("h", "d", tmp_path).slowness() == 1.5
    assert seen.has_done("load:m", "6.1") == "r"
