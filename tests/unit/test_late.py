"""Protects what a kernel says late: with an answer that nobody makes a step of, between two orders, at once with an
answer. It is judged, by the step or order that it came behind, and never dropped.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from kbuild.cpus import Cpus
from kbuild.dmesg.record import Console, ConsoleParser
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.gate.stages import _judged
from kbuild.hosts.base import Chunk
from kbuild.load import between, ledger
from kbuild.load.between import with_rest
from kbuild.load.conversation import Conversation, StopError
from kbuild.load.evidence import records_of, without_answer
from kbuild.load.faults.inject import Injection
from kbuild.load.judge import Judge
from kbuild.load.ledger import Ledger
from kbuild.load.machine import MachineSteps
from kbuild.load.orders.format import SUCCESS
from kbuild.load.protocol import Broken, LogRecord, Lost, Result, Verb, errno_number
from kbuild.load.session import End, Reply, Session
from kbuild.load.state import State
from kbuild.outcome import Finding, Status
from kbuild.transcript import StepResult, Transcript
from tests.unit.test_session import DONE, HELLO, LIMITS, Script, log, says

WARN = "WARNING: CPU: 0 PID: 9 at arch/x86/kvm/x86.c:1 kvm_late+0x1/0x2 [kvm]"
PANIC = b"[    9.000000] Kernel panic - not syncing: Fatal exception in interrupt\n"
REQUEST: Any = SimpleNamespace(
    signatures=load_signatures(), release="6.1.192", folder=Path("/runs/1"), again=lambda host, order: f"{host} {order}"
)
SPEC: Any = SimpleNamespace(id="bochs-vmx")


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ledger, between):
        monkeypatch.setattr(module, "cpus_of", lambda _: Cpus.EMULATED)
    monkeypatch.setattr("kbuild.load.session.AFTER_PANIC_S", 0.05)


def kept() -> Ledger:
    """With one step that passed, which was command 1."""
    boot: Any = SimpleNamespace(start=Reply(0), number=1, orders=1, folder=Path("/runs/1/bochs-vmx/boot-1"))
    order: Any = SimpleNamespace(id="vendor-alone", order="vendor-alone", title="")
    made = Ledger(REQUEST, SPEC, boot, order)
    step = StepResult(number=1, action="load", module="kvm_intel", status=Status.PASS)
    made.keep(step, Reply(1, DONE), kind="errno")
    return made


def answer(number: int, *before: object) -> Chunk:
    return says(*before, Result(id=number, errno=0, us=1, hash="h"))


def talking(ledger: Ledger, *chunks: Chunk) -> Conversation:
    session = Session(Script([says(HELLO), *chunks]), LIMITS, lambda: False)
    session.boot()
    return Conversation(session, ledger, State({}, frozenset(), "h"))


@pytest.mark.parametrize(
    ("said", "status", "cause"),
    [
        (log(1, WARN, level=4), Status.FAIL, "load:warning:kvm_intel:"),
        (Lost(id=1, records=3), Status.ERROR, "load:log-lost:kvm_intel:"),
    ],
)
def test_what_comes_with_a_look_is_the_last_step_s(said: object, status: Status, cause: str) -> None:
    made = kept()
    talk = talking(made, answer(1, said), answer(2))
    talk.command(Verb.DETAIL)
    assert not made.findings, "not yet: a step may be made of it"
    talk.command(Verb.DETAIL)
    (finding,) = made.findings
    assert (finding.status, finding.step) == (status, 1)
    assert finding.id.startswith(cause)
    assert made.transcript().status == status


def test_a_damaged_line_of_a_look_is_not_passed_over() -> None:
    made = kept()
    talk = talking(made, Chunk("agent", b'{"ev":"log","id":\n'), answer(1))
    talk.command(Verb.DETAIL)
    talk.settle()
    assert [one.status for one in made.findings] == [Status.ERROR]


def test_what_a_step_is_made_of_is_told_once() -> None:
    made = kept()
    talk = talking(made, answer(1, log(1, WARN, level=4)), answer(2))
    made.keep(StepResult(number=2, action="smoke", status=Status.PASS), talk.command(Verb.SMOKE, "x"), kind="smoke")
    talk.settle()
    assert [one.step for one in made.findings] == [2]


BEFORE = Transcript(
    host="bochs-vmx",
    order="vendor-alone",
    status=Status.PASS,
    steps=[StepResult(number=4, action="unload", module="kvm_intel", status=Status.PASS)],
    reproduce="again",
)


def late(text: str, level: int = 4) -> LogRecord:
    return LogRecord(id=8, seq=1, us=1, level=level, text=text)


def test_what_comes_between_two_orders_is_the_first_one_s() -> None:
    for reply in (Reply(9, DONE, earlier=[late(WARN)]), Reply(9, DONE, log=[late(WARN)])):
        more = with_rest(BEFORE, reply, REQUEST, SPEC)
        (finding,) = more.findings
        assert (more.status, finding.status) == (Status.FAIL, Status.FAIL)
        assert (finding.host, finding.order, finding.step) == ("bochs-vmx", "vendor-alone", 4)
        assert finding.reproduce == "again"
        assert more.steps[-1].log[-1].text == WARN
        assert BEFORE.findings == []


def test_what_was_lost_between_two_orders_is_no_pass() -> None:
    for reply in (Reply(9, DONE, lost=7), Reply(9, DONE, broken=[Broken(b"x", "cut")])):
        more = with_rest(BEFORE, reply, REQUEST, SPEC)
        assert (more.status, [one.status for one in more.findings]) == (Status.ERROR, [Status.ERROR])


def test_nothing_between_two_orders_changes_nothing() -> None:
    for reply in (
        Reply(9, DONE),
        Reply(9, DONE, earlier=[late("harmless", 6)]),
        Reply(9, end=End.HOST, detail="bochs: killed by SIGKILL"),
        Reply(9, end=End.SILENT),
        Reply(9, end=End.CANCELLED),
    ):
        assert with_rest(BEFORE, reply, REQUEST, SPEC) is BEFORE


def test_a_panic_between_two_orders_is_the_first_one_s() -> None:
    parser = ConsoleParser()
    parser.feed(PANIC)
    more = with_rest(BEFORE, Reply(9, end=End.PANIC, console=parser.finish()), REQUEST, SPEC)
    assert more.status == Status.FAIL
    assert "Fatal exception in interrupt" in more.findings[0].evidence[0]
    went_off = with_rest(BEFORE, Reply(9, end=End.EXIT, console=Console(())), REQUEST, SPEC)
    assert [one.message for one in went_off.findings] == [
        "after the order: the machine went off without being asked to"
    ]


class Together(Script):
    """All that is there comes in one piece, as it does where this process had no time meanwhile."""

    def receive(self, timeout: float) -> list[Chunk]:  # noqa: ARG002
        chunks, self.chunks = self.chunks, []
        return chunks


def session_of(*chunks: Chunk) -> Session:
    script = Together([says(HELLO)])
    session = Session(script, LIMITS, lambda: False)
    session.boot()
    script.chunks = [*chunks]
    return session


@pytest.mark.parametrize(
    ("chunk", "end", "status"),
    [
        (Chunk("exit", b"bochs: the guest had a triple fault"), End.EXIT, Status.FAIL),
        (Chunk("exit", b"qemu: killed by SIGKILL", failed=True), End.HOST, Status.MISS),
    ],
)
def test_an_exit_that_comes_with_an_answer_is_the_next_command_s(chunk: Chunk, end: End, status: Status) -> None:
    session = session_of(says(DONE), chunk)
    reply = session.command(Verb.LOAD, "kvm.ko")
    assert (reply.answer, reply.end) == (DONE, None)
    assert session.ended == end
    following = session.command(Verb.STATE)
    assert following.end == end
    assert without_answer(following, ())[0] == status


def test_a_panic_that_comes_with_an_answer_is_that_command_s() -> None:
    session = session_of(says(DONE), Chunk("console", PANIC))
    reply = session.command(Verb.LOAD, "kvm.ko")
    assert (reply.answer, reply.end) == (DONE, End.PANIC)
    assert "Fatal exception in interrupt" in records_of(reply)[-1].text
    assert session.ended == End.PANIC


DONE_AT_BOOT = Finding(id="load:warning:boot:x", status=Status.DONE, message="at boot: it warns")
KNOWN = Finding(id="load:leftover:x:y", status=Status.FAIL, message="m", known="so it is")


@pytest.mark.parametrize("status", [Status.SKIP, Status.ERROR, Status.MISS])
def test_what_is_told_for_information_makes_no_pass(status: Status) -> None:
    transcript = Transcript(host="h", order="o", status=status)
    assert _judged(transcript, [DONE_AT_BOOT]).status == status
    failed = msgspec.structs.replace(transcript, status=Status.FAIL)
    assert _judged(failed, [DONE_AT_BOOT, KNOWN]).status == Status.PASS


PARTS = [(0, "load", ["kvm-intel.ko"]), (0, "cpu", ["online", "1"])]


def at_once(errnos: list[str], *, seen: bool, said: str = "") -> tuple[Status, str | None]:
    """What is said of a load and a CPU at once, of which at least one went otherwise."""
    made = kept()
    parts = tuple(f"{errno_number(one) if one else 0} 0 5" for one in errnos)
    records = [log(1, said, level=4)] if said else []
    talk = talking(made, says(*records, Result(id=1, errno=0, us=1, parts=parts)))
    knowledge: Any = SimpleNamespace(has_done=lambda *_: "r" if seen else None, note=lambda *_: None)
    judge = Judge("bochs-vmx", knowledge, cast(Any, SimpleNamespace(kind="k", run="r")))
    with pytest.raises(StopError):
        MachineSteps(talk, made, judge).together(PARTS, SUCCESS)
    return made.steps[-1].status, made.steps[-1].reason


def test_things_at_once_are_blamed_like_each_by_itself() -> None:
    """docs/contract.md: not the kernel where no host of this kind was seen to do it, or was too slow."""
    assert at_once(["EIO", ""], seen=True)[0] == Status.FAIL
    status, reason = at_once(["EIO", ""], seen=False)
    assert status == Status.ERROR
    assert "no kernel of this kind was seen to load it on bochs-vmx yet" in str(reason)
    assert at_once(["", "EIO"], seen=False)[0] == Status.ERROR
    slow = "smpboot: do_boot_cpu failed(-1) to wakeup CPU#1"
    assert at_once(["", "EIO"], seen=True)[0] == Status.FAIL
    assert at_once(["", "EIO"], seen=True, said=slow)[0] == Status.ERROR


def test_a_load_that_fails_by_itself_is_not_one_with_fewer_allocations() -> None:
    step: Any = SimpleNamespace(inject="load", module="kvm_intel")
    nothing: Any = None
    injection = Injection(nothing, step, nothing, nothing, "", nothing, nothing, nothing)

    def judged(errno: str, left: int | None) -> Status | None:
        wrong = injection._not_come_to(Result(id=1, errno=errno_number(errno) if errno else 0, us=1, left=left))
        return wrong and wrong[0]

    assert judged("", 120) is None
    assert judged("EIO", 120) == Status.FAIL
    assert judged("ENOMEM", 120) == Status.FAIL
    assert judged("EINVAL", None) == Status.ERROR
    assert judged("", None) == Status.ERROR


def test_broken_lines_are_kept_for_who_reads_the_reply() -> None:
    made = kept()
    made.attach_rest(Reply(5, DONE, broken=[Broken(b"x", "cut")]))
    assert made.findings[0].status == Status.ERROR
