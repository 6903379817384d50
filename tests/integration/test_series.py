"""Protects the answer to "which patch is it?": each entry is held against the one before it, what is the same is judged
once, and a series that was killed goes on and ends as the one that was not.

The entries here are folders of modules, changed byte by byte, so that no kernel is built for them; commits and an mbox
of a real tree are judged with `inv test --all-kernels`.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kbuild.elf.object import ElfObject
from kbuild.report.write import FORMATS
from tests.integration.conftest import Tool
from tests.integration.test_designs import CALL, HEADER, INIT, MMU, SETUP, SPLIT, SVM, X86

pytestmark = pytest.mark.kernel

KVM = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
LINE = 8
"""Of the first entry of 6.1's bug table (include/asm-generic/bug.h)."""
KILLS = 6
TREE_KILLS = 20

# Goes through the series of these folders; the process that does so can be killed.
DRIVE = """
import json, sys
from pathlib import Path
from kbuild import log
from kbuild.gate.request import GateRequest
from kbuild.progress import Silent
from kbuild.series.judge import Judge, entries_of
from kbuild.seriesrecord import begin
folder, kernel = map(Path, sys.argv[1:3])
log.configure(-1)
names = sorted(path.name for path in folder.iterdir() if path.is_dir())
series = begin("a test", "none", "folders", entries_of((names[0], "base"), [(name, name) for name in names[1:]]))
def request(entry):
    return GateRequest(
        task="gate", command="none", modules=str(folder / entry.id), kernel=str(kernel), orders=("vendor-alone",),
        hosts=("qemu-svm",), rules=("mmu-setup-thread",), verbosity=-1,
    )
Judge(series, request, lambda entry: Silent(), lambda entry: None, ahead=int(sys.argv[3])).run()
"""


