"""Protects what is said of resources: what stays held is found on each way, and nothing else is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.elf.image import read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.resources.find import find_resources
from kbuild.elf.rules.spec import read_rules
from kbuild.outcome import Finding, Status
from kbuild.paths import PROJECT
from tests.unit.test_flow import FLAGS
from tests.unit.test_lifetimes import EXPORT

TABLE = PROJECT / "profiles/rules/resources.toml"
COMMON = """
__attribute__((section(".modinfo"), used)) static const char modinfo[] = "name=m\\0license=GPL\\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), used)) char __this_module[64];
#define noinline __attribute__((__noinline__))
#define NULL ((void *)0)
#define IS_ERR(pointer) ((unsigned long)(pointer) >= -4095UL)
struct thing { long a[4]; };
/* The kernel's. */
void *kmem_cache_create(const char *, unsigned, unsigned, unsigned, void *);
void kmem_cache_destroy(void *);
void *debugfs_create_dir(const char *, void *), *kthread_create_worker(unsigned, const char *, ...);
void debugfs_remove(void *), kthread_destroy_worker(void *);
int misc_register(void *), register_pm_notifier(void *), unregister_pm_notifier(void *);
void misc_deregister(void *), register_syscore_ops(void *), unregister_syscore_ops(void *);
int __cpuhp_setup_state(int, const char *, int, void *, void *, int);
void __cpuhp_remove_state(int, int), kvm_set_posted_intr_wakeup_handler(void *);
int something(void), on_one(void (*)(void));
void use(void *), *found(void);

