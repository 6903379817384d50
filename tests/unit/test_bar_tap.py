"""Protects the reading of KVM-unit-tests' results: what failed, or never came, must not pass for what passed.

The sample is what their `run_tests.sh -t` printed of six tests with QEMU's TCG, of commit 1da1819e49fc.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest

from kbuild.bar.tap import read_tap
from kbuild.bar.units import Machine, check, run_copy, run_units, why_not
from kbuild.barrecord import UnitTests
from kbuild.errors import UserError

SAMPLE = Path(__file__).parent.parent / "data/bar/kvm-unit-tests.tap"


def test_what_their_script_prints() -> None:
    lines = SAMPLE.read_text().splitlines()
    tap = read_tap(lines)
    assert tap.planned == 191
    assert not tap.missing
    assert len(tap.failed) == sum(line.startswith("not ok") for line in lines)
    assert len(tap.skipped) == sum(line.endswith("# skip") for line in lines)
    assert "emulator: non-canonical rsp-based access, should #SS(0), got #GP(0)" in tap.failed, "a # in a name"
    assert "emulator: MOVBE unsupported by CPU" in tap.skipped
    assert "sieve: timeout; duration=180" in tap.failed


def test_what_is_cut_off_is_missing() -> None:
    lines = SAMPLE.read_text().splitlines()
    assert read_tap(lines[:100]).planned is None, "the plan comes last"
    assert read_tap([*lines[:100], lines[-1]]).missing == 92


@pytest.mark.parametrize(
    ("line", "passed", "failed", "skipped"),
    [
        ("ok 1 - a: b", 1, 0, 0),
        ("ok", 1, 0, 0),
        ("not ok 2 - a: b", 0, 1, 0),
        ("ok 3 - a # SKIP no such CPU", 0, 0, 1),
        ("not ok 4 - a # TODO later", 0, 0, 1),
        ("ok 4 - a # TODO later", 1, 0, 0),
        ("    not ok 1 - of a subtest", 0, 0, 0),
        ("okay, says the guest", 0, 0, 0),
        ("notok 1 - a", 0, 0, 0),
        ("not ok 5 - a # skipping stones", 0, 0, 1),
    ],
)
def test_lines(line: str, passed: int, failed: int, skipped: int) -> None:
    tap = read_tap([line])
    assert (len(tap.passed), len(tap.failed), len(tap.skipped)) == (passed, failed, skipped)


def test_a_guest_s_output_cannot_write_to_the_terminal() -> None:
    assert read_tap(["not ok 1 - \x1b[2Jgone"]).failed == ("?[2Jgone",)


BUILDS = {"kvm": "01" * 20, "kvm_amd": "02" * 20, "kvm_intel": "03" * 20}


def machine(folder: Path, *loaded: str) -> Machine:
    """One with a device, and these of the modules, as /sys/module shows their notes (ELF: name, type, description)."""
    (folder / "dev").mkdir(parents=True)
    (folder / "dev/kvm").touch()
    for name in loaded:
        note = folder / "module" / name / "notes/.note.gnu.build-id"
        note.parent.mkdir(parents=True)
        note.write_bytes(struct.pack("<III4s", 4, 20, 3, b"GNU") + bytes.fromhex(BUILDS[name]))
    return Machine(folder / "dev/kvm", folder / "module")


def test_they_judge_the_kernel_that_runs_here(tmp_path: Path) -> None:
    here, release = machine(tmp_path, "kvm", "kvm_amd"), platform.release()
    assert "/nowhere: No such file" in (why_not("6.1", BUILDS, Machine(Path("/nowhere"))) or "")
    assert f"which is {release}'s; boot 6.1-other" in (why_not("6.1-other", BUILDS, here) or "")
    assert "was not built" in (why_not(None, BUILDS, here) or "")
    assert why_not(release, BUILDS, here) is None


def test_the_kernel_of_another_patch_has_the_same_release(tmp_path: Path) -> None:
    here, release = machine(tmp_path / "a", "kvm", "kvm_amd"), platform.release()
    for name in ("kvm", "kvm_amd"):
        said = why_not(release, {**BUILDS, name: "04" * 20}, here) or ""
        assert said == f"the {name} that runs here is not the last patch's, but one with the build ID {BUILDS[name]}"
    assert "nothing tells whose kvm runs here" in (why_not(release, BUILDS, machine(tmp_path / "b")) or "")
    assert why_not(release, {}, here) is not None


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkout of kvm-unit-tests: it has no configure"):
        check(str(tmp_path))


def checkout(folder: Path, run: str, configure: str = "exit 0") -> Path:
    """Something of their form, whose script prints what a real one printed."""
    (folder / "x86").mkdir(parents=True)
    (folder / "x86/unittests.cfg").touch()
    (folder / "Makefile").write_text("all:\n\t@true\n")
    for name, text in (("configure", configure), ("run_tests.sh", run)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def test_they_are_built_and_run(tmp_path: Path) -> None:
    run = f'[ "$1" = -t ] && cat {SAMPLE}; exit 1'
    done = run_copy(check(str(checkout(tmp_path / "kut", run))), UnitTests())
    assert (done.passed, done.skipped, len(done.failed), done.reason) == (182, 2, 7, None)


@pytest.mark.parametrize(
    ("run", "configure", "why"),
    [
        ("exit 0", "echo no compiler; exit 3", "./configure ended with status 3: no compiler"),
        ("echo ok 1 - a; exit 0", "exit 0", "did not come to its end: ok 1 - a"),
        ("echo ok 1 - a; echo 1..3", "exit 0", "2 tests that were to be run did not say how they ended"),
        ("echo ok 1 - a '# skip'; echo 1..1", "exit 0", "none was run: 1 skipped"),
        ("echo 1..0", "exit 0", "none was run: 0 skipped"),
        ("echo ok 1 - a; echo 1..1; exit 3", "exit 0", "ended with status 3, and no test says that it failed"),
    ],
)
def test_what_does_not_come_to_its_end_says_why(tmp_path: Path, run: str, configure: str, why: str) -> None:
    done = run_copy(checkout(tmp_path / "kut", run, configure), UnitTests())
    assert why in (done.reason or "")


def test_without_hardware_they_are_not_run(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "kut", "touch ran")
    done = run_units(folder, platform.release(), BUILDS, tmp_path / "copy", Machine(tmp_path / "kvm"))
    assert f"{tmp_path}/kvm: No such file" in (done.reason or "")
    assert not (tmp_path / "copy").exists()


def test_on_the_kernel_that_is_asked_for_they_are_run_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEL", "tcg")  # scripts/arch-run.bash there, get_qemu_accelerator()
    folder = checkout(tmp_path / "kut", 'touch ran; [ "$ACCEL" = kvm ] && echo ok 1 - a; echo 1..1')
    here = machine(tmp_path / "machine", "kvm", "kvm_intel")
    done = run_units(folder, platform.release(), BUILDS, tmp_path / "copy", here)
    assert (done.passed, done.reason) == (1, None)
    assert (tmp_path / "copy/ran").exists()
    assert not (folder / "ran").exists()
