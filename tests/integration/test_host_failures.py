"""Protects the kernel from blame, and the user from a traceback, when the machine fails: disks that are full, read-only
or gone, emulators that are missing or refuse to start. Each is MISS, one line that says what and where, exit status 3;
with the machine mended, the same command works, and nothing that was written by half is taken for whole.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kbuild.configure.tree import Tree
from kbuild.gate.wanted import build_request, requested_symbols
from kbuild.paths import PROJECT, cache_home
from kbuild.profile import read_profile
from tests.integration.conftest import Tool, wait_for
from tests.integration.mounts import Mounts, own_mounts

pytestmark = pytest.mark.kernel

FULL = "No space left on device"
READ_ONLY = "Read-only file system"


@pytest.fixture
def mounts(tool: Tool) -> Iterator[Mounts]:
    with own_mounts(tool) as made:
        yield made


@pytest.fixture(scope="module")
def small_tree(kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of 6.1 can be configured, and no more: to copy it takes no time."""
    folder = tmp_path_factory.mktemp("small") / "linux"
    whole = ("scripts/", "arch/x86/")
    for base, _, files in os.walk(kernel_source):
        relative = f"{Path(base).relative_to(kernel_source)}/".removeprefix("./")
        for name in files:
            if not relative or relative.startswith(whole) or name.startswith("Kconfig"):
                (folder / relative).mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(base, name), folder / relative / name, follow_symlinks=False)
    return folder


@pytest.fixture
def objects(kernel_build: Path, kernel_tree: Tree) -> Path:
    """The default profile's object folder, which a test sees with its own changes only."""
    profile = read_profile("default")
    assert kernel_build == build_request(profile, kernel_tree, requested_symbols(profile)).objects
    return kernel_build