static struct thing device, notifier, ops;
static void *cache, *other, *folder, *worker, *table[4];
static int state, is_registered, setting = 1;
static struct { int list[4]; void *cache; } beside;
static void handler(void) { }
static noinline int create(void) {
	cache = kmem_cache_create("c", 64, 0, 0, NULL);
	return cache ? 0 : -12;
}
static noinline void destroy(void) { kmem_cache_destroy(cache); }
static noinline int both(int a, int b) { return a & b; }
int init_module(void) { %s }
void cleanup_module(void) { %s }
"""
CACHE = 'if (!(cache = kmem_cache_create("c", 64, 0, 0, NULL))) return -12;'
GIVE_BACK = "kmem_cache_destroy(cache);"
Found = set[tuple[str, str]]


@pytest.fixture(params=["gcc -O2", "gcc -Os", "gcc -O1", "clang-19 -O2"])
def findings(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], list[Finding]]:
    """Of a module with that init and exit."""

    def of_module(init: str, exit_: str) -> list[Finding]:
        source, module = tmp_path / "m.c", tmp_path / "m.ko"
        source.write_text(COMMON % (init, exit_))
        compiler, level = request.param.split()
        subprocess.run([compiler, *FLAGS, "-w", level, "-o", module, source], check=True)
        return find_resources(ModuleSet.of([read_module(module)], None), read_rules((TABLE,)).resources)

    return of_module


def _told(findings: list[Finding]) -> Found:
    return {(finding.id.rpartition(":")[2], str(finding.status)) for finding in findings}


ERROR, EXIT = ("kmem_cache_create-c-error", "FAIL"), ("kmem_cache_create-c-exit", "FAIL")


@pytest.mark.parametrize(
    ("init", "exit_", "wanted"),
    [
        # A pointer, NULL where it failed.
        (f"{CACHE} return 0;", GIVE_BACK, set()),
        (f"{CACHE} return 0;", "", {EXIT}),
        (f"{CACHE} return misc_register(&device);", f"misc_deregister(&device); {GIVE_BACK}", {ERROR}),
        (
            f"{CACHE} int r = misc_register(&device); if (r) {GIVE_BACK} return r;",
            f"misc_deregister(&device); {GIVE_BACK}",
            set(),
        ),
        ("int r = create(); if (r) return r; r = something(); if (r < 0) destroy(); return r;", "destroy();", set()),
        ("int r = create(); if (r) return r; return something() < 0 ? -5 : 0;", "destroy();", {ERROR}),
        # Either of two calls has made it.
        ("if (something()) { use(&device); create(); } else { use(&ops); create(); } return 0;", GIVE_BACK, set()),
        ("if (something()) { use(&device); create(); } else { use(&ops); create(); } return 0;", "", {EXIT}),
        # Behind a carry, behind a highest bit.
        (f"{CACHE} return (unsigned long)cache + 0x80000000UL < 0x80000000UL ? -5 : 0;", GIVE_BACK, {ERROR}),
        (f"{CACHE} long v = something(); return v && __builtin_clzl(v) == 58 ? -5 : 0;", GIVE_BACK, {ERROR}),
        # NULL may be released, and on some ways only that.
        ("if (something()) create(); return 0;", GIVE_BACK, set()),
        ("if (something()) create(); return 0;", f"if (cache) {GIVE_BACK}", set()),
        ("if (setting) create(); return 0;", f"if (something()) {GIVE_BACK}", {EXIT}),
        (
            'void *c = something() ? kmem_cache_create("c", 64, 0, 0, NULL) : NULL; cache = c; return 0;',
            GIVE_BACK,
            set(),
        ),
        ("create(); other = cache; cache = NULL; return 0;", "kmem_cache_destroy(other);", set()),
        ("create(); cache = NULL; return 0;", GIVE_BACK, {EXIT}),
        ("create(); if (something()) { destroy(); cache = NULL; } return 0;", GIVE_BACK, set()),
        # An address, 0 where it went well.
        ("return misc_register(&device);", "misc_deregister(&device);", set()),
        ("return misc_register(&device);", "misc_deregister(&notifier);", {("misc_register-device-exit", "FAIL")}),
        (
            "is_registered = !misc_register(&device); return 0;",
            "if (is_registered) misc_deregister(&device);",
            set(),
        ),
        (
            "int r = register_pm_notifier(&notifier); if (r) return r; r = misc_register(&device); return r;",
            "misc_deregister(&device); unregister_pm_notifier(&notifier);",
            {("register_pm_notifier-notifier-error", "FAIL")},
        ),
        # No result.
        ("register_syscore_ops(&ops); return 0;", "unregister_syscore_ops(&ops);", set()),
        (
            "register_syscore_ops(&ops); return something();",
            "unregister_syscore_ops(&ops);",
            {("register_syscore_ops-ops-error", "FAIL")},
        ),
        # An error in a pointer.
        (
            'worker = kthread_create_worker(0, "w"); return IS_ERR(worker) ? (int)(long)worker : 0;',
            "kthread_destroy_worker(worker);",
            set(),
        ),
        (
            'worker = kthread_create_worker(0, "w"); return IS_ERR(worker) ? -5 : 0;',
            "",
            {("kthread_create_worker-init_module-exit", "FAIL")},
        ),
        # A folder in another one goes with that.
        (
            'folder = debugfs_create_dir("f", NULL); debugfs_create_dir("g", folder); return 0;',
            "debugfs_remove(folder);",
            set(),
        ),
        ('folder = debugfs_create_dir("f", NULL); return 0;', "", {("debugfs_create_dir-f-exit", "FAIL")}),
        # One place for all, which 0 empties.
        ("kvm_set_posted_intr_wakeup_handler(handler); return 0;", "kvm_set_posted_intr_wakeup_handler(NULL);", set()),
        (
            "kvm_set_posted_intr_wakeup_handler(handler); return something() ? -5 : 0;",
            "kvm_set_posted_intr_wakeup_handler(NULL);",
            {("kvm_set_posted_intr_wakeup_handler-handler-error", "FAIL")},
        ),
        # A number that is given, or returned.
        ('return __cpuhp_setup_state(7, "s", 1, NULL, NULL, 0);', "__cpuhp_remove_state(7, 1);", set()),
        (
            'return __cpuhp_setup_state(7, "s", 1, NULL, NULL, 0);',
            "__cpuhp_remove_state(8, 1);",
            {("__cpuhp_setup_state-s-exit", "FAIL")},
        ),
        (
            'int r = __cpuhp_setup_state(7, "s", 1, NULL, NULL, 0); if (r < 0) return r; state = r; return 0;',
            "__cpuhp_remove_state(state, 1);",
            set(),
        ),
        (
            'int r = __cpuhp_setup_state(7, "s", 1, NULL, NULL, 0); if (r < 0) return r; state = r; return 0;',
            "",
            {("__cpuhp_setup_state-s-exit", "FAIL")},
        ),
        # Where any that is free is asked for, none is 0 (drivers/cpufreq/acpi-cpufreq.c).
        (
            'int r = __cpuhp_setup_state(7, "s", 1, NULL, NULL, 0); if (r >= 0) state = r; return 0;',
            "if (state > 0) __cpuhp_remove_state(state, 1);",
            set(),
        ),
        # A store to some element of a list is not taken for one to what lies beside it.
        (
            'beside.cache = kmem_cache_create("c", 64, 0, 0, NULL); beside.list[something()] = 1; return 0;',
            "kmem_cache_destroy(beside.cache);",
            set(),
        ),
        (
            'beside.cache = kmem_cache_create("c", 64, 0, 0, NULL); beside.list[something()] = 1; return 0;',
            "",
            {EXIT},
        ),
        # Several that are left, each on ways of its own.
        (
            f"{CACHE} if (something()) return -5; register_syscore_ops(&ops); return something();",
            f"unregister_syscore_ops(&ops); {GIVE_BACK}",
            {ERROR, ("register_syscore_ops-ops-error", "FAIL")},
        ),
        # More than 0 is no result of init: the kernel's functions give 0 or an error.
        (
            f"{CACHE} int r = register_pm_notifier(&notifier); if (r) {GIVE_BACK} return r;",
            f"unregister_pm_notifier(&notifier); {GIVE_BACK}",
            set(),
        ),
        # Nothing that fails later, and no exit at all.
        ("return create();", "destroy();", set()),
    ],
)
def test_what_stays_held_is_found(
    findings: Callable[[str, str], list[Finding]], init: str, exit_: str, wanted: Found
) -> None:
    assert _told(findings(init, exit_)) == wanted


def test_a_way_is_told(findings: Callable[[str, str], list[Finding]]) -> None:
    (one,) = findings("int r = create(); if (r) return r; return something() < 0 ? -5 : 0;", "destroy();")
    assert one.id == "inspect:resource:m:kmem_cache_create-c-error"
    assert (
        one.message == 'm: slab cache "c", acquired by kmem_cache_create() in create(), is not released when init fails'
    )
    assert one.answer == "violated"
    assert one.witness[0].startswith("acquired by kmem_cache_create() at create+")
    assert one.witness[-1] == "init returns an error, and it is still held"
    assert any("create() returns to init_module" in line for line in one.witness)


@pytest.mark.parametrize(
    ("init", "exit_"),
    [
        # What is not known is not blamed.
        ("create(); use(&cache); return 0;", GIVE_BACK),
        # Whether it is given back is the kernel's to say: idr_for_each() gives nbd's exit a list of what there is.
        ("create(); use(&cache); return 0;", "for (void *one; (one = found());) kmem_cache_destroy(one);"),
    ],
)
def test_what_cannot_be_told_is_said(findings: Callable[[str, str], list[Finding]], init: str, exit_: str) -> None:
    (one,) = findings(init, exit_)
    assert (one.id.rpartition(":")[2], one.status, one.answer) == (EXIT[0], Status.DONE, "unknown")
    assert "it cannot be told" in one.message


@pytest.mark.parametrize(
    ("init", "exit_"),
    [
        # A way is one only if all that it takes for granted can be so at once.
        (
            "int a = something(), b = something(); if (a & 8) return 0; create();"
            " if (both(a, b) & 8) { use(&device); return -5; } return 0;",
            "destroy();",
        ),
        # Where a compiler unrolls the loops, each is seen to be given back.
        (
            'for (int i = 0; i < 4; i++) if (!(table[i] = kmem_cache_create("c", i, 0, 0, NULL))) return 0; return 0;',
            "for (int i = 0; i < 4; i++) kmem_cache_destroy(table[i]);",
        ),
    ],
)
def test_what_a_compiler_may_make_plain_is_at_most_not_known(
    findings: Callable[[str, str], list[Finding]], init: str, exit_: str
) -> None:
    assert {(one.status, one.answer) for one in findings(init, exit_)} <= {(Status.DONE, "unknown")}


OWNER = """
%s
static void *cache;
int provide(void) {
	if (!cache) cache = kmem_cache_create("c", 64, 0, 0, NULL);
	return cache ? 0 : -12;
}
EXPORT(provide);
void cleanup_module(void) { %s }
"""
USER = "%s int provide(void); int init_module(void) { return provide(); } void cleanup_module(void) { }"


@pytest.mark.parametrize(
    ("exit_", "status", "says"),
    [
        # ipmi_create_user() sets ipmi_msghandler up where nobody has done so yet.
        (GIVE_BACK, "DONE", "but by the exit of owner, whose code acquires it"),
        ("", "FAIL", "is not released by exit"),
        (f"if (something()) {GIVE_BACK}", "FAIL", "is not released by exit"),
    ],
)
def test_what_another_module_acquires_for_itself_is_its_own(tmp_path: Path, exit_: str, status: str, says: str) -> None:
    kernel = COMMON.partition("static struct")[0]
    sources = {"owner": EXPORT + OWNER % (kernel, exit_), "user": USER % kernel}
    for name, text in sources.items():
        source = tmp_path / f"{name}.c"
        source.write_text(text.replace("name=m", f"name={name}"))
        subprocess.run(["gcc", *FLAGS, "-w", "-O2", "-o", source.with_suffix(".ko"), source], check=True)
    modules = ModuleSet.of([read_module(tmp_path / f"{name}.ko") for name in sources], None)
    (found,) = find_resources(modules, read_rules((TABLE,)).resources)
    assert (found.id, str(found.status)) == ("inspect:resource:user:kmem_cache_create-c-exit", status)
    assert says in found.message
