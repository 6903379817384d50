"""Protects the tool's first purpose: designs of a change are told apart by when they do what, from the objects alone.

The designs are those of the review thread about the MMU's set-up, and mistakes that one can make with them.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Changes, Tool

pytestmark = pytest.mark.kernel

X86 = "arch/x86/kvm/x86.c"
MMU = "arch/x86/kvm/mmu/mmu.c"
HEADER = "arch/x86/include/asm/kvm_host.h"
CREATE = """\tpte_list_desc_cache = kmem_cache_create("pte_list_desc",
\t\t\t\t\t    sizeof(struct pte_list_desc),
\t\t\t\t\t    0, SLAB_ACCOUNT, NULL);
\tif (!pte_list_desc_cache)
\t\tgoto out;

"""
IN_ONE_LINE = """\tpte_list_desc_cache = kmem_cache_create("pte_list_desc", sizeof(struct pte_list_desc), 0, 0, NULL);
"""
INIT = "int kvm_mmu_vendor_module_init(void)"
FUNCTION = f"""int kvm_mmu_hardware_setup(void)
{{
{IN_ONE_LINE}\treturn pte_list_desc_cache ? 0 : -ENOMEM;
}}

{INIT}
"""
SETUP = """\tr = ops->hardware_setup();
\tif (r != 0)
\t\treturn r;
"""
CALL = """\tr = kvm_mmu_hardware_setup();
\tif (r)
\t\treturn r;
"""
STORE = "\ttdp_enabled = enable_tdp;\n"
IF = "\tif ({}boot_cpu_has(X86_FEATURE_XSAVES)) {{\n"
SPLIT = {
    MMU: {CREATE: "", f"{INIT}\n": FUNCTION},
    HEADER: {f"{INIT};\n": f"int kvm_mmu_hardware_setup(void);\n{INIT};\n"},
}
PROVED, VIOLATED = {"proved"}, {"violated"}
DESIGNS: dict[str, tuple[Changes, tuple[set[str], set[str], set[str]]]] = {
    "created-after-hardware-setup": ({**SPLIT, X86: {SETUP: SETUP + CALL}}, (PROVED, PROVED, PROVED)),
    "created-before-it": ({**SPLIT, X86: {SETUP: CALL + SETUP}}, (PROVED, VIOLATED, VIOLATED)),
    "after-it-on-one-branch-only": (
        {**SPLIT, X86: {SETUP: IF.format("") + CALL + "\t}\n" + SETUP + IF.format("!") + CALL + "\t}\n"}},
        (PROVED, VIOLATED, VIOLATED),
    ),
    "created-in-kvm-configure-mmu": (
        {MMU: {CREATE: "", STORE: STORE + IN_ONE_LINE}},
        (PROVED, PROVED, VIOLATED),
    ),
    "masks-not-reset": (
        {MMU: {"\tkvm_mmu_reset_all_pte_masks();\n\n\tpte_list": "\tpte_list"}},
        (VIOLATED, VIOLATED, VIOLATED),
    ),
}
RULES = (
    "thread-pte-masks-reset-before-hardware-setup",
    "pte-list-desc-cache-after-tdp-is-known",
    "pte-list-desc-cache-after-hardware-setup",
)


@pytest.fixture
def answered(shared_tool: Tool, built: Callable[[Changes], Path]) -> Callable[[Changes], list[dict[str, Any]]]:
    """Builds a design and asks the thread's rules of its modules."""

    def ask(changes: Changes) -> list[dict[str, Any]]:
        done = shared_tool.run("inspect", "--modules", built(changes), "--rules", "mmu-setup-thread", "--json")
        return [one for one in json.loads(done.stdout)["findings"] if one["answer"]]

    return ask


@pytest.mark.parametrize(("changes", "wanted"), DESIGNS.values(), ids=DESIGNS)
def test_a_design_is_told_by_its_order(
    answered: Callable[[Changes], list[dict[str, Any]]], changes: Changes, wanted: tuple[set[str], set[str], set[str]]
) -> None:
    rules = dict(zip(RULES, wanted, strict=True))
    found = answered(changes)
    assert len(found) == 6
    for one in found:
        assert one["answer"] in rules[one["rule"]], one["message"]
    if "XSAVES" in str(changes):
        for one in found:
            if one["rule"] in RULES[1:]:
                told = [line.strip() for line in one["witness"]]
                (called,) = (
                    at for at, line in enumerate(told) if line.startswith("kvm_mmu_hardware_setup() is called")
                )
                assert "kvm_arch_hardware_setup" in told[called]
                assert any("branch" in line and "kvm_arch_hardware_setup" in line for line in told[:called])