def missed(tool: Tool, done: subprocess.CompletedProcess[str], stage: str) -> str:
    """The one line of a run that MISSed in a stage, in its report and in its record."""
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    folder = Path(done.stdout.rpartition("record: ")[2].partition("\n")[0])
    record = json.loads((folder / "record.json").read_text())
    assert record["verdict"] == "MISS"
    assert (record["stages"][-1]["name"], record["stages"][-1]["status"]) == (stage, "MISS")
    assert tool.processes() == {}
    error: str = record["error"]
    assert error in done.stdout.splitlines()
    assert done.stderr == ""
    return error


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error where there is no record that could say it."""
    assert done.returncode == 3, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("MISS: ")
    return line


# Full disks, stage by stage.


def test_no_space_for_the_tree_and_the_configuration(
    tool: Tool, mounts: Mounts, small_tree: Path, tmp_path: Path
) -> None:
    cache, scratch = mounts.disk(tmp_path / "cache", "10m"), mounts.disk(tmp_path / "scratch", "4k")
    command = ("configure", "--tree", small_tree, "--quiet")
    error = missed(tool, mounts.run(*command, XDG_CACHE_HOME=str(cache)), "tree")
    assert f"cannot be copied to {cache}" in error
    assert FULL in error

    mounts.resize(cache, "100m")
    error = missed(tool, mounts.run(*command, XDG_CACHE_HOME=str(cache), TMPDIR=str(scratch)), "configure")
    assert str(scratch) in error
    assert error.endswith(FULL)
    assert not list(mounts.seen(cache).glob("kvm-kbuild/trees/*/obj-*/.config"))

    done = mounts.run(*command, XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stdout
    (copy,) = mounts.seen(cache).glob("kvm-kbuild/trees/*/src")
    names = [str(path.relative_to(small_tree)) for path in small_tree.rglob("*") if path.is_file()]
    assert filecmp.cmpfiles(small_tree, copy, names, shallow=False) == (names, [], [])


def test_a_compiler_that_finds_no_space_does_not_blame_the_kernel(
    tool: Tool, mounts: Mounts, objects: Path, tmp_path: Path
) -> None:
    disk = mounts.over(cache_home().parent, tmp_path / "disk")
    mounts.sh('rm -r "$1/kvm-kbuild.json" "$1/arch/x86/kvm"', objects)
    mounts.leave(disk, 1500)
    error = missed(tool, mounts.run("build", "--quiet"), "build")
    assert str(objects) in error
    assert FULL in error or "fixdep: not all data was written" in error
    (log,) = tool.runs.glob("*/build.log")
    assert str(log) in error

    mounts.resize(disk, "1g")
    again = mounts.start("build")
    wait_for(lambda: len(list(tool.runs.glob("*/build.log"))) == 2, again)
    again.send_signal(signal.SIGINT)
    assert "starting from nothing" in again.communicate(timeout=60)[1]


def test_no_space_for_artifacts_costs_no_second_build(
    tool: Tool, mounts: Mounts, objects: Path, tmp_path: Path
) -> None:
    disk = mounts.over(cache_home().parent, tmp_path / "disk")
    mounts.sh('rm "$1/kvm-kbuild.json"', objects)
    mounts.sh('rm -r "$1"', cache_home() / "artifacts")
    mounts.leave(disk, 2000)
    error = missed(tool, mounts.run("build", "--quiet"), "build")
    assert f"cannot be kept below {cache_home()}/artifacts: {FULL}" in error

    mounts.resize(disk, "1g")
    done = mounts.run("build", "--json")
    assert done.returncode == 0, done.stderr
    assert "starting from nothing" not in done.stderr
    for digest in json.loads(done.stdout)["artifacts"].values():
        path = cache_home() / "artifacts" / digest[:2] / digest
        assert mounts.sh('sha256sum <"$1"', path).split()[0] == digest


def load_command(kernel_build: Path, *hosts: str) -> list[str | Path]:
    """Load what was built, in one order."""
    words: list[str | Path] = [word for host in hosts for word in ("--host", host)]
    kernel = kernel_build / "arch/x86/boot/bzImage"
    return ["load", "--modules", kernel_build, "--kernel", kernel, "--order", "vendor-alone", *words, "--json"]


def transcripts(done: subprocess.CompletedProcess[str], status: int = 3) -> dict[str, dict[str, Any]]:
    """Host to transcript of a run whose verdict is not on the kernel."""
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    data = json.loads(done.stdout)
    assert not any(finding["status"] == "FAIL" for finding in data["findings"])
    return {one["host"]: one for one in data["transcripts"]}


def test_no_space_for_what_an_emulator_boots(tool: Tool, mounts: Mounts, kernel_build: Path, tmp_path: Path) -> None:
    """The CD for Bochs in the folder for temporary files; the initramfs in the run's."""
    scratch = mounts.disk(tmp_path / "scratch", "1m")
    found = transcripts(mounts.run(*load_command(kernel_build, "qemu-svm", "bochs-vmx"), TMPDIR=str(scratch)))
    assert found["qemu-svm"]["status"] == "PASS", "it needs no CD"
    assert found["bochs-vmx"]["status"] == "MISS"
    assert "boot.iso" in found["bochs-vmx"]["reason"]
    assert "exceeds free space" in found["bochs-vmx"]["reason"]
    assert list(mounts.seen(scratch).iterdir()) == []

    state = mounts.disk(tmp_path / "full", "100m")
    kept = sum(path.stat().st_size for path in (tool.latest() / "artifacts").iterdir())
    mounts.resize(state, f"{kept // 1024 + 400}k")
    command = load_command(kernel_build, "qemu-svm")
    (one,) = transcripts(mounts.run(*command, XDG_STATE_HOME=str(state))).values()
    assert one["status"] == "MISS"
    assert "boot-1/initramfs" in one["reason"]
    assert FULL in one["reason"]
    mounts.resize(state, "100m")
    assert transcripts(mounts.run(*command, XDG_STATE_HOME=str(state)), 0)
    assert tool.processes() == {}


def test_no_space_for_the_record(mounts: Mounts, kernel_build: Path, tmp_path: Path) -> None:
    """At the run's start, when it keeps what it judges, and when its answer is printed."""
    state = mounts.disk(tmp_path / "full", "4k")
    command = load_command(kernel_build, "qemu-svm")
    line = said(mounts.run(*command, XDG_STATE_HOME=str(state)))
    assert str(state) in line
    assert FULL in line
    mounts.resize(state, "1m")
    done = mounts.run(*command, XDG_STATE_HOME=str(state))
    assert done.returncode == 3, done.stderr
    data = json.loads(done.stdout)
    assert data["verdict"] == "MISS"
    assert data["error"].endswith(f"cannot be written: {FULL}")
    assert not list((mounts.seen(Path(data["folder"])) / "artifacts").iterdir()), "half a file is none"


