"""Protects the verdict on other kernels than 6.1: each series' source and its newest package, all orders, both vendors.

Only with `inv test --all-kernels`: a source takes minutes to build, and a package half a minute to boot, each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kbuild.build.kernel import find_built
from kbuild.configure.apt import archive, find, oldest_first
from kbuild.configure.tree import Tree, open_tree
from kbuild.gate.wanted import build_request, requested_symbols
from kbuild.paths import PROJECT
from kbuild.profile import read_profile
from tests.integration.conftest import Changes, Tool, build_modules

pytestmark = pytest.mark.kernel

SERIES = list(archive().series)


@pytest.fixture(autouse=True)
def all_kernels(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all-kernels"):
        pytest.skip("only with --all-kernels")


def newest_package(series: str) -> str:
    """The youngest kernel of the usual flavour that the archive has."""
    apt, _ = find(f"linux-source-{series}", series)
    pattern = re.compile(rf"linux-image-{re.escape(series)}\.\d[\d.]*(?:-\d+|\+deb\d+(?:\.\d+)?)-amd64")
    names = {name: apt.versions(name) for name in apt.names(f"linux-image-{series}.") if pattern.fullmatch(name)}
    newest = oldest_first(versions[0] for versions in names.values() if versions)[-1]
    return next(f"{name}={newest}" for name, versions in names.items() if newest in versions)


def judge(tool: Tool, *words: str) -> None:
    done = tool.run("gate", *words, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["verdict"] == "PASS"
    assert {one["status"] for one in data["transcripts"]} == {"PASS"}
    orders, hosts = ({one[key] for one in data["transcripts"]} for key in ("order", "host"))
    assert len(data["transcripts"]) == len(orders) * len(hosts)
    assert hosts == {"qemu-svm", "bochs-vmx"}


@pytest.mark.parametrize("series", SERIES)
def test_the_source(shared_tool: Tool, series: str) -> None:
    judge(shared_tool, "--tree", f"debian:{series}")


@pytest.mark.parametrize("series", SERIES)
def test_what_debian_ships(shared_tool: Tool, series: str) -> None:
    judge(shared_tool, "--package", newest_package(series))


@pytest.mark.parametrize("series", SERIES)
def test_every_order_there_is(shared_tool: Tool, series: str) -> None:
    """Settings and generated sequences included: some minutes in Bochs."""
    done = shared_tool.run("gate", "--tree", f"debian:{series}", "--order", "all", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert {one["status"] for one in data["transcripts"]} <= {"PASS", "SKIP"}
    assert len([one for one in data["transcripts"] if one["status"] == "PASS"]) > 500


@pytest.mark.parametrize("series", SERIES)
def test_what_happens_is_what_was_proved(shared_tool: Tool, series: str) -> None:
    """Of each rule, with a kernel that can be traced; and most of the rules about calls are seen at all."""
    done = shared_tool.run("gate", "--tree", f"debian:{series}", "--flavour", "trace", "--json")
    assert done.returncode == 0, done.stderr
    transcripts = json.loads(done.stdout)["transcripts"]
    assert {one["status"] for one in transcripts} == {"PASS"}
    for host in ("qemu-svm", "bochs-vmx"):
        observed = [one for each in transcripts if each["host"] == host for one in each["observed"]]
        assert "broken" not in {one["seen"] for one in observed}
        kept = {one["rule"] for one in observed if (one["seen"], one["answer"]) == ("kept", "proved")}
        assert {"pte-masks-before-hardware-setup", "vendor-init-before-kvm-init", "kvm-exit-before-vendor-exit"} <= kept
        assert len(kept) >= 20


@pytest.mark.parametrize("series", SERIES)
def test_the_threads_proposal_is_seen_not_to_be_there_yet(shared_tool: Tool, series: str) -> None:
    """The caches are made before hardware_setup(): arch/x86/kvm/mmu/mmu.c, kvm_mmu_vendor_module_init()."""
    words = ("--flavour", "trace", "--rules", "mmu-setup-thread", "--order", "trace", "--host", "qemu-svm", "--json")
    done = shared_tool.run("gate", "--tree", f"debian:{series}", *words)
    assert done.returncode == 10, done.stderr
    (transcript,) = json.loads(done.stdout)["transcripts"]
    seen = {one["rule"]: (one["answer"], one["seen"]) for one in transcript["observed"]}
    assert seen == {
        "thread-pte-masks-reset-before-hardware-setup": ("proved", "kept"),
        "pte-list-desc-cache-after-tdp-is-known": ("violated", "not observable"),
        "pte-list-desc-cache-after-hardware-setup": ("violated", "broken"),
    }


def sites_of(data: dict[str, Any]) -> dict[str, str]:
    """Of each point that is no page, the call site that failed."""
    steps = ((one["order"], step["detail"]) for one in data["transcripts"] for step in one["steps"])
    return {
        order: detail["site"]
        for order, detail in steps
        if detail.get("allocation", "page-").isdigit() and "site" in detail
    }


def test_what_failing_allocations_leave_is_found(shared_tool: Tool) -> None:
    """virt/kvm/kvm_main.c of 6.1, kvm_init(): it does not undo kvm_init_debug() when misc_register() fails."""
    words = ("gate", "--flavour", "fault", "--host", "qemu-svm", "--json")
    done = shared_tool.run(*words, "--order", "faults-vendor")
    assert done.returncode == 0, done.stderr
    counting = {one["id"]: one.get("known") for one in json.loads(done.stdout)["findings"] if one["status"] == "FAIL"}
    assert counting["load:leftover:debugfs/kvm:fault=kvm_init/misc_register"]
    assert all(counting.values()), "nothing else"

    again = shared_tool.run(*words, "--order", "faults-vendor")
    assert sites_of(json.loads(again.stdout)) == sites_of(json.loads(done.stdout)), "an object has one number"

    done = shared_tool.run(*words, "--order", "faults-vendor@15000")
    assert [one["status"] for one in json.loads(done.stdout)["transcripts"]] == ["SKIP"], "no load makes so many"


@pytest.mark.parametrize("series", SERIES)
def test_two_cpus_and_sleep(shared_tool: Tool, series: str) -> None:
    """CPUs that come and go, two loads at once, suspend, in both emulators. Footprints have CPU hotplug's states."""
    done = shared_tool.run("gate", "--tree", f"debian:{series}", "--flavour", "smp", "--json")
    assert done.returncode == 0, done.stderr
    transcripts = json.loads(done.stdout)["transcripts"]
    assert {one["status"] for one in transcripts} <= {"PASS", "SKIP"}
    passed = {(one["host"], one["order"]) for one in transcripts if one["status"] == "PASS"}
    for host in ("qemu-svm-2cpu", "bochs-vmx-2cpu"):
        assert {(host, name) for name in ("smp-at-once", "smp-hotplug", "smp-hotplug-guest", "suspend")} <= passed
    assert ("qemu-svm", "suspend-to-ram") in passed
    checks = [step for one in transcripts for step in one["steps"] if step["detail"].get("what") == "footprint"]
    assert all("cpuhp" not in step["detail"].get("not looked at", "") for step in checks)


