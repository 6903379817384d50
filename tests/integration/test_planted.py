"""Protects the tool's second purpose: what an exit no longer undoes is found where it shows, on both vendors.

One kernel has four defects, none of which hides another one. What can be told from the objects alone is in
test_designs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Changes, Tool, write_patch

pytestmark = pytest.mark.kernel

PLANTED: Changes = {
    "arch/x86/kvm/mmu/mmu.c": {
        "void kvm_mmu_vendor_module_exit(void)\n{\n\tmmu_destroy_caches();": "void kvm_mmu_vendor_module_exit(void)\n{",
    },
    "arch/x86/kvm/x86.c": {
        "\tkvm_x86_ops.hardware_enable = NULL;\n\tkvm_mmu_vendor_module_exit();": "\tkvm_mmu_vendor_module_exit();",
    },
    "virt/kvm/kvm_main.c": {
        "\tdebugfs_remove_recursive(kvm_debugfs_dir);\n\tfor_each_possible_cpu(cpu)": "\tfor_each_possible_cpu(cpu)",
        "\tunregister_reboot_notifier(&kvm_reboot_notifier);\n\tcpuhp_remove_state_nocalls(CPUHP_AP_KVM_STARTING);\n"
        "\ton_each_cpu": "\tcpuhp_remove_state_nocalls(CPUHP_AP_KVM_STARTING);\n\ton_each_cpu",
    },
}
OFF = """
id = "off"
title = "the machine goes off when all modules are gone"
modules = ["{vendor}"]

[[step]]
load = "{vendor}"

[[step]]
unload = "{vendor}"

[[step]]
unload = "kvm"

[[step]]
reboot = "power-off"
"""
SINCE_6_12: Changes = {
    "arch/x86/kvm/x86.c": {
        "\tmutex_lock(&vendor_module_lock);\n\tkvm_x86_ops.enable_virtualization_cpu = NULL;\n"
        "\tmutex_unlock(&vendor_module_lock);\n": "",
    },
}
HOSTS = {"qemu-svm": "kvm_amd", "bochs-vmx": "kvm_intel"}


def test_what_an_exit_no_longer_undoes_is_found_where_it_shows(
    shared_tool: Tool, built: Callable[[Changes], Path], tmp_path: Path
) -> None:
    """Caches and a folder in the footprint; the vendor that stays registered at the next load; a notifier at power-off.

    6.1: mmu.c, mmu_destroy_caches() has the two caches; x86.c, kvm_x86_vendor_init() refuses with EEXIST as long as
    hardware_enable is set; kernel/notifier.c, notifier_call_chain() reads what is registered, in memory that is gone.
    """
    (tmp_path / "off.toml").write_text(OFF)
    folder = built(PLANTED)
    hosts = [word for host in HOSTS for word in ("--host", host)]
    orders = [
        word for order in ("vendor-alone", "load-unload-load", tmp_path / "off.toml") for word in ("--order", order)
    ]
    words = ("load", "--modules", folder, "--kernel", folder / "bzImage", *hosts, *orders, "--json")
    done = shared_tool.run(*words)
    assert done.returncode == 10, done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    for host, vendor in HOSTS.items():
        found = {
            order: {one["id"]: one for one in findings if (one["host"], one["order"]) == (host, order)}
            for order in ("vendor-alone", "load-unload-load", "off")
        }
        left = ("slab/pte_list_desc", "slab/kvm_mmu_page_header", "debugfs/kvm")
        assert found["vendor-alone"].keys() == {f"load:leftover:{what}:vendor-alone" for what in left}
        assert all("init makes the" in one["message"] for one in found["vendor-alone"].values())
        refused = found["load-unload-load"].pop(f"load:errno:{vendor}:load-unload-load/4-load")
        assert "expected success, got EEXIST" in refused["message"]
        (said,) = found["load-unload-load"]
        assert said.startswith(f"load:vendor-already-loaded:{vendor}:"), "what the kernel says of it"
        faults = [name for name in found["off"] if name.startswith("load:page-fault:")]
        assert faults
        assert "notifier_call_chain" in faults[0]
        assert {one["status"] for some in found.values() for one in some.values()} == {"FAIL"}


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize(("series", "errno"), [("6.12", "EEXIST"), ("7.2", "EBUSY")])
def test_a_vendor_that_stays_registered_is_found_in_later_kernels(
    shared_tool: Tool, kernel_sources: dict[str, Path], tmp_path: Path, series: str, errno: str
) -> None:
    """What hardware_enable was is enable_virtualization_cpu; 7.2's loader makes EBUSY of an init's EEXIST
    (kernel/module/main.c, do_init_module())."""
    patch = write_patch(kernel_sources[series], SINCE_6_12, tmp_path / "registered.patch")
    words = ("--tree", f"debian:{series}", "--patch", patch, "--order", "vendor-alone", "--order", "load-unload-load")
    done = shared_tool.run("gate", *words, "--json")
    assert done.returncode == 10, done.stderr
    findings = [one for one in json.loads(done.stdout)["findings"] if one["id"].startswith("load:errno:")]
    assert [one["host"] for one in findings] == [*HOSTS]
    for one in findings:
        assert one["id"] == f"load:errno:{HOSTS[one['host']]}:load-unload-load/4-load"
        assert f"expected success, got {errno}" in one["message"]
