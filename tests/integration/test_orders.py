"""Protects orders on real kernels: the library holds, each expectation is really looked at, and names lead back."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kbuild.outcome import RUN_OF
from kbuild.paths import PROJECT
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

LIBRARY = sorted(path.stem for path in (PROJECT / "profiles/orders").glob("*.toml") if path.stem != "vendor-orders")
"""Without the 200 sequences, which take minutes in Bochs; their little brother has 36."""

LIES = """\
id = "lies"
title = "Each of these is not so"
modules = ["kvm-amd"]

[[step]]
repeat = 2

[[step.step]]
load = "kvm-amd"
params = { nested = 1 }

[[step.step.expect]]
log.must_not = ["nested-virtualization"]
why = "arch/x86/kvm/svm/svm.c, svm_hardware_setup(): says nothing"

[[step.step]]
check = "module"
module = "kvm"
refs = 2

[[step.step]]
check = "module"
module = "kvm"
holders = []

[[step.step]]
check = "parameters"
module = "kvm_amd"
params = { npt = false }

[[step.step]]
check = "log"
log.must = ["nested-paging-disabled"]
log.must_not = ["nested-paging-enabled"]

[[step.step]]
unload = "kvm-amd"

[[step]]
load = "kvm-amd"
params = { nested = 1 }

[[step.expect]]
errno = "EINVAL"
log.must = ["parameter-invalid"]
why = "kernel/params.c, parse_args(): takes no numbers"
"""
PARAMETERS = """\
id = "parameters"
title = "Values that are taken, and values that are refused, by the loader and by init; then it stays for good"
modules = ["dt_forever"]
parameters = ["dt_forever.small"]

[[step]]
load = "dt_forever"
params = { small = 70000 }

[[step.expect]]
errno = "ERANGE"
log.must = ["parameter-invalid"]
why = "kernel/params.c, param_set_ushort(): by kstrtou16(), which knows that it does not fit"

[[step]]
load = "dt_forever"
params = { later = 1 }

[[step.expect]]
errno = "ENODEV"
log.must_not = ["parameter-invalid"]
why = "tests/data/modules/dt_forever.c, dt_forever_init(): refuses it by itself"

[[step]]
check = "module"
module = "dt_forever"
state = "absent"

[[step]]
load = "dt_forever"
params = { yes = "n", small = 9 }

[[step]]
check = "parameters"
module = "dt_forever"
params = { yes = false, small = 9, later = 0 }

[[step]]
unload = "dt_forever"

[[step.expect]]
errno = "EBUSY"
why = "kernel/module/main.c, delete_module(): a module with an init function and no exit function stays"

[[step]]
check = "module"
module = "dt_forever"
state = "live"
refs = 0
holders = []
"""
LEAVES = """\
id = "leaves"
title = "Whatever comes before, the folder in debugfs stays"
modules = ["dt_debugfs"]

[generate]
modules = ["dt_debugfs"]
actions = ["load", "unload"]
length = 2
idle = true
"""
STOPS = """\
id = "stops"
title = "What fails otherwise than it should, with all that begins so"
modules = ["dt_forever"]

[generate]
modules = ["dt_forever"]
actions = ["fail", "load"]
length = 2

[[generate.fail]]
module = "dt_forever"
params = { later = 1 }
errno = "EINVAL"
why = "tests/data/modules/dt_forever.c, dt_forever_init(): is said to give another error than it does"
"""


@pytest.fixture(scope="module")
def modules(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with KVM's modules and two small ones."""
    folder = tmp_path_factory.mktemp("modules")
    for name in ("dmesg/source/dt_debugfs.c", "modules/dt_forever.c"):
        shutil.copy(PROJECT / "tests/data" / name, folder)
    (folder / "Makefile").write_text("obj-m := dt_debugfs.o dt_forever.o\n")
    where = [f"O={kernel_build}", f"M={folder}", "LOCALVERSION=-kbuild"]
    subprocess.run(["make", "-s", "-C", str(kernel_source), *where, "modules"], check=True, capture_output=True)
    for path in (*(kernel_build / "arch/x86/kvm").glob("*.ko"), *(kernel_build / "virt/lib").glob("*.ko")):
        shutil.copy(path, folder)
    return folder


def load(tool: Tool, modules: Path, kernel_build: Path, *words: str | Path) -> tuple[int, dict[str, Any], str]:
    """The exit status, what `--json` printed, and what was told meanwhile."""
    kernel = kernel_build / "arch/x86/boot/bzImage"
    done = tool.run("load", "--modules", modules, "--kernel", kernel, *words, "--json")
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_library_holds(shared_tool: Tool, modules: Path, kernel_build: Path) -> None:
    words = [word for name in LIBRARY for word in ("--order", name)]
    status, data, told = load(shared_tool, modules, kernel_build, *words)
    assert (status, data["verdict"]) == (0, "PASS"), data["findings"]
    skipped = [one for one in data["transcripts"] if one["status"] == "SKIP"]
    # What the host does not give, what only another kernel of the profile has, and programs that only a tree has.
    given = re.compile("^it needs |--flavour |--selftests ")
    assert all(given.search(one["reason"]) for one in skipped)
    assert {one["status"] for one in data["transcripts"] if one not in skipped} == {"PASS"}
    assert {one["order"].partition(RUN_OF)[0] for one in data["transcripts"]} == {*LIBRARY}
    assert len({(one["host"], one["order"]) for one in data["transcripts"]}) == len(data["transcripts"])
    assert {one["host"] for one in data["transcripts"]} == {"qemu-svm", "bochs-vmx"}
    assert "bochs-vmx vendor-orders-idle: 36 runs: 36 PASS" in told
    assert RUN_OF not in told