CPU_ORDER = """\
id = "cpu"
title = "A CPU goes and comes back, and a module has a say in it"
modules = ["dt_cpu"]
needs = ["smp"]

[[matrix]]
module = "dt_cpu"
params = { how = [0, 1, 2, 3] }

[[step]]
load = "dt_cpu"

[[step]]
cpu = { offline = 1 }

[[step]]
cpu = { online = 1 }

[[step]]
unload = "dt_cpu"

[[step]]
check = "footprint"
"""


def test_a_cpu_that_does_not_come_back(shared_tool: Tool, kernel_tree: Tree, tmp_path: Path) -> None:
    """A callback refuses it, keeps it from going, or never returns: each is an outcome of its own."""
    assert shared_tool.run("build", "--flavour", "smp").returncode == 0
    profile = read_profile("default", "smp")
    objects = build_request(profile, kernel_tree, requested_symbols(profile)).objects
    source = PROJECT / "tests/data/modules/dt_cpu.c"
    modules = build_modules(tmp_path, [source], kernel_tree.source, objects, profile.local_version)
    (tmp_path / "cpu.toml").write_text(CPU_ORDER)
    words = ("--modules", modules, "--kernel", objects / "arch/x86/boot/bzImage", "--order", tmp_path / "cpu.toml")
    done = shared_tool.run("load", *words, "--host", "qemu-svm-2cpu", "--json")
    assert done.returncode == 10, done.stderr
    data = json.loads(done.stdout)
    fine, kept, refused, stuck = data["transcripts"]
    assert fine["status"] == "PASS"

    def found(transcript: dict[str, Any]) -> tuple[list[str], str]:
        ids = [":".join(one["id"].split(":")[:3]) for one in data["findings"] if one["order"] == transcript["order"]]
        return ids, transcript["steps"][-1]["errno"]

    # kernel/cpu.c, cpuhp_invoke_callback(): what a callback returns is what write(2) fails with.
    assert found(kept) == (["load:errno:cpu1-offline"], "EBUSY")
    assert found(refused) == (["load:errno:cpu1-online"], "EIO")
    # It does not come back at all: the kernel's report of the hung task says in whose function.
    assert stuck["status"] == "FAIL"
    assert "load:hang:cpu1-online:dt_cpu_online" in {one["id"] for one in data["findings"]}


def test_what_one_error_path_does_not_release_is_found_by_failing_allocations(
    shared_tool: Tool, patched: Callable[[Changes], Path]
) -> None:
    """6.1, x86.c, kvm_x86_vendor_init(): where kvm_mmu_vendor_module_init() has failed the label below is gone to."""
    label = "out_free_x86_emulator_cache:\n"
    patch = patched({"arch/x86/kvm/x86.c": {f"{label}\tkmem_cache_destroy(x86_emulator_cache);\n": label}})
    site = "kvm_mmu_vendor_module_init/kmem_cache_create"
    words = ("--patch", patch, "--flavour", "fault", "--host", "qemu-svm", "--order", f"faults-vendor@{site}", "--json")
    done = shared_tool.run("gate", *words)
    assert done.returncode == 10, done.stderr
    found = {one["id"] for one in json.loads(done.stdout)["findings"] if one["status"] == "FAIL"}
    assert f"load:leftover:slab/x86_emulator:fault={site}" in found


