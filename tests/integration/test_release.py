"""Protects the release policy on a real host: a kernel against its own baseline, and with something missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kbuild.build.kernel import outputs
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

PROFILE = """
title = "a release of what was built"
[configure]
fragments = ["base", "kvm"]
[inspect]
rules = ["mmu-setup-thread"]
[load]
hosts = ["qemu-svm"]
orders = ["vendor-alone", "load-unload-load"]
command_line = ["quiet", "panic=-1", "nokaslr", "slab_nomerge", "printk.devkmsg=on"]
[[release.require]]
host = "qemu-svm"
orders = ["vendor-alone", "load-unload-load"]
[[release.growth]]
of = "total"
max_bytes = 0
[[known]]
finding = "inspect:rule:kvm-*:pte-list-desc-cache-after-hardware-setup"
reason = "the design is not merged"
owner = "mm@example.org"
expires = {expires}
"""
DEFERRED = "inspect:rule:kvm-{}:pte-list-desc-cache-after-hardware-setup"
SETTLED = "inspect:rule:kvm-{}:pte-list-desc-cache-after-tdp-is-known"
"""Both are broken by 6.1: mmu.c, kvm_mmu_vendor_module_init() makes the cache before hardware_setup()."""
VENDORS = ("amd", "intel")


def test_a_release_against_its_baseline(tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    files = outputs(kernel_build)
    modules = tmp_path / "modules"
    modules.mkdir()
    for name, path in files.items():
        if name.endswith(".ko"):
            (modules / name).symlink_to(path)
    profile = tmp_path / "mine.toml"

    def gate(*more: str | Path, expires: str = "2999-01-01") -> tuple[int, dict[str, Any]]:
        profile.write_text(PROFILE.format(expires=expires))
        argv = ("--profile", profile, "--modules", modules, "--kernel", files["bzImage"], "--json")
        done = tool.run("gate", *argv, *more)
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    status, data = gate()
    assert (status, data["error"]) == (
        2,
        f"{profile}: release.growth needs release.baseline or --baseline to compare with\n",
    )
    first = tool.run(
        "gate",
        "--modules",
        modules,
        "--kernel",
        files["bzImage"],
        "--host",
        "qemu-svm",
        "--rules",
        "mmu-setup-thread",
        "--order",
        "vendor-alone",
        "--json",
    )
    assert first.returncode == 10, "6.1 breaks two of the thread's rules"
    baseline = tmp_path / "baseline.json"
    baseline.write_text(tool.run("runs", "--baseline", "latest").stdout)

    # Of the four answers the baseline has all: two of them are declared besides.
    status, data = gate("--baseline", baseline)
    release = data["release"]
    assert (status, data["verdict"], release["counting"]) == (0, "PASS", [])
    assert release["known"] == [DEFERRED.format(vendor) for vendor in VENDORS]
    assert release["in_baseline"] == [SETTLED.format(vendor) for vendor in VENDORS]
    assert all(one["before"] == one["after"] > 0 for one in release["growth"])

    # What was known until a day counts, though the baseline has it; what is required and left out is missing.
    status, data = gate("--baseline", baseline, "--order", "vendor-alone", expires="2026-06-30")
    release = data["release"]
    assert (status, data["verdict"]) == (10, "FAIL")
    assert release["expired"] == [DEFERRED.format(vendor) for vendor in VENDORS]
    missing = "release:not-judged:qemu-svm:load-unload-load"
    assert release["counting"] == [*release["expired"], missing]
    assert [one["status"] for one in data["findings"] if one["id"] == missing] == ["MISS"]