def test_two_designs_are_seen_side_by_side(shared_tool: Tool, built: Callable[[Changes], Path]) -> None:
    """Where the cache is made in each, and that it is the same call, on the page and in a mail."""
    names = ("created-after-hardware-setup", "created-in-kvm-configure-mmu")
    one, other = (built(DESIGNS[name][0]).parent for name in names)
    done = shared_tool.run("compare", one, other, "--format", "html")
    page = html.unescape(done.stdout)
    create = 'kmem_cache_create("pte_list_desc", '
    assert page.count(create) >= 4, "in both columns, for both vendors"
    assert "now in kvm_configure_mmu()" in page
    assert "was in kvm_mmu_hardware_setup()" in page
    mail = shared_tool.run("compare", one, other, "--format", "text").stdout
    assert re.search(r'kvm_configure_mmu\([^)]*\)\n  \+ +kmem_cache_create\("pte_list_desc", ', mail)
    assert "- kvm_mmu_hardware_setup (.text): " in mail


def test_a_size_that_depends_on_what_is_settled_later_is_a_new_hazard(
    shared_tool: Tool, built: Callable[[Changes], Path], kernel_build: Path, tmp_path: Path
) -> None:
    """The mistake that the thread is about; no rule says so. kvm_configure_mmu() stores tdp_enabled."""
    before = tmp_path / "before"
    before.mkdir()
    for path in ("virt/lib/irqbypass.ko", *(f"arch/x86/kvm/{name}.ko" for name in ("kvm", "kvm-intel", "kvm-amd"))):
        (before / Path(path).name).symlink_to(kernel_build / path)
    sized = CREATE.replace("sizeof(struct pte_list_desc)", "sizeof(struct pte_list_desc) << !tdp_enabled")
    modules = built({MMU: {CREATE: sized}})
    done = shared_tool.run("inspect", "--modules", modules, "--against", before, "--hazards", "--json")
    came = [one for one in json.loads(done.stdout)["differences"]["hazards"] if one["change"] == "came"]
    assert [(one["module"], one["of"], one["object"], one["reader"], one["writer"]) for one in came] == [
        (module, "kvm", "tdp_enabled", "kvm_mmu_vendor_module_init", "kvm_configure_mmu")
        for module in ("kvm-amd", "kvm-intel")
    ]


SVM = "arch/x86/kvm/svm/svm.c"
GONE = """static bool __init svm_has_no_msr(struct kvm *kvm, u32 index)
{
\treturn !kvm;
}

static __init int svm_hardware_setup(void)
"""
OPS: dict[str, tuple[Changes, set[str]]] = {
    "named-by-the-vendors-table": (
        {SVM: {"static bool svm_has_emulated_msr(": "static bool __init svm_has_emulated_msr("}},
        {
            "lifetime-data:kvm-amd:svm_x86_ops-svm_has_emulated_msr",
            "lifetime-kept:kvm-amd:kvm_x86_ops-svm_has_emulated_msr",
            "lifetime-kept:kvm-amd:__SCT__kvm_x86_has_emulated_msr-svm_has_emulated_msr",
        },
    ),
    "put-into-it-before-it-is-copied": (
        {
            SVM: {
                "static __init int svm_hardware_setup(void)\n": GONE,
                "\tkvm_enable_efer_bits(EFER_NX);\n": "\tsvm_x86_ops.has_emulated_msr = svm_has_no_msr;\n"
                "\tkvm_enable_efer_bits(EFER_NX);\n",
            }
        },
        {
            "lifetime-kept:kvm-amd:kvm_x86_ops-svm_has_no_msr",
            "lifetime-kept:kvm-amd:__SCT__kvm_x86_has_emulated_msr-svm_has_no_msr",
        },
    ),
}


@pytest.mark.parametrize(("changes", "wanted"), OPS.values(), ids=OPS)
def test_init_code_that_the_vendors_ops_lead_to_is_found(
    shared_tool: Tool, built: Callable[[Changes], Path], changes: Changes, wanted: set[str]
) -> None:
    """kvm_ops_update() copies the table, and puts its functions into static calls. Unpatched, none is found."""
    done = shared_tool.run("inspect", "--modules", built(changes), "--rules", "kvm", "--json")
    found = [one for one in json.loads(done.stdout)["findings"] if one["rule"].startswith("lifetime-")]
    assert {one["id"] for one in found} == {f"inspect:{name}" for name in wanted}
    assert {one["status"] for one in found} == {"FAIL"}
    chains = [one["witness"][-1] for one in found if one["rule"] == "lifetime-kept"]
    assert all("put there at kvm_arch_hardware_setup+0x" in line for line in chains)
    assert all(" < kvm_init+0x" in line and " < svm_init+0x" in line for line in chains)


