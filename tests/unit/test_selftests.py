"""Protects what the end of one of KVM's selftests means, and that what is not run says why."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from kbuild.build.selftests import Programs, find_selftests
from kbuild.errors import UserError
from kbuild.hosts.spec import read_host
from kbuild.load.orders.conditions import Facts
from kbuild.load.orders.plan import make_plans
from kbuild.load.orders.read import read_order
from kbuild.load.protocol import Result
from kbuild.load.run_order import _as_judged
from kbuild.load.selftests import outcome
from kbuild.outcome import Status
from kbuild.transcript import StepResult, Transcript

ORDER = """\
id = "tests"
title = "x"
modules = ["kvm-amd"]

[[step]]
load = "kvm-amd"

[[step]]
selftest = ["state_test", "svm_*"]
"""
ASSERTED = [
    "==== Test Assertion Failure ====",
    "  x86_64/debug_regs.c:108: run->exit_reason == KVM_EXIT_DEBUG",
    "  pid=33 tid=33 errno=2 - No such file or directory",
    "  INT3: exit 8 exception 0 rip 0x0 (should be 0x401e44)",
]


def result(errno: int = 0, status: int | None = None, signal: int | None = None) -> Result:
    return Result(id=1, us=5, errno=errno, status=status, signal=signal)


@pytest.mark.parametrize(
    ("got", "said", "status", "how"),
    [
        (result(status=0), ["All tests passed"], Status.PASS, None),
        (result(status=2), [], Status.PASS, None),
        # kselftest.h, ksft_exit_skip(); before that, test_util.c, print_skip() of KVM's own.
        (result(status=4), ["x", "1..0 # SKIP - Requirement not met: vmx"], Status.SKIP, "Requirement not met: vmx"),
        (result(status=4), ["Is this KVM?", "not here, skipping test"], Status.SKIP, "not here, skipping test"),
        (result(status=4), [], Status.SKIP, "it said nothing"),
        (result(status=254), ASSERTED, Status.FAIL, "status 254: x86_64/debug_regs.c:108: run->exit_reason"),
        (result(status=1), ["# FAIL", "last", ""], Status.FAIL, "status 1: last"),
        (result(status=3), [], Status.FAIL, "status 3: it said nothing"),
        (result(signal=11), ["x"], Status.FAIL, "it crashed: SIGSEGV"),
        # Not the test's doing: the guest has no memory left.
        (result(signal=9), ["x"], Status.ERROR, "too little memory"),
        (result(errno=110), ["x"], Status.ERROR, "did not end within 20 s"),
        (result(errno=2), [], Status.ERROR, "cannot be run: ENOENT"),
        (result(status=127), ["/modules/x: Exec format error"], Status.ERROR, "Exec format error"),
        # From a guest anything may come; nothing of it is a pass.
        (result(), [], Status.ERROR, "does not say"),
    ],
)
def test_what_an_end_means(got: Result, said: list[str], status: Status, how: str | None) -> None:
    found, why = outcome(got, said, 20)
    assert found == status
    assert how is None if why is None else how is not None and how in why


def program(path: Path, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = ["gcc", *options, "-o", str(path), "-x", "c", "-"]
    subprocess.run(argv, input=b"int main(void) { return 0; }", check=True)
    return path


def test_programs_that_somebody_built_are_found_by_name_and_glob(tmp_path: Path) -> None:
    program(tmp_path / "x86_64/state_test", "-static")
    program(tmp_path / "dirty_log_test", "-static")
    (tmp_path / "x86_64/svm_notes").write_text("no program")
    (tmp_path / "state_test.o").write_bytes(b"\x7fELF, and no program either")
    found = find_selftests(tmp_path, ["state_test", "svm_*"])
    assert found.files == {"state_test": tmp_path / "x86_64/state_test"}
    assert (found.named("s*"), found.named("svm_*")) == (["state_test"], [])
    assert found.why_not("svm_*") == f"{tmp_path} has no such program"


def test_a_glob_means_those_that_do_not_compile_too(tmp_path: Path) -> None:
    """Else nobody were told of them, for there are others."""
    programs = Programs({"svm_b": tmp_path}, {"svm_a": "it does not compile: x", "vmx_*": "none"})
    assert programs.lacking("svm_*") == {"svm_a": "it does not compile: x"}
    assert programs.lacking("vmx_*") == {"vmx_*": "none"}
    assert programs.lacking("svm_b") == {}


def test_a_program_that_no_host_can_run_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "state_test")
    with pytest.raises(UserError, match=r"state_test: needs libraries, .*USERLDFLAGS=-static"):
        find_selftests(tmp_path, ["*"])
    (tmp_path / "state_test").write_bytes(b"\x7fELF\1, of 32 bits")
    with pytest.raises(UserError, match="is no x86-64 program"):
        find_selftests(tmp_path, ["*"])
    with pytest.raises(UserError, match="no such folder"):
        find_selftests(tmp_path / "none", ["*"])


def plan_skip(folder: Path, programs: Programs) -> str | None:
    path = folder / "order.toml"
    path.write_text(ORDER)
    facts = Facts("6.1.192", "amd", frozenset[str]().__contains__, parameters={"kvm_amd": ()})
    return make_plans(read_order(path), dataclasses.replace(facts, selftests=programs))[0].skip


def test_an_order_with_none_of_its_tests_is_skipped_with_the_reason(tmp_path: Path) -> None:
    assert "give --selftests FOLDER" in (plan_skip(tmp_path, Programs()) or "")
    none = Programs(absent={"state_test": "the tree has no tools/testing/selftests/kvm"})
    assert plan_skip(tmp_path, none) == "selftest state_test: the tree has no tools/testing/selftests/kvm"
    assert plan_skip(tmp_path, Programs({"svm_vmcall_test": tmp_path})) is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("selftest = []", "9: step[1].selftest: name tests as their programs are called"),
        ('selftest = ["x86_64/state_test"]', "9: step[1].selftest: name tests as their programs are called"),
        ('selftest = ["a"]\nseconds = 0', "10: step[1].seconds: 0 is no number of seconds"),
        (
            'selftest = ["a"]\nlog.must = ["x"]\nwhy = "y"',
            "8: step[1].log: each of several tests",
        ),
        ('selftest = ["a"]\nlog.may = ["x"]', "8: step[1].log: say 'why' these may follow"),
        ('load = "kvm"\nseconds = 3', "10: step[1].seconds: 'load' takes no 'seconds'"),
    ],
)
def test_what_an_order_may_say_of_tests(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "order.toml"
    path.write_text(ORDER.replace('selftest = ["state_test", "svm_*"]', line))
    with pytest.raises(UserError) as error:
        read_order(path)
    assert str(error.value).startswith(f"{path}:{problem}")


def transcript(*statuses: Status) -> Transcript:
    steps = [StepResult(number=1, action="load", status=Status.PASS)]
    steps += [StepResult(number=2, action="selftest", status=one, reason="why") for one in statuses]
    return Transcript(host="h", order="o", status=Status.PASS, steps=steps)


def test_an_order_whose_tests_all_skipped_has_not_passed() -> None:
    skipped = _as_judged(transcript(Status.SKIP, Status.SKIP))
    assert (skipped.status, skipped.reason) == (Status.SKIP, "why")
    assert _as_judged(transcript(Status.SKIP, Status.PASS)).status == Status.PASS
    assert _as_judged(transcript()).status == Status.PASS


def test_a_gap_of_a_host_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "h.toml"
    text = (
        'id = "h"\nkind = "qemu"\ngives = ["amd"]\n[qemu]\ncpu = "EPYC"\n[[gap]]\nselftest = "svm_*"\nreason = "{}"\n'
    )
    path.write_text(text.format("TCG has none"))
    assert [gap.selftest for gap in read_host(path).gap] == ["svm_*"]
    path.write_text(text.format(" "))
    with pytest.raises(UserError, match="a gap has a reason"):
        read_host(path)
