"""Protects `inv bar` on a real series: each patch is built in each configuration, the guilty one is named, what was not
tested is said, and one that was interrupted goes on. Only with --all-kernels: it builds kernels.

The profile here asks for less than profiles/kvm-x86.toml, which takes an hour.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Tool
from tests.integration.test_series import ANSWERS, PATCHES, checkout, mails

__all__ = ["checkout"]
pytestmark = pytest.mark.kernel

PROFILE = """
title = "less than the bar"

[configure]
fragments = ["base", "kvm", "werror"]

[load]
hosts = ["qemu-svm"]
orders = ["vendor-alone"]
command_line = ["quiet", "mitigations=off", "nokaslr", "panic=-1", "slab_nomerge", "printk.devkmsg=on"]

[bar]
fragments = ["werror", "fixed-version"]
symbols = ["KVM_XEN", "KVM_WERROR"]

[[bar.build]]
name = "xen"
title = "KVM_XEN=y"
options = ["CONFIG_KVM=m", "CONFIG_KVM_AMD=m", "CONFIG_KVM_XEN=y"]
targets = ["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko"]
why = "xen.c is compiled only there"

[[bar.build]]
name = "no-smm"
title = "KVM_SMM=n"
options = ["CONFIG_KVM=m", "CONFIG_KVM_AMD=m", "# CONFIG_KVM_SMM is not set"]
targets = ["arch/x86/kvm/kvm.ko"]
why = "6.1 has no such symbol"

[[bar.area]]
name = "shadow paging"
paths = ["arch/x86/kvm/mmu/*"]
orders = ["tdp-off"]
must = true
why = "it is what runs with TDP off"
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "less.toml"
    path.write_text(PROFILE)
    return path


def held(tool: Tool, status: int, *words: str | Path) -> dict[str, Any]:
    done = tool.run("bar", "--rules", "mmu-setup-thread", "--json", *words)
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_third_patch_is_named(shared_tool: Tool, checkout: Path, profile: Path, tmp_path: Path) -> None:
    words = ("--tree", checkout, "--profile", profile)
    argv: list[str | Path] = ["bar", *words, "--range", "main~5..main", "--rules", "mmu-setup-thread"]
    process = shared_tool.start(*argv)
    assert process.stderr is not None
    for line in process.stderr:
        if " xen-gcc " in line:
            break  # the base is built in the first configuration; the rest is left for the next call
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    found = held(shared_tool, 10, *words, "--range", "main~5..main")
    points = {one["id"]: one for one in found["points"]}
    third = next(one["id"] for one in found["patches"] if one["subject"] == PATCHES[2][0])
    assert points["series"]["outcome"] == "not met"
    assert points["series"]["patches"] == [third]
    assert [line.partition(": ")[2] for line in points["series"]["lines"]] == ANSWERS
    assert points["build"]["outcome"] == points["build:xen-gcc"]["outcome"] == "met"
    assert points["build:no-smm-gcc"]["outcome"] == "not tested"
    assert "KVM_SMM" in points["build:no-smm-gcc"]["why"]
    # One vendor alone has a host here.
    assert points["vendors"]["outcome"] == points["area:shadow paging"]["outcome"] == "not tested"
    assert "not on intel" in points["area:shadow paging"]["why"]
    letter = " ".join(found["letter"].split())
    assert f'patch 3, {third[:12]} ("{PATCHES[2][0]}")' in letter
    assert "KVM_XEN=y (gcc)" in letter
    assert all(len(line) <= 72 for line in found["letter"].splitlines())
    built = [(one["patch"], one["build"]) for one in found["builds"]]
    assert len(built) == len({*built}) == 2 * (len(PATCHES) + 1), "nothing is built twice"
    shown = shared_tool.run("report", found["id"])
    assert shown.returncode == 10
    assert found["letter"] in shown.stdout
    # The same from mails, which say what they stand on.
    mbox = tmp_path / "thread.mbox"
    mbox.write_bytes(mails(checkout))
    again = held(shared_tool, 10, *words, "--mbox", mbox)
    points = {one["id"]: one for one in again["points"]}
    assert points["base"]["outcome"] == "met"
    assert len(points["series"]["patches"]) == 1


def test_wrong_input_is_one_line(tool: Tool, tmp_path: Path) -> None:
    for words, said in (
        (("--tree", tmp_path, "--range", "a..b"), "is no git checkout"),
        (("--profile", "default", "--range", "a..b"), "has no [bar]: take kvm-x86"),
        (("--kvm-unit-tests", tmp_path, "--range", "a..b"), "no checkout of kvm-unit-tests: it has no configure"),
        ((), "bar: give one of --range BASE..TIP and --mbox FILE"),
    ):
        done = tool.run("bar", *words)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
