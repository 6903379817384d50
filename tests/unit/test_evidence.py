"""Protects the kernel from blame for what the log explains otherwise, and a finding from being told more than once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from kbuild.cpus import Cpus
from kbuild.dmesg.classify import Match, classify
from kbuild.dmesg.record import Record
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.load.evidence import MIN_STALL_S, findings_of, without_answer
from kbuild.load.ledger import Ledger
from kbuild.load.protocol import Died, LogRecord
from kbuild.load.session import End, Reply
from kbuild.outcome import Finding, Status

LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:15]"
HUNG = "INFO: task init:15 blocked for more than 8 seconds."
STALL = "rcu: INFO: rcu_sched self-detected stall on CPU"
KILLED = "Out of memory: Killed process 19 (init) total-vm:688kB, anon-rss:48kB, file-rss:140kB, shmem-rss:0kB"
DEADLOCKED = "Kernel panic - not syncing: System is deadlocked on memory"
BUG = "kernel BUG at arch/x86/kvm/svm/svm.c:1!"


def read(*lines: str) -> tuple[list[Match], list[Record]]:
    records = [Record(seq, seq, 1, text, None, 1) for seq, text in enumerate(lines)]
    return classify(records, load_signatures(), "6.1.192"), records


def findings(*lines: str, kept: float = 0.0, cpus: Cpus = Cpus.EMULATED) -> list[Finding]:
    return list(findings_of(*read(*lines), "kvm", (), "load kvm", kept, cpus))


def test_a_stall_is_the_emulator_s_where_it_did_not_run_for_most_of_it() -> None:
    """The kernel says for how long it stalled; what says nothing lasted for as long as the detector waits at least."""
    for line, seconds in ((LOCKUP, 26), (HUNG, 8), (STALL, MIN_STALL_S)):
        for kept, status in ((0.0, Status.ERROR), (seconds / 2 - 1, Status.ERROR), (seconds / 2, Status.MISS)):
            (finding,) = findings(line, kept=kept)
            assert finding.status == status, (line, kept)
        assert "not the kernel's doing" in finding.message


def test_a_machine_of_its_own_is_not_emulated_slowly() -> None:
    for cpus, status, why in (
        (Cpus.EMULATED, Status.ERROR, "only emulated slowly, cannot be told"),
        (Cpus.NESTED, Status.ERROR, "only slow for being nested in another KVM, cannot be told"),
        (Cpus.OWN, Status.FAIL, "no emulator was in its way"),
    ):
        (finding,) = findings(LOCKUP, cpus=cpus)
        assert finding.status == status
        assert why in finding.message


def test_nothing_but_a_stall_is_excused_by_a_pause() -> None:
    assert [one.status for one in findings(BUG, kept=100)] == [Status.FAIL]


def test_reports_of_the_same_are_one_finding() -> None:
    (finding,) = findings(*[HUNG] * 40)
    assert "(40 times)" in finding.message
    assert finding.evidence[0] == HUNG


def test_a_death_for_want_of_memory_is_not_the_kernel_s() -> None:
    """mm/oom_kill.c, __oom_kill_process() and out_of_memory()."""
    died = Reply(1, answer=Died(id=1, signal=9))
    panicked = Reply(1, end=End.PANIC)
    assert without_answer(died, ())[0] == Status.FAIL
    assert without_answer(died, read(KILLED)[0])[0] == Status.ERROR
    assert without_answer(panicked, read(KILLED, DEADLOCKED)[0])[0] == Status.ERROR
    assert without_answer(panicked, read(BUG, KILLED, DEADLOCKED)[0])[0] == Status.FAIL, "it crashed first"
    assert without_answer(Reply(1, end=End.REBOOT), read(KILLED)[0])[0] == Status.FAIL, "no reboot follows from it"


def test_a_stall_that_no_step_is_blamed_for_says_where_a_taint_comes_from() -> None:
    """Between two commands, of which the first is no step: it is the boot's, and still it taints the kernel."""
    request: Any = SimpleNamespace(signatures=load_signatures(), release="6.1.192")
    boot: Any = SimpleNamespace(start=Reply(0))
    ledger = Ledger(request, cast(Any, None), boot, cast(Any, None))
    ledger.attach(Reply(3, earlier=[LogRecord(id=2, seq=1, us=1, level=0, text=LOCKUP)]))
    assert [record.text for record in boot.start.log] == [LOCKUP]
    assert ledger.all_said() == {"soft-lockup"}
    assert not ledger.said, "what the order's steps led to"
    assert not ledger.findings