def test_no_space_for_the_answer(tool: Tool, kernel_build: Path) -> None:
    kernel = kernel_build / "arch/x86/boot/bzImage"
    argv = tool.argv("inspect", "--modules", kernel_build, "--kernel", kernel, "--json")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, env=tool.environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr == f"MISS: the output cannot be written: {FULL}\n"


# Folders that cannot be written to, or go away.


def test_read_only_folders(tool: Tool, mounts: Mounts, kernel_build: Path, tmp_path: Path) -> None:  # noqa: ARG001
    mounts.sh('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', cache_home())
    error = missed(tool, mounts.run("build", "--quiet"), "tree")
    assert str(cache_home()) in error
    assert error.endswith(READ_ONLY)
    state = mounts.disk(tmp_path / "state-read-only", "1m")
    mounts.sh('mount -o remount,ro "$1"', state)
    line = said(mounts.run("build", "--quiet", XDG_STATE_HOME=str(state)))
    assert str(state) in line
    assert line.endswith(READ_ONLY)


def test_a_run_whose_folder_goes_away(tool: Tool, kernel_build: Path) -> None:
    process = tool.start(*load_command(kernel_build, "qemu-svm", "bochs-vmx"))
    logs = "*/hosts/*/boot-1/agent.log"
    wait_for(lambda: len([log for log in tool.runs.glob(logs) if log.stat().st_size]) == 2, process)
    folder = tool.latest()
    shutil.rmtree(folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert err.splitlines()[-1] == f"MISS: {folder}: the run's folder was removed while it was at work"
    assert "Traceback" not in err
    assert tool.processes() == {}
    assert not folder.exists()


# Emulators.


def test_emulators_that_are_not_installed(tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/sbin", "/usr/bin"):
        for path in Path(folder).iterdir():
            if path.name not in ("qemu-system-x86_64", "bochs") and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    found = transcripts(tool.run(*load_command(kernel_build, "qemu-svm", "bochs-vmx"), PATH=str(programs)))
    assert {host: (one["status"], one["reason"]) for host, one in found.items()} == {
        "qemu-svm": ("MISS", "qemu-system-x86_64 is not installed (Debian: qemu-system-x86)"),
        "bochs-vmx": ("MISS", "bochs is not installed (Debian: bochs)"),
    }


def test_emulators_that_refuse_their_configuration(tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    hosts = []
    for name, model in (("qemu-svm", 'cpu = "EPYC,+svm"'), ("bochs-vmx", 'model = "corei7_haswell_4770"')):
        text = (PROJECT / f"profiles/hosts/{name}.toml").read_text()
        assert text.count(model) == 1
        path = tmp_path / f"{name}.toml"
        path.write_text(text.replace(model, f'{model.split()[0]} = "no_such_cpu"'))
        hosts.append(str(path))
    found = transcripts(tool.run(*load_command(kernel_build, *hosts)))
    for host, program in (("qemu-svm", "qemu-system-x86_64"), ("bochs-vmx", "bochs")):
        assert found[host]["status"] == "MISS"
        assert found[host]["reason"].startswith(f"the host failed: {program} ended with status 1: ")
        assert "no_such_cpu" in found[host]["reason"]
    assert tool.processes() == {}


def test_an_emulator_without_its_display(tool: Tool, mounts: Mounts, kernel_build: Path) -> None:
    """Bochs draws on a terminal by a plug-in, which is a package of its own; what else it has wants a window."""
    (plugin,) = Path("/usr/lib").glob("*/bochs/plugins/libbx_term_gui.so")
    mounts.sh('mount --bind /dev/null "$1"', plugin)
    (broken,) = transcripts(mounts.run(*load_command(kernel_build, "bochs-vmx"))).values()
    assert broken["status"] == "MISS"
    assert broken["reason"].startswith("the host failed: bochs ended with status 1: ")
    assert "term" in broken["reason"]
    mounts.sh('mount -t tmpfs none "$1"', plugin.parent)
    (absent,) = transcripts(mounts.run(*load_command(kernel_build, "bochs-vmx"))).values()
    assert (absent["status"], absent["reason"]) == ("MISS", "Bochs has no 'term' display (Debian: bochs-term)")
    assert tool.processes() == {}
