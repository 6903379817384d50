"""Protects the judgement of what a machine does in the middle of a command: each end is told apart from the others.

The machine here is a script of chunks, for none of this can be had from a real one on demand; what real ones do is in
tests/integration.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Self

import msgspec
import pytest

from kbuild.dmesg.classify import classify
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.hosts.base import Chunk, Limits, Machine
from kbuild.hosts.cpu import CpuSample, Place
from kbuild.load.evidence import crash_in, records_of, without_answer
from kbuild.load.patience import WALL_TIMES
from kbuild.load.protocol import Died, Hello, Items, LogRecord, Lost, Refused, Result, Said, Text, Verb
from kbuild.load.session import MAX_BROKEN, MAX_RESENT, MAX_SLOWNESS, SAMPLES, End, Session, scaled
from kbuild.outcome import Status

HELLO = Hello(protocol=1, kernel="6.1.192-kbuild", vendor="AuthenticAMD", flags=("svm",))
DONE = Result(id=1, errno=0, us=5)
LIMITS = Limits(boot_s=5, step_s=5, silent_s=0.05)


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbuild.load.session.BETWEEN_SAMPLES_S", 0.001)


class Script(Machine):
    """Gives its chunks one by one, then nothing."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = [*chunks]
        self.sent: list[bytes] = []
        self.kept_back = 0.0
        """Of each second of wall clock, what others took."""
        self.begun = time.monotonic()
        self.looked = 0
        self.late: list[Chunk] = []
        """Comes when the CPU has been looked at twice."""

    def starved(self) -> float:
        return (time.monotonic() - self.begun) * self.kept_back

    def sample(self) -> CpuSample | None:
        self.looked += 1
        if self.looked == 2:
            self.chunks += self.late
        return CpuSample(Place(0x1000, 0, b""), user=True, interrupts=True, halted=False)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def receive(self, timeout: float) -> list[Chunk]:  # noqa: ARG002
        return [self.chunks.pop(0)] if self.chunks else []

    def stop(self) -> None:
        """Nothing runs."""

    def __enter__(self) -> Self:
        return self


def says(*messages: object) -> Chunk:
    return Chunk("agent", b"".join(msgspec.json.encode(message) + b"\n" for message in messages))


def log(number: int, text: str, seq: int = 1, **more: int) -> LogRecord:
    return LogRecord(id=number, seq=seq, us=seq, level=more.get("level", 6), text=text, caller="T1")


def session(*chunks: Chunk) -> tuple[Session, Script]:
    script = Script([says(HELLO), *chunks])
    talk = Session(script, LIMITS, lambda: False)
    assert talk.boot().end is None
    return talk, script


@pytest.mark.parametrize(
    ("chunks", "end", "status"),
    [
        ([Chunk("exit", b"qemu: killed by SIGKILL", failed=True)], End.HOST, Status.MISS),
        ([Chunk("exit", b"qemu: the guest powered off")], End.EXIT, Status.FAIL),
        ([Chunk("exit", b"bochs: the guest had a triple fault")], End.EXIT, Status.FAIL),
        ([says(HELLO)], End.REBOOT, Status.FAIL),
        ([], End.SILENT, Status.ERROR),
        ([Chunk("console", b"[    1.0] still here\n")], End.SILENT, Status.ERROR),
    ],
)
def test_how_a_command_can_end_without_an_answer(chunks: list[Chunk], end: End, status: Status) -> None:
    talk, _ = session(*chunks)
    reply = talk.command(Verb.LOAD, "kvm.ko")
    assert reply.end == end
    assert without_answer(reply, ())[0] == status
    assert talk.command(Verb.STATE).end == end, "a machine that is gone answers no more commands, at once"


def test_a_machine_that_was_ended_on_purpose_did_not_go_off_by_itself() -> None:
    """Who interrupts a run ends its machines: nothing is to blame for that."""
    asked = iter([False, False, True, True, True])
    script = Script([says(HELLO), Chunk("exit", b"qemu: killed by SIGTERM")])
    talk = Session(script, LIMITS, lambda: next(asked, True))
    assert talk.boot().end is None
    reply = talk.command(Verb.STATE)
    assert reply.end is End.CANCELLED


