"""KVM-unit-tests: small guests that a KVM runs, from a checkout of the user's. They judge the kernel that runs here."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild import command
from kbuild.bar.tap import read_tap
from kbuild.barrecord import UnitTests
from kbuild.configure import git
from kbuild.elf.image import build_id_of
from kbuild.errors import HarnessError, UserError
from kbuild.hosts.nested import DEVICE
from kbuild.paths import make_folder

SECONDS = 4 * 3600
"""For all of them: some hundred, with 90 s each at most."""
_VENDORS = ("kvm_intel", "kvm_amd")
_NAMES = ("configure", "run_tests.sh", "x86/unittests.cfg")


def check(name: str) -> Path:
    """The folder that was given. Raises UserError for what is no checkout of kvm-unit-tests."""
    folder = Path(name).expanduser().resolve()
    if missing := [one for one in _NAMES if not (folder / one).is_file()]:
        raise UserError(f"--kvm-unit-tests {name}: no checkout of kvm-unit-tests: it has no {missing[0]}")
    return folder


@dataclass(frozen=True)
class Machine:
    """Where a machine says what it runs; tests have one of their own."""

    device: Path = DEVICE
    modules: Path = Path("/sys/module")


HERE = Machine()


def why_not(release: str | None, builds: Mapping[str, str | None], machine: Machine = HERE) -> str | None:
    """Why this machine cannot run them on the kernel of that release, with modules of these build IDs; None: it can."""
    device = machine.device
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"they need hardware virtualization, and this machine has none to give: {device}: {error.strerror}"
    if release is None:
        return "the last patch's kernel was not built"
    if platform.release() != release:
        return (
            f"they judge the KVM that runs here, which is {platform.release()}'s; "
            f"boot {release} on this machine and start again"
        )
    # Each patch's kernel, and the base's, has this release.
    for name in ("kvm", *(one for one in _VENDORS if (machine.modules / one).is_dir())):
        note = machine.modules / name / "notes/.note.gnu.build-id"
        try:
            loaded = build_id_of(note.read_bytes())
        except OSError as error:
            return f"nothing tells whose {name} runs here: {note}: {error.strerror}"
        if loaded is None or loaded != builds.get(name):
            return f"the {name} that runs here is not the last patch's, but one with the build ID {loaded or 'none'}"
    return None


def run_units(
    folder: Path, release: str | None, builds: Mapping[str, str | None], scratch: Path, machine: Machine = HERE
) -> UnitTests:
    """Build them in a copy (`scratch`), and run them: `./configure`, `make`, `./run_tests.sh -t`.

    `release`: what `uname -r` has to say, or the tests would judge another kernel; `builds`: of KVM's modules, by their
    names in /sys/module, the build IDs.
    """
    done = git.call("-C", folder, "rev-parse", "HEAD", check=False)
    result = UnitTests(commit=done.output.strip()[:12] if done.status == 0 else "")
    if reason := why_not(release, builds, machine):
        result.reason = reason
        return result
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return run_copy(scratch, result)


def run_copy(folder: Path, result: UnitTests, *tests: str) -> UnitTests:
    """Build and run what lies there; `tests`: these alone."""
    log_file = make_folder(folder) / "kvm-kbuild.log"
    lines: list[str] = []
    for argv in (["./configure"], ["make", f"-j{os.cpu_count() or 1}"], ["./run_tests.sh", "-t", *tests]):
        lines = []
        try:
            done = command.run(
                ["sh", "-c", 'exec "$@"', "sh", *argv],
                cwd=folder,
                # Left to itself, or to what the user has set, it runs them in an emulator where KVM does not start.
                env={"ACCEL": "kvm"},
                timeout=SECONDS,
                on_line=lines.append,
                log_file=log_file,
                check=False,
            )
        except HarnessError as error:
            result.reason = str(error)
            return result
        # The tests' own status says that one failed, which their output does, too.
        if done.status and argv[0] != "./run_tests.sh":
            last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
            result.reason = f"{argv[0]} ended with status {done.status}: {last}; see {log_file}"
            return result
    tap = read_tap(lines)
    result.passed, result.skipped, result.failed = len(tap.passed), len(tap.skipped), [*tap.failed]
    if tap.planned is None:
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        result.reason = f"./run_tests.sh did not come to its end: {last}; see {log_file}"
    elif tap.missing:
        result.reason = f"{tap.missing} tests that were to be run did not say how they ended; see {log_file}"
    elif done.status and not tap.failed:
        result.reason = (
            f"./run_tests.sh ended with status {done.status}, and no test says that it failed; see {log_file}"
        )
    elif not tap.passed:
        result.reason = f"none was run: {len(tap.skipped)} skipped; see {log_file}"
    return result
