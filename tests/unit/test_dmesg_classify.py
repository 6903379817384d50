"""Protects the classifier: which reports and lines of a kernel log it finds, and how it names them.

The logs were printed by a real 6.1 kernel in QEMU (tests/data/dmesg/make-logs); what is in them follows from the
modules' sources beside them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from kbuild.dmesg import classify as classifier
from kbuild.dmesg import signatures
from kbuild.dmesg.classify import Match, candidates, classify, stable
from kbuild.dmesg.record import Record, parse_console
from kbuild.dmesg.signatures import Severity

LOGS = Path(__file__).parent.parent / "data" / "dmesg"
SIGNATURES = signatures.load()
KERNEL = "6.1.192"


def records(name: str) -> tuple[Record, ...]:
    return parse_console((LOGS / f"{name}.log").read_bytes()).records


def run(log: Sequence[Record], kernel: str = KERNEL) -> list[Match]:
    return classify(log, SIGNATURES, kernel)


def counting(matches: Sequence[Match]) -> list[Match]:
    return [m for m in matches if m.severity is not Severity.INFO]


def lines(*texts: str, level: int = 4, caller: str | None = "T1", step: int | None = 1) -> list[Record]:
    return [Record(None, number, level, text, caller, step) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("kvm-amd", []),
        (
            "second-vendor",
            [
                (3, "vendor-not-supported", "kvm: no hardware support for 'kvm_intel'"),
                (5, "vendor-already-loaded", "already loaded vendor module"),
            ],
        ),
        ("no-svm", [(3, "vendor-not-supported", "kvm: no hardware support for 'kvm_amd'")]),
        (
            "no-vmx",
            [
                (3, "vendor-not-supported", "kvm: no hardware support for 'kvm_intel'"),
                (4, "vendor-not-supported", "kvm: no hardware support for 'kvm_amd'"),
            ],
        ),
        (
            "no-provider",
            [
                (1, "unknown-symbol", "kvm: Unknown symbol irq_bypass_unregister_consumer (err -2)"),
                (1, "unknown-symbol", "kvm: Unknown symbol irq_bypass_register_consumer (err -2)"),
            ],
        ),
        ("debugfs", [(4, "debugfs-already-present", "debugfs: Directory 'kvm' with parent '/' already present!")]),
        (
            "misc",
            [
                (4, "misc-register-failed", "kvm: misc device register failed"),
                (6, "debugfs-already-present", "debugfs: Directory 'kvm' with parent '/' already present!"),
            ],
        ),
        (
            "slab",
            [
                (2, "slab-objects-remaining", "objects left in slab cache kvm_vcpu"),
                (2, "slab-still-has-objects", "slab cache kvm_vcpu could not be destroyed"),
            ],
        ),
        (
            "sysfs",
            [
                (1, "sysfs-duplicate", "sysfs: cannot create duplicate filename '/kernel/dt_left_behind'"),
                (
                    1,
                    "kobject-add-failed",
                    "kobject_add_internal failed for dt_left_behind with -EEXIST, don't try to register things with "
                    "the same name in the same directory.",
                ),
            ],
        ),
        (
            "loader",
            [
                (1, "unknown-error", "dt_error: nobody knows this line, 7"),
                (2, "init-return-value", "dt_initret: init returned a positive number"),
                (
                    3,
                    "version-magic",
                    "dt_initret: version magic '6.9.192 mod_unload ' should be '6.1.192 mod_unload '",
                ),
            ],
        ),
        (
            "bug",
            [
                (1, "kernel-bug", "kernel BUG in dt_bug_inner"),
                (2, "null-dereference", "NULL pointer dereference in dt_null_inner"),
            ],
        ),
        ("page-fault", [(1, "page-fault", "page fault in dt_fault_inner")]),
        ("gpf", [(1, "general-protection-fault", "general protection fault in dt_gpf_inner")]),
        ("oops-panic", [(1, "general-protection-fault", "general protection fault in dt_gpf_inner")]),
        ("null-without-levels", [(1, "null-dereference", "NULL pointer dereference in dt_null_inner")]),
        (
            "warn",
            [
                (1, "warning", "WARNING in dt_warn_inner"),
                (1, "warning", "WARNING in dt_warn_inner"),
                (3, "warning", "WARNING in dt_warn_inner"),
                (3, "warning", "WARNING in dt_warn_inner"),
            ],
        ),
        ("vfree", [(1, "warning", "WARNING in __vunmap")]),
        ("panic", [(1, "panic", "panic: dt_panic: nothing works at ADDRESS")]),
        ("panic-on-warn", [(1, "warning", "WARNING in dt_warn_inner")]),
    ],
)
def test_real_logs(log: str, expected: list[tuple[int, str, str]]) -> None:
    found = counting(run(records(log)))
    assert [(m.step, m.signature, m.title) for m in found] == expected
    assert not any(m.truncated or m.boot for m in found)


def test_what_kvm_amd_says_of_itself_is_evidence_that_never_counts() -> None:
    told = {(m.step, m.signature) for m in run(records("kvm-amd")) if m.step in (3, 5)}
    assert {(3, "nested-paging-enabled"), (3, "nested-virtualization"), (5, "nested-paging-enabled")} <= told


def test_a_report_has_its_lines_and_functions() -> None:
    log = records("gpf")
    (match,) = counting(run(log))
    texts = [log[index].text for index in match.records]
    assert texts[0].startswith("general protection fault, probably for non-canonical address 0xdead000000000122")
    assert texts[-1].startswith("---[ end trace ")
    assert match.functions[:3] == ("dt_gpf_inner", "dt_gpf_init", "do_one_initcall")
    assert "entry_SYSCALL_64_after_hwframe" in match.functions


def test_a_warnings_own_message_belongs_to_its_report() -> None:
    log = records("vfree")
    (match,) = counting(run(log))
    texts = [log[index].text for index in match.records]
    assert texts[0] == "------------[ cut here ]------------"
    assert texts[1].startswith("Trying to vfree() nonexistent vm area")
    assert texts[-1].startswith("---[ end trace ")


def test_leaked_objects_name_who_should_have_freed_them() -> None:
    assert {m.owner for m in counting(run(records("slab")))} == {"kvm_exit"}


def test_only_the_first_oops_of_a_boot_counts() -> None:
    log = records("bug")
    first, second = counting(run(log))
    assert (first.follower, second.follower) == (False, True)
    boot = Record(None, 0, 5, "Linux version 6.1.192 (root@vm) #1")
    again = [m.follower for m in counting(run([boot, *log, boot, *log]))]
    assert again == [False, True, False, True]


def test_a_warning_is_no_reason_to_pass_over_the_next() -> None:
    assert not any(m.follower for m in counting(run(records("warn"))))


@pytest.mark.parametrize("log", ["gpf", "bug", "warn", "page-fault", "null-without-levels"])
def test_a_report_that_is_cut_off_says_so(log: str) -> None:
    whole = records(log)
    cut = next(number for number, record in enumerate(whole) if record.text.startswith("Call Trace:"))
    first, *others = counting(run(whole[: cut + 2]))
    assert not others
    assert first.truncated
    assert first.title == counting(run(whole))[0].title


def test_a_report_that_the_next_step_cuts_off_says_so() -> None:
    whole = records("gpf")
    cut = next(number for number, record in enumerate(whole) if record.text.startswith("Call Trace:"))
    rest = [msgspec.structs.replace(r, step=2) for r in records("debugfs") if r.step == 4]
    gpf, left = counting(run([*whole[:cut], *rest]))
    assert gpf.truncated
    assert (left.signature, left.step, left.follower) == ("debugfs-already-present", 2, True)


@pytest.mark.parametrize("log", ["oops-panic", "panic-on-warn"])
def test_the_panic_alone_is_what_is_left_of_a_report(log: str) -> None:
    whole = records(log)
    panic = next(number for number, record in enumerate(whole) if record.text.startswith("Kernel panic"))
    (match,) = counting(run(whole[panic:]))
    assert match.signature == "panic-after-report"
    assert match.truncated


def test_nothing_but_the_first_line_of_a_report() -> None:
    (match,) = counting(run(lines("------------[ cut here ]------------")))
    assert (match.signature, match.truncated) == ("cut-here", True)


def test_records_that_were_lost_in_the_midst_of_a_report_cut_it() -> None:
    numbered = [msgspec.structs.replace(r, seq=number) for number, r in enumerate(records("gpf"))]
    assert not counting(run(numbered))[0].truncated
    del numbered[20:24]
    assert counting(run(numbered))[0].truncated


@pytest.mark.parametrize("seed", range(5))
def test_reports_that_two_tasks_print_at_once_are_kept_apart(seed: int) -> None:
    choose = random.Random(seed)
    both = [
        [msgspec.structs.replace(r, caller=caller) for r in records(log) if r.caller == "T15"]
        for log, caller in (("gpf", "T7"), ("page-fault", "C0"))
    ]
    pending = [iter(one) for one in both]
    order = [0] * len(both[0]) + [1] * len(both[1])
    choose.shuffle(order)
    mixed = [next(pending[which]) for which in order]
    found = {m.title: m for m in counting(run(mixed))}
    assert set(found) == {"general protection fault in dt_gpf_inner", "page fault in dt_fault_inner"}
    for match in found.values():
        assert not match.truncated
        assert len({mixed[index].caller for index in match.records}) == 1


def test_the_form_of_7_2() -> None:
    log = lines(
        "------------[ cut here ]------------",
        "WARNING: arch/x86/kvm/x86.c:9921 at kvm_x86_vendor_init+0x1b/0x9f0 [kvm], CPU#3: init/77",
        "Call Trace:",
        " <TASK>",
        " kvm_x86_vendor_init.cold+0x1b/0x9f0 [kvm]",
        " svm_init+0x3e/0xf00 [kvm_amd]",
        " </TASK>",
        "---[ end trace 0000000000000000 ]---",
        "Oops: general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP NOPTI",
        "RIP: 0010:kvm_exit.isra.0+0x12/0x90 [kvm]",
        "Call Trace:",
        " </TASK>",
        "---[ end trace 0000000000000000 ]---",
    )
    found = run(log, "7.2.13")
    assert [m.title for m in found] == ["WARNING in kvm_x86_vendor_init", "general protection fault in kvm_exit"]
    assert found[0].functions == ("kvm_x86_vendor_init", "svm_init")


def test_a_report_of_kasan_is_named_by_where_the_access_was() -> None:
    """mm/kasan/report.c: the stack begins with who found it out."""
    log = lines(
        "==================================================================",
        "BUG: KASAN: slab-use-after-free in kvm_exit+0x1b/0x40 [kvm]",
        "Read of size 8 at addr ffff888003a1c0c0 by task init/15",
        "",
        "Call Trace:",
        " <TASK>",
        " dump_stack_lvl+0x53/0x70",
        " print_report+0xce/0x620",
        " kasan_report+0xce/0x100",
        " kvm_exit+0x1b/0x40 [kvm]",
        " svm_exit+0x1e/0x30 [kvm_amd]",
        " </TASK>",
        "==================================================================",
    )
    (match,) = run(log, "6.12")
    assert match.title == "KASAN: slab-use-after-free in kvm_exit"
    assert match.functions == ("kvm_exit", "svm_exit")


def test_a_report_of_ubsan_in_both_forms_and_what_follows_counts() -> None:
    """lib/ubsan.c, ubsan_prologue() and ubsan_epilogue(): framed by lines, later like a WARN. Nothing is killed."""
    stack = ("CPU: 0 PID: 15 Comm: init", "Call Trace:", " <TASK>", " kvm_init+0x1b/0x40 [kvm]", " </TASK>")
    said = "UBSAN: array-index-out-of-bounds in arch/x86/kvm/x86.c:1234:5"
    more = "kobject_add_internal failed for kvm with -EEXIST, don't try to register things with the same name."
    frame = "=" * 80
    for kernel, begin, end in (
        ("6.1", frame, frame),
        ("6.12", "------------[ cut here ]------------", "---[ end trace ]---"),
    ):
        log = lines(begin, said, "index 3 is out of range for type 'int [2]'", *stack, end, more, level=3)
        found = counting(run(log, kernel))
        assert found[0].title == "UBSAN: array-index-out-of-bounds in arch/x86/kvm/x86.c", kernel
        assert len(found) == 2, kernel
        assert not any(m.follower or m.truncated for m in found)


def test_lockdep_s_word_on_wait_contexts_is_no_silence() -> None:
    log = lines("[ BUG: Invalid wait context ]", "6.12.0 Not tainted", "Call Trace:", " </TASK>", level=4)
    assert [m.signature for m in counting(run(log, "6.12"))] == ["wait-context"]


def test_a_leak_that_goes_over_into_a_warning_is_two_whole_reports() -> None:
    """From 6.13 on the report of the objects has no stack of its own (mm/slub.c, __slab_err())."""
    log = lines(
        "BUG kvm_vcpu (Not tainted): Objects remaining on __kmem_cache_shutdown()",
        "Object 0x00000000d47521be @offset=14336",
        "------------[ cut here ]------------",
        "WARNING: mm/slub.c:1251 at __kmem_cache_shutdown+0x34e/0x440, CPU#0: init/1577",
        "Call Trace:",
        " </TASK>",
        "---[ end trace 0000000000000000 ]---",
        level=3,
    )
    assert [(m.signature, m.truncated) for m in counting(run(log, "7.2"))] == [
        ("slab-objects-remaining", False),
        ("warning", False),
    ]


@pytest.mark.parametrize("level", range(8))
def test_an_error_that_no_signature_knows_is_not_passed_over(level: int) -> None:
    found = run(lines("kvm: something new went wrong", "  ", "=====", level=level))
    assert [m.signature for m in found] == (["unknown-error"] if level <= 3 else [])


def test_what_user_space_writes_is_no_evidence_about_the_kernel() -> None:
    log = [msgspec.structs.replace(r, facility=3) for r in records("gpf")]
    assert run(log) == []


def test_before_the_first_step_it_is_the_machine() -> None:
    early = lines("x86/cpu: VMX (outside TXT) disabled by BIOS", level=3, step=None)
    late = lines("kvm: misc device register failed", level=3)
    assert [(m.signature, m.boot, m.step) for m in run([*early, *late])] == [
        ("vmx-disabled-at-boot", True, None),
        ("misc-register-failed", False, 1),
    ]


def test_a_signature_holds_for_its_kernels_only() -> None:
    log = lines("has_svm: svm not available", level=6)
    assert [m.signature for m in run(log, "6.1.192")] == ["vendor-not-supported-detail"]
    assert run(log, "7.2") == []


def test_the_same_line_again_is_counted_not_told_again() -> None:
    log = lines(*["debugfs: Directory 'kvm' with parent '/' already present!"] * 1000, level=3)
    (match,) = run(log)
    assert match.count == 1000
    assert match.records == tuple(range(classifier.MAX_SAME))


def test_floods_stay_small() -> None:
    errors = lines(*(f"device {number}: failed" for number in range(5000)), level=3)
    found = run(errors)
    assert len(found) <= classifier.MAX_DIFFERENT
    assert sum(m.count for m in found) == 5000
    warning = [msgspec.structs.replace(r, step=1) for r in records("warn") if r.step == 1]
    storm = run(list(itertools.chain.from_iterable([warning] * 50)))
    assert sum(m.count for m in storm if m.signature == "warning") == 100
    assert sum(len(m.records) for m in storm) < 500
    endless = run(lines("------------[ cut here ]------------", *["no end"] * 5000))
    assert len(endless[0].records) == classifier.MAX_REPORT
    assert endless[0].truncated


def test_the_search_for_literals_finds_what_a_plain_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    log = [r for path in sorted(LOGS.glob("*.log")) for r in parse_console(path.read_bytes()).records]
    plain = {
        number: [s for s in SIGNATURES.signatures if any(text in record.text for text in s.text)]
        for number, record in enumerate(log)
    }
    for piece in (1, 1000, 1 << 20):
        monkeypatch.setattr(classifier, "PIECE", piece)
        assert candidates(log, SIGNATURES.signatures) == {number: found for number, found in plain.items() if found}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "BUG: unable to handle page fault at ffffc90012345000",
            "BUG: unable to handle page fault at ffff888000000000",
        ),
        ("init[15] died", "init[16] died"),
        ("CPU: 0 PID: 15", "CPU: 3 PID: 1577"),
        ("stuck on CPU#0 for 22s", "stuck on CPU#3 for 26s"),
        ("called from kvm_exit+0x1b/0x40 [kvm]", "called from kvm_exit+0x2b/0x50 [kvm]"),
        ("vm area ((____ptrval____))", "vm area (00000000d47521be)"),
    ],
)
def test_titles_are_stable(one: str, other: str) -> None:
    assert stable(one) == stable(other)


@pytest.mark.parametrize("text", ["kobject failed (error: -12 parent: slab)", "kvm_amd: Unknown symbol x (err -22)"])
def test_titles_keep_what_tells_causes_apart(text: str) -> None:
    assert stable(text) == text