@pytest.fixture(scope="module")
def folders(kernel_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As built; another line in a bug table; a module without its license; that again; as built."""
    home = tmp_path_factory.mktemp("folders")
    for name in ("0-base", "1-line", "2-license", "3-the-same", "4-mended"):
        (home / name).mkdir()
        for path in KVM:
            shutil.copy(kernel_build / path, home / name)
    kvm = home / "1-line/kvm.ko"
    data = bytearray(kvm.read_bytes())
    data[ElfObject(bytes(data)).by_name["__bug_table"].offset + LINE] ^= 1
    kvm.write_bytes(data)
    for name in ("2-license", "3-the-same"):
        amd = home / name / "kvm-amd.ko"
        amd.write_bytes(amd.read_bytes().replace(b"license=GPL\0", b"license=GPX\0", 1))
    return home


def drive(tool: Tool, folders: Path, kernel_build: Path, ahead: int = 1) -> subprocess.Popen[str]:
    kernel = kernel_build / "arch/x86/boot/bzImage"
    argv = [sys.executable, "-c", DRIVE, str(folders), str(kernel), str(ahead)]
    return subprocess.Popen(argv, env=tool.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(tool: Tool) -> list[tuple[Any, ...]]:
    """What the table of the only series says."""
    (path,) = (tool.runs.parent / "series").glob("*/series.json")
    record = json.loads(path.read_text())
    keys = ("id", "status", "verdict", "same_as", "blamed", "mended")
    assert record["ended"]
    return [tuple(entry.get(key) for key in keys) for entry in record["entries"]]


def test_each_is_held_against_the_one_before_it(tool: Tool, folders: Path, kernel_build: Path) -> None:
    process = drive(tool, folders, kernel_build)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    base, line, license_, same, mended = outcome(tool)
    assert base[:4] == ("0-base", "FAIL", "FAIL", None), "it breaks the thread's rules; nobody is to blame for that"
    assert line[:4] == ("1-line", "PASS", "FAIL", "0-base")
    assert license_[:4] == ("2-license", "FAIL", "FAIL", None)
    # kernel/module/main.c, resolve_symbol(): symbols that are exported for GPL modules only are not there for others.
    assert any(name.startswith("load:unknown-symbol:kvm_amd:") for name in license_[4])
    assert same == ("3-the-same", "PASS", "FAIL", "2-license", None, None)
    assert mended[:4] == ("4-mended", "PASS", "FAIL", "0-base")
    assert mended[5] == license_[4]
    (path,) = (tool.runs.parent / "series").glob("*/series.json")
    shown = tool.run("report", path.parent.name)
    assert shown.returncode == 10, "the verdict of the series"
    assert "2-license" in shown.stdout
    assert "to blame for" in shown.stdout
    for form in FORMATS:
        written = tool.run("report", path.parent.name, "--format", form)
        assert written.returncode == 10, written.stderr
        assert "2-license" in written.stdout
        assert "unknown-symbol" in written.stdout or form == "kcidb", "what it is to blame for"


def test_killed_at_any_moment_it_goes_on(tool: Tool, folders: Path, kernel_build: Path) -> None:
    # One by one; what is killed loads two side by side.
    drive(tool, folders, kernel_build).communicate(timeout=600)
    undisturbed = outcome(tool)
    shutil.rmtree(tool.runs.parent)
    moments = random.Random(1)
    for _ in range(KILLS):
        process = drive(tool, folders, kernel_build, ahead=2)
        try:
            process.communicate(timeout=moments.uniform(0.2, 3))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        for record in tool.runs.parent.rglob("*.json"):
            if record.name in ("record.json", "series.json"):
                json.loads(record.read_text())
    process = drive(tool, folders, kernel_build, ahead=2)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert outcome(tool) == undisturbed


# With --all-kernels: a git tree of 6.1, with the series of the issue.

PATCHES: tuple[tuple[str, dict[str, dict[str, str]]], ...] = (
    ("KVM: x86/mmu: Create the MMU's caches after hardware_setup()", {**SPLIT, X86: {SETUP: SETUP + CALL}}),
    (
        "KVM: x86/mmu: Say which cache could not be made",
        {
            MMU: {
                f"\treturn pte_list_desc_cache ? 0 : -ENOMEM;\n}}\n\n{INIT}": "\tif (!pte_list_desc_cache)\n"
                '\t\tpr_warn("kvm: no memory for pte_list_desc\\n");\n'
                f"\treturn pte_list_desc_cache ? 0 : -ENOMEM;\n}}\n\n{INIT}"
            }
        },
    ),
    ("KVM: x86: Make the caches before the vendor's set-up", {X86: {SETUP + CALL: CALL + SETUP}}),
    (
        "KVM: x86/mmu: Explain the cache",
        {MMU: {"int kvm_mmu_hardware_setup(void)\n": "/* As\n * told. */\nint kvm_mmu_hardware_setup(void)\n"}},
    ),
    ("KVM: x86: Make the caches after the vendor's set-up again", {X86: {CALL + SETUP: SETUP + CALL}}),
)
LESS = ("KVM: SVM: Take the parameter 'vls' out", {SVM: {"module_param(vls, int, 0444);\n": ""}})
"""On a branch of its own: behind it an order's runs with and without that are no more."""
ORDER = """\
id = "vls"
title = "It loads with and without virtual VMLOAD and VMSAVE"
modules = ["{vendor}"]
needs = ["svm"]

[[matrix]]
module = "{vendor}"
params = { vls = [0, 1] }
when = { has_parameter = "{vendor}.vls" }

[[step]]
load = "{vendor}"

[[step]]
unload = "{vendor}"
"""
AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A Developer"), ("EMAIL", "dev@example.org"), ("DATE", "2026-01-01T00:00:00Z"))
}
RULES = ("pte-list-desc-cache-after-hardware-setup", "pte-list-desc-cache-after-tdp-is-known")
ANSWERS = sorted(f"inspect:rule:{vendor}:{rule}" for vendor in ("kvm-amd", "kvm-intel") for rule in RULES)


@pytest.fixture(scope="module")
def checkout(kernel_source: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    if not request.config.getoption("--all-kernels"):
        pytest.skip("only with --all-kernels")
    tree = tmp_path_factory.mktemp("git") / "linux"
    subprocess.run(["cp", "-a", kernel_source, tree], check=True)

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tree, *arguments], check=True, env={**os.environ, **AUTHOR}, capture_output=True)

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message=Linux 6.1 as Debian has it")

    def patch(subject: str, changes: dict[str, dict[str, str]]) -> None:
        for path, some in changes.items():
            text = (tree / path).read_text()
            for before, after in some.items():
                assert text.count(before) == 1, (path, before)
                text = text.replace(before, after)
            (tree / path).write_text(text)
        git("commit", "--quiet", "--all", f"--message={subject}")

    for subject, changes in PATCHES:
        patch(subject, changes)
    git("checkout", "--quiet", "-b", "less")
    patch(*LESS)
    git("checkout", "--quiet", "main")
    assert HEADER in PATCHES[0][1]
    return tree


def judged(tool: Tool, tree: Path, *words: str | Path) -> list[dict[str, Any]]:
    options = ("--rules", "mmu-setup-thread", "--order", "vendor-alone", "--host", "qemu-svm", "--json")
    done = tool.run("series", "--tree", tree, *words, *options)
    assert done.returncode == 10, done.stderr
    entries: list[dict[str, Any]] = json.loads(done.stdout)["entries"]
    return entries


