"""Protects what is said of a module that leaves something behind: each kind of thing is found, under a name that is
the same in every run and on every host, and with whose it is.

The modules are small ones, built against the kernel under test (tests/data/leftovers), each of which forgets one thing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kbuild.paths import PROJECT
from tests.integration.conftest import build_modules, make_tool

pytestmark = pytest.mark.kernel

HOSTS = ("qemu-svm", "bochs-vmx")
KVM = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm-amd.ko")
# What a module leaves, to what is said of its owner. From the modules' sources.
LEFT = {
    "slab/lo_cache": "lo_cache's init makes the slab cache 'lo_cache', by kmem_cache_create() in lo_cache_init()",
    "debugfs/lo_debugfs": "the debugfs folder 'lo_debugfs', by debugfs_create_dir() in lo_debugfs_init()",
    "dev/lo_misc": "lo_misc's init makes the device node 'lo_misc', by misc_register() in lo_misc_init()",
    "misc/lo_misc": "lo_misc's init makes the device node 'lo_misc', by misc_register() in lo_misc_init()",
    "thread/lo_workqueue": "the workqueue 'lo_workqueue', by alloc_workqueue() in lo_workqueue_init()",
    # mm/vmalloc.c, get_vm_area_node(): the five pages that it asks for, and one that guards them
    "vmalloc/lo_take/24576": "allocated in lo_take() of lo_vmalloc",
}
# kernel/cpu.c, cpuhp_sysfs_init(): with HOTPLUG_CPU, which needs SMP, and the default profile's kernel has one CPU.
NOT_SHOWN = "cpuhp"

HELD = """
id = "held"
title = "an unload that is expected to succeed while a machine exists"
modules = ["{vendor}"]
look = true

[[step]]
load = "{vendor}"

[[step]]
hold = "vm"

[[step]]
unload = "{vendor}"
"""

# What a load of either vendor's module changes besides parameters: virt/kvm/kvm_main.c, kvm_init() makes the first
# two, arch/x86/kvm/mmu/mmu.c, kvm_mmu_vendor_module_init() the third.
SEEN = ("+ dev/kvm", "+ slab/kvm_vcpu", "+ slab/pte_list_desc", "* modules/kvm/refs = 0 -> 1")

# What a module loses each time, to the finding's subject; from the modules' sources.
DRIFTS = {"drift_page": "pages", "drift_object": "slab/kmalloc-64", "drift_not": None}
CYCLES = """
id = "{order}"
title = "a module that comes and goes twenty times"
modules = ["{module}"]

[[step]]
repeat = 20

[[step.step]]
load = "{module}"

[[step.step]]
unload = "{module}"

[[step.step]]
check = "memory"

[[step]]
check = "drift"
"""


@pytest.fixture(scope="module")
def data(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All modules in one order on both hosts, and another one that cannot go well."""
    folder = tmp_path_factory.mktemp("leftovers")
    sources = [*PROJECT.glob("tests/data/leftovers/*.c")]
    modules = build_modules(tmp_path_factory.mktemp("modules"), sources, kernel_source, kernel_build)
    names = sorted(source.stem for source in sources if source.stem.startswith("lo_"))
    order = ['id = "all"', 'title = "modules that forget something"', f"modules = {names}"]
    order += [f'[[step]]\n{action} = "{name}"' for name in names for action in ("load", "unload")]
    (folder / "all.toml").write_text("\n".join([*order, '[[step]]\ncheck = "footprint"\n']))
    (folder / "held.toml").write_text(HELD)
    for name in DRIFTS:
        (folder / f"{name}.toml").write_text(CYCLES.format(module=name, order=name.replace("_", "-")))
    for name in KVM:
        shutil.copy(kernel_build / name, modules)
    hosts = [word for host in HOSTS for word in ("--host", host)]
    kernel = kernel_build / "arch/x86/boot/bzImage"
    for tool in make_tool(folder):
        words: list[str | Path] = [
            word for name in (*DRIFTS, "held", "all") for word in ("--order", folder / f"{name}.toml")
        ]
        done = tool.run("load", "--modules", modules, "--kernel", kernel, *words, *hosts, "--json")
        assert done.returncode == 10, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    raise AssertionError


@pytest.mark.parametrize("host", HOSTS)
def test_each_kind_of_thing_is_found_and_its_owner_named(data: dict[str, Any], host: str) -> None:
    findings = {f["id"]: f["message"] for f in data["findings"] if (f["host"], f["order"]) == (host, "all")}
    assert findings.keys() == {f"load:leftover:{what}:all" for what in LEFT}
    for what, owner in LEFT.items():
        assert owner in findings[f"load:leftover:{what}:all"]


@pytest.mark.parametrize("host", HOSTS)
def test_what_the_kernel_does_not_show_is_said(data: dict[str, Any], host: str) -> None:
    (transcript,) = (one for one in data["transcripts"] if (one["host"], one["order"]) == (host, "all"))
    assert transcript["steps"][-1]["detail"]["not looked at"] == NOT_SHOWN


@pytest.mark.parametrize("host", HOSTS)
def test_who_keeps_a_module_from_being_unloaded_is_said(data: dict[str, Any], host: str) -> None:
    vendor = {"qemu-svm": "kvm_amd", "bochs-vmx": "kvm_intel"}[host]
    (finding,) = (f for f in data["findings"] if (f["host"], f["order"]) == (host, "held"))
    assert finding["id"] == f"load:errno:{vendor}:held/3-unload"
    assert f"unload {vendor}: expected success, got EWOULDBLOCK" in finding["message"]
    assert "(kvm-hold) has anon_inode:kvm-vm open as descriptor" in finding["message"]


@pytest.mark.parametrize("host", HOSTS)
def test_what_each_step_changes_is_told_where_that_is_asked_for(data: dict[str, Any], host: str) -> None:
    vendor = {"qemu-svm": "kvm_amd", "bochs-vmx": "kvm_intel"}[host]
    steps = {
        (step["action"], step["module"]): step["seen"]
        for one in data["transcripts"]
        if (one["host"], one["order"]) == (host, "held")
        for step in one["steps"]
    }
    seen = steps["load", vendor]
    assert {*SEEN} < {*seen}
    assert "+ slab/kvm_vcpu/size = " in "\n".join(seen)
    assert f"+ modules/{vendor}/parameters/nested = " in "\n".join(seen)
    assert [line for line in seen if line.startswith(f"+ kallsyms/{vendor} = ")], "and of no other module"
    assert "+ debugfs/kvm/PID-FD" in steps["hold", None]
    assert steps["unload", vendor] == [], "it was refused"
    # Elsewhere nobody looked.
    assert all(step["seen"] is None for one in data["transcripts"] if one["order"] == "all" for step in one["steps"])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("module", DRIFTS)
def test_a_small_loss_in_each_cycle_is_found_and_nothing_else(data: dict[str, Any], host: str, module: str) -> None:
    order = module.replace("_", "-")
    (transcript,) = (one for one in data["transcripts"] if (one["host"], one["order"]) == (host, order))
    assert transcript["steps"][-1]["detail"]["what"] == "drift"
    found = {f["id"] for f in data["findings"] if (f["host"], f["order"]) == (host, order)}
    lost = DRIFTS[module]
    assert found == (set() if lost is None else {f"load:drift:{lost}:{order}"})