def test_what_is_not_as_an_order_says_is_found(
    tmp_path: Path, shared_tool: Tool, modules: Path, kernel_build: Path
) -> None:
    """Each lie once for each pass, under the same id."""
    (tmp_path / "lies.toml").write_text(LIES)
    status, data, _ = load(shared_tool, modules, kernel_build, "--host", "qemu-svm", "--order", tmp_path / "lies.toml")
    assert (status, data["verdict"]) == (10, "FAIL")
    found = [finding["id"] for finding in data["findings"] if finding["status"] == "FAIL"]
    assert found == [
        "load:log-unwanted:kvm_amd:lies/1.1-load/nested-virtualization",
        "load:state:kvm:lies/1.2-check",
        "load:state:kvm:lies/1.3-check",
        "load:parameter:kvm_amd.npt:lies/1.4-check",
        "load:log:log:lies/1.5-check",
    ] * 2 + ["load:errno:kvm_amd:lies/2-load"]
    told = {finding["message"] for finding in data["findings"]}
    assert "module kvm: expected refs 2, is refs 1" in told
    assert "module kvm: expected used by no module, is used by kvm_amd" in told
    (transcript,) = data["transcripts"]
    passes = [step["detail"].get("during") for step in transcript["steps"] if step["action"] == "check"]
    assert passes == ["pass 1 of 2"] * 4 + ["pass 2 of 2"] * 4


def test_refused_values_and_a_module_that_stays(
    tmp_path: Path, shared_tool: Tool, modules: Path, kernel_build: Path
) -> None:
    (tmp_path / "parameters.toml").write_text(PARAMETERS)
    words = ("--host", "qemu-svm", "--order", tmp_path / "parameters.toml")
    status, data, _ = load(shared_tool, modules, kernel_build, *words)
    assert (status, data["findings"]) == (0, [])
    errnos = [step["errno"] for step in data["transcripts"][0]["steps"] if step["action"] != "check"]
    assert errnos == ["ERANGE", "ENODEV", None, "EBUSY"]


def test_generated_orders_find_what_stays_and_the_run_is_named(
    tmp_path: Path, shared_tool: Tool, modules: Path, kernel_build: Path
) -> None:
    path = tmp_path / "leaves.toml"
    path.write_text(LEAVES)
    status, data, told = load(shared_tool, modules, kernel_build, "--host", "qemu-svm", "--order", path)
    assert (status, data["verdict"]) == (10, "FAIL")
    outcomes = {one["order"].partition(RUN_OF)[2]: one["status"] for one in data["transcripts"]}
    assert outcomes == {
        "load-dt_debugfs,load-dt_debugfs": "FAIL",
        "load-dt_debugfs,unload-dt_debugfs": "FAIL",
        "unload-dt_debugfs,load-dt_debugfs": "FAIL",
        "unload-dt_debugfs,unload-dt_debugfs": "PASS",
    }
    assert "qemu-svm leaves: 4 runs: 3 FAIL, 1 PASS" in told
    # Two machines took them, each run another guest, and one of them was booted.
    boots = sorted((shared_tool.latest() / "hosts/qemu-svm").iterdir())
    assert [(path / "console.log").exists() for path in boots] == [True] + [False] * (len(boots) - 1)
    assert {one["boot"] for one in data["transcripts"]} == {*range(1, len(boots) + 1)}
    assert len(boots) > 1
    finding = next(one for one in data["findings"] if one["order"].endswith("unload-dt_debugfs,load-dt_debugfs"))
    assert finding["id"].startswith("load:leftover:debugfs/kvm:leaves@unload-dt_debugfs,load-dt_debugfs")
    again = shlex.split(finding["reproduce"])
    assert again[-2:] == ["--order", f"{path}@unload-dt_debugfs,load-dt_debugfs"]
    repeated = json.loads(shared_tool.run(*again[1:], "--json").stdout)
    assert [one["order"] for one in repeated["transcripts"]] == [finding["order"]]
    assert finding["id"] in {one["id"] for one in repeated["findings"]}


def test_what_begins_as_a_run_that_stopped_is_not_run(
    tmp_path: Path, shared_tool: Tool, modules: Path, kernel_build: Path
) -> None:
    """One defect is not told two hundred times."""
    path = tmp_path / "stops.toml"
    path.write_text(STOPS)
    status, data, told = load(shared_tool, modules, kernel_build, "--host", "qemu-svm", "--order", path)
    assert status == 10
    assert [(one["order"], one["status"]) for one in data["transcripts"]] == [
        ("stops@fail-dt_forever,fail-dt_forever", "FAIL"),
        ("stops@fail-dt_forever,load-dt_forever", "SKIP"),
        ("stops@load-dt_forever", "FAIL"),
    ]
    assert data["transcripts"][1]["reason"] == (
        "not run, for its first step is that of stops@fail-dt_forever,fail-dt_forever, which did not get beyond"
    )
    assert [finding["id"] for finding in data["findings"]] == [
        "load:errno:dt_forever:stops@fail-dt_forever,fail-dt_forever/1-load",
        "load:errno:dt_forever:stops@load-dt_forever/end-unload",
    ]
    assert "qemu-svm stops: 3 runs: 2 FAIL, 1 SKIP" in told


def test_where_no_run_is_asked_for_that_there_is_nothing_was_judged(
    shared_tool: Tool, modules: Path, kernel_build: Path
) -> None:
    words = ("--host", "qemu-svm", "--order", "vendor-orders@load-nothing", "--order", "tdp-mmu@kvm.tdp_mmu=2*")
    status, data, _ = load(shared_tool, modules, kernel_build, *words)
    assert (status, data["verdict"]) == (3, "SKIP")
    assert all(one["reason"].startswith("the order has no such run on this") for one in data["transcripts"])