def as_the_thread_says(entries: list[dict[str, Any]]) -> None:
    assert [one["subject"] for one in entries[1:]] == [subject for subject, _ in PATCHES]
    assert [one["status"] for one in entries[1:]] == ["PASS", "PASS", "FAIL", "PASS", "PASS"]
    assert [one.get("blamed", []) for one in entries] == [[], [], [], ANSWERS, [], []]
    assert [one.get("mended", []) for one in entries] == [[], ANSWERS, [], [], [], ANSWERS]
    assert entries[4]["same_as"] == entries[3]["id"], "comments alone: nothing is loaded for them"
    assert entries[1]["changes"]["flow"]


def test_a_range_blames_the_third_patch(shared_tool: Tool, checkout: Path) -> None:
    as_the_thread_says(judged(shared_tool, checkout, "--range", "main~5..main"))


def test_killed_twenty_times_on_a_real_tree(tool: Tool, checkout: Path) -> None:
    """While it checks out, configures, builds, inspects and loads: what make had started does not build on."""
    options = ("--rules", "mmu-setup-thread", "--order", "vendor-alone", "--host", "qemu-svm")
    moments = random.Random(2)
    for _ in range(TREE_KILLS):
        with tool.start("series", "--tree", checkout, "--range", "main~5..main", *options) as process:
            try:
                process.communicate(timeout=math.exp(moments.uniform(math.log(0.5), math.log(60))))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
    as_the_thread_says(judged(tool, checkout, "--range", "main~5..main"))


def test_what_is_not_run_any_more_does_not_pass(shared_tool: Tool, checkout: Path, tmp_path: Path) -> None:
    order = tmp_path / "vls.toml"
    order.write_text(ORDER)
    options = ("--rules", "mmu-setup-thread", "--order", order, "--host", "qemu-svm", "--json")
    done = shared_tool.run("series", "--tree", checkout, "--range", "main..less", *options)
    assert done.returncode == 3, done.stderr
    base, less = json.loads(done.stdout)["entries"]
    assert (base["status"], less["status"], less.get("blamed")) == ("PASS", "MISS", None)
    assert less["verdict"] == "PASS", "alone it has nothing wrong"
    assert less["evidence"] == [f"qemu-svm, vls@kvm_amd.vls={value}: PASS → not run" for value in (0, 1)]


def mails(checkout: Path) -> bytes:
    """The series as it is sent to a list."""
    argv = ["git", "-C", str(checkout), "format-patch", "--quiet", "--cover-letter", "--base=main~5", "--stdout"]
    done = subprocess.run([*argv, "main~5..main"], check=True, env={**os.environ, **AUTHOR}, capture_output=True)
    return done.stdout


def test_the_same_from_an_mbox(shared_tool: Tool, checkout: Path, tmp_path: Path) -> None:
    mbox = tmp_path / "thread.mbox"
    mbox.write_bytes(mails(checkout))
    as_the_thread_says(judged(shared_tool, checkout, "--mbox", mbox))


def test_bisect_finds_the_third(shared_tool: Tool, checkout: Path) -> None:
    ends = ("--good", "main~4", "--bad", "main~1", "--finding", ANSWERS[0])
    options = ("--rules", "mmu-setup-thread", "--order", "vendor-alone", "--host", "qemu-svm", "--json")
    done = shared_tool.run("bisect", "--tree", checkout, *ends, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["first_bad"]["subject"] == PATCHES[2][0]
    for good, bad, why in (("main~5", "main~1", "is in it already"), ("main~4", "main~3", "is not in it")):
        ends = ("--good", good, "--bad", bad, "--finding", ANSWERS[0])
        done = shared_tool.run("bisect", "--tree", checkout, *ends, *options)
        assert done.returncode == 3
        assert why in done.stderr


def test_a_patch_that_does_not_apply_is_that_patch_s_fail(shared_tool: Tool, checkout: Path, tmp_path: Path) -> None:
    mbox = tmp_path / "thread.mbox"
    mbox.write_bytes(mails(checkout).replace(b"\tr = ops->hardware_setup();", b"\tr = ops->hardware_setup(0);"))
    entries = judged(shared_tool, checkout, "--mbox", mbox)
    assert [one["status"] for one in entries[1:]] == ["FAIL", "SKIP", "SKIP", "SKIP", "SKIP"]
    assert any("hardware_setup(0)" in line for line in entries[1]["evidence"])