DROPPED = {
    MMU: {
        "void kvm_mmu_vendor_module_exit(void)\n{\n\tmmu_destroy_caches();": "void kvm_mmu_vendor_module_exit(void)\n{"
    },
    X86: {
        "out_free_x86_emulator_cache:\n\tkmem_cache_destroy(x86_emulator_cache);\n": "out_free_x86_emulator_cache:\n"
    },
}
CACHES = {"kmem_cache_create-pte_list_desc", "kmem_cache_create-kvm_mmu_page_header"}


def test_what_exit_or_an_error_path_no_longer_releases_is_found(
    shared_tool: Tool, built: Callable[[Changes], Path], kernel_build: Path
) -> None:
    """svm_init() and vmx_init() call kvm_x86_vendor_exit() too where kvm_init() fails: what it drops stays there.

    Without the patch none of these is found; what is, docs/findings.md has from the source.
    """
    before = kernel_build.joinpath("arch/x86/kvm")
    found: list[dict[str, dict[str, Any]]] = []
    for folder in (before, built(DROPPED)):
        done = shared_tool.run("inspect", "--modules", folder, "--rules", "resources", "--json")
        every = json.loads(done.stdout)["findings"]
        found.append({one["id"]: one for one in every if one["rule"] == "resource"})
    of_vmx = {"kvm_set_posted_intr_wakeup_handler-pi_wakeup_handler-error"}
    real = {"debugfs_create_dir-kvm-error", "register_syscore_ops-kvm_syscore_ops-error"}
    dropped = {f"{cache}-{how}" for cache in CACHES for how in ("error", "exit")}
    dropped.add("kmem_cache_create_usercopy-x86_emulator-error")
    for module, own in (("kvm-amd", real), ("kvm-intel", real | of_vmx)):
        unpatched, patched = ({name for name in some if f":{module}:" in name} for some in found)
        assert unpatched == {f"inspect:resource:{module}:{name}" for name in own}
        assert patched - unpatched == {f"inspect:resource:{module}:{name}" for name in dropped}
        assert unpatched <= patched
    assert {one["status"] for one in found[1].values()} == {"FAIL"}
    told = [
        line.strip() for line in found[1]["inspect:resource:kvm-amd:kmem_cache_create-pte_list_desc-exit"]["witness"]
    ]
    assert told[-1] == "exit returns, and it is still held"
    then = told.index("init returns with success; a way through exit behind it:")
    assert any(line.startswith("kvm_x86_vendor_exit() returns to svm_exit") for line in told[then:])


DWARF = {"arch/x86/kvm/Makefile": {"ccflags-y += -I ": "ccflags-y += -gdwarf-5 -I "}}
CALLED = {
    MMU: {"static void mmu_destroy_caches(": "static noinline void mmu_destroy_caches("},
    X86: {"static inline void kvm_ops_update(": "static noinline void kvm_ops_update("},
    "virt/kvm/kvm_main.c": {"static void kvm_init_debug(void)": "static noinline void kvm_init_debug(void)"},
}
VENDOR_SETUP = 'call = ["hardware_setup", "svm_hardware_setup"], module = "vendor"'
ABOUT_INLINED = {
    "ops-after-setup": (f"first = {{ {VENDOR_SETUP} }}\nthen = {{ call = 'kvm_ops_update' }}", "proved"),
    "ops-before-setup": (f"first = {{ call = 'kvm_ops_update' }}\nthen = {{ {VENDOR_SETUP} }}", "violated"),
    "debugfs-first": ("first = { call = 'kvm_init_debug' }\nthen = { call = 'misc_register' }", "proved"),
    "debugfs-within": ("within = { call = 'kvm_init_debug' }\nthen = { call = 'debugfs_create_dir' }", "proved"),
    "caches-kept": (f"first = {{ call = 'mmu_destroy_caches' }}\nthen = {{ {VENDOR_SETUP} }}", "violated"),
}


@pytest.mark.parametrize("changes", [DWARF, CALLED], ids=["inlined", "called"])
def test_rules_about_functions_that_gcc_inlines(
    shared_tool: Tool, built: Callable[[Changes], Path], changes: Changes, tmp_path: Path
) -> None:
    """With debug information the answers are those of the same functions kept from being inlined."""
    rules = tmp_path / "inlined.toml"
    orders = "".join(f'[[order]]\nid = "{name}"\n{events}\n' for name, (events, _) in ABOUT_INLINED.items())
    rules.write_text(f'[vendor]\nimports = ["kvm_x86_vendor_init"]\n\n{orders}')
    done = shared_tool.run("inspect", "--modules", built(changes), "--rules", rules, "--json")
    found = [one for one in json.loads(done.stdout)["findings"] if one["answer"]]
    assert len(found) == 2 * len(ABOUT_INLINED)
    for one in found:
        assert one["answer"] == ABOUT_INLINED[one["rule"]][1], one["message"]