LOSE = """\
id = "lose"
title = "a module that loses memory each time it is loaded"
modules = ["drift_object"]

[[step]]
load = "drift_object"

[[step]]
unload = "drift_object"

[[step]]
check = "leaks"
"""


def test_lost_memory_is_found_and_kvm_loses_none(shared_tool: Tool, kernel_tree: Tree, tmp_path: Path) -> None:
    """By the kernel's own search, in the flavour that has it; the module is gone when it is looked for."""
    done = shared_tool.run("gate", "--flavour", "debug", "--order", "leaks", "--json")
    assert done.returncode == 0, done.stderr
    assert {one["status"] for one in json.loads(done.stdout)["transcripts"]} == {"PASS"}

    profile = read_profile("default", "debug")
    objects = build_request(profile, kernel_tree, requested_symbols(profile)).objects
    source = PROJECT / "tests/data/leftovers/drift_object.c"
    modules = build_modules(tmp_path, [source], kernel_tree.source, objects, profile.local_version)
    (tmp_path / "lose.toml").write_text(LOSE)
    words = ("--modules", modules, "--kernel", objects / "arch/x86/boot/bzImage", "--flavour", "debug")
    done = shared_tool.run("load", *words, "--order", tmp_path / "lose.toml", "--json")
    assert done.returncode == 10, done.stderr
    # What a slow boot of such a kernel says of itself is for information.
    found = [one for one in json.loads(done.stdout)["findings"] if one["status"] != "DONE"]
    assert {(one["host"], one["id"]) for one in found} == {
        (host, "load:leak:drift_object/drift_object_init:lose") for host in ("qemu-svm", "bochs-vmx")
    }
    assert {one["message"] for one in found} == {
        "memory that drift_object_init() of drift_object asked for is lost: 64 bytes"
    }


def test_a_sweep_goes_on_behind_guests_that_die(shared_tool: Tool, tmp_path: Path) -> None:
    """One failing allocation of dt_fragile panics, one oopses, one hangs: all are told, and the last is tried."""
    assert shared_tool.run("build", "--flavour", "fault").returncode == 0
    profile = read_profile("default", "fault")
    with open_tree("debian:6.1") as tree:
        wanted = build_request(profile, tree, requested_symbols(profile))
        assert find_built(wanted)
        sources = [PROJECT / "tests/data/modules/dt_fragile.c"]
        modules = build_modules(tmp_path, sources, tree.source, wanted.objects)
    order, host = tmp_path / "fragile.toml", tmp_path / "qemu-svm.toml"
    text = (PROJECT / "profiles/orders/faults-vendor.toml").read_text().replace("{vendor}", "dt_fragile")
    order.write_text(text.replace("faults-vendor", "fragile").partition("\n[[step]]\ncheck")[0])
    text = (PROJECT / "profiles/hosts/qemu-svm.toml").read_text()
    host.write_text(text.replace("step_s = 30, silent_s = 20", "step_s = 6, silent_s = 5"))
    kernel = wanted.objects / "arch/x86/boot/bzImage"
    words = ("--modules", modules, "--kernel", kernel, "--flavour", "fault", "--order", order, "--host", host)
    done = shared_tool.run("load", *words, "--json")
    assert done.returncode == 10, done.stderr
    data = json.loads(done.stdout)
    # On a busy machine the kernel itself has the time to report what hangs, 10 s of it (watchdog_thresh=5).
    lockup = "load:soft-lockup:dt_fragile:soft_lockup_in_dt_fragile_hangs:fault=dt_fragile_hangs/kmalloc_trace"
    assert {one["id"] for one in data["findings"] if "load:fault:" not in one["id"]} - {lockup} == {
        "load:panic:dt_fragile:panic_dt_fragile_cannot_go_on:fault=dt_fragile_panics/kmalloc_trace",
        "load:null-dereference:dt_fragile:NULL_pointer_dereference_in_dt_fragile_oopses"
        ":fault=dt_fragile_oopses/kmalloc_trace",
        "load:hang:dt_fragile:dt_fragile_hangs:fault=dt_fragile_hangs/kmalloc_trace",
    }
    runs = {one["order"]: one for one in data["transcripts"]}
    points = sorted(int(name.partition("@")[2]) for name in runs if name.partition("@")[2].isdigit())
    assert points == list(range(1, len(points) + 1)), "none is left out"
    sites = {one["steps"][0]["detail"].get("site"): one["status"] for one in runs.values() if one["steps"]}
    assert sites["dt_fragile_first/kmalloc_trace"] == sites["dt_fragile_last/kmalloc_trace"] == "PASS"