def test_a_panic_is_the_kernel_s_however_its_machine_ends() -> None:
    """kernel/panic.c, panic(); cut in two by the serial line."""
    panic = b"[    1.000000][   T22] Kernel panic - not syncing: Fatal exception\n"
    for last in ([Chunk("exit", b"qemu ended", failed=True)], [says(HELLO)], []):
        talk, _ = session(Chunk("console", panic[:40]), Chunk("console", panic[40:]), *last)
        reply = talk.command(Verb.LOAD, "kvm.ko")
        assert reply.end in (End.PANIC, End.REBOOT)
        matches = classify(records_of(reply), load_signatures(), "6.1.192")
        crash = crash_in(matches)
        assert crash is not None
        assert without_answer(reply, [crash])[0] == Status.FAIL


def test_broken_lines_are_kept_and_what_is_whole_is_judged() -> None:
    rubbish = b"\xff\xfe\x00 rubbish\n" * (MAX_BROKEN + 5)
    talk, _ = session(Chunk("agent", rubbish + b'{"ev":"log","id":1,'), Chunk("agent", b"\n"), says(DONE))
    reply = talk.command(Verb.STATE)
    assert reply.answer == DONE
    assert len(reply.broken) == MAX_BROKEN
    assert reply.broken_more == 6


def test_records_belong_to_the_command_that_made_them() -> None:
    talk, _ = session(says(log(0, "boot"), log(1, "first", 2), DONE), says(log(1, "late", 3), log(2, "second", 4)))
    first = talk.command(Verb.LOAD, "kvm.ko")
    assert [record.text for record in first.log] == ["first"]
    assert [record.text for record in first.earlier] == ["boot"]
    second = talk.command(Verb.UNLOAD, "kvm")
    assert [record.text for record in second.log] == ["second"]
    assert [(record.id, record.text) for record in second.earlier] == [(1, "late")]


def test_texts_that_come_once_stand_for_all_their_records() -> None:
    texts = [Text(id=1, number=number, level=4, text=text, caller="T1") for number, text in enumerate(("a", "b"))]
    said = [Said(id=1, part=1, seq=10, us=5, texts=(0, 1, 0)), Said(id=1, part=6, seq=20, us=6, texts=(1,))]
    lost = Lost(id=1, records=2, part=6)
    parts = [Result(id=1, errno=12, us=5, part=1, left=0), Result(id=1, errno=0, us=5, part=6)]
    talk, _ = session(says(*texts, *said, lost, *parts, DONE), says(Said(id=2, part=1, seq=30, us=7, texts=(0,))))
    reply = talk.command(Verb.SWEEP, "objects", "1", "2", "0", "kvm-amd.ko")
    assert [(one.seq, one.part, one.text) for one in reply.log] == [
        (10, 1, "a"),
        (11, 1, "b"),
        (12, 1, "a"),
        (20, 6, "b"),
    ]
    assert (reply.parts, reply.answer) == (parts, DONE)
    assert (reply.lost, reply.lost_in) == (2, {6})
    again = talk.command(Verb.SWEEP, "objects", "3", "4", "0", "kvm-amd.ko")
    assert [one.why for one in again.broken], "a number means nothing in another command"


def test_what_the_agent_and_the_console_tell_is_taken_once() -> None:
    console = b"[    0.000001][    T1] told by both\n[    2.000000][    T1] told by the console\n"
    told = log(1, "told by both", 1)
    talk, _ = session(says(told), Chunk("console", console), Chunk("exit", b"x", failed=True))
    texts = [record.text for record in records_of(talk.command(Verb.LOAD, "kvm.ko"))]
    assert texts == ["told by both", "told by the console"]


def test_a_damaged_command_is_sent_again_and_not_for_ever() -> None:
    damaged = says(Refused(id=0, why="checksum"))
    talk, script = session(damaged, damaged, says(DONE))
    reply = talk.command(Verb.STATE)
    assert (reply.answer, reply.resent) == (DONE, 2)
    assert len(script.sent) == 3
    assert len(set(script.sent)) == 1
    talk, script = session(says(Refused(id=0, why="cut"), DONE, Refused(id=0, why="damaged")))
    reply = talk.command(Verb.STATE)
    assert (reply.answer, reply.broken) == (DONE, [])
    talk, script = session(*[damaged] * (MAX_RESENT + 1))
    assert talk.command(Verb.STATE).answer == Refused(id=0, why="checksum")
    assert len(script.sent) == MAX_RESENT + 1


def test_answers_to_other_commands_are_no_answers() -> None:
    other = [Result(id=7, errno=0, us=1), Died(id=7, signal=9), Items(id=7, what="slab", items=("x",))]
    talk, _ = session(says(*other, Lost(id=1, records=3), DONE))
    reply = talk.command(Verb.STATE)
    assert (reply.answer, reply.lost, reply.items, len(reply.broken)) == (DONE, 3, [], 3)


def test_another_protocol_is_refused() -> None:
    talk = Session(Script([says(msgspec.structs.replace(HELLO, protocol=99))]), LIMITS, lambda: False)
    assert talk.boot().end == End.HOST


def test_a_silent_guest_is_looked_at_and_one_that_speaks_again_is_waited_for() -> None:
    talk, script = session()
    reply = talk.command(Verb.STATE)
    assert (reply.end, len(reply.samples), script.looked) == (End.SILENT, SAMPLES, SAMPLES)
    assert sorted(sample.seconds for sample in reply.samples) == [sample.seconds for sample in reply.samples]
    talk, script = session()
    script.late = [says(DONE)]
    reply = talk.command(Verb.STATE)
    assert (reply.end, reply.answer, reply.samples, script.looked) == (None, DONE, [], 2)


def test_a_guest_that_never_stops_talking_comes_to_an_end() -> None:
    class Flood(Script):
        def receive(self, timeout: float) -> list[Chunk]:  # noqa: ARG002
            return [Chunk("console", b"x\n")]

    talk = Session(Flood([]), msgspec.structs.replace(LIMITS, step_s=0.2, silent_s=9), lambda: False)
    assert talk.command(Verb.STATE).end == End.SLOW


def test_time_in_which_the_emulator_could_not_run_is_not_the_guest_s() -> None:
    talk, script = session()
    script.kept_back = 0.9
    begun = time.monotonic()
    reply = talk.command(Verb.STATE)
    assert reply.end == End.SILENT
    assert time.monotonic() - begun >= LIMITS.silent_s * 9
    assert reply.fair_seconds < reply.seconds / 5


def test_an_emulator_that_does_not_run_at_all_is_missed() -> None:
    talk, script = session()
    script.kept_back = 1.0
    reply = talk.command(Verb.STATE)
    assert (reply.end, reply.samples) == (End.STARVED, [])
    assert without_answer(reply, ())[0] == Status.MISS
    assert reply.seconds >= LIMITS.silent_s * WALL_TIMES


@pytest.mark.parametrize(("usual", "factor"), [(None, 1), (1000, 1), (0.001, MAX_SLOWNESS)])
def test_limits_are_longer_on_a_machine_that_boots_slowly(usual: float | None, factor: float) -> None:
    class Slow(Script):
        def receive(self, timeout: float) -> list[Chunk]:
            time.sleep(0.03)  # the point: it takes longer than usual
            return super().receive(timeout)

    limits = Limits(boot_s=5, step_s=5, silent_s=0.02, usual_boot_s=usual)
    talk = Session(Slow([says(HELLO)]), limits, lambda: False)
    assert talk.boot().end is None
    assert (talk.slowness is None) == (usual is None)
    reply = talk.command(Verb.STATE)
    assert (reply.end, reply.seconds >= limits.silent_s * factor) == (End.SILENT, True)
    assert scaled(limits, 3) == Limits(15, 15, 0.06, usual)
    assert scaled(limits, 0.1) == limits
